"""The head: scalp, skull, folded cortex, white matter, ventricles, deep nuclei, hindbrain, orbits, sinuses.

Decisions:
- Sulci follow the zeros of a smooth random field and are open towards the surface, so that every brain is folded
  differently.
- Age widens sulci and ventricles.
- Sizes and positions are chosen by eye from textbook anatomy, so that organs have plausible proportions. They have no
  published source.
"""

import numpy as np

from radfm.data_prep.phantoms.person import Person
from radfm.data_prep.phantoms.volume import Volume

FIELD_OF_VIEW_MM = 232.0


def build(v: Volume, who: Person) -> None:
    size = (0.975 if who.female else 1.02) * who.vary(0.025)
    long = who.vary(0.03)
    x, y, z = v.x / size, v.y / (size * long), v.z / size
    thick = 2.5 + 2 * who.girth

    def oval(rx, ry, rz, cz=14.0):
        return (x / rx) ** 2 + (y / ry) ** 2 + ((z - cz) / rz) ** 2

    v.paint("scalp", "skin", oval(76 + thick * 0.6, 95 + thick * 0.6, 86 + thick * 0.6) < 1)
    face = (x / 62) ** 2 + ((y + 42) / 54) ** 2 + ((z + 62) / 66) ** 2 < 1
    nose = (x / 12) ** 2 + ((y + 94) / 16) ** 2 + ((z + 52) / 20) ** 2 < 1
    neck = ((x / 54) ** 2 + ((y - 22) / 52) ** 2 < 1) & (z < -30)
    v.paint("scalp", "skin", face | nose | neck)
    v.paint("scalp fat", "fat", (oval(74 + thick * 0.4, 93 + thick * 0.4, 84 + thick * 0.4) < 1))
    v.paint("face muscle", "muscle", ((x / 57) ** 2 + ((y + 42) / 49) ** 2 + ((z + 62) / 61) ** 2 < 1))
    v.paint("neck muscle", "muscle", ((x / 49) ** 2 + ((y - 22) / 47) ** 2 < 1) & (z < -38))
    v.paint("skull", "cortical bone", (oval(73, 92, 83) < 1) & (z > -56))
    v.paint("diploe", "red marrow bone", (oval(71, 90, 81) < 1) & (z > -40))
    v.paint("skull", "cortical bone", (oval(69.5, 88.5, 79.5) < 1) & (z > -56))
    floor = -18 - 20 / (1 + np.exp(-(y + 34) / 5)) - 26 / (1 + np.exp(-(y - 12) / 5))
    floor += 5 * np.exp(-((x / 14) ** 2)) * (y < 8)
    _face(v)
    base = oval(69.5, 88.5, 79.5) < 1
    v.paint("skull base", "cortical bone", base & (z < floor) & (z > floor - 6))
    cavity = (oval(67, 86, 77) < 1) & (z > floor)
    v.paint("subarachnoid space", "cerebrospinal fluid", cavity)

    atrophy = who.change("atrophy") * (1 + 0.006 * max(who.age - 50, 0))
    _cerebrum(v, x, y, z, oval, floor, atrophy)
    _hindbrain(v, who, x, y, z, floor)
    _deep(v, who, size, atrophy)
    _vessels(v, who, size)


def _cerebrum(v: Volume, x, y, z, oval, floor, atrophy: float) -> None:
    tent = -19 + 0.14 * (y - 10)
    shrink = 1.5 * atrophy
    inside = (oval(66 - shrink, 85 - shrink, 76 - shrink) < 1) & (z > floor + 2) & ((z > tent) | (y < 8))
    surface = np.sqrt(oval(66 - shrink, 85 - shrink, 76 - shrink))
    depth = np.minimum((1 - surface) * 70, np.maximum(z - floor, 0) + 6)  # mm below the surface, roughly
    middle = np.abs(x) - 1.0 - 0.5 * atrophy  # distance from the fissure between the hemispheres
    central = (x / 42) ** 2 + ((y + 2) / 46) ** 2 + ((z - 4) / 30) ** 2 < 1
    depth = np.where(central, depth, np.minimum(depth, middle * 1.2))
    folds = v.noise(4.4)
    width = 0.20 * atrophy * np.clip(1.25 - depth / 26, 0, 1.2)
    reach = 21 + 3 * (folds > 0)
    sulcus = (np.abs(folds) < width) & (depth < reach)
    grey = (depth < 4.2) | ((np.abs(folds) < width + 0.52) & (depth < reach + 2.5))
    for side, half in (("right", x < 0), ("left", x >= 0)):
        v.paint(f"{side} white matter", "white matter", inside & half)
        v.paint(f"{side} cortex", "grey matter", inside & half & grey)
    gap = ((middle < 0) & ~central & inside) | (sulcus & inside)
    sylvian = (
        (np.abs(x) > 36)
        & (np.abs(z - 2 - 0.35 * (y + 10) + 0.3 * (np.abs(x) - 48) + 2.5 * folds) < 1.0 * atrophy + 0.3)
        & (y > -34)
        & (y < 22)
    )
    v.paint("sulci", "cerebrospinal fluid", gap | (sylvian & inside))
    v.paint(
        "insula", "grey matter", inside & (np.abs(np.abs(x) - 37) < 3) & (np.abs(z - 2) < 16) & (np.abs(y + 8) < 22)
    )
    falx = (np.abs(x) < 0.9) & (surface > 0.6) & (z > 28) & inside
    v.paint("falx", "soft tissue", falx)


