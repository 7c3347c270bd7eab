"""Draws the disorders and the protocols of each case, with a long tail.

Decisions:
- Cases share one shuffled sequence of evenly spaced quantiles, so that the counts of a whole set follow the table
  closely, and a case can be drawn without the others.
- A tenth of the cases is normal. Some of the others have one or two more disorders of the same anatomy, drawn by their
  frequency.
- Every disorder of a case has a protocol that shows it. Other protocols are added at random, in random order.
"""

from functools import lru_cache

import numpy as np

from radfm.data_prep.phantoms.disorders import Disorder, disorders
from radfm.data_prep.phantoms.protocols import Protocol, protocols

NORMAL_SHARE = 0.1
MOST_SCANS = 6


def draw_disorders(rng: np.random.Generator, seed: int, index: int, cases: int) -> tuple[str, list[Disorder]]:
    """The anatomy of a case and its disorders, the main one first; no disorder for a normal case."""
    if not 0 <= index < cases:
        raise ValueError(f"case {index} is not one of {cases}: use an index from 0 to {cases - 1}")
    table = disorders()
    weights = np.array([d.expected for d in table])
    quantile = (_order(seed, cases)[index] + 0.5) / cases
    if quantile < NORMAL_SHARE:
        anatomies = sorted({d.anatomy for d in table})
        shares = np.array([sum(d.expected for d in table if d.anatomy == a) for a in anatomies])
        return anatomies[rng.choice(len(anatomies), p=shares / shares.sum())], []
    at = (quantile - NORMAL_SHARE) / (1 - NORMAL_SHARE) * weights.sum()
    main = table[int(np.searchsorted(np.cumsum(weights), at))]
    disorders_of_case, count = [main], 1 + _additional(rng, weights.sum())
    sex = set(main.sexes)
    while len(disorders_of_case) < count:
        sex = sex.intersection(*(d.sexes for d in disorders_of_case))
        options = [d for d in table if _may_join(d, disorders_of_case, sex)]
        chances = np.array([d.expected for d in options])
        disorders_of_case.append(options[rng.choice(len(options), p=chances / chances.sum())])
    return main.anatomy, disorders_of_case


@lru_cache(maxsize=4)
def _order(seed: int, cases: int) -> np.ndarray:
    return np.random.default_rng(np.random.SeedSequence([seed, 2**31])).permutation(cases)


def _additional(rng: np.random.Generator, labels_per_2000: float) -> int:
    """Number of additional disorders, at most two; on average as many as the counts of the table need."""
    mean = labels_per_2000 / (2000 * (1 - NORMAL_SHARE)) - 1
    return int(rng.binomial(2, min(max(mean / 2, 0), 1)))


def _may_join(d: Disorder, others: list[Disorder], sexes: set[str]) -> bool:
    return (
        d.anatomy == others[0].anatomy
        and d not in others
        and bool(set(d.sexes) & sexes)
        and not (d.conflict and d.conflict in {other.conflict for other in others})
        and all(d.ages[0] < other.ages[1] - 5 and other.ages[0] < d.ages[1] - 5 for other in others)
    )


def draw_protocols(rng: np.random.Generator, anatomy: str, disorders: list[Disorder]) -> list[Protocol]:
    """1 to 6 acquisitions in random order."""
    options = [p for p in protocols().values() if p.anatomy == anatomy]
    chosen: list[Protocol] = []
    for d in disorders:
        if not any(p.name in d.shows for p in chosen):
            showing = [p for p in options if p.name in d.shows]
            chosen.append(showing[_by_weight(rng, showing)])
    count = min(int(rng.choice(np.arange(1, MOST_SCANS + 1), p=[0.15, 0.25, 0.25, 0.17, 0.1, 0.08])), len(options))
    while len(chosen) < count:
        rest = [p for p in options if p not in chosen]
        chosen.append(rest[_by_weight(rng, rest)])
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _by_weight(rng: np.random.Generator, options: list[Protocol]) -> int:
    weights = np.array([p.weight for p in options])
    return int(rng.choice(len(options), p=weights / weights.sum()))
