"""What a reader has to know about tables of scores before trusting the figures that are measured on them."""

from collections.abc import Iterable, Mapping
from typing import Any

from radfm.eval.scores import calibrated_on_these_cases

_MOST_NAMED = 10


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