def _hindbrain(v: Volume, who: Person, x, y, z, floor) -> None:
    under = (z < -19 + 0.14 * (y - 10)) & (z > floor + 2) & (y > 12)
    under &= (x / 65) ** 2 + (y / 84) ** 2 + ((z - 14) / 77) ** 2 < 1
    small = who.vary(0.04) * who.change("cerebellum")
    for side in (-1, 1):
        r = ((x - side * 22) / (36 * small)) ** 2 + ((y - 46) / (38 * small)) ** 2 + ((z + 36) / (31 * small)) ** 2
        body = (r < 1) & under
        v.paint("cerebellum", "grey matter", body)
        leaf = np.sin((z + 35) * 1.05 + 0.05 * (y - 48) ** 2 / 8 + side * x * 0.12)
        v.paint("cerebellar fissure", "cerebrospinal fluid", body & (r > 0.35) & (leaf > 0.9))
        v.paint("cerebellar white matter", "white matter", (r < 0.42) & under & (leaf < 0.8))
    v.paint("cerebellum", "grey matter", ((x / 8) ** 2 + ((y - 52) / 22) ** 2 + ((z + 32) / 19) ** 2 < 1) & under)


def _deep(v: Volume, who: Person, s: float, atrophy: float) -> None:
    wide = who.change("ventricles") * (0.75 + 0.25 * atrophy) * who.vary(0.12)
    v.ellipsoid("corpus callosum", "white matter", (0, 0, 27 * s), (20, 36, 6 + 1.5 * wide))
    for name, side in (("right", -1), ("left", 1)):
        lean = who.vary(0.07)
        v.ellipsoid(f"{name} thalamus", "grey matter", (side * 11 * s, 9, 9), (9.5, 15, 10))
        v.ellipsoid(f"{name} caudate", "striatum", (side * (12.5 + 2 * wide) * s, -18, 15), (5.5, 11, 9))
        v.ellipsoid(f"{name} putamen", "striatum", (side * 25 * s, -5, 7), (5, 16, 10), turn=(0, 0, side * 14))
        w = wide * lean
        horns = [(7, -34, 16), (8, -22, 20), (10, 0, 25), (14, 20, 23), (21, 33, 14), (23, 48, 8)]
        radii = np.array([3.5, 5, 4.6, 5.5, 6.2, 3.2]) * w
        spread = max(0.0, w - 1) * 5
        points = [(side * (p[0] + spread + 0.4 * r), p[1], p[2]) for p, r in zip(horns, radii, strict=True)]
        v.tube(
            f"{name} ventricle",
            "cerebrospinal fluid",
            points,
            list(radii),
            only="*white*|*cortex*|*caud*|corpus*|*thal*|sulci|insula|falx",
        )
        temporal = [(side * 23, 32, 12), (side * 31, 12, -8), (side * 29, -8, -14)]
        v.tube(
            f"{name} ventricle",
            "cerebrospinal fluid",
            temporal,
            [4.2 * w, 2.6 * w, 2.2 * w],
            only="*white*|*cortex*|sulci",
        )
        v.ellipsoid(f"{name} hippocampus", "grey matter", (side * 27, -2, -17), (5, 13, 5))
    v.ellipsoid("third ventricle", "cerebrospinal fluid", (0, 3, 7), (2.6 * wide, 15, 10))
    v.ellipsoid("brainstem", "white matter", (0, 17, -8), (15, 12, 13))
    v.ellipsoid("brainstem", "white matter", (0, 13, -27), (16, 14, 15))
    v.tube("brainstem", "white matter", [(0, 18, -38), (0, 24, -60), (0, 30, -125)], [11, 8, 6.5])
    v.ellipsoid("fourth ventricle", "cerebrospinal fluid", (0, 31, -31), (8 * min(wide, 1.6), 5 * min(wide, 1.6), 10))
    v.tube("basal cistern", "cerebrospinal fluid", [(0, -2, -18), (0, 0, -34)], 6, only="*white*|*cortex*|suba*")
    v.ellipsoid("pituitary", "endometrium", (0, -12, -33), (6, 5, 4.5))


