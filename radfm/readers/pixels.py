"""The types of pixel values that a scan holds: values are exact where possible, compact and finite.

Decisions:
- uint8, uint16 and int16 are kept. Other integers become the first of uint8, int16 and uint16 that holds all values.
  All other types become float32. Hounsfield units with an integer slope are int16.
- NaN and infinities are replaced by the smallest finite value of the scan, its background. A scan without a finite
  value is refused.
- Colour is (slices, H, W, 3) uint8. Where the three channels are equal, the scan is grey: (slices, H, W).
- Of complex numbers (MR reconstructions), the magnitude is taken.
"""

import numpy as np

from radfm.readers.errors import Unreadable

_KEPT = (np.uint8, np.int16, np.uint16)


def tidy(pixels: np.ndarray) -> np.ndarray:
    """The pixels of a scan, contiguous and in the types above.

    Args:
        pixels: (slices, H, W) or (slices, H, W, 3).
    Raises:
        Unreadable: the array is empty or has no finite value.
    """
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


def square(pixels: np.ndarray, aspect: float) -> np.ndarray:
    """(slices, H, W) or (slices, H, W, 3) whose pixels are `aspect` times as high as wide -> with square pixels.

    The shorter side is enlarged by linear interpolation. Integers are rounded.
    """
    if aspect == 1 or not 1 / 8 <= aspect <= 8:
        return pixels
    axis, factor = (1, aspect) if aspect > 1 else (2, 1 / aspect)
    old = pixels.shape[axis]
    new = max(round(old * factor), 1)
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = at.astype(int)
    weight = (at - low).reshape([-1 if i == axis else 1 for i in range(pixels.ndim)]).astype(np.float32)
    a, b = np.take(pixels, low, axis), np.take(pixels, np.minimum(low + 1, old - 1), axis)
    values = a * (1 - weight) + b * weight
    return values if pixels.dtype.kind == "f" else np.rint(values).astype(pixels.dtype)


def compact(values: np.ndarray) -> np.ndarray:
    """The values in the smallest of the types above that holds them exactly, else in float32."""
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
    whole = float(slope).is_integer() and float(intercept).is_integer() and max(abs(slope), abs(intercept)) < 2**53
    if values.dtype.kind in "bui" and whole:
        ends = sorted(int(v) * int(slope) + int(intercept) for v in (values.min(), values.max()))
        for kept in (np.int16, np.uint16):
            if np.iinfo(kept).min <= ends[0] and ends[1] <= np.iinfo(kept).max:
                # Intermediate results may wrap around in 16 bits; the final values fit, so they are right.
                scale, offset = (np.array(int(number)).astype(kept) for number in (slope, intercept))
                stored = values.view(kept) if values.dtype.isnative and values.itemsize == 2 else values.astype(kept)
                return stored + offset if slope == 1 else stored * scale + offset
    exact: type[np.floating] = np.float32 if values.dtype.itemsize <= 2 else np.float64  # float32 holds 24 bits exactly
    with np.errstate(over="ignore", invalid="ignore"):
        return (values.astype(exact) * exact(slope) + exact(intercept)).astype(np.float32, copy=False)


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
    """Colours of another depth in 8 bits: integers as 8 or 16 bits, floats as values in [0, 1] or [0, 255]."""
    colour = np.clip(colour, 0, None)
    high = float(colour.max())
    if colour.dtype == np.float32:
        scale = 255.0 if high <= 1 else 1.0 if high <= 255 else 255.0 / high
    else:
        scale = 1.0 if high <= 255 else 1 / 256
    return (colour * np.float32(scale)).astype(np.uint8)
