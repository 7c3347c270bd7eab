"""The anatomy of a patient: a cube of voxels. Each voxel belongs to a structure, and each structure has a tissue.

Decisions:
- Coordinates are millimetres from the centre of the cube: x to the patient's left, y to the back, z to the head.
  Arrays are (z, y, x), so that axial slices run from feet to head, with the front on top and the right on the left.
- Shapes are painted over each other in deformed coordinates, so that no organ is an exact ellipsoid and neighbours
  still fit.
- A structure is a named part of the anatomy ("left kidney cortex"), not a tissue. Lesions are positioned by structure.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise

import numpy as np

from radfm.data_prep.phantoms.fields import displacement, solid_noise
from radfm.data_prep.phantoms.tissues import tissue

Box = tuple[slice, slice, slice]
Point = tuple[float, float, float]  # x, y, z in mm


class Volume:
    """A labelled cube.

    Attributes:
        labels: (n, n, n) uint16, index of the structure; 0 is the air around the patient.
        names: the structures' names.
        properties: one row per structure, one column per `tissues.PROPERTIES`.
        x, y, z: (n, n, n) float32, coordinates of voxel centres in the anatomy, mm; deformed, so not a regular grid.
        spacing_mm: edge of a voxel.
        mirrored: whether a left knee or breast has been made a right one.
    """

    def __init__(self, size: int, field_of_view_mm: float, rng: np.random.Generator, bend_mm: float = 4.0):
        self.size, self.rng, self.mirrored = size, rng, False
        self.spacing_mm = field_of_view_mm / size
        axis = ((np.arange(size) - (size - 1) / 2) * self.spacing_mm).astype(np.float32)
        self.bend_mm = bend_mm
        bend = np.float32(bend_mm / 2)
        bent = [np.clip(displacement(rng, size), -2, 2) * bend for _ in range(3)]
        self.x = axis[None, None, :] + bent[0]
        self.y = axis[None, :, None] + bent[1]
        self.z = axis[:, None, None] + bent[2]
        self.labels = np.zeros((size,) * 3, np.uint16)
        self.names: list[str] = ["air"]
        self.rows: list[np.ndarray] = [tissue("air")]

    @property
    def properties(self) -> np.ndarray:
        return np.stack(self.rows)

    def noise(self, grain_mm: float) -> np.ndarray:
        """Solid noise over the whole cube, standard deviation 1."""
        return solid_noise(self.rng, self.labels.shape, grain_mm / self.spacing_mm)

    def structure(self, name: str, row: np.ndarray | str) -> int:
        """The label of a structure, added if it does not exist. row: name of a tissue, or its properties."""
        if name not in self.names:
            self.names.append(name)
            self.rows.append(tissue(row) if isinstance(row, str) else row)
        return self.names.index(name)

    def ids(self, patterns: str | Iterable[str]) -> list[int]:
        """Labels of the structures whose name matches a pattern such as "*kidney*"; several are separated by |.

        A diseased structure, "pus in liver", matches by its host, or by a pattern that contains " in ".
        """
        patterns = patterns.split("|") if isinstance(patterns, str) else list(patterns)
        hosts = [name.rpartition(" in ")[2] for name in self.names]
        named = zip(self.names, hosts, strict=True)
        return [
            i
            for i, (name, host) in enumerate(named)
            if any(fnmatchcase((host, name)[" in " in p], p) for p in patterns)
        ]

    def where(self, patterns: str | Iterable[str], box: Box = (slice(None),) * 3) -> np.ndarray:
        """Whether a voxel belongs to one of the structures: bool, shape of the box."""
        chosen = np.zeros(len(self.names), bool)
        chosen[self.ids(patterns)] = True
        return chosen[self.labels[box]]

    def paint(
        self,
        name: str,
        made_of: str,
        inside: np.ndarray,
        box: Box = (slice(None),) * 3,
        only: str | None = None,
    ) -> None:
        """Assigns the voxels of `box` that are `inside` to a structure. only: patterns of structures to replace."""
        label = self.structure(name, made_of)
        if only is not None:
            inside = inside & self.where(only, box)
        self.labels[box][inside] = label

    def box(self, low: Sequence[float], high: Sequence[float]) -> Box:
        """A box of voxels that contains all coordinates between two corners."""
        margin = self.bend_mm + self.spacing_mm
        edges = []
        for a, b in zip(reversed(low), reversed(high), strict=True):
            first = int(np.floor((a - margin) / self.spacing_mm + (self.size - 1) / 2))
            last = int(np.ceil((b + margin) / self.spacing_mm + (self.size - 1) / 2)) + 1
            edges.append(slice(min(max(first, 0), self.size), min(max(last, 0), self.size)))
        return edges[0], edges[1], edges[2]

    def ellipsoid(
        self,
        name: str,
        made_of: str,
        centre: Point,
        radii: Point,
        only: str | None = None,
        turn: Point = (0.0, 0.0, 0.0),
        power: float = 2.0,
    ) -> None:
        """Paints an ellipsoid. turn: degrees about x, y and z. power: above 2, the shape approaches a box."""
        reach = (max(radii),) * 3 if any(turn) else radii
        low = [c - r for c, r in zip(centre, reach, strict=True)]
        high = [c + r for c, r in zip(centre, reach, strict=True)]
        box = self.box(low, high)
        inside = self.radius(centre, radii, box, turn, power) < 1
        self.paint(name, made_of, inside, box, only)

    def radius(self, centre: Point, radii: Point, box: Box, turn: Point = (0.0, 0.0, 0.0), power: float = 2.0):
        """A power of the distance from an ellipsoid's centre, 1 on its surface: float32, shape of the box."""
        d = [a[box] - np.float32(c) for a, c in zip((self.x, self.y, self.z), centre, strict=True)]
        if any(turn):
            m = rotation(turn).astype(np.float32)
            d = [m[i, 0] * d[0] + m[i, 1] * d[1] + m[i, 2] * d[2] for i in range(3)]
        if power == 2:
            return sum((a * np.float32(1 / r)) ** 2 for a, r in zip(d, radii, strict=True))
        return sum(np.abs(a * np.float32(1 / r)) ** np.float32(power) for a, r in zip(d, radii, strict=True))

    def tube(
        self,
        name: str,
        made_of: str,
        points: Sequence[Point],
        radius: float | Sequence[float],
        only: str | None = None,
    ) -> None:
        """Paints a tube through points. radius: mm, one or one for each point; at least about half a voxel."""
        radii = [float(radius)] * len(points) if isinstance(radius, int | float) else list(radius)
        radii = [max(r, 0.55 * self.spacing_mm) for r in radii]
        for (a, b), (ra, rb) in zip(pairwise(points), pairwise(radii), strict=True):
            r = max(ra, rb)
            box = self.box(
                [min(p, q) - r for p, q in zip(a, b, strict=True)],
                [max(p, q) + r for p, q in zip(a, b, strict=True)],
            )
            self.paint(name, made_of, self._along(a, b, ra, rb, box), box, only)

    def _along(self, a: Point, b: Point, ra: float, rb: float, box: Box) -> np.ndarray:
        d = [c[box] - np.float32(p) for c, p in zip((self.x, self.y, self.z), a, strict=True)]
        v = np.subtract(b, a).astype(np.float32)
        t = np.clip((d[0] * v[0] + d[1] * v[1] + d[2] * v[2]) / max(float(v @ v), 1e-6), 0, 1)
        distance = sum((c - t * w) ** 2 for c, w in zip(d, v, strict=True))
        return distance < (np.float32(ra) + t * np.float32(rb - ra)) ** 2


def rotation(turn_degrees: Point) -> np.ndarray:
    """The matrix that turns about x, then y, then z: (3, 3)."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(np.radians(turn_degrees)), np.sin(np.radians(turn_degrees))
    about_x = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_z = np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
