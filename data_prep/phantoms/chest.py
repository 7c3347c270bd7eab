"""The chest: cage, lungs with lobes and vessels, heart and its chambers, great vessels, airways, diaphragm.

Decisions:
- Sizes and positions are chosen by eye from textbook anatomy, so that organs have plausible proportions. They have no
  published source.
"""

import numpy as np

from radfm.data_prep.phantoms.person import Person
from radfm.data_prep.phantoms.torso import column, muscles_of_the_back, ribs
from radfm.data_prep.phantoms.volume import Volume

FIELD_OF_VIEW_MM = 384.0


def build(v: Volume, who: Person) -> None:
    """Paints the chest of a person into the volume."""
    scale = (0.94 if who.female else 1.02) * who.vary(0.04)
    inflation = who.change("lung_height") * who.vary(0.05)
    fat = 4 + 9 * who.girth
    _wall(v, who, scale, fat)
    shell, depth = _cage(v, who, scale)
    cavity = shell < 1
    v.paint("mediastinum", "fat", cavity)
    dome, right_top, left_top = _dome(v, who, inflation)
    _upper_abdomen(v, cavity, dome, left_top, scale)
    _lungs(v, cavity & (v.z > dome) & (shell < 0.97))
    _spine(v, who)
    _heart(v, who, (right_top + left_top) / 2)
    _airways(v)
    _vessels(v, who)
    _shoulder_girdle(v, depth)


def _wall(v: Volume, who: Person, scale: float, fat: float) -> None:
    """Subcutaneous fat, muscles and breasts, from the shoulders to the neck."""
    z = v.z
    up = np.clip((z - 108) / 62, 0, 1)
    width = (152 * scale + fat) * (1 - 0.62 * up**1.6) + 18 * np.exp(-(((z - 95) / 40) ** 2))
    depth = (98 * scale + 0.8 * fat) * (1 - 0.42 * up**1.5)

    def oval(inset, p=2.3):
        return np.abs(v.x / (width - inset)) ** p + np.abs((v.y - 6) / (depth - inset)) ** p

    v.paint("subcutaneous fat", "fat", oval(0) < 1)
    v.paint("wall muscle", "muscle", oval(fat) < 1)
    if who.female:
        front = depth.mean()
        for side in (-1, 1):
            size = who.girth**0.5 * who.vary(0.1)
            centre, radii = (side * 72, -front * 0.92, -12), (56 * size, 40 * size, 50 * size)
            v.ellipsoid("breast", "fat", centre, radii, only="air|skin")
            centre, radii = (side * 72, -front * 0.95, -14), (30 * size, 26 * size, 28 * size)
            v.ellipsoid("breast gland", "gland", centre, radii, only="breast|air")
    muscles_of_the_back(v, lambda t: 52, -190, 110)


def _cage(v: Volume, who: Person, scale: float) -> tuple[np.ndarray, float]:
    """Ribs of a cage that narrows towards the apices.

    Returns:
        Shell, (n, n, n) float32, 1 on the inner face of the cage, and the mean half depth of the cage in mm.
    """
    rise = np.clip((v.z + 40) / 175, 0, 1.2)
    half_width = 136 * scale * np.sqrt(np.clip(1 - 0.93 * rise**3.2, 0.02, 1)) * who.change("chest_width")
    half_depth = 86 * scale * np.sqrt(np.clip(1 - 0.75 * rise**3.0, 0.05, 1)) * who.change("chest_depth")
    shell = np.abs(v.x / half_width) ** 2.3 + np.abs((v.y - 6) / half_depth) ** 2.2
    shell = np.where(v.z > 140, 9, shell)
    ribs(v, shell, -125 + 0.5 * np.minimum(v.y, 0))
    return shell, half_depth.mean()


def _dome(v: Volume, who: Person, inflation: float) -> tuple[np.ndarray, float, float]:
    """Height of the diaphragm in mm at each voxel, (n, n, n), and at the tops of its right and left dome."""

    def drop(centre_x):
        return 34 * ((v.x - centre_x) / 62) ** 2 + 26 * (v.y / 70) ** 2

    right_top, left_top = (-48 + who.shift(6)) * inflation, (-60 + who.shift(6)) * inflation
    right_top += who.change("right_dome_mm") - 1
    left_top += who.change("left_dome_mm") - 1
    flat = 1 / inflation**2
    return np.where(v.x < 0, right_top - flat * drop(-62), left_top - flat * drop(64)), right_top, left_top


