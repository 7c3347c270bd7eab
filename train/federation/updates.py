"""What a site sends after a round, and which updates the server accepts.

Decisions:
- An update is the change of the trained weights, by name, with the number of cases. Vocabularies stay at the sites: the
  embeddings of the names are no trained weights.
- An update is left out, with the reason, if its weights are others than those sent, are not finite, do not change, or
  are much larger than those of the other sites. The norm is compared with the lower median, so that of two sites the
  larger one is suspected.
- The average is weighted by cases (FedAvg, McMahan et al. 2017, https://arxiv.org/abs/1602.05629).
- The matrices of low-rank changes are averaged each by itself, which is not quite the average of their products.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Update:
    """
    Attributes:
        change: name -> change of a trained weight.
        cases: number of training cases.
        facts: JSON-able, such as `loss` and, with privacy, `epsilon`.
    """

    change: Weights
    cases: int
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def norm(self) -> float:
        return float(np.sqrt(sum(np.square(change, dtype=np.float64).sum() for change in self.change.values())))


def sort_out(
    replies: Mapping[str, Update | str], weights: Weights, most_times_norm: float
) -> tuple[dict[str, Update], dict[str, str]]:
    """The updates to average, and why those of other sites are left out.

    Args:
        replies: site -> its update, or why there is none.
        weights: that the sites were sent.
        most_times_norm: see `FederationSection`.
    """
    left_out = {name: reply for name, reply in replies.items() if isinstance(reply, str)}
    accepted = {}
    for name, reply in replies.items():
        if isinstance(reply, Update):
            if reason := _fault(reply, weights):
                left_out[name] = reason
            else:
                accepted[name] = reply
    norms = {name: update.norm for name, update in accepted.items()}
    usual = sorted(norms.values())[(len(norms) - 1) // 2] if norms else 0.0
    for name, norm in norms.items():
        if norm > most_times_norm * usual:
            left_out[name] = f"its update is {norm / usual:,.0f} times as large as the usual one"
            del accepted[name]
    return accepted, left_out


def average(weights: Weights, updates: Mapping[str, Update]) -> Weights:
    """The weights plus the mean of the changes, weighted by cases."""
    total = sum(update.cases for update in updates.values())
    changes = {name: np.zeros(weight.shape) for name, weight in weights.items()}
    for update in updates.values():
        for name, change in update.change.items():
            changes[name] += change * (update.cases / total)
    return {name: weight + changes[name].astype(weight.dtype) for name, weight in weights.items()}


def _fault(update: Update, weights: Weights) -> str | None:
    change = update.change
    if change.keys() != weights.keys():
        return "it sends other weights than it was sent: it needs the same version and configuration"
    for name, weight in weights.items():
        if change[name].shape != weight.shape:
            return f"its {name} has the shape {change[name].shape}, not {weight.shape}"
        if not np.isfinite(change[name]).all():
            return f"its {name} is not finite"
    if update.cases < 1:
        return f"it states {update.cases} cases"
    return None if update.norm > 0 else "its update changes nothing"
