"""Which scans are no scans: constant, mostly black, too small. Corrupt ones never get here: `read_case` lists them.

Decisions:
- The same rule for all modalities: it asks how much of the picture differs from its background, and is lax enough for a
  PET of the whole body or an angiogram.
"""

from math import ceil

import numpy as np

LEAST_SIDE = 16  # pixels
LEAST_SEEN = 0.005  # share of the pixels that are brighter than the background
_SAMPLE = 30_000  # pixels that tell as much as all
_BACKGROUND = 0.02  # of the range from darkest to brightest (99.9th percentile) pixel


def why_not(pixels: np.ndarray) -> str | None:
    """The reason to reject a scan, (slices, H, W) or (slices, H, W, 3), or None where it is fit."""
    if min(pixels.shape[1:3]) < LEAST_SIDE:
        return f"is {pixels.shape[1]} x {pixels.shape[2]} pixels, too small to show anything: at least {LEAST_SIDE}"
    step = ceil((pixels.size / _SAMPLE) ** 0.5)
    sample = np.sort(pixels[:, ::step, ::step].astype(np.float32), axis=None)  # faster than to look for a percentile
    low, high = float(sample[0]), float(sample[int(0.999 * (sample.size - 1))])
    if low == sample[-1] and pixels.min() == pixels.max():
        return "is constant, all its pixels have one value: export it again"
    dark = np.searchsorted(sample, low + _BACKGROUND * (high - low), side="right")
    seen = 1 - dark / sample.size if high > low else 0.0
    if seen < LEAST_SEEN:
        return f"is mostly black, {1 - seen:.1%} of its pixels are background: look at it in a viewer"
    return None
