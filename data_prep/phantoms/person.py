"""The person of an anatomy: age, sex, girth, and the variation of organs between persons."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Person:
    """A patient.

    Attributes:
        rng: generator of all variation of the person.
        age: years.
        sex: "female" or "male".
        girth: amount of fat relative to the average, 0.5 to 1.8.
        changes: parameter of the anatomy -> factor by which disorders change it; 1 without a change.
    """

    rng: np.random.Generator
    age: int
    sex: str
    girth: float
    changes: Mapping[str, float] = field(default_factory=dict)

    @property
    def female(self) -> bool:
        return self.sex == "female"

    def vary(self, spread: float = 0.06) -> float:
        """A random factor around 1, at most 2.5 spreads away."""
        return 1 + spread * float(np.clip(self.rng.standard_normal(), -2.5, 2.5))

    def shift(self, spread_mm: float = 3.0) -> float:
        """A random offset around 0 mm."""
        return self.vary(spread_mm) - 1

    def change(self, name: str) -> float:
        """The factor by which disorders change a parameter of the anatomy."""
        return self.changes.get(name, 1.0)


def draw_person(
    rng: np.random.Generator, ages: tuple[float, float], sexes: str, changes: Mapping[str, float]
) -> Person:
    """A random person. sexes: letters to draw from, such as "fm" or "fffm"."""
    low, high = ages
    age = round(float(np.clip(low + (high - low) * rng.beta(2.2, 2.0), 18, 95)))
    sex = {"f": "female", "m": "male"}[sexes[rng.integers(len(sexes))]]
    girth = float(np.clip(np.exp(0.28 * rng.standard_normal()), 0.5, 1.8))
    return Person(rng, age, sex, girth, defaultdict(lambda: 1.0, changes))
