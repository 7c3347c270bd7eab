"""The kinds of images that radfm reads, and the names under which they come: one table, modalities.csv.

A new modality is one row of the table. Its columns:

| column | meaning |
|---|---|
| name | the value of `Scan.modality` |
| dicom_codes | values of the DICOM element Modality (PS3.3 C.7.3.1.1.1), with retired ones |
| synonyms | further names that people write in tables and on the command line; separated by semicolons |
| file_name_words | words by which the name of a file or folder shows the modality |
| projection | whether the pixels are a projection of X-rays, so that a DICOM header's window makes the picture |
| named_views | whether pictures have a view (PA, lateral, MLO) in place of a plane (axial, coronal, sagittal) |
| quantity | what the pixel values measure; empty where they have no unit |
| stackable | whether single pictures of a series that have no position are the slices of a volume |
| broader | the modality that a model without this one uses; "other" where empty |
| default | whether it is one of the modalities of a model that names none itself, in this order |

Decisions:
- The words for file names are chosen so that they hardly occur with another meaning. "oct" is not among them, because
  it is also a month.
- Reading the table needs the standard library only.
"""

import csv
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Modality:
    """One row of modalities.csv; the attributes are its columns."""

    name: str
    dicom_codes: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    file_name_words: tuple[str, ...] = ()
    projection: bool = False
    named_views: bool = False
    quantity: str | None = None
    stackable: bool = False
    broader: str | None = None
    default: bool = False


def read_modalities(text: str) -> dict[str, Modality]:
    """The text of modalities.csv -> {name: its row}, in the order of the file."""
    return {row["name"]: _modality(row) for row in csv.DictReader(text.splitlines())}


def _modality(row: dict[str, str]) -> Modality:
    return Modality(
        name=row["name"],
        dicom_codes=tuple(row["dicom_codes"].split()),
        synonyms=tuple(name.strip() for name in row["synonyms"].split(";") if name.strip()),
        file_name_words=tuple(row["file_name_words"].split()),
        projection=row["projection"] == "yes",
        named_views=row["named_views"] == "yes",
        quantity=row["quantity"] or None,
        stackable=row["stackable"] == "yes",
        broader=row["broader"] or None,
        default=row["default"] == "yes",
    )


MODALITIES = read_modalities((files("radfm") / "modalities.csv").read_text(encoding="utf-8"))
DEFAULT_MODALITIES = tuple(modality.name for modality in MODALITIES.values() if modality.default)
UNKNOWN_MODALITY = 'the modality is unknown, so models take the scan for "other": state it, as in modality="CT"'
BROADER = {modality.name: modality.broader for modality in MODALITIES.values() if modality.broader}


def modality_name(text: str) -> str:
    """The name in `MODALITIES` that a text means: "MR", "PET", "x ray", "DSA", a DICOM code, ...

    Case, spaces, hyphens and underscores do not matter. Raises: ValueError for a text that names no modality.
    """
    try:
        return _NAMES[_normalised(text)]
    except KeyError:
        raise ValueError(f"unknown modality {text!r}: use one of {', '.join(MODALITIES)}") from None


@cache
def dicom_modality(code: str) -> Modality | None:
    """The modality of a DICOM Modality code; None for OT (other), SC (screen capture) and unknown codes."""
    name = _NAMES.get(_normalised(code))
    return None if name is None else MODALITIES[name]


def _normalised(text: str) -> str:
    return re.sub(r"[\s_-]+", "", text.casefold())


_NAMES = {
    _normalised(text): modality.name
    for modality in MODALITIES.values()
    for text in (modality.name, *modality.dicom_codes, *modality.synonyms)
}
