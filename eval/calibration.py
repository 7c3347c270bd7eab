"""From logits to probabilities, and from those to what counts as found; and how far probabilities come true.

    >>> slopes, shifts = calibrate(logits, labels, LabelKind.MULTI_LABEL)  # fitted to the validation split
    >>> measure_calibration(table)["ece"], before_and_after(table)["after"]["reliability"]

Decisions:
- Every disorder has a slope and a shift of its own, drawn towards those that all share: with many positive cases it is
  Platt's scaling, with few the shared temperature, without any rule about where few ends. All are fitted at once, as
  the most probable ones under the two normal distributions below.
- Disorders of which a case has at most one are calibrated as the softmax that they are.
- A threshold of its own needs positive cases enough to trust it. The other disorders share one.
- Most disorders are rare, so of bins of equal width nearly all pairs of a case and a disorder would be in the first.
  The error is taken over bins of equally many pairs. A curve has bins of equally many foretold disorders, each about as
  well known as the others; draw it on logarithmic axes.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit
from sklearn.model_selection import GroupKFold
from torch import Tensor

from radfm.configuration_radfm import LabelKind
from radfm.eval.bootstrap import patient_weights
from radfm.eval.comparisons import figure
from radfm.eval.metrics import checked
from radfm.eval.scores import Scores
from radfm.losses_radfm import add_no_disorder_label, add_no_disorder_logit, competing_log_odds

POSITIVES_FOR_OWN_THRESHOLD = 10
_SLOPE, _SHIFT = 0.25, 1.0  # standard deviations of a disorder's log slope and shift about the shared ones
_SHARED = 2.0  # and of the shared ones about 0: weak, for a validation split that is separated without an error
_FOLDS = 5


def measure_calibration(table: Scores, bootstraps: int = 1000, seed: int = 0) -> dict[str, Any]:
    """How far the probabilities of a table, the sigmoid of its scores, come true; JSON-able.

    A figure is {value, low, high}, with a 95% interval from draws of the patients.

    Returns:
        `cases`, `pairs` (of a case and a disorder).
        `ece`: figure, the expected calibration error over all pairs, see `calibration_error`.
        `ece_first`: figure, the same over the cases' first-ranked disorders alone.
        `brier`: figure, the mean squared error over all pairs.
        `log_loss`: figure, how surprised the probabilities are of a case's labels, in nats.
        `reliability`: the curve over all pairs, a list of bins {`pairs`, `probability` (their mean), `share` (figure:
        how many came true)}, ascending; `reliability_first`: of the cases' first-ranked disorders.
        `disorders`: a list of {`disorder`, `training_cases`, `cases`, `expected` (cases, by the probabilities), `ece`}.
    Raises:
        ValueError: no cases, or none of them has any of the disorders.

    References:
        Naeini et al., Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015 (the error); Nguyen and
        O'Connor, Posterior calibration and exploratory analysis for natural language processing models, EMNLP 2015,
        https://arxiv.org/abs/1508.05154 (bins of equal count)
    """
    scores, labels = checked(table.scores, table.labels)
    weights = patient_weights(table.patients, bootstraps, seed).astype(np.float64)
    odds = scores.astype(np.float64)
    probabilities = expit(odds)
    surprise = np.logaddexp(0, np.where(labels, -odds, odds)).sum(1)  # (cases,)
    first = odds.argmax(1)[:, None]
    p_first, y_first = (np.take_along_axis(values, first, 1) for values in (probabilities, labels))
    found = {"cases": len(labels), "pairs": labels.size}
    for name, p, y in (("", probabilities, labels), ("_first", p_first, y_first)):
        found[f"ece{name}"] = _error(p, y, weights)
        found[f"reliability{name}"] = _reliability(p, y, weights)
    found["brier"] = _mean(((probabilities - labels) ** 2).mean(1), weights, (0, 1))
    found["log_loss"] = _mean(surprise, weights, (0, np.inf))
    found["disorders"] = [
        {
            "disorder": name,
            "training_cases": int(table.training_counts[d]),
            "cases": int(labels[:, d].sum()),
            "expected": float(probabilities[:, d].sum()),
            "ece": calibration_error(probabilities[:, d], labels[:, d]),
        }
        for d, name in enumerate(table.names)
    ]
    return found


def before_and_after(table: Scores, bootstraps: int = 1000, seed: int = 0) -> dict[str, Any]:
    """What calibrating does to a table: `before` and `after` as `measure_calibration`, and `how`; JSON-able.

    `how` is "saved" where the checkpoint was calibrated: `before` is of its plain logits. Else it is "cross-fitted":
    `after` is what calibrating brings, each case by a fit to the other patients of the table.

    Raises:
        ValueError: as `measure_calibration`, or one patient alone, for whom there are no others.
    """
    if table.logits is not None:
        before, after, how = replace(table, scores=table.logits, logits=None), table, "saved"
    else:
        if len(set(table.patients)) < 2:
            raise ValueError("all cases are of one patient: nothing can be calibrated by the others")
        label_kind = label_kind_of(table.labels)
        logits, labels = torch.tensor(table.scores), torch.tensor(table.labels)
        odds = log_odds(calibrated_by_others(logits, labels, label_kind, table.patients), label_kind)
        before, after, how = table, replace(table, scores=odds.numpy()), "cross-fitted"
    found = (measure_calibration(one, bootstraps, seed) for one in (before, after))
    return dict(zip(("before", "after"), found, strict=True)) | {"how": how}


def label_kind_of(labels: np.ndarray) -> LabelKind:
    """How many disorders the cases of these labels, (cases, disorders), have."""
    counts = labels.sum(1)
    if not counts.size or counts.max() > 1:
        return LabelKind.MULTI_LABEL
    return LabelKind.AT_MOST_ONE if counts.min() == 0 else LabelKind.EXACTLY_ONE


def calibrate(logits: Tensor, labels: Tensor, label_kind: LabelKind) -> tuple[Tensor, Tensor]:
    """Slopes and shifts, (disorders,) each: probabilities are those of `logits * slopes + shifts`.

    Args:
        logits: (cases, disorders).
        labels: (cases, disorders) of 0 and 1.
        label_kind: how many disorders a case can have.

    References:
        Platt, Probabilistic outputs for support vector machines, 1999; Guo et al., On calibration of modern neural
        networks, ICML 2017, https://arxiv.org/abs/1706.04599 (a temperature, which here is one over the shared slope)
    """
    logits, labels = logits.detach().double(), labels.double()
    shared = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    own = torch.zeros(2, logits.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([shared, own], max_iter=500, line_search_fn="strong_wolfe")

    def parameters() -> tuple[Tensor, Tensor]:
        return (shared[0] + own[0]).exp(), shared[1] + own[1]

    def loss() -> Tensor:
        optimizer.zero_grad()
        slopes, shifts = parameters()
        fit = log_loss(logits * slopes + shifts, labels, label_kind) * len(logits)
        spread = ((own[0] / _SLOPE) ** 2).sum() + ((own[1] / _SHIFT) ** 2).sum() + ((shared / _SHARED) ** 2).sum()
        total = fit + spread / 2
        total.backward()
        return total

    optimizer.step(loss)
    slopes, shifts = parameters()
    return slopes.detach().float(), shifts.detach().float()


def calibrated_by_others(logits: Tensor, labels: Tensor, label_kind: LabelKind, groups: list[str]) -> Tensor:
    """(cases, disorders) calibrated logits of each case by the others' fit, to see what calibrating is worth.

    Args:
        groups: (cases,) the patients, whose cases stay together.
    """
    folds = min(_FOLDS, len(set(groups)))
    if folds < 2:
        return logits
    odds = torch.empty_like(logits)
    for others, mine in GroupKFold(folds).split(np.zeros(len(groups)), groups=groups):
        slopes, shifts = calibrate(logits[others], labels[others], label_kind)
        odds[mine] = logits[mine] * slopes + shifts
    return odds


def log_odds(logits: Tensor, label_kind: LabelKind) -> Tensor:
    """(cases, disorders) logits as log odds of each disorder; see `calibrate` for `label_kind`."""
    return logits if label_kind == LabelKind.MULTI_LABEL else competing_log_odds(logits, label_kind)


def log_loss(logits: Tensor, labels: Tensor, label_kind: LabelKind) -> Tensor:
    """() how surprised the probabilities are of a case's labels, in nats: the lower the better."""
    if label_kind == LabelKind.MULTI_LABEL:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none").sum(1).mean()
    logits, labels = add_no_disorder_logit(logits, label_kind), add_no_disorder_label(labels.to(logits), label_kind)
    return -(labels * logits.log_softmax(1)).sum(1).mean()


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 10) -> float:
    """How far, on average, a probability is from how often it came true; over ten bins of equally many pairs.

    Args:
        probabilities, labels: of one shape; labels of 0 and 1.
    """
    gaps, parts = (probabilities - labels).ravel(), _equal_counts(probabilities, bins)
    return float(sum(abs(gaps[part].sum()) for part in parts) / gaps.size)


