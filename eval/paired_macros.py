"""Macro AUCs of several models on the same cases and in the same resamples, and any difference between two of them.

    >>> macros = PairedMacros({"images": [table0, table1], "latents": [table2, table3]})
    >>> macros.auc("images")["tail"], macros.difference("latents", "images")["all"]

Decisions:
- `radfm.eval.diagnosis.compare` measures everything and compares with one model. Here only the macro AUC is measured,
  with the same figures, and all pairs are compared.
- Patients are resampled, and seeds, alike for all models: models with equally many seeds are paired by seed.
- The share of a gap that a model closes is a ratio. Where the gap itself is not clear of zero the ratio means nothing,
  and is None. Its interval is that of the resamples as they are, because a ratio has no mean to move them to.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from radfm.eval.bands import bands, macro
from radfm.eval.bootstrap import interval, measure_with_resamples, patient_weights
from radfm.eval.comparisons import Figure, figure
from radfm.eval.diagnosis import require_same_cases
from radfm.eval.scores import Scores
from radfm.presentation import BAND_MINIMA, band_limits
from radfm.progress import Progress, no_progress, part_of

Figures = dict[str, Figure | None]  # "all", "head", "body", "tail"; None where no disorder can be measured


class PairedMacros:
    """
    Args:
        models: name -> its tables of scores, one for each seed, all of the same cases, labels and disorders.
        bootstraps: number of resamples of the patients.
        seed: of the resamples.
        minima: least number of training cases of a disorder of the head, and of the body.

    Attributes:
        cases, patients: their number.
        bands: band -> `disorders`, those `measured`, and how many `training_cases` they have, in words.

    Raises:
        ValueError: tables of other cases, or no disorder that can be measured.
    """

    def __init__(
        self,
        models: Mapping[str, Sequence[Scores]],
        bootstraps: int = 1000,
        seed: int = 0,
        minima: tuple[int, int] = BAND_MINIMA,
        progress: Progress = no_progress,
        within: str | None = None,
    ):
        first = next(iter(models.values()))[0]
        for name, tables in models.items():
            for table in tables:
                require_same_cases(first, table, name)
        labels, counts = first.labels, first.training_counts
        counted = None if within is None else first.within(within)
        compared = np.ones(labels.shape, bool) if counted is None else counted
        measurable = (compared & labels).any(0) & (compared & ~labels).any(0)
        if not measurable.any():
            raise ValueError(f"none of {labels.shape[1]:,} disorders occurs in some and not in all of the cases")
        weights = patient_weights(first.patients, bootstraps, seed)
        self.cases, self.patients = len(labels), len(set(first.patients))
        limits = {"all": {}} | {band: {"training_cases": words} for band, words in band_limits(minima).items()}
        self.bands = {
            band: {"disorders": int(rows.sum()), "measured": int((rows & measurable).sum())} | limits[band]
            for band, rows in bands(counts, minima).items()
        }
        self._macros: dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
        for number, (name, tables) in enumerate(models.items()):
            scores, of_model = [table.scores for table in tables], part_of(progress, number, len(models))
            measured = measure_with_resamples(scores, labels, weights, ["auc"], of_model, seed, counted)
            values, resamples = measured["auc"]
            self._macros[name] = macro(values, counts, minima), macro(resamples, counts, minima)

    def auc(self, model: str) -> Figures:
        values, resamples = self._macros[model]
        return {band: _figure(values[band], resamples[band], (0, 1)) for band in values}

    def difference(self, model: str, other: str) -> Figures:
        """By how much the first model's macro AUC is higher."""
        values, resamples = self._less(model, other)
        return {band: _figure(values[band], resamples[band], (-1, 1)) for band in values}

    def share_closed(self, model: str, low: str, high: str) -> Figures:
        """(model - low) / (high - low), where high is above low with an interval that is clear of zero; else None."""
        (gaps, gap_resamples), (gains, gain_resamples) = self._less(high, low), self._less(model, low)
        return {band: share(gains[band], gaps[band], gain_resamples[band], gap_resamples[band]) for band in gaps}

    def _less(self, model: str, other: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        (values, resamples), (others, other_resamples) = self._macros[model], self._macros[other]
        return (
            {band: values[band] - others[band] for band in values},
            {band: resamples[band] - other_resamples[band] for band in values},
        )


def share(
    gain: np.ndarray | float, gap: np.ndarray | float, gain_resamples: np.ndarray, gap_resamples: np.ndarray
) -> Figure | None:
    """gain / gap with its interval; None where the gap's own interval is not above zero.

    Args:
        gain_resamples, gap_resamples: (resamples,) of both, in the same resamples.
    """
    whole = _figure(gap, gap_resamples, (-1, 1))
    if whole is None or not whole["low"] > 0:
        return None
    ratios = np.divide(gain_resamples, gap_resamples, out=np.full(len(gap_resamples), np.nan), where=gap_resamples > 0)
    low, high = interval(ratios)
    return {"value": float(gain) / float(gap), "low": float(low), "high": float(high)}


def _figure(value: np.ndarray | float, resamples: np.ndarray, within: tuple[float, float]) -> Figure | None:
    return None if np.isnan(value) else figure(value, resamples, within)
