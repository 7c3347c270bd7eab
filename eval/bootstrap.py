"""How sure a figure is: draw patients again, and look how far it moves.

Decisions:
- Patients are drawn, not cases: cases of one patient are alike, and come or stay away together.
- A draw is how often each case counts (`weights`), so one set of draws serves all metrics, models and subgroups. Two
  models that are measured in the same draws are compared pair by pair.
- Intervals are percentiles of the draws (Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13),
  moved to have the measured value as their mean. A draw that has a positive case twice has two positives at one score,
  which flatters average precision and best thresholds: unmoved, an interval of those can lie above what was measured.
- Of a disorder with a handful of positive patients intervals are too narrow: a draw knows no patients but these.
"""

from collections.abc import Sequence

import numpy as np

from radfm.eval.metrics import measure
from radfm.progress import Progress, no_progress

LEVEL = 0.95


def patient_weights(patients: Sequence, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """(cases, draws) float32: how often each draw counts each case. As many patients are drawn as there are.

    Args:
        patients: (cases,) whose case it is.
    Raises:
        ValueError: no cases, or fewer than one draw.
    """
    if not len(patients) or draws < 1:
        raise ValueError(f"{draws} draws of {len(patients)} cases: there must be one of either at least")
    _, patient_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    n = int(patient_of.max()) + 1
    rng = np.random.default_rng(seed)
    weights = np.empty((len(patient_of), draws), np.float32)
    for draw in range(draws):
        weights[:, draw] = np.bincount(rng.integers(n, size=n), minlength=n)[patient_of]
    return weights


def seed_weights(models: int, draws: int, seed: int = 0) -> np.ndarray:
    """(models, draws) float64, summing to 1 in each draw: seeds of one recipe, drawn as patients are."""
    drawn = np.random.default_rng([seed, models]).multinomial(models, np.full(models, 1 / models), size=draws)
    return drawn.T / models


def interval(
    draws: np.ndarray, value: np.ndarray | float | None = None, within: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[np.ndarray, np.ndarray]:
    """(..., draws) -> (low, high), (...) each, of the draws that are not nan; nan where all are.

    Args:
        value: (...) what was measured; the draws are moved to have it as their mean. None: they stay.
        within: what the figure cannot leave.
    """
    ordered = np.sort(draws, axis=-1)  # nan comes last
    known = (~np.isnan(ordered)).sum(-1, keepdims=True)

    def quantile(share: float) -> np.ndarray:
        place = share * np.maximum(known - 1, 0)
        low, high = np.floor(place).astype(int), np.ceil(place).astype(int)
        below, above = np.take_along_axis(ordered, low, -1), np.take_along_axis(ordered, high, -1)
        return (below + (above - below) * (place - low))[..., 0]

    ends = quantile((1 - LEVEL) / 2), quantile((1 + LEVEL) / 2)
    if value is not None:
        mean = np.where(np.isnan(ordered), 0, ordered).sum(-1, dtype=np.float64) / np.maximum(known[..., 0], 1)
        ends = tuple(end + (value - mean) for end in ends)
    return tuple(np.clip(end, *within) for end in ends)


def measure_again(
    seeds: Sequence[np.ndarray],
    labels: np.ndarray,
    weights: np.ndarray,
    metrics: Sequence[str] | None = None,
    progress: Progress = no_progress,
    seed: int = 0,
    counted: np.ndarray | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric -> its values (disorders,) and draws (disorders, draws), of a recipe: the mean over its seeds.

    A draw takes patients by `weights` and, where there are several seeds, as many of them, some twice and some not.

    Args:
        seeds: (cases, disorders) scores of each model that the recipe gave with another seed.
        labels, weights, metrics, counted: as in `radfm.eval.metrics.measure`.
    """
    share = seed_weights(len(seeds), weights.shape[1], seed)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for number, scores in enumerate(seeds):

        def say(done: int, of: int, before: int = number) -> None:
            progress(before * of + done, len(seeds) * of)

        values = measure(scores, labels, metrics=metrics, counted=counted)
        draws = measure(scores, labels, weights, metrics, say, counted)
        for name in values:
            drawn = draws[name] * np.float32(share[number])
            before = found.get(name)
            value = values[name] / len(seeds)
            found[name] = (value, drawn) if before is None else (before[0] + value, before[1] + drawn)
    return found
