"""How well scores tell who has a disorder: disorder by disorder, over head, body and tail, and by rank.

    >>> found = measure(scores, labels)  # (cases, disorders) each
    >>> found["auc"][3], macro(found["auc"], training_counts)["tail"]
    >>> draws = measure(scores, labels, patient_weights(patients, 1000))  # (disorders, draws) each

A threshold calls all cases positive whose score reaches it: TP of the P cases that have the disorder, and FP of the N
that have not.

| metric | definition | in scikit-learn |
|---|---|---|
| auc | how often a positive case outranks a negative one; a tie is half | `roc_auc_score` |
| ap | over falling thresholds, the sum of what recall gains times precision, nothing interpolated | `average_precision_score` |
| f1 | the best 2 TP / (P + TP + FP) of all thresholds | the best `f1_score` |
| mcc | Matthews' correlation at that threshold, the highest if several are best; 0 if all cases reach it | `matthews_corrcoef` |
| recall@fpr=0.01 | the best TP / P of all thresholds with FP / N at most 0.01, nothing interpolated; also 0.05, 0.1 | `roc_curve` |

Decisions:
- The metrics are those of RadDiag (Nature Communications 15:10147, 2024). The threshold of f1 and mcc is chosen on the cases it
  is measured on, in every draw anew: they say how well a threshold can do, not how well one chosen before will do.
- A disorder that all of the cases have, or none, has no value: nan. A macro average leaves it out.
- Only scores of positive cases matter as thresholds: any other adds false alarms and nothing else. So each case falls
  into a segment, on one of those scores or between two; a draw of the bootstrap is how often each case counts; and
  adding up by segment measures a disorder in all draws at once, after one sort of its positives.
- Counts are whole numbers in float32, exact to 16 million cases; they are divided in float64.
"""  # noqa: E501

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from radfm.progress import Progress, no_progress

BANDS = ("head", "body", "tail")
LEAST = (100, 30)  # training cases of a disorder of the head, and of the body
TOP = (1, 5, 10)

_CELLS = 250_000  # thresholds x draws that are looked at together


