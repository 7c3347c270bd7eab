"""The checkpoints of a training: which of them are complete, whether the training has ended, and its result.

Decisions:
- A checkpoint is complete when it holds a file `complete`, which is written last. A killed run resumes from the last
  complete one, and a full disk costs the unfinished one only.
- The result of a training are the model's files of the best checkpoint, with a recipe beside them.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from radfm.checkpoints import CONFIDENCE
from radfm.reference_radfm import FILE as REFERENCE

COMPLETE = "complete"
_MODEL_FILES = (".json", ".safetensors", ".py", ".txt", ".model", ".jinja")
_TRAINER_FILES = (TRAINER_STATE_NAME, "zero_to_fp32.py", "zero_to_torch.py")
_OF_OTHER_WEIGHTS = (REFERENCE, CONFIDENCE)  # `radfm calibrate` wrote them for the weights that are replaced


def last_checkpoint(output: str | Path) -> Path | None:
    """The newest complete checkpoint in a folder."""
    complete = [file.parent for file in Path(output).glob(f"checkpoint-*/{COMPLETE}")]
    return max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def mark_complete(checkpoint: Path) -> None:
    (checkpoint / COMPLETE).touch()


def remove_incomplete(output: str | Path) -> None:
    """Deletes the checkpoints that a killed run had begun to write."""
    for folder in Path(output).glob("checkpoint-*"):
        if not (folder / COMPLETE).exists():
            shutil.rmtree(folder)


def state_at_end(checkpoint: str | Path, arguments: TrainingArguments) -> TrainerState | None:
    """The Trainer's state in the checkpoint with which a training ends; None: the training is to be continued.

    The Trainer must not resume from such a checkpoint: it takes a step before it tests whether that was the last one,
    and does not restore that it had stopped early.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    stopped = state.stateful_callbacks.get("TrainerControl", {}).get("args", {}).get("should_training_stop", False)
    if arguments.max_steps >= 0:
        finished = state.global_step >= arguments.max_steps
    else:
        finished = (state.epoch or 0) >= arguments.num_train_epochs
    return state if finished or (stopped and state.global_step < state.max_steps) else None


def result_checkpoint(state: TrainerState, output: str | Path) -> Path:
    """The best checkpoint, or the last one where there was no validation. Raises: ValueError: there is none."""
    best = state.best_model_checkpoint
    checkpoint = Path(output) / Path(best).name if best else last_checkpoint(output)
    if checkpoint is None:
        raise ValueError(f"{output} holds no checkpoint for the result: set training.save_strategy=steps")
    return checkpoint


def write_result(checkpoint: Path, output: Path, recipe: dict[str, Any], recipe_file: str) -> None:
    """Copies the files of the model to the folder of the result, and writes its recipe."""
    for file in sorted(checkpoint.iterdir()):
        if file.suffix in _MODEL_FILES and file.name not in _TRAINER_FILES:
            shutil.copyfile(file, output / f".{file.name}")
            os.replace(output / f".{file.name}", output / file.name)
    (output / recipe_file).write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
    for obsolete in _OF_OTHER_WEIGHTS:
        (output / obsolete).unlink(missing_ok=True)
