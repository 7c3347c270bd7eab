"""How well scores rank cases, disorder by disorder, over head, body and tail of the training counts."""

import numpy as np
from sklearn.metrics import roc_auc_score

BANDS = {"head": (100, np.inf), "body": (30, 100), "tail": (0, 30)}  # training cases: from, to below


def macro_auc(scores: np.ndarray, labels: np.ndarray, training_counts: np.ndarray) -> dict[str, float]:
    """The mean area under the ROC curve over the disorders that some of these cases have and some have not.

    Args:
        scores: (cases, disorders).
        labels: (cases, disorders) of 0 and 1.
        training_counts: (disorders,) training cases of each.
    Returns:
        `auc`, and `auc_head`, `auc_body`, `auc_tail` where the band has such a disorder; `disorders`: how many count.
    Raises:
        ValueError: no disorder can be measured.
    """
    measurable = np.flatnonzero((labels.sum(0) > 0) & (labels.sum(0) < len(labels)))
    if not len(measurable):
        raise ValueError(
            f"no disorder occurs in some of the {len(labels)} cases to measure on: set training.eval_strategy=no"
        )
    areas = np.array([roc_auc_score(labels[:, d], scores[:, d]) for d in measurable])
    result = {"auc": float(areas.mean()), "disorders": len(measurable)}
    for band, (least, below) in BANDS.items():
        inside = (training_counts[measurable] >= least) & (training_counts[measurable] < below)
        if inside.any():
            result[f"auc_{band}"] = float(areas[inside].mean())
    return result
