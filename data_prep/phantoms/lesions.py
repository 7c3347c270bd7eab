"""Grows the lesions of a disorder in an anatomy: position, size, shape and tissues.

Decisions:
- A shape is a field that is 0 in the centre and 1 on the surface of a lesion. The parts of a disorder are shells of the
  field, so that core, rim and oedema fit any shape.
- A diseased voxel becomes a structure of its own, "tissue in host", with the host's properties where the tissue has
  none.
"""

import numpy as np
from scipy.ndimage import distance_transform_edt

from radfm.data_prep.phantoms.disorders import Disorder
from radfm.data_prep.phantoms.fields import solid_noise
from radfm.data_prep.phantoms.tissues import tissue
from radfm.data_prep.phantoms.volume import Box, Volume, rotation

ALL: Box = (slice(None),) * 3


def grow(v: Volume, what: Disorder, rng: np.random.Generator, side: str) -> np.ndarray:
    """Paints the lesions of a disorder, and returns their voxels, (n, n, n) bool; none where the site is missing."""
    grown = np.zeros(v.labels.shape, bool)
    if not what.parts:
        return v.where(what.organ.replace("{side}", side)) if what.organ else grown
    site = _site(v, what, side)
    if not len(site):
        return grown
    healthy = v.labels.copy()
    strength = rng.uniform(0.85, 1.0)
    shape, _, argument = what.shape.partition(":")
    for _ in range(int(rng.integers(int(what.count[0]), int(what.count[1]) + 1))):
        box, field = SHAPES[shape](v, what, site, rng, argument.replace("{side}", side))
        for part in what.parts:
            allowed = v.where(part.within.replace("{side}", side), box)
            inside = (field >= part.inner) & (field < part.outer) & allowed
            _turn_into(v, part.tissue, inside, box, healthy, strength)
            grown[box] |= inside
    return grown


def _site(v: Volume, what: Disorder, side: str) -> np.ndarray:
    """Indices of voxels in which a lesion may start: (voxels, 3)."""
    voxels = np.argwhere(v.where(what.site.replace("{side}", side)))
    if not len(voxels) or not what.where:
        return voxels
    low, high = voxels.min(0), voxels.max(0)
    share = (voxels - low) / np.maximum(high - low, 1)
    keep = np.zeros(len(voxels), bool)
    for alternative in what.where.split("|"):
        held = np.ones(len(voxels), bool)
        for term in alternative.split():
            along = share[:, "zyx".index(term[0])]
            held &= along > float(term[2:]) if term[1] == ">" else along < float(term[2:])
        keep |= held
    return voxels[keep] if keep.any() else voxels


def _turn_into(v: Volume, name: str, inside: np.ndarray, box: Box, healthy: np.ndarray, strength: float) -> None:
    changed, row = v.labels[box], tissue(name)
    for host in np.unique(healthy[box][inside]):
        base = v.rows[host]
        if np.isnan(row).any():
            mixed = np.where(np.isnan(row), base, base + strength * (row - base))
        else:
            mixed = base + strength * (row - base)
        label = v.structure(f"{name} in {v.names[host]}", mixed.astype(np.float32))
        changed[inside & (healthy[box] == host)] = label


def _size(span: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(*np.log(span))))


