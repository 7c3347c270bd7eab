"""The knee: femur, tibia, fibula and patella with their cartilage, menisci, ligaments, tendons, fat pad, muscles.

Decisions:
- A left knee is painted, x towards the outer side (fibula). A right knee is its mirror image.
- Sizes and positions are chosen by eye from textbook anatomy, so that organs have plausible proportions. They have no
  published source.
"""

import numpy as np

from radfm.data_prep.phantoms.person import Person
from radfm.data_prep.phantoms.volume import Volume

FIELD_OF_VIEW_MM = 156.0
ALL = (slice(None),) * 3


def build(v: Volume, who: Person) -> None:
    s = (0.93 if who.female else 1.03) * who.vary(0.03)
    fat = 4 + 6 * who.girth
    calf = np.clip(-v.z / 75, 0, 1)
    thigh = np.clip(v.z / 75, 0, 1)
    rx, ry = 50 * s + fat + 8 * thigh + 2 * calf, 52 * s + fat + 8 * thigh - 2 * calf
    v.paint("skin", "skin", (v.x / rx) ** 2 + ((v.y - 6) / ry) ** 2 < 1)
    v.paint("subcutaneous fat", "fat", (v.x / (rx - 2.2)) ** 2 + ((v.y - 6) / (ry - 2.2)) ** 2 < 1)
    inner = ((v.x / (rx - fat - 2)) ** 2 + ((v.y - 6) / (ry - fat - 2)) ** 2) < 1
    v.paint("deep fat", "fat", inner)
    _muscles(v, inner)
    _bones(v, s)
    _inside(v, who, s)
    _bands(v, s)


def _muscles(v: Volume, inner: np.ndarray) -> None:
    only = "deep fat|subcutaneous fat"
    septa = np.abs(v.noise(9.0)) > 0.10
    uneven = 4 * v.noise(12.0)
    v.paint("thigh muscle", "muscle", inner & septa & (v.z > 44 + uneven + 0.35 * np.abs(v.y + 10)), only=only)
    v.paint(
        "leg muscle",
        "muscle",
        inner & septa & (v.z < -40 + uneven - 0.35 * np.abs(v.y - 30)) & ~((v.x < 6) & (v.y < -6)),
        only=only,
    )
    for side in (-1, 1):
        v.tube(
            "gastrocnemius",
            "muscle",
            [(side * 18, 34, 24), (side * 20, 40, -20), (side * 20, 36, -80)],
            [9, 17, 22],
            only=only,
        )
        v.tube(
            "hamstrings",
            "muscle",
            [(side * 34, 34, 80), (side * 36, 36, 20), (side * 34, 24, -20)],
            [17, 12, 5],
            only=only,
        )
        v.tube("vastus", "muscle", [(side * 34, -16, 80), (side * 38, -20, 34)], [20, 9], only=only)
    v.tube("vastus", "muscle", [(0, -32, 90), (0, -32, 60)], [16, 5], only=only)
    v.tube("deep calf", "muscle", [(8, 22, -36), (8, 16, -80)], [10, 22], only=only)
    v.tube("popliteal artery", "flowing blood", [(2, 34, 80), (2, 36, 0), (2, 30, -80)], 4)
    v.tube("popliteal vein", "flowing blood", [(7, 42, 80), (7, 44, 0), (6, 36, -80)], 4.5)


def _bones(v: Volume, s: float) -> None:
    gap = 0.0
    for what, made_of, t in (("", "cortical bone", 0.0), (" marrow", "yellow marrow bone", 1.9)):
        v.tube(
            f"femur{what}",
            made_of,
            [(0, -2, 90), (0, -1, 44), (0, 2, 28)],
            [15 * s - 2 * t, 17 * s - 1.6 * t, 23 * s - t],
        )
        for side, name in ((-1, "medial"), (1, "lateral")):
            v.ellipsoid(
                f"{name} femoral condyle{what}",
                made_of,
                (side * 21 * s, 4, 22 + gap),
                (17 * s - t, 31 * s - t, 22 * s - t),
            )
            v.ellipsoid(
                f"{name} tibial plateau{what}",
                made_of,
                (side * 18 * s, 5, -14),
                (22 * s - t, 25 * s - t, 11 * s - t),
                power=3,
            )
        v.ellipsoid(f"tibia{what}", made_of, (0, 5, -24), (34 * s - t, 24 * s - t, 16 - t), power=2.6)
        v.tube(
            f"tibia{what}",
            made_of,
            [(0, 4, -24), (0, -2, -44), (-1, -4, -95)],
            [28 * s - t, 18 * s - 1.4 * t, 14 * s - 2.2 * t],
        )
        v.ellipsoid(f"tibial tubercle{what}", made_of, (2, -20, -38), (9 - t, 8 - t, 11 - t))
        v.tube(f"fibula{what}", made_of, [(34 * s, 20, -28), (32 * s, 20, -90)], [8.5 - t, 6.5 - 1.3 * t])
        v.ellipsoid(f"patella{what}", made_of, (2, -42 * s, 18), (21 * s - t, 9.5 - t, 20 * s - t), power=2.5)
    v.ellipsoid("notch", "fat", (0, 20, 12), (8.5 * s, 24, 17), only="femur*|*condyle*")
    v.ellipsoid("trochlea", "cartilage", (2, -34, 24), (9, 5, 16), only="femur|*condyle|femur marrow|*condyle marrow")
    v.tube("tibial spine", "cortical bone", [(0, 8, -8), (0, 8, 2)], [6, 2.5])


