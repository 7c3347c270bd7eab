"""Where the cases of a table of embeddings come from: a prepared data set, or files and folders.

Decisions:
- One case is in memory at a time. A source is picklable, and a part of it is small, so that each process gets its own.
- Names of files and folders may contain names of patients. So cases that are read from files have pseudonyms, and the
  reason why a case is left out names no file.
- Histories are left out: an embedding is one of the pictures, and no probe can read the answer in the text.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

from radfm.cases import Case
from radfm.data_prep.pseudonyms import Pseudonyms, generate_key
from radfm.data_prep.stored_cases import StoredCases, load, patient_of
from radfm.data_prep.tables import RECORD
from radfm.modalities import modality_name
from radfm.presentation import shown
from radfm.readers.natural_order import natural
from radfm.readers.read_case import read_case

ALL = "all"  # the split of all cases

_OF_CASES = ("case_id", "split", "collection", "labelled", "disorders", "icd10cm", "age", "sex")
_MOST_REASONS = 3


class CaseSource(Protocol):
    """A sequence of cases."""

    @property
    def about(self) -> dict[str, Any]:
        """What distinguishes these cases from others, JSON-able."""

    def __len__(self) -> int: ...

    def part(self, start: int, stop: int) -> "CaseSource":
        """The cases from one position to another."""

    def case_id(self, position: int) -> str: ...

    def read(self, position: int) -> tuple[dict[str, Any], Case]:
        """What is known of a case, see `embedding_tables`, and the case.

        Raises:
            ValueError: it cannot be read; the message names no file outside a data set.
        """


@dataclass(frozen=True)
class DataSetCases:
    """The cases of a data set that `radfm prepare` made, with or without labels.

    Args:
        folder: of the data set.
        split: "train", "validation", "test" or "all".
        positions: of the cases within the split; None: all.
    """

    folder: Path
    split: str = ALL
    positions: range | None = None

    @property
    def about(self) -> dict[str, Any]:
        return {"data": self._cases.record["fingerprint"], "dataset": self.folder.name, "split": self.split}

    def __len__(self) -> int:
        return len(self._positions)

    def part(self, start: int, stop: int) -> "DataSetCases":
        return replace(self, positions=self._positions[start:stop])

    def case_id(self, position: int) -> str:
        return self._cases.rows[self._positions[position]]["case_id"]

    def read(self, position: int) -> tuple[dict[str, Any], Case]:
        row = self._cases.rows[self._positions[position]]
        facts = {name: row[name] for name in _OF_CASES} | {"patient_id": patient_of(row)}
        try:
            return facts, replace(self._cases[self._positions[position]], history=None)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(str(error).replace(f"{self.folder}{os.sep}", "")) from error

    @property
    def _positions(self) -> range:
        return range(len(self._cases)) if self.positions is None else self.positions

    @property
    def _cases(self) -> StoredCases:
        return _stored_cases(self.folder, self.split, (self.folder / RECORD).stat().st_mtime_ns)


@dataclass(frozen=True)
class FileCases:
    """Files and folders, each of them a case; `FileCases.of` makes them.

    Args:
        paths: of the cases.
        names: of the cases, different from each other.
        key: with which names become pseudonyms.
        modality: of the scans whose header states none.
        key_is_kept: whether the key is also that of other tables, and not deleted with the run.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    key: bytes
    modality: str | None = None
    key_is_kept: bool = False

    @classmethod
    def of(
        cls,
        paths: Iterable[str | os.PathLike],
        key: bytes | None = None,
        archive: bool = False,
        modality: str | None = None,
    ) -> "FileCases":
        """
        Args:
            key: a secret of at least 16 bytes; None: a random one.
            archive: the paths are folders, and each file and folder directly within them is a case.
        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: there is no case, or the modality is unknown.
        """
        tops = list(dict.fromkeys(Path(os.path.abspath(path)) for path in paths))
        if missing := next((top for top in tops if not os.path.lexists(top)), None):
            raise FileNotFoundError(f"no such file or folder: {shown(str(missing))}")
        if archive and (file := next((top for top in tops if not top.is_dir()), None)):
            raise ValueError(f"{shown(str(file))} is no folder: an archive is a folder with a file or folder per case")
        cases = [entry for top in tops for entry in _entries(top)] if archive else tops
        if not cases:
            raise ValueError(f"{shown(', '.join(map(str, paths)))} holds no case: give the folder the cases are in")
        shared = os.path.commonpath([case.parent for case in cases])
        names = tuple(case.relative_to(shared).as_posix() for case in cases)
        modality = None if modality is None else modality_name(modality)
        return cls(tuple(cases), names, key or generate_key(), modality, key is not None)

    @property
    def about(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for name, path in zip(self.names, self.paths, strict=True):
            status = path.lstat()
            digest.update(json.dumps([name, status.st_size, status.st_mtime_ns]).encode())
        key = Pseudonyms(self.key).of("key", "") if self.key_is_kept else None
        return {"listing": digest.hexdigest(), "modality": self.modality, "key": key}

    def __len__(self) -> int:
        return len(self.paths)

    def part(self, start: int, stop: int) -> "FileCases":
        return replace(self, paths=self.paths[start:stop], names=self.names[start:stop])

    def case_id(self, position: int) -> str:
        return self.pseudonyms.of("case", self.names[position])

    def read(self, position: int) -> tuple[dict[str, Any], Case]:
        path = self.paths[position]
        try:
            case = read_case(path, modality=self.modality, patient_key=self.key)
        except OSError as error:
            raise ValueError(f"may not be opened: {error.strerror or 'it is gone'}") from error
        except ValueError as error:
            raise ValueError(str(error).replace(shown(str(path)), "it")) from error
        if not case.scans:
            raise ValueError(f"has no readable scan: {reasons(case.skipped)}")
        return {"case_id": self.case_id(position), "patient_id": case.patient_id}, case

    @cached_property
    def pseudonyms(self) -> Pseudonyms:
        return Pseudonyms(self.key)


def is_data_set(path: Path) -> bool:
    return (path / RECORD).is_file()


@lru_cache(maxsize=1)
def _stored_cases(folder: Path, split: str, written: int) -> StoredCases:
    """Args: written: when the data set was finished, so that another one in its folder is not taken for it."""
    return load(folder, None if split == ALL else split)


def _entries(folder: Path) -> list[Path]:
    names = sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=natural)
    return [folder / name for name in names]


def reasons(skipped: Sequence[tuple[str, str]]) -> str:
    """The different reasons, without those that name another file."""
    different = list(dict.fromkeys(reason for _, reason in skipped if not reason.endswith("read once")))
    more = "; ..." if len(different) > _MOST_REASONS else ""
    return "; ".join(f"a file {reason}" for reason in different[:_MOST_REASONS]) + more
