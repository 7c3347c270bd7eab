"""How a scan looks, in a few bytes, so that the same picture can be found again under another name.

Decisions:
- Of each scan one slice speaks: the key slice, or else the middle one.
- Two marks: the perceptual hash of the library imagehash (64 bits), which finds candidates fast, and a thumbnail of
  16 x 16, which tells whether they are the same picture. The hash alone calls all heads of one scanner alike.
- Flat slices have no marks: every one of them would be alike.
"""

from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image

from radfm.cases import Scan

_SIDE = 16
_WINDOW = (-1000.0, 1000.0)  # Hounsfield units: a look needs no more than body against air


@dataclass(frozen=True, slots=True)
class Looks:
    """hash: 16 hex digits; thumbnail: 512 hex digits, (16, 16) uint8."""

    hash: str
    thumbnail: str


def looks_of(scan: Scan) -> Looks | None:
    """Of a stored scan; None where the slice is flat."""
    picture = grey_slice(scan, shown_slice(scan))
    small = Image.fromarray(picture).resize((64, 64), Image.Resampling.BOX)
    thumbnail = np.asarray(small.resize((_SIDE, _SIDE), Image.Resampling.BOX))
    if float(thumbnail.std()) < 2.0:
        return None
    return Looks(str(imagehash.phash(small)), thumbnail.tobytes().hex())


def shown_slice(scan: Scan) -> int:
    """The slice that stands for the scan."""
    return len(scan.pixels) // 2 if scan.key_slice is None else min(scan.key_slice, len(scan.pixels) - 1)


def grey_slice(scan: Scan, index: int) -> np.ndarray:
    """(H, W) uint8, whatever the scan is stored as."""
    pixels = scan.pixels[index]
    if pixels.ndim == 3:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    values = pixels.astype(np.float32)
    low, high = _WINDOW if scan.modality == "CT" and values.min() < -100 else (values.min(), values.max())
    return np.uint8(255 * np.clip((values - low) / max(high - low, 1e-6), 0, 1))
