"""Hierarchical label smoothing: disorders that are near a case's disorders in ICD-10-CM get a small positive label."""

from collections.abc import Sequence

import torch
from torch import Tensor

from radfm.knowledge import icd10cm

REACH = 4  # steps in the tree, from which on two codes are unrelated; codes of one category are two steps apart


def hierarchical_similarity(icd10cm_codes: Sequence[Sequence[str]], strength: float, reach: int = REACH) -> Tensor:
    """The similarity of disorders in ICD-10-CM's tree: (disorders, disorders), 1 on the diagonal.

    Off the diagonal it is strength * (1 - distance / reach), of the nearest codes of the two, and 0 from `reach` steps
    on. A disorder without a code is similar to itself alone.
    """
    count = len(icd10cm_codes)
    distances = torch.full((count, count), float(reach))
    for i, first in enumerate(icd10cm_codes):
        for j, second in enumerate(icd10cm_codes[:i]):
            if first and second:
                nearest = min(icd10cm.distance(a, b) for a in first for b in second)
                distances[i, j] = distances[j, i] = nearest
    similarity = strength * (1 - distances / reach).clamp(min=0)
    return similarity.fill_diagonal_(1.0)


def smooth_labels(labels: Tensor, similarity: Tensor) -> Tensor:
    """(cases, disorders) labels in [0, 1]: of each disorder its largest similarity to a disorder of the case.

    Args:
        labels: (cases, disorders) of 0 and 1.
        similarity: (disorders, disorders), see `hierarchical_similarity`.
    """
    smoothed = labels.clone()
    for row, present in zip(smoothed, labels, strict=True):
        similarities = similarity[present > 0]
        if len(similarities):
            row.copy_(similarities.amax(0))
    return smoothed
