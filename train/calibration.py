"""From logits to probabilities, and from probabilities to what counts as found; both fitted to the validation split.

Decisions:
- Every disorder has a slope and a shift of its own, drawn towards those that all share: with many positive cases it is
  Platt's scaling, with few the shared temperature, without any rule about where few ends. All are fitted at once, as
  the most probable ones under the two normal distributions below.
- Disorders of which a case has at most one are calibrated as the softmax that they are.
- A threshold of its own needs positive cases enough to trust it. The other disorders share one.
"""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import GroupKFold
from torch import Tensor

from radfm.modeling_radfm import competing_log_odds

POSITIVES_FOR_OWN_THRESHOLD = 10
_SLOPE, _SHIFT = 0.25, 1.0  # standard deviations of a disorder's log slope and shift about the shared ones
_SHARED = 2.0  # and of the shared ones about 0: weak, for a validation split that is separated without an error
_FOLDS = 5


def calibrate(logits: Tensor, labels: Tensor, none: bool | None) -> tuple[Tensor, Tensor]:
    """Slopes and shifts, (disorders,) each: probabilities are those of `logits * slopes + shifts`.

    Args:
        logits: (cases, disorders).
        labels: (cases, disorders) of 0 and 1.
        none: None where a case can have several disorders; else at most one, and whether it can have none.

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
        fit = log_loss(logits * slopes + shifts, labels, none) * len(logits)
        spread = ((own[0] / _SLOPE) ** 2).sum() + ((own[1] / _SHIFT) ** 2).sum() + ((shared / _SHARED) ** 2).sum()
        total = fit + spread / 2
        total.backward()
        return total

    optimizer.step(loss)
    slopes, shifts = parameters()
    return slopes.detach().float(), shifts.detach().float()


def calibrated_by_others(logits: Tensor, labels: Tensor, none: bool | None, groups: list[str]) -> Tensor:
    """(cases, disorders) calibrated logits of each case by the others' fit, to see what calibrating is worth.

    Args:
        groups: (cases,) the patients, whose cases stay together.
    """
    folds = min(_FOLDS, len(set(groups)))
    if folds < 2:
        return logits
    odds = torch.empty_like(logits)
    for others, mine in GroupKFold(folds).split(np.zeros(len(groups)), groups=groups):
        slopes, shifts = calibrate(logits[others], labels[others], none)
        odds[mine] = logits[mine] * slopes + shifts
    return odds


def log_odds(logits: Tensor, none: bool | None) -> Tensor:
    """(cases, disorders) logits as log odds of each disorder; see `calibrate` for `none`."""
    return logits if none is None else competing_log_odds(logits, none)


def log_loss(logits: Tensor, labels: Tensor, none: bool | None) -> Tensor:
    """() how surprised the probabilities are of a case's labels, in nats: the lower the better."""
    if none is None:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none").sum(1).mean()
    labels = labels.to(logits)
    if none:
        logits, labels = F.pad(logits, (0, 1)), torch.cat([labels, 1 - labels.sum(1, keepdim=True)], dim=1)
    return -(labels * logits.log_softmax(1)).sum(1).mean()


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 10) -> float:
    """How far, on average, a probability is from how often it came true; over ten bins of equally many pairs."""
    order = np.argsort(probabilities, axis=None, kind="stable")
    parts = np.array_split((probabilities - labels).ravel()[order], bins)
    return float(sum(abs(part.sum()) for part in parts) / order.size)


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
