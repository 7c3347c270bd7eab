"""The origin of a model and the effort of its training, for the recipe beside its weights.

Decisions:
- A recipe contains the data and the effort of the checkpoints that the training started from, so that licences and
  hours are known along a chain of checkpoints. Of a folder only the last part of its path is kept.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch

from radfm.checkpoints import find, resolve
from radfm.recipes_radfm import DIAGNOSIS_RECIPE, FINETUNE_RECIPE, TEXT_RECIPE, load_recipe
from radfm.training_data_radfm import data_sets

# File of a recipe, the newest first -> the keys that are kept.
_KEPT = {
    FINETUNE_RECIPE: ("data", "method", "started_from", "effort"),
    DIAGNOSIS_RECIPE: ("data", "started_from", "effort"),
    TEXT_RECIPE: ("base", "icd10cm", "ontologies", "pairs", "held_out", "effort"),
}


def lineage(**folders: str | None) -> dict[str, dict[str, Any]]:
    """The origin of the checkpoints that a training starts from.

    Args:
        folders: role -> folder or file; None: not used.
    Returns:
        JSON-able: role -> `name`, and from its recipe `data` (see `radfm.data_prep.data_summary`),
        `started_from`, `effort` or, of a text encoder, `ontologies` and more; nothing else where there is no recipe.
    """
    given = {role: folder for role, folder in folders.items() if folder}
    return {role: {"name": Path(folder).name, **_origin(Path(resolve(folder)))} for role, folder in given.items()}


def seen_fingerprints(model: str | Path) -> set[str]:
    """Fingerprints of all data sets that a checkpoint, and those that it started from, were trained on."""
    stated = (one.get("fingerprint") or "" for one in data_sets(load_recipe(find(str(model), local=True))))
    return {fingerprint for one in stated for fingerprint in one.split("; ") if fingerprint}  # of all sites


def effort(began: float, resumed: bool, processes: int = 1) -> dict[str, Any]:
    """The time and the devices of a run.

    Args:
        began: `time.monotonic()` at its beginning.
        resumed: whether the run resumed a killed one, whose time is not counted.
    Returns:
        JSON-able: `seconds`, `resumed`, `processes`, and the `device` of each.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    seconds = round(time.monotonic() - began, 1)
    return {"seconds": seconds, "resumed": resumed, "processes": processes, "device": device}


def has_ended(folder: Path, file: str, recipe: dict[str, Any]) -> bool:
    """Whether a folder holds weights with this recipe, apart from the effort.

    Args:
        file: the name of a recipe of this kind.
        recipe: JSON-able.
    """
    if not (folder / file).is_file() or not (folder / "model.safetensors").is_file():
        return False
    stored = json.loads((folder / file).read_text(encoding="utf-8"))
    given = json.loads(json.dumps(recipe))
    return all(stored.get(key) == given.get(key) for key in (stored.keys() | given.keys()) - {"effort", "versions"})


def _origin(folder: Path) -> dict[str, Any]:
    for name, keys in _KEPT.items():
        if (folder / name).is_file():
            recipe = json.loads((folder / name).read_text(encoding="utf-8"))
            return {key: recipe[key] for key in keys if recipe.get(key) is not None}
    return {}
