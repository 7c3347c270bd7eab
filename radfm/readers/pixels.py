"""Pixel values as a scan keeps them: exact, small, finite.

Decisions:
- uint8, uint16 and int16 stay; other integers become the first of uint8, int16, uint16 that holds them all; everything
  else is float32. Hounsfield units from integer slopes are int16.
- NaN and infinities become the smallest finite value of the scan, its background. A scan without one is refused.
- Colour is (slices, H, W, 3) uint8; where the three channels are equal it was grey, and becomes (slices, H, W).
- Complex numbers (raw MR reconstructions) become their magnitude.
"""

import numpy as np

from radfm.readers.errors import Unreadable

_KEPT = (np.uint8, np.int16, np.uint16)


def tidy(pixels: np.ndarray) -> np.ndarray:
    """A whole scan -> the same values, contiguous, in the types above. Raises: Unreadable without one finite value."""
    if pixels.size == 0:
        raise Unreadable("holds no pixels, one of its dimensions is zero: export it again")
    if pixels.ndim == 4:
        pixels = _grey(pixels)
    pixels = compact(pixels)
    if pixels.dtype == np.float32:
        pixels = _finite(pixels)
    if pixels.ndim == 4 and pixels.dtype != np.uint8:
        pixels = _eight_bits(pixels)
    return np.ascontiguousarray(pixels)


def compact(values: np.ndarray) -> np.ndarray:
    """The smallest of the types above that holds the values exactly; float32 for the rest."""
    if values.dtype.kind == "c":
        values = np.abs(values)
    if values.dtype.kind not in "buif":
        raise Unreadable("its values are not numbers: export it as numbers")
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(np.float32, copy=False)
    if values.dtype.itemsize <= 2 and values.dtype != np.int8:
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for kept in _KEPT:
        if np.iinfo(kept).min <= low and high <= np.iinfo(kept).max:
            return values.astype(kept)
    return values.astype(np.float32)


def rescaled(values: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """values * slope + intercept: int16 (or uint16, if needed) where that is exact, else float32."""
    if slope == 1 and intercept == 0:
        return compact(values)
    if values.dtype.kind in "bui" and float(slope).is_integer() and float(intercept).is_integer():
        ends = sorted(int(v) * int(slope) + int(intercept) for v in (values.min(), values.max()))
        for kept in (np.int16, np.uint16):
            if np.iinfo(kept).min <= ends[0] and ends[1] <= np.iinfo(kept).max:
                # Numbers of 16 bits wrap around, and come back where the outcome fits.
                scale, offset = (np.array(int(number)).astype(kept) for number in (slope, intercept))
                stored = values.view(kept) if values.dtype.isnative and values.itemsize == 2 else values.astype(kept)
                return stored + offset if slope == 1 else stored * scale + offset
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _finite(pixels: np.ndarray) -> np.ndarray:
    finite = np.isfinite(pixels)
    if finite.all():
        return pixels
    if not finite.any():
        raise Unreadable("holds no number at all, only NaN or infinite values: export it again")
    return np.where(finite, pixels, pixels[finite].min())


def _grey(pixels: np.ndarray) -> np.ndarray:
    first = pixels[..., 0]
    for channel in (1, 2):
        if not np.array_equal(first, pixels[..., channel], equal_nan=pixels.dtype.kind == "f"):
            return pixels
    return first


def _eight_bits(colour: np.ndarray) -> np.ndarray:
    """Colours of another depth: integers by the depth they need, floats by [0, 1] or [0, 255]."""
    colour = np.clip(colour, 0, None)
    high = float(colour.max())
    if colour.dtype == np.float32:
        scale = 255.0 if high <= 1 else 1.0 if high <= 255 else 255.0 / high
    else:
        scale = 1.0 if high <= 255 else 1 / 256
    return (colour * np.float32(scale)).astype(np.uint8)
