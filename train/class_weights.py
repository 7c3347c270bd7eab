"""How much a class counts where some are rarer than others."""

import numpy as np

from radfm.configuration_radfm import LabelKind

HEAVIEST = 10.0  # a class counts at most so much


def class_weights(labels: np.ndarray, label_kind: LabelKind, power: float) -> list[float]:
    """How much a class counts, by the power of its inverse frequency, at most 10.

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
        return np.where(counts > 0, weights, 1.0).clip(1 / HEAVIEST, HEAVIEST).round(4).tolist()
    if label_kind == LabelKind.AT_MOST_ONE:
        counts = np.append(counts, cases - counts.sum())
    weights = (1 / counts.clip(1)) ** power
    weights *= counts.sum() / (weights * counts).sum()
    return np.where(counts > 0, weights, 1.0).clip(1 / HEAVIEST, HEAVIEST).round(4).tolist()
