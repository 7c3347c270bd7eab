"""What single places of a slice show, where masks say it.

A tower that is taught by the labels of cases has to find out by itself which of its places they are about, and on a
few thousand cases it learns anatomy instead. Where masks are known, each place of its last feature map is read as if
it were a case of its own (`lone_places` of the model), by the same weights as a case, and compared with what it shows.

Decisions:
- A mask marks the places that it covers at least half as much as the one that it covers most, so that a small lesion
  marks a place, too. Those that it covers less are not asked about.
- All places of a mask together count as much as all places of a slice without one: a lesion counts alike, large or
  small.
- Of a disorder that a case has, and no mask says where, nothing is asked in that case. That a case does not have a
  disorder is said of all its places, with or without masks.
- A scan of a case, read alone, has the disorders that its masks show, and those of which no mask says where.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_MUCH = 0.5  # of what a mask covers of the place that it covers most


def place_losses(logits: Tensor, masks: Tensor, mask_rows: Tensor, unlocated: Tensor) -> Tensor:
    """Of each slice, the sum over the disorders of the weighted mean of the places' binary cross-entropy.

    Args:
        logits: (slices, h, w, disorders).
        masks: (masks, H, W) bool.
        mask_rows: (masks, 2) int64, the slice and the disorder of each.
        unlocated: (slices, disorders) bool: what the slice's case has, and no mask says where.
    Returns:
        (slices,)
    """
    places = logits.shape[1:3]
    cover = F.adaptive_avg_pool2d(masks[:, None].float(), places)[:, 0]
    cover = cover / cover.amax((1, 2), keepdim=True).clamp(min=1e-6)
    marked, (slices, disorders) = cover >= _MUCH, mask_rows.T
    targets = torch.zeros_like(logits, dtype=torch.float32)
    weights = torch.full_like(targets, 1 / places.numel())
    weights.masked_fill_(unlocated[:, None, None], 0)
    targets[slices, :, :, disorders] = marked.float()
    share = marked / marked.sum((1, 2), keepdim=True).clamp(min=1)
    weights[slices, :, :, disorders] = torch.where(marked, share, (cover == 0) / places.numel())
    entropies = F.binary_cross_entropy_with_logits(logits.float().clamp(-60, 60), targets, reduction="none")
    return (weights * entropies).sum((1, 2, 3))


def labels_of_scans(
    labels: Tensor, unlocated: Tensor, mask_rows: Tensor, slices_per_scan: Tensor, scans_per_case: Tensor
) -> Tensor:
    """(cases, disorders) labels -> (scans, disorders): what each scan shows by itself, as far as masks say."""
    labels, unlocated = (x.repeat_interleave(scans_per_case, dim=0) for x in (labels, unlocated))
    scan_of = torch.arange(len(slices_per_scan), device=labels.device).repeat_interleave(slices_per_scan)
    shown = torch.zeros_like(unlocated)
    shown[scan_of[mask_rows[:, 0]], mask_rows[:, 1]] = True
    return labels * (shown | unlocated)