def _upper_abdomen(v: Volume, cavity: np.ndarray, dome: np.ndarray, left_top: float, scale: float) -> None:
    """Diaphragm, liver, spleen and stomach."""
    z = v.z
    below = cavity & (z < dome)
    v.paint("upper abdominal fat", "fat", below)
    v.paint("diaphragm", "muscle", cavity & (z < dome) & (z > dome - 4))
    liver = ((v.x + 58) / 104) ** 2 + ((v.y - 2) / 96) ** 2 + ((z + 108) / 92) ** 2 < 1
    v.paint("liver", "liver", below & (z < dome - 4) & liver)
    v.ellipsoid("spleen", "spleen", (88 * scale, 45, left_top - 34), (24, 34, 30), only="upper abdominal fat")
    v.ellipsoid("stomach", "bowel wall", (50, -8, left_top - 32), (40, 40, 26), only="upper abdominal fat")
    v.ellipsoid("stomach bubble", "bowel gas", (48, -20, left_top - 24), (26, 24, 14), only="stomach")
    v.ellipsoid("stomach content", "bowel fluid", (50, 2, left_top - 34), (34, 26, 20), only="stomach")


def _lungs(v: Volume, space: np.ndarray) -> None:
    """Lobes in the space above the diaphragm, without the mediastinum and the spine."""
    narrow = 24 + 10 * np.clip((20 - v.z) / 90, 0, 1)
    mediastinum = np.abs(v.x + 2) < narrow * np.clip(1.1 - (np.abs(v.y + 2) / 150), 0.4, 1)
    mediastinum &= ~((v.y < -38) & (np.abs(v.x) > 7) & (v.z > -5))  # the lungs meet behind the sternum
    spine = (np.abs(v.x) < 27) & (v.y > 40)
    lungs = space & ~(mediastinum | spine)
    oblique = v.z < 12 + 1.05 * (v.y - 2)
    horizontal = v.z > 10
    v.paint("right upper lobe", "lung", lungs & (v.x < 0) & ~oblique & horizontal)
    v.paint("right middle lobe", "lung", lungs & (v.x < 0) & ~oblique & ~horizontal)
    v.paint("right lower lobe", "lung", lungs & (v.x < 0) & oblique)
    v.paint("left upper lobe", "lung", lungs & (v.x > 0) & ~oblique)
    v.paint("left lower lobe", "lung", lungs & (v.x > 0) & oblique)


def _shoulder_girdle(v: Volume, depth: float) -> None:
    """Sternum, clavicles and scapulae."""
    v.ellipsoid("sternum", "cortical bone", (0, -depth * 1.0 - 3, 28), (16, 7, 72), power=3)
    v.ellipsoid("sternum marrow", "red marrow bone", (0, -depth * 1.0 - 3, 28), (13, 4.5, 69), power=3)
    for side in (-1, 1):
        clavicle = [(side * 18, -58, 106), (side * 60, -48, 116), (side * 105, -18, 126), (side * 140, -6, 128)]
        v.tube("clavicle", "cortical bone", clavicle, 6.5, only="*muscle|*fat|skin|mediastinum")
        blade = [(side * 122, 58, 118), (side * 108, 82, 70), (side * 92, 88, 28)]
        v.tube("scapula", "cortical bone", blade, [9, 6, 4], only="*muscle|*fat|skin")
        spine = [(side * 150, 20, 122), (side * 122, 58, 116)]
        v.tube("scapula", "red marrow bone", spine, 11, only="*muscle|*fat|skin")


def _spine(v: Volume, who: Person) -> None:
    sway = who.shift(4) + 22 * (who.change("scoliosis") - 1)
    names = [f"T{n}" for n in range(1, 13)] + ["L1", "L2"]
    column(
        v, who, names, 150, 19, 5, lambda z: 54 + 8 * np.exp(-((z / 90) ** 2)), 16.5, lambda z: sway * np.sin(z / 60)
    )
    v.tube(
        "spinal cord",
        "nerve",
        [(sway * np.sin(z / 60), 54 + 8 * np.exp(-((z / 90) ** 2)) + 23, z) for z in range(-150, 190, 20)],
        5,
    )


def _heart(v: Volume, who: Person, dome: float) -> None:
    big = who.vary(0.05) * who.change("heart")
    c = np.array([17 + 4 * (big - 1) * 10, -22.0, dome + 32 + 26 * (big - 1)])
    turn = (12.0, 30.0, -28.0)
    sac = who.change("pericardium_mm") - 1
    v.ellipsoid(
        "pericardial space", "fat", tuple(c), (58 * big + 4 + sac, 44 * big + 3 + sac, 48 * big + 4 + sac), turn=turn
    )
    if sac > 0:
        v.ellipsoid(
            "pericardial fluid",
            "water",
            tuple(c),
            (58 * big + 2 + sac, 44 * big + 1 + sac, 48 * big + 2 + sac),
            turn=turn,
        )
    v.ellipsoid("heart muscle", "myocardium", tuple(c), (58 * big, 44 * big, 48 * big), turn=turn)
    v.ellipsoid(
        "right ventricle",
        "flowing blood",
        tuple(c + np.array([-6, -16, -6])),
        (34 * big, 17 * big, 32 * big),
        turn=turn,
    )
    v.ellipsoid(
        "left ventricle",
        "flowing blood",
        tuple(c + np.array([24 * big, 8, -2])),
        (24 * big, 17 * big, 30 * big),
        turn=turn,
    )
    v.ellipsoid(
        "right atrium",
        "flowing blood",
        tuple(c + np.array([-36 * big, 4, 6])),
        (21 * big, 24 * big, 27 * big),
        only="heart*|peri*|mediastinum|*lobe",
    )
    v.ellipsoid(
        "left atrium",
        "flowing blood",
        tuple(c + np.array([-6, 34, 18])),
        (27 * big, 15 * big, 20 * big),
        only="heart*|peri*|mediastinum|*lobe",
    )


