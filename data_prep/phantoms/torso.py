"""Parts of chest, abdomen, pelvis and lumbar spine: the body wall, ribs, the vertebral column, bowel.

Decisions:
- Lengths are in mm, coordinates as in `volume.py`. `column` follows a curve y(z), so lordosis and scoliosis bend it.
- Ribs are the intersections of a shell around the chest with slanting slabs, which fall towards the front.
- Sizes and positions are chosen by eye from textbook anatomy, so that organs have plausible proportions. They have no
  published source.
"""

import numpy as np

from radfm.data_prep.phantoms.person import Person
from radfm.data_prep.phantoms.volume import Volume

ALL = (slice(None),) * 3


def wall(v: Volume, half_width, half_depth, fat_mm: float, muscle_mm: float, hollow: str) -> np.ndarray:
    """Paints fat, muscle and the content of the body wall. Skin is thinner than a voxel.

    Args:
        half_width, half_depth: half axes in mm, numbers or arrays that broadcast with `v.z`.
        hollow: tissue that fills the inside.
    Returns:
        (n, n, n) float32, 1 at the inner face of the muscle, 0 in the middle.
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
    """Paints ribs and costal cartilage.

    Args:
        shell: (n, n, n), 1 on the inner face of the cage; ribs lie between 1 and about 1.15.
        low_mm: lower end of the cage.
    """
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
    """Paints vertebrae from the top down, each with the disc below it.

    Args:
        names: of the vertebrae, such as "L1".
        top_mm: z of the first vertebral body's centre.
        body_mm, disc_mm: heights of a body and of a disc.
        curve: z -> y of the centre of a vertebral body, mm.
        radius_mm: half width of a body.
        side: z -> x of the centre of a vertebral body, mm.
    Returns:
        Name -> z of the centre of its body, mm.
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
        _vertebral_arch(v, name, (x, y, z), r, depth, step)
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


def _vertebral_arch(
    v: Volume, name: str, centre: tuple[float, float, float], r: float, depth: float, step: float
) -> None:
    """Processes, pedicles and facets behind a vertebral body.

    Args:
        centre: of the vertebral body, mm.
        r, depth: half width and half depth of the body, mm.
        step: distance to the next vertebra, mm.
    """
    x, y, z = centre
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
    v.tube("spinous process", "cortical bone", [(x, y + depth + 18, z), (x, y + depth + 1.5 * r + 8, z - 12)], [5, 6])
    v.tube(
        "spinous process",
        "red marrow bone",
        [(x, y + depth + 24, z - 2), (x, y + depth + 1.5 * r + 6, z - 11)],
        [1, 3.5],
    )


def muscles_of_the_back(v: Volume, curve, low: float, high: float) -> None:
    for side in (-1, 1):
        points = [(side * 30, float(curve(z)) + 44, z) for z in np.linspace(low, high, 8)]
        v.tube("back muscle", "muscle", points, 21, only="visceral fat|wall muscle|mediastinum|subcutaneous fat")


def bowel(
    v: Volume, who: Person, points, radius: float, name: str, content: str, wall_mm: float = 2.5, only=None
) -> None:
    """Paints a loop of bowel with its wall and content; its width varies around `radius`."""
    swell = [radius * who.vary(0.15) for _ in points]
    v.tube(f"{name} wall", "bowel wall", points, [r + wall_mm for r in swell], only=only)
    v.tube(f"{name} lumen", content, points, swell, only=f"{name} wall")
