"""A prepared data set as cases.

    >>> from radfm.data_prep import load
    >>> cases = load("datasets/mine", split="train")
    >>> len(cases), cases[0].disorders, cases[0].scans[0].pixels.shape

Decisions:
- Nothing is read before it is asked for: a scan's pixels are a read-only view of the mapped file, and the operating
  system brings in the pages that are touched. So a slice costs the same wherever it lies, and memory stays free.
- Labelled cases are what models learn from and are measured on: their histories do not name their own disorders.
- A data set that goes to another process goes as the name of its folder, and is opened there again.
"""

import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from radfm.cases import Case, Scan
from radfm.data_prep.answers import without_answer
from radfm.data_prep.plan import SPLITS
from radfm.data_prep.tables import FORMAT, RECORD, StoredScans, read_batches, shard_file
from radfm.knowledge.disorders import Vocabulary


def load(
    folder: str | Path, split: str | None = None, labelled: bool = False, without: Sequence[str] = ()
) -> "StoredCases":
    """The cases of a prepared data set.

    Args:
        split: of this split; None: of all.
        labelled: leave out the cases that nobody labelled, and of each history the words that name its disorders.
        without: names of disorders that are left out of the vocabulary, and with them every case that has one.

    Raises:
        FileNotFoundError: the folder holds no data set, or one that is not finished.
        ValueError: for a split or a disorder that is none, or another version of the format.
    """
    return StoredCases(folder, split, labelled, without)


class StoredCases(Sequence[Case]):
    """Cases in order; `dataset[i]` is a `radfm.Case`.

    Attributes:
        folder, split, labelled, without: as given.
        record: the content of dataset.json.
        rows: the table of cases, (cases,) dicts without pixels.
    """

    def __init__(
        self, folder: str | Path, split: str | None = None, labelled: bool = False, without: Sequence[str] = ()
    ):
        self.folder, self.split, self.labelled, self.without = Path(folder), split, labelled, tuple(without)
        if split is not None and split not in SPLITS:
            raise ValueError(f"no such split: {split!r}; there are {', '.join(SPLITS)}")
        try:
            self.record = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{folder} holds no finished data set ({RECORD}): run radfm prepare, again if it was interrupted"
            ) from None
        if self.record["format"] != FORMAT:
            raise ValueError(
                f"{folder} has format {self.record['format']}, and this radfm reads {FORMAT}: prepare again"
            )
        table = pa.Table.from_batches(read_batches(shard_file(self.folder, "cases", 0)))
        rows = (row for row in table.to_pylist() if split is None or row["split"] == split)
        self.rows = [row for row in rows if row["labelled"] or not labelled]
        if labelled:
            self._hide_answers()
        if without:
            self._leave_out(without)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        """A case, or for a slice a list of them."""
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
        """By its row in the table of scans; pixels (slices, H, W[, 3]) are a read-only view of the file."""
        return scan_of(self._scans[row])

    def scan_header(self, row: int) -> dict:
        """All that the table of scans says of a scan, without its pixels."""
        return header_of(self._scans[row])

    def masks(self, row: int) -> dict[str, np.ndarray]:
        """Disorder -> (slices, H, W) bool, where the source knows what is to be seen; else empty."""
        header = self.scan_header(row)
        masks = self._truth.get((header["case_id"], header["number"]), ())
        return {truth["disorder"]: mask_of(truth) for truth in masks}

    def located(self, index: int) -> np.ndarray:
        """(disorders,) bool: those of the case of which a mask says where they are to be seen."""
        row = self.rows[index]
        scans = [self.scan_header(scan) for scan in row["scan_rows"]]
        shown = {t["disorder"] for scan in scans for t in self._truth.get((scan["case_id"], scan["number"]), ())}
        return np.array([disorder.name in shown for disorder in self.vocabulary])

    def slices(self, index: int) -> int:
        """How many slices a case has, without reading them."""
        return sum(self.scan_header(row)["shape"][0] for row in self.rows[index]["scan_rows"])

    def labels(self, index: int) -> np.ndarray:
        """(disorders,) float32: 1 for those of the case, in the order of the vocabulary."""
        labels = np.zeros(len(self.vocabulary), np.float32)
        labels[self.rows[index]["labels"]] = 1
        return labels

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.load(self.folder)

    def _hide_answers(self) -> None:
        for row in self.rows:
            if row["history"]:
                known = [self.vocabulary[label] for label in row["labels"]]
                names = [*row["disorders"], *(name for one in known for name in (one.name, *one.synonyms))]
                row["history"] = without_answer(row["history"], names) or None

    def _leave_out(self, names: Sequence[str]) -> None:
        everything = self.vocabulary
        unknown = [name for name in names if everything.find(name) is None]
        if unknown:
            raise ValueError(f"{self.folder} has no disorder {unknown[0]!r}, which is to be left out")
        gone = {everything.find(name).name for name in names}
        kept = [row for row, disorder in enumerate(everything) if disorder.name not in gone]
        self.vocabulary = Vocabulary(everything[row] for row in kept)
        new = {old: row for row, old in enumerate(kept)}
        self.rows = [row for row in self.rows if all(label in new for label in row["labels"])]
        for row in self.rows:
            row["labels"] = [new[label] for label in row["labels"]]

    @cached_property
    def _scans(self) -> StoredScans:
        return StoredScans(self.folder, self.record["scans_per_shard"])

    @cached_property
    def _truth(self) -> dict[tuple[str, int], list[dict]]:
        truth: dict = {}
        for file in sorted((self.folder / "truth").glob("data-*.arrow")):
            for batch in read_batches(file):
                for row in batch.to_pylist():
                    truth.setdefault((row["case_id"], row["number"]), []).append(row)
        return truth

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "split": self.split, "labelled": self.labelled, "without": self.without}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)


def patient_of(row: dict) -> str:
    """Whose case a row of the table of cases is; where nobody said, a patient of its own."""
    return row["patient_id"] or row["case_id"]


def scan_of(batch: pa.RecordBatch) -> Scan:
    """A row of the table of scans; its pixels are a read-only view of the file that the batch is mapped from."""
    header = header_of(batch)
    shape = header["shape"]
    # The column's own buffer: a scalar taken of it would be a copy.
    pixels = np.frombuffer(batch["pixels"].buffers()[2], header["dtype"], count=math.prod(shape)).reshape(shape)
    spacing = header["spacing_mm"]
    return Scan(
        pixels,
        header["modality"],
        header["plane"],
        None if spacing is None else tuple(spacing),
        header["days"],
        header["body_part"],
        header["key_slice"],
        header["source"],
    )


def header_of(batch: pa.RecordBatch) -> dict:
    """All of a row of the table of scans but its pixels."""
    return {name: batch[name][0].as_py() for name in batch.schema.names if name != "pixels"}


def mask_of(truth: dict) -> np.ndarray:
    """(slices, H, W) bool, of a row of the table of truth."""
    bits = np.unpackbits(np.frombuffer(truth["mask"], np.uint8), count=int(np.prod(truth["shape"])))
    return bits.reshape(truth["shape"]).astype(bool)
