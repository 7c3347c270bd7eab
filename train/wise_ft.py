"""Interpolation of the weights of a zero-shot model and a fine-tuned one, which preserves knowledge of the first.

References:
    WiSE-FT: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, https://arxiv.org/abs/2109.01903
"""

import copy

import torch

from radfm.modeling_radfm import RadFMForDiagnosis

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the new weights
KEPT_GAIN = 0.95


@torch.no_grad()
def interpolated(start: RadFMForDiagnosis, trained: RadFMForDiagnosis, share: float) -> RadFMForDiagnosis:
    """A model with `share` of the new weights and 1 - `share` of the old ones; integers are the new ones."""
    new = trained.state_dict()
    model = copy.deepcopy(start)
    for name, value in model.state_dict().items():
        value.copy_(torch.lerp(value, new[name], share) if value.is_floating_point() else new[name])
    return model


def smallest_share(aucs: dict[float, float]) -> float:
    """The smallest share that keeps 95% of the best gain in AUC over share 0.

    Args:
        aucs: share -> validation AUC.
    """
    gains = {share: auc - aucs[0.0] for share, auc in aucs.items()}
    return min(share for share, gain in gains.items() if gain >= KEPT_GAIN * max(gains.values()))
