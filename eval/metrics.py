"""How well scores discriminate the cases that have a disorder from those that do not, for each disorder.

    >>> values = measure(scores, labels)  # (cases, disorders) each
    >>> values["auc"][3], macro(values["auc"], training_counts)["tail"]  # radfm.eval.bands
    >>> resamples = measure(scores, labels, patient_weights(patients, 1000))  # (disorders, resamples) each

At a threshold, all cases whose score reaches it are called positive: TP of the P cases that have the disorder, and FP
of the N cases that do not.

| metric | definition | in scikit-learn |
|---|---|---|
| auc | how often a positive case has a higher score than a negative one; a tie counts half | `roc_auc_score` |
| ap | over falling thresholds, the sum of gain in recall times precision, without interpolation | `average_precision_score` |
| f1 | the best 2 TP / (P + TP + FP) of all thresholds | the best `f1_score` |
| mcc | Matthews' correlation at that threshold, the highest if several are best; 0 if all cases reach it | `matthews_corrcoef` |
| recall@fpr=0.01 | the best TP / P of all thresholds with FP / N at most 0.01, without interpolation; also 0.05, 0.1 | `roc_curve` |

Decisions:
- A metric is one entry of `METRICS`: reports, tables, figures and model cards read its name and range from there.
- The metrics are those of RadDiag (Nature Communications 15:10147, 2024). The threshold of f1 and mcc is chosen on the
  cases that it is measured on, anew in every resample: they tell how well the best threshold does, not how well a
  threshold does that was chosen before.
- A disorder that all or none of the cases have has no value: nan.
- Only scores of positive cases matter as thresholds: any other threshold only adds false positives. So each case falls
  into a segment, either at one of those scores or between two. A resample of the bootstrap is how often each case
  counts. Summing these counts by segment measures a disorder in all resamples at once, after one sort.
- Counts are whole numbers in float32, exact up to 16 million cases; they are divided in float64.
"""  # noqa: E501

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from radfm.eval.bands import macro
from radfm.progress import Progress, no_progress

_CELLS = 250_000  # thresholds x resamples that are computed together


@dataclass(frozen=True)
class Metric:
    """A metric of one disorder.

    Attributes:
        compute: curve of a disorder -> (resamples,) values, nan in a resample without positives or negatives.
        name: for tables and figures.
        range: lowest and highest value that it can have.
        higher_is_better: its direction.
        chance: expected value of random scores; None where it depends on how frequent a disorder is.
        hub_name: the metric's name in model cards of the Hugging Face Hub; None: it is not part of a model-index.
        in_card: whether the table of a model card shows it.
    """

    compute: Callable[["Curve"], Tensor]
    name: str
    range: tuple[float, float] = (0, 1)
    higher_is_better: bool = True
    chance: float | None = None
    hub_name: str | None = None
    in_card: bool = True

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: all but the function."""
        return {key: value for key, value in asdict(self).items() if key != "compute"} | {"range": list(self.range)}


@dataclass
class Curve:
    """Counts of one disorder at the scores of its positive cases, from the highest: (thresholds, resamples) float64.

    Attributes:
        hits: positive cases whose score equals the threshold.
        tp, fp: positive and negative cases whose score reaches the threshold.
        fp_above: negative cases whose score is above it.
        p, n: (resamples,) all positive and all negative cases.
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


