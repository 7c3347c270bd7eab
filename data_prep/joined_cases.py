"""Real cases together with synthetic ones, as one sequence of cases: `data.synthetic` of a training.

    >>> cases = JoinedCases(load("datasets/mine", "train"), load("datasets/synthetic", "train"))

Decisions:
- The vocabulary is that of the real cases. A synthetic data set with another disorder is refused, because its cases
  would be wrong negatives.
- The rows of scans of the later data sets follow those of the earlier ones.
- `record` is that of the real data set: its fingerprint tells which patients a model has seen. `fingerprint` is of all
  data sets together.
"""

import hashlib

import numpy as np

from radfm.cases import Scan
from radfm.data_prep.stored_cases import StoredCases, is_synthetic


class JoinedCases(StoredCases):
    """The cases of a data set, followed by those of synthetic ones.

    Attributes:
        parts: the data sets, the real one first. All other attributes are as of `StoredCases`.

    Raises:
        ValueError: a data set is not marked synthetic, holds other latents, or has a disorder that the first has not.
    """

    def __init__(self, first: StoredCases, *synthetic: StoredCases):
        vars(self).update({name: value for name, value in vars(first).items() if not name.startswith("_")})
        self.vocabulary = first.vocabulary
        self._parts = (first, *synthetic)
        self._ends = np.cumsum([sum(part.record["scans_per_shard"]) for part in self._parts])
        self.rows = list(first.rows)
        for part, first_scan in zip(synthetic, self._ends[:-1].tolist(), strict=True):
            _require_joinable(first, part)
            row_of = _rows_in(first, part)
            self.rows += [
                row
                | {
                    "labels": [row_of[label] for label in row["labels"]],
                    "scan_rows": [first_scan + scan for scan in row["scan_rows"]],
                }
                for row in part.rows
            ]

    @property
    def parts(self) -> tuple[StoredCases, ...]:
        return self._parts

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(" ".join(part.fingerprint for part in self.parts).encode()).hexdigest()

    def scan(self, row: int) -> Scan:
        part, row = self._located(row)
        return part.scan(row)

    def scan_header(self, row: int) -> dict:
        part, row = self._located(row)
        return part.scan_header(row)

    def _packed_masks(self, row: int) -> dict[str, dict]:
        part, row = self._located(row)
        return part._packed_masks(row)

    def _located(self, row: int) -> tuple[StoredCases, int]:
        """The data set of a scan, and the scan's row in it."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        if row < 0 or number == len(self._parts):
            raise IndexError(f"there is no scan {row} of {self._ends[-1]}")
        return self._parts[number], row - (int(self._ends[number - 1]) if number else 0)

    def __getstate__(self) -> dict:
        return {"parts": self._parts}

    def __setstate__(self, state: dict) -> None:
        JoinedCases.__init__(self, *state["parts"])


def learned_from(synthetic: StoredCases, real: StoredCases) -> bool:
    """Whether synthetic cases are of a generator of this data set, or of what it was made of; or of no generator."""
    if "synthetic" not in synthetic.record:
        return True  # phantoms
    trained_on = synthetic.record["synthetic"].get("trained_on", {})
    ours = {real.record["fingerprint"], real.record.get("derived_from")} - {None}
    return bool(ours & set(trained_on.values()))


def _require_joinable(first: StoredCases, part: StoredCases) -> None:
    if not is_synthetic(part.record):
        raise ValueError(f"{part.folder} is not marked as synthetic: its cases would be counted as no patients")
    if part.record.get("latents") != first.record.get("latents"):
        raise ValueError(
            f"{part.folder} and {first.folder} do not hold latents of the same autoencoder, or pixels both: prepare "
            "them alike"
        )


def _rows_in(first: StoredCases, part: StoredCases) -> list[int]:
    """(disorders of the part,) the row of each in the vocabulary of the first."""
    row_of = {name: row for row, name in enumerate(first.vocabulary.names)}
    rows = []
    for disorder in part.vocabulary:
        known = first.vocabulary.find(disorder.name)
        if known is None:
            raise ValueError(
                f"{part.folder} has cases of {disorder.name!r}, which is no disorder of {first.folder}: make synthetic "
                "cases of its disorders only, see its disorders.json; one that no real case has cannot be added"
            )
        rows.append(row_of[known.name])
    return rows
