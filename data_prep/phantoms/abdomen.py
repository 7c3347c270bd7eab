"""The abdomen: liver, gallbladder, spleen, kidneys, pancreas, stomach, bowel, great vessels, spine, lung bases.

Decisions:
- Sizes and positions are chosen by eye from textbook anatomy, so that organs have plausible proportions. They have no
  published source.
"""

import numpy as np

from radfm.data_prep.phantoms.person import Person
from radfm.data_prep.phantoms.torso import bowel, column, muscles_of_the_back, ribs, wall
from radfm.data_prep.phantoms.volume import Volume

FIELD_OF_VIEW_MM = 344.0


def build(v: Volume, who: Person) -> None:
    scale = (0.93 if who.female else 1.0) * who.vary(0.04)
    fat = 5 + 15 * who.girth
    belly = 1 + 0.10 * (who.girth - 1)
    z = v.z
    width = (134 * scale * belly + fat) * (1 - 0.05 * np.exp(-(((z + 20) / 60) ** 2)))
    depth = 96 * scale * belly + 0.75 * fat
    inside = wall(v, width, depth, fat, 11, "fat")
    cavity = inside < 1

    shell = np.abs(v.x / (118 * scale)) ** 2.4 + np.abs((v.y - 4) / (80 * scale * belly)) ** 2.3
    ribs(v, np.where(cavity, shell, 9), 22 + 62 * np.clip(-v.y / 70, -0.9, 1.2))
    room = cavity & (shell < 1.0)

    dome = np.where(v.x < 0, 146, 132) - 34 * ((np.abs(v.x) - 60) / 62) ** 2 - 30 * (v.y / 70) ** 2
    chest = room & (z > dome)
    v.paint("diaphragm", "muscle", chest)
    v.paint("lung base", "lung", room & (z > dome + 4))
    v.paint(
        "heart",
        "myocardium",
        room & (((v.x - 16) / 54) ** 2 + ((v.y + 24) / 42) ** 2 + ((z - 178) / 42) ** 2 < 1) & (z > dome + 3),
    )
    under = room & ~chest

    _spine(v, who)
    _great_vessels(v, who)
    _liver(v, who, under, scale)
    _left(v, who, scale)
    _kidneys(v, who, scale)
    _gut(v, who, scale)


def _curve(z):
    return 52 - 9 * np.exp(-(((z + 30) / 70) ** 2))


def _spine(v: Volume, who: Person) -> None:
    sway = who.shift(3) + 20 * (who.change("scoliosis") - 1)
    names = ["T9", "T10", "T11", "T12", "L1", "L2", "L3", "L4", "L5", "S1"]
    column(v, who, names, 168, 26, 8, _curve, 21, lambda z: sway * np.sin(z / 60))
    muscles_of_the_back(v, _curve, -190, 190)
    for side in (-1, 1):
        points = [(side * x, y, z) for x, y, z in ((26, 42, 40), (36, 40, -30), (46, 34, -100), (52, 16, -190))]
        v.tube("psoas", "muscle", points, [6, 15, 20, 20], only="*fat|wall muscle")
        v.tube("quadratus", "muscle", [(side * 60, 56, 30), (side * 66, 58, -90)], 13, only="*fat")


def _great_vessels(v: Volume, who: Person) -> None:
    wide = 9.5 * who.vary(0.08) * (1 + 0.003 * (who.age - 50))
    sac = wide * who.change("aorta")
    soft = "*fat|psoas|diaphragm|lung base"
    v.tube("aorta", "flowing blood", [(6, 30, 190), (6, 24, 40)], wide, only=soft)
    v.tube(
        "aorta",
        "flowing blood",
        [(6, 24, 40), (6, 20 - sac * 0.2, 5), (7, 20 - sac * 0.4, -35), (6, 21, -75)],
        [wide, wide, sac, wide],
    )
    v.tube("inferior vena cava", "flowing blood", [(-20, 22, 170), (-20, 22, -78)], 10.5, only=soft + "|*vertebra*")
    for side in (-1, 1):
        v.tube(
            "iliac artery",
            "flowing blood",
            [(6, 21, -74), (6 + side * 22, 22, -120), (side * 46, 8, -180)],
            6.5,
            only=soft,
        )
        v.tube("renal vessel", "flowing blood", [(6, 22, 12), (side * 34, 30, 6), (side * 52, 34, 4)], 4, only=soft)
    v.tube("mesenteric artery", "flowing blood", [(6, 20, 26), (4, 6, 10), (0, 2, -60)], 3.6, only=soft)
    v.tube("coeliac trunk", "flowing blood", [(6, 22, 44), (4, 6, 46)], 3.6, only=soft)
    v.tube("hepatic artery", "flowing blood", [(4, 6, 46), (-28, -2, 44), (-50, -4, 56)], 2.6, only=soft)
    v.tube("splenic artery", "flowing blood", [(4, 6, 46), (40, 22, 50), (78, 34, 60)], 3.2, only=soft)


