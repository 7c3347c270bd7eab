"""The pelvis: ilium, sacrum, hips and femora, bladder, rectum, prostate or uterus, muscles and vessels.

Decisions:
- Sizes and positions are chosen by eye from textbook anatomy, so that organs have plausible proportions. They have no
  published source.
"""

import numpy as np

from radfm.data_prep.phantoms.person import Person
from radfm.data_prep.phantoms.torso import bowel, column, wall
from radfm.data_prep.phantoms.volume import Volume

FIELD_OF_VIEW_MM = 372.0


def build(v: Volume, who: Person) -> None:
    s = (0.97 if who.female else 1.0) * who.vary(0.03)
    fat = 6 + 15 * who.girth
    depth = 92 * s + 0.8 * fat
    width = 158 * s + fat + 8 * np.exp(-(((v.z + 60) / 50) ** 2))
    wall(v, width, depth, fat, 14, "fat")
    inside = ((v.x / (width - fat)) ** 2 + ((v.y - 4) / (depth - fat)) ** 2) < 1
    for side in (-1, 1):
        thigh = ((v.x - side * 88) / (70 + 0.6 * fat)) ** 2 + ((v.y - 4) / (70 + 0.6 * fat)) ** 2 < 1
        edge = np.clip((-v.z - 20) / 60, 0, 1)  # muscles take over from the pelvic cavity downwards
        v.paint(
            "thigh muscle",
            "muscle",
            inside & thigh & (side * v.x > 78 - 62 * edge) & (v.z < -20),
            only="*fat|wall muscle",
        )
    apart = (v.z < -112) & (np.abs(v.x) < np.clip((-v.z - 112) * 0.3, 0, 14))
    v.paint("air", "air", apart)
    crease = (v.z < -100) & (np.abs(v.x) < 14 + np.clip((-v.z - 100) * 0.1, 0, 8))
    v.paint("visceral fat", "fat", crease & ~apart, only="*muscle")
    wide = 1.06 if who.female else 1.0
    _muscles(v)
    _bones(v, who, s, wide)
    _organs(v, who, s)
    _vessels(v)


def _bones(v: Volume, who: Person, s: float, wide: float) -> None:
    column(
        v,
        who,
        ["L3", "L4", "L5"],
        170,
        27,
        10,
        lambda z: 34 - 14 * np.exp(-(((z - 150) / 50) ** 2)) + 0.12 * (170 - z),
        23,
    )
    sacrum = [(0, 44, 66), (0, 62, 40), (0, 76, 8), (0, 78, -22), (0, 66, -48)]
    v.tube("sacrum", "cortical bone", sacrum, [30, 30, 24, 15, 6])
    v.tube("sacrum marrow", "red marrow bone", sacrum, [28, 28, 22, 13, 4])
    for side in (-1, 1):
        name = "right" if side < 0 else "left"
        v.ellipsoid("sacrum", "cortical bone", (side * 36 * s, 50, 48), (26, 16, 28), turn=(20, 0, 0))
        v.ellipsoid("sacrum marrow", "red marrow bone", (side * 36 * s, 50, 48), (24, 14, 26), turn=(20, 0, 0))
        for z, y in ((50, 46), (28, 62), (8, 70)):
            v.ellipsoid("sacral foramen", "fat", (side * 17, y - 8, z), (4.5, 9, 5))
        _ilium(v, side, s, wide)
        hip = (side * 92 * s * wide, 0.0, -46.0)
        _hip_joint(v, who, side, hip, name)
        _pubis_and_ischium(v, side, s, wide)
        _femur(v, side, hip, name)
    v.ellipsoid("pubic symphysis", "cartilage", (0, -58, -74), (3.5, 9, 16))


def _ilium(v: Volume, side: int, s: float, wide: float) -> None:
    """The wing, a curved sheet from the sacrum to the anterior spine, and the bone below it."""
    bowl = v.radius(
        (side * 38 * s * wide, -8, 52), (66 * s * wide, 78, 72), (slice(None),) * 3, (0, side * 20.0, side * 8.0)
    )
    plate = (bowl > 0.84) & (bowl < 1.02) & (side * v.x > 34) & (v.z > -24) & (v.z < 104) & (v.y > -62) & (v.y < 70)
    crest = 102 - 0.012 * (v.y - 8) ** 2
    plate &= (v.z < crest) & ((v.z > 0) | ((v.y > -16) & (v.y < 44)))
    v.paint("ilium", "cortical bone", plate)
    v.paint("ilium marrow", "red marrow bone", plate & (bowl > 0.89) & (bowl < 0.97) & (v.z < crest - 6))
    v.tube(
        "ilium",
        "cortical bone",
        [(side * 54 * s, 50, 40), (side * 72 * s * wide, 30, 6), (side * 80 * s * wide, 4, -30)],
        [12, 15, 18],
    )
    v.tube(
        "ilium marrow",
        "red marrow bone",
        [(side * 54 * s, 50, 40), (side * 72 * s * wide, 30, 6), (side * 80 * s * wide, 4, -30)],
        [10, 13, 16],
    )


