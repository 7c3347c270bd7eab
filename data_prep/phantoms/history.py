"""A line of clinical history, as a referral has it: age, sex and complaint, never the diagnosis."""

import numpy as np

from radfm.data_prep.phantoms.disorders import Disorder
from radfm.data_prep.phantoms.person import Person

COMPLAINTS = {  # of the healthy, and of a share of the ill, whose referral says little
    "chest": ("cough for two weeks", "chest discomfort", "a routine check before surgery", "shortness of breath"),
    "abdomen": ("abdominal discomfort", "a routine check-up", "loss of appetite", "vague abdominal pain"),
    "brain": ("headache", "dizziness", "a first seizure", "a minor head injury"),
    "pelvis": ("pelvic discomfort", "hip pain", "pain after a fall", "a routine check-up"),
    "knee": ("knee pain", "pain after a twisting injury", "a swollen knee"),
    "spine": ("low back pain", "pain after a fall", "back stiffness", "numb feet"),
    "breast": ("an invitation to screening", "breast tenderness", "a recall from screening"),
}
VAGUE_SHARE = 0.35


def write_history(rng: np.random.Generator, who: Person, anatomy: str, found: list[Disorder]) -> str:
    """One sentence."""
    texts = found[0].histories if found and rng.random() > VAGUE_SHARE else COMPLAINTS[anatomy]
    noun = "woman" if who.female else "man"
    article = "An" if who.age in (18, *range(80, 90)) else "A"
    return f"{article} {who.age}-year-old {noun} with {texts[rng.integers(len(texts))]}."
