"""ROC curves with intervals, of each disorder and averaged over head, body and tail.

    >>> curves = roc_curves({"KE": [table]}, draws=200)["KE"]
    >>> curves.macro["tail"]  # (rates, 3): recall, low, high at each of RATES

Decisions:
- A curve is recall at given false positive rates, as in `radfm.eval.metrics.roc`, so it agrees with the recall of the
  tables. The macro curve is the mean over disorders at each rate.
- Intervals hold at each rate by itself, not for the curve as a whole. They come from the first resamples of those that
  the metrics are measured in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from radfm.eval.bands import bands
from radfm.eval.bootstrap import interval, patient_weights, seed_weights
from radfm.eval.metrics import roc
from radfm.eval.scores import Scores
from radfm.presentation import BAND_MINIMA
from radfm.progress import Progress, no_progress, part_of

RATES = np.r_[np.arange(11) / 100, np.arange(5, 41) / 40].round(3)  # false positive rates
FEW = np.flatnonzero(np.isin(RATES, [0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]))


@dataclass(frozen=True)
class Curves:
    """
    Attributes:
        macro: "all", "head", "body", "tail" -> (rates, 3) recall, low and high at `RATES`; only bands with a disorder
            that can be measured.
        disorders: (disorders, few, 3) float32 the same of each disorder at `RATES[FEW]`; nan where there is one class.
    """

    macro: dict[str, np.ndarray]
    disorders: np.ndarray


def roc_curves(
    models: Mapping[str, Sequence[Scores]],
    draws: int = 200,
    seed: int = 0,
    within: str | None = None,
    minima: tuple[int, int] = BAND_MINIMA,
    progress: Progress = no_progress,
) -> dict[str, Curves]:
    """Name -> its curves; a model of several tables has the mean of theirs.

    Args:
        models, seed, within: as in `radfm.eval.diagnosis.compare`.
        draws: number of resamples of the patients.
        minima: as in `radfm.eval.bands.macro`.
    """
    return {
        name: _curves(tables, draws, seed, within, minima, part_of(progress, number, len(models)))
        for number, (name, tables) in enumerate(models.items())
    }


def _curves(
    tables: Sequence[Scores], draws: int, seed: int, within: str | None, minima: tuple[int, int], progress: Progress
) -> Curves:
    table = tables[0]
    weights = np.c_[np.ones(len(table.case_ids), np.float32), patient_weights(table.patients, draws, seed)]
    share = np.c_[np.full(len(tables), 1 / len(tables)), seed_weights(len(tables), draws, seed)]
    counted = None if within is None else table.within(within)
    inside = bands(table.training_counts, minima)
    sums = {band: np.zeros((len(RATES), draws + 1)) for band in inside}
    counts = {band: np.zeros((len(RATES), draws + 1)) for band in inside}
    disorders = np.full((len(table.names), len(FEW), 3), np.nan, np.float32)
    of_tables = [roc(one.scores, one.labels, RATES, weights, counted) for one in tables]
    for of_seeds in zip(*of_tables, strict=True):
        row = of_seeds[0][0]
        recall = sum(part * one for part, (_, one) in zip(share, of_seeds, strict=True))  # (rates, 1 + draws)
        disorders[row] = _with_interval(recall[FEW])
        known = ~np.isnan(recall)
        for band, rows in inside.items():
            if rows[row]:
                sums[band] += np.where(known, recall, 0)
                counts[band] += known
        progress(row, len(table.names))
    with np.errstate(invalid="ignore"):
        macro = {b: _with_interval(sums[b] / counts[b]) for b in inside if counts[b].any()}
    return Curves(macro, disorders)


def _with_interval(recall: np.ndarray) -> np.ndarray:
    """(rates, 1 + draws) -> (rates, 3)"""
    low, high = interval(recall[:, 1:], recall[:, 0], (0, 1))
    return np.stack([recall[:, 0], low, high], 1)