def measure(
    scores: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None = None,
    metrics: Sequence[str] | None = None,
    progress: Progress = no_progress,
    counted: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Metric -> (disorders,) float64, or with weights (disorders, resamples) float32; nan where a class is empty.

    Args:
        scores: (cases, disorders), the higher the more likely; infinite scores are allowed.
        labels: (cases, disorders) of 0 and 1.
        weights: (cases, resamples) whole numbers: how often a resample counts each case. None: once.
        metrics: keys of `METRICS`; None: all.
        counted: (cases, disorders) bool: the cases that a disorder is measured on. None: all.
    Raises:
        ValueError: shapes that differ, no cases, scores that are nan, labels other than 0 and 1, no positive at all.
    """
    scores, labels = checked(scores, labels)
    if weights is not None and (weights.ndim != 2 or len(weights) != len(scores)):
        raise ValueError(f"weights are (cases, resamples), here ({len(scores):,}, resamples), not {weights.shape}")
    names = list(METRICS if metrics is None else metrics)
    if unknown := sorted(set(names) - set(METRICS)):
        raise ValueError(f"there is no metric {unknown[0]!r}: there are {', '.join(METRICS)}")
    counts = torch.ones(len(scores), 1) if weights is None else torch.from_numpy(np.float32(weights))
    dtype = np.float64 if weights is None else np.float32
    values = {name: np.full((scores.shape[1], counts.shape[1]), np.nan, dtype) for name in names}
    ranked = np.ascontiguousarray(-scores.T)
    with _one_thread():
        for disorder in range(len(ranked)):
            progress(disorder, len(ranked))
            rows = slice(None) if counted is None else np.flatnonzero(counted[:, disorder])
            positive = np.flatnonzero(labels[rows, disorder])
            if 0 < len(positive) < len(labels[rows]):
                for part, curve in _curves(ranked[disorder][rows], positive, counts[rows]):
                    for name in names:
                        values[name][disorder, part] = METRICS[name].compute(curve)
    return {name: value[:, 0] for name, value in values.items()} if weights is None else values


def roc(
    scores: np.ndarray,
    labels: np.ndarray,
    rates: np.ndarray,
    weights: np.ndarray,
    counted: np.ndarray | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """The ROC curves of the disorders that can be measured, one after another: row, and recall (rates, resamples).

    As in the metrics above, recall is the best of all thresholds whose false positive rate is at most the given one. It
    is nan in a resample without positive or without negative cases.

    Args:
        scores, labels, weights, counted: as in `measure`.
        rates: (rates,) false positive rates, ascending.
    Raises:
        ValueError: as `measure`.
    """
    scores, labels = checked(scores, labels)
    counts, rates = torch.from_numpy(np.float32(weights)), torch.as_tensor(rates, dtype=torch.float64)
    for disorder in range(scores.shape[1]):
        rows = slice(None) if counted is None else np.flatnonzero(counted[:, disorder])
        positive = np.flatnonzero(labels[rows, disorder])
        if not 0 < len(positive) < len(labels[rows]):
            continue
        recall = np.empty((len(rates), counts.shape[1]))
        with _one_thread():
            for part, curve in _curves(-scores[rows, disorder], positive, counts[rows]):
                recall[:, part] = _recall_at(rates, curve)
        yield disorder, recall


def macro_auc(
    scores: np.ndarray, labels: np.ndarray, training_counts: np.ndarray, counted: np.ndarray | None = None
) -> dict[str, float]:
    """The mean AUC over the disorders that some of these cases have and some have not, for a training log.

    Args:
        scores, labels, counted: as in `measure`.
        training_counts: (disorders,) training cases of each.
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


def same_groups(groups: Sequence[Sequence[str]], labels: np.ndarray) -> np.ndarray:
    """(cases, disorders) bool: the case is in a group in which the disorder occurs, to be `counted` by `measure`.

    Args:
        groups: (cases,) the groups of each: none, one, or several, such as the body parts that it shows.
        labels: (cases, disorders) of 0 and 1.
    """
    names = sorted({group for of_case in groups for group in of_case})
    membership = np.array([[name in of_case for name in names] for of_case in groups], int)
    membership = membership.reshape(len(groups), len(names))
    return membership @ (membership.T @ labels > 0) > 0


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


def _curves(ranked: np.ndarray, positive: np.ndarray, weights: Tensor) -> Iterator[tuple[slice, Curve]]:
    """The curve in blocks of resamples. `ranked` (cases,) rises as scores fall; `positive` are rows of cases."""
    thresholds, hit = np.unique(ranked[positive], return_inverse=True)
    # Segment 2k lies between threshold k - 1 and k, segment 2k + 1 on threshold k.
    segments = np.searchsorted(thresholds, ranked, "left") + np.searchsorted(thresholds, ranked, "right")
    segments, hit, positive = map(torch.from_numpy, (segments, hit, positive))
    size = max(1, _CELLS // (2 * len(thresholds) + 1))
    for start in range(0, weights.shape[1], size):
        block = slice(start, start + size)
        part = weights if size >= weights.shape[1] else weights[:, block].contiguous()
        empty = part.new_zeros(2 * len(thresholds) + 1, part.shape[1])
        cumulative = empty.index_add(0, segments, part).double().cumsum(0)
        hits = empty[: len(thresholds)].index_add(0, hit, part[positive]).double()
        tp = hits.cumsum(0)
        p = tp[-1]
        yield block, Curve(hits, tp, cumulative[1::2] - tp, cumulative[:-1:2] - (tp - hits), p, cumulative[-1] - p)


def _auc(curve: Curve) -> Tensor:
    outranked = curve.n - (curve.fp + curve.fp_above) / 2
    return (curve.hits * outranked).sum(0) / (curve.p * curve.n)  # 0 / 0 is nan


def _ap(curve: Curve) -> Tensor:
    precision = (curve.tp / (curve.tp + curve.fp)).nan_to_num(0)  # a resample may have no case up to here
    return _of_two_classes(curve, (curve.hits * precision).sum(0) / curve.p)


def _f1(curve: Curve) -> Tensor:
    return _of_two_classes(curve, curve.f1.amax(0))


def _mcc(curve: Curve) -> Tensor:
    best = curve.f1.argmax(0), torch.arange(curve.f1.shape[1])
    tp, fp = curve.tp[best], curve.fp[best]
    fn, tn = curve.p - tp, curve.n - fp
    scale = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt()
    return _of_two_classes(curve, ((tp * tn - fp * fn) / scale).nan_to_num(0))


def _recall(at_fpr: float, curve: Curve) -> Tensor:
    return _recall_at(torch.tensor([at_fpr], dtype=torch.float64), curve)[0]


def _recall_at(rates: Tensor, curve: Curve) -> Tensor:
    """(rates, resamples)"""
    most = (rates[:, None] * curve.n).ceil()
    most -= (most / curve.n > rates[:, None]).double()  # the most false positives whose rate, after rounding, is within
    within = torch.searchsorted(curve.fp.T.contiguous(), most.T.contiguous(), right=True)  # (resamples, rates)
    tp = torch.cat([torch.zeros_like(curve.tp[:1]), curve.tp]).T
    return _of_two_classes(curve, tp.gather(1, within).T / curve.p)


def _of_two_classes(curve: Curve, values: Tensor) -> Tensor:
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


METRICS: dict[str, Metric] = {
    "auc": Metric(_auc, "AUC", chance=0.5, hub_name="roc_auc"),
    "ap": Metric(_ap, "AP", hub_name="average_precision"),
    "f1": Metric(_f1, "F1"),
    "mcc": Metric(_mcc, "MCC", range=(-1, 1), chance=0.0),
    "recall@fpr=0.01": Metric(partial(_recall, 0.01), "recall at FPR 1%", in_card=False),
    "recall@fpr=0.05": Metric(partial(_recall, 0.05), "recall at FPR 5%"),
    "recall@fpr=0.1": Metric(partial(_recall, 0.1), "recall at FPR 10%", in_card=False),
}
