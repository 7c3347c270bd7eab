"""One breast on its chest wall: skin, fat, glandular tree towards the nipple, ligaments, pectoral muscle, ribs, axilla.

Decisions:
- A left breast is painted, x towards the outer side. A right breast is its mirror image.
- Density falls with age, from mostly gland to mostly fat.
- Sizes and positions are chosen by eye from textbook anatomy, so that organs have plausible proportions. They have no
  published source.
"""

import numpy as np

from radfm.data_prep.phantoms.person import Person
from radfm.data_prep.phantoms.volume import Volume

FIELD_OF_VIEW_MM = 172.0
ALL = (slice(None),) * 3


def build(v: Volume, who: Person) -> None:
    size = 0.95 + 0.15 * (who.girth - 1) + 0.05 * (who.vary(1.0) - 1)
    size = float(np.clip(size, 0.75, 1.15))
    back = 42.0
    r = v.radius((0, back, -4), (70 * size, 96 * size, 68 * size), ALL, power=2.1)
    dome = (r < 1) & (v.y < back)
    v.paint("skin", "skin", dome)
    fatty = v.radius((0, back, -4), (70 * size - 2.2, 96 * size - 2.2, 68 * size - 2.2), ALL, power=2.1)
    v.paint("breast fat", "fat", (fatty < 1) & (v.y < back))
    v.paint("chest wall fat", "fat", v.y > back - 8)
    v.paint("skin", "skin", (v.y > back - 8) & (v.y < back - 5) & (r > 1.0))
    tip = back - 96 * size
    density = float(np.clip(0.85 - 0.011 * (who.age - 35) + 0.25 * (who.vary(0.5) - 1), 0.08, 0.9))
    coarse, fine = v.noise(9.0), v.noise(3.2)
    depth = (v.y - tip) / (back - tip)  # 0 at the nipple, 1 at the chest wall
    core = v.radius((8, tip + 46, 2), (50 * size, 44 * size, 48 * size), ALL)
    tissue = 0.75 * coarse + 0.5 * fine - 1.9 * core + 0.3 * (1 - np.abs(depth - 0.4))
    gland = (tissue > 0.9 - 2.3 * density) & (core < 1.05) & (fatty < 0.9) & (v.y < back - 10)
    v.paint("gland", "gland", gland, only="breast fat")
    rng = who.rng
    for _ in range(9):
        aim = np.array([rng.normal(6, 22), tip + rng.uniform(44, 72), rng.normal(0, 22)]) * size
        middle = (aim + np.array([0, tip, 0])) / 2 + rng.normal(0, 4, 3)
        v.tube("duct", "gland", [(0, tip + 4, 0), tuple(middle), tuple(aim)], [1.2, 1.0, 0.8], only="breast fat")
    v.paint("ligament of Cooper", "soft tissue", (np.abs(v.noise(7.0)) < 0.05) & (depth < 0.85), only="breast fat")
    v.ellipsoid("nipple", "nipple", (0, tip + 1, 0), (6, 7, 6))
    v.paint("pectoral muscle", "muscle", (v.y > back) & (v.y < back + 13))
    v.paint(
        "pectoral muscle",
        "muscle",
        (v.y > back - 20 + 0.4 * np.abs(v.z - v.x)) & (v.y < back + 13) & (v.z + v.x > 50),
    )
    v.paint("intercostal muscle", "muscle", v.y > back + 13)
    v.paint("rib", "cortical bone", (v.y > back + 14) & (v.y < back + 25) & (((v.z + 0.3 * v.x) / 27) % 1 < 0.42))
    v.paint(
        "rib marrow",
        "red marrow bone",
        (v.y > back + 17) & (v.y < back + 22) & (((v.z + 0.3 * v.x - 3) / 27) % 1 < 0.2),
    )
    v.paint("lung", "lung", v.y > back + 26)
    for _ in range(3):
        at = (rng.uniform(28, 40), rng.uniform(10, 26), rng.uniform(36, 48))
        v.ellipsoid("axillary node", "spleen", at, (4, 3.4, 6), only="*fat|skin|pectoral*")
    for _ in range(4):
        a = np.array([rng.uniform(-40, 40), back - 6, rng.uniform(-30, 40)])
        b = a * [0.4, 0, 0.4] + [0, tip + rng.uniform(35, 60), 0]
        v.tube(
            "breast vessel",
            "soft tissue",
            [tuple(a), tuple((a + b) / 2 + rng.normal(0, 5, 3)), tuple(b)],
            1.1,
            only="breast fat",
        )
