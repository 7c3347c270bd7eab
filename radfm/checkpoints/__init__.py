"""The checkpoints that come with radfm, and are found by name wherever a folder of a checkpoint is asked for.

    >>> from radfm import checkpoints
    >>> sorted(checkpoints.NAMES)
    ['radfm-phantom-mini', 'radfm-text-mini']
    >>> model = RadFMForDiagnosis.from_pretrained("radfm-phantom-mini")

- `radfm-text-mini`: the knowledge text encoder, a SentenceTransformer: all-MiniLM-L6-v2 taught ICD-10-CM and the
  Disease Ontology (`train/configs/text.yaml`).
- `radfm-phantom-mini`: a whole model, trained on drawn patients (`train/configs/diagnosis_ke.yaml`). It has never seen
  a real one, and serves to learn the package, to test pipelines and to start from.

Decisions:
- Weights are kept in bfloat16, in which they were evaluated, and loaded in float32.
- Both have the same text encoder and tokenizer, which are there once. On first use of the model a folder with all of it
  is made in the cache, from then on an ordinary checkpoint.
- A folder of the user's own with such a name goes first, as with every name of transformers.
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

__all__ = ["NAMES", "folder", "resolve"]

# What lies beside the weights: how they were made, the newest first, and what `radfm calibrate` fitted.
MODEL_RECIPES, TEXT_RECIPE = ("radfm_finetune.json", "radfm_diagnosis.json"), "radfm_text.json"
CONFIDENCE = "radfm_confidence.json"

NAMES = ("radfm-text-mini", "radfm-phantom-mini")

HOME = Path(__file__).parent
TEXT_ENCODER = "radfm.text_encoder.encoder."  # what the names of its weights begin with in a model
_SHARING = {"radfm-phantom-mini": "radfm-text-mini"}  # model -> whose weights are its text encoder's


def resolve(model: Any) -> Any:
    """The folder of a checkpoint that comes with radfm; anything else as it is."""
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else None
    return str(folder(name)) if name in NAMES and not os.path.isdir(name) else model


def find(model: str | os.PathLike, local: bool = False) -> str:
    """What `from_pretrained` loads a model from: a folder, or a name on the Hub, which is not looked up here.

    Args:
        model: Folder of a checkpoint, name of one that comes with radfm, or name on the Hub.
        local: Only what is on this machine will do.
    Raises:
        ValueError: The folder holds no checkpoint of radfm, or as `folder`.
        FileNotFoundError: There is no such folder.
    """
    found = Path(resolve(model))
    if not found.exists():
        if local or found.is_absolute() or str(model).startswith(".") or str(model).count("/") != 1:
            raise FileNotFoundError(
                f"{model}: no such folder. --model takes the folder of a checkpoint, or one of {', '.join(NAMES[1:])}"
            )
        return str(model)
    try:
        kind = json.loads((found / "config.json").read_text(encoding="utf-8")).get("model_type")
    except OSError:
        raise ValueError(f"{model} is no checkpoint of radfm: it holds no config.json") from None
    except (ValueError, AttributeError):
        kind = None
    if kind != "radfm":
        raise ValueError(f"{model} is no checkpoint of radfm: its config.json is of another model")
    return str(found)


@cache
def folder(name: str) -> Path:
    """
    Raises:
        ValueError: no such checkpoint comes with radfm, or this installation lacks its weights.
    """
    if name not in NAMES:
        raise ValueError(f"no checkpoint {name!r} comes with radfm: there are {', '.join(NAMES)}")
    home = HOME / name
    if not (home / "model.safetensors").is_file():
        raise ValueError(f"the weights of {name} are not installed: install radfm from its wheel, or clone it again")
    return _joined(home, HOME / _SHARING[name]) if name in _SHARING else home


def _joined(home: Path, text: Path) -> Path:
    """The folder in the cache that holds a model and its text encoder."""
    digest = hashlib.sha256()
    for file in (*sorted(home.iterdir()), text / "model.safetensors"):
        digest.update(file.name.encode() + file.read_bytes())
    root = cache_folder()
    try:
        root = (root or Path(tempfile.mkdtemp())) / "checkpoints"
        root.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to
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
            if not whole.is_dir():  # not because another process was faster
                raise
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return whole


def _join(weights: Path, text: Path) -> None:
    from safetensors.torch import load_file, save_file

    texts = load_file(text).items()
    texts = {TEXT_ENCODER + name: tensor for name, tensor in texts if not name.startswith("pooler.")}  # never used
    save_file(load_file(weights) | texts, weights, {"format": "pt"})
