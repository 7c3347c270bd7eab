"""Averages over disorders of the head, body and tail: those with many, some and few training cases.

    >>> macro(measure(scores, labels)["auc"], training_counts)["tail"]

Decisions:
- A macro average counts each disorder that has a value once, and leaves the others out.
"""

import numpy as np

from radfm.presentation import BAND_MINIMA


def macro(
    values: np.ndarray, training_counts: np.ndarray, minima: tuple[int, int] = BAND_MINIMA
) -> dict[str, np.ndarray]:
    """The mean over the disorders that have a value: "all", "head", "body", "tail" -> (...), nan where none has.

    Args:
        values: (disorders, ...) of one metric. With a resample in the last dimension, each resample is averaged over
            the disorders that can be measured in it.
        training_counts: (disorders,) training cases of each, which decide on the band.
        minima: least number of training cases of the head, and of the body.
    """
    return {band: _mean(values[rows]) for band, rows in bands(training_counts, minima).items()}


def bands(training_counts: np.ndarray, minima: tuple[int, int] = BAND_MINIMA) -> dict[str, np.ndarray]:
    """ "all", "head", "body", "tail" -> (disorders,) bool."""
    counts, (head, body) = np.asarray(training_counts), minima
    masks = {"head": counts >= head, "body": (counts >= body) & (counts < head), "tail": counts < body}
    return {"all": np.full(len(counts), True)} | masks


def _mean(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0, dtype=np.float64) / known.sum(0)
