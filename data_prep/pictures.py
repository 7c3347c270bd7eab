"""A slice as an 8-bit picture: intensity windows for CT, the slice that represents a scan, JPEG as a data URI.

Decisions:
- `CT_WINDOWS` is the only table of windows for pictures in radfm; reports, pages and image fingerprints name one of
  them. The windows of the model's input are part of a checkpoint, see `RadFMImageProcessor`.
- CT without Hounsfield units, such as a JPEG of a CT slice, has no window and is shown as other modalities.
- A slice of a latent data set is shown as the mean of its channels: only its autoencoder can show more.
"""

import base64
import re
from io import BytesIO

import numpy as np
from PIL import Image

from radfm.cases import Scan

Window = tuple[float, float]  # lowest and highest Hounsfield unit

CT_WINDOWS: dict[str, Window] = {
    "brain": (-10.0, 90.0),
    "chest": (-1000.0, 400.0),  # lung and mediastinum in one picture
    "skeleton": (-400.0, 1300.0),
    "soft tissue": (-160.0, 240.0),
    "lung": (-1350.0, 150.0),
    "bone": (-450.0, 1050.0),
    "body": (-1000.0, 1000.0),  # separates the body from air
}
_BODY_PARTS = {  # words of a body part -> window
    "head brain skull neuro": "brain",
    "chest lung thorax": "chest",
    "knee spine shoulder hip wrist ankle elbow hand foot extremity bone leg arm": "skeleton",
}
_QUALITY = 85


def ct_window(scan: Scan) -> Window | None:
    """The window for the scan's body part; None for a scan without Hounsfield units."""
    if scan.modality != "CT" or scan.pixels.dtype == np.uint8 or scan.pixels.ndim == 4 or float(scan.pixels.max()) <= 1:
        return None
    words = set(re.findall("[a-z]+", scan.body_part or ""))
    return CT_WINDOWS[next((name for parts, name in _BODY_PARTS.items() if words & set(parts.split())), "soft tissue")]


def to_uint8(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values from `low` to `high` as grey levels from 0 to 255; values outside are clipped."""
    return (255 * np.clip((values.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)


def representative_slice(scan: Scan) -> int:
    """Index of the slice that represents the scan: the key slice, or the middle one where none is known."""
    return len(scan.pixels) // 2 if scan.key_slice is None else min(scan.key_slice, len(scan.pixels) - 1)


def grey_slice(scan: Scan, index: int) -> np.ndarray:
    """One slice as (H, W) uint8, for any stored data type; CT in the window "body"."""
    pixels = scan.pixels[index]
    if pixels.ndim == 3:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    values = pixels.astype(np.float32)
    is_ct = scan.modality == "CT" and values.min() < -100
    return to_uint8(values, *(CT_WINDOWS["body"] if is_ct else (values.min(), values.max())))


def slice_image(scan: Scan, index: int, window: Window | None) -> Image.Image:
    """One slice as an image; without a window, from its lowest to its highest value."""
    pixels = scan.pixels[index]
    if pixels.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(pixels))
    if pixels.ndim == 3:  # a latent, (channels, h, w)
        pixels = pixels.astype(np.float32).mean(0)
    low, high = window or (float(pixels.min()), float(pixels.max()))
    return Image.fromarray(to_uint8(pixels, low, high))


def data_uri(image: Image.Image) -> str:
    """An image as JPEG in a data URI."""
    file = BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
