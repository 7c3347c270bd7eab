"""A case: all scans of one patient's question."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Scan:
    """One acquisition: slices in order.

    Attributes:
        pixels: (slices, H, W), or (slices, H, W, 3) where the file is in colour. Hounsfield units for CT.
        modality: a name of modalities.csv; None where neither the header nor the caller states it.
        plane: "axial", "coronal", "sagittal", "oblique", or a radiograph's view ("PA", "AP", "lateral", "MLO", "CC").
        spacing_mm: distance between slices, rows and columns; None where unknown. The first is 0.0 where a header
            tells rows and columns but no distance between slices, as for a radiograph or an ultrasound clip.
        days: days before the newest scan of the case, 0.0 for the newest; None where unknown.
        body_part: as the header names it, in lower case; None where unknown.
        key_slice: index of the slice that shows the finding; None where unknown.
        source: the file or folder it was read from, relative to what was given to `read_case`.
        masks: disorder -> (slices, H, W) bool, where it is to be seen; None where nobody says.
        affine: (4, 4) from (slice, row, column, 1) to the patient's left, back and head in mm, as in DICOM; None where
            unknown.
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


@dataclass
class Case:
    """All scans of one patient's question, with the history where known and the disorders as labels."""

    scans: list[Scan] = field(default_factory=list)
    history: str | None = None
    disorders: list[str] = field(default_factory=list)
    case_id: str | None = None
    patient_id: str | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (file, reason)
