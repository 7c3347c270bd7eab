"""A fingerprint of a scan, a few bytes by which copies of one picture are found under different names.

Decisions:
- One slice represents the scan: the key slice where it is known, otherwise the middle one.
- The fingerprint has two parts. The perceptual hash of the library imagehash (64 bits) finds candidates fast; a
  thumbnail of 16 x 16 pixels confirms them, because the hash alone does not separate the heads of one scanner.
- A slice of nearly constant brightness has no fingerprint, because all such slices would match each other.
"""

from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image

from radfm.cases import Scan

_SIDE = 16
_WINDOW = (-1000.0, 1000.0)  # Hounsfield units: enough to separate the body from air


@dataclass(frozen=True, slots=True)
class ImageFingerprint:
    """hash: 16 hex digits; thumbnail: 512 hex digits, (16, 16) uint8."""

    hash: str
    thumbnail: str


def image_fingerprint(scan: Scan) -> ImageFingerprint | None:
    """The fingerprint of a stored scan, or None if its representative slice has nearly constant brightness."""
    picture = grey_slice(scan, representative_slice(scan))
    small = Image.fromarray(picture).resize((64, 64), Image.Resampling.BOX)
    thumbnail = np.asarray(small.resize((_SIDE, _SIDE), Image.Resampling.BOX))
    if float(thumbnail.std()) < 2.0:
        return None
    return ImageFingerprint(str(imagehash.phash(small)), thumbnail.tobytes().hex())


def representative_slice(scan: Scan) -> int:
    """Index of the slice that represents the scan: the key slice, or the middle one where none is known."""
    return len(scan.pixels) // 2 if scan.key_slice is None else min(scan.key_slice, len(scan.pixels) - 1)


def grey_slice(scan: Scan, index: int) -> np.ndarray:
    """One slice as (H, W) uint8, for any stored data type. Hounsfield units are clipped to -1000 to 1000."""
    pixels = scan.pixels[index]
    if pixels.ndim == 3:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    values = pixels.astype(np.float32)
    low, high = _WINDOW if scan.modality == "CT" and values.min() < -100 else (values.min(), values.max())
    return np.uint8(255 * np.clip((values - low) / max(high - low, 1e-6), 0, 1))
