"""The sections of a diagnosis card about training: starting points, settings, and what the training data lacks.

Decisions:
- What the training data lacks is derived from the counts of the data set. Nothing is claimed that was not counted.
- A recipe of `radfm finetune` keeps the settings of its run under `key`; both kinds of recipe are read here.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from radfm.heads_radfm import HEADS
from radfm.presentation import enumeration, markdown_cell, plural
from radfm.publishing.card import Facts
from radfm.recipes_radfm import DIAGNOSIS_RECIPE, FINETUNE_RECIPE

_STARTING_POINTS = {
    "model": "checkpoint",
    "tower_weights": "weights of the slice encoder",
    "text_encoder": "text encoder",
    "teacher": "teacher, whose logits were its targets",
}
_PATIENT_GROUPS = (  # title, key of the data summary, the groups that a data set can have
    ("Ages", "ages", ("0 to 17", "18 to 39", "40 to 64", "65 and more")),
    ("Sexes", "sexes", ("F", "M")),
)
_NOT_STATED = "not stated"


def run_config(recipe: dict) -> dict[str, Any]:
    """The settings of the run; sections that the recipe lacks are empty."""
    return {section: {} for section in ("data", "model", "sampling", "training")} | recipe.get("key", recipe).get(
        "config", {}
    )


def missing_from_training(facts: Facts, modalities: Sequence[str], synthetic: bool, run: dict) -> Iterator[str]:
    """Sentences on what the training data does not contain.

    Args:
        modalities: those that the model reads.
        synthetic: whether all training cases are synthetic.
        run: see `run_config`.
    """
    data, config = facts.training_data or {}, facts.config
    if synthetic:
        yield "**Real patients.** All training cases were rendered by a program."
    if trained_on := data.get("modalities"):
        missing = [name for name in modalities if name not in trained_on]
        yield f"Modalities: {', '.join(missing)}." if missing else "Modalities: none is missing of those it reads."
    else:
        yield "Modalities: not recorded."
    parts = [part for part in data.get("body_parts", ()) if part != _NOT_STATED]
    yield f"Body parts other than {enumeration(parts)}." if parts else "Body parts: not recorded."
    for title, key, groups in _PATIENT_GROUPS:
        stated = {group for group in data.get(key, ()) if group != _NOT_STATED}
        missing = [group for group in groups if group not in stated]
        if not stated:
            yield f"{title}: not stated of any patient." if key in data else f"{title}: not recorded."
        elif missing:
            yield f"{title}: no patient known to be {' or '.join(missing)}."
    if withheld := run["data"].get("withheld"):
        yield f"Disorders withheld from training: {', '.join(map(markdown_cell, withheld))}."
    if HEADS[config["head"]].reads_text:
        yield f"Disorders other than the {len(config['disorders']):,} of its vocabulary: they are scored zero-shot."
    if not config["use_history"]:
        yield "Clinical histories: the model reads images only."


def starting_points(recipe: dict, run: dict, config: dict) -> Iterator[str]:
    """What the model was initialised with, and what each of these was trained on, as its own recipe states."""
    names = {key: run["model"].get("checkpoint" if key == "model" else key) for key in _STARTING_POINTS}
    origins = {key: {"name": name} for key, name in names.items() if name} | (recipe.get("started_from") or {})
    for key, origin in origins.items():
        title = f"{_STARTING_POINTS.get(key, key)} `{markdown_cell(origin['name'])}`"
        if origin["name"] == "imagenet":  # see `radfm.train.tower_weights`
            yield f"{title}: of a network trained on ImageNet-1k, from a package under Apache-2.0"
        elif "icd10cm" in origin:
            sources = [f"ICD-10-CM ({origin['icd10cm']})", *(each["name"] for each in origin.get("ontologies", ()))]
            base = markdown_cell(origin.get("base", "all-MiniLM-L6-v2"))
            yield f"{title}, which is {base} trained on {enumeration(list(map(markdown_cell, sources)))}"
        elif data := origin.get("data"):
            licence = markdown_cell(data.get("licence") or "licence unknown")
            yield f"{title}, trained on {markdown_cell(data.get('title') or data['source'])} ({licence})"
        else:
            yield f"{title}; its training data is not recorded here"
    if run["model"] and "model" not in origins:
        if "text_encoder" not in origins and HEADS[config["head"]].reads_text:
            yield "text encoder all-MiniLM-L6-v2 (Apache-2.0), as published"
        if "tower_weights" not in origins:
            yield "slice encoder: random weights"


def training_details(recipe: dict, run: dict, config: dict) -> Iterator[str]:
    """Method, steps, settings and versions, a line each; nothing without a recipe."""
    if not recipe:
        return
    if "method" in recipe:
        share = recipe.get("interpolation", {}).get("share")
        interpolated = "" if share is None else f"; interpolated with the old weights, share of the new ones {share:g}"
        yield f"Fine-tuned by method {recipe['method']}{interpolated}"
    if "steps" in recipe:
        frozen = "; the tower of the slice encoder was frozen" if run["model"].get("frozen") == "tower" else ""
        best = f"; step {recipe['step']:,} had the best validation result" if recipe.get("validation") else ""
        yield f"{recipe['steps']:,} steps{best}{frozen}"
    details = {
        "head": config["head"],
        "level": "case" if config["case_config"]["num_hidden_layers"] else "scan",
        "loss": run.get("objectives", {}).get("loss", {}).get("name", HEADS[config["head"]].default_loss),
        "slices per step": run["sampling"].get("slices_per_step"),
        "learning rate": run["training"].get("learning_rate"),
        "seed": run.get("seed"),
    }
    yield "; ".join(f"{name} {markdown_cell(value)}" for name, value in details.items() if value is not None)
    if versions := recipe.get("versions"):
        yield ", ".join(f"{name} {version}" for name, version in versions.items())
    yield f"The complete recipe is in `{FINETUNE_RECIPE if 'key' in recipe else DIAGNOSIS_RECIPE}`"


def validation_cases(recipe: dict) -> str:
    """A sentence on the cases that the best step was chosen with; "" where they are not recorded."""
    if "validation" in recipe and recipe["validation"] is None:
        return "The last step is the result."
    cases = recipe.get("cases", {}).get("validation")
    return f"The best step was chosen with {plural(cases, 'other case')} of the data set." if cases else ""
