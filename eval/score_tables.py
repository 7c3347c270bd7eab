"""Tables of scores with all that a data set and a checkpoint say of their cases and their origin."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from radfm.checkpoints import CONFIDENCE, find
from radfm.data_prep.batches.case_dataset import CaseDataset
from radfm.data_prep.case_groups import case_groups
from radfm.data_prep.stored_cases import StoredCases, patient_of
from radfm.eval.scores import Scores
from radfm.recipes_radfm import MODEL_RECIPES
from radfm.reference_radfm import weights_sha256

ALL = "all"  # the split of tables of all cases


def table_of(
    dataset: CaseDataset,
    everything: StoredCases,
    scores: np.ndarray,
    names: Sequence[str] | None = None,
    about: dict | None = None,
    logits: np.ndarray | None = None,
) -> Scores:
    """Scores of any origin, with all that the data set says of these cases.

    The training cases are those of the training split, without unpublishable ones if `about` has `publishable`.

    Args:
        dataset: the cases that were scored, of one split of `everything`, or all.
        scores: (cases, disorders).
        names: of the disorders; None: those of the data set.
        about: what is known of their origin.
        logits: (cases, disorders) the scores before they were calibrated; None if they were not.
    """
    cases = dataset.cases
    vocabulary = cases.vocabulary
    names = vocabulary.names if names is None else names
    rows = [cases.rows[row] for row in dataset.rows]
    about = about or {}
    return Scores(
        scores=scores,
        names=list(names),
        icd10cm=[disorder.icd10cm if (disorder := vocabulary.find(name)) else [] for name in names],
        case_ids=[row["case_id"] for row in rows],
        patients=[patient_of(row) for row in rows],
        disorders=[[vocabulary[label].name for label in row["labels"]] for row in rows],
        training=training_columns(everything, names, about.get("publishable", False)),
        attributes=case_groups(rows, cases.scan_header),
        about={
            **about,
            "data": everything.record["fingerprint"],
            "dataset": everything.folder.name,
            "split": cases.split or ALL,
            "fold": cases.fold,
            "left_out": dict(dataset.skipped),
            "radfm": version("radfm"),
        },
        logits=logits,
    )


def training_columns(everything: StoredCases, names: Sequence[str], publishable: bool = False) -> list[list[int]]:
    """For each training case that has any of these disorders, their columns, as `Scores.training`.

    Args:
        publishable: whether the training left out cases that a published model must not learn from.
    """
    column = {name: i for i, name in enumerate(names)}
    rows = (row for row in everything.rows if row["split"] == "train" and row["labelled"])
    rows = (row for row in rows if row["publish"] is not False or not publishable)
    columns = (sorted(column[name] for name in row["disorders"] if name in column) for row in rows)
    return [of_case for of_case in columns if of_case]


def about_checkpoint(model: str | Path) -> dict:
    """The origin of a table of scores: name of the checkpoint, fingerprint of its weights, `recipe_of`, and the
    fingerprint of the data that it was calibrated on, if it was.
    """
    folder = Path(find(model, local=True))
    about = {"model": Path(model).name, "checkpoint": weights_sha256(folder), **recipe_of(folder)}
    fit = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("calibration")
    if fit is not None and "nearest" not in fit:  # `radfm calibrate --hubness` reads no label and no validation case
        file = folder / CONFIDENCE  # `radfm finetune`, which writes none, calibrates on the data that it trains on
        record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        about["calibrated_on"] = record.get("data", about.get("trained_on"))
    return about


def recipe_of(folder: Path) -> dict:
    """Of a checkpoint that radfm trained: the data and the fold of its last training, and what it left out."""
    for name in MODEL_RECIPES:
        if (folder / name).is_file():
            recipe = json.loads((folder / name).read_text(encoding="utf-8"))
            run = recipe.get("key", recipe)
            data = run["data"] if isinstance(run["data"], str) else run["data"]["fingerprint"]
            sections = {name: run["config"].get(name) or {} for name in ("data", "model")}
            fold = sections["data"].get("fold")
            frozen = sections["model"].get("frozen") == "tower"
            return {
                "trained_on": data,
                "trained_on_fold": None if fold is None else f"{fold}/{sections['data']['folds']}",
                "publishable": sections["data"].get("publishable", False),
                "withheld": sections["data"].get("withheld", []),
                "frozen_tower": frozen,
            }
    return {}
