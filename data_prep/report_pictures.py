"""Small pictures of stored scans for the report of a data set.

Decisions:
- They are made from the stored pixels, so the report shows what a model receives.
- CT is shown in the window of its body part, other modalities from their lowest to their highest value.
- Where the source provides masks, they are outlined.
- Pictures are JPEG in data URIs, so that the report is one file. The same scan gives the same bytes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation

from radfm.cases import Scan
from radfm.data_prep.pictures import Window, ct_window, data_uri, representative_slice, slice_image
from radfm.data_prep.tables import StoredScans

SIDE, LARGE = 192, 288  # pixels of a picture's longer side
_STRIP_SIDE = 64
_STRIP = 5  # slices of a strip
_MARK = (196, 98, 16)


@dataclass(frozen=True)
class Picture:
    """One scan as the report shows it.

    Attributes:
        uri: data URI of the picture.
        strip: data URI of evenly spaced slices with the pictured one marked; None for a scan of one slice.
        caption: modality, plane and body part, as far as known.
        position: index of the slice within the scan, in words.
        key: whether the slice is the key slice of a scan of several slices.
        window: Hounsfield units, None for a scan without them.
        outlined: names of the disorders that are outlined.
    """

    uri: str
    strip: str | None
    caption: str
    position: str
    key: bool
    window: Window | None
    outlined: list[str]


class Pictures:
    """Pictures of the scans of a data set, by their row in the table of scans. The data set need not be finished."""

    def __init__(self, folder: Path):
        self._scans = StoredScans(folder)

    def picture(self, row: int, side: int = SIDE, *, plain: bool = False, outlined: bool = True) -> Picture:
        """The picture of the representative slice; a plain picture has neither a strip nor outlines."""
        scan = self._scans[row]
        index = representative_slice(scan)
        window = ct_window(scan)
        masks = self._masks(row, index) if outlined and not plain else {}
        image = fit(slice_image(scan, index, window), side, enlarge=bool(masks))
        for mask in masks.values():
            image = outline(image, mask)
        count = len(scan.pixels)
        key = scan.key_slice is not None
        position = f"key slice {index + 1} of {count}" if key else f"slice {index + 1} of {count}, the middle one"
        return Picture(
            data_uri(image),
            data_uri(_strip(scan, index, window)) if count > 1 and not plain else None,
            ", ".join(word for word in (scan.modality or "modality unknown", scan.plane, scan.body_part) if word),
            position if count > 1 else "one slice",
            key and count > 1,
            window,
            list(masks),
        )

    def _masks(self, row: int, index: int) -> dict[str, np.ndarray]:
        """Disorder -> (H, W) bool, for the disorders that the slice shows."""
        masks = {disorder: mask[index] for disorder, mask in self._scans.masks(row).items()}
        return {disorder: mask for disorder, mask in masks.items() if mask.any()}


def fit(image: Image.Image, side: int, enlarge: bool = False) -> Image.Image:
    """The image with its longer side scaled down to `side` pixels; smaller images are scaled up on request only."""
    scale = side / max(image.size)
    if scale > 1 and not enlarge:
        return image
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def outline(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The image in colour with the edge of a mask, (h, w) bool, which is scaled to its size."""
    large = np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))
    edge = binary_dilation(large, iterations=2) & ~binary_dilation(large)
    pixels = np.array(image.convert("RGB"))
    pixels[edge] = _MARK
    return Image.fromarray(pixels)


def _strip(scan: Scan, marked: int, window: Window | None) -> Image.Image:
    """Evenly spaced slices side by side in their order, with a bar below the marked one."""
    count = len(scan.pixels)
    indices = sorted({round((i + 0.5) * count / _STRIP - 0.5) for i in range(_STRIP)})
    if marked not in indices:
        indices[min(range(len(indices)), key=lambda i: (abs(indices[i] - marked), i))] = marked
    strip = Image.new("RGB", (_STRIP * (_STRIP_SIDE + 2) - 2, _STRIP_SIDE + 5), "white")
    for column, index in enumerate(indices):
        image, left = fit(slice_image(scan, index, window), _STRIP_SIDE), column * (_STRIP_SIDE + 2)
        strip.paste("black", (left, 0, left + _STRIP_SIDE, _STRIP_SIDE))
        strip.paste(image, (left + (_STRIP_SIDE - image.width) // 2, (_STRIP_SIDE - image.height) // 2))
        if index == marked:
            strip.paste(_MARK, (left, _STRIP_SIDE + 1, left + _STRIP_SIDE, _STRIP_SIDE + 5))
    return strip
