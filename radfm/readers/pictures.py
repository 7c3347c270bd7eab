"""PNG, JPEG, TIFF and the other image formats that Pillow reads.

Decisions:
- Each file is one scan, because nothing in it states that another file continues it. Save slices of one volume as one
  TIFF or array instead.
- The pages of a TIFF and the frames of an animation are slices. Pages of another size than the first are left out.
- Transparency is dropped, palettes are applied, and the EXIF orientation is applied.
- 16-bit grey stays 16-bit. TIFFs in which zero is white are inverted.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from radfm.cases import Scan
from radfm.readers.errors import Unreadable
from radfm.readers.limits import check_size
from radfm.readers.pixels import tidy

_KEPT_MODES = ("L", "I", "F")  # and every I;16; all other modes are converted
_WHITE_IS_ZERO = (262, 0)  # TIFF tag PhotometricInterpretation


def read_picture(path: Path) -> tuple[list[Scan], list[tuple[str, str]]]:
    """Read an image file with Pillow.

    Returns: a list of one scan, and ("", reason) where pages were left out. Raises: Unreadable for a size that is not
    plausible, and whatever Pillow raises on a damaged file.
    """
    try:
        image = Image.open(path)
    except Image.DecompressionBombError:
        raise Unreadable(
            "has a header that asks for more pixels than a picture can have: crop or scale it down"
        ) from None
    with image:
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
        left_out = [("", f"{pages_left_out} of its {pages} pages have another size and were left out")]
    return [Scan(tidy(np.stack(_same_depth(slices))))], left_out


def _values(page: Image.Image) -> np.ndarray:
    """(H, W) or (H, W, 3)."""
    white_is_zero = getattr(page, "tag_v2", {}).get(_WHITE_IS_ZERO[0]) == _WHITE_IS_ZERO[1]
    ImageOps.exif_transpose(page, in_place=True)
    if page.mode.startswith("I;16"):
        values = np.asarray(page).astype(np.uint16)
        return np.uint16(65535) - values if white_is_zero else values
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