def _inside(v: Volume, who: Person, s: float) -> None:
    fluid = who.change("joint_fluid")
    bone = "deep fat|subcutaneous fat|vastus"
    for side, name in ((-1, "medial"), (1, "lateral")):
        lost = who.change(f"{name}_cartilage")
        condyle = v.radius((side * 21 * s, 4, 22), (17 * s + 2.6 * lost, 31 * s + 2.6 * lost, 22 * s + 2.6 * lost), ALL)
        v.paint(
            f"{name} femoral cartilage",
            "cartilage",
            (condyle < 1) & (v.z < 28) & (np.abs(v.x) > 6),
            only="deep fat|notch",
        )
        plateau = np.abs((v.x - side * 18 * s) / (20 * s)) ** 3 + np.abs((v.y - 5) / (23 * s)) ** 3
        top = -14 + 11 * s
        band = (v.z > top - 3) & (v.z < top + 2.4 * lost)
        v.paint(f"{name} tibial cartilage", "cartilage", (plateau < 0.95) & band, only="deep fat|notch")
        # A wedge that follows the rim of the plateau, high outside and thin inside, open towards the middle.
        rim = np.sqrt(((v.x - side * 18 * s) / (21 * s)) ** 2 + ((v.y - 5) / (25 * s)) ** 2)
        wedge = (rim > 0.5) & (rim < 1.04) & (v.z > top) & (v.z < top + 1.5 + 13 * (rim - 0.5)) & (side * v.x > 5)
        v.paint(f"{name} meniscus", "meniscus", wedge, only="deep fat|notch|*cartilage")
    v.ellipsoid(
        "patellar cartilage", "cartilage", (2, -42 * s + 8.5, 18), (17 * s, 4.0, 16 * s), only=bone + "|patella"
    )
    v.ellipsoid("fat pad", "fat", (2, -30, -4), (22, 12, 16), only="deep fat")
    v.ellipsoid("joint fluid", "water", (2, -26, 48), (20 * fluid**0.5, 3.2 * fluid, 15 * fluid**0.5), only=bone)
    v.ellipsoid("joint fluid", "water", (0, 18, 4), (6, 5 * fluid, 8), only="notch|deep fat")
    if fluid > 1.5:
        for side in (-1, 1):
            v.ellipsoid("joint fluid", "water", (side * 34, -24, 22), (7, 14, 24), only=bone)


def _bands(v: Volume, s: float) -> None:
    v.tube(
        "anterior cruciate ligament",
        "ligament",
        [(7, 18, 18), (-1, -6, -2)],
        [3.6, 4.2],
        only="notch|deep fat|joint fluid|fat pad|tibial*",
    )
    v.tube(
        "posterior cruciate ligament",
        "ligament",
        [(-6, 2, 16), (-1, 20, 10), (0, 30, -10)],
        [4.2, 4.8, 4.2],
        only="notch|deep fat|joint fluid|*meniscus",
    )
    v.tube(
        "medial collateral ligament",
        "ligament",
        [(-40 * s, 0, 28), (-41 * s, 0, 0), (-32 * s, -4, -42)],
        2.4,
        only="deep fat|subcut*|vastus|hamst*|*cartilage",
    )
    v.tube(
        "lateral collateral ligament",
        "ligament",
        [(40 * s, 8, 26), (38 * s, 20, -24)],
        2.2,
        only="deep fat|subcut*|vastus|hamst*",
    )
    v.tube("patellar tendon", "ligament", [(2, -48 * s, 2), (2, -28, -38)], 4.0, only="deep fat|subcut*|fat pad|skin")
    v.tube(
        "quadriceps tendon", "ligament", [(2, -46 * s, 36), (1, -38, 90)], 4.2, only="deep fat|subcut*|vastus|joint*"
    )