def measure(
    scores: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None = None,
    metrics: Sequence[str] | None = None,
    progress: Progress = no_progress,
    counted: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Metric -> (disorders,) float64, or with weights (disorders, draws) float32; nan where there is one class only.

    Args:
        scores: (cases, disorders), the higher the likelier; infinite ones can be ranked, too.
        labels: (cases, disorders) of 0 and 1.
        weights: (cases, draws) whole numbers: how often a draw counts each case. None: once.
        metrics: of `METRICS`; None: all.
        counted: (cases, disorders) bool: the cases that a disorder is measured on. None: all.
    Raises:
        ValueError: shapes that differ, no cases, scores that are nan, labels other than 0 and 1, no positive at all.
    """
    scores, labels = checked(scores, labels)
    if weights is not None and (weights.ndim != 2 or len(weights) != len(scores)):
        raise ValueError(f"weights are (cases, draws), here ({len(scores):,}, draws), not {weights.shape}")
    names = list(METRICS if metrics is None else metrics)
    if unknown := sorted(set(names) - set(METRICS)):
        raise ValueError(f"there is no metric {unknown[0]!r}: there are {', '.join(METRICS)}")
    counts = torch.ones(len(scores), 1) if weights is None else torch.from_numpy(np.float32(weights))
    kind = np.float64 if weights is None else np.float32
    found = {name: np.full((scores.shape[1], counts.shape[1]), np.nan, kind) for name in names}
    ranked = np.ascontiguousarray(-scores.T)
    with _one_thread():
        for disorder in range(len(ranked)):
            progress(disorder, len(ranked))
            rows = slice(None) if counted is None else np.flatnonzero(counted[:, disorder])
            positive = np.flatnonzero(labels[rows, disorder])
            if 0 < len(positive) < len(labels[rows]):
                for draws, curve in _curves(ranked[disorder][rows], positive, counts[rows]):
                    for name in names:
                        found[name][disorder, draws] = METRICS[name](curve)
    return {name: values[:, 0] for name, values in found.items()} if weights is None else found


def roc(
    scores: np.ndarray,
    labels: np.ndarray,
    rates: np.ndarray,
    weights: np.ndarray,
    counted: np.ndarray | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """The ROC curves of the disorders that can be measured, one after another: row, and recall (rates, draws) float64.

    Recall is that of the metrics above: the best of all thresholds whose false positive rate is at most so much. It is
    nan in a draw without positive or without negative cases.

    Args:
        scores, labels, weights, counted: as in `measure`.
        rates: (rates,) false positive rates, ascending.
    Raises:
        ValueError: as `measure`.
    """
    scores, labels = checked(scores, labels)
    counts, asked = torch.from_numpy(np.float32(weights)), torch.as_tensor(rates, dtype=torch.float64)
    for disorder in range(scores.shape[1]):
        rows = slice(None) if counted is None else np.flatnonzero(counted[:, disorder])
        positive = np.flatnonzero(labels[rows, disorder])
        if not 0 < len(positive) < len(labels[rows]):
            continue
        recall = np.empty((len(rates), counts.shape[1]))
        with _one_thread():
            for draws, curve in _curves(-scores[rows, disorder], positive, counts[rows]):
                recall[:, draws] = _recall_at(asked, curve)
        yield disorder, recall


def macro(values: np.ndarray, training_counts: np.ndarray, least: tuple[int, int] = LEAST) -> dict[str, np.ndarray]:
    """The mean over the disorders that have a value: "all", "head", "body", "tail" -> (...), nan where none has.

    Args:
        values: (disorders, ...), of one metric; of several draws, each is averaged over what can be measured in it.
        training_counts: (disorders,) training cases of each, which decide on the band.
        least: how many a disorder of the head has at least, and one of the body.
    """
    return {band: _mean(values[rows]) for band, rows in bands(training_counts, least).items()}


def bands(training_counts: np.ndarray, least: tuple[int, int] = LEAST) -> dict[str, np.ndarray]:
    """ "all", "head", "body", "tail" -> (disorders,) bool."""
    counts, (head, body) = np.asarray(training_counts), least
    inside = {"head": counts >= head, "body": (counts >= body) & (counts < head), "tail": counts < body}
    return {"all": np.full(len(counts), True)} | inside


def band_words(least: Sequence[int] = LEAST) -> dict[str, str]:
    """ "head", "body", "tail" -> how many training cases, in words."""
    head, body = least
    return {"head": f"at least {head:,}", "body": f"{body:,} to {head - 1:,}", "tail": f"fewer than {body:,}"}


def same_groups(groups: Sequence[Sequence[str]], labels: np.ndarray) -> np.ndarray:
    """(cases, disorders) bool: the case is in a group in which the disorder occurs, to be `counted` by `measure`.

    Args:
        groups: (cases,) the groups of each: none, one, or several, such as the parts of the body that it shows.
        labels: (cases, disorders) of 0 and 1.
    """
    names = sorted({group for mine in groups for group in mine})
    belongs = np.array([[name in mine for name in names] for mine in groups], int).reshape(len(groups), len(names))
    return belongs @ (belongs.T @ labels > 0) > 0


def macro_auc(
    scores: np.ndarray, labels: np.ndarray, training_counts: np.ndarray, counted: np.ndarray | None = None
) -> dict[str, float]:
    """The mean AUC over the disorders that some of these cases have and some have not, for a training log.

    Args:
        counted: as in `measure`.
    Returns:
        `auc`, and `auc_head`, `auc_body`, `auc_tail` where the band has such a disorder; `disorders`: how many count.
    Raises:
        ValueError: as `measure`, or no disorder can be measured.
    """
    areas = measure(scores, labels, metrics=["auc"], counted=counted)["auc"]
    if np.isnan(areas).all():
        raise ValueError(f"no disorder occurs in some and not in all of the {len(scores):,} cases")
    means = {band: float(mean) for band, mean in macro(areas, training_counts).items() if not np.isnan(mean)}
    result = {"auc": means.pop("all"), "disorders": int((~np.isnan(areas)).sum())}
    return result | {f"auc_{band}": mean for band, mean in means.items()}


def truth_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(cases,) the rank of a case's only disorder among all, from 1; a tie counts against it.

    Nan for cases with several disorders or none: which should come first is not known.
    """
    scores, labels = checked(scores, labels)
    single = labels.sum(1) == 1
    of_truth = np.where(labels, scores, -np.inf).max(1, keepdims=True)
    return np.where(single, (scores >= of_truth).sum(1), np.nan)


def ranking(ranks: np.ndarray, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """ "top1", "top5", "top10": share of cases whose rank is at most that; "median_rank". Each () or (draws,).

    Args:
        ranks: (cases,) from `truth_ranks`; nan is left out.
        weights: (cases, draws) as in `measure`.
    """
    known = ~np.isnan(ranks)
    order = np.argsort(ranks[known], kind="stable")
    ranks = ranks[known][order]
    counts = np.ones((len(ranks), 1)) if weights is None else np.float64(weights[known][order])
    total = counts.sum(0)
    with np.errstate(invalid="ignore"):
        found = {f"top{k}": counts[ranks <= k].sum(0) / total for k in TOP}
    so_far = counts.cumsum(0)
    found["median_rank"] = np.full(counts.shape[1], np.nan)
    if len(ranks):
        lower, upper = (so_far >= total / 2).argmax(0), (so_far > total / 2).argmax(0)
        found["median_rank"] = np.where(total > 0, (ranks[lower] + ranks[upper]) / 2, np.nan)
    return {name: values[0] for name, values in found.items()} if weights is None else found


def checked(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cases, disorders) scores of a float type, and labels as bool. Raises: ValueError, as `measure`."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(f"scores and labels are both (cases, disorders), not {scores.shape} and {labels.shape}")
    if not scores.size:
        raise ValueError(f"nothing to measure: {scores.shape[0]} cases and {scores.shape[1]} disorders")
    scores = scores if np.issubdtype(scores.dtype, np.floating) else scores.astype(np.float64)
    if np.isnan(scores).any():
        case, disorder = np.argwhere(np.isnan(scores))[0]
        raise ValueError(
            f"the score of case {case} for disorder {disorder} is nan, and {np.isnan(scores).sum() - 1} more"
        )
    if labels.dtype != bool:
        if (wrong := ~np.isin(labels, (0, 1))).any():
            case, disorder = np.argwhere(wrong)[0]
            raise ValueError(f"labels are 0 or 1; case {case}, disorder {disorder} has {labels[case, disorder]}")
        labels = labels.astype(bool)
    if not labels.any():
        raise ValueError(f"none of the {len(labels):,} cases has any of the {labels.shape[1]:,} disorders")
    return scores, labels


@dataclass
class _Curve:
    """Of one disorder, at the scores of its positive cases, from the highest: (thresholds, draws) float64.

    Attributes:
        hits: positive cases whose score is the threshold; `tp` and `fp` also those above it.
        fp_above: negative cases above it.
        p, n: (draws,) all positive and all negative cases.
    """

    hits: Tensor
    tp: Tensor
    fp: Tensor
    fp_above: Tensor
    p: Tensor
    n: Tensor

    @cached_property
    def f1(self) -> Tensor:
        return 2 * self.tp / (self.p + self.tp + self.fp)


def _curves(ranked: np.ndarray, positive: np.ndarray, weights: Tensor) -> Iterator[tuple[slice, _Curve]]:
    """The draws in blocks. `ranked` (cases,) rises as scores fall; `positive` are rows of cases."""
    thresholds, hit = np.unique(ranked[positive], return_inverse=True)
    # Segment 2k lies between threshold k - 1 and k, segment 2k + 1 on threshold k.
    segments = np.searchsorted(thresholds, ranked, "left") + np.searchsorted(thresholds, ranked, "right")
    segments, hit, positive = map(torch.from_numpy, (segments, hit, positive))
    size = max(1, _CELLS // (2 * len(thresholds) + 1))
    for start in range(0, weights.shape[1], size):
        draws = slice(start, start + size)
        part = weights if size >= weights.shape[1] else weights[:, draws].contiguous()
        empty = part.new_zeros(2 * len(thresholds) + 1, part.shape[1])
        so_far = empty.index_add(0, segments, part).double().cumsum(0)
        hits = empty[: len(thresholds)].index_add(0, hit, part[positive]).double()
        tp = hits.cumsum(0)
        p = tp[-1]
        yield draws, _Curve(hits, tp, so_far[1::2] - tp, so_far[:-1:2] - (tp - hits), p, so_far[-1] - p)


def _auc(curve: _Curve) -> Tensor:
    outranked = curve.n - (curve.fp + curve.fp_above) / 2
    return (curve.hits * outranked).sum(0) / (curve.p * curve.n)  # 0 / 0 is nan


def _ap(curve: _Curve) -> Tensor:
    precision = (curve.tp / (curve.tp + curve.fp)).nan_to_num(0)  # a draw may have no case up to here
    return _of_two_classes(curve, (curve.hits * precision).sum(0) / curve.p)


def _f1(curve: _Curve) -> Tensor:
    return _of_two_classes(curve, curve.f1.amax(0))


def _mcc(curve: _Curve) -> Tensor:
    best = curve.f1.argmax(0), torch.arange(curve.f1.shape[1])
    tp, fp = curve.tp[best], curve.fp[best]
    fn, tn = curve.p - tp, curve.n - fp
    scale = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt()
    return _of_two_classes(curve, ((tp * tn - fp * fn) / scale).nan_to_num(0))


def _recall(at_fpr: float, curve: _Curve) -> Tensor:
    return _recall_at(torch.tensor([at_fpr], dtype=torch.float64), curve)[0]


def _recall_at(rates: Tensor, curve: _Curve) -> Tensor:
    """(rates, draws)"""
    most = (rates[:, None] * curve.n).ceil()
    most -= (most / curve.n > rates[:, None]).double()  # the most false alarms whose rate, as divided here, is within
    within = torch.searchsorted(curve.fp.T.contiguous(), most.T.contiguous(), right=True)  # (draws, rates) thresholds
    tp = torch.cat([torch.zeros_like(curve.tp[:1]), curve.tp]).T
    return _of_two_classes(curve, tp.gather(1, within).T / curve.p)


def _of_two_classes(curve: _Curve, values: Tensor) -> Tensor:
    return torch.where((curve.p > 0) & (curve.n > 0), values, torch.nan)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The pieces are small: threads would wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _mean(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0, dtype=np.float64) / known.sum(0)


METRICS: dict[str, Callable[[_Curve], Tensor]] = {
    "auc": _auc,
    "ap": _ap,
    "f1": _f1,
    "mcc": _mcc,
    **{f"recall@fpr={rate}": partial(_recall, rate) for rate in (0.01, 0.05, 0.1)},
}
