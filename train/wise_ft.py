"""Weights between those of a zero-shot model and what it became: what it knew stays.

References:
    WiSE-FT: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, https://arxiv.org/abs/2109.01903
"""

import copy

import torch

from radfm.modeling_radfm import RadFMForDiagnosis

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the new weights
KEPT_GAIN = 0.95


@torch.no_grad()
def mixed_weights(start: RadFMForDiagnosis, learned: RadFMForDiagnosis, share: float) -> RadFMForDiagnosis:
    """A model whose weights lie between the two, so far from the first; whole numbers are the second's."""
    new = learned.state_dict()
    mixed = copy.deepcopy(start)
    for name, value in mixed.state_dict().items():
        value.copy_(torch.lerp(value, new[name], share) if value.is_floating_point() else new[name])
    return mixed


def smallest_share(aucs: dict[float, float]) -> float:
    """Of the shares, each with its validation AUC, the smallest that keeps most of the best gain over share 0."""
    gains = {share: auc - aucs[0.0] for share, auc in aucs.items()}
    return min(share for share, gain in gains.items() if gain >= KEPT_GAIN * max(gains.values()))
