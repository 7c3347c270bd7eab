"""Splits the frames of one series and grid into volumes: one slice at each place, all of one time, echo and phase.

A place is a position along the normal of the slices. How volumes at the same places are distinguished, in this order:

1. `Frame.contrast` (echo, b-value, frame type, kernel, ...) always separates, and so does the line on which the slices
   lie.
2. `Frame.moment` (temporal position, cardiac phase, other dimensions of an enhanced file) separates, unless it counts
   the slices of one volume, or all frames are at one place: then they are a clip.
3. Where a place still has several slices, or the places lie irregularly: the first number of `Frame.clock` whose values
   form volumes, each with most of the places; numbers that differ from slice to slice are clustered by their gaps.
4. InstanceNumber, where it counts through the places of each volume, or through the volumes of each place.
5. The acquisition times, where all volumes go through the places in the same rhythm.
6. The order of the slices at each place, with a warning.

A split by 3 to 5 must leave no two slices of a volume at one place, and steps that are multiples of one distance. A
lost slice leaves its volume incomplete, with a warning; it never pulls in a slice of the next volume. A slice of which
nothing tells the volume is listed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

import numpy as np

from radfm.readers.dicom_files import number, text
from radfm.readers.dicom_frames import Frame
from radfm.readers.dicom_places import (
    SAME_PLACE_MM,
    Groups,
    Places,
    clustered,
    distances_of,
    is_regular,
    normal_of,
    off_line,
    tolerance_of,
)

_SAME_LINE_MM = 1.0
_EVEN_MM = 0.02
_TICK_SECONDS = 1.0
_UNSURE_ORDER = (
    "nothing in the headers tells the {} volumes of its series apart, so they were taken in order of InstanceNumber"
)
_UNKNOWN_VOLUME = (
    "lies where its series has slices of several volumes, and nothing tells to which it belongs: export it anew"
)
_SECOND_AT_PLACE = "lies at the place of another slice of its series, and nothing tells them apart: export it anew"
_TWO_AT_PLACE = "at some places its series has several slices, of which the first was taken"


@dataclass(eq=False)
class Volume:
    """The frames of one scan in the order of their places, and what is uncertain about them."""

    frames: list[Frame]
    warnings: list[str] = field(default_factory=list)


def volumes_of(frames: list[Frame], order: Callable[[Frame], tuple]) -> tuple[list[Volume], list[tuple[Frame, str]]]:
    """Split the frames of one grid.

    Args:
        frames: with the same orientation, all or none with a position.
        order: sorting key of the frames in a file's or series' own order.
    Returns:
        The volumes, and (frame, reason) of each frame whose volume is unknown.
    """
    frames = sorted(frames, key=order)
    positioned = frames[0].position is not None and frames[0].orientation is not None
    volumes, unknown = [], []
    for group in _by(frames, lambda frame: frame.contrast):
        if not positioned:
            volumes.append(Volume(group))
            continue
        for line in _by_line(group):
            found, lost = _by_time(Places(line))
            volumes += found
            unknown += lost
    if positioned and len(volumes) > 1:
        _warn_of_missing(volumes)
    return volumes, unknown


def _by(frames: Iterable[Frame], value: Callable[[Frame], object]) -> list[list[Frame]]:
    groups = defaultdict(list)
    for frame in frames:
        groups[value(frame)].append(frame)
    return list(groups.values())


def _by_line(frames: list[Frame]) -> list[list[Frame]]:
    """The frames, grouped by the line on which their first pixels lie: two stacks side by side are two groups."""
    normal = normal_of(frames[0])
    positions = np.array([frame.position for frame in frames])
    in_plane = positions - np.outer(positions @ normal, normal)
    if np.ptp(in_plane, axis=0).max() <= _SAME_LINE_MM or off_line(positions) <= _SAME_LINE_MM:
        return [frames]
    lines: list[tuple[np.ndarray, list[Frame]]] = []
    for frame, offset in zip(frames, in_plane, strict=True):
        group = next((group for first, group in lines if np.abs(first - offset).max() <= _SAME_LINE_MM), None)
        if group is None:
            lines.append((offset, [frame]))
        else:
            group.append(frame)
    # Stacks side by side have several slices each. Any other course, such as a curve, is one scan.
    return [group for _, group in lines] if all(len(group) > 1 for _, group in lines) else [frames]


def _by_time(places: Places) -> tuple[list[Volume], list[tuple[Frame, str]]]:
    """Steps 2 to 6 for frames of one contrast on one line."""
    if places.n_places == 1:
        return [Volume(places.frames)], []
    volumes, unknown = [], []
    for group in _moments(places):
        found, lost = _by_clock(Places(group))
        volumes += found
        unknown += lost
    return volumes, unknown


def _moments(places: Places) -> list[list[Frame]]:
    """The frames by their moments, without numbers that only count places, such as one for each slice."""
    columns = list(zip(*(frame.moment for frame in places.frames), strict=True))
    columns = [column for column in columns if len(column) < 3 or not _counts_places(column, places)]
    keys = list(zip(*columns, strict=True)) if columns else [()] * len(places.frames)
    groups = defaultdict(list)
    for key, frame in zip(keys, places.frames, strict=True):
        groups[key].append(frame)
    return list(groups.values())


def _counts_places(column: Sequence, places: Places) -> bool:
    return all(len(set(places.place[group])) == 1 for group in _grouped(column))


def _by_clock(places: Places) -> tuple[list[Volume], list[tuple[Frame, str]]]:
    everything = list(range(len(places.frames)))
    if places.n_places == 1:
        return [Volume(places.part(everything))], []
    if places.most == 1:
        return [Volume(places.part(group)) for group in _interleaved(places) or [everything]], []
    for groups in _proposals(places):
        if all(_fits(places, group) for group in groups):
            return [Volume(places.part(group)) for group in groups], []
    return _by_order(places)


def _proposals(places: Places) -> Iterable[Groups]:
    """Steps 3 to 5. Gaps of a clock come before InstanceNumber only where they make whole volumes, since lost slices
    leave gaps, too."""
    gaps = list(_by_gaps(places))
    yield from filter(places.are_covered, _by_one_number(places))
    yield from (groups for groups in gaps if all(len(group) == places.n_places for group in groups))
    yield from filter(places.are_covered, _by_instance_number(places))
    yield from filter(places.are_covered, gaps)
    yield from filter(places.are_covered, _by_two_numbers(places))
    yield from filter(places.are_covered, _by_rhythm(places))
    yield from _by_any_number(places)


def _fits(places: Places, indices: Sequence[int]) -> bool:
    """Whether frames can be one volume: one at each place, and as regular as the places are."""
    own = np.sort(places.place[list(indices)])
    if (np.diff(own) == 0).any():
        return False
    if len(own) == places.n_places:
        return True  # it has all places, however positions are rounded
    at = np.sort(places.at[list(indices)])
    return not places.regular or is_regular(at, int(own[-1] - own[0] + 1 - len(own)))


def _interleaved(places: Places) -> Groups | None:
    """Acquisitions that lie between each other's slices, where no place has two; None where there are none.

    An MRI that is acquired in passes (every second slice, then the others) has even steps, and is one volume. A second
    acquisition that is shifted by a part of the step is another volume, and so is any second acquisition of a CT.
    """
    steps = np.diff(np.sort(places.at))
    passes = steps.max() - steps.min() <= _EVEN_MM and text(places.frames[0].instance.header, "Modality") != "CT"
    for column in _clocks(places):
        groups = _grouped(column)
        if len(groups) < 2 or min(map(len, groups)) < 2 or passes:
            continue
        ends = sorted((places.at[group].min(), places.at[group].max()) for group in groups)
        overlap = any(high > low for (_, high), (low, _) in pairwise(ends))
        if overlap and (not places.regular or all(is_regular(np.sort(places.at[group])) for group in groups)):
            return groups
    return None


def _grouped(values: Sequence) -> Groups:
    groups = defaultdict(list)
    for i, value in enumerate(values):
        groups[value].append(i)
    return list(groups.values())


def _clocks(places: Places) -> list[tuple]:
    """The columns of `Frame.clock`."""
    return list(zip(*(frame.clock for frame in places.frames), strict=True))


def _by_one_number(places: Places) -> Iterable[Groups]:
    """By the values of each number of the clock."""
    return map(_grouped, _clocks(places))


def _by_two_numbers(places: Places) -> Iterable[Groups]:
    for a, b in combinations([column for column in _clocks(places) if len(set(column)) > 1], 2):
        yield _grouped(list(zip(a, b, strict=True)))


def _by_any_number(places: Places) -> Iterable[Groups]:
    """By the values of a number, also where acquisitions share only some places, such as the last of one and the first
    of the next; first the number whose groups are longest."""
    groups = [_grouped(column) for column in _clocks(places)]
    groups = [own for own in groups if len(places.frames) >= 2 * len(own) > 2]
    yield from sorted(groups, key=lambda own: min(np.ptp(places.at[group]) for group in own), reverse=True)


def _by_gaps(places: Places) -> Iterable[Groups]:
    """By the gaps between the values of a number that runs or jitters within a volume."""
    for column in _clocks(places):
        if None in column or len(set(column)) < places.most:
            continue
        values = np.array(column, float)
        gaps = np.sort(np.diff(np.unique(values)))[::-1]
        for volumes in range(max(places.most, 2), min(places.most + 3, len(gaps) + 1)):
            between, within = gaps[volumes - 2], gaps[volumes - 1]
            if between > 1.5 * within:
                yield _grouped(clustered(values, (between + within) / 2).tolist())


def _by_instance_number(places: Places) -> Iterable[Groups]:
    """InstanceNumber, where it counts places in each volume (volume by volume) or volumes at each place."""
    numbers = [number(frame.instance.header, "InstanceNumber") for frame in places.frames]
    if len({frame.instance for frame in places.frames}) < len(places.frames):
        numbers = [float(frame.index + 1) for frame in places.frames]  # frames of one file
    if None in numbers or len(set(numbers)) < len(numbers):
        return
    counts = np.array(numbers, int)
    stride = int(np.gcd.reduce(np.diff(np.sort(counts))))
    start = counts.min()
    counts = (counts - start) // stride
    known_start = start <= stride
    if _one_to_one(counts % places.n_places, places.place):
        yield from _by_count(counts, places.n_places, places, known_start)
    for volumes in range(places.most, places.most + 3):
        for shift in range(1 if known_start else volumes):
            volume, slot = (counts + shift) % volumes, (counts + shift) // volumes
            if _one_to_one(slot, places.place):
                yield _grouped(volume.tolist())


def _by_rhythm(places: Places) -> Iterable[Groups]:
    """A clock with more values than volumes, where all volumes go through the places in one rhythm.

    Several places may have one phase of it, as where a clock counts full seconds.
    """
    if len(places.frames) < 0.78 * places.most * places.n_places:  # of shifted acquisitions, places have few slices
        return
    for column in reversed(_clocks(places)[1:]):  # AcquisitionNumber is no clock
        if None in column or len(set(column)) <= places.most:
            continue
        times = np.array(column, float)
        repeats = np.concatenate([np.diff(np.sort(times[places.place == i])) for i in range(places.n_places)])
        if not repeats.size or (period := float(np.median(repeats))) <= 0:
            continue
        turns = (times - times.min()) / period
        phases = np.array([_phase(turns[places.place == place]) for place in range(places.n_places)])
        spread = np.abs((turns - phases[places.place] + 0.5) % 1 - 0.5).max()
        if spread > 0.5 / places.n_places:
            continue
        slots = clustered(phases, 0.5 / places.n_places)
        if slots.max() + 1 < places.n_places and np.diff(np.unique(times)).min() > _TICK_SECONDS:
            continue
        volume = np.rint(turns - phases[places.place]).astype(int)
        yield from _by_count(volume * (slots.max() + 1) + slots[places.place], slots.max() + 1, places, False)


def _phase(turns: np.ndarray) -> float:
    """The mean of (n,) turns as part of one turn, in [0, 1) up to rounding."""
    phase = float(np.angle(np.exp(2j * np.pi * turns).mean()) / (2 * np.pi)) % 1
    return 0.0 if phase > 0.999 else phase


def _by_count(counts: np.ndarray, slots: int, places: Places, known_start: bool) -> Iterable[Groups]:
    """Volumes by a count that goes through all slots of one volume, then those of the next. A slot is a place or more.

    Where the count may not begin with the first slice of a volume, the beginning is chosen that gives the fewest
    volumes; of several, the one after which neighbouring slices follow each other most closely.
    """
    pairs = set(zip((counts % slots).tolist(), places.place.tolist(), strict=True))
    if len(pairs) > places.n_places:  # a place has several slots
        return
    place_of = dict(sorted(pairs, reverse=True))
    starts = []
    for shift in range(1 if known_start else slots):
        volume = (counts - shift) // slots
        path = [place_of[slot % slots] for slot in range(shift, shift + slots) if slot % slots in place_of]
        jumps = sum(abs(a - b) for a, b in pairwise(path))
        starts.append((len(set(volume.tolist())), jumps, shift, volume))
    *_, volume = min(starts, key=lambda start: start[:3])
    yield _grouped(volume.tolist())


def _one_to_one(slots: np.ndarray, places: np.ndarray) -> bool:
    pairs = set(zip(slots.tolist(), places.tolist(), strict=True))
    return len(pairs) == len(set(slots.tolist())) == len(set(places.tolist()))


def _by_order(places: Places) -> tuple[list[Volume], list[tuple[Frame, str]]]:
    """Volumes of which nothing tells the slices apart: the k-th slice of each place, in the files' own order.

    Slices of places that lack some are unknown. Where most places have one slice, it is one volume, and the further
    slices of the others are unknown.
    """
    at_place = [np.flatnonzero(places.place == place) for place in range(places.n_places)]
    if 2 * sum(len(indices) == 1 for indices in at_place) > places.n_places:
        unknown = [(places.frames[i], _SECOND_AT_PLACE) for indices in at_place for i in indices[1:]]
        return [Volume(places.part([indices[0] for indices in at_place]), [_TWO_AT_PLACE])], unknown
    whole = [indices for indices in at_place if len(indices) == places.most]
    short = [indices for indices in at_place if len(indices) < places.most]
    unknown = [(places.frames[i], _UNKNOWN_VOLUME) for indices in short for i in indices]
    warning = _UNSURE_ORDER.format(places.most)
    volumes = [Volume(places.part([indices[k] for indices in whole]), [warning]) for k in range(places.most)]
    return volumes, unknown


def _warn_of_missing(volumes: list[Volume]) -> None:
    """A warning for each volume that lacks places which others of the same series have.

    Places between its slices are missing where its steps are longer than those of the others. At its ends, a volume
    with less than two thirds of the places is another part of the body, and lacks nothing.
    """
    at = [distances_of(volume.frames) for volume in volumes]
    places = (
        int(clustered(np.concatenate(at), tolerance_of(np.concatenate(at), volumes[0].frames[0].slice_mm)).max()) + 1
    )
    shortest = [steps[steps > SAME_PLACE_MM].min() for steps in map(np.diff, at) if (steps > SAME_PLACE_MM).any()]
    step = float(min(shortest)) if shortest else np.inf
    for i, (volume, own) in enumerate(zip(volumes, at, strict=True), 1):
        missing = places - len(own)
        if missing > places / 3:
            missing = int((np.rint(np.diff(own) / step) - 1).clip(0).sum())
            missing = missing if missing <= max(len(own) / 2, 2) else 0  # more: a coarser stack
        if missing > 0:
            slices = "slice is" if missing == 1 else "slices are"
            of = len(own) + missing
            volume.warnings.append(f"{missing} of {of} {slices} missing in volume {i} of {len(volumes)} of the series")