def _seed(v: Volume, site: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return site[rng.integers(len(site))]


def _around(v: Volume, at: np.ndarray, reach_mm: float) -> tuple[Box, list[np.ndarray]]:
    """A box around a voxel, and in it the distances along z, y and x in mm (three arrays that broadcast)."""
    steps = int(np.ceil(reach_mm / v.spacing_mm)) + 1
    spans = [slice(max(0, a - steps), min(v.size, a + steps + 1)) for a in at]
    distance = [(np.arange(s.start, s.stop) - a) * np.float32(v.spacing_mm) for s, a in zip(spans, at, strict=True)]
    return (spans[0], spans[1], spans[2]), [a.astype(np.float32) for a in np.ix_(*distance)]


def _roughened(field: np.ndarray, v: Volume, what: Disorder, rng, grain_mm: float) -> np.ndarray:
    if not what.rough:
        return field
    noise = solid_noise(rng, field.shape, max(1.0, grain_mm / v.spacing_mm))
    return field * np.exp(np.float32(0.45 * what.rough) * np.clip(noise, -2, 2))


def _blob(v, what, site, rng, argument):
    """An ellipsoid around a voxel of the site."""
    at, diameter = _seed(v, site, rng), _size(what.size_mm, rng)
    r = max(diameter / 2, 0.75 * v.spacing_mm)
    reach = max(part.outer for part in what.parts)
    box, (z, y, x) = _around(v, at, r * reach * (1 + what.aspect) * (1 + 0.9 * what.rough))
    turn = rotation(tuple(rng.uniform(0, 180, 3))).astype(np.float32)
    radii = r * (1 + what.aspect * rng.uniform(-1, 1, 3))
    field = np.zeros(np.broadcast_shapes(z.shape, y.shape, x.shape), np.float32)
    for row, radius in zip(turn, radii, strict=True):
        field = field + ((row[0] * x + row[1] * y + row[2] * z) / np.float32(radius)) ** 2
    return box, _roughened(np.sqrt(field), v, what, rng, r * 0.45)


def _organ(v, what, site, rng, argument):
    """The whole site."""
    field = np.full(v.labels.shape, 9, np.float32)
    field[tuple(site.T)] = 0.5
    return ALL, field


def _swollen(v, what, site, rng, argument):
    """The whole site, and what lies within `size_mm` around it."""
    low, high = site.min(0), site.max(0)
    steps = int(what.size_mm[1] / v.spacing_mm) + 2
    box = tuple(slice(max(0, a - steps), b + steps + 1) for a, b in zip(low, high, strict=True))
    inside = np.zeros(v.labels.shape, bool)
    inside[tuple(site.T)] = True
    distance = distance_transform_edt(~inside[box]).astype(np.float32) * np.float32(v.spacing_mm)
    return box, _roughened(distance / np.float32(_size(what.size_mm, rng)) + 0.01, v, what, rng, 7.0)


def _layer(v, what, site, rng, argument):
    """A lens on the structures `argument`, `size_mm` across and `thick_mm` thick, in the site near them."""
    near = v.where(argument)
    across, thick = _size(what.size_mm, rng) / 2, _size(what.thick_mm, rng)
    candidates = [_seed(v, site, rng) for _ in range(40)]
    at = candidates[0]
    for candidate in candidates:  # one that touches the surface
        lump = tuple(slice(max(0, a - 3), a + 4) for a in candidate)
        if near[lump].any():
            at = candidate
            break
    box, (z, y, x) = _around(v, at, across)
    if not near[box].any():
        return box, np.full(near[box].shape, 9, np.float32)
    depth = distance_transform_edt(~near[box]).astype(np.float32) * np.float32(v.spacing_mm)
    room = 1 - (x * x + y * y + z * z) / np.float32(across * across)
    field = depth / (np.float32(thick) * np.sqrt(np.clip(room, 1e-4, 1)))
    same_side = np.sign(v.x[box]) == np.sign(v.x[tuple(at)])
    return box, _roughened(np.where((room > 0) & same_side, field, 9), v, what, rng, 9.0)


def _pool(v, what, site, rng, argument):
    """Fluid at the bottom of the site, `size_mm` deep at the wall and a little less in the middle."""
    return ALL, _level(v, what, site, rng, 1)


def _cap(v, what, site, rng, argument):
    """Gas at the top of the site, and along its outer wall."""
    return ALL, _level(v, what, site, rng, -1)


def _level(v, what, site, rng, down: int) -> np.ndarray:
    height = _size(what.size_mm, rng)
    z, x = v.z[tuple(site.T)], np.abs(v.x[tuple(site.T)])
    wall = np.percentile(x, 97)
    rise = 0.55 * np.clip(x - (wall - 55), 0, 60)
    edge = z.min() + height + rise if down > 0 else z.max() - height - rise
    field = np.full(v.labels.shape, 9, np.float32)
    field[tuple(site[(z < edge) if down > 0 else (z > edge)].T)] = 0.5
    return field


def _flood(v, what, site, rng, argument):
    """Fluid in the lowest and outermost parts of the site, between everything else."""
    x, y = v.x[tuple(site.T)], v.y[tuple(site.T)]
    outer = (x / np.percentile(np.abs(x), 98)) ** 2 + (y / np.percentile(np.abs(y), 98)) ** 2
    field = np.full(v.labels.shape, 9, np.float32)
    field[tuple(site[outer > rng.uniform(0.25, 0.5)].T)] = 0.5
    return ALL, field


def _region(v, what, site, rng, argument):
    """The part of the site within its bounds."""
    return _organ(v, what, site, rng, argument)


def _plane(v, what, site, rng, argument):
    """A slab through the site: a fracture or a tear. `argument`: the axis perpendicular to it."""
    at, across, thick = _seed(v, site, rng), _size(what.size_mm, rng) / 2, _size(what.thick_mm, rng)
    if argument or what.count[1] == 1:
        at = site[np.argmin(np.abs(site - np.median(site, 0)).sum(1))] if rng.random() < 0.5 else at
    box, d = _around(v, at, across)
    tilt = rng.normal(0, 0.35 if argument else 1.0, 3)
    tilt["zyx".index(argument or "z")] += 1.0
    tilt /= np.linalg.norm(tilt)
    field = np.abs(sum(a * np.float32(t) for a, t in zip(d, tilt, strict=True)))
    field = field / np.float32(max(thick, 1.2 * v.spacing_mm) / 2)
    return box, _roughened(field, v, what, rng, 5.0)


def _wedge(v, what, site, rng, argument):
    """A cone that opens from a point inside to the surface of the organ: the territory of a blocked artery."""
    at, depth = _seed(v, site, rng), _size(what.size_mm, rng)
    middle = site.mean(0)
    out = at - middle
    out = out / max(np.linalg.norm(out), 1e-3)
    tip = np.round(at - out * depth * 0.5 / v.spacing_mm).astype(int)
    tip = np.clip(tip, 0, v.size - 1)
    box, d = _around(v, tip, depth * 1.2)
    along = sum(a * np.float32(o) for a, o in zip(d, out, strict=True))
    square = sum(a * a for a in d)
    off = np.sqrt(np.maximum(square - along * along, 0))
    field = np.maximum(off / np.maximum(along * 0.62 + 3, 1e-3), along / np.float32(depth))
    return box, _roughened(np.where(along < 0, 9, field), v, what, rng, 8.0)


def _scatter(v, what, site, rng, argument):
    """Specks of one or two voxels within `size_mm`. `argument`: their number, low-high."""
    low, high = (int(n) for n in argument.split("-"))
    middle, across = _seed(v, site, rng), _size(what.size_mm, rng) / 2
    field = np.full(v.labels.shape, 9, np.float32)
    for _ in range(rng.integers(low, high + 1)):
        at = np.clip(np.round(middle + rng.normal(0, across / 1.6 / v.spacing_mm, 3)).astype(int), 1, v.size - 2)
        field[tuple(slice(a, a + 1 + int(rng.random() < 0.3)) for a in at)] = 0
    return ALL, field


SHAPES = {
    "blob": _blob,
    "organ": _organ,
    "region": _region,
    "swollen": _swollen,
    "layer": _layer,
    "pool": _pool,
    "cap": _cap,
    "level": _flood,
    "plane": _plane,
    "wedge": _wedge,
    "scatter": _scatter,
}
