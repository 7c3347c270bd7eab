"""PNG, JPEG and the other image formats that Pillow reads; TIFF is read by `radfm.readers.tiff`.

Decisions:
- Each file is one scan, because nothing in it states that another file continues it. Save slices of one volume as one
  TIFF or array instead.
- The frames of an animation are slices. Frames of another size than the first are left out.
- Transparency is dropped, palettes are applied, and the EXIF orientation is applied.
- 16-bit grey stays 16-bit.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from radfm.cases import Scan
from radfm.readers.errors import TOO_MANY_PIXELS, Unreadable
from radfm.readers.limits import Clamped, check_size
from radfm.readers.pixels import tidy
from radfm.readers.tiff import read_tiff

_KEPT_MODES = ("L", "I", "F")  # and every I;16; all other modes are converted
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_picture(path: Path) -> tuple[list[Scan], list[tuple[str, str]]]:
    """Read an image file.

    Returns: a list of one scan (of a TIFF perhaps more), and ("", reason) where pages were left out. Raises: Unreadable
    for a size that is not plausible, and whatever a library raises on a damaged file.
    """
    with open(path, "rb") as file:
        if file.read(4) in _TIFF:
            return read_tiff(path)
    with Clamped(path) as file, _opened(file) as image:
        pages, bands = getattr(image, "n_frames", 1), len(image.getbands())
        check_size(pages * bands * image.width * image.height, path.stat().st_size, compressed=True)
        slices, pages_left_out = [], 0
        for page in ImageSequence.Iterator(image):
            if page.size == image.size and (not slices or page.size == slices[0].shape[1::-1]):
                slices.append(_values(page))
            else:
                pages_left_out += 1
    left_out = []
    if pages_left_out:
        other = f"{pages_left_out} of its {pages} pages have another size and were left out"
        left_out = [("", f"{other}: save those apart")]
    return [Scan(tidy(np.stack(_same_depth(slices))))], left_out


def _opened(file: Clamped) -> Image.Image:
    try:
        return Image.open(file)
    except Image.DecompressionBombError:
        raise Unreadable(TOO_MANY_PIXELS) from None


def _values(page: Image.Image) -> np.ndarray:
    """(H, W) or (H, W, 3)."""
    ImageOps.exif_transpose(page, in_place=True)
    if page.mode.startswith("I;16"):
        return np.asarray(page).astype(np.uint16)
    if page.mode in ("1", "LA", "La"):
        page = page.convert("L")
    if page.mode not in _KEPT_MODES:
        page = page.convert("RGB")
    return np.asarray(page)


def _same_depth(slices: list[np.ndarray]) -> list[np.ndarray]:
    """All slices in colour if one of them is."""
    if len({values.ndim for values in slices}) == 1:
        return slices
    return [values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=-1) for values in slices]
