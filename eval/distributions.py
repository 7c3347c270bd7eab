"""Scores of positive cases, and of negative cases of the same and of other anatomy (RadDiag, figure 4).

    >>> of_disorders = distributions(table)  # a list, the disorders with the most training cases first
    >>> of_disorders[0].positive, of_disorders[0].same, of_disorders[0].other  # scores of cases
    >>> of_disorders[0].summary()["same"]["median"]

Decisions:
- Scores are as in the table: log odds, calibrated if the checkpoint is. Models are compared by how far groups are apart
  and not by where they lie.
- The negatives are split by the anatomy in which a disorder occurs: "same anatomy" are the cases of any body part in
  which it occurs in this table. A case whose body part is not known is in neither group.
- A model that recognises body parts and nothing else gives positives and negatives of the same anatomy the same scores.

References:
    Zheng et al., Large-scale long-tailed disease diagnosis on radiology images, Nature Communications 15:10147, 2024
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from radfm.eval.bands import macro
from radfm.eval.bootstrap import measure_with_resamples, patient_weights
from radfm.eval.comparisons import figure
from radfm.eval.metrics import checked
from radfm.eval.scores import Scores

GROUPS = {"positive": "positive", "same": "negative, same anatomy", "other": "negative, other anatomy"}
QUANTILES = {"low": 0.05, "lower": 0.25, "median": 0.5, "upper": 0.75, "high": 0.95}


@dataclass(frozen=True)
class Distribution:
    """Scores of one disorder: float64 log odds, (cases,) each and sorted.

    Attributes:
        disorder, icd10cm, training_cases: its name, its codes, and how many training cases have it.
        positive: scores of the cases that have it.
        same: of those that do not, and show a body part in which it occurs.
        other: of those that show other body parts only.
    """

    disorder: str
    icd10cm: list[str]
    training_cases: int
    positive: np.ndarray
    same: np.ndarray
    other: np.ndarray

    def summary(self) -> dict[str, Any]:
        """JSON-able: `disorder`, `icd10cm`, `training_cases`; of each group in `GROUPS` {`cases`, and the quantiles of
        `QUANTILES`}; `auc_same`, `auc_other`: how often a positive case has a higher score than one of these. None
        where a group is empty."""
        summary = {"disorder": self.disorder, "icd10cm": self.icd10cm, "training_cases": self.training_cases}
        for group in GROUPS:
            scores, summary[group] = getattr(self, group), None
            if len(scores):
                quantiles = np.quantile(scores, list(QUANTILES.values())).tolist()
                summary[group] = {"cases": len(scores), **dict(zip(QUANTILES, quantiles, strict=True))}
        return summary | {f"auc_{group}": _auc(self.positive, getattr(self, group)) for group in ("same", "other")}


def distributions(table: Scores, attribute: str = "body part", least: int = 1) -> list[Distribution]:
    """Of each disorder with at least so many positive cases, those with the most training cases first.

    Args:
        attribute: whose groups are the anatomy, of `table.attributes`.
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


def auc_by_anatomy(
    tables: Sequence[Scores], resamples: int, seed: int = 0, attribute: str = "body part"
) -> dict[str, Any] | None:
    """The macro AUC against negatives of the `same` and of `other` anatomy as figures, over the `disorders` (their
    number) that have both; None where no anatomy is known, or no disorder has both.

    Args:
        tables: of one model, one for each seed.
        resamples: of the patients.
    """
    table = tables[0]
    if not any(table.attributes.get(attribute, ())):
        return None
    same, labels = table.within(attribute), table.labels
    known = np.array([bool(groups) for groups in table.attributes[attribute]])[:, None]
    weights = patient_weights(table.patients, resamples, seed)
    seeds = [one.scores for one in tables]
    areas = [
        measure_with_resamples(seeds, labels, weights, ["auc"], seed=seed, counted=labels | negatives)["auc"]
        for negatives in (same, ~same & known)
    ]
    both = ~np.isnan(areas[0][0] + areas[1][0])
    if not both.any():
        return None
    counts = np.zeros(both.sum())  # the mean over all disorders does not depend on their bands
    means = [[macro(part[both], counts)["all"] for part in of_negatives] for of_negatives in areas]
    return {"disorders": int(both.sum())} | {
        name: figure(value, of_resamples) for name, (value, of_resamples) in zip(("same", "other"), means, strict=True)
    }


def _auc(positive: np.ndarray, negative: np.ndarray) -> float | None:
    if not (len(positive) and len(negative)):
        return None
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    return float(roc_auc_score(labels, np.concatenate([positive, negative])))
