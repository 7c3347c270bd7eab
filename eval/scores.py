"""A table of scores: the scores that a model gave to each case, and all that is needed to measure them.

    >>> table = Scores.load("evaluation/mine.parquet")
    >>> table.scores.shape, table.labels.sum(), table.at_level("category").names[:3]

Decisions:
- A table is one Parquet file with a row for each case, and the rest as JSON in its metadata. Any program can read it,
  nothing is a pickle, and it can be measured without the data set and the model.
- It keeps all disorders of a case, also those that were not scored, because such a case does not have one diagnosis.
- Conditions on cases are written as in "collection=medpix" or "scans!=1", with the names and groups of `attributes`.
- At a level of ICD-10-CM, the score of a code is the highest score of its disorders, and its label is that of any of
  them; a disorder with several codes counts for each of them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from radfm.data_prep.case_groups import groups_of, meets
from radfm.data_prep.tables import replacing
from radfm.eval.metrics import same_groups
from radfm.knowledge import icd10cm

OF_DISORDERS = ("thresholds", "prediction_sets")  # keys of `about` that are not valid at another level
LEVELS = ("disorder", "chapter", "block", "category", "4", "5", "6")

_FORMAT = 1
_KEY = b"radfm scores"


@dataclass
class Scores:
    """
    Attributes:
        scores: (cases, disorders) float32, the higher the more likely.
        names, icd10cm: (disorders,) names, and lists of codes.
        case_ids, patients: (cases,).
        disorders: (cases,) the names of all disorders of each case.
        training: for each training case that has any disorder, the columns of its disorders.
        attributes: for subgroups: name -> (cases,) lists of groups.
        about: where the scores come from: "model", "checkpoint", "data", "split" and more, see `radfm.eval.predict`.
        logits: (cases, disorders) float32, the scores before they were calibrated; None where they were not.
    Raises:
        ValueError: shapes or names that do not match, scores that are nan.
    """

    scores: np.ndarray
    names: list[str]
    icd10cm: list[list[str]]
    case_ids: list[str]
    patients: list[str]
    disorders: list[list[str]]
    training: list[list[int]]
    attributes: dict[str, list[list[str]]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    logits: np.ndarray | None = None

    def __post_init__(self):
        cases, disorders = len(self.case_ids), len(self.names)
        if self.scores.shape != (cases, disorders):
            raise ValueError(f"scores are {self.scores.shape}, for {cases:,} cases and {disorders:,} disorders")
        if self.logits is not None and self.logits.shape != self.scores.shape:
            raise ValueError(f"logits are {self.logits.shape}, for scores of {self.scores.shape}")
        for what, values in {"patients": self.patients, "disorders": self.disorders, **self.attributes}.items():
            if len(values) != cases:
                raise ValueError(f"{what} of {len(values):,} cases, and scores of {cases:,}")
        if len(self.icd10cm) != disorders:
            raise ValueError(f"{len(self.icd10cm):,} lists of codes for {disorders:,} disorders")
        for what, values in {"disorder": self.names, "case": self.case_ids}.items():
            if len(set(values)) != len(values):
                twice = next(value for i, value in enumerate(values) if value in values[:i])
                raise ValueError(f"the {what} {twice!r} comes twice")
        if (bad := np.isnan(self.scores).any(1)).any():
            names = _listed([self.case_ids[i] for i in np.flatnonzero(bad)])
            raise ValueError(f"{bad.sum():,} cases have scores that are nan: {names}")

    @cached_property
    def labels(self) -> np.ndarray:
        """(cases, disorders) bool."""
        row_of = {name: row for row, name in enumerate(self.names)}
        labels = np.zeros(self.scores.shape, bool)
        for case, names in enumerate(self.disorders):
            labels[case, [row_of[name] for name in names if name in row_of]] = True
        return labels

    @cached_property
    def training_counts(self) -> np.ndarray:
        """(disorders,) int64: training cases of each."""
        return np.bincount([row for rows in self.training for row in rows], minlength=len(self.names))

    def within(self, attribute: str) -> np.ndarray:
        """(cases, disorders) bool: the case is in a group in which the disorder occurs. Raises: ValueError."""
        if not any(groups_of(self.attributes, attribute)):
            raise ValueError(f"the {attribute} of no case is known: leave out --within, or prepare the data set again")
        return same_groups(self.attributes[attribute], self.labels)

    def where(self, conditions: Sequence[str]) -> "Scores":
        """The table of the cases that meet all conditions, such as "collection=medpix" or "scans!=1".

        Raises:
            ValueError: a condition that is not written like this, an unknown attribute or group, or no such case.
        """
        if not conditions:
            return self
        met = [meets(self.attributes, condition) for condition in conditions]
        kept = np.flatnonzero(np.all(met, axis=0)).tolist()
        if not kept:
            raise ValueError(f"no case meets {' and '.join(conditions)}")
        return self.of_cases(kept)

    def of_cases(self, kept: Sequence[int]) -> "Scores":
        """The table of the cases with these indices, in their order."""

        def of_kept(values: list) -> list:
            return [values[case] for case in kept]

        return replace(
            self,
            scores=self.scores[kept],
            logits=None if self.logits is None else self.logits[kept],
            case_ids=of_kept(self.case_ids),
            patients=of_kept(self.patients),
            disorders=of_kept(self.disorders),
            attributes={name: of_kept(groups) for name, groups in self.attributes.items()},
        )

    def rows_of(self, names: Sequence[str]) -> np.ndarray:
        """(disorders,) bool: the named disorders, ignoring case. Raises: ValueError for names that were not scored."""
        row_of = {name.casefold(): row for row, name in enumerate(self.names)}
        if missing := [name for name in names if name.casefold() not in row_of]:
            raise ValueError(f"there are no scores of {_listed(missing)}")
        chosen = np.zeros(len(self.names), bool)
        chosen[[row_of[name.casefold()] for name in names]] = True
        return chosen

    def at_level(self, level: str) -> "Scores":
        """The same table by ICD-10-CM code; disorders without a code are left out.

        Args:
            level: "disorder" changes nothing; "chapter", "block" or "category" (3 characters); "4", "5", "6": codes of
                at most so many characters.
        Raises:
            ValueError: no such level, or no disorder has a code.
        """
        if level not in LEVELS:
            raise ValueError(f"there is no level {level!r}: there are {', '.join(LEVELS)}")
        if level == "disorder":
            return self
        rows_of: dict[str, list[int]] = {}
        codes_of = [sorted({above for code in codes if (above := _above(code, level))}) for codes in self.icd10cm]
        for row, codes in enumerate(codes_of):
            for code in codes:
                rows_of.setdefault(code, []).append(row)
        if not rows_of:
            raise ValueError("no disorder has an ICD-10-CM code")
        codes = sorted(rows_of)
        column = {code: i for i, code in enumerate(codes)}
        name_of = {code: f"{code} {icd10cm.get(code).description}" for code in codes}
        codes_by_name = dict(zip(self.names, codes_of, strict=True))
        disorders = [
            list(dict.fromkeys(name_of[c] for name in names for c in codes_by_name.get(name) or ()))
            + [name for name in names if not codes_by_name.get(name)]
            for names in self.disorders
        ]
        training = [sorted({column[code] for row in rows for code in codes_of[row]}) for rows in self.training]
        without = sum(not codes for codes in codes_of)

        def highest(values: np.ndarray) -> np.ndarray:
            return np.stack([values[:, rows_of[code]].max(1) for code in codes], 1)

        about = {key: value for key, value in self.about.items() if key not in OF_DISORDERS}
        return replace(
            self,
            scores=highest(self.scores),
            logits=None if self.logits is None else highest(self.logits),
            names=[name_of[code] for code in codes],
            icd10cm=[[code] for code in codes],
            disorders=disorders,
            training=[rows for rows in training if rows],
            about=about | {"level": level, "disorders_without_code": without},
        )

    def save(self, path: str | Path) -> Path:
        """Writes the table as a Parquet file, and returns its path."""
        columns: dict[str, pa.Array] = {
            "case_id": pa.array(self.case_ids, pa.string()),
            "patient_id": pa.array(self.patients, pa.string()),
            "disorders": pa.array(self.disorders, pa.list_(pa.string())),
            "scores": _column(self.scores),
        }
        if self.logits is not None:
            columns["logits"] = _column(self.logits)
        for name, groups in self.attributes.items():
            columns[f"by {name}"] = pa.array(groups, pa.list_(pa.string()))
        rest = {"format": _FORMAT, "names": self.names, "icd10cm": self.icd10cm, "training": self.training}
        rest["about"] = self.about
        table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(rest, ensure_ascii=False).encode()})
        path = Path(path)
        with replacing(path) as draft:
            pq.write_table(table, draft, compression="zstd")
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """Reads a table that `save` wrote. Raises: FileNotFoundError, or ValueError for another file."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such table of scores")
        try:
            table = pq.read_table(path)
            rest = json.loads(table.schema.metadata[_KEY])
            if rest["format"] != _FORMAT:
                raise ValueError(f"it has format {rest['format']!r}")
            by = [name for name in table.column_names if name.startswith("by ")]
            shape = len(table), len(rest["names"])
            return cls(
                scores=_values(table["scores"], shape),
                logits=_values(table["logits"], shape) if "logits" in table.column_names else None,
                names=rest["names"],
                icd10cm=rest["icd10cm"],
                case_ids=table["case_id"].to_pylist(),
                patients=table["patient_id"].to_pylist(),
                disorders=table["disorders"].to_pylist(),
                training=rest["training"],
                attributes={name.removeprefix("by "): table[name].to_pylist() for name in by},
                about=rest["about"],
            )
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no table of scores that this radfm reads: {error}") from error


def calibrated_on_these_cases(about: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was calibrated on the cases that it scored, according to the `about` of its table."""
    return about.get("split") not in ("train", "test") and about.get("calibrated_on", "") == about.get("data")


def _column(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(values, np.float32).ravel()), values.shape[1]
    )


def _values(column: pa.ChunkedArray, shape: tuple[int, int]) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy().reshape(shape)


def _above(code: str, level: str) -> str | None:
    """The code itself or its ancestor at the level; None where there is none."""
    entry = icd10cm.get(code)
    if level in ("chapter", "block"):
        return next((above.code for above in (entry, *entry.ancestors) if above.kind == level), None)
    most = 3 if level == "category" else int(level)
    codes = (above.code for above in (entry, *entry.ancestors) if above.category is not None)
    return next((code for code in codes if len(code.replace(".", "")) <= most), None)


def _listed(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
