"""Pictures of a scan with and without a saliency map: one slice, or three planes through a scan read as a volume.

    >>> for view in views(explanation, 0, explanation.peak(0)):
    ...     view.overlaid.save(f"{view.plane.name}.png")

Decisions:
- The plane of acquisition comes first. A scan that was read slice by slice has this one alone, shown as it is stored.
- The planes of a volume are shown as radiologists look at them: from the feet, the front, and the left. An oblique
  scan is cut along its own axes, each of which counts as the nearest one of the patient.
- Pixels are resampled to squares in mm, so that the proportions are those of the anatomy. The planes of a volume have
  one scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from radfm.cases import Scan
from radfm.data_prep.pictures import ct_window, to_uint8
from radfm.eval.saliency import Explanation, overlay
from radfm.volume_processing_radfm import VolumeGrid

_SIDE = 448  # pixels of the longest side of a scan's pictures
_AXES = {"axial": "SI", "coronal": "PA", "sagittal": "LR"}  # plane -> the directions that it does not show
_SHOWN = {"axial": "PL", "coronal": "IL", "sagittal": "IP"}  # plane -> the directions downwards and to the right
_OPPOSITE = {"S": "I", "I": "S", "P": "A", "A": "P", "L": "R", "R": "L"}
_WHOLE = 0.97  # share of a side of a picture: an outline along all four sides shows nothing


@dataclass(frozen=True)
class Plane:
    """How slices through a scan are cut and shown.

    Attributes:
        name: "axial", "coronal", "sagittal"; "" for slices as they are stored.
        axes: of the scan's pixels: through the plane, downwards, and to the right.
        flipped: whether downwards and to the right are against the order of the pixels.
        spacing_mm: downwards, and to the right.
    """

    name: str
    axes: tuple[int, int, int]
    flipped: tuple[bool, bool]
    spacing_mm: tuple[float, float]

    def size_mm(self, shape: Sequence[int]) -> tuple[float, float]:
        """Width and height of a slice through a scan of this shape."""
        (_, down, across), (down_mm, across_mm) = self.axes, self.spacing_mm
        return shape[across] * across_mm, shape[down] * down_mm

    def cut(self, voxels: np.ndarray, index: int) -> np.ndarray:
        """(slices, H, W) or (slices, H, W, 3) -> one slice, turned as it is shown."""
        through, down, across = self.axes
        slice_ = np.take(voxels, index, axis=through)
        slice_ = slice_ if down < across else slice_.swapaxes(0, 1)
        return slice_[tuple(slice(None, None, -1 if flipped else 1) for flipped in self.flipped)]

    def rectangle(
        self, box: Sequence[tuple[float, float]], shape: Sequence[int], size: tuple[int, int]
    ) -> tuple[float, float, float, float]:
        """Left, top, width and height of a box on a picture, pixels.

        Args:
            box: from where to where along each axis of the scan, voxels.
            shape: slices, rows and columns of the scan.
            size: width and height of the picture.
        """
        sides = []
        for axis, flipped, length in zip(self.axes[1:], self.flipped, size[::-1], strict=True):
            low, high = (end / shape[axis] for end in box[axis])
            sides.append((round(length * (1 - high if flipped else low), 1), round(length * (high - low), 1)))
        (top, height), (left, width) = sides
        return left, top, width, height


@dataclass
class View:
    """One slice through a scan, ready to be shown.

    Attributes:
        index: of the slice along the first of `plane.axes`.
        count: of slices along it.
        point: where the planes through the voxel cross, to the right and downwards in pixels of the picture.
        overlaid: `plain` with the map in colour.
        edges: the directions of the patient at the top and at the left edge, one letter each; None where not stated.
        windows: left, top, width and height of each window that the model read there, in pixels of the picture;
            without those along its border.
    """

    plane: Plane
    index: int
    count: int
    point: tuple[float, float]
    plain: Image.Image
    overlaid: Image.Image
    edges: tuple[str, str] | None
    windows: list[tuple[float, ...]]


def views(explanation: Explanation, number: int, point: Sequence[int]) -> list[View]:
    """The slices of a scan through one of its voxels.

    Args:
        number: of the scan in its case, from 0.
        point: slice, row and column; of a scan that was read slice by slice the slice alone matters.
    """
    scan, grid = explanation.scans[number], explanation.grid(number)
    shown, found = planes(scan, grid), []
    longest_mm = max(max(plane.size_mm(scan.pixels.shape)) for plane in shown)
    for plane in shown:
        through = plane.axes[0]
        index, count = int(point[through]), scan.pixels.shape[through]
        plain = picture(scan, plane, index, _SIDE / longest_mm)
        saliency_map = plane.cut(explanation.cut(number, through, index), 0)
        middle = plane.rectangle([(at + 0.5, at + 0.5) for at in point], scan.pixels.shape, plain.size)
        coloured, windows = overlaid(plain, saliency_map), _windows(grid, plane, index, plain.size)
        found.append(View(plane, index, count, middle[:2], plain, coloured, _edges(scan, plane), windows))
    return found


def planes(scan: Scan, grid: VolumeGrid | None) -> list[Plane]:
    """The planes in which a scan is shown, that of its slices first.

    Args:
        grid: of a scan that was read as a volume; None: its slices alone are shown.
    """
    if grid is None:
        return [Plane("", (0, 1, 2), (False, False), scan.spacing_mm[1:] if scan.spacing_mm else (1.0, 1.0))]
    found = []
    for name, shown in _SHOWN.items():
        through, down, across = (
            next(axis for axis, direction in enumerate(grid.directions) if direction in (letter, _OPPOSITE[letter]))
            for letter in (_AXES[name][0], *shown)
        )
        flipped = grid.directions[down] != shown[0], grid.directions[across] != shown[1]
        found.append(Plane(name, (through, down, across), flipped, (grid.spacing_mm[down], grid.spacing_mm[across])))
    return sorted(found, key=lambda plane: plane.axes[0])


def picture(scan: Scan, plane: Plane, index: int, pixels_per_mm: float) -> Image.Image:
    """A slice in its window, with square pixels."""
    pixels = plane.cut(scan.pixels, index)
    if pixels.dtype != np.uint8:
        pixels = to_uint8(pixels, *(ct_window(scan) or np.percentile(pixels.astype(np.float32), (0.5, 99.5))))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    width, height = (max(1, round(mm * pixels_per_mm)) for mm in plane.size_mm(scan.pixels.shape))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def overlaid(plain: Image.Image, saliency_map: np.ndarray) -> Image.Image:
    """A picture with the map (H, W) of its slice in colour."""
    fitted = Image.fromarray(np.ascontiguousarray(saliency_map)).resize(plain.size, Image.Resampling.BICUBIC)
    return Image.fromarray(overlay(np.asarray(plain), np.clip(np.asarray(fitted), 0, 1)))


def _edges(scan: Scan, plane: Plane) -> tuple[str, str] | None:
    if not plane.name or scan.affine is None:
        return None
    shown = _SHOWN[plane.name]
    return _OPPOSITE[shown[0]], _OPPOSITE[shown[1]]


def _windows(grid: VolumeGrid | None, plane: Plane, index: int, size: tuple[int, int]) -> list[tuple[float, ...]]:
    """The windows that a slice crosses, each once, as `View.windows`."""
    if grid is None:
        return []
    through = plane.axes[0]
    crossed = [extent for extent in grid.extents if extent[through][0] < index + 1 and index < extent[through][1]]
    found = dict.fromkeys(plane.rectangle(extent, grid.shape, size) for extent in crossed)
    return [sides for sides in found if sides[2] < _WHOLE * size[0] or sides[3] < _WHOLE * size[1]]