def _hip_joint(v: Volume, who: Person, side: int, hip: tuple[float, float, float], name: str) -> None:
    v.ellipsoid("acetabulum", "cortical bone", hip, (34, 33, 34), only="*muscle|*fat|ilium*")
    v.ellipsoid("acetabulum marrow", "red marrow bone", hip, (32, 31, 32), only="acetabulum")
    v.ellipsoid("*outside", "muscle", (hip[0] + side * 22, hip[1], hip[2] - 16), (32, 36, 30), only="acetabulum*")
    space = 3.5 * who.change(f"{name}_hip_cartilage")
    v.ellipsoid(f"{name} hip cartilage", "cartilage", hip, (24 + space,) * 3)


def _pubis_and_ischium(v: Volume, side: int, s: float, wide: float) -> None:
    v.tube(
        "pubic ramus",
        "cortical bone",
        [(side * 76 * s * wide, -22, -48), (side * 40, -54, -58), (side * 7, -58, -74)],
        [12, 8, 10],
    )
    v.tube(
        "pubic ramus marrow",
        "red marrow bone",
        [(side * 76 * s * wide, -22, -48), (side * 40, -54, -58), (side * 7, -58, -74)],
        [9.5, 5.5, 7.5],
    )
    v.tube(
        "ischium",
        "cortical bone",
        [(side * 80 * s * wide, 24, -52), (side * 62, 30, -92), (side * 50, 10, -112), (side * 14, -46, -92)],
        [15, 14, 10, 7],
    )
    v.tube(
        "ischium marrow",
        "red marrow bone",
        [(side * 80 * s * wide, 24, -52), (side * 62, 30, -92), (side * 50, 10, -112), (side * 14, -46, -92)],
        [12.5, 11.5, 7.5, 4.5],
    )


def _femur(v: Volume, side: int, hip: tuple[float, float, float], name: str) -> None:
    dx = side * 1.0
    neck = [hip, (hip[0] + dx * 42, 6, -78)]
    shaft = [(hip[0] + dx * 42, 6, -76), (hip[0] + dx * 36, 8, -120), (hip[0] + dx * 30, 8, -200)]
    for what, made_of, thin in (("", "cortical bone", 0), (" marrow", "yellow marrow bone", 3.4)):
        v.tube(f"{name} femoral neck{what}", made_of, neck, [18 - thin, 17 - thin])
        v.tube(f"{name} femoral shaft{what}", made_of, shaft, [21 - thin, 16 - 1.6 * thin, 14.5 - 1.6 * thin])
        v.ellipsoid(f"{name} trochanter{what}", made_of, (hip[0] + dx * 50, 10, -66), (14 - thin, 17 - thin, 19 - thin))
        v.ellipsoid(f"{name} femoral head{what}", made_of, hip, (24 - thin * 0.7,) * 3)
    v.tube(f"{name} femoral neck marrow", "yellow marrow bone", neck, [14, 13])


def _muscles(v: Volume) -> None:
    for side in (-1, 1):
        v.ellipsoid(
            "gluteus", "muscle", (side * 76, 62, -10), (54, 30, 86), only="*fat|wall muscle", turn=(0, 0, side * 22)
        )
        v.ellipsoid("gluteus", "muscle", (side * 124, 14, 20), (16, 46, 62), only="*fat|wall muscle")
        v.tube(
            "iliopsoas",
            "muscle",
            [(side * 40, 16, 190), (side * 52, 4, 90), (side * 74, -26, 0), (side * 92, -34, -60)],
            [18, 22, 22, 16],
            only="*fat|wall muscle",
        )
        v.ellipsoid("obturator", "muscle", (side * 52, -4, -66), (11, 34, 34), only="*fat|wall muscle")


