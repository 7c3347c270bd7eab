"""Which of two models is better, on which disorders, and for whom a model is worse.

Decisions:
- Two models are compared on the same cases and in the same draws, so what is hard about a case hurts both.
- Disorder by disorder it is DeLong's test, where a patient's cases count as one cluster. It knows the cases, and not
  that another seed would have given another model: it is for two models, not for two recipes.
- Many disorders are many tests: p values are adjusted, by Holm (no false alarm at all) or Benjamini-Hochberg (few).
- A gap between subgroups is that of the two groups that are best and worst as measured, the same in every draw. Groups
  have other disorders, so the gap is also given over the disorders that both have.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import false_discovery_control, norm, rankdata

from radfm.eval.bootstrap import interval, measure_again
from radfm.eval.metrics import LEAST, checked, macro

LEAST_CASES = 10  # of a subgroup that can be best or worst

Figure = dict[str, float]  # value, low, high


def figure(value: float, draws: np.ndarray, within: tuple[float, float] = (0, 1)) -> Figure:
    """A value with the interval of its draws (draws,)."""
    low, high = interval(draws, value, within)
    return {"value": float(value), "low": float(low), "high": float(high)}


def macro_differences(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    training_counts: np.ndarray,
    least: tuple[int, int] = LEAST,
) -> dict[str, Figure]:
    """By how much the second's macro average is higher: "all", "head", "body", "tail" -> value, low, high.

    Args:
        first, second: (disorders,) values and (disorders, draws) draws of one metric, with the same weights; see
            `radfm.eval.bootstrap.measure_again`.
        training_counts, least: as in `radfm.eval.metrics.macro`.
    """
    values = macro(second[0] - first[0], training_counts, least)
    draws = macro(second[1] - first[1], training_counts, least)
    return {band: figure(values[band], draws[band], (-np.inf, np.inf)) for band in values}


def delong(
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    patients: Sequence,
    counted: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """By how much the second's AUC is higher, disorder by disorder, and the two-sided p value: (disorders,) each.

    DeLong, DeLong and Clarke-Pearson, Biometrics 44:837, 1988, by ranks as Sun and Xu (IEEE Signal Processing Letters
    21:1389, 2014); with patients as clusters, Obuchowski, Biometrics 53:567, 1997, which is the same where each patient
    has one case.

    Args:
        first, second: (cases, disorders) scores.
        labels: (cases, disorders) of 0 and 1.
        patients: (cases,) whose case it is.
        counted: as in `radfm.eval.metrics.measure`.
    Returns:
        p is nan where it cannot be told: a class has fewer than two patients, or a difference has no variance. Where
        both models rank alike, it is 1.
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
        mine = clusters[rows]
        difference = of_positives.mean()
        variance = _variance(of_positives, of_negatives, mine[positive], mine[~positive])
        differences[disorder] = difference
        if not of_positives.any() and not of_negatives.any():
            p[disorder] = 1
        elif variance > 0:
            p[disorder] = 2 * norm.sf(abs(difference) / np.sqrt(variance))
    return differences, p


def adjusted(p: np.ndarray, method: str = "holm") -> np.ndarray:
    """P values of many tests, adjusted; nan stays nan and does not count as a test.

    Args:
        method: "holm" (Holm, Scandinavian Journal of Statistics 6:65, 1979: the chance of any false alarm) or "bh"
            (Benjamini and Hochberg, JRSS B 57:289, 1995: the share of false alarms).
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
    """The macro AUC within each group of cases, and how far the best is from the worst.

    Args:
        seeds, labels, weights: as in `radfm.eval.bootstrap.measure_again`.
        groups: (cases,) the groups of each: none, one, or several, such as the modalities of its scans.
    Returns:
        `groups`: group -> `cases`, `disorders` that can be measured, `auc` {value, low, high} or None; `gap`: `best`,
        `worst`, `auc` {value, low, high}, and the same over the `shared_disorders` of the two as `shared_auc`; None
        where fewer than two groups of at least `LEAST_CASES` can be measured.
    """
    members: dict[str, list[int]] = {}
    for case, mine in enumerate(groups):
        for group in mine:
            members.setdefault(group, []).append(case)
    told, found = {}, {}
    for group, cases in sorted(members.items()):
        told[group] = {"cases": len(cases), "disorders": 0, "auc": None}
        has = labels[cases].sum(0)
        if not ((has > 0) & (has < len(cases))).any():
            continue
        again = measure_again([scores[cases] for scores in seeds], labels[cases], weights[cases], ["auc"], seed=seed)
        values, draws = found[group] = again["auc"]
        told[group] |= {"disorders": int((~np.isnan(values)).sum()), "auc": figure(*_means(values, draws))}
    large = [group for group in found if told[group]["cases"] >= LEAST_CASES]
    if len(large) < 2:
        return {"groups": told, "gap": None}
    best, worst = (choose(large, key=lambda g: told[g]["auc"]["value"]) for choose in (max, min))
    gap = {"best": best, "worst": worst, "auc": figure(*_gap(found[best], found[worst]), (-1, 1))}
    shared = ~np.isnan(found[best][0] + found[worst][0])
    gap |= {"shared_disorders": int(shared.sum()), "shared_auc": None}
    if shared.any():
        of_both = [(values[shared], draws[shared]) for values, draws in (found[best], found[worst])]
        gap["shared_auc"] = figure(*_gap(*of_both), (-1, 1))
    return {"groups": told, "gap": gap}


def _means(values: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    everywhere = np.zeros(len(values))
    return macro(values, everywhere)["all"], macro(draws, everywhere)["all"]


def _gap(best: tuple[np.ndarray, np.ndarray], worst: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return tuple(high - low for high, low in zip(_means(*best), _means(*worst), strict=True))


def _placements(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of negatives that each positive outranks, and of positives that each negative is outranked by."""
    everywhere = rankdata(scores)
    p, n = positive.sum(), (~positive).sum()
    of_positives = (everywhere[positive] - rankdata(scores[positive])) / n
    of_negatives = 1 - (everywhere[~positive] - rankdata(scores[~positive])) / p
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
