"""Groups frames into stacks: which frames form one scan, and in which order.

Decisions:
- A stack has one series (SeriesInstanceUID), one matrix size, one orientation (within 2.6 degrees) and one pixel
  spacing (within 1%). For a file without series, its folder and series number are used.
- Frames are ordered by their positions along the normal. Where positions are missing, they are ordered by
  InstanceNumber, then by name. Names are never used where positions are known.
- Frames at the same position are separated by the first of these traits that differs: echo, b-value, image type,
  kernel, inversion time, gradient, temporal position, acquisition, trigger time; at last by instance order.
- If all frames are at one position and differ in time only, they are a clip: one scan, its slices in instance order.
- Frames without position are a stack where the modality is stackable (modalities.csv: CT, MRI, nuclear medicine, OCT).
  In all other modalities each file is one view, and so one scan. Frames of one file stay together.
- Of a series with more than 16 volumes, 16 evenly spaced ones are read, as of NIfTI.
- The distance between slices is the median distance; slices next to a gap are not interpolated.
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
_SAME_POSITION_MM = 0.01


@dataclass(eq=False)
class Stack:
    """The frames of one scan, in order.

    Attributes:
        axes: (3, 3) as `orientation.lay_out` takes them, for (slices, rows, columns); None without orientation.
        origin: (3,) position of the first voxel; None where the position or a distance between voxels is unknown.
        spacing_mm: between slices, rows and columns; None where the pixel spacing is unknown.
        left_out: (part, reason) of volumes of the same series that are not read.
    """

    frames: list[Frame]
    axes: np.ndarray | None = None
    origin: np.ndarray | None = None
    spacing_mm: tuple[float, float, float] | None = None
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @property
    def plane(self) -> str | None:
        return None if self.axes is None else plane_of(self.axes[:, 0] / np.linalg.norm(self.axes[:, 0]))


def stacks_of(frames: list[Frame]) -> list[Stack]:
    """Group the frames of a study by series, grid and volume. Every frame is in at most one stack."""
    series = defaultdict(list)
    for frame in frames:
        series[_series_key(frame)].append(frame)
    stacks = []
    for members in series.values():
        for same_grid in _by_grid(members):
            volumes = _volumes(same_grid)
            chosen = [_stack(volumes[i]) for i in chosen_volumes(len(volumes))]
            chosen[0].left_out = left_out(len(volumes))
            stacks += chosen
    return stacks


def _series_key(frame: Frame) -> tuple:
    """Frames with different keys are never in one stack."""
    header, path = frame.instance.header, frame.instance.path
    modality, has_position = modality_of(header), _has_position(frame)
    series = text(header, "SeriesInstanceUID") or (str(path.parent), text(header, "SeriesNumber"))
    stackable = modality is not None and modality.stackable
    own_scan = not has_position and (frame.instance.frames > 1 or not stackable)
    shape = tuple(number(header, keyword) for keyword in ("Rows", "Columns", "SamplesPerPixel"))
    palette = text(header, "PhotometricInterpretation") == "PALETTE COLOR"
    return series, modality and modality.name, shape, palette, has_position, frame.instance.name if own_scan else ""


def _has_position(frame: Frame) -> bool:
    return frame.position is not None and frame.orientation is not None


def _by_grid(frames: list[Frame]) -> list[list[Frame]]:
    """The frames of one series, grouped by orientation and pixel spacing."""
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
        and b.orientation is not None
        and min(a.orientation[:3] @ b.orientation[:3], a.orientation[3:] @ b.orientation[3:]) < _SAME_DIRECTION
    ):
        return False
    if a.pixel_mm is None or b.pixel_mm is None:
        return True
    return all(abs(i - j) <= 0.01 * j for i, j in zip(a.pixel_mm, b.pixel_mm, strict=True))


def _volumes(frames: list[Frame]) -> list[list[Frame]]:
    """The frames of one grid, grouped into volumes with one frame at each position, each in order."""
    frames = sorted(frames, key=_instance_order)
    if not _has_position(frames[0]):
        return [frames]
    positions = np.round(_distances(frames) / _SAME_POSITION_MM).astype(int)
    single_position = len(set(positions)) == 1
    volumes = _split_by_traits(list(zip(positions, frames, strict=True)), 0, single_position)
    return [[frame for _, frame in sorted(volume, key=lambda pair: pair[0])] for volume in volumes]


_Positioned = list[tuple[int, Frame]]  # position along the normal, frame


def _split_by_traits(positioned: _Positioned, trait: int, single_position: bool) -> list[_Positioned]:
    """Split by one trait after the other, from number `trait` on, until each position has one frame."""
    at_position = defaultdict(list)
    for position, frame in positioned:
        at_position[position].append((position, frame))
    most = max(map(len, at_position.values()))
    traits = len(positioned[0][1].traits)
    if most == 1 or (single_position and trait >= traits - TRAITS_OF_TIME):
        return [positioned]
    if trait == traits:
        return [[same[i] for same in at_position.values() if i < len(same)] for i in range(most)]
    groups = defaultdict(list)
    for position, frame in positioned:
        groups[frame.traits[trait]].append((position, frame))
    # A trait that differs from slice to slice (a time, a counter) would split one volume, so it is not used.
    split = list(groups.values()) if len(groups) <= most else [positioned]
    return [volume for group in split for volume in _split_by_traits(group, trait + 1, single_position)]


def _instance_order(frame: Frame) -> tuple:
    instance_number = number(frame.instance.header, "InstanceNumber")
    missing = instance_number is None
    return missing, 0 if missing else instance_number, natural(frame.instance.name), frame.index


def _normal(frame: Frame) -> np.ndarray:
    """Unit normal of a frame that points to the patient's left, back or head, whichever is nearest."""
    assert frame.orientation is not None
    normal = np.cross(frame.orientation[:3], frame.orientation[3:])
    normal /= np.linalg.norm(normal)
    return normal * np.sign(normal[np.argmax(np.abs(normal))])


def _distances(frames: list[Frame]) -> np.ndarray:
    """(frames,) positions along the common normal, mm."""
    normal = _normal(frames[0])
    return np.array([frame.position @ normal for frame in frames])


def _stack(frames: list[Frame]) -> Stack:
    """The geometry of a volume, from its first frame and the distances between the frames."""
    frame = frames[0]
    slice_mm = frame.slice_mm
    if len(frames) > 1 and _has_position(frame):
        steps = np.diff(_distances(frames))
        steps = steps[steps > _SAME_POSITION_MM]
        slice_mm = float(np.median(steps)) if steps.size else None  # None: a clip at one position
    spacing_mm = None
    if frame.pixel_mm is not None:
        row_mm, column_mm = frame.pixel_mm
        spacing_mm = round(slice_mm or 0.0, 4), round(row_mm, 4), round(column_mm, 4)
    axes = origin = None
    if frame.orientation is not None:
        steps_mm = (slice_mm or 1.0, *(frame.pixel_mm or (1.0, 1.0)))
        axes = np.stack([_normal(frame), frame.orientation[3:], frame.orientation[:3]], axis=1) * steps_mm
        known = frame.pixel_mm is not None and (len(frames) == 1 or slice_mm is not None)
        origin = frame.position if known else None
    return Stack(frames, axes, origin, spacing_mm)