def _liver(v: Volume, who: Person, under: np.ndarray, scale: float) -> None:
    big = who.vary(0.05) * who.change("liver")
    r = v.radius((-70 * scale, 2, 76), (78 * big, 82, 84 * big), (slice(None),) * 3)
    left = v.radius((4, -34, 96), (72 * big, 34, 42 * big), (slice(None),) * 3, (0, 14, 0))
    lumps = who.change("liver_nodularity") - 1
    edge = 1 + 0.16 * lumps * v.noise(4.0) if lumps > 0 else 1.0
    liver = under & ((r < edge) | (left < edge)) & (v.y < 66 + 0.2 * v.z)
    v.paint("liver", "liver", liver, only="*fat|diaphragm")
    v.ellipsoid("liver fissure", "fat", (-4, -40, 66), (4, 22, 24), only="liver")
    for a, b, c in (
        ((-20, 20, 130), (-70, -10, 92), (-104, -8, 66)),
        ((-20, 20, 130), (-44, -30, 92), (-60, -52, 60)),
        ((-20, 20, 130), (14, -24, 108), (40, -40, 96)),
    ):
        v.tube("hepatic vein", "flowing blood", [a, b, c], [6, 4.5, 3], only="liver")
    portal = [(16, 8, 24), (-24, 2, 50), (-48, -2, 66)]
    v.tube("portal vein", "flowing blood", portal, 7 * who.change("portal_vein"), only="liver|*fat")
    for tip in ((-96, 24, 90), (-100, 18, 44), (-84, -30, 78)):
        v.tube("portal branch", "flowing blood", [portal[-1], tip], [5, 2.5], only="liver")
    v.tube(
        "bile duct",
        "bile",
        [(-44, -6, 62), (-30, 0, 40), (-24, 8, 10)],
        3.0 * who.change("bile_duct"),
        only="liver|*fat|portal*",
    )
    if who.change("bile_duct") > 1.2:
        for tip in ((-92, -10, 84), (-90, 24, 66), (-10, -30, 92)):
            v.tube("dilated intrahepatic duct", "bile", [(-46, -6, 64), tip], [4.5, 3.0], only="liver")
    v.ellipsoid("gallbladder wall", "bowel wall", (-58, -46, 34), (17, 17, 27), only="liver|*fat", turn=(25, 0, 0))
    v.ellipsoid("gallbladder", "bile", (-58, -46, 34), (14, 14, 24), only="gallbladder wall", turn=(25, 0, 0))


def _left(v: Volume, who: Person, scale: float) -> None:
    big = who.vary(0.08) * who.change("spleen")
    v.ellipsoid(
        "spleen",
        "spleen",
        (90 * scale, 30, 88 - 22 * (big - 1)),
        (25 * big, 36 * big, 46 * big),
        only="*fat|diaphragm",
        turn=(18, 0, -14),
    )
    stomach = [(34, 8, 108), (58, -12, 98), (64, -36, 72), (40, -56, 46), (8, -54, 34), (-20, -42, 32)]
    radii = [14, 27, 26, 20, 16, 10]
    v.tube("stomach wall", "bowel wall", stomach, [r + 4 for r in radii], only="*fat|diaphragm")
    v.tube("stomach", "bowel fluid", stomach, radii, only="stomach wall")
    v.paint("stomach gas", "bowel gas", v.where("stomach") & (v.y < -38 + who.shift(5)))
    pancreas = [(-28, -4, 16), (-18, -10, 28), (10, -8, 36), (38, 8, 46), (68, 22, 56)]
    v.tube("pancreas", "pancreas", pancreas, [14, 11, 9, 9.5, 8], only="*fat|portal vein|bile duct|stomach wall")
    v.tube(
        "pancreatic duct", "bile", pancreas[:-1], 1.4 * who.change("pancreatic_duct"), only="pancreas"
    ) if who.change("pancreatic_duct") > 1.2 else None
    v.tube("splenic vein", "flowing blood", [(16, 8, 26), (40, 18, 44), (76, 28, 62)], 4.2, only="*fat|pancreas")


