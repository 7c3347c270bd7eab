"""Duplicates: groups of scans that are copies of one picture under different names.

Decisions:
- Candidates are pairs whose hashes differ in at most 4 of 64 bits, and whose thumbnails agree up to brightness and
  contrast. The hash is divided into five parts, of which at least one is equal when 4 bits differ. Pairs are searched
  among scans with an equal part, so that the cost grows about linearly with the number of scans.
- The stored pixels confirm a candidate. Low frequencies are removed, because two patients of similar build share them;
  the remaining edges and texture must correlate, for any shift of up to two of 64 pixels and any zoom of up to 4%.
  Copies that were recompressed, resized or brightened are found, and two different chests are not. Some copies that
  were cropped by one percent have another hash and are missed. Mirrored copies are not searched.
- Scans of one patient are compared as well, but only groups with several patients are reported, because all cases of a
  patient are in one split.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

MOST_BITS = 4
LEAST_THUMBNAIL_CORRELATION = 0.97
LEAST_DETAIL_CORRELATION = 0.985
_PARTS = (0, 13, 26, 39, 52, 64)  # bits of the hash
_MOST_NEIGHBOURS = 2000  # scans with an equal part that are compared with each, in the order of their hashes
_SIDE, _SHIFT, _SMOOTH = 64, 2, 2.5  # pixels
_ZOOMS = (1.0, 1.02, 1.04)


def duplicate_groups(
    fingerprints: Sequence[Sequence[str] | None], picture_of: Callable[[int], np.ndarray]
) -> list[list[int]]:
    """Groups of scans that are copies of one picture, each in ascending order.

    Args:
        fingerprints: (hash, thumbnail) in hex of each scan, see `ImageFingerprint`; None for a scan without one.
        picture_of: returns the representative slice of a scan, (H, W) uint8. It is called for candidates only.
    """
    known = [i for i, fingerprint in enumerate(fingerprints) if fingerprint is not None]
    if not known:
        return []
    present = [fingerprint for fingerprint in fingerprints if fingerprint is not None]
    hashes = np.array([int(hash_, 16) for hash_, _ in present], dtype=np.uint64)
    thumbnails = [np.frombuffer(bytes.fromhex(thumbnail), np.uint8) for _, thumbnail in present]
    thumbs = _standard(np.array(thumbnails, np.float32))
    leader = np.arange(len(known))
    detail_of = lru_cache(maxsize=4096)(lambda i: _detail(picture_of(known[i])))
    for low, high in pairwise(_PARTS):
        part = (hashes >> np.uint64(low)) & np.uint64(2 ** (high - low) - 1)
        order = np.lexsort((hashes, part))
        for bucket in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            _join(bucket, hashes, thumbs, detail_of, leader)
    groups = defaultdict(list)
    for i, scan in enumerate(known):
        groups[_root(leader, i)].append(scan)
    return sorted(group for group in groups.values() if len(group) > 1)


def is_copy(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two pictures, (H, W) uint8 of any size and brightness, are copies of each other."""
    return _same(_detail(first), _detail(second))


def _join(bucket: np.ndarray, hashes: np.ndarray, thumbs: np.ndarray, detail_of: Callable, leader: np.ndarray) -> None:
    for position, i in enumerate(bucket[:-1]):
        others = bucket[position + 1 : position + 1 + _MOST_NEIGHBOURS]
        near = others[np.bitwise_count(hashes[others] ^ hashes[i]) <= MOST_BITS]
        if len(near):
            for j in near[thumbs[near] @ thumbs[i] >= LEAST_THUMBNAIL_CORRELATION]:
                a, b = sorted((_root(leader, i), _root(leader, j)))
                if a != b and _same(detail_of(i), detail_of(j)):
                    leader[b] = a


def _detail(picture: np.ndarray) -> np.ndarray:
    """(zooms, 64, 64) float32: the picture at each zoom, without its low frequencies."""
    image, details = Image.fromarray(picture), []
    for zoom in _ZOOMS:
        left, top = ((length - length / zoom) / 2 for length in image.size)
        box = (left, top, image.width - left, image.height - top)
        small = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box), np.float32)
        details.append(small - gaussian_filter(small, _SMOOTH))
    return np.stack(details)


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    return max(_correlation(first[0], second), _correlation(second[0], first)) >= LEAST_DETAIL_CORRELATION


def _correlation(whole: np.ndarray, zoomed: np.ndarray) -> float:
    """The highest correlation over all shifts and zooms."""
    side = _SIDE - 2 * _SHIFT
    middle = _standard(whole[_SHIFT:-_SHIFT, _SHIFT:-_SHIFT].reshape(1, -1))[0]
    shifted = np.lib.stride_tricks.sliding_window_view(zoomed, (side, side), (1, 2)).reshape(-1, side * side)
    return float((_standard(shifted) @ middle).max())


def _standard(rows: np.ndarray) -> np.ndarray:
    """(n, pixels) rows with mean 0 and length 1, whose products are correlations."""
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _root(leader: np.ndarray, i: int) -> int:
    while leader[i] != i:
        leader[i] = leader[leader[i]]
        i = leader[i]
    return int(i)
