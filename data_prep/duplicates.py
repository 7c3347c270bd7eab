"""The same picture under several names: groups of scans that look the same, and those that lie across splits.

Decisions:
- Candidates are pairs whose hashes differ in at most 4 of 64 bits and whose thumbnails are the same but for brightness
  and contrast. They come from equal fifths of the hash: with 4 different bits at least one fifth is untouched. So the
  search costs about as much as there are scans.
- The stored pixels decide: without their smooth part, which two patients of one build share, edges and texture must
  correlate, wherever the one picture lies within two pixels of 64 and 4% of size of the other. Copies that were
  recompressed, resized or brightened pass; two chests do not. Of copies cut by a hundredth some have another hash and
  are missed; mirrored ones are not looked for.
- Scans of one patient are compared too, but only groups with several patients are reported: one patient never lies
  across splits.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

MOST_BITS = 4
LEAST_ALIKE = 0.97  # correlation of thumbnails
LEAST_SAME = 0.985  # correlation of edges and texture
_FIFTHS = (0, 13, 26, 39, 52, 64)
_MOST_ALIKE = 2000  # scans with one fifth in common; beyond, neighbours by hash are compared
_SIDE, _SHIFT, _SMOOTH = 64, 2, 2.5  # pixels
_ZOOMS = (1.0, 1.02, 1.04)


def groups_of(looks: Sequence[list[str] | None], picture_of: Callable[[int], np.ndarray]) -> list[list[int]]:
    """Groups of scans that look the same, each in ascending order.

    Args:
        looks: (hash, thumbnail) in hex, None for flat.
        picture_of: the shown slice of a scan, (H, W) uint8, asked for where scans may be the same.
    """
    known = [i for i, look in enumerate(looks) if look is not None]
    if not known:
        return []
    hashes = np.array([int(looks[i][0], 16) for i in known], dtype=np.uint64)
    thumbs = _standard(np.array([np.frombuffer(bytes.fromhex(looks[i][1]), np.uint8) for i in known], np.float32))
    leader = np.arange(len(known))
    detail_of = lru_cache(maxsize=4096)(lambda i: _detail(picture_of(known[i])))
    for low, high in pairwise(_FIFTHS):
        fifth = (hashes >> np.uint64(low)) & np.uint64(2 ** (high - low) - 1)
        order = np.lexsort((hashes, fifth))
        for bucket in np.split(order, np.flatnonzero(np.diff(fifth[order])) + 1):
            _join(bucket, hashes, thumbs, detail_of, leader)
    groups = defaultdict(list)
    for i, scan in enumerate(known):
        groups[_root(leader, i)].append(scan)
    return sorted(group for group in groups.values() if len(group) > 1)


def same_picture(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether (H, W) uint8 and another, perhaps of another size and brightness, are copies of one picture."""
    return _same(_detail(one), _detail(other))


def _join(bucket: np.ndarray, hashes: np.ndarray, thumbs: np.ndarray, detail_of: Callable, leader: np.ndarray) -> None:
    for place, i in enumerate(bucket[:-1]):
        others = bucket[place + 1 : place + 1 + _MOST_ALIKE]
        near = others[np.bitwise_count(hashes[others] ^ hashes[i]) <= MOST_BITS]
        if len(near):
            for j in near[thumbs[near] @ thumbs[i] >= LEAST_ALIKE]:
                a, b = sorted((_root(leader, i), _root(leader, j)))
                if a != b and _same(detail_of(i), detail_of(j)):
                    leader[b] = a


def _detail(picture: np.ndarray) -> np.ndarray:
    """(zooms, 64, 64) float32: the picture and its middle, without their smooth parts."""
    image, found = Image.fromarray(picture), []
    for zoom in _ZOOMS:
        left, top = ((length - length / zoom) / 2 for length in image.size)
        box = (left, top, image.width - left, image.height - top)
        small = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box), np.float32)
        found.append(small - gaussian_filter(small, _SMOOTH))
    return np.stack(found)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return max(_correlation(one[0], other), _correlation(other[0], one)) >= LEAST_SAME


def _correlation(whole: np.ndarray, zoomed: np.ndarray) -> float:
    """The best over all shifts and zooms."""
    side = _SIDE - 2 * _SHIFT
    middle = _standard(whole[_SHIFT:-_SHIFT, _SHIFT:-_SHIFT].reshape(1, -1))[0]
    shifted = np.lib.stride_tricks.sliding_window_view(zoomed, (side, side), (1, 2)).reshape(-1, side * side)
    return float((_standard(shifted) @ middle).max())


def _standard(rows: np.ndarray) -> np.ndarray:
    """(n, pixels) without their means, of length 1: their products are correlations."""
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _root(leader: np.ndarray, i: int) -> int:
    while leader[i] != i:
        leader[i] = leader[leader[i]]
        i = leader[i]
    return int(i)