def _kidneys(v: Volume, who: Person, scale: float) -> None:
    for name, side, height in (("right", -1, 4.0), ("left", 1, 16.0)):
        size = who.vary(0.06) * who.change(f"{name}_kidney") * scale
        centre = (side * 60 * scale, 38 + who.shift(3), height + who.shift(6))
        turn = (12.0, side * 14.0, -side * 38.0)
        wide = who.change(f"{name}_renal_pelvis")
        v.ellipsoid(f"{name} perirenal fat", "fat", centre, (40, 38, 66), only="*fat|psoas|quad*")
        v.ellipsoid(
            f"{name} kidney cortex",
            "kidney cortex",
            centre,
            (27 * size, 24 * size, 52 * size),
            turn=turn,
            only="*fat|liver|spleen|psoas|quad*|wall muscle|pancreas|renal*",
        )
        v.ellipsoid(
            f"{name} kidney medulla",
            "kidney medulla",
            centre,
            (18 * size, 16 * size, 41 * size),
            turn=turn,
            only=f"{name} kidney*",
        )
        stripes = v.where(f"{name} kidney medulla") & (np.sin(v.z * 0.42) > 0.62)
        v.paint(f"{name} kidney cortex", "kidney cortex", stripes)
        hilum = (centre[0] - side * 13, centre[1] - 9, centre[2])
        v.ellipsoid(
            f"{name} renal sinus",
            "sinus fat",
            hilum,
            (17 * size, 13 * size, 26 * size),
            turn=turn,
            only=f"{name} kidney*",
        )
        v.ellipsoid(
            f"{name} renal pelvis",
            "urine",
            hilum,
            (7 * wide, 6 * wide, 11 * wide),
            only=f"{name} kidney*|{name} renal*|*fat",
        )
        if wide > 1.3:
            for up in (-26, -9, 9, 26):
                v.ellipsoid(
                    f"{name} renal pelvis",
                    "urine",
                    (centre[0], centre[1], centre[2] + up * size),
                    (7.5 * wide / 1.6,) * 3,
                    only=f"{name} kidney*|{name} renal*",
                )
        way = [
            (hilum[0] - side * 6, hilum[1] - 4, hilum[2] - 8),
            (side * 38, 26, -40),
            (side * 40, 16, -110),
            (side * 44, 14, -190),
        ]
        v.tube(f"{name} ureter", "urine", way, 2.2 * min(wide, 2.2), only="*fat|psoas")
        v.ellipsoid("adrenal", "soft tissue", (side * 40, 30, height + 62), (4, 9, 11), only="*fat")


def _gut(v: Volume, who: Person, scale: float) -> None:
    rng, only = who.rng, "*fat"
    side_x = 102 * scale
    wide = who.change("colon")
    up = [(-side_x + who.shift(4), 8, z) for z in np.linspace(-120, 20, 7)]
    across = [(x, -58 + 0.002 * x * x, -8 - 26 * np.cos(x / 66)) for x in np.linspace(-88, 88, 9)]
    down = [(side_x - 4 + who.shift(4), 20, z) for z in np.linspace(36, -140, 8)]
    bowel(v, who, up, 19 * wide, "ascending colon", "stool", only=only)
    bowel(v, who, across, 16 * wide, "transverse colon", "bowel gas", only=only)
    bowel(v, who, down, 13 * wide, "descending colon", "stool", only=only)
    bowel(v, who, [down[-1], (80, 0, -168), (40, -10, -186)], 13 * wide, "sigmoid colon", "bowel gas", only=only)
    v.paint("colon gas", "bowel gas", v.where("ascending colon lumen|descending colon lumen") & (v.noise(9.0) > 0.7))
    bowel(
        v,
        who,
        [(-22, -40, 30), (-40, -20, 26), (-42, -2, 4), (-22, 4, -14), (20, 2, -8)],
        9,
        "duodenum",
        "bowel fluid",
        only=only,
    )
    v.tube(
        "appendix",
        "bowel wall",
        [(-side_x + 10, 8, -128), (-side_x + 26, 2, -146), (-side_x + 44, -2, -146)],
        4.5 * who.change("appendix"),
        only="*fat|psoas",
    )
    tight = who.change("small_bowel")
    for row, z in enumerate(np.linspace(-28, -162, 6)):
        for y in (-44, -12):
            xs = np.linspace(-70, 66, 10) * rng.choice([-1, 1])
            loop = [(x, y + 12 * np.sin(x / 15 + row + y), z + 9 * np.cos(x / 13 + 2 * row)) for x in xs]
            filling = "bowel gas" if tight > 1.2 and y < -30 else "bowel fluid"
            bowel(v, who, loop, 8 * tight, "small bowel", filling, 2.2, only=only)
    v.paint("small bowel gas", "bowel gas", v.where("small bowel lumen") & (v.noise(6.0) > 1.6) & (v.y < -20))
