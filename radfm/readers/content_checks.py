"""Checks of what a scan holds: values, picture and geometry that a model would read as nonsense.

    >>> content_warnings(Scan(pixels, "CT"))
    ["CT values are 8-bit grey levels, not Hounsfield units: export the series as DICOM or NIfTI"]

Decisions:
- A check sees a few slices and a few thousand pixels of a scan, so that reading takes no longer.
- A check is silent where it is unsure. docs/reading.md has the rates of false alarms and of missed faults of each.
- Every sentence says what was found, and what to do about it.
- A single picture has neither orientation nor spacing, and needs none. They are missed in stacks of CT and MRI only.
- Four signs together show that a radiograph is inverted: bright corners, grey levels of which few are bright, and
  middle columns that are darker than those beside them, and than those at the edges. In a mammogram it is the flat part
  of the border, which is air, and bright where it is inverted.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from radfm.cases import Scan
from radfm.modalities import MODALITIES, UNKNOWN_MODALITY
from radfm.presentation import enumeration
from radfm.readers.drawn_marks import drawn_marks

_EXPORT = "export the series as DICOM or NIfTI"
_PHOTOGRAPHS = {"fundus photography", "dermoscopy", "microscopy", "endoscopy"}
_SOFT_TISSUE = 150  # Hounsfield units around 0 that hold fat, water and soft tissue
_OFFSETS = (1024, 8192, 32768)  # which formats add to Hounsfield units, to store them without sign
_MOST_LABELS = 8  # values of a segmentation
_FEWEST_VALUES = 1000  # of a CT, below which its values are too few to judge


@dataclass(frozen=True)
class Check:
    """
    Attributes:
        name: short, for tables.
        modalities: of the scans that it is for; None stands for an unknown one.
        warn: pixels and scan -> a sentence, or None where nothing is wrong.
    """

    name: str
    modalities: frozenset[str | None]
    warn: Callable[[np.ndarray, Scan], str | None]


def content_warnings(scan: Scan) -> list[str]:
    """One sentence for each check that finds something."""
    found = (check.warn(scan.pixels, scan) for check in CHECKS if scan.modality in check.modalities)
    return [sentence for sentence in found if sentence is not None]


def _wrong_units(pixels: np.ndarray, scan: Scan) -> str | None:
    if pixels.ndim == 4:
        return f"the CT is in colour, so its values are not Hounsfield units: {_EXPORT}"
    values = np.sort(_sample(pixels), axis=None)
    low, high = float(values[0]), float(values[-1])
    if low == high or len(values) < _FEWEST_VALUES:
        return None
    if pixels.dtype == np.uint8 or (low >= 0 and 1 < high <= 255 and _are_whole(values)):
        return f"CT values are 8-bit grey levels, not Hounsfield units: {_EXPORT}"
    if high - low <= 50:
        return f"CT values are scaled to {low:.3g} to {high:.3g}, and are not Hounsfield units: {_EXPORT}"
    values = _without_padding(values)
    low = float(values[0])
    if low >= 0:
        return _unsigned(values)
    if _share(values, -_SOFT_TISSUE, _SOFT_TISSUE) < 0.01:
        return f"hardly any CT value is near 0, where soft tissue is in Hounsfield units: {_EXPORT}"
    cut_below = low > -950 and _share(values, low, low) > 0.01
    cut_above = high < 1000 and _share(values, high, high) > 0.002
    if cut_below or cut_above:
        ends = [f"below {low:.0f}"] * cut_below + [f"above {high:.0f}"] * cut_above
        return f"CT values are cut off {enumeration(ends)}, as in a windowed copy: {_EXPORT}"
    return None


def _unsigned(values: np.ndarray) -> str:
    """What sorted values are of which none is below 0."""
    for offset in _OFFSETS:
        in_range = offset - 1100 <= values[0] and values[-1] <= offset + 32768
        if in_range and _share(values, offset - _SOFT_TISSUE, offset + _SOFT_TISSUE) > 0.05:
            return f"CT values are {offset:,} above Hounsfield units, stored values without the intercept: subtract it"
    if _share(values, values[0], values[0]) > 0.01 and _share(values, values[-1], values[-1]) > 0.001:
        return f"CT values are grey levels of a windowed copy, not Hounsfield units: {_EXPORT}"
    return f"no CT value is below 0, so they are not Hounsfield units: {_EXPORT}"


def _sample(pixels: np.ndarray) -> np.ndarray:
    """Some 50,000 pixels of three slices."""
    slices = pixels[np.unique([len(pixels) // 4, len(pixels) // 2, 3 * len(pixels) // 4])]
    step = max(1, round((slices[0].size / 2**14) ** 0.5))
    return slices[:, ::step, ::step]


def _are_whole(values: np.ndarray) -> bool:
    return values.dtype.kind in "iu" or bool((values == np.rint(values)).all())


def _without_padding(values: np.ndarray) -> np.ndarray:
    """Sorted values without the lowest one, where it lies apart: what scanners write outside their round field."""
    end = int(np.searchsorted(values, values[0], side="right"))
    apart = end < len(values) and values[0] < -1000 and float(values[end]) - float(values[0]) >= 200
    return values[end:] if apart else values


def _share(values: np.ndarray, low: float, high: float) -> float:
    """The share of sorted values in [low, high]."""
    first, end = np.searchsorted(values, low, side="left"), np.searchsorted(values, high, side="right")
    return float(end - first) / len(values)


def _inverted(pixels: np.ndarray, scan: Scan) -> str | None:
    if pixels.ndim == 4 or len(pixels) > 1 or min(pixels.shape[1:]) < 64:
        return None
    picture = _without_borders(_grey_levels(pixels[0]))
    measure, least = _INVERSION[scan.modality or ""]
    if measure(picture) > least:
        return "the picture seems to be inverted, with air bright and bone dark: invert its grey levels"
    return None


def _inversion(picture: np.ndarray) -> float:
    """How much a radiograph (H, W) uint8 looks inverted; its inverted copy has about the same value below zero."""
    cells = _cells(picture, 64)
    skewness = float((((cells - cells.mean()) / max(float(cells.std()), 1e-6)) ** 3).mean())
    ranks = _cells(_ranks(cells.astype(np.uint8)), 8)  # (8, 8) in [-1, 1]
    corners = float(ranks[[0, 0, -1, -1], [0, -1, 0, -1]].mean())
    rows = ranks[2:7]
    middle, beside, edges = (float(rows[:, columns].mean()) for columns in ([3, 4], [1, 2, 5, 6], [0, 7]))
    return corners + skewness + (beside - middle) + (edges - middle)


def _flat_border(picture: np.ndarray) -> float:
    """The mean rank in [-1, 1] of the flat pixels of the border, times their share of the border."""
    cells = _cells(picture, 64)
    border = np.ones(cells.shape, bool)
    border[5:-5, 5:-5] = False
    flat = np.hypot(*np.gradient(cells)) < 3
    return float(_ranks(cells.astype(np.uint8))[border & flat].sum() / border.sum())


_INVERSION: dict[str, tuple[Callable[[np.ndarray], float], float]] = {  # measure, and its value in an inverted picture
    "X-ray": (_inversion, 0.6),
    "mammography": (_flat_border, 0.05),
    "dental radiography": (_inversion, 1.2),  # twice that of X-ray, since none was at hand to measure it on
}


def _grey_levels(slice_: np.ndarray) -> np.ndarray:
    """(H, W) uint8 with about 256 pixels on the shorter side."""
    step = max(1, min(slice_.shape) // 256)
    part = slice_[::step, ::step]
    if part.dtype == np.uint8:
        return part
    low, high = np.percentile(part, (0.5, 99.5))
    return np.clip((part - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)


def _without_borders(picture: np.ndarray) -> np.ndarray:
    """The picture without the rows and columns at its sides that have one value."""
    trimmed = picture
    for _ in range(4):  # turned to each side
        low, high = np.percentile(trimmed, (5, 95), axis=1)
        trimmed = np.rot90(trimmed[int(np.argmax(high - low > 6)) :])
    return trimmed if min(trimmed.shape) >= 64 else picture


def _cells(picture: np.ndarray, count: int) -> np.ndarray:
    """(count, count) float32 means of the parts of a picture (H, W)."""
    rows, columns = (np.arange(count + 1) * side // count for side in picture.shape)
    sums = np.add.reduceat(np.add.reduceat(picture, rows[:-1], 0, np.float32), columns[:-1], 1)
    return sums / np.outer(np.diff(rows), np.diff(columns))


def _ranks(picture: np.ndarray) -> np.ndarray:
    """The share of darker pixels minus that of brighter ones, in [-1, 1], so that no window matters."""
    counts = np.bincount(picture.ravel(), minlength=256)
    up_to = counts.cumsum()
    return ((2 * up_to - counts) / up_to[-1] - 1).astype(np.float32)[picture]


def _drawn_marks(pixels: np.ndarray, scan: Scan) -> str | None:
    if pixels.dtype != np.uint8 and len(pixels) > 1:
        return None  # a volume of measured values
    marks = drawn_marks(pixels[len(pixels) // 2])
    if not marks:
        return None
    return f"the picture has {enumeration(marks)} drawn into it: export it without, or cut it to the image"


def _unknown_geometry(pixels: np.ndarray, scan: Scan) -> str | None:
    unknown = ["orientation"] * (scan.plane is None) + ["spacing"] * (scan.spacing_mm is None)
    if len(pixels) == 1 or not unknown:
        return None
    return f"the {enumeration(unknown)} of the {len(pixels)} slices {_IS[len(unknown)]} unknown: {_EXPORT}"


_IS = {1: "is", 2: "are"}


def _few_far_apart(pixels: np.ndarray, scan: Scan) -> str | None:
    slice_mm = scan.spacing_mm[0] if scan.spacing_mm else 0
    if not 2 <= len(pixels) <= 7 or slice_mm < 15:
        return None
    return f"{len(pixels)} slices lie {slice_mm:g} mm apart, as in a localiser: leave it out"


def _segmentation(pixels: np.ndarray, scan: Scan) -> str | None:
    if pixels.ndim == 4 or len(pixels) < 4 or pixels[0].size < 64 * 64:
        return None
    step = max(1, round((pixels[0].size / 2**12) ** 0.5))
    values = np.unique(pixels[:: max(1, len(pixels) // 16), ::step, ::step])
    if not 2 <= len(values) <= _MOST_LABELS or not _are_whole(values):
        return None
    return f"{len(values)} different values only, as in a segmentation: give the images instead"


def _unknown_modality(pixels: np.ndarray, scan: Scan) -> str | None:
    return UNKNOWN_MODALITY


_ALL: frozenset[str | None] = frozenset((None, *MODALITIES))
_VOLUMES: frozenset[str | None] = frozenset(("CT", "MRI"))
CHECKS = (
    Check("units", frozenset(("CT",)), _wrong_units),
    Check("inverted", frozenset(_INVERSION), _inverted),
    Check("drawn marks", _ALL - _PHOTOGRAPHS, _drawn_marks),
    Check("geometry", _VOLUMES, _unknown_geometry),
    Check("localiser", _VOLUMES, _few_far_apart),
    Check("segmentation", _ALL, _segmentation),
    Check("modality", frozenset((None,)), _unknown_modality),
)
