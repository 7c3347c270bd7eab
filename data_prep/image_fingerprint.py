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
from radfm.data_prep.pictures import grey_slice, representative_slice

_SIDE = 16


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
