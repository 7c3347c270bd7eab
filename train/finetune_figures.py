"""What a fine-tuning reports of its validation split, before and after."""

import numpy as np
from torch import Tensor

from radfm.configuration_radfm import LabelKind
from radfm.eval import calibration
from radfm.eval.metrics import macro_auc
from radfm.losses_radfm import add_no_disorder_logit


def validation_auc(logits: Tensor, labels: Tensor, label_kind: LabelKind, counts: np.ndarray) -> dict[str, float]:
    """The macro AUC of (cases, disorders) logits, see `radfm.eval.metrics.macro_auc`.

    Args:
        counts: (disorders,) training cases of each.
    """
    return macro_auc(calibration.log_odds(logits, label_kind).numpy(), labels.numpy(), counts)


def validation_figures(
    logits: Tensor, calibrated: Tensor | None, labels: Tensor, label_kind: LabelKind, counts: np.ndarray
) -> dict[str, float]:
    """Macro AUC, log loss and calibration error; accuracies where the disorders are mutually exclusive.

    Args:
        logits: (cases, disorders).
        calibrated: the same, each case calibrated by others; None: those of a model that was not calibrated.
    """
    figures, truth = validation_auc(logits, labels, label_kind, counts), labels.numpy()
    calibrated = logits if calibrated is None else calibrated
    if label_kind != LabelKind.MULTI_LABEL:
        classes = np.where(truth.any(1), truth.argmax(1), truth.shape[1])
        correct = add_no_disorder_logit(calibrated, label_kind).argmax(1).numpy() == classes
        figures["accuracy"] = float(correct.mean())
        figures["balanced_accuracy"] = float(np.mean([correct[classes == c].mean() for c in np.unique(classes)]))
    figures["log_loss"] = float(calibration.log_loss(calibrated, labels, label_kind))
    probabilities = calibration.log_odds(calibrated, label_kind).sigmoid().numpy()
    return figures | {"calibration_error": calibration.calibration_error(probabilities, truth)}
