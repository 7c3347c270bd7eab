"""The disorders of phantoms: `disorders.csv`, one row for each, with its code, position, tissues and frequency.

Columns of the table:
    shows     protocols that show the disorder; every case with the disorder has at least one of them
    site      structures in which a lesion starts; {side} is right or left, the same throughout a row
    where     bounds within the site, in fractions of its extent: x right to left, y front to back, z feet to head;
              conditions are joined by a space, alternatives by |
    shape     a key of `lesions.SHAPES`; after a colon, the argument of the shape
    parts     tissue:from-to@structures, in shares of the lesion's radius, painted in order; without @, in the site
    changes   factors of parameters of the anatomy, name=low-high
    organ     what the mask shows where the anatomy is changed
    conflict  two disorders with the same word never occur in one patient

Decisions:
- Codes are those of the unspecified side.
- Frequencies, sizes and shapes are chosen by eye for a long tail and visible lesions. They have no published source.
"""

import csv
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from radfm.presentation import band_of


@dataclass(frozen=True)
class Part:
    """A shell of a lesion: its tissue, inner and outer limit in shares of the radius, and structures it may replace."""

    tissue: str
    inner: float
    outer: float
    within: str


@dataclass(frozen=True)
class Disorder:
    """A row of the table.

    Attributes:
        name, icd10cm, anatomy: icd10cm is a billable code.
        expected: expected number of cases among 2,000.
        band: "head", "body" or "tail", by `expected`.
        sexes, ages: sexes and ages at which it occurs.
        histories: short clinical texts that do not name it.
    """

    name: str
    icd10cm: str
    anatomy: str
    expected: float
    shows: tuple[str, ...]
    site: str
    where: str
    shape: str
    size_mm: tuple[float, float]
    thick_mm: tuple[float, float]
    count: tuple[float, float]
    aspect: float
    rough: float
    parts: tuple[Part, ...]
    changes: dict[str, tuple[float, float]]
    organ: str
    sexes: str
    ages: tuple[float, float]
    conflict: str
    histories: tuple[str, ...]

    @property
    def band(self) -> str:
        return band_of(self.expected)

    def scaled(self, size: float) -> "Disorder":
        """The disorder with other diameters, and with another change of the anatomy.

        Args:
            size: factor; 0 leaves the anatomy unchanged, and the diameters, which cannot be 0, as they are.
        """
        if size == 1:
            return self

        def times(span: tuple[float, float]) -> tuple[float, float]:
            return (span[0] * size, span[1] * size) if size else span

        changes = {name: (1 + (low - 1) * size, 1 + (high - 1) * size) for name, (low, high) in self.changes.items()}
        return replace(self, size_mm=times(self.size_mm), thick_mm=times(self.thick_mm), changes=changes)


@cache
def disorders() -> tuple[Disorder, ...]:
    """All disorders, in the order of the table."""
    with (files(__package__) / "disorders.csv").open(encoding="utf-8") as file:
        return tuple(_disorder(row) for row in csv.DictReader(file))


@cache
def disorder(name: str) -> Disorder:
    """A disorder by name. Raises: KeyError for an unknown name."""
    return {d.name: d for d in disorders()}[name]


def _disorder(row: dict[str, str]) -> Disorder:
    return Disorder(
        name=row["disorder"],
        icd10cm=row["icd10cm"],
        anatomy=row["anatomy"],
        expected=float(row["per_2000"]),
        shows=tuple(row["shows"].split("|")),
        site=row["site"],
        where=row["where"],
        shape=row["shape"],
        size_mm=_range(row["size_mm"]),
        thick_mm=_range(row["thick_mm"]),
        count=_range(row["count"]),
        aspect=float(row["aspect"] or 0),
        rough=float(row["rough"] or 0),
        parts=tuple(_part(text, row["site"]) for text in row["parts"].split(";") if text),
        changes={name: _range(span) for name, span in (c.split("=") for c in row["changes"].split(";") if c)},
        organ=row["organ"],
        sexes=row["sexes"],
        ages=_range(row["ages"]),
        conflict=row["conflict"],
        histories=tuple(text.strip() for text in row["history"].split(" / ")),
    )


def _part(text: str, site: str) -> Part:
    tissue, rest = text.split(":")
    span, _, within = rest.partition("@")
    return Part(tissue, *_range(span), within or site)


def _range(text: str) -> tuple[float, float]:
    """ "3-6" -> (3, 6), "2" -> (2, 2), nothing -> (1, 1)."""
    low, _, high = (text or "1").partition("-")
    return float(low), float(high or low)
