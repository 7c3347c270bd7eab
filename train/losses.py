"""Hierarchical label smoothing: relatives of a case's disorders in ICD-10-CM's tree as weak positives."""

from collections.abc import Sequence

import torch
from torch import Tensor

from radfm.knowledge import icd10cm


def kinship(icd10cm_codes: Sequence[Sequence[str]], strength: float = 0.3, reach: int = 4) -> Tensor:
    """How near disorders are in ICD-10-CM's tree: (disorders, disorders), 1 for itself, at most `strength` for others.

    strength * (1 - distance / reach), of the nearest codes of the two; 0 from `reach` steps on. Two codes of the same
    category are two steps apart. A disorder without a code has no relatives.
    """
    nearest = torch.full((len(icd10cm_codes), len(icd10cm_codes)), float(reach))
    for i, mine in enumerate(icd10cm_codes):
        for j, theirs in enumerate(icd10cm_codes[:i]):
            if mine and theirs:
                nearest[i, j] = nearest[j, i] = min(icd10cm.distance(a, b) for a in mine for b in theirs)
    kin = strength * (1 - nearest / reach).clamp(min=0)
    return kin.fill_diagonal_(1.0)


def soft_labels(labels: Tensor, kin: Tensor) -> Tensor:
    """Relatives of a case's disorders as weak positives: (cases, disorders) in [0, 1], the nearest relative counting.

    Args:
        labels: (cases, disorders) of 0 and 1.
        kin: (disorders, disorders), see `kinship`.
    """
    soft = labels.clone()
    for row, present in zip(soft, labels, strict=True):
        relatives = kin[present > 0]
        if len(relatives):
            row.copy_(relatives.amax(0))
    return soft
