"""Confidence intervals by bootstrap: patients are resampled with replacement, and figures measured in each resample.

Decisions:
- Patients are resampled, not cases: cases of one patient are alike, and enter or leave a resample together.
- A resample is how often each case counts (`weights`), so one set of resamples serves all metrics, models and
  subgroups. Two models that are measured in the same resamples are compared in pairs.
- Intervals are percentiles of the resamples (Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter
  13), moved to have the measured value as their mean. A resample that has a positive case twice has two positives at
  one score, which raises average precision and best thresholds: unmoved, an interval of those can lie above the
  measured value.
- For a disorder with a handful of positive patients, intervals are too narrow: no resample has other patients.
"""

from collections.abc import Sequence

import numpy as np

from radfm.eval.metrics import measure
from radfm.progress import Progress, no_progress, part_of

LEVEL = 0.95


def patient_weights(patients: Sequence, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """(cases, resamples) float32: how often each resample counts each case. Each has as many patients as there are.

    Args:
        patients: (cases,) the patient of each case.
        draws: number of resamples.
    Raises:
        ValueError: no cases, or fewer than one resample.
    """
    if not len(patients) or draws < 1:
        raise ValueError(f"{draws} resamples of {len(patients)} cases: there must be at least one of each")
    _, patient_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    n = int(patient_of.max()) + 1
    rng = np.random.default_rng(seed)
    weights = np.empty((len(patient_of), draws), np.float32)
    for draw in range(draws):
        weights[:, draw] = np.bincount(rng.integers(n, size=n), minlength=n)[patient_of]
    return weights


def seed_weights(models: int, draws: int, seed: int = 0) -> np.ndarray:
    """(models, resamples) float64, summing to 1 in each resample: the seeds of one model, resampled as patients are."""
    counts = np.random.default_rng([seed, models]).multinomial(models, np.full(models, 1 / models), size=draws)
    return counts.T / models


def interval(
    resamples: np.ndarray, value: np.ndarray | float | None = None, within: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[np.ndarray, np.ndarray]:
    """(..., resamples) -> (low, high), (...) each, of the resamples that are not nan; nan where all are.

    Args:
        value: (...) the measured value; the resamples are moved to have it as their mean. None: they are not moved.
        within: the range of the figure, to which the interval is clipped.
    """
    ordered = np.sort(resamples, axis=-1)  # nan comes last
    known = (~np.isnan(ordered)).sum(-1, keepdims=True)

    def quantile(share: float) -> np.ndarray:
        position = share * np.maximum(known - 1, 0)
        low, high = np.floor(position).astype(int), np.ceil(position).astype(int)
        below, above = np.take_along_axis(ordered, low, -1), np.take_along_axis(ordered, high, -1)
        return (below + (above - below) * (position - low))[..., 0]

    ends = quantile((1 - LEVEL) / 2), quantile((1 + LEVEL) / 2)
    if value is not None:
        mean = np.where(np.isnan(ordered), 0, ordered).sum(-1, dtype=np.float64) / np.maximum(known[..., 0], 1)
        ends = tuple(end + (value - mean) for end in ends)
    return tuple(np.clip(end, *within) for end in ends)


def measure_with_resamples(
    seeds: Sequence[np.ndarray],
    labels: np.ndarray,
    weights: np.ndarray,
    metrics: Sequence[str] | None = None,
    progress: Progress = no_progress,
    seed: int = 0,
    counted: np.ndarray | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric -> values (disorders,) and resamples (disorders, resamples) of a model, averaged over its seeds.

    Each resample takes patients by `weights` and, if there are several seeds, seeds with replacement.

    Args:
        seeds: (cases, disorders) scores by the model trained with each seed.
        labels, weights, metrics, counted: as in `radfm.eval.metrics.measure`.
        seed: of the resampling of seeds.
    """
    shares = seed_weights(len(seeds), weights.shape[1], seed)
    totals: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for number, scores in enumerate(seeds):
        values = measure(scores, labels, metrics=metrics, counted=counted)
        resamples = measure(scores, labels, weights, metrics, part_of(progress, number, len(seeds)), counted)
        for name in values:
            value, weighted = values[name] / len(seeds), resamples[name] * np.float32(shares[number])
            total = totals.get(name)
            totals[name] = (value, weighted) if total is None else (total[0] + value, total[1] + weighted)
    return totals
