"""The checkpoints that come with radfm. Their names are accepted wherever a folder of a checkpoint is.

    >>> from radfm import checkpoints
    >>> sorted(checkpoints.NAMES)
    ['radfm-open-mini', 'radfm-phantom-mini', 'radfm-text-mini']
    >>> model = RadFMForDiagnosis.from_pretrained("radfm-open-mini")

- `radfm-open-mini`: a whole model, trained on real patients of openly licensed collections
  (`train/configs/open_mini.yaml`). It is the default of every command.
- `radfm-phantom-mini`: a whole model, trained on synthetic patients only (`train/configs/diagnosis_ke.yaml`). It serves
  tests and what needs a known truth, such as saliency maps; it is of no use for real studies.
- `radfm-text-mini`: the knowledge text encoder, a SentenceTransformer: all-MiniLM-L6-v2 trained on ICD-10-CM and the
  Disease Ontology (`train/configs/text.yaml`).

Decisions:
- Weights are stored in bfloat16, in which they were evaluated, and loaded in float32.
- All have the same text encoder and tokenizer, which are stored once. On first use of a model a complete checkpoint is
  written to the cache folder.
- A folder of the user's with such a name takes precedence, as with every name of transformers.
"""

import hashlib
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from radfm.knowledge.cache import cache_folder

__all__ = ["DEFAULT", "NAMES", "folder", "resolve"]

# Written by `radfm calibrate` beside the weights. The names of recipes are in `radfm.recipes_radfm`.
CONFIDENCE = "radfm_confidence.json"

NAMES = ("radfm-text-mini", "radfm-open-mini", "radfm-phantom-mini")
DEFAULT = "radfm-open-mini"  # of `radfm diagnose`, `radfm serve` and `radfm demo`

HOME = Path(__file__).parent
TEXT_ENCODER = "radfm.text_encoder.encoder."  # prefix of its weights in a model
# Model -> the checkpoint with the weights of its text encoder.
_SHARING = {name: "radfm-text-mini" for name in NAMES if name != "radfm-text-mini"}


def resolve(model: Any) -> Any:
    """The folder of a checkpoint that comes with radfm; anything else as it is."""
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else None
    return str(folder(name)) if name in NAMES and not os.path.isdir(name) else model


def find(model: str | os.PathLike, local: bool = False) -> str:
    """The argument of `from_pretrained` for a model: a folder, or a name on the Hub, which is not looked up here.

    Args:
        model: Folder of a checkpoint, name of one that comes with radfm, or name on the Hub.
        local: Whether to refuse names on the Hub.
    Raises:
        ValueError: The folder holds no checkpoint of radfm, or as `folder`.
        FileNotFoundError: There is no such folder.
    """
    path = Path(resolve(model))
    if not path.exists():
        if local or path.is_absolute() or str(model).startswith(".") or str(model).count("/") != 1:
            raise FileNotFoundError(
                f"{model}: no such folder. --model takes the folder of a checkpoint, or one of {', '.join(NAMES[1:])}"
            )
        return str(model)
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    except OSError:
        raise ValueError(f"{model} is no checkpoint of radfm: it holds no config.json") from None
    except (ValueError, AttributeError):
        kind = None
    if kind != "radfm":
        raise ValueError(f"{model} is no checkpoint of radfm: its config.json is of another model")
    return str(path)


@cache
def folder(name: str) -> Path:
    """
    Raises:
        ValueError: no such checkpoint comes with radfm, or its weights are not installed.
    """
    if name not in NAMES:
        raise ValueError(f"no checkpoint {name!r} comes with radfm: there are {', '.join(NAMES)}")
    home = HOME / name
    if not (home / "model.safetensors").is_file():
        raise ValueError(f"the weights of {name} are not installed: install radfm from its wheel, or clone it again")
    return _joined(home, HOME / _SHARING[name]) if name in _SHARING else home


def _joined(home: Path, text: Path) -> Path:
    """The folder in the cache with a model and its text encoder."""
    digest = hashlib.sha256()
    for file in (*sorted(home.iterdir()), text / "model.safetensors"):
        digest.update(file.name.encode() + file.read_bytes())
    root = cache_folder()
    try:
        root = (root or Path(tempfile.mkdtemp())) / "checkpoints"
        root.mkdir(parents=True, exist_ok=True)
    except OSError:  # the home folder is read-only
        root = Path(tempfile.mkdtemp())
    whole = root / f"{home.name}-{digest.hexdigest()[:16]}" / home.name
    if not whole.is_dir():
        half = Path(tempfile.mkdtemp(dir=root))
        try:
            shutil.copytree(home, half / home.name)
            shutil.copy(text / "tokenizer.json", half / home.name)
            _join(half / home.name / "model.safetensors", text / "model.safetensors")
            os.replace(half, whole.parent)
        except OSError:
            if not whole.is_dir():  # else another process has written it
                raise
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return whole


def _join(weights: Path, text: Path) -> None:
    from safetensors.torch import load_file, save_file

    texts = load_file(text).items()
    texts = {TEXT_ENCODER + name: tensor for name, tensor in texts if not name.startswith("pooler.")}  # not used
    save_file(load_file(weights) | texts, weights, {"format": "pt"})
