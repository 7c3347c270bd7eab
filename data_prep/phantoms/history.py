"""One line of clinical history, as in a referral: age, sex and complaint, without the diagnosis."""

import numpy as np

from radfm.data_prep.phantoms.disorders import Disorder
from radfm.data_prep.phantoms.person import Person

COMPLAINTS = {  # of normal cases, and of a share of the others
    "chest": ("cough for two weeks", "chest discomfort", "a routine check before surgery", "shortness of breath"),
    "abdomen": ("abdominal discomfort", "a routine check-up", "loss of appetite", "vague abdominal pain"),
    "brain": ("headache", "dizziness", "a first seizure", "a minor head injury"),
    "pelvis": ("pelvic discomfort", "hip pain", "pain after a fall", "a routine check-up"),
    "knee": ("knee pain", "pain after a twisting injury", "a swollen knee"),
    "spine": ("low back pain", "pain after a fall", "back stiffness", "numb feet"),
    "breast": ("an invitation to screening", "breast tenderness", "a recall from screening"),
}
VAGUE_SHARE = 0.35


def write_history(rng: np.random.Generator, person: Person, anatomy: str, disorders: list[Disorder]) -> str:
    """A sentence about the person and a complaint that fits the main disorder or is unspecific."""
    texts = disorders[0].histories if disorders and rng.random() > VAGUE_SHARE else COMPLAINTS[anatomy]
    noun = "woman" if person.female else "man"
    article = "An" if person.age in (18, *range(80, 90)) else "A"
    return f"{article} {person.age}-year-old {noun} with {texts[rng.integers(len(texts))]}."
