"""The places of slices: positions along the normal, and which slices lie at one place."""

from collections.abc import Sequence

import numpy as np

from radfm.readers.dicom_frames import Frame

SAME_PLACE_MM = 0.01
_ROUNDED_MM = 0.12  # how far apart slices of one place may lie where positions are rounded to 0.1 mm
_ROUNDED_STEP_MM = 0.18  # how far a step may then be off
_SAME_PLACE = 0.2  # of the distance between slices, where slices of several volumes are compared

Groups = list[list[int]]  # indices of frames


def normal_of(frame: Frame) -> np.ndarray:
    """Unit normal of a frame that points to the patient's left, back or head, whichever is nearest."""
    assert frame.orientation is not None
    normal = np.cross(frame.orientation[:3], frame.orientation[3:])
    normal /= np.linalg.norm(normal)
    return normal * np.sign(normal[np.argmax(np.abs(normal))])


def distances_of(frames: Sequence[Frame]) -> np.ndarray:
    """(frames,) positions along the common normal, mm."""
    normal = normal_of(frames[0])
    return np.array([frame.position @ normal for frame in frames])


def off_line(positions: np.ndarray) -> float:
    """The largest distance, in mm, of (n, 3) positions from the line that fits them best."""
    offsets = positions - positions.mean(axis=0)
    direction = np.linalg.svd(offsets, full_matrices=False)[2][0]
    return float(np.linalg.norm(offsets - np.outer(offsets @ direction, direction), axis=1).max())


class Places:
    """Frames and their places.

    Attributes:
        frames: in their own order.
        at: (frames,) mm along the normal.
        place: (frames,) number of the place, from the lowest to the highest.
        most: slices at one place.
        regular: whether the steps between the places are multiples of one distance.
    """

    def __init__(self, frames: list[Frame]):
        self.frames = frames
        self.at = distances_of(frames)
        self.place = clustered(self.at, tolerance_of(self.at, frames[0].slice_mm))
        slices = np.bincount(self.place)
        self.n_places, self.most = len(slices), int(slices.max())
        self.regular = is_regular(np.bincount(self.place, self.at) / slices)

    def are_covered(self, groups: Groups) -> bool:
        """Whether there are several groups, and on average each has most of the places."""
        covered = [len(set(self.place[group].tolist())) for group in groups]
        return len(groups) > 1 and sum(covered) > 0.5 * self.n_places * len(groups) and min(covered) > 1

    def part(self, indices: Sequence[int]) -> list[Frame]:
        """The frames of these indices by their places."""
        return [self.frames[i] for i in sorted(indices, key=lambda i: (self.at[i], i))]


def tolerance_of(at: np.ndarray, slice_mm: float | None) -> float:
    """How far apart slices of one place may be: small beside the distance between slices."""
    steps = np.diff(np.sort(at))
    steps = steps[steps > SAME_PLACE_MM]
    if not steps.size:
        return SAME_PLACE_MM
    # Of steps in two sizes, such as 0.4, 4.6, 0.4, 4.6, the small ones are between volumes and the large ones within.
    small = _SAME_PLACE * (slice_mm or 0.0)
    if slice_mm and (steps < small).any() and (steps >= small).any() and np.median(steps[steps >= small]) > 2 * small:
        return small
    large = steps[steps > _ROUNDED_MM]
    return min(_ROUNDED_MM, _SAME_PLACE * float(np.median(large if large.size else steps)))


def is_regular(at: np.ndarray, lacking: int | None = None) -> bool:
    """Whether the steps between places, in order, are multiples of one distance and most of the multiples are there.

    Args:
        lacking: how many places of the other volumes are missing between the first and the last, where that is known.
            Then half of the places are enough, and a gap of all volumes does not count.
    """
    steps = np.diff(at)
    if len(steps) < 2:
        return True
    step = np.median(steps[steps < 1.5 * steps.min()])
    multiples = np.maximum(np.rint(steps / step), 1)
    even = np.abs(steps - multiples * step) <= max(0.1 * step, min(_ROUNDED_STEP_MM, 0.27 * step))
    most_are_there = (multiples - 1).sum() <= len(at) / 2 or (lacking is not None and lacking < len(at))
    return bool(even.all() and most_are_there)


def clustered(values: np.ndarray, tolerance: float) -> np.ndarray:
    """(n,) numbers of the clusters, in rising order, of values that are separated by more than the tolerance."""
    order = np.argsort(values, kind="stable")
    clusters = np.empty(len(values), int)
    clusters[order] = np.concatenate([[0], np.cumsum(np.diff(values[order]) > tolerance)])
    return clusters
