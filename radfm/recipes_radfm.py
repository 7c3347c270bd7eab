"""The recipe beside the weights of a checkpoint: how they were trained, JSON.

Decisions:
- The names of the files are here and nowhere else. A model that was fine-tuned has the recipe of the fine-tuning; the
  recipe of the training before is within it, under "started_from".
- Nothing of radfm is imported, so that a checkpoint can carry this file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FINETUNE_RECIPE = "radfm_finetune.json"
DIAGNOSIS_RECIPE = "radfm_diagnosis.json"
TEXT_RECIPE = "radfm_text.json"
AUTOENCODER_RECIPE = "radfm_autoencoder_recipe.json"
DIFFUSION_RECIPE = "radfm_diffusion.json"
MODEL_RECIPES = (FINETUNE_RECIPE, DIAGNOSIS_RECIPE)  # of a model, the newest first

SYNTHETIC_ONLY = "This model was trained on synthetic patients only. Its answers about a real study mean nothing."


def load_recipe(model: str) -> dict[str, Any]:
    """The newest recipe of a model, by the folder or Hub name of its checkpoint; {} if it has none.

    Raises:
        ValueError: The file is damaged.
    """
    from transformers.utils import cached_file

    for name in MODEL_RECIPES:
        file = cached_file(
            model,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        if file is not None:
            try:
                return json.loads(Path(file).read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{file} is damaged: restore it, or delete it ({error})") from error
    return {}


def is_synthetic(data: Mapping[str, Any]) -> bool:
    """Whether no case of a data set is a patient, by its summary in a recipe. What is not recorded is real."""
    return data.get("source") == "phantoms" or bool(data.get("synthetic"))


def synthetic_only(recipe: Mapping[str, Any]) -> bool:
    """Whether a model was trained on synthetic patients only, and so was every checkpoint that it learned from.

    Args:
        recipe: A recipe of `MODEL_RECIPES`. What it does not record counts as real.
    """
    if not is_synthetic(recipe.get("data") or {}):
        return False
    config, starts = recipe.get("key", recipe).get("config") or {}, recipe.get("started_from") or {}
    model = config.get("model") or {}
    given = {"model": model.get("checkpoint")} | {key: model.get(key) for key in ("tower_weights", "teacher")}
    return all(synthetic_only(starts.get(key) or {}) for key in given if given[key] or starts.get(key))


__all__ = [
    "AUTOENCODER_RECIPE",
    "DIAGNOSIS_RECIPE",
    "DIFFUSION_RECIPE",
    "FINETUNE_RECIPE",
    "MODEL_RECIPES",
    "SYNTHETIC_ONLY",
    "TEXT_RECIPE",
    "is_synthetic",
    "load_recipe",
    "synthetic_only",
]
