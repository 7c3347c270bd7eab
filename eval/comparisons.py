"""Differences between two models, and between subgroups of cases.

Decisions:
- Two models are compared on the same cases and in the same resamples, so the difficulty of a case affects both.
- The test for each disorder is DeLong's, with the cases of a patient as one cluster. It accounts for the sampling of
  cases, and not for that of seeds: it is for two trained models, not for two ways to train.
- Many disorders are many tests: p values are adjusted by Holm (chance of any false positive) or Benjamini-Hochberg
  (false discovery rate).
- The gap between subgroups is that between the best and the worst measured group, which are the same in all resamples.
  Groups differ in their disorders, so the gap is also given over the disorders that both have.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control, norm, rankdata

from radfm.eval.bands import macro
from radfm.eval.bootstrap import interval, measure_with_resamples
from radfm.eval.metrics import checked
from radfm.presentation import BAND_MINIMA

LEAST_CASES = 10  # that a subgroup has to have to be best or worst

Figure = dict[str, float]  # value, low, high


def figure(value: np.ndarray | float, resamples: np.ndarray, within: tuple[float, float] = (0, 1)) -> Figure:
    """A value with the interval of its resamples (resamples,)."""
    low, high = interval(resamples, value, within)
    return {"value": float(value), "low": float(low), "high": float(high)}


def macro_differences(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    training_counts: np.ndarray,
    minima: tuple[int, int] = BAND_MINIMA,
) -> dict[str, Figure]:
    """By how much the second's macro average is higher: "all", "head", "body", "tail" -> value, low, high.

    Args:
        first, second: values (disorders,) and resamples (disorders, resamples) of one metric with the same weights, see
            `radfm.eval.bootstrap.measure_with_resamples`.
        training_counts, minima: as in `radfm.eval.bands.macro`.
    """
    values = macro(second[0] - first[0], training_counts, minima)
    resamples = macro(second[1] - first[1], training_counts, minima)
    return {band: figure(values[band], resamples[band], (-np.inf, np.inf)) for band in values}


def delong(
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    patients: Sequence,
    counted: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """By how much the second model's AUC is higher for each disorder, and the two-sided p value: (disorders,) each.

    DeLong, DeLong and Clarke-Pearson, Biometrics 44:837, 1988, by ranks as Sun and Xu (IEEE Signal Processing Letters
    21:1389, 2014); with patients as clusters, Obuchowski, Biometrics 53:567, 1997, which is the same where each patient
    has one case.

    Args:
        first, second: (cases, disorders) scores.
        labels: (cases, disorders) of 0 and 1.
        patients: (cases,) the patient of each case.
        counted: as in `radfm.eval.metrics.measure`.
    Returns:
        p is nan where it is not defined: a class has fewer than two patients, or a difference has no variance. It is 1
        where both models rank alike.
    Raises:
        ValueError: as `radfm.eval.metrics.measure`, or shapes that differ.
    """
    (first, labels), second = checked(first, labels), checked(second, labels)[0]
    if len(patients) != len(labels):
        raise ValueError(f"{len(patients):,} patients for {len(labels):,} cases: give one for each case")
    clusters = np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1]
    differences, p = np.full(labels.shape[1], np.nan), np.full(labels.shape[1], np.nan)
    for disorder in range(labels.shape[1]):
        rows = slice(None) if counted is None else np.flatnonzero(counted[:, disorder])
        positive = labels[rows, disorder]
        if positive.all() or not positive.any():
            continue
        of_positives, of_negatives = (
            after - before
            for before, after in zip(
                _placements(first[rows, disorder], positive), _placements(second[rows, disorder], positive), strict=True
            )
        )
        of_rows = clusters[rows]
        difference = of_positives.mean()
        variance = _variance(of_positives, of_negatives, of_rows[positive], of_rows[~positive])
        differences[disorder] = difference
        if not of_positives.any() and not of_negatives.any():
            p[disorder] = 1
        elif variance > 0:
            p[disorder] = 2 * norm.sf(abs(difference) / np.sqrt(variance))
    return differences, p


def adjusted(p: np.ndarray, method: str = "holm") -> np.ndarray:
    """P values of many tests, adjusted; nan stays nan and does not count as a test.

    Args:
        method: "holm" (Holm, Scandinavian Journal of Statistics 6:65, 1979: family-wise error rate) or "bh"
            (Benjamini and Hochberg, JRSS B 57:289, 1995: false discovery rate).
    """
    if method not in ("holm", "bh"):
        raise ValueError(f"there is no adjustment {method!r}: there are holm and bh")
    p = np.asarray(p, np.float64)
    result, known = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    if not len(known):
        return result
    if method == "bh":
        result[known] = false_discovery_control(p[known])
    else:
        order = known[np.argsort(p[known], kind="stable")]
        result[order] = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return result


def subgroups(
    seeds: Sequence[np.ndarray],
    labels: np.ndarray,
    groups: Sequence[Sequence[str]],
    weights: np.ndarray,
    seed: int = 0,
) -> dict:
    """The macro AUC within each group of cases, and the gap between the best and the worst group.

    Args:
        seeds, labels, weights: as in `radfm.eval.bootstrap.measure_with_resamples`.
        groups: (cases,) the groups of each: none, one, or several, such as the modalities of its scans.
    Returns:
        `groups`: group -> `cases`, `disorders` that can be measured, `auc` {value, low, high} or None; `gap`: `best`,
        `worst`, `auc` {value, low, high}, and the same over the `shared_disorders` of the two as `shared_auc`; None
        where fewer than two groups of at least `LEAST_CASES` can be measured.
    """
    members: dict[str, list[int]] = {}
    for case, of_case in enumerate(groups):
        for group in of_case:
            members.setdefault(group, []).append(case)
    rows: dict[str, dict[str, Any]] = {}
    areas: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for group, cases in sorted(members.items()):
        rows[group] = {"cases": len(cases), "disorders": 0, "auc": None}
        has = labels[cases].sum(0)
        if not ((has > 0) & (has < len(cases))).any():
            continue
        of_group = [scores[cases] for scores in seeds]
        measured = measure_with_resamples(of_group, labels[cases], weights[cases], ["auc"], seed=seed)
        values, resamples = areas[group] = measured["auc"]
        rows[group] |= {"disorders": int((~np.isnan(values)).sum()), "auc": figure(*_means(values, resamples))}
    large = [group for group in areas if rows[group]["cases"] >= LEAST_CASES]
    if len(large) < 2:
        return {"groups": rows, "gap": None}
    best, worst = (choose(large, key=lambda g: rows[g]["auc"]["value"]) for choose in (max, min))
    gap: dict[str, Any] = {"best": best, "worst": worst, "auc": figure(*_gap(areas[best], areas[worst]), (-1, 1))}
    shared = ~np.isnan(areas[best][0] + areas[worst][0])
    gap |= {"shared_disorders": int(shared.sum()), "shared_auc": None}
    if shared.any():
        of_both = [(values[shared], resamples[shared]) for values, resamples in (areas[best], areas[worst])]
        gap["shared_auc"] = figure(*_gap(*of_both), (-1, 1))
    return {"groups": rows, "gap": gap}


def _means(values: np.ndarray, resamples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts = np.zeros(len(values))  # the mean over all disorders does not depend on their bands
    return macro(values, counts)["all"], macro(resamples, counts)["all"]


def _gap(best: tuple[np.ndarray, np.ndarray], worst: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    (high, high_resamples), (low, low_resamples) = _means(*best), _means(*worst)
    return high - low, high_resamples - low_resamples


def _placements(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the negatives below each positive, and of the positives above each negative."""
    ranks = rankdata(scores)
    p, n = positive.sum(), (~positive).sum()
    of_positives = (ranks[positive] - rankdata(scores[positive])) / n
    of_negatives = 1 - (ranks[~positive] - rankdata(scores[~positive])) / p
    return of_positives, of_negatives


def _variance(of_positives, of_negatives, positive_clusters, negative_clusters) -> float:
    """Of the mean of `of_positives`, Obuchowski's equation 3; nan where a class has fewer than two clusters."""
    mean, p, n = of_positives.mean(), len(of_positives), len(of_negatives)
    clusters = max(positive_clusters.max(), negative_clusters.max()) + 1
    first = np.bincount(positive_clusters, of_positives - mean, clusters)
    second = np.bincount(negative_clusters, of_negatives - mean, clusters)
    of_p, of_n = len(np.unique(positive_clusters)), len(np.unique(negative_clusters))
    if of_p < 2 or of_n < 2:
        return np.nan
    variance = of_p / (of_p - 1) * (first @ first) / p**2 + of_n / (of_n - 1) * (second @ second) / n**2
    return variance + 2 * clusters / (clusters - 1) * (first @ second) / (p * n)
