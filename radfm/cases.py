"""Scans and cases: the data that readers return and processors take."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Scan:
    """One acquisition: a stack of slices, or a single image.

    Attributes:
        pixels: (slices, H, W), or (slices, H, W, 3) where the file is in colour. Hounsfield units for CT.
        modality: a name of modalities.csv; None where neither the header nor the caller states it.
        plane: "axial", "coronal", "sagittal" or "oblique"; or the view of a radiograph ("PA", "AP", "lateral", "MLO",
            "CC"); None where unknown.
        spacing_mm: distance between slices, rows and columns; None where unknown. The first is 0.0 where the header
            states the pixel spacing but no distance between slices, as for a radiograph or an ultrasound clip.
        days: days between this scan and the newest scan of the case, 0.0 for the newest; None where unknown.
        body_part: as in the header, in lower case; None where unknown.
        key_slice: index of the slice that shows the finding; None where unknown.
        source: the file or folder that it was read from, relative to the path given to `read_case`.
        masks: disorder -> (slices, H, W) bool, the voxels that show it; None without annotation.
        affine: (4, 4) from (slice, row, column, 1) to patient coordinates in mm (left, posterior, superior, as in
            DICOM); None where unknown.
        warnings: what is uncertain about how the scan was read, one sentence each; empty where nothing is.
    """

    pixels: np.ndarray
    modality: str | None = None
    plane: str | None = None
    spacing_mm: tuple[float, float, float] | None = None
    days: float | None = None
    body_part: str | None = None
    key_slice: int | None = None
    source: str = ""
    masks: dict[str, np.ndarray] | None = None
    affine: np.ndarray | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass
class Case:
    """All scans of one patient that belong to one diagnostic question.

    Attributes:
        scans: in any order; their order does not change the model's output.
        history: the clinical history that was known before the scans were read; None where unknown.
        disorders: labels, names of the diagnoses; empty where there are none or they are unknown.
        case_id, patient_id: identifiers, None where unknown; `read_case` gives pseudonyms of patients only.
        skipped: (file, reason) of each file that was not read.
    """

    scans: list[Scan] = field(default_factory=list)
    history: str | None = None
    disorders: list[str] = field(default_factory=list)
    case_id: str | None = None
    patient_id: str | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)


def copy_among(scan: Scan, scans: Iterable[Scan]) -> Scan | None:
    """The first of the scans with the same pixels, modality, plane and days; None if there is none.

    Pixels of a single value, such as an empty slice, are no copy of others.
    """
    if not len(scan.pixels) or scan.pixels.min() == scan.pixels.max():
        return None
    middle = len(scan.pixels) // 2  # most scans of one shape differ there, and the rest need not be compared
    for other in scans:
        same = all(getattr(other, name) == getattr(scan, name) for name in ("modality", "plane", "days"))
        if not same or other.pixels.shape != scan.pixels.shape:
            continue
        if all(np.array_equal(other.pixels[part], scan.pixels[part]) for part in (middle, slice(None))):
            return other
    return None
