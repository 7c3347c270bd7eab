"""Groups frames into stacks: which frames form one scan, in which order, and where its slices lie.

Decisions:
- A stack has one series (SeriesInstanceUID), one matrix size, one orientation (within 2.6 degrees) and one pixel
  spacing (within 1%). For a file without series, its folder and series number are used. Series of one slice each that
  share study, SeriesNumber, frame of reference and grid are one series (Canon writes MRI so).
- Frames with positions become volumes by `dicom_volumes`. Names and instance numbers order frames only where positions
  are missing, or where all frames are at one position: then they are a clip, one scan in instance order.
- Frames without position are a stack where the modality is stackable (modalities.csv: CT, MRI, nuclear medicine, OCT).
  In all other modalities each file is one view, and so one scan. Frames of one file stay together.
- Of a series with more than 16 volumes, 16 evenly spaced ones are read, as of NIfTI.
- The step from slice to slice is the one that the positions have, along the normal or not (tilted gantry). Where no
  single step leads to every position within 0.05 mm (a gap, uneven steps), the distance between slices is the median
  distance, there is no affine, and a warning says so. Nothing is interpolated.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from radfm.readers.dicom_files import number, text
from radfm.readers.dicom_frames import CLOCK_TIME, Frame
from radfm.readers.dicom_headers import modality_of
from radfm.readers.dicom_places import distances_of, normal_of
from radfm.readers.dicom_volumes import Volume, volumes_of
from radfm.readers.limits import chosen_volumes, left_out
from radfm.readers.natural_order import natural
from radfm.readers.orientation import plane_of

_SAME_DIRECTION = 0.999
_SAME_POSITION_MM = 0.01
_OFF_THE_STEP_MM = 0.05
_PAUSE_SECONDS, _MOST_PAUSES = 30, 3


@dataclass(eq=False)
class Stack:
    """The frames of one scan, in order.

    Attributes:
        axes: (3, 3) as `orientation.lay_out` takes them, for (slices, rows, columns); None without orientation.
        origin: (3,) position of the first voxel; None where the position or a distance between voxels is unknown.
        spacing_mm: between slices, rows and columns; None where the pixel spacing is unknown.
        left_out: (part, reason) of volumes of the same series that are not read.
        warnings: what is uncertain about the stack.
    """

    frames: list[Frame]
    axes: np.ndarray | None = None
    origin: np.ndarray | None = None
    spacing_mm: tuple[float, float, float] | None = None
    left_out: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def plane(self) -> str | None:
        return None if self.axes is None else plane_of(self.axes[:, 0] / np.linalg.norm(self.axes[:, 0]))


def stacks_of(frames: list[Frame]) -> tuple[list[Stack], list[tuple[Frame, str]]]:
    """Group the frames of a study by series, grid and volume.

    Returns: the stacks, and (frame, reason) of each frame whose volume is unknown. Every other frame is in one stack,
    but for those of volumes that are left out.
    """
    stacks, unknown = [], []
    for members in _series_of(frames):
        for same_grid in _by_grid(members):
            volumes, lost = volumes_of(same_grid, _instance_order)
            unknown += lost
            chosen = [_stack(volumes[i]) for i in chosen_volumes(len(volumes))]
            chosen[0].left_out = left_out(len(volumes))
            stacks += chosen
    return stacks, unknown


def _series_of(frames: list[Frame]) -> list[list[Frame]]:
    series = defaultdict(list)
    for frame in frames:
        series[_series_key(frame)].append(frame)
    whole, single = [], defaultdict(list)
    for key, members in series.items():
        if len(members) == 1 and _has_position(members[0]) and number(members[0].instance.header, "SeriesNumber"):
            single[_shared_by_slices(members[0], key)].append(members[0])
        else:
            whole.append(members)
    for members in single.values():
        places = {tuple(np.round(m.position, 2)) for m in members if m.position is not None}
        whole += [members] if len(places) > 1 else [[member] for member in members]
    return whole


def _shared_by_slices(frame: Frame, series_key: tuple) -> tuple:
    """What slices of one volume share where each has a series of its own."""
    header = frame.instance.header
    keywords = ("StudyInstanceUID", "SeriesNumber", "FrameOfReferenceUID")
    return *(text(header, keyword) for keyword in keywords), *series_key[1:]


def _series_key(frame: Frame) -> tuple:
    """Frames with different keys are never in one stack."""
    header, path = frame.instance.header, frame.instance.path
    modality, has_position = modality_of(header), _has_position(frame)
    series = text(header, "SeriesInstanceUID") or (str(path.parent), text(header, "SeriesNumber"))
    stackable = modality is not None and modality.stackable
    several = frame.instance.frames > 1 or frame.tile is not ...
    own_scan = not has_position and (several or not stackable)
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


def _instance_order(frame: Frame) -> tuple:
    instance_number = number(frame.instance.header, "InstanceNumber")
    missing = instance_number is None
    return missing, 0 if missing else instance_number, natural(frame.instance.name), frame.index


def _stack(volume: Volume) -> Stack:
    """The geometry of a volume, from its first frame and the positions of all."""
    frames = volume.frames
    frame = frames[0]
    stack = Stack(frames, warnings=volume.warnings)
    step, origin, slice_mm = None, frame.position, frame.slice_mm
    if len(frames) > 1 and _has_position(frame):
        step, origin, slice_mm = _step_of(frames)
        if step is None and slice_mm is not None:
            stack.warnings.append(_uneven(frames))
        if slice_mm is None and text(frame.instance.header, "Modality") == "CT":
            stack.warnings.append(
                f"all its {len(frames)} slices are at one position: read as a clip, in instance order"
            )
        stack.warnings += _parts_in_time(frames)
    if frame.pixel_mm is not None:
        row_mm, column_mm = frame.pixel_mm
        stack.spacing_mm = round(slice_mm or 0.0, 4), round(row_mm, 4), round(column_mm, 4)
    if frame.orientation is not None:
        row_mm, column_mm = frame.pixel_mm or (1.0, 1.0)
        across = normal_of(frame) * (slice_mm or 1.0) if step is None else step
        stack.axes = np.stack([across, frame.orientation[3:] * row_mm, frame.orientation[:3] * column_mm], axis=1)
        known = frame.pixel_mm is not None and (len(frames) == 1 or step is not None)
        stack.origin = origin if known else None
    return stack


def without_frames(stack: Stack, frames: list[Frame]) -> Stack:
    """The stack of the frames that are left, in order, where others could not be decoded."""
    lost = len(stack.frames) - len(frames)
    warning = (
        f"{lost} of its {len(stack.frames)} slices could not be decoded and {'is' if lost == 1 else 'are'} missing"
    )
    rest = _stack(Volume(frames, [*stack.warnings, warning]))
    rest.left_out = stack.left_out
    return rest


def _step_of(frames: list[Frame]) -> tuple[np.ndarray | None, np.ndarray | None, float | None]:
    """(step from slice to slice, position of the first slice, distance between slices) of frames in order. Without one
    step for all, the step is None and the distance the median; for a clip at one position, all are None."""
    positions = np.array([frame.position for frame in frames])
    distances = np.diff(distances_of(frames))
    distances = distances[distances > _SAME_POSITION_MM]
    if not distances.size:
        return None, None, None
    # The least squares fit of positions = first + i * step.
    i = np.arange(len(frames)) - (len(frames) - 1) / 2
    step = i @ positions / (i @ i)
    fitted = positions.mean(axis=0) + np.outer(i, step)
    if np.linalg.norm(fitted - positions, axis=1).max() <= _OFF_THE_STEP_MM:
        return step, fitted[0], float(np.linalg.norm(step))
    return None, None, float(np.median(distances))


def _parts_in_time(frames: list[Frame]) -> list[str]:
    """A warning where a volume is of a few parts, one behind the other, that were acquired at different times."""
    times = [frame.clock[CLOCK_TIME] for frame in frames]
    if None in times:
        return []
    pauses = np.abs(np.diff(np.array(times, float)))
    pauses = pauses[pauses > _PAUSE_SECONDS]
    if not 0 < pauses.size <= _MOST_PAUSES:  # more: slices of several passes in turn
        return []
    return [f"its slices were acquired in {pauses.size + 1} parts, up to {pauses.max():,.0f} s apart"]


def _uneven(frames: list[Frame]) -> str:
    steps = np.diff(distances_of(frames))
    if steps.max() - steps.min() > 2 * _OFF_THE_STEP_MM:
        lengths = f"{steps.min():.4g} to {steps.max():.4g} mm"
        return f"the distance between its slices varies, {lengths}: slices may be missing, and it has no affine"
    return "its slices do not lie on a straight line, so it has no affine"
