"""What scans are made of an anatomy: `protocols.csv`, one row per acquisition."""

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
        slices: at most so many; evenly spaced from `low` to `high`, fractions of the cube.
        weight: how often it is made beside others.
        settings: what the renderer's docstring names.
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
        return float(self.settings.get(setting, default))


@cache
def protocols() -> dict[str, Protocol]:
    """All of them, by name."""
    with (files(__package__) / "protocols.csv").open(newline="", encoding="utf-8") as file:
        return {row["protocol"]: _protocol(row) for row in csv.DictReader(file)}


def _protocol(row: dict[str, str]) -> Protocol:
    settings = dict(part.split("=", 1) for part in row["settings"].split(";") if part)
    return Protocol(
        *(row[key] for key in ("protocol", "anatomy", "modality", "renderer", "plane")),
        int(row["slices"]),
        *(float(row[key]) for key in ("low", "high", "weight")),
        {key.strip(): value.strip() for key, value in settings.items()},
    )
