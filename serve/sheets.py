"""The slices of a scan as pictures for the viewer: JPEG sheets of sixteen slices, in each window that applies.

Decisions:
- All slices of a scan share one range of grey values, so that scrolling does not flicker: a window in Hounsfield units
  for CT, otherwise the range between two percentiles.
- Pixels are resampled to squares. A slice has at most 512 pixels on its longer side, a radiograph 1,024.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from PIL import Image

from radfm.cases import Scan
from radfm.data_prep.pictures import CT_WINDOWS, ct_window, to_uint8

PER_SHEET = 16
_COLUMNS = 4
_SIDE, _RADIOGRAPH_SIDE = 512, 1024  # pixels
_QUALITY = 82
_SAMPLE = 1_000_000  # pixels from which percentiles are computed
_WINDOWS = {"Soft tissue": CT_WINDOWS["soft tissue"], "Lung": CT_WINDOWS["lung"], "Bone": CT_WINDOWS["bone"]}
_BRAIN = {"Brain": CT_WINDOWS["brain"]}


@dataclass
class Sheets:
    """
    Attributes:
        width, height: Of a slice, pixels.
        columns: Slices in a row of a sheet.
        windows: Name -> (low, high) in Hounsfield units; one without a name for a scan that has no windows.
        pictures: Name of a window -> sheets in order, JPEG.
    """

    width: int
    height: int
    columns: int
    windows: dict[str, tuple[float, float]]
    pictures: dict[str, list[bytes]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(len(sheet) for sheets in self.pictures.values() for sheet in sheets)


def render(scan: Scan) -> Sheets:
    """The sheets of a scan, in every window."""
    count, (rows, columns) = len(scan.pixels), scan.pixels.shape[1:3]
    row_mm, column_mm = scan.spacing_mm[1:] if scan.spacing_mm is not None else (1.0, 1.0)
    finest = min(row_mm, column_mm) or 1.0
    height, width = rows * (row_mm or 1.0) / finest, columns * (column_mm or 1.0) / finest
    scale = min(1.0, (_SIDE if count > 1 else _RADIOGRAPH_SIDE) / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    windows = _windows(scan)
    sheets = Sheets(*size, min(_COLUMNS, count), windows)
    for name, limits in windows.items():
        starts = range(0, count, PER_SHEET)
        sheets.pictures[name] = [_sheet(scan.pixels[start : start + PER_SHEET], limits, sheets) for start in starts]
    return sheets


def _windows(scan: Scan) -> dict[str, tuple[float, float]]:
    default = ct_window(scan)
    if default is None:
        return {"": _range(scan.pixels)}
    windows = _WINDOWS if default != _BRAIN["Brain"] else _BRAIN | {"Bone": _WINDOWS["Bone"]}
    lung_first = default[0] <= -1000
    return dict(sorted(windows.items(), key=lambda pair: pair[0] != "Lung")) if lung_first else windows


def _range(pixels: np.ndarray) -> tuple[float, float]:
    if pixels.dtype == np.uint8:
        return 0.0, 255.0
    step = max(1, int((pixels.size / _SAMPLE) ** 0.5))
    low, high = np.percentile(pixels[:, ::step, ::step] if pixels[0].size > step**2 else pixels, (0.5, 99.5))
    return float(low), float(high)


def _sheet(pixels: np.ndarray, limits: tuple[float, float], sheets: Sheets) -> bytes:
    width, height = sheets.width, sheets.height
    rows = -(-len(pixels) // sheets.columns)
    mode = "RGB" if pixels.ndim == 4 else "L"
    sheet = Image.new(mode, (min(len(pixels), sheets.columns) * width, rows * height))
    for position, image in enumerate(_images(pixels, limits)):
        fitted = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
        row, column = divmod(position, sheets.columns)
        sheet.paste(fitted, (column * width, row * height))
    file = BytesIO()
    sheet.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _images(pixels: np.ndarray, limits: tuple[float, float]) -> Iterator[Image.Image]:
    low, high = limits
    for image in pixels:
        if image.dtype != np.uint8:
            image = to_uint8(image, low, high)
        yield Image.fromarray(np.ascontiguousarray(image))
