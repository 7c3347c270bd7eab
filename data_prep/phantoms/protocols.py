"""The acquisitions of each anatomy: `protocols.csv`, one row for each."""

import csv
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Protocol:
    """An acquisition.

    Attributes:
        name, anatomy, modality, plane: plane as in `radfm.cases.Scan`.
        renderer: "ct", "mri", "projection", "ultrasound" or "emission".
        slices: largest number of slices, evenly spaced from `low` to `high`, fractions of the volume.
        weight: relative frequency.
        settings: settings that the docstring of the renderer describes.
    """

    name: str
    anatomy: str
    modality: str
    renderer: str
    plane: str
    slices: int
    low: float
    high: float
    weight: float
    settings: dict[str, str] = field(default_factory=dict)

    def number(self, setting: str, default: float) -> float:
        """A setting as a number."""
        return float(self.settings.get(setting, default))


@cache
def protocols() -> dict[str, Protocol]:
    """All protocols by name."""
    with (files(__package__) / "protocols.csv").open(encoding="utf-8") as file:
        return {row["protocol"]: _protocol(row) for row in csv.DictReader(file)}


def _protocol(row: dict[str, str]) -> Protocol:
    settings = dict(part.split("=", 1) for part in row["settings"].split(";") if part)
    return Protocol(
        name=row["protocol"],
        anatomy=row["anatomy"],
        modality=row["modality"],
        renderer=row["renderer"],
        plane=row["plane"],
        slices=int(row["slices"]),
        low=float(row["low"]),
        high=float(row["high"]),
        weight=float(row["weight"]),
        settings={key.strip(): value.strip() for key, value in settings.items()},
    )
