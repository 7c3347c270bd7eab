"""Detects text in pixels, such as names, dates and numbers, which de-identifying the header does not remove.

Decisions:
- It warns and never changes a picture. A person must check what it lists (`text_in_pixels`, and the report).
- A header counts that states BurnedInAnnotation = YES, a secondary capture, or the screen of an ultrasound machine.
- The borders of the picture, where machines and viewers write, are searched for rows of thin, bright strokes of the
  height of letters on a flat background. Film labels and calipers are found as well, anatomy rarely.
"""

from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.uid import UID

from radfm.cases import Scan
from radfm.data_prep.pictures import grey_slice, representative_slice
from radfm.readers.errors import quiet_libraries

_TAGS = ["BurnedInAnnotation", "SOPClassUID", "Modality", "RecognizableVisualFeatures"]
_CAPTURES = "1.2.840.10008.5.1.4.1.1.7"
_BAND = 0.15  # share of the height and width that is searched for text
_STROKE = 45  # grey levels by which a stroke differs from the background on both sides
_LETTERS = 5  # strokes in a row that make a word
_FAINT = 3  # grey levels by which a stroke of a footer differs
_LINE, _STROKES, _QUIET = 56, 11, 1  # pixels, at least so many strokes in them, at most so many beside the line
_LEAST_ROWS = 24  # in which a footer is searched, or half of the band
_LINE_HEIGHT, _GAP = 8, 3  # rows in which the line must end, rows from its first to where it may


def header_says_text(path: Path) -> str | None:
    """Why the header of a DICOM file suggests text in the pixels; None where it does not, or for other files."""
    try:
        with open(path, "rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
        with quiet_libraries():
            header = dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
            annotation, kind = (
                str(header.get("BurnedInAnnotation", "")).upper(),
                UID(str(header.get("SOPClassUID", ""))),
            )
            modality = str(header.get("Modality", "")).upper()
    except Exception:  # a damaged header is reported when the file is read
        return None
    if annotation == "YES":
        return "header says so"
    if annotation != "NO" and kind.startswith(_CAPTURES):
        return "screen capture"
    if annotation != "NO" and modality in ("US", "ES", "XC"):
        return "machine that writes on its screen"
    return None


def text_in_borders(scan: Scan) -> bool:
    """Whether the representative slice seems to have text near its borders."""
    picture = grey_slice(scan, representative_slice(scan))
    if min(picture.shape) < 64:
        return False
    height, width = (round(side * _BAND) for side in picture.shape)
    bands = (picture[:height], picture[-height:], picture[:, :width], picture[:, -width:])
    outermost = max(_LEAST_ROWS, height // 2)
    return any(map(_has_writing, bands)) or any(
        map(_has_footer, (bands[0][outermost - 1 :: -1], bands[1][-outermost:]))
    )


def _has_writing(band: np.ndarray) -> bool:
    """Whether a band, (H, W) uint8, holds a row of letters."""
    # A stroke is brighter than the pixels two to its left and two to its right.
    middle, beside = band[:, 2:-2], np.maximum(band[:, :-4], band[:, 4:])
    stroke = middle - np.minimum(middle, beside) > _STROKE
    if not stroke.any():
        return False
    for top in range(0, max(1, len(stroke) - 5), 3):
        row = stroke[top : top + 8]  # letters have about this height, or more
        columns = row.sum(0) >= 2
        starts = np.flatnonzero(columns & ~np.roll(columns, 1))
        gaps = np.diff(starts)
        near = np.flatnonzero(gaps > 14)
        runs = np.split(starts, near + 1)
        for run in runs:
            if len(run) >= _LETTERS * 2 and _flat_around(band, top, run):
                return True
    return False


def _has_footer(band: np.ndarray) -> bool:
    """Whether a band, (H, W) uint8 with the border of the picture in its last row, holds a line of small letters."""
    outer_left, left, middle, right, outer_right = (band[:, i : band.shape[1] - 4 + i] for i in range(5))
    ground = np.maximum(np.minimum(outer_left, left), np.minimum(right, outer_right))
    stroke = (middle >= np.maximum(left, right)) & (middle - ground > _FAINT)
    stroke[:, 1:] &= ~stroke[:, :-1]  # a wide stroke counts once
    if (stroke.sum(1) < _STROKES).all():
        return False
    before = np.pad(stroke, ((0, 0), (1, 0))).cumsum(1)
    strokes = before[:, _LINE:] - before[:, :-_LINE]  # within the length of a line
    line, quiet = strokes >= _STROKES, strokes <= _QUIET
    for row in np.flatnonzero((line[:-1] & line[1:]).any(1)):
        begins = quiet[max(0, row - _LINE_HEIGHT - 1) : max(0, row - 1)].any(0)
        below = row + _GAP + _LINE_HEIGHT
        ends = quiet[row + _GAP : below].any(0) if below < len(band) else True  # or the border cuts the line off
        if (line[row] & line[row + 1] & begins & ends).any():
            return True
    return False


def _flat_around(band: np.ndarray, top: int, run: np.ndarray) -> bool:
    """Whether most pixels between the strokes have one value, as the background of text has, unlike anatomy."""
    part = band[max(0, top - 1) : top + 9, max(0, run[0] - 2) : run[-1] + 6]
    values, counts = np.unique(part // 8, return_counts=True)
    return len(values) > 1 and counts.max() / counts.sum() > 0.4
