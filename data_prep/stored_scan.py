"""Converts a scan to the form in which a data set stores it: resized, with square pixels, in 8 or 16 bits.

Decisions:
- The longer side is reduced to `size` pixels, and pixels become square, as in the model's image processor. Scans are
  neither enlarged nor padded, because both can be done later without loss.
- CT is stored in Hounsfield units as float16, which is exact up to 2,048 and to 2 units above. Other scans are stored
  as uint8: 8-bit pictures unchanged, others scaled between two percentiles of the scan, as in the image processor.
- `precision="float16"` stores all grey scans as float16, scaled to [0, 1] unless they are CT.
- Floats are resized with Pillow's BILINEAR weights, triangles with antialiasing, as sparse matrices. The pixels equal
  those of `F.interpolate(antialias=True)`, which takes 2.9 times as long on one core: `benchmarks/data.py resize`.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from scipy.sparse import csr_array

from radfm.cases import Scan

PERCENTILES = (0.5, 99.5)
HOUNSFIELD = (-32768, 32752)  # within float16; no scanner has values beyond
_BAND = 16  # columns
_SAMPLE = 1_000_000  # pixels from which percentiles are estimated


def stored_scan(scan: Scan, size: int, precision: str = "auto", max_slices: int | None = None) -> Scan:
    """The scan with pixels (slices, H, W) uint8 or float16, or (slices, H, W, 3) uint8, of at most size x size.

    Args:
        size: pixels of the longer side.
        precision: "auto", or "float16" for all grey scans.
        max_slices: number of evenly spaced slices that are taken of a longer scan; None: all.
    Raises:
        ValueError: the precision is another one.
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
    """Indices of the slices that are stored: all, or `most` evenly spaced ones including the key slice."""
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
    """Values as uint8, or as int16 or float32 where they become float16 after resizing."""
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
    height, width = shape[0] * row_mm / finest, shape[1] * column_mm / finest  # in square pixels
    scale = min(1.0, size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(values: np.ndarray, height: int, width: int, dtype) -> np.ndarray:
    if values.shape[1:3] == (height, width):
        return np.ascontiguousarray(values, dtype)
    resized = np.empty((len(values), height, width, *values.shape[3:]), dtype)
    floats = np.empty(values.shape[1:3], np.float32)  # allocated once, to save time
    for slot, picture in zip(resized, values, strict=True):
        if picture.ndim == 3:
            slot[...] = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
            continue
        floats[...] = picture
        smaller = torch.from_numpy(_resized_floats(floats, height, width))
        torch.from_numpy(slot).copy_(smaller.round_() if dtype == np.uint8 else smaller)  # faster than in NumPy
    return resized


def _resized_floats(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) float32 -> (height, width) with Pillow's BILINEAR weights."""
    lower = _triangles(picture.shape[0], height) @ picture
    resized = np.empty((height, width), np.float32)
    for columns, taken, weights in _column_bands(picture.shape[1], width):
        np.matmul(lower[:, taken], weights, out=resized[:, columns])
    return resized


@lru_cache(maxsize=64)
def _triangles(count: int, length: int) -> csr_array:
    """(length, count) weights of the old pixels of a row in each new pixel.

    They fall linearly from the centre of the new pixel to 0 at the centres of its neighbours.
    """
    scale = count / length
    reach = max(scale, 1.0)
    centres = (np.arange(length) + 0.5)[:, None] * scale
    pixels = np.floor(centres - reach + 0.5).astype(int) + np.arange(int(np.ceil(2 * reach)) + 1)
    weights = np.clip(1 - np.abs(pixels + 0.5 - centres) / reach, 0, None) * ((pixels >= 0) & (pixels < count))
    weights /= weights.sum(1, keepdims=True)
    row, tap = np.nonzero(weights)
    return csr_array((weights[row, tap].astype(np.float32), (row, pixels[row, tap])), (length, count))


@lru_cache(maxsize=64)
def _column_bands(count: int, length: int) -> list[tuple[slice, slice, np.ndarray]]:
    """The weights as small dense matrices, faster along rows: (new pixels, old pixels, weights) of each band."""
    bands = []
    for start in range(0, length, _BAND):
        part = _triangles(count, length)[start : start + _BAND]
        taken = slice(part.indices.min(), part.indices.max() + 1)
        bands.append((slice(start, start + _BAND), taken, np.ascontiguousarray(part.toarray()[:, taken].T)))
    return bands
