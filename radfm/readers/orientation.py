"""Puts volumes into one slice order and orientation, so that the same volume gives the same scan from any format.

Decisions, in patient coordinates (L: left, P: posterior, S: superior, as in DICOM):
- Slices follow each other from right to left (sagittal), front to back (coronal), feet to head (axial).
- Slices are displayed by radiological convention: the patient's right is on the left of axial and coronal slices, the
  front on the left of sagittal ones. The front is at the top of axial slices, the head at the top of the others.
- Axes are swapped and flipped only; nothing is resampled. An oblique volume is treated as the nearest orthogonal one.
- A plane further than 37 degrees (cosine 0.8) from the nearest anatomical one is called "oblique".
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np

_PLANES = ("sagittal", "coronal", "axial")  # by the patient axis nearest to the slice normal: L, P, S
_ROWS_AND_COLUMNS = ((2, 1), (2, 0), (1, 0))  # for each plane, the patient axes down the rows and along the columns
_OBLIQUE_BELOW = 0.8
_ANISOTROPIC_ABOVE = 1.05


@dataclass
class Slices:
    """A volume in the slice order and orientation of a scan.

    Attributes:
        pixels: a view, (slices, H, W) or (slices, H, W, 3).
        plane: "axial", "coronal", "sagittal" or "oblique".
        spacing_mm: between slices, rows and columns.
        affine: (4, 4) from (slice, row, column, 1) to L, P, S in mm; None where the volume's origin is unknown.
    """

    pixels: np.ndarray
    plane: str
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray | None


def lay_out(volume: np.ndarray, axes: np.ndarray, slice_axis: int, origin: np.ndarray | None = None) -> Slices:
    """Reorder and flip the axes of a volume.

    Args:
        volume: three spatial axes in any order and direction; a fourth one of colours may follow.
        axes: (3, 3); column i is the step along axis i in mm, in L, P, S.
        slice_axis: the axis of the volume along which the slices follow each other.
        origin: (3,) position of the volume's first voxel in mm, in L, P, S; None where unknown.
    """
    spacing = np.linalg.norm(axes, axis=0)
    directions = axes / spacing
    order = max(permutations(range(3)), key=lambda p: sum(abs(directions[p[i], i]) for i in range(3)))
    axis_of = {patient: axis for axis, patient in enumerate(order)}  # patient axis -> axis of the volume
    across = order[slice_axis]
    chosen = [slice_axis, *(axis_of[patient] for patient in _ROWS_AND_COLUMNS[across])]
    volume = volume.transpose(*chosen, *range(3, volume.ndim))
    steps = [-1 if directions[order[axis], axis] < 0 else 1 for axis in chosen]
    if order[chosen[1]] == 2:  # the head is at the top
        steps[1] = -steps[1]
    flipped = volume[:: steps[0], :: steps[1], :: steps[2]]
    slice_mm, row_mm, column_mm = (round(float(spacing[axis]), 4) for axis in chosen)
    affine = None
    if origin is not None and np.isfinite(origin).all():
        last = np.array([n - 1 if step < 0 else 0 for n, step in zip(volume.shape[:3], steps, strict=True)])
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = axes[:, chosen] * steps, origin + axes[:, chosen] @ last
    return Slices(flipped, plane_of(directions[:, slice_axis]), (slice_mm, row_mm, column_mm), affine)


def plane_of(normal: np.ndarray) -> str:
    """The plane whose normal, a unit vector in L, P, S, is given."""
    across = int(np.argmax(np.abs(normal)))
    return _PLANES[across] if abs(normal[across]) >= _OBLIQUE_BELOW else "oblique"


def acquired_axis(shape: tuple[int, ...], axes: np.ndarray, hint: int | None = None) -> int:
    """The axis of a volume along which its slices were acquired.

    The axis of length 1 where there is exactly one; else the axis with the largest spacing, if it is 5% above the next;
    else `hint`, the axis that the header states; else the axis nearest to feet-head, so that an isotropic volume is
    read in axial slices.
    """
    if sum(n == 1 for n in shape[:3]) == 1:
        return shape.index(1)
    spacing = np.linalg.norm(axes, axis=0)
    _, second, largest = np.sort(spacing)
    if largest > _ANISOTROPIC_ABOVE * second:
        return int(np.argmax(spacing))
    if hint is not None:
        return hint
    return int(np.argmax(np.abs(axes[2]) / spacing))
