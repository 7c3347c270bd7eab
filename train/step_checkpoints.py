"""Checkpoints of trainings with a loop of their own: one file, `checkpoint.pt`, replaced after every so many steps.

Decisions:
- What is random in a step follows from the seed and the number of the step, so a checkpoint needs no state of random
  number generators, and a resumed run does what an uninterrupted one would.
- The file is written beside its final place and renamed. It holds tensors, numbers and lists, and is read with
  `weights_only=True`.
"""

from pathlib import Path
from typing import Any

import torch

from radfm.data_prep.tables import replacing

FILE = "checkpoint.pt"


def save_checkpoint(output: Path, step: int, state: dict[str, Any]) -> None:
    """Raises: OSError: it could not be written, as on a full disk; the last one is kept."""
    try:
        with replacing(output / FILE) as draft:
            torch.save({"step": step, **state}, draft)
    except RuntimeError as error:  # torch's writer of zip files does not raise OSError
        raise OSError(f"{output / FILE} cannot be written, is the disk full? ({error})") from error


def load_checkpoint(output: Path) -> dict[str, Any] | None:
    """The last checkpoint, with `step`, the number of steps that were done; None: there is none.

    Raises:
        ValueError: the file is damaged.
    """
    if not (output / FILE).is_file():
        return None
    try:
        return torch.load(output / FILE, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{output / FILE} is damaged: delete it to begin again ({type(error).__name__})") from error


def remove_checkpoint(output: Path) -> None:
    (output / FILE).unlink(missing_ok=True)