def thresholds(probabilities: np.ndarray, labels: np.ndarray) -> tuple[list[float], list[bool]]:
    """(disorders,) from which probability on a disorder counts as found, by the best F1; and whether it is its own.

    Args:
        probabilities, labels: (cases, disorders).
    """
    enough = POSITIVES_FOR_OWN_THRESHOLD
    own = (labels.sum(0) >= enough) & ((1 - labels).sum(0) >= enough)
    some = ~own if labels[:, ~own].any() else np.full(len(own), True)
    shared = best_f1_threshold(probabilities[:, some].ravel(), labels[:, some].ravel())
    found = [best_f1_threshold(probabilities[:, d], labels[:, d]) if own[d] else shared for d in range(len(own))]
    return found, own.tolist()


def best_f1_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Halfway between the two cases that the best F1 parts; 0.5 where there is no positive case."""
    if not labels.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    p, hits = probabilities[order], labels[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + labels.sum())
    f1[:-1][p[:-1] == p[1:]] = -1  # equal scores cannot be parted
    last = int(f1.argmax())
    return float(p[last] if last + 1 == len(p) else (p[last] + p[last + 1]) / 2)


def _error(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, bins: int = 10) -> dict[str, float]:
    """`calibration_error` as a figure. Args: (cases, disorders), the same, (cases, draws)."""
    cases, disorders = probabilities.shape
    gaps = _by_case(probabilities - labels, _equal_counts(probabilities, bins))  # (cases, bins)
    draws = np.abs(gaps.T @ weights).sum(0) / (weights.sum(0) * disorders)
    return figure(float(np.abs(gaps.sum(0)).sum() / (cases * disorders)), draws, (0, 1))


def _reliability(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, bins: int = 10) -> list[dict]:
    """The curve, over bins of equally many foretold disorders. Args: as `_error`."""
    parts = _equal_sums(probabilities, bins)
    pairs, true = _by_case(np.ones_like(probabilities), parts), _by_case(labels, parts)  # (cases, bins)
    with np.errstate(invalid="ignore"):
        draws = (true.T @ weights) / (pairs.T @ weights)  # nan where a draw has no such pair
    flat, counts = probabilities.ravel(), pairs.sum(0)
    return [
        {
            "pairs": len(part),
            "probability": float(flat[part].mean()),
            "share": figure(float(true[:, i].sum() / counts[i]), draws[i], (0, 1)),
        }
        for i, part in enumerate(parts)
    ]


def _mean(of_cases: np.ndarray, weights: np.ndarray, within: tuple[float, float]) -> dict[str, float]:
    return figure(float(of_cases.mean()), of_cases @ weights / weights.sum(0), within)


def _by_case(values: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """(cases, disorders) and flat rows of each bin -> (cases, bins): what a case adds to it."""
    flat, case = values.ravel().astype(np.float64), np.arange(values.size) // values.shape[1]
    return np.stack([np.bincount(case[part], flat[part], len(values)) for part in parts], 1)


def _equal_counts(probabilities: np.ndarray, bins: int) -> list[np.ndarray]:
    """Flat rows of each bin, ascending, of equally many pairs; fewer bins where there are fewer pairs."""
    order = np.argsort(probabilities, axis=None, kind="stable")
    return [part for part in np.array_split(order, bins) if len(part)]


def _equal_sums(probabilities: np.ndarray, bins: int) -> list[np.ndarray]:
    """Flat rows of each bin, ascending, whose probabilities sum to about as much; none is empty."""
    order = np.argsort(probabilities, axis=None, kind="stable")
    so_far = probabilities.ravel()[order].astype(np.float64).cumsum()
    ends = np.searchsorted(so_far, so_far[-1] * np.arange(1, bins) / bins)
    return [part for part in np.split(order, ends) if len(part)]
