"""Calibrates logits to probabilities, chooses thresholds, and measures how well probabilities are calibrated.

    >>> slopes, shifts = calibrate(logits, labels, LabelKind.MULTI_LABEL)  # fitted to the validation split
    >>> measure_calibration(table)["ece"], before_and_after(table)["after"]["reliability"]

Decisions:
- Every disorder has its own slope and shift, with a normal prior around a slope and a shift that all share: with many
  positive cases this is Platt scaling, with few the shared temperature, and there is no limit between the two. All are
  fitted at once by their maximum a posteriori.
- Disorders of which a case has at most one are calibrated through their softmax.
- A disorder has its own threshold if it has enough positive cases. The others share one.
- Most disorders are rare, so with bins of equal width nearly all pairs of a case and a disorder would be in the first
  bin. The error is computed over bins with the same number of pairs. A reliability diagram has bins with the same
  expected number of positives, which makes their intervals similar; its axes should be logarithmic.
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
_SLOPE, _SHIFT = 0.25, 1.0  # standard deviations of a disorder's log slope and shift around the shared ones
_SHARED = 2.0  # and of the shared ones around 0: weak, for splits that are separated without error
_FOLDS = 5


def measure_calibration(table: Scores, bootstraps: int = 1000, seed: int = 0) -> dict[str, Any]:
    """How well the probabilities of a table, the sigmoid of its scores, are calibrated; JSON-able.

    A figure is {value, low, high}, with a 95% interval from bootstrap resamples of the patients.

    Returns:
        `cases`, `pairs` (of a case and a disorder).
        `ece`: figure, the expected calibration error over all pairs, see `calibration_error`.
        `ece_first`: figure, the same over the cases' first-ranked disorders alone.
        `brier`: figure, the mean squared error over all pairs.
        `log_loss`: figure, the negative log likelihood of a case's labels, in nats.
        `reliability`: the curve over all pairs, a list of bins {`pairs`, `probability` (their mean), `share` (figure:
        of positives)}, ascending; `reliability_first`: of the cases' first-ranked disorders.
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
    log_loss = np.logaddexp(0, np.where(labels, -odds, odds)).sum(1)  # (cases,)
    first = odds.argmax(1)[:, None]
    p_first, y_first = (np.take_along_axis(values, first, 1) for values in (probabilities, labels))
    measured: dict[str, Any] = {"cases": len(labels), "pairs": labels.size}
    for name, p, y in (("", probabilities, labels), ("_first", p_first, y_first)):
        measured[f"ece{name}"] = _error(p, y, weights)
        measured[f"reliability{name}"] = _reliability(p, y, weights)
    measured["brier"] = _mean(((probabilities - labels) ** 2).mean(1), weights, (0, 1))
    measured["log_loss"] = _mean(log_loss, weights, (0, np.inf))
    measured["disorders"] = [
        {
            "disorder": name,
            "training_cases": int(table.training_counts[d]),
            "cases": int(labels[:, d].sum()),
            "expected": float(probabilities[:, d].sum()),
            "ece": calibration_error(probabilities[:, d], labels[:, d]),
        }
        for d, name in enumerate(table.names)
    ]
    return measured


def before_and_after(table: Scores, bootstraps: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The effect of calibration on a table: `before` and `after` as `measure_calibration`, and `how`; JSON-able.

    `how` is "saved" if the checkpoint was calibrated: `before` is of its logits. Otherwise it is "cross-fitted":
    `after` is the effect that calibration has, each case by a fit to the other patients of the table.

    Raises:
        ValueError: as `measure_calibration`, or all cases are of one patient.
    """
    if table.logits is not None:
        before, after, how = replace(table, scores=table.logits, logits=None), table, "saved"
    else:
        if len(set(table.patients)) < 2:
            raise ValueError("all cases are of one patient: calibration needs at least two")
        label_kind = label_kind_of(table.labels)
        logits, labels = torch.tensor(table.scores), torch.tensor(table.labels)
        odds = log_odds(calibrated_by_others(logits, labels, label_kind, table.patients), label_kind)
        before, after, how = table, replace(table, scores=odds.numpy()), "cross-fitted"
    measured = [measure_calibration(one, bootstraps, seed) for one in (before, after)]
    return {"before": measured[0], "after": measured[1], "how": how}


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
    """(cases, disorders) calibrated logits of each case by a fit to other patients (cross-fitting).

    Args:
        groups: (cases,) the patient of each case; cases of a patient are in one fold.
    """
    folds = min(_FOLDS, len(set(groups)))
    if folds < 2:
        return logits
    odds = torch.empty_like(logits)
    for others, fold in GroupKFold(folds).split(np.zeros(len(groups)), groups=groups):
        slopes, shifts = calibrate(logits[others], labels[others], label_kind)
        odds[fold] = logits[fold] * slopes + shifts
    return odds


def log_odds(logits: Tensor, label_kind: LabelKind) -> Tensor:
    """(cases, disorders) logits as log odds of each disorder; see `calibrate` for `label_kind`."""
    return logits if label_kind == LabelKind.MULTI_LABEL else competing_log_odds(logits, label_kind)


def log_loss(logits: Tensor, labels: Tensor, label_kind: LabelKind) -> Tensor:
    """() the mean negative log likelihood of a case's labels, in nats."""
    if label_kind == LabelKind.MULTI_LABEL:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none").sum(1).mean()
    logits, labels = add_no_disorder_logit(logits, label_kind), add_no_disorder_label(labels.to(logits), label_kind)
    return -(labels * logits.log_softmax(1)).sum(1).mean()


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 10) -> float:
    """The expected calibration error over bins with the same number of pairs.

    Args:
        probabilities, labels: of one shape; labels of 0 and 1.
    """
    gaps, parts = (probabilities - labels).ravel(), _equal_counts(probabilities, bins)
    return float(sum(abs(gaps[part].sum()) for part in parts) / gaps.size)


