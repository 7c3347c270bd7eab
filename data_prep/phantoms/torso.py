"""What chest, abdomen, pelvis and lumbar spine share: the wall of the body, the vertebral column, the great vessels.

Decisions:
- Lengths in mm, coordinates as in `volume.py`. `column` follows a curve y(z), so lordosis and scoliosis bend it.
- Ribs are where a shell around the chest meets a set of slanting slabs: they fall towards the front, as ribs do.
"""

import numpy as np

from radfm.data_prep.phantoms.person import Person
from radfm.data_prep.phantoms.volume import Volume

ALL = (slice(None),) * 3


def wall(v: Volume, half_width, half_depth, fat_mm: float, muscle_mm: float, hollow: str) -> np.ndarray:
    """Fat, muscle, and what fills the inside; skin is thinner than a voxel.

    Half axes in mm, numbers or arrays that go with `v.z`.

    Returns the inside: (n, n, n) float32, 1 at the inner face of the muscle, 0 in the middle.
    """

    def oval(inset: float, power: float = 2.4) -> np.ndarray:
        p = np.float32(power)
        return np.abs(v.x / (half_width - inset)) ** p + np.abs((v.y - 4) / (half_depth - inset)) ** p

    outer = oval(0)
    v.paint("subcutaneous fat", "fat", outer < 1)
    v.paint("wall muscle", "muscle", oval(fat_mm) < 1)
    inside = oval(fat_mm + muscle_mm)
    v.paint("visceral fat" if hollow == "fat" else "mediastinum", hollow, inside < 1)
    return inside


def ribs(v: Volume, shell: np.ndarray, low_mm, pitch_mm: float = 26.0, slant: float = 0.55) -> None:
    """`shell`: 1 on the inner face of the cage; ribs lie between 1 and about 1.15 of it, above `low_mm`."""
    phase = ((v.z - np.float32(slant) * (v.y)) / np.float32(pitch_mm)) % 1
    front = (v.y < -40) & (np.abs(v.x) < 55)  # costal cartilage there
    cage = (shell > 1.0) & (shell < 1.2) & (v.z > low_mm)
    rib = cage & (phase < 0.42) & ~front & (v.z < 135)
    v.paint("rib", "cortical bone", rib)
    v.paint("rib marrow", "red marrow bone", rib & (shell > 1.06) & (shell < 1.14) & (phase > 0.1) & (phase < 0.32))
    v.paint("costal cartilage", "cartilage", cage & (phase < 0.42) & front & (v.z < 110))


def column(
    v: Volume,
    who: Person,
    names: list[str],
    top_mm: float,
    body_mm: float,
    disc_mm: float,
    curve,
    radius_mm: float = 22.0,
    side=lambda z: 0.0,
) -> dict[str, float]:
    """Vertebrae from the top down, each with its disc below; returns the height of each vertebral body's centre.

    `curve(z)`: y of the vertebral bodies' centre; `side(z)`: x of it, mm.
    """
    heights, z = {}, top_mm
    r, depth = radius_mm, radius_mm * 0.78
    osteoporosis = who.change("vertebra_height")
    lowest = top_mm - (body_mm + disc_mm) * len(names)
    full = [(float(curve(t)), float(side(t)), float(t)) for t in np.linspace(lowest, v.size * v.spacing_mm / 2, 40)]
    canal = [(x, y + depth + 10, t) for y, x, t in full]
    v.tube("spinous process", "red marrow bone", [(x, y + depth + 16, t) for y, x, t in full], 4)
    v.tube("epidural fat", "fat", canal, 10.5)
    for name in names:
        y, x = float(curve(z)), float(side(z))
        tilt = float(np.degrees(np.arctan((curve(z + 8) - curve(z - 8)) / 16)))
        lean = float(np.degrees(np.arctan((side(z + 8) - side(z - 8)) / 16)))
        heights[name] = z
        turn = (tilt, -lean, 0.0)
        height = body_mm * (osteoporosis if osteoporosis != 1 and who.rng.random() < 0.4 else 1)
        step = body_mm + disc_mm
        for across in (-1, 1):
            v.tube(
                "transverse process",
                "cortical bone",
                [(x + across * 8, y + depth + 6, z + 2), (x + across * (r + 14), y + depth + 8, z + 4)],
                [6, 3.5],
            )
            v.tube(
                f"{name} pedicle",
                "red marrow bone",
                [(x + across * 13, y + 8, z + 3), (x + across * 14, y + depth + 10, z)],
                5,
            )
            v.ellipsoid(f"{name} facet", "cortical bone", (x + across * 16, y + depth + 13, z - step / 2), (7, 6, 12))
        v.tube(
            "spinous process", "cortical bone", [(x, y + depth + 18, z), (x, y + depth + 1.5 * r + 8, z - 12)], [5, 6]
        )
        v.tube(
            "spinous process",
            "red marrow bone",
            [(x, y + depth + 24, z - 2), (x, y + depth + 1.5 * r + 6, z - 11)],
            [1, 3.5],
        )
        v.ellipsoid(f"{name} endplate", "cortical bone", (x, y, z), (r, depth, height / 2), turn=turn, power=5)
        v.ellipsoid(
            f"{name} body", "red marrow bone", (x, y, z), (r - 2, depth - 2, height / 2 - 1.6), turn=turn, power=5
        )
        here = z - step / 2
        yd, xd = float(curve(here)), float(side(here))
        tall = disc_mm * who.change(f"{name} disc") / 2 + 1.0
        v.ellipsoid(f"{name} disc", "disc annulus", (xd, yd, here), (r + 1, depth + 1, tall), turn=turn, power=3.5)
        v.ellipsoid(
            f"{name} nucleus",
            "disc nucleus",
            (xd, yd + 1, here),
            (r * 0.66, depth * 0.62, tall * 0.72),
            turn=turn,
            power=3,
        )
        z -= step
    v.tube("thecal sac", "cerebrospinal fluid", canal, 8.5 * who.change("canal"))
    return heights


def muscles_of_the_back(v: Volume, curve, low: float, high: float) -> None:
    for side in (-1, 1):
        points = [(side * 30, float(curve(z)) + 44, z) for z in np.linspace(low, high, 8)]
        v.tube("back muscle", "muscle", points, 21, only="visceral fat|wall muscle|mediastinum|subcutaneous fat")


def bowel(
    v: Volume, who: Person, points, radius: float, name: str, content: str, wall_mm: float = 2.5, only=None
) -> None:
    """A loop with its wall and content, as wide as `radius` with haustra."""
    swell = [radius * who.vary(0.15) for _ in points]
    v.tube(f"{name} wall", "bowel wall", points, [r + wall_mm for r in swell], only=only)
    v.tube(f"{name} lumen", content, points, swell, only=f"{name} wall")