def _airways(v: Volume) -> None:
    v.tube("trachea wall", "soft tissue", [(0, 18, 190), (0, 22, 40)], 10.5)
    for name, made_of, thick in (("bronchus wall", "soft tissue", 2.5), ("bronchus", "air", 0.0)):
        v.tube(name, made_of, [(0, 22, 42), (-26, 26, 18), (-48, 30, 0)], [8 + thick, 6.5 + thick, 4.5 + thick])
        v.tube(name, made_of, [(0, 22, 42), (30, 28, 14), (52, 34, -2)], [8 + thick, 6 + thick, 4.5 + thick])
    v.tube("trachea", "air", [(0, 18, 190), (0, 22, 38)], 8.5)
    v.tube("oesophagus", "bowel wall", [(3, 36, 190), (4, 40, 20), (8, 38, -80)], 7, only="*fat|mediastinum|*muscle")
    v.ellipsoid("thyroid", "ovary", (-16, 4, 154), (9, 10, 18), only="wall muscle|*fat|mediastinum")
    v.ellipsoid("thyroid", "ovary", (16, 4, 154), (9, 10, 18), only="wall muscle|*fat|mediastinum")


def _vessels(v: Volume, who: Person) -> None:
    wide = who.vary(0.06) * (1 + 0.003 * (who.age - 50))
    ascending, arch = 15 * wide * who.change("ascending_aorta"), 13.5 * wide
    soft = "*fat|mediastinum|*lobe|peri*|heart muscle|wall muscle|oesophagus|aort*|upper*|diaphragm"
    v.tube("ascending aorta", "flowing blood", [(4, -8, -8), (-12, -20, 28), (-8, -14, 56)], ascending, only=soft)
    v.tube(
        "aortic arch", "flowing blood", [(-8, -14, 56), (4, 4, 68), (20, 30, 60)], arch, only=soft + "|ascending aorta"
    )
    v.tube(
        "descending aorta",
        "flowing blood",
        [(20, 30, 60), (23, 44, 34), (19, 44, -60), (8, 46, -190)],
        12.5 * wide * who.change("descending_aorta"),
        only=soft,
    )
    v.tube("branch of the arch", "flowing blood", [(-4, -2, 70), (-24, -6, 104), (-40, 0, 150)], 6, only=soft)
    v.tube("branch of the arch", "flowing blood", [(10, 12, 70), (22, 4, 110), (30, 4, 150)], 5, only=soft)
    v.tube("superior vena cava", "flowing blood", [(-26, -10, 100), (-30, -4, 50), (-28, -4, -5)], 10, only=soft)
    v.tube(
        "inferior vena cava",
        "flowing blood",
        [(-22, 20, -190), (-24, 12, -60), (-26, 0, -30)],
        11,
        only=soft + "|liver",
    )
    hilum = 9.5 * who.change("pulmonary_artery")
    v.tube("pulmonary trunk", "flowing blood", [(16, -34, 0), (18, -18, 24), (8, 4, 30)], hilum + 4, only=soft)
    v.tube(
        "right pulmonary artery",
        "flowing blood",
        [(8, 4, 28), (-28, 8, 20), (-46, 14, 10)],
        [hilum + 1, hilum, hilum - 2],
        only=soft,
    )
    v.tube(
        "left pulmonary artery",
        "flowing blood",
        [(8, 6, 30), (34, 18, 28), (50, 26, 14)],
        [hilum + 1, hilum, hilum - 2],
        only=soft,
    )
    rng = who.rng
    for side, hub in ((-1, (-46, 16, 8)), (1, (50, 26, 8))):
        for away in rng.permutation(10):
            angle = 2 * np.pi * (away + rng.random()) / 10
            aim = np.array([side * rng.uniform(0.45, 0.9), np.cos(angle) * 0.7, np.sin(angle) * 1.1])
            _branch(v, rng, np.array(hub, float), aim / np.linalg.norm(aim), rng.uniform(26, 40), 4.4, 4)


def _branch(v: Volume, rng, start: np.ndarray, aim: np.ndarray, length: float, radius: float, depth: int) -> None:
    end = start + aim * length
    v.tube("lung vessel", "flowing blood", [tuple(start), tuple(end)], [radius, radius * 0.75], only="*lobe")
    if depth > 1:
        for _ in range(2):
            turned = aim + rng.normal(0, 0.45, 3)
            _branch(v, rng, end, turned / np.linalg.norm(turned), length * 0.72, radius * 0.68, depth - 1)
