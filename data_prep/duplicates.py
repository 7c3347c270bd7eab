"""The same picture under several names: groups of scans that look the same, and those that lie across splits.

Decisions:
- Two scans are the same if their hashes differ in at most 4 of 64 bits and their thumbnails by at most 4 of 255 grey
  levels on average. Recompressed, resized and slightly cropped copies pass; two chests do not.
- Candidates come from equal fifths of the hash: with 4 different bits at least one fifth is untouched. So the search
  costs about as much as there are scans.
- Scans of one patient are compared too, but only groups with several patients are reported: one patient never lies
  across splits.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

MOST_BITS = 4
MOST_GREY = 4.0
_FIFTHS = (0, 13, 26, 39, 52, 64)
_MOST_ALIKE = 2000  # scans with one fifth in common; beyond, neighbours by hash are compared


def groups_of(looks: Sequence[list[str] | None]) -> list[list[int]]:
    """Groups of scans that look the same, each in ascending order. looks: (hash, thumbnail) in hex, None for flat."""
    known = [i for i, look in enumerate(looks) if look is not None]
    if not known:
        return []
    hashes = np.array([int(looks[i][0], 16) for i in known], dtype=np.uint64)
    thumbs = np.array([np.frombuffer(bytes.fromhex(looks[i][1]), np.uint8) for i in known], dtype=np.int16)
    leader = np.arange(len(known))
    for low, high in pairwise(_FIFTHS):
        fifth = (hashes >> np.uint64(low)) & np.uint64(2 ** (high - low) - 1)
        order = np.lexsort((hashes, fifth))
        for bucket in np.split(order, np.flatnonzero(np.diff(fifth[order])) + 1):
            _join(bucket, hashes, thumbs, leader)
    groups = defaultdict(list)
    for i, scan in enumerate(known):
        groups[_root(leader, i)].append(scan)
    return sorted(group for group in groups.values() if len(group) > 1)


def _join(bucket: np.ndarray, hashes: np.ndarray, thumbs: np.ndarray, leader: np.ndarray) -> None:
    for place, i in enumerate(bucket[:-1]):
        others = bucket[place + 1 : place + 1 + _MOST_ALIKE]
        near = others[np.bitwise_count(hashes[others] ^ hashes[i]) <= MOST_BITS]
        if len(near):
            same = near[np.abs(thumbs[near] - thumbs[i]).mean(1) <= MOST_GREY]
            for j in same:
                a, b = sorted((_root(leader, i), _root(leader, j)))
                leader[b] = a


def _root(leader: np.ndarray, i: int) -> int:
    while leader[i] != i:
        leader[i] = leader[leader[i]]
        i = leader[i]
    return int(i)