def _face(v: Volume) -> None:
    soft = "face muscle|scalp*|skull*|diploe|neck muscle"
    v.ellipsoid("facial bone", "red marrow bone", (0, -62, -46), (42, 32, 26), only=soft)
    v.ellipsoid("ethmoid sinus", "air", (0, -66, -28), (11, 22, 12))
    v.ellipsoid("frontal sinus", "air", (0, -86, -4), (17, 4, 11), only="skull*|diploe|scalp*")
    v.ellipsoid("sphenoid sinus", "air", (0, -30, -46), (11, 11, 9))
    v.ellipsoid("nasal cavity", "air", (0, -62, -58), (9, 28, 22))
    v.ellipsoid("turbinate", "soft tissue", (0, -60, -60), (2, 26, 20))
    v.tube("pharynx", "air", [(0, -26, -58), (0, -14, -90), (0, -8, -125)], 8)
    v.ellipsoid("mandible", "cortical bone", (0, -62, -98), (36, 26, 9), only=soft)
    v.ellipsoid("mouth", "muscle", (0, -54, -96), (29, 24, 12))
    for side in (-1, 1):
        v.ellipsoid("orbit", "cortical bone", (side * 32, -66, -24), (21, 29, 20), only=soft + "|facial*")
        v.ellipsoid("orbital fat", "fat", (side * 32, -66, -24), (19, 27, 18), only=soft + "|orbit|facial*")
        v.ellipsoid("eyeball", "water", (side * 32, -78, -24), (12, 12, 12))
        v.ellipsoid("lens", "ligament", (side * 32, -88, -24), (5, 2.5, 5))
        v.tube("optic nerve", "nerve", [(side * 30, -66, -24), (side * 14, -38, -26)], 2.5)
        name = "right" if side < 0 else "left"
        v.ellipsoid(
            f"{name} maxillary sinus wall", "cortical bone", (side * 29, -60, -58), (18, 20, 18), only=soft + "|facial*"
        )
        v.ellipsoid(f"{name} maxillary sinus", "air", (side * 29, -60, -58), (16, 18, 16))
        v.ellipsoid(
            "petrous bone",
            "cortical bone",
            (side * 40, 14, -46),
            (30, 13, 13),
            turn=(0, 0, side * 25),
            only=soft + "|skull base",
        )
        v.ellipsoid("mastoid cells", "lung", (side * 56, 26, -52), (11, 14, 14), only=soft + "|petrous*")


def _vessels(v: Volume, who: Person, s: float) -> None:
    for name, side in (("right", -1), ("left", 1)):
        artery = f"{name} cerebral artery"
        bend = who.shift(2)
        v.tube(
            artery,
            "flowing blood",
            [(side * 22, -4, -110), (side * 20, 4, -60), (side * 10, -8, -34), (side * 12, -10, -20)],
            2.6,
        )
        v.tube(
            artery,
            "flowing blood",
            [
                (side * 12, -10, -20),
                (side * 28, -10, -16 + bend),
                (side * 42, -8, -4),
                (side * 54, 2, 8),
                (side * 60, 14, 20),
            ],
            2.0,
        )
        v.tube(
            artery,
            "flowing blood",
            [(side * 12, -10, -20), (side * 3, -26, -14), (side * 2, -44, 8), (side * 2, -36, 34), (side * 2, -6, 44)],
            1.7,
        )
        v.tube(
            artery, "flowing blood", [(0, 2, -20), (side * 16, 16, -12), (side * 22, 40, -8), (side * 16, 66, 0)], 1.7
        )
        v.tube(artery, "flowing blood", [(side * 12, 8, -125), (side * 7, 4, -60), (0, 0, -44), (0, 2, -20)], 2.2)
        for angle in np.linspace(-0.4, 3.3, 6) + who.rng.normal(0, 0.15, 6):
            at = np.array([side * 50.0, 2, 8]) * s
            for radius in (1.6, 1.4, 1.2, 1.2):
                ahead = np.array([0.35 * side, np.cos(angle), np.sin(angle)]) + who.rng.normal(0, 0.3, 3)
                to = at + 17 * ahead / np.linalg.norm(ahead)
                far = np.linalg.norm((to - [0, 0, 14 * s]) / (np.array([65, 83, 75]) * s))
                to = to / max(float(far), 1.0)  # over the surface, not through the skull
                v.tube(artery, "flowing blood", [tuple(at), tuple(to)], radius, only="suba*|sulci|*cortex|insula")
                at = to
    arc = [(0, (88 * np.sin(t)) * s, 14 + 79 * np.cos(t) * s) for t in np.linspace(-0.5, 1.75, 9)]
    v.tube("sagittal sinus", "flowing blood", arc, 3.2, only="suba*|sulci|*cortex|skull|diploe|falx")
