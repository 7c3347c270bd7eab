"""Frames -> stacks: which pictures make one scan, and in which order.

Decisions:
- A stack is one series (SeriesInstanceUID) at one matrix size, one orientation (within 2.6 degrees) and pixel spacing
  (within 1%). Where a file has no series, its folder stands for it.
- Frames lie in the order of their positions along the normal; where a position is missing, in the order of
  InstanceNumber, then of names. Names never decide over positions.
- Frames of a stack that share a position are told apart by the first of these that does: echo, b-value, image type,
  kernel, inversion time, gradient, temporal position, acquisition, trigger time; last, by instance order.
- If all are at one position, time makes them a clip: one scan, its slices in instance order.
- Pictures without position are a stack where the modality is stackable (modalities.csv: CT, MRI, nuclear medicine,
  OCT). In all other modalities each file is its own view, and so its own scan. Frames of one file stay together.
- Of a series in more than 16 volumes, 16 evenly spaced ones are read, as for NIfTI.
- The distance between slices is the median of the distances found; gaps are read as they are.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from radfm.readers.dicom_files import number, text
from radfm.readers.dicom_headers import TRAITS_OF_TIME, Frame, modality_of
from radfm.readers.limits import chosen_volumes, left_out
from radfm.readers.natural_order import natural
from radfm.readers.orientation import plane_of

_SAME_DIRECTION = 0.999
_SAME_PLACE_MM = 0.01


@dataclass(eq=False)
class Stack:
    """Frames of one scan, in order. axes: (3, 3) as `orientation.lay_out` takes them, for (slices, rows, columns);
    origin: (3,), None where the place in the patient or a distance between voxels is unknown."""

    frames: list[Frame]
    axes: np.ndarray | None = None
    origin: np.ndarray | None = None
    spacing_mm: tuple[float, float, float] | None = None
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @property
    def plane(self) -> str | None:
        return None if self.axes is None else plane_of(self.axes[:, 0] / np.linalg.norm(self.axes[:, 0]))


def stacks_of(frames: list[Frame]) -> list[Stack]:
    series = defaultdict(list)
    for frame in frames:
        series[_series_key(frame)].append(frame)
    stacks = []
    for members in series.values():
        for alike in _alike(members):
            volumes = _volumes(alike)
            chosen = chosen_volumes(len(volumes))
            some = [_stack(volumes[i]) for i in chosen]
            some[0].left_out = left_out(len(volumes))
            stacks += some
    return stacks


def _series_key(frame: Frame) -> tuple:
    header, path = frame.instance.header, frame.instance.path
    modality, placed = modality_of(header), _placed(frame)
    series = text(header, "SeriesInstanceUID") or (str(path.parent), text(header, "SeriesNumber"))
    stackable = modality is not None and modality.stackable
    alone = not placed and (frame.instance.frames > 1 or not stackable)
    shape = tuple(number(header, keyword) for keyword in ("Rows", "Columns", "SamplesPerPixel"))
    palette = text(header, "PhotometricInterpretation") == "PALETTE COLOR"
    return series, modality and modality.name, shape, palette, placed, frame.instance.name if alone else ""


def _placed(frame: Frame) -> bool:
    return frame.position is not None and frame.orientation is not None


def _alike(frames: list[Frame]) -> list[list[Frame]]:
    """Frames of one series, by orientation and pixel spacing."""
    groups: list[list[Frame]] = []
    for frame in frames:
        group = next((group for group in groups if _same_grid(group[0], frame)), None)
        if group is None:
            groups.append([frame])
        else:
            group.append(frame)
    return groups


def _same_grid(a: Frame, b: Frame) -> bool:
    if (a.orientation is None) != (b.orientation is None) or (a.pixel_mm is None) != (b.pixel_mm is None):
        return False
    if (
        a.orientation is not None
        and min(a.orientation[:3] @ b.orientation[:3], a.orientation[3:] @ b.orientation[3:]) < _SAME_DIRECTION
    ):
        return False
    return a.pixel_mm is None or all(abs(i - j) <= 0.01 * j for i, j in zip(a.pixel_mm, b.pixel_mm, strict=True))


def _volumes(frames: list[Frame]) -> list[list[Frame]]:
    """Frames of one grid -> stacks with one frame at each position, each in order."""
    frames = sorted(frames, key=_instance_order)
    if not _placed(frames[0]):
        return [frames]
    places = np.round(_distances(frames) / _SAME_PLACE_MM).astype(int)
    at_one_place = len(set(places)) == 1
    volumes = _without_repeats(list(zip(places, frames, strict=True)), 0, at_one_place)
    return [[frame for _, frame in sorted(volume, key=lambda pair: pair[0])] for volume in volumes]


def _without_repeats(placed: list[tuple[int, Frame]], trait: int, at_one_place: bool) -> list[list[tuple[int, Frame]]]:
    """Splits by one trait after the other until no two frames share a place."""
    places = defaultdict(list)
    for place, frame in placed:
        places[place].append((place, frame))
    most = max(map(len, places.values()))
    traits = len(placed[0][1].traits)
    if most == 1 or (at_one_place and trait >= traits - TRAITS_OF_TIME):
        return [placed]
    if trait == traits:
        return [[same[i] for same in places.values() if i < len(same)] for i in range(most)]
    groups = defaultdict(list)
    for place, frame in placed:
        groups[frame.traits[trait]].append((place, frame))
    # A trait that differs from slice to slice (a time, a counter) would shatter the volume: it tells none apart.
    split = list(groups.values()) if len(groups) <= most else [placed]
    return [volume for group in split for volume in _without_repeats(group, trait + 1, at_one_place)]


def _instance_order(frame: Frame) -> tuple:
    instance_number = number(frame.instance.header, "InstanceNumber")
    missing = instance_number is None
    return missing, 0 if missing else instance_number, natural(frame.instance.name), frame.index


def _normal(frame: Frame) -> np.ndarray:
    """Unit normal of a frame, pointing to the patient's left, back or head, whichever is nearest."""
    normal = np.cross(frame.orientation[:3], frame.orientation[3:])
    normal /= np.linalg.norm(normal)
    return normal * np.sign(normal[np.argmax(np.abs(normal))])


def _distances(frames: list[Frame]) -> np.ndarray:
    """(frames,) places along the common normal, mm."""
    normal = _normal(frames[0])
    return np.array([frame.position @ normal for frame in frames])


def _stack(frames: list[Frame]) -> Stack:
    frame = frames[0]
    slice_mm = frame.slice_mm
    if len(frames) > 1 and _placed(frame):
        steps = np.diff(_distances(frames))
        steps = steps[steps > _SAME_PLACE_MM]
        slice_mm = float(np.median(steps)) if steps.size else None  # None: a clip at one place
    spacing_mm = None if frame.pixel_mm is None else tuple(round(mm, 4) for mm in (slice_mm or 0.0, *frame.pixel_mm))
    axes = origin = None
    if frame.orientation is not None:
        steps_mm = (slice_mm or 1.0, *(frame.pixel_mm or (1.0, 1.0)))
        axes = np.stack([_normal(frame), frame.orientation[3:], frame.orientation[:3]], axis=1) * steps_mm
        known = frame.pixel_mm is not None and (len(frames) == 1 or slice_mm is not None)
        origin = frame.position if known else None
    return Stack(frames, axes, origin, spacing_mm)
