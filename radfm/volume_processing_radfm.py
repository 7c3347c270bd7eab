"""Volumes for towers that read them: reoriented, resampled, cropped or padded.

Decisions:
- Reorienting, resampling with linear interpolation, cropping and padding work on each axis by itself. So where a
  prepared voxel comes from is three lists of positions ([`VolumeGrid`]), and only the voxels that are needed are ever
  computed. The same lists carry maps back.
- The voxels are those of MONAI's Orientation, Spacing, SpatialPad and CenterSpatialCrop: the centre of the first voxel
  stays where it is, and beyond the last one its value is repeated.
- What is not stated is assumed, and said: axes as in DICOM's usual axial slices, and the voxel size of the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_AXES = ("LR", "PA", "SI")  # the two directions of each axis of the patient, that of growing coordinates (LPS) first
_AXIS_NAMES = {"LR": "side to side", "PA": "front to back", "SI": "head to foot"}
# The directions in which slices, rows and columns of a plane usually grow.
_USUAL_DIRECTIONS = {"axial": "SPL", "coronal": "PIL", "sagittal": "LIP"}
_SLICES_AT_ONCE = 16
# Shares of depth, height and width: what is cropped at the sides of a slice is mostly air around the patient.
_MOST_PADDED, _MOST_CROPPED = 0.5, (0.05, 0.5, 0.5)
_SPARSE = 2  # times the distance between the model's slices


@dataclass(frozen=True)
class VolumeSettings:
    """How a scan becomes a volume.

    Args:
        size: depth, height and width in voxels; a depth of None: as deep as the scan is.
        spacing_mm: along depth, height and width.
        axes: the directions in which depth, height and width grow, such as "SPL" (superior, posterior, left), that of
            axial slices in DICOM; or "SRA", Merlin's.
        intensity_range: in Hounsfield units, mapped to 0 and 1. Other modalities are scaled between percentiles.
        overlap: share of a window, 0 to 1, that the next one shares with it where a scan is deeper than `size`; None:
            one window, in the middle.
        least_slices: scans with fewer slices are no volumes, nor are those in colour or without a distance between
            slices. 1: every scan is a volume.
        mean, std: for normalisation after scaling to 0 and 1.
    """

    size: Sequence[int | None]
    spacing_mm: Sequence[float]
    axes: str = "SPL"
    intensity_range: Sequence[float] = (-1000, 1000)
    overlap: float | None = None
    least_slices: int = 1
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        known = [set(axis) for axis in _AXES]
        if len(self.axes) != 3 or sorted(i for d in self.axes for i in range(3) if d in known[i]) != [0, 1, 2]:
            raise ValueError(f'axes are three directions of R or L, A or P, S or I, such as "SPL", not {self.axes!r}')
        if len(self.size) != 3 or None in self.size[1:] or len(self.spacing_mm) != 3:
            raise ValueError("size and spacing_mm of a volume are three numbers each: depth, height, width")
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise ValueError(f"overlap is a share of a window, at least 0 and below 1, not {self.overlap}")


@dataclass(frozen=True)
class VolumeGrid:
    """Where the voxels of a prepared volume are in a scan.

    Attributes:
        source_axes: for depth, height and width, the axis of the scan's pixels.
        positions: for depth, height and width, the position of each voxel along that axis; NaN for padding.
        windows: number of windows that lie behind one another in the depth.
        shape: slices, rows and columns of the scan.
        directions: in which they grow, as `VolumeSettings.axes`; stated or assumed.
        spacing_mm: between them; stated or assumed.
    """

    source_axes: tuple[int, int, int]
    positions: tuple[np.ndarray, np.ndarray, np.ndarray]
    windows: int
    shape: tuple[int, int, int]
    directions: str
    spacing_mm: tuple[float, float, float]

    def sample(self, pixels: np.ndarray) -> Tensor:
        """(slices, H, W) of the scan -> (windows * depth, height, width) float32, with NaN for padding."""
        volume = torch.from_numpy(np.require(pixels, requirements="W")).permute(self.source_axes)  # stored ones are not
        depth = torch.from_numpy(self.positions[0])
        parts = [
            interpolated(interpolated(interpolated(volume, 0, some), 1, self.positions[1]), 2, self.positions[2])
            for some in depth.split(_SLICES_AT_ONCE)
        ]
        return torch.cat(parts)

    def back(self, values: np.ndarray, at: Mapping[int, Sequence[float] | np.ndarray] | None = None) -> np.ndarray:
        """(windows * d, h, w) over the whole prepared volume, of any resolution -> (slices, H, W) over the scan.

        It is 0 where the scan was cropped, and the largest where windows overlap.

        Args:
            at: axis of the scan -> the positions along it, in voxels, that are wanted; of other axes all voxels.
        """
        wanted = [np.asarray((at or {}).get(axis, np.arange(size))) for axis, size in enumerate(self.shape)]
        merged = np.zeros([len(voxels) for voxels in wanted], np.float32)
        for coarse, of_window in zip(np.split(values, self.windows), self.positions_of_windows, strict=True):
            volume = torch.from_numpy(coarse)
            for axis, positions in enumerate(of_window):
                voxels = _indices_at(wanted[self.source_axes[axis]], positions)
                cells = (voxels + 0.5) * coarse.shape[axis] / len(positions) - 0.5
                volume = interpolated(volume, axis, cells)
            volume = volume.permute(*np.argsort(self.source_axes)).nan_to_num(0)
            np.maximum(merged, volume.numpy(), out=merged)
        return merged

    @property
    def positions_of_windows(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """`positions` of each window."""
        _, height, width = self.positions
        return [(depth, height, width) for depth in np.split(self.positions[0], self.windows)]

    @property
    def extents(self) -> list[tuple[tuple[float, float], ...]]:
        """Of each window where its first and last voxel end: (from, to) along slices, rows and columns, in voxels.

        It lies within the scan: 0 is where the first voxel begins, and padding is left out.
        """
        extents = []
        for window in self.positions_of_windows:
            of_axes: list[tuple[float, float]] = [(0.0, 0.0)] * 3
            for source, positions in zip(self.source_axes, window, strict=True):
                low, high, half = np.nanmin(positions), np.nanmax(positions), _half_step(positions)
                size = self.shape[source]
                of_axes[source] = max(0.0, float(low - half + 0.5)), min(float(size), float(high + half + 0.5))
            extents.append(tuple(of_axes))
        return extents

    @property
    def source_slices(self) -> list[int]:
        """The slice of the scan that is nearest to each prepared slice; the middle one if those cross all slices."""
        if self.source_axes[0] != 0:
            return [self.shape[0] // 2] * len(self.positions[0])
        known = np.flatnonzero(~np.isnan(self.positions[0]))
        nearest = np.interp(np.arange(len(self.positions[0])), known, self.positions[0][known])
        return np.rint(nearest).astype(int).tolist()


def volume_grid(scan: Any, settings: VolumeSettings) -> VolumeGrid:
    """Where the voxels of a scan's prepared volume are.

    Args:
        scan: has `pixels` (slices, H, W) and, as far as known, `spacing_mm`, `affine` and `plane`.
    """
    shape: tuple[int, int, int] = scan.pixels.shape[:3]
    directions, spacing_mm = _directions(scan), _spacing_mm(scan)
    axes: list[int] = []
    positions: list[np.ndarray] = []
    windows = 1
    for target in range(3):
        letters = next(axis for axis in _AXES if settings.axes[target] in axis)
        source = next(i for i, direction in enumerate(directions) if direction in letters)
        size, mm = settings.size[target], settings.spacing_mm[target]
        step = mm / (spacing_mm[source] or mm)
        resampled = round((shape[source] - 1) / step + 1)
        if target == 0:
            starts = _windows(resampled, size, settings.overlap)
            windows = len(starts)
        else:
            starts = [_centred(resampled, size)]
        index = np.concatenate([start + np.arange(size or resampled) for start in starts])
        along = np.minimum(index * step, shape[source] - 1).astype(np.float64)
        along[(index < 0) | (index >= resampled)] = np.nan
        axes.append(source)
        positions.append(along if directions[source] == settings.axes[target] else shape[source] - 1 - along)
    depth, height, width = positions
    assumed = dict(zip(axes, settings.spacing_mm, strict=True))
    slices_mm, rows_mm, columns_mm = (float(mm or assumed[axis]) for axis, mm in enumerate(spacing_mm))
    source_axes, positions_ = (axes[0], axes[1], axes[2]), (depth, height, width)
    return VolumeGrid(source_axes, positions_, windows, shape, directions, (slices_mm, rows_mm, columns_mm))


def volume_warnings(scan: Any, settings: VolumeSettings) -> list[str]:
    """What was assumed of a scan, or left out of it, one sentence each."""
    warnings = []
    grid, spacing_mm = volume_grid(scan, settings), _spacing_mm(scan)
    if getattr(scan, "affine", None) is None and len(scan.pixels) > 1:
        usual = "as usual for its plane" if scan.plane in _USUAL_DIRECTIONS else "as in axial slices from feet to head"
        warnings.append(f"the directions of its axes are not stated: they are taken {usual}")
    if not all(spacing_mm):
        assumed = " x ".join(f"{mm:g}" for mm in settings.spacing_mm)
        warnings.append(f"its voxel size is not known in full: the model's ({assumed} mm) is taken in its place")
    padded, cropped, sparse = [], [], []
    for axis, (positions, source) in enumerate(zip(grid.positions, grid.source_axes, strict=True)):
        name, model_mm, mm = axis_name(settings.axes[axis]), settings.spacing_mm[axis], spacing_mm[source]
        known = positions[~np.isnan(positions)]
        if (padding := 1 - len(known) / len(positions)) > _MOST_PADDED:
            padded.append(f"{padding:.0%} from {name}")
        if (lost := 1 - (np.ptp(known) + 1) / grid.shape[source]) > _MOST_CROPPED[axis]:
            cropped.append(f"{lost:.0%} from {name}")
        if round(mm, 1) > _SPARSE * model_mm:
            between = ("slices", "rows", "columns")[source]
            sparse.append(f"{mm:.1f} mm lie between its {between}, {model_mm:g} mm between the model's: interpolated")
    if padded:
        warnings.append(f"it is smaller than the volume that the model reads: {' and '.join(padded)} is padding")
    if cropped:
        warnings.append(f"it is larger than the volume that the model reads: {' and '.join(cropped)} is cropped")
    return warnings + sparse


def axis_name(direction: str) -> str:
    """The axis of the patient with this direction, in words: "head to foot", "front to back" or "side to side"."""
    return _AXIS_NAMES[next(axis for axis in _AXES if direction in axis)]


def interpolated(volume: Tensor, axis: int, positions: np.ndarray | Tensor) -> Tensor:
    """Values at positions along an axis, by linear interpolation, in float32; NaN at a position that is NaN."""
    positions = torch.as_tensor(positions, dtype=torch.float64)
    last = volume.shape[axis] - 1
    inside = positions.nan_to_num(0).clamp(0, last)
    below = inside.floor().long()
    shape = [-1 if i == axis else 1 for i in range(volume.ndim)]
    share = (inside - below).float().view(shape)
    low = volume.index_select(axis, below).float()
    values = low if not share.any() else low.lerp(volume.index_select(axis, (below + 1).clamp(max=last)).float(), share)
    if positions.isnan().any():
        values = values.masked_fill(positions.isnan().view(shape), torch.nan)
    return values


def _windows(voxels: int, size: int | None, overlap: float | None) -> list[int]:
    """Where each window begins; windows are evenly spaced and end with the last voxel."""
    if size is None:
        return [0]
    if overlap is None or voxels <= size:
        return [_centred(voxels, size)]
    count = int(np.ceil((voxels - size) / (size * (1 - overlap)))) + 1
    return [round(start) for start in np.linspace(0, voxels - size, count)]


def _centred(voxels: int, size: int | None) -> int:
    """Where a window in the middle begins; below zero where there are fewer voxels."""
    if size is None:
        return 0
    return voxels // 2 - size // 2 if voxels >= size else -((size - voxels) // 2)


def _directions(scan: Any) -> str:
    """The direction in which slices, rows and columns grow, one letter each."""
    affine = getattr(scan, "affine", None)
    if affine is None:
        return _USUAL_DIRECTIONS.get(scan.plane, _USUAL_DIRECTIONS["axial"])
    cosines = np.asarray(affine, dtype=float)[:3, :3]
    cosines = cosines / np.maximum(np.linalg.norm(cosines, axis=0), 1e-9)
    letters, remaining = [""] * 3, {0, 1, 2}
    for source in np.argsort(-np.abs(cosines).max(0)):  # the axes that are least oblique choose first
        patient = max(remaining, key=lambda axis: abs(cosines[axis, source]))
        remaining.remove(patient)
        letters[source] = _AXES[patient][int(cosines[patient, source] < 0)]
    return "".join(letters)


def _spacing_mm(scan: Any) -> tuple[float, float, float]:
    """Between slices, rows and columns; 0 where unknown. It is rounded in a scan, and not in its affine."""
    slices, rows, columns = (float(mm or 0) for mm in getattr(scan, "spacing_mm", None) or (0, 0, 0))
    affine = getattr(scan, "affine", None)
    if affine is not None:
        exact = np.linalg.norm(affine[:3, :3], axis=0)
        if np.allclose(exact, (slices, rows, columns), rtol=1e-3):
            slices, rows, columns = exact.tolist()
    return slices, rows, columns


def _indices_at(voxels: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """For each voxel of a scan's axis, its index among prepared ones; NaN where it was cropped.

    Args:
        positions: of the prepared voxels along that axis.
    """
    known = np.flatnonzero(~np.isnan(positions))
    at, index = positions[known], known.astype(float)
    order = np.argsort(at, kind="stable")
    found = np.interp(voxels, at[order], index[order])
    half = _half_step(positions)
    outside = (voxels <= at[order][0] - half - 0.5) | (voxels >= at[order][-1] + half + 0.5)
    return np.where(outside, np.nan, found)


def _half_step(positions: np.ndarray) -> float:
    """Half of the distance between prepared voxels, in voxels of the scan."""
    known = positions[~np.isnan(positions)]
    return 0.5 * float(np.ptp(known)) / max(len(known) - 1, 1)
