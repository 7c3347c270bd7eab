"""Weights of classes for a loss, by their frequency."""

import numpy as np

from radfm.configuration_radfm import LabelKind

MAX_WEIGHT = 10.0


def class_weights(labels: np.ndarray, label_kind: LabelKind, power: float) -> list[float]:
    """The power of the inverse frequency of each class, at most 10.

    Args:
        labels: (cases, disorders) of 0 and 1.
        label_kind: how many disorders a case can have.
    Returns:
        (disorders,) of a positive case against a negative one; where disorders exclude one another, of a case of each
        class, normal ones last, and 1 on average over the cases.
    """
    cases, counts = len(labels), labels.sum(0)
    if label_kind == LabelKind.MULTI_LABEL:
        weights = ((cases - counts) / counts.clip(1)) ** power
        return np.where(counts > 0, weights, 1.0).clip(1 / MAX_WEIGHT, MAX_WEIGHT).round(4).tolist()
    if label_kind == LabelKind.AT_MOST_ONE:
        counts = np.append(counts, cases - counts.sum())
    weights = (1 / counts.clip(1)) ** power
    weights *= counts.sum() / (weights * counts).sum()
    return np.where(counts > 0, weights, 1.0).clip(1 / MAX_WEIGHT, MAX_WEIGHT).round(4).tolist()
