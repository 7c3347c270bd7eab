"""Where a model comes from and what it took, for the recipe beside its weights.

Decisions:
- A recipe keeps what the recipes of the folders it started from say of their data and of what they took, so that
  neither a licence nor an hour is lost on the way from one checkpoint to the next. Folders are told by their last name.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch

from radfm.checkpoints import resolve
from radfm.recipes_radfm import DIAGNOSIS_RECIPE, FINETUNE_RECIPE, TEXT_RECIPE

# Of each kind of recipe, newest first: what is told of it.
_TOLD = {
    FINETUNE_RECIPE: ("data", "method", "started_from", "effort"),
    DIAGNOSIS_RECIPE: ("data", "started_from", "effort"),
    TEXT_RECIPE: ("base", "icd10cm", "ontologies", "pairs", "held_out", "effort"),
}


def lineage(**folders: str | None) -> dict[str, dict[str, Any]]:
    """What the checkpoints say of themselves that a model starts from.

    Args:
        folders: what it starts from -> folder or file; None: it does not.
    Returns:
        JSON-able: what -> `name`, and what its recipe says: `data` (see `radfm.data_prep.data_summary`),
        `started_from`, `effort` or, of a text encoder, `ontologies` and more; nothing else where there is no recipe.
    """
    given = {what: folder for what, folder in folders.items() if folder}
    return {what: {"name": Path(folder).name, **_told(Path(resolve(folder)))} for what, folder in given.items()}


def effort(began: float, resumed: bool, processes: int = 1) -> dict[str, Any]:
    """What a run took.

    Args:
        began: `time.monotonic()` at its begin.
        resumed: whether a killed run went on, whose time before is not counted.
    Returns:
        JSON-able: `seconds`, `resumed`, `processes`, and the `device` of each.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    seconds = round(time.monotonic() - began, 1)
    return {"seconds": seconds, "resumed": resumed, "processes": processes, "device": device}


def has_ended(folder: Path, file: str, recipe: dict[str, Any]) -> bool:
    """Whether a folder holds weights that were made by this recipe, whatever they took.

    Args:
        file: what a recipe of this kind is called there.
        recipe: JSON-able.
    """
    if not (folder / file).is_file() or not (folder / "model.safetensors").is_file():
        return False
    found = json.loads((folder / file).read_text(encoding="utf-8"))
    told = json.loads(json.dumps(recipe))
    return all(found.get(key) == told.get(key) for key in (found.keys() | told.keys()) - {"effort", "versions"})


def _told(folder: Path) -> dict[str, Any]:
    for name, keys in _TOLD.items():
        if (folder / name).is_file():
            recipe = json.loads((folder / name).read_text(encoding="utf-8"))
            found = {key: recipe[key] for key in keys if recipe.get(key) is not None}
            if "base" in found:
                found["base"] = Path(found["base"]).name
            return found
    return {}
