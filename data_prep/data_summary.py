"""A summary of a data set that may go wherever a model goes that was trained on it: origin, licence and numbers.

Decisions:
- Numbers and nothing else: no case, patient, file or folder is named.
- It is of the cases that were learned from, not of the whole set.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from radfm.data_prep.counts import UNKNOWN, count
from radfm.data_prep.stored_cases import StoredCases

AGES = {18: "0 to 17", 40: "18 to 39", 65: "40 to 64", 200: "65 and more"}  # years, to below


def data_summary(cases: StoredCases, rows: Sequence[int] | None = None) -> dict[str, Any]:
    """
    Args:
        cases: of one split.
        rows: those that were learned from; None: all.
    Returns:
        JSON-able: `title`, `source`, `licence`, `citation` (None where the source says nothing), `fingerprint` of the
        whole data set; `patients`, `cases`, `normal`, `scans`, `slices`; `disorders`: those that occur; `modalities`,
        `body_parts` (name -> scans), `ages`, `sexes` (group -> patients), "not stated" among them.
    """
    chosen = [cases.rows[row] for row in (range(len(cases)) if rows is None else rows)]
    scans = {row: _scan(cases.scan_header(row)) for case in chosen for row in case["scan_rows"]}
    found = count(chosen, scans, cases.vocabulary)
    ages = Counter(age_group(age) for age in found.ages)
    if unstated := found.patients - len(found.ages):
        ages[UNKNOWN] = unstated
    notice = cases.record["notice"]
    return {
        "title": notice.get("title") or cases.record["source"],
        "source": cases.record["source"],
        "licence": notice.get("licence"),
        "citation": notice.get("citation"),
        "fingerprint": cases.record["fingerprint"],
        "patients": found.patients,
        "cases": found.cases,
        "normal": found.normal,
        "scans": found.scans,
        "slices": found.slices,
        "disorders": sum(disorder.cases > 0 for disorder in found.disorders),
        "modalities": {name: one.scans for name, one in found.modalities.items()},
        "body_parts": found.body_parts,
        "ages": {group: ages[group] for group in (*AGES.values(), UNKNOWN) if ages[group]},
        "sexes": dict(sorted(found.sex.items())),
    }


def age_group(years: float) -> str:
    return next(name for below, name in AGES.items() if years < below)


def _scan(row: dict) -> dict:
    """A row of the table of scans as the shards noted it."""
    return row | {"slices": row["shape"][0], "key_slice": row["key_slice"] is not None}
