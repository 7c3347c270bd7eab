"""Rejects scans without content: constant, mostly black, or too small. Corrupt files are listed by `read_case` before.

Decisions:
- One rule for all modalities: the share of pixels that differ from the background. The limit is low enough for a PET of
  the whole body and for an angiogram.
"""

from math import ceil

import numpy as np

LEAST_SIDE = 16  # pixels
LEAST_FOREGROUND = 0.005  # share of the pixels that are brighter than the background
_SAMPLE = 30_000  # pixels, enough to estimate the share
_BACKGROUND = 0.02  # of the range from the darkest pixel to the 99.9th percentile


def rejection_reason(pixels: np.ndarray) -> str | None:
    """The reason to reject a scan, (slices, H, W) or (slices, H, W, 3); None for a usable scan."""
    if min(pixels.shape[1:3]) < LEAST_SIDE:
        return f"is {pixels.shape[1]} x {pixels.shape[2]} pixels, too small to show anything: use {LEAST_SIDE} or more"
    step = ceil((pixels.size / _SAMPLE) ** 0.5)
    sample = np.sort(pixels[:, ::step, ::step].astype(np.float32), axis=None)  # faster than np.percentile
    low, high = float(sample[0]), float(sample[int(0.999 * (sample.size - 1))])
    if low == sample[-1] and pixels.min() == pixels.max():
        return "is constant, all its pixels have one value: export it again"
    dark = np.searchsorted(sample, low + _BACKGROUND * (high - low), side="right")
    foreground = 1 - dark / sample.size if high > low else 0.0
    if foreground < LEAST_FOREGROUND:
        return f"is mostly black, {1 - foreground:.1%} of its pixels are background: check it in a viewer"
    return None
