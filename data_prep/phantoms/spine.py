"""The lumbar spine, T11 to the sacrum: vertebrae, discs, canal with conus and cauda equina, muscles, great vessels.

Decisions:
- Sizes and positions are chosen by eye from textbook anatomy, so that organs have plausible proportions. They have no
  published source.
"""

from itertools import pairwise

import numpy as np

from radfm.data_prep.phantoms.person import Person
from radfm.data_prep.phantoms.torso import column, muscles_of_the_back, wall
from radfm.data_prep.phantoms.volume import Volume

FIELD_OF_VIEW_MM = 288.0


def build(v: Volume, who: Person) -> None:
    s = (0.95 if who.female else 1.03) * who.vary(0.03)
    fat = 6 + 14 * who.girth
    wall(v, 130 * s + fat, 92 * s + fat * 0.9, fat, 12, "fat")
    lordosis = 17 * who.vary(0.3)
    slip = 9 * (who.change("slip") - 1)
    kyphosis = 14 * (who.change("kyphosis") - 1)

    def curve(z):
        bend = 22 - lordosis * np.exp(-(((z + 20) / 58) ** 2)) + 0.00075 * np.maximum(-z - 70, 0) ** 2 * 5
        return bend + kyphosis * np.exp(-(((z - 60) / 30) ** 2)) - slip / (1 + np.exp(-(z + 72) / 2.0))

    sway = who.shift(3) + 26 * (who.change("scoliosis") - 1)
    side = lambda z: sway * np.sin((z + 20) / 48)  # noqa: E731
    _front(v, who)
    muscles_of_the_back(v, curve, -150, 150)
    for across in (-1, 1):
        points = [(across * x, y, z) for x, y, z in ((26, 24, 60), (36, 20, 0), (46, 16, -80), (52, -4, -150))]
        v.tube("psoas", "muscle", points, [7, 15, 20, 20], only="*fat|wall muscle")
        v.ellipsoid(
            "kidney", "kidney cortex", (across * 62, 30, 66), (24, 22, 48), only="*fat", turn=(10, across * 12, 0)
        )
    names = ["T11", "T12", "L1", "L2", "L3", "L4", "L5"]
    heights = column(v, who, names, 122, 25.5 * s, 9.5 * s, curve, 21.5 * s, side)
    _sacrum(v, curve, side, heights["L5"] - 17.5 * s - 5)
    cord = [(side(t), curve(t) + 22.5 * s * 0.78 + 9, t) for t in np.linspace(150, heights["L1"] - 8, 8)]
    v.tube("spinal cord", "nerve", cord, [4.4] * 7 + [2.0], only="thecal sac|epidural*")
    for k in (-2.5, 0.0, 2.5):
        roots = [
            (side(t) + k * 1.6, curve(t) + 22.5 * s * 0.78 + 12 + abs(k) * 0.4, t)
            for t in np.linspace(heights["L1"] - 6, -128, 10)
        ]
        v.tube("cauda equina", "nerve", roots, 1.1, only="thecal sac")


def _front(v: Volume, who: Person) -> None:
    wide = who.vary(0.08)
    v.tube("aorta", "flowing blood", [(8, -12, 150), (8, -22, 0), (6, -22, -62)], 9.5 * wide, only="*fat")
    v.tube("inferior vena cava", "flowing blood", [(-20, -8, 150), (-20, -18, 0), (-18, -16, -66)], 10, only="*fat")
    for across in (-1, 1):
        v.tube(
            "iliac artery",
            "flowing blood",
            [(6, -22, -60), (across * 26, -14, -110), (across * 40, -10, -150)],
            6,
            only="*fat",
        )
    for row, z in enumerate(np.linspace(-110, 40, 6)):
        loop = [(x, -56 + 9 * np.sin(x / 13 + row), z + 8 * np.cos(x / 12)) for x in np.linspace(-70, 70, 9)]
        v.tube("bowel wall", "bowel wall", loop, 12, only="*fat")
        v.tube("bowel lumen", "bowel fluid", loop, 9, only="bowel wall")
    v.paint("bowel gas", "bowel gas", v.where("bowel lumen") & (v.noise(7.0) > 0.9))
    v.ellipsoid("liver", "liver", (-66, -14, 116), (62, 62, 70), only="*fat|bowel*")


def _sacrum(v: Volume, curve, side, top: float) -> None:
    y = float(curve(top))
    z, points = top, []
    for step in range(5):
        points.append((float(side(top)), y, z))
        y, z = y + 11 - 1.6 * step, z - 19
    for number, (a, b) in enumerate(pairwise(points), 1):
        name, r = f"S{number}", [23, 20, 16, 12][number - 1]
        middle = ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, (a[2] + b[2]) / 2)
        turn = (30.0 - 4 * number, 0.0, 0.0)
        v.ellipsoid(
            f"{name} endplate",
            "cortical bone",
            middle,
            (r + 4, r * 0.72, 11),
            turn=turn,
            power=4,
            only="*fat|psoas|*muscle|bowel*|iliac*|epi*|thecal*|L5*|S*",
        )
        v.ellipsoid(
            f"{name} body",
            "red marrow bone",
            middle,
            (r + 2, r * 0.72 - 2, 9.4),
            turn=turn,
            power=4,
            only=f"{name} endplate",
        )
    for across in (-1, 1):
        v.tube(
            "sacral ala",
            "cortical bone",
            [(across * 26, points[0][1] + 12, top - 8), (across * 48, points[0][1] + 26, top - 18)],
            [17, 20],
        )
        v.tube(
            "sacral ala marrow",
            "red marrow bone",
            [(across * 26, points[0][1] + 12, top - 8), (across * 48, points[0][1] + 26, top - 18)],
            [15, 18],
        )
        wing = [
            (across * 62, points[0][1] + 30, top - 30),
            (across * 76, points[0][1] + 8, top + 4),
            (across * 92, points[0][1] - 20, top + 18),
        ]
        v.tube("ilium", "cortical bone", wing, [14, 9, 7], only="*fat|*muscle|psoas")
        v.tube("ilium marrow", "red marrow bone", wing, [12, 7, 5], only="ilium")
    v.tube(
        "thecal sac",
        "cerebrospinal fluid",
        [(0, p[1] + 22, p[2] + 6) for p in points[:3]],
        [7, 5, 3],
        only="*fat|epi*|S*|*muscle",
    )
