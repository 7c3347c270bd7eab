"""Physical properties of tissues for all modalities: `tissues.csv`, one row for each tissue.

Decisions:
- An empty cell of a diseased tissue means "as in the tissue it grows in". A lesion without Hounsfield units of its own
  is invisible to CT and radiographs. Nothing else determines which modality shows a disorder.
- Sources. T1 and T2 at 1.5 T: Rooney et al., Magn Reson Med 57:308 (2007), T1 of brain;
  Stanisz et al., Magn Reson Med 54:507 (2005), T2 of brain, muscle, blood; de Bazelaire et al.,
  Radiology 230:652 (2004), abdomen, pelvis, vertebrae; Gold et al., AJR 183:343 (2004), knee; Rakow-Penner et al., JMRI
  23:87 (2006), breast. Hounsfield units: Schneider et al., Phys Med Biol 45:459 (2000), and the usual textbook ranges.
  Ultrasound attenuation: ICRU report 61; attenuation at 20 keV: NIST XCOM, ICRU report 44. Diseased tissues, contrast
  uptake, tracer uptake and echogenicity are chosen by eye, in the order that radiology textbooks give.
"""

import csv
from functools import cache
from importlib.resources import files

import numpy as np

PROPERTIES = (
    "hu",  # Hounsfield units without contrast medium
    "iodine_hu",  # what portal venous contrast adds, HU
    "t1_ms",  # at 1.5 T
    "t2_ms",
    "pd",  # proton density seen by a spin echo, water = 1; flowing blood has little
    "adc",  # apparent diffusion, 1e-3 mm2/s
    "gd_per_s",  # what gadolinium adds to 1/T1
    "echo_db",  # backscatter
    "attenuation_db_cm",  # of ultrasound, at the frequency used
    "mu20_per_cm",  # attenuation at 20 keV
    "fdg",  # uptake of glucose, muscle = 0.6
    "mdp",  # uptake of bone tracer
    "maa",  # lung perfusion
    "dat",  # dopamine transporters
    "grain",  # relative graininess of all of these
)


def tissue(name: str) -> np.ndarray:
    """The properties of a tissue: (properties,) float32, NaN where those of the host tissue apply.

    Raises:
        KeyError: the table has no such tissue.
    """
    return _table()[name]


@cache
def _table() -> dict[str, np.ndarray]:
    with (files(__package__) / "tissues.csv").open(encoding="utf-8") as file:
        return {
            row["tissue"]: np.array([float(row[p]) if row[p] else np.nan for p in PROPERTIES], np.float32)
            for row in csv.DictReader(file)
        }
