"""Installs the checkpoints that come with radfm from the runs that trained them.

    python -m radfm.checkpoints.make halve runs/text checkpoints/radfm-text-mini
    python -m radfm.checkpoints.make install checkpoints/radfm-text-mini checkpoints/radfm-phantom-mini
    python -m radfm.checkpoints.make install radfm-text-mini checkpoints/radfm-open-mini

`halve` copies a checkpoint with its weights in bfloat16; the copy is calibrated, evaluated and installed. `install`
copies the text encoder, unless it is the one in the package, and the model without it into the package. All commands:
`make checkpoints`, `make open-checkpoint`.
"""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from radfm import checkpoints

_KEPT = {".json", ".safetensors"}
_SHARED = ("tokenizer.json",)  # stored with the text encoder only


def halve(source: Path, target: Path) -> None:
    """Copies the checkpoint in a folder, with floating-point weights in bfloat16.

    Raises:
        FileExistsError: the target exists.
        FileNotFoundError: the source holds no weights.
    """
    weights = load_file(source / "model.safetensors")
    shutil.copytree(source, target, ignore=_ignored)
    _save({name: t.bfloat16() if t.is_floating_point() else t for name, t in weights.items()}, target)


def install(text: Path, model: Path) -> None:
    """
    Raises:
        ValueError: the model has a different text encoder.
    """
    shared, weights = load_file(text / "model.safetensors"), load_file(model / "model.safetensors")
    theirs = {name.removeprefix(checkpoints.TEXT_ENCODER): t for name, t in weights.items() if _of_text(name)}
    if not theirs or not all(name in shared and torch.equal(shared[name], t) for name, t in theirs.items()):
        raise ValueError(f"{model} was not trained with {text}: its text encoder has other weights")
    for source in (text, model):
        target = checkpoints.HOME / source.name
        if source.resolve() != target.resolve():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=_ignored)
    _save({name: t for name, t in weights.items() if not _of_text(name)}, target)
    for name in _SHARED:
        (target / name).unlink()


def _of_text(name: str) -> bool:
    return name.startswith(checkpoints.TEXT_ENCODER)


def _save(weights: dict[str, Tensor], folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file(weights, file, {"format": "pt"})
    file.chmod(0o644)


def _ignored(folder: str, names: list[str]) -> set[str]:
    """Files that are not part of a checkpoint: those of the trainer, logs, code."""
    parts = {name for name in names if (Path(folder) / name).is_dir() and name.startswith(("checkpoint-", "runs"))}
    return parts | {name for name in names if (Path(folder) / name).is_file() and Path(name).suffix not in _KEPT}


if __name__ == "__main__":
    commands = {"halve": halve, "install": install}
    if len(sys.argv) != 4 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](Path(checkpoints.resolve(sys.argv[2])), Path(sys.argv[3]))
