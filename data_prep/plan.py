"""Plans of cases: what a source states before any pixel is read, and the protocol of a source.

Decisions:
- A plan is small and the same whenever the same files are listed, so that every process on every machine can make it,
  and a run that was killed can continue from it.
- A source lists what it cannot use, such as a row with a mistake or a file without a label, as `Rejected`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from radfm.cases import Case

SPLITS = ("train", "validation", "test")


_SPLIT_NAMES = {
    "train": "train training tr",
    "validation": "validation valid val dev development",
    "test": "test testing ts held-out",
}
_SPLIT_OF = {word: split for split, words in _SPLIT_NAMES.items() for word in words.split()}
_OLDEST = 90  # HIPAA's safe harbour rule puts all ages above 89 into one group


def known_split(text: str) -> str:
    """The split of a name: "val" -> "validation". Raises: ValueError for other words."""
    try:
        return _SPLIT_OF[text.strip().casefold()]
    except KeyError:
        raise ValueError(f"has the split {text!r}: use {', '.join(SPLITS)}, or leave it empty") from None


_NORMAL = "normal healthy negative none regular control controls nofinding notumor"
NORMAL = {*_NORMAL.split(), "no finding", "no findings", "no tumor"}  # names of normal cases


def known_age(years: float | None) -> float | None:
    """An age in years, 90 for all above 89."""
    return None if years is None else float(min(years, _OLDEST))


def known_sex(text: str | None) -> str | None:
    """The sex that a word states: "female" -> "F"; None for other words."""
    first = (text or "").strip().casefold()[:1]
    return {"f": "F", "w": "F", "m": "M", "o": "other", "d": "other", "x": "other"}.get(first)


@dataclass(slots=True)
class Item:
    """Files that are read together, and what the source states about their scans; None leaves it to the headers.

    Attributes:
        paths: absolute paths of files.
        names: names of the files in the data set, one for each path.
        days: days before the newest scan of the case.
        key_slice: index of the slice that shows the finding.
        regions: disorder -> boxes (x, y, width, height) as parts of the picture, or of the key slice of a volume.
    """

    paths: list[str]
    names: list[str]
    modality: str | None = None
    plane: str | None = None
    days: float | None = None
    body_part: str | None = None
    key_slice: int | None = None
    regions: dict[str, list[list[float]]] | None = None


@dataclass(slots=True)
class CasePlan:
    """A case before it is read.

    Attributes:
        case_id, patient_id: identifiers in the data set.
        items: files to read; empty where the source makes the scans itself.
        disorders: names of disorders; empty for a normal case.
        icd10cm: codes that the source gives, one list for each disorder; an empty list is looked up by name.
        labelled: False where the source states nothing about the disorders.
        split: official split, one of `SPLITS`; None where there is none.
        age, sex: of the patient, in years and "F", "M" or "other"; None where unknown. Ages above 89 are 90.
        source_data: what the source needs to read the case, such as a row number.
        normal: False where a case without disorders may have some that the source does not name.
        collection, licence, attribution, url, publish, site, scanner, year: as in `columns.CASES`; None where not
            stated.
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
    source_data: dict[str, Any] = field(default_factory=dict)
    normal: bool | None = None
    collection: str | None = None
    licence: str | None = None
    attribution: str | None = None
    url: str | None = None
    publish: bool | None = None
    site: str | None = None
    scanner: str | None = None
    year: int | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)  # in ASCII, as paths may be no UTF-8

    @classmethod
    def from_json(cls, line: str) -> "CasePlan":
        values = json.loads(line)
        return cls(**values | {"items": [Item(**item) for item in values["items"]]})


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that did not become part of the data set, and the reason.

    Attributes:
        what: "row", "folder", "case", "file", "sample" (of a generator) or "scan".
    """

    what: str
    name: str
    reason: str
    case_id: str = ""


@dataclass(slots=True)
class ReadCase:
    """A case that was read according to its plan.

    Attributes:
        case: the case with its scans; `skipped` lists files that could not be read.
        files: number of files that were opened.
        unread: number of files without a usable scan.
        origins: one for each scan.
        masks: for each scan, disorder -> (slices, H, W) bool mask; None where the source provides none.
        sizes: rows of the table of sizes without the case; empty where the source knows none.
        unit: what `case.skipped` lists, see `Rejected.what`.
    """

    case: Case
    files: int
    unread: int
    origins: list["ScanOrigin"]
    masks: list[dict] | None = None
    sizes: list[dict] = field(default_factory=list)
    unit: str = "file"


@dataclass(slots=True)
class ScanOrigin:
    """Where the description of a scan comes from.

    Attributes:
        modality_from, plane_from: "header", "source", "guess" or "unknown".
        text_in_pixels: why the header suggests text in the pixels; None where it does not.
    """

    modality_from: str = "unknown"
    plane_from: str = "unknown"
    text_in_pixels: str | None = None


@dataclass(slots=True)
class Listing:
    """All cases of a source, before any pixel is read.

    Attributes:
        unit: what is counted: "row", "file" or "picture".
        listed: number of units; each is in a plan or in `rejected`.
        planned: number of units in plans.
    """

    plans: list[CasePlan]
    rejected: list[Rejected]
    unit: str
    listed: int
    planned: int


class Source(Protocol):
    """Where the cases of a data set come from.

    Attributes:
        name: name of the kind of source, such as "manifest".
        settings: what determines the result; stored with the data set, so without paths and secrets.
        notice: "title", "licence", "citation" and "layout" for the card, where known.
    """

    name: str
    settings: dict[str, Any]
    notice: dict[str, str]

    def listing(self) -> Listing:
        """All cases, in an order that does not depend on the machine.

        Raises:
            ValueError, FileNotFoundError: the source cannot be listed at all.
        """

    def read(self, plans: Sequence[CasePlan]) -> Iterator[ReadCase]:
        """One `ReadCase` for each plan, in order. A damaged file is listed in its case, never raised."""


@runtime_checkable
class MarkedSource(Source, Protocol):
    """A source with entries of its own in dataset.json."""

    def entries(self, listing: Listing, rejected: Sequence[dict]) -> dict[str, Any]:
        """The entries, JSON-able.

        Args:
            rejected: the lines of rejected.csv, with the fields of `Rejected`.
        """
