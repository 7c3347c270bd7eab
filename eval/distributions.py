"""What scores a disorder gets where it is, where its part of the body is without it, and elsewhere (RadDiag, figure 4).

    >>> found = distributions(table)  # a list, the most common disorders first
    >>> found[0].positive, found[0].same, found[0].other  # scores of cases, to be drawn
    >>> found[0].summary()["same"]["median"]

Decisions:
- Scores are as in the table: log odds, calibrated where the checkpoint is. Models are compared by how far groups lie
  apart rather than by where they lie.
- The negatives are split by a disorder's own groups: "same anatomy" are the cases of any part of the body in which the
  disorder occurs in this table. A case of which no part is known is in neither.
- A model that tells parts of the body and nothing else has positives where the same anatomy's negatives are.

References:
    Zheng et al., Large-scale long-tailed disease diagnosis on radiology images, Nature Communications 15:10147, 2024
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from radfm.eval.metrics import checked
from radfm.eval.scores import Scores

GROUPS = {"positive": "positive", "same": "negative, same anatomy", "other": "negative, other anatomy"}
QUANTILES = {"low": 0.05, "lower": 0.25, "median": 0.5, "upper": 0.75, "high": 0.95}


@dataclass(frozen=True)
class Distribution:
    """Of one disorder; scores are float64 log odds, (cases,) each and sorted.

    Attributes:
        disorder, icd10cm, training_cases: which, its codes, and how many cases of training have it.
        positive: scores of the cases that have it.
        same: of those that have not, and show a part of the body in which it occurs.
        other: of those that show other parts of the body only.
    """

    disorder: str
    icd10cm: list[str]
    training_cases: int
    positive: np.ndarray
    same: np.ndarray
    other: np.ndarray

    def summary(self) -> dict[str, Any]:
        """JSON-able: `disorder`, `icd10cm`, `training_cases`; of each group in `GROUPS` {`cases`, and the quantiles of
        `QUANTILES`}; `auc_same`, `auc_other`: how often a positive case outranks one of these. None where a group is
        empty."""
        found = {"disorder": self.disorder, "icd10cm": self.icd10cm, "training_cases": self.training_cases}
        for group in GROUPS:
            values, found[group] = getattr(self, group), None
            if len(values):
                at = np.quantile(values, list(QUANTILES.values())).tolist()
                found[group] = {"cases": len(values), **dict(zip(QUANTILES, at, strict=True))}
        return found | {"auc_same": _auc(self.positive, self.same), "auc_other": _auc(self.positive, self.other)}


def distributions(table: Scores, attribute: str = "body part", least: int = 1) -> list[Distribution]:
    """Of each disorder with at least so many positive cases, by how many of training have it, the most first.

    Args:
        attribute: what "same" goes by, of `table.attributes`.
        least: positive cases of a disorder.
    Raises:
        ValueError: no such attribute, or no case has any of the disorders.
    """
    scores, labels = checked(table.scores, table.labels)
    same = table.within(attribute)
    known = np.array([bool(groups) for groups in table.attributes[attribute]])[:, None]
    groups = labels, ~labels & same, ~labels & ~same & known
    order = np.lexsort((np.arange(len(table.names)), -labels.sum(0), -table.training_counts))
    return [
        Distribution(
            table.names[d],
            table.icd10cm[d],
            int(table.training_counts[d]),
            *(np.sort(scores[rows[:, d], d].astype(np.float64)) for rows in groups),
        )
        for d in order
        if labels[:, d].sum() >= max(least, 1)
    ]


def _auc(positive: np.ndarray, negative: np.ndarray) -> float | None:
    if not (len(positive) and len(negative)):
        return None
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    return float((ranks.sum() - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))
