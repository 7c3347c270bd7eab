"""What a reader has to know about tables of scores before trusting the figures that are measured on them."""

from collections.abc import Iterable, Mapping
from typing import Any

from radfm.eval.scores import calibrated_on_these_cases

FEW_CASES = 10  # of a disorder, below which its own figures are unreliable
_MOST_NAMED = 10


def comparison_notes(result: Mapping[str, Any]) -> list[str]:
    """Sentences about the result of `radfm.eval.diagnosis.compare`, with those about each model; plain text."""
    rows = next(iter(result["models"].values()))["disorders"]
    measured, disorders = result["bands"]["all"]["measured"], result["bands"]["all"]["disorders"]
    few = sum(0 < row["cases"] < FEW_CASES for row in rows)
    notes = []
    if result["split"] == "train":
        notes.append("These are cases of the training split: the model may have memorised them.")
    if measured < disorders:
        notes.append(
            f"{disorders - measured:,} of {disorders:,} disorders cannot be measured, because all of these cases have "
            "them or none: they are in no average."
        )
    if few:
        notes.append(
            f"{few:,} of {measured:,} disorders have fewer than {FEW_CASES} cases here: their own figures are "
            "unreliable, and their intervals too narrow."
        )
    for name, model in result["models"].items():
        notes += table_notes(name, model["tables"])
    return notes


def table_notes(name: str, tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """Sentences about one model: cases left out, other training data, calibration on these cases, withheld disorders.

    Args:
        name: of the model.
        tables: the `about` of each of its tables.
    """
    notes = []
    for about in tables:
        if left_out := about.get("left_out"):
            notes.append(f"{name}: {len(left_out):,} cases could not be read, and are left out.")
        if about.get("trained_on") not in (None, about.get("data")):
            notes.append(f"{name} was trained on another data set; whether the two share patients is not known.")
        if calibrated_on_these_cases(about):
            notes.append(f"{name} was calibrated on these cases, so its ranks are optimistic: measure a test split.")
        if withheld := about.get("withheld"):
            more = f" and {len(withheld) - _MOST_NAMED:,} more" if len(withheld) > _MOST_NAMED else ""
            named = f"{', '.join(withheld[:_MOST_NAMED])}{more}"
            notes.append(f"{name}: {len(withheld):,} disorders were withheld from its training: {named}.")
    return list(dict.fromkeys(notes))