def _organs(v: Volume, who: Person, s: float) -> None:
    full = who.vary(0.12)
    bladder = (who.shift(2), -26.0, -26.0 + 6 * full)
    thick = 3.5 * who.change("bladder_wall")
    rectum = [(0, 58, 30), (0, 62, 0), (0, 54, -40), (0, 40, -84)]
    bowel(v, who, rectum, 13, "rectum", "stool", 3.5, only="*fat|*muscle|obturator")
    v.paint("rectal gas", "bowel gas", v.where("rectum lumen") & (v.noise(8.0) > 0.5))
    sigmoid = [(0, 56, 34), (-26, 30, 52), (18, 10, 70), (62, 10, 84), (88, 4, 130), (94, 8, 190)]
    bowel(v, who, sigmoid, 13, "sigmoid colon", "stool", 3, only="*fat")
    for row, z in enumerate((64, 96, 130, 164)):
        loop = [(x, -30 + 16 * np.sin(x / 14 + row), z + 9 * np.cos(x / 11)) for x in np.linspace(-70, 62, 9)]
        bowel(v, who, loop, 9, "small bowel", "bowel fluid", 2.2, only="*fat")
    v.paint("small bowel gas", "bowel gas", v.where("small bowel lumen") & (v.noise(6.0) > 1.3))
    v.ellipsoid(
        "bladder wall",
        "muscle",
        bladder,
        (44 * full + thick, 32 * full + thick, 32 * full + thick),
        only="*fat|small*|obturator",
        power=2.3,
    )
    v.ellipsoid("bladder", "urine", bladder, (44 * full, 32 * full, 32 * full), only="bladder wall", power=2.3)
    if who.female:
        _uterus(v, who)
    else:
        big = who.vary(0.08) * who.change("prostate")
        centre = (0, -10.0, -72.0 + 14 * (big - 1))
        v.ellipsoid(
            "prostate rim",
            "prostate rim",
            centre,
            (25 * big, 18 * big, 20 * big),
            only="*fat|bladder*|obturator|*muscle|rectum wall",
        )
        v.ellipsoid(
            "prostate centre",
            "prostate centre",
            (0, centre[1] - 4 * big, centre[2] + 3),
            (17 * big, 12 * big, 15 * big),
            only="prostate rim",
        )
        for side in (-1, 1):
            v.ellipsoid(
                "seminal vesicle", "urine", (side * 18, 20, -44), (16, 7, 6), only="*fat", turn=(0, side * 20, 0)
            )


def _uterus(v: Volume, who: Person) -> None:
    big = who.vary(0.1) * (0.75 if who.age > 55 else 1.0)
    v.tube("cervix", "myometrium", [(0, 26, -70), (0, 22, -38)], 13, only="*fat|bladder wall")
    v.tube("vagina", "bowel wall", [(0, 20, -110), (0, 26, -70)], 8, only="*fat|*muscle")
    body = (who.shift(3), 8.0, 6.0)
    v.ellipsoid(
        "uterus",
        "myometrium",
        body,
        (28 * big, 22 * big, 36 * big),
        only="*fat|bladder|bladder wall|small*|sigmoid*",
        turn=(28, 0, 0),
    )
    lining = who.change("endometrium")
    v.ellipsoid(
        "endometrium",
        "endometrium",
        body,
        (13 * big * lining**0.5, 4.5 * lining, 23 * big),
        only="uterus",
        turn=(28, 0, 0),
    )
    for side in (-1, 1):
        name = "right" if side < 0 else "left"
        centre = (side * 46, 14.0, 6 + who.shift(5))
        v.ellipsoid(f"{name} ovary", "ovary", centre, (15, 11, 18), only="*fat|small*|sigmoid*|obturator|iliopsoas")
        for _ in range(3):
            at = (centre[0] + who.shift(6), centre[1] + who.shift(6), centre[2] + who.shift(6))
            v.ellipsoid("follicle", "water", at, (3.6, 3.6, 3.6), only="*ovary")


def _vessels(v: Volume) -> None:
    for side in (-1, 1):
        way = [
            (side * 18, 14, 190),
            (side * 40, 10, 100),
            (side * 62, -18, 30),
            (side * 66, -50, -40),
            (side * 70, -52, -190),
        ]
        v.tube("iliac artery", "flowing blood", way, [7, 6.5, 6, 5, 5], only="*fat|*muscle|iliopsoas|obturator")
        v.tube(
            "iliac vein",
            "flowing blood",
            [(x + side * -9, y + 11, z) for x, y, z in way],
            [8, 7.5, 7, 6, 6],
            only="*fat|*muscle|iliopsoas|obturator",
        )
