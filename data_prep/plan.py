"""What a source says before any pixel is read: the cases, where their scans are, and what is known of them.

Decisions:
- A plan is small and is the same whenever the same files are listed, so any process on any machine can make it, and a
  killed run can go on from it.
- What a source cannot use (a row with a mistake, a file without a label) it lists as `Rejected`, and goes on.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from radfm.cases import Case

SPLITS = ("train", "validation", "test")


_SPLIT_NAMES = {
    "train": "train training tr",
    "validation": "validation valid val dev development",
    "test": "test testing ts held-out",
}
_SPLIT_OF = {word: split for split, words in _SPLIT_NAMES.items() for word in words.split()}
_OLDEST = 90  # HIPAA's safe harbour: ages above 89 are one


def known_split(text: str) -> str:
    """ "val" -> "validation". Raises: ValueError for what is no split."""
    try:
        return _SPLIT_OF[text.strip().casefold()]
    except KeyError:
        raise ValueError(f"has the split {text!r}: use {', '.join(SPLITS)}, or leave it empty") from None


_NORMAL = "normal healthy negative none regular control controls nofinding notumor"
NORMAL = {*_NORMAL.split(), "no finding", "no findings", "no tumor"}  # names that say there is no disorder


def known_age(years: float | None) -> float | None:
    return None if years is None else float(min(years, _OLDEST))


def known_sex(text: str | None) -> str | None:
    """ "female" -> "F"; None for what says nothing."""
    first = (text or "").strip().casefold()[:1]
    return {"f": "F", "w": "F", "m": "M", "o": "other", "d": "other", "x": "other"}.get(first)


@dataclass(slots=True)
class Item:
    """Files that are read together, and what the source knows of their scans; None leaves it to the files' headers.

    Attributes:
        paths: absolute paths of files.
        names: how the files are called in the data set, one for each path.
        days: days before the newest scan of the case.
        key_slice: index of the slice that shows the finding.
    """

    paths: list[str]
    names: list[str]
    modality: str | None = None
    plane: str | None = None
    days: float | None = None
    body_part: str | None = None
    key_slice: int | None = None


@dataclass(slots=True)
class CasePlan:
    """One case to be.

    Attributes:
        case_id, patient_id: as the data set will show them.
        items: of what it is read; empty where the source makes its scans itself.
        disorders: names; empty for a normal case.
        icd10cm: codes that the source gives, one list for each disorder (an empty one: to be looked up).
        labelled: False where nobody said what the case shows.
        split: the official one, of `SPLITS`; None where there is none.
        age, sex: of the patient, years and "F", "M" or "other"; None where unknown. Above 89 the age is 90.
        about: what the source needs to read it (a row number, a seed).
    """

    case_id: str
    patient_id: str
    items: list[Item] = field(default_factory=list)
    disorders: list[str] = field(default_factory=list)
    icd10cm: list[list[str]] = field(default_factory=list)
    history: str | None = None
    split: str | None = None
    labelled: bool = True
    age: float | None = None
    sex: str | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> "CasePlan":
        values = json.loads(line)
        return cls(**values | {"items": [Item(**item) for item in values["items"]]})


@dataclass(frozen=True, slots=True)
class Rejected:
    """What did not become part of the data set: a "row", "folder", "case", "file" or "scan", its name, and why."""

    what: str
    name: str
    reason: str
    case_id: str = ""


@dataclass(slots=True)
class Found:
    """What came of one case plan.

    Attributes:
        case: with its scans; `skipped` lists files that were not read.
        files: how many files were looked at.
        unread: of them, those of which no scan came.
        notes: one for each scan.
        truth: for each scan, disorder -> (slices, H, W) bool mask; only where the source knows it.
    """

    case: Case
    files: int
    unread: int
    notes: list["Notes"]
    truth: list[dict] | None = None


@dataclass(slots=True)
class Notes:
    """What is known of a scan beyond the scan: who said its modality and plane ("header", "source", "guess",
    "unknown"), and what its header says about text in its pixels."""

    modality_from: str = "unknown"
    plane_from: str = "unknown"
    text_in_pixels: str | None = None


@dataclass(slots=True)
class Listing:
    """What a source listed before any pixel is read.

    Attributes:
        unit: what is counted: "row", "file", "picture".
        listed: how many of them there are; each is in a plan or in `rejected`.
        planned: how many are in a plan.
    """

    plans: list[CasePlan]
    rejected: list[Rejected]
    unit: str
    listed: int
    planned: int


class Source(Protocol):
    """Where cases come from.

    Attributes:
        name: "manifest" and the like.
        settings: what decides the outcome, kept in the data set: no paths of a machine, no secrets.
        notice: "title", "licence", "citation", "layout": for the card, where known.
    """

    name: str
    settings: dict[str, Any]
    notice: dict[str, str]

    def listing(self) -> Listing:
        """All cases, in an order that does not depend on the machine. Raises: ValueError, FileNotFoundError."""

    def read(self, plans: Sequence[CasePlan]) -> Iterator[Found]:
        """One `Found` for each plan, in order. What is wrong with a file is listed in its case, never raised."""
