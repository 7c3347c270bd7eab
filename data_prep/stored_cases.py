"""A prepared data set as a sequence of cases.

    >>> from radfm.data_prep import load
    >>> cases = load("datasets/mine", split="train")
    >>> len(cases), cases[0].disorders, cases[0].scans[0].pixels.shape

Decisions:
- Pixels are read on access: a scan's pixels are a read-only view of the memory-mapped file, so that every slice costs
  the same, and memory is not filled.
- With `labelled=True` the set is prepared for training and evaluation: cases without labels are left out, and words
  that name a case's own disorders are removed from its history.
- Pickling a `StoredCases` keeps the folder and the arguments only, and another process opens the files again.
- The rows of the tables are dictionaries; `columns.py` describes their keys.
- In a fold, such as "0/5", one fifth of the patients of the training and the validation split are the validation split,
  and the others the training split. Folds are stratified by disorder and collection. All cases take part in assigning
  them, also those that are then left out, so that a fold is the same whatever is trained on.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from radfm.cases import Case, Scan
from radfm.data_prep.answers import without_answer
from radfm.data_prep.case_groups import case_groups, meets
from radfm.data_prep.plan import SPLITS
from radfm.data_prep.splits import assign_folds, parse_fold
from radfm.data_prep.tables import FORMAT, RECORD, StoredScans, read_masks, read_rows, unpack_mask
from radfm.knowledge.disorders import Vocabulary


def load(
    folder: str | Path,
    split: str | None = None,
    labelled: bool = False,
    without: Sequence[str] = (),
    publishable: bool = False,
    fold: str | None = None,
    where: Sequence[str] = (),
) -> "StoredCases":
    """The cases of a prepared data set.

    Args:
        split: "train", "validation" or "test"; None: all cases.
        labelled: leave out cases without labels, and remove from each history the words that name its disorders.
        without: names of disorders to leave out of the vocabulary, together with every case that has one of them.
        publishable: leave out cases that a published model must not learn from, where the source states it.
        fold: "0/5": the first of five folds of patients is the validation split, and the others are the training split.
        where: conditions that the cases meet, such as "collection!=medpix", see `radfm.data_prep.case_groups`.

    Raises:
        FileNotFoundError: the folder holds no data set, or an unfinished one.
        ValueError: the split, the fold, a disorder or a group does not exist, or the data set has another version of
            the format.
    """
    return StoredCases(folder, split, labelled, without, publishable, fold, where)


class StoredCases(Sequence[Case]):
    """A sequence of cases; `stored[i]` is a `radfm.Case`.

    Attributes:
        folder, split, labelled, without, publishable, fold, where: the arguments of `load`.
        record: the content of dataset.json.
        rows: the rows of the table of cases, dictionaries with the keys of `columns.CASES`.
        is_synthetic: whether no case is a patient.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str | None = None,
        labelled: bool = False,
        without: Sequence[str] = (),
        publishable: bool = False,
        fold: str | None = None,
        where: Sequence[str] = (),
    ):
        self.folder, self.split, self.labelled, self.without = Path(folder), split, labelled, tuple(without)
        self.publishable, self.fold, self.where = publishable, fold, tuple(where)
        if split is not None and split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: use {', '.join(SPLITS)}")
        try:
            self.record = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{folder} holds no finished data set (no {RECORD}): run radfm prepare, again if it was interrupted"
            ) from None
        if self.record["format"] != FORMAT:
            raise ValueError(
                f"{folder} has format {self.record['format']}, but this radfm reads {FORMAT}: prepare it again"
            )
        every_row = read_rows(self.folder, "cases")
        if fold is not None:
            _set_splits_of_fold(every_row, fold)
        if where:
            every_row = self._meeting(every_row)
        rows = (row for row in every_row if split is None or row["split"] == split)
        rows = (row for row in rows if row["labelled"] or not labelled)
        self.rows = [row for row in rows if row["publish"] is not False or not publishable]
        if labelled:
            self._remove_answers()
        if without:
            self._leave_out(without)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def parts(self) -> tuple["StoredCases", ...]:
        """The data sets that the cases come from, see `radfm.data_prep.joined_cases`."""
        return (self,)

    @property
    def fingerprint(self) -> str:
        """Of all that can be read here; `record` has that of the data set with the patients."""
        return self.record["fingerprint"]

    def __getitem__(self, index):
        """A case; for a slice, a list of cases."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self.rows[index]
        return Case(
            scans=[self.scan(i) for i in row["scan_rows"]],
            history=row["history"],
            disorders=row["disorders"],
            case_id=row["case_id"],
            patient_id=row["patient_id"],
        )

    def scan(self, row: int) -> Scan:
        """A scan by its row in the table of scans; its pixels (slices, H, W[, 3]) are a read-only view of the file."""
        return self._scans[row]

    def scan_header(self, row: int) -> dict:
        """All columns of a scan except its pixels, by its row in the table of scans; see `columns.SCANS`."""
        return self._scans.header(row)

    def masks(self, row: int) -> dict[str, np.ndarray]:
        """Disorder -> (slices, H, W) bool mask of a scan; empty where the source provides none."""
        return {disorder: unpack_mask(mask) for disorder, mask in self._packed_masks(row).items()}

    def located(self, index: int) -> np.ndarray:
        """(disorders,) bool: whether a mask of the case shows the disorder."""
        masked = {disorder for scan in self.rows[index]["scan_rows"] for disorder in self._packed_masks(scan)}
        return np.array([disorder.name in masked for disorder in self.vocabulary])

    def slices(self, index: int) -> int:
        """Number of slices of a case, without reading them."""
        return sum(self.scan_header(row)["shape"][0] for row in self.rows[index]["scan_rows"])

    def labels(self, index: int) -> np.ndarray:
        """(disorders,) float32: 1 for the disorders of the case, in the order of the vocabulary."""
        labels = np.zeros(len(self.vocabulary), np.float32)
        labels[self.rows[index]["labels"]] = 1
        return labels

    @property
    def is_synthetic(self) -> bool:
        return is_synthetic(self.record)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.load(self.folder)

    def _meeting(self, rows: list[dict]) -> list[dict]:
        groups = case_groups(rows, self.scan_header)
        kept = np.all([meets(groups, condition) for condition in self.where], axis=0)
        return [row for row, is_kept in zip(rows, kept, strict=True) if is_kept]

    def _remove_answers(self) -> None:
        for row in self.rows:
            if row["history"]:
                known = [self.vocabulary[label] for label in row["labels"]]
                names = [*row["disorders"], *(name for one in known for name in (one.name, *one.synonyms))]
                row["history"] = without_answer(row["history"], names) or None

    def _leave_out(self, names: Sequence[str]) -> None:
        everything = self.vocabulary
        removed = set()
        for name in names:
            disorder = everything.find(name)
            if disorder is None:
                raise ValueError(f"{self.folder} has no disorder {name!r} to leave out: see its disorders.json")
            removed.add(disorder.name)
        kept = [row for row, disorder in enumerate(everything) if disorder.name not in removed]
        self.vocabulary = Vocabulary(everything[row] for row in kept)
        new_row = {old: row for row, old in enumerate(kept)}
        self.rows = [row for row in self.rows if all(label in new_row for label in row["labels"])]
        for row in self.rows:
            row["labels"] = [new_row[label] for label in row["labels"]]

    @cached_property
    def _scans(self) -> StoredScans:
        return StoredScans(self.folder, self.record["scans_per_shard"])

    def _packed_masks(self, row: int) -> dict[str, dict]:
        header = self.scan_header(row)
        return self._masks.get((header["case_id"], header["number"]), {})

    @cached_property
    def _masks(self) -> dict[tuple[str, int], dict[str, dict]]:
        return read_masks(self.folder)

    def __getstate__(self) -> dict:
        names = ("folder", "split", "labelled", "without", "publishable", "fold", "where")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict) -> None:
        StoredCases.__init__(self, **state)


def is_synthetic(record: dict) -> bool:
    """Whether no case of a data set is a patient: a program rendered its pictures, or a generator made them.

    Args:
        record: content of dataset.json.
    """
    origins = record["source"], record.get("source_settings", {}).get("of")
    return "synthetic" in record or "phantoms" in origins


def patient_of(row: dict) -> str:
    """The patient of a row of the table of cases; a case without a stated patient is a patient of its own."""
    return row["patient_id"] or row["case_id"]


def _set_splits_of_fold(rows: list[dict], fold: str) -> None:
    """Makes the patients of the fold the validation split, and those of the other folds the training split."""
    number, count = parse_fold(fold)
    rows = [row for row in rows if row["split"] != "test"]
    labels: dict[str, list[str]] = {}
    for row in rows:
        labels.setdefault(patient_of(row), []).extend([*row["disorders"], f"collection {row['collection']}"])
    fold_of = assign_folds(labels, count)
    for row in rows:
        row["split"] = "validation" if fold_of[patient_of(row)] == number else "train"
