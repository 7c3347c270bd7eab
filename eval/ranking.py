"""At which rank a model puts the diagnosis of a case, for cases that have exactly one.

>>> ranking(truth_ranks(scores, labels))["median_rank"]
"""

import numpy as np

from radfm.eval.metrics import checked

TOP = (1, 5, 10)


def truth_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(cases,) the rank, from 1, of a case's only disorder among all disorders; ties count against it.

    Nan for cases with several disorders or none, because the rank that they should have is not defined.

    Args:
        scores, labels: as in `radfm.eval.metrics.measure`.
    """
    scores, labels = checked(scores, labels)
    single = labels.sum(1) == 1
    true_scores = np.where(labels, scores, -np.inf).max(1, keepdims=True)
    return np.where(single, (scores >= true_scores).sum(1), np.nan)


def ranking(ranks: np.ndarray, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """ "top1", "top5", "top10": share of cases whose rank is at most that; "median_rank". Each () or (resamples,).

    Args:
        ranks: (cases,) from `truth_ranks`; nan is left out.
        weights: (cases, resamples) as in `radfm.eval.metrics.measure`.
    """
    known = ~np.isnan(ranks)
    order = np.argsort(ranks[known], kind="stable")
    ranks = ranks[known][order]
    counts: np.ndarray = np.ones((len(ranks), 1)) if weights is None else weights[known][order].astype(np.float64)
    total = counts.sum(0)
    with np.errstate(invalid="ignore"):
        figures = {f"top{k}": counts[ranks <= k].sum(0) / total for k in TOP}
    cumulative = counts.cumsum(0)
    figures["median_rank"] = np.full(counts.shape[1], np.nan)
    if len(ranks):
        lower, upper = (cumulative >= total / 2).argmax(0), (cumulative > total / 2).argmax(0)
        figures["median_rank"] = np.where(total > 0, (ranks[lower] + ranks[upper]) / 2, np.nan)
    return {name: values[0] for name, values in figures.items()} if weights is None else figures
