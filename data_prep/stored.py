"""A scan as it was read -> the scan as it is stored: smaller, in few bits, fit for the model.

Decisions:
- The longer side becomes `size` pixels and pixels become square, as the model's image processor does it; nothing is
  enlarged or filled up, since that can be done without loss when it is needed.
- CT stays in Hounsfield units, as float16: exact to 2,048, to 2 above. All else is stored as uint8: pictures of 8 bits
  as they are, the others between two percentiles of the scan, as the image processor would scale them.
- `precision="float16"` keeps all grey scans in float16, scaled to [0, 1] where they are not CT.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from scipy.sparse import csr_array

from radfm.cases import Scan

PERCENTILES = (0.5, 99.5)
HOUNSFIELD = (-32768, 32752)  # what float16 can bear with room; no detector says more
_BAND = 16  # columns
_SAMPLE = 1_000_000  # pixels whose percentiles are those of all


def stored_scan(scan: Scan, size: int, precision: str = "auto", max_slices: int | None = None) -> Scan:
    """The scan with pixels (slices, H, W) uint8 or float16, or (slices, H, W, 3) uint8, of at most size x size.

    Args:
        precision: "auto", or "float16" for all grey scans.
        max_slices: of a scan with more, so many are taken, evenly spaced.
    Raises:
        ValueError: for another precision.
    """
    if precision not in ("auto", "float16"):
        raise ValueError(f"precision is auto or float16, not {precision!r}")
    pixels, key, spacing = _chosen(scan, max_slices)
    values = _values(pixels, scan.modality, precision)
    height, width = _shape(pixels.shape[1:3], size, spacing)
    if spacing is not None:
        extent = (pixels.shape[1] * spacing[1] / height, pixels.shape[2] * spacing[2] / width)
        spacing = (spacing[0], *(round(mm, 5) for mm in extent))
    resized = _resized(values, height, width, np.float16 if values.dtype != np.uint8 else np.uint8)
    return replace(scan, pixels=resized, key_slice=key, spacing_mm=spacing, affine=None)


def chosen_slices(count: int, key_slice: int | None, most: int | None) -> list[int]:
    """Which of so many slices are taken: all, or `most` of them, evenly spaced, the key slice among them."""
    if most is None or count <= most:
        return list(range(count))
    index = [int(i * count / most) for i in range(most)]
    if key_slice is not None and key_slice not in index:
        index[min(range(most), key=lambda i: abs(index[i] - key_slice))] = key_slice
    return index


def _chosen(scan: Scan, most: int | None):
    count = len(scan.pixels)
    index = chosen_slices(count, scan.key_slice, most)
    if len(index) == count:
        return scan.pixels, scan.key_slice, scan.spacing_mm
    spacing = scan.spacing_mm and (scan.spacing_mm[0] * count / len(index), *scan.spacing_mm[1:])
    return scan.pixels[index], (None if scan.key_slice is None else index.index(scan.key_slice)), spacing


def _values(pixels: np.ndarray, modality: str | None, precision: str) -> np.ndarray:
    """uint8, or what is to become float16 (int16 and float32 go on, to be resized first)."""
    hounsfield = modality == "CT" and pixels.dtype != np.uint8 and pixels.ndim == 3
    if hounsfield:
        return pixels if pixels.dtype == np.int16 else np.clip(pixels, *HOUNSFIELD)
    if pixels.ndim == 4 or (pixels.dtype == np.uint8 and precision == "auto"):
        return pixels
    step = max(1, int((pixels.size / _SAMPLE) ** 0.5))
    sample = pixels[:, ::step, ::step] if pixels[0].size > step * step else pixels
    low, high = (float(p) for p in np.percentile(sample, PERCENTILES))
    if high <= low:
        low, high = float(pixels.min()), float(pixels.max())
    scaled = np.subtract(pixels, low, dtype=np.float32)
    scaled *= 1 / max(high - low, 1e-6)
    np.clip(scaled, 0, 1, out=scaled)
    if precision == "float16":
        return scaled
    scaled *= 255
    return np.rint(scaled, out=scaled).astype(np.uint8)


def _shape(shape: tuple[int, int], size: int, spacing_mm: tuple | None) -> tuple[int, int]:
    row_mm, column_mm = spacing_mm[1:] if spacing_mm is not None and min(spacing_mm[1:]) > 0 else (1.0, 1.0)
    finest = min(row_mm, column_mm)
    height, width = shape[0] * row_mm / finest, shape[1] * column_mm / finest  # pixels, once they are square
    scale = min(1.0, size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(values: np.ndarray, height: int, width: int, dtype) -> np.ndarray:
    if values.shape[1:3] == (height, width):
        return np.ascontiguousarray(values, dtype)
    resized = np.empty((len(values), height, width, *values.shape[3:]), dtype)
    floats = np.empty(values.shape[1:3], np.float32)  # once: fresh memory costs as much as the work on it
    for slot, picture in zip(resized, values, strict=True):
        if picture.ndim == 3:
            slot[...] = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
            continue
        floats[...] = picture
        smaller = torch.from_numpy(_resized_floats(floats, height, width))
        torch.from_numpy(slot).copy_(smaller.round_() if dtype == np.uint8 else smaller)  # numpy takes far longer
    return resized


def _resized_floats(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) float32 -> (height, width), as Pillow does it with BILINEAR but in a fifth of the time."""
    lower = _triangles(picture.shape[0], height) @ picture
    resized = np.empty((height, width), np.float32)
    for columns, taken, weights in _bands(picture.shape[1], width):
        np.matmul(lower[:, taken], weights, out=resized[:, columns])
    return resized


@lru_cache(maxsize=64)
def _triangles(count: int, length: int) -> csr_array:
    """(length, count) weights of a row's pixels in each of fewer: they fall linearly from a new pixel's centre to 0 at
    the centres of its neighbours."""
    scale = count / length
    reach = max(scale, 1.0)
    centres = (np.arange(length) + 0.5)[:, None] * scale
    places = np.floor(centres - reach + 0.5).astype(int) + np.arange(int(np.ceil(2 * reach)) + 1)
    weights = np.clip(1 - np.abs(places + 0.5 - centres) / reach, 0, None) * ((places >= 0) & (places < count))
    weights /= weights.sum(1, keepdims=True)
    row, tap = np.nonzero(weights)
    return csr_array((weights[row, tap].astype(np.float32), (row, places[row, tap])), (length, count))


@lru_cache(maxsize=64)
def _bands(count: int, length: int) -> list[tuple[slice, slice, np.ndarray]]:
    """The same as small dense matrices, which is faster along rows: (new pixels, pixels they need, weights) of each."""
    bands = []
    for start in range(0, length, _BAND):
        part = _triangles(count, length)[start : start + _BAND]
        taken = slice(part.indices.min(), part.indices.max() + 1)
        bands.append((slice(start, start + _BAND), taken, np.ascontiguousarray(part.toarray()[:, taken].T)))
    return bands