def thresholds(probabilities: np.ndarray, labels: np.ndarray) -> tuple[list[float], list[bool]]:
    """(disorders,) the thresholds with the best F1, and whether a disorder has its own.

    Args:
        probabilities, labels: (cases, disorders).
    """
    enough = POSITIVES_FOR_OWN_THRESHOLD
    own = (labels.sum(0) >= enough) & ((1 - labels).sum(0) >= enough)
    some = ~own if labels[:, ~own].any() else np.full(len(own), True)
    shared = best_f1_threshold(probabilities[:, some].ravel(), labels[:, some].ravel())
    of_disorders = [best_f1_threshold(probabilities[:, d], labels[:, d]) if own[d] else shared for d in range(len(own))]
    return of_disorders, own.tolist()


def best_f1_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the best F1, halfway between two cases; 0.5 if there is no positive case."""
    if not labels.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    p, hits = probabilities[order], labels[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + labels.sum())
    f1[:-1][p[:-1] == p[1:]] = -1  # equal scores are on the same side of any threshold
    last = int(f1.argmax())
    return float(p[last] if last + 1 == len(p) else (p[last] + p[last + 1]) / 2)


def _error(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, bins: int = 10) -> dict[str, float]:
    """`calibration_error` as a figure. Args: (cases, disorders), the same, (cases, resamples)."""
    cases, disorders = probabilities.shape
    gaps = _by_case(probabilities - labels, _equal_counts(probabilities, bins))  # (cases, bins)
    resamples = np.abs(gaps.T @ weights).sum(0) / (weights.sum(0) * disorders)
    return figure(float(np.abs(gaps.sum(0)).sum() / (cases * disorders)), resamples, (0, 1))


def _reliability(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, bins: int = 10) -> list[dict]:
    """The reliability diagram over bins with the same expected number of positives. Args: as `_error`."""
    parts = _equal_sums(probabilities, bins)
    pairs, true = _by_case(np.ones_like(probabilities), parts), _by_case(labels, parts)  # (cases, bins)
    with np.errstate(invalid="ignore"):
        resamples = (true.T @ weights) / (pairs.T @ weights)  # nan if a resample has no such pair
    flat, counts = probabilities.ravel(), pairs.sum(0)
    return [
        {
            "pairs": len(part),
            "probability": float(flat[part].mean()),
            "share": figure(float(true[:, i].sum() / counts[i]), resamples[i], (0, 1)),
        }
        for i, part in enumerate(parts)
    ]


def _mean(of_cases: np.ndarray, weights: np.ndarray, within: tuple[float, float]) -> dict[str, float]:
    return figure(float(of_cases.mean()), of_cases @ weights / weights.sum(0), within)


def _by_case(values: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """(cases, disorders) and the flat indices of each bin -> (cases, bins), the sum over the disorders of a case."""
    flat, case = values.ravel().astype(np.float64), np.arange(values.size) // values.shape[1]
    return np.stack([np.bincount(case[part], flat[part], len(values)) for part in parts], 1)


def _equal_counts(probabilities: np.ndarray, bins: int) -> list[np.ndarray]:
    """Flat indices of bins with the same number of pairs, ascending; fewer bins if there are fewer pairs."""
    order = np.argsort(probabilities, axis=None, kind="stable")
    return [part for part in np.array_split(order, bins) if len(part)]


def _equal_sums(probabilities: np.ndarray, bins: int) -> list[np.ndarray]:
    """Flat indices of bins with about the same sum of probabilities, ascending; none is empty."""
    order = np.argsort(probabilities, axis=None, kind="stable")
    cumulative = probabilities.ravel()[order].astype(np.float64).cumsum()
    ends = np.searchsorted(cumulative, cumulative[-1] * np.arange(1, bins) / bins)
    return [part for part in np.split(order, ends) if len(part)]
