"""Training objectives: the terms of the loss, each with a weight in `config.objectives`.

| objective | what it compares | targets | name |
|---|---|---|---|
| [`DiagnosisObjective`] | the logits of a case with its labels, by the loss in `config.loss` | labels | diagnosis |
| [`PerScanObjective`] | the same of each scan in the context of its case | labels or scan_labels | per_scan |
| [`PatchObjective`] | the logits of each patch of a slice with segmentation masks | masks | patch |
| [`KeySliceObjective`] | the attention over the slices with the annotated key slice | key_slices | key_slice |
| [`DistillationObjective`] | the logits of a case with those of another model | teacher_logits | distillation |

A new objective is a subclass of [`Objective`] and a line in [`OBJECTIVES`].

Decisions:
- An objective reads the outputs of the model and the batch, and sees the rows of all processes: the loss of a step is
  the same on one process and on several.
- An objective without its targets in the batch is left out, so that a checkpoint that was trained with masks can be
  trained on, or validated, without them. `diagnosis` has a weight of 1 unless `config.objectives` gives another.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .configuration_radfm import RadFMConfig
from .losses_radfm import all_gather_rows, binary_cross_entropy, loss_function
from .outputs_radfm import RadFMDiagnosisOutput

_KEY_SLICE_SIGMA = 2.0  # slices
_PATCH_COVERAGE = 0.5  # of the coverage of the patch that a mask covers most


class Objective(ABC):
    """One term of the loss.

    Args:
        config: of the model.
        weight: of this term in the loss.

    Attributes:
        name: key in `config.objectives` and in `RadFMDiagnosisOutput.losses`.
        targets: inputs of `forward` without which the objective is left out.
        reads: the output that `forward` computes for this objective only, "patch_logits"; None if it reads what is
            computed anyway.
    """

    name: ClassVar[str]
    targets: ClassVar[tuple[str, ...]] = ("labels",)
    reads: ClassVar[str | None] = None

    def __init__(self, config: RadFMConfig, weight: float = 1.0):
        self.config, self.weight = config, weight

    @abstractmethod
    def loss(self, outputs: RadFMDiagnosisOutput, batch: dict[str, Tensor]) -> Tensor:
        """() of the rows of all processes, before the weight.

        Args:
            batch: the packed batch, with the targets.
        """


class DiagnosisObjective(Objective):
    """The loss in `config.loss` between the logits and the labels of the cases."""

    name = "diagnosis"

    def loss(self, outputs: RadFMDiagnosisOutput, batch: dict[str, Tensor]) -> Tensor:
        loss = loss_function(self.config.loss or {})
        assert outputs.logits is not None
        return loss(all_gather_rows(outputs.logits.float()), all_gather_rows(batch["labels"]))


class PerScanObjective(Objective):
    """The same loss with the logits of each scan in the context of its case, so that every scan learns directly.

    The labels of a scan are `scan_labels` (scans, disorders) where the batch has them, else those of its case.

    Raises:
        ValueError: the model scores the class token of a case alone.
    """

    name = "per_scan"

    def __init__(self, config: RadFMConfig, weight: float = 1.0):
        super().__init__(config, weight)
        if weight and config.fusion == "class_token":
            raise ValueError('objectives: "per_scan" needs logits of scans, which fusion="class_token" has not')

    def loss(self, outputs: RadFMDiagnosisOutput, batch: dict[str, Tensor]) -> Tensor:
        labels = batch.get("scan_labels")
        if labels is None:
            labels = batch["labels"].repeat_interleave(batch["scans_per_case"], dim=0)
        loss = loss_function(self.config.loss or {})
        assert outputs.per_scan_logits is not None
        return loss(all_gather_rows(outputs.per_scan_logits.float()), all_gather_rows(labels))


class PatchObjective(Objective):
    """The binary cross-entropy of every patch of the tower's last feature map, where masks say what it shows.

    A tower that learns from the labels of cases has to find out by itself which patches they are about, and on a few
    thousand cases it learns anatomy instead. Here each patch is encoded as if it were a case of its own.

    Targets:
        masks: (masks, H, W) bool, in the square that the model sees.
        mask_rows: (masks, 2) int64, the slice of the batch and the disorder of each.
        unlocated: (cases, disorders) bool, disorders of the case that no mask shows.
    """

    name = "patch"
    targets = ("masks", "mask_rows", "unlocated")
    reads = "patch_logits"

    def loss(self, outputs: RadFMDiagnosisOutput, batch: dict[str, Tensor]) -> Tensor:
        unlocated = batch["unlocated"].repeat_interleave(batch["scans_per_case"], dim=0)
        unlocated = unlocated.repeat_interleave(batch["slices_per_scan"], dim=0)
        losses = all_gather_rows(patch_losses(outputs.patch_logits, batch["masks"], batch["mask_rows"], unlocated))
        return losses.sum() / max(len(losses), 1)


class KeySliceObjective(Objective):
    """How far the attention over the slices is from a Gaussian around the annotated key slice (Zheng et al. 2024).

    The mean of [`key_slice_divergences`] over the scans whose key slice is known; 0 where none is.

    Targets:
        key_slices: (scans,) int64, -1 where unknown.
    """

    name = "key_slice"
    targets = ("key_slices",)

    def loss(self, outputs: RadFMDiagnosisOutput, batch: dict[str, Tensor]) -> Tensor:
        counts = batch["slices_per_scan"].tolist()
        divergences = all_gather_rows(key_slice_divergences(outputs.slice_attentions, counts, batch["key_slices"]))
        return divergences.sum() / max(len(divergences), 1)


class DistillationObjective(Objective):
    """The mean squared error between the logits of a case and those of a teacher (Dombrowski et al. 2026).

    Targets:
        teacher_logits: (cases, disorders), before any calibration.
    """

    name = "distillation"
    targets = ("teacher_logits",)

    def loss(self, outputs: RadFMDiagnosisOutput, batch: dict[str, Tensor]) -> Tensor:
        assert outputs.logits is not None
        return F.mse_loss(all_gather_rows(outputs.logits.float()), all_gather_rows(batch["teacher_logits"].float()))


_OBJECTIVES = (DiagnosisObjective, PerScanObjective, PatchObjective, KeySliceObjective, DistillationObjective)
OBJECTIVES: dict[str, type[Objective]] = {objective.name: objective for objective in _OBJECTIVES}


def build_objectives(config: RadFMConfig) -> list[Objective]:
    """The objectives with a weight, in the order of the registry.

    Raises:
        ValueError: there is no such objective, or it has no such argument.
    """
    options: dict[str, dict[str, Any]] = {DiagnosisObjective.name: {}} | dict(config.objectives)
    if unknown := [name for name in options if name not in OBJECTIVES]:
        raise ValueError(f"objectives: there is no {unknown[0]!r}: there are {', '.join(OBJECTIVES)}")
    try:
        objectives = [kind(config, **options[name]) for name, kind in OBJECTIVES.items() if name in options]
    except TypeError as error:
        raise ValueError(f"objectives: {error}") from error
    return [objective for objective in objectives if objective.weight]


def key_slice_divergences(slice_attentions: Tensor, slice_counts: list[int], key_slices: Tensor) -> Tensor:
    """(scans whose key slice is known,): the mean of the two Kullback-Leibler divergences from the Gaussian.

    Sigma is two slices; probabilities are clamped at 1e-5.

    Args:
        slice_attentions: (slices,), sums to 1 per scan.
        slice_counts: slices of each scan.
        key_slices: (scans,) int64, -1 where unknown.
    """
    counts = torch.tensor(slice_counts, dtype=torch.int64, device=slice_attentions.device)
    scan = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)  # of each slice
    position = torch.arange(len(scan), device=counts.device) - (counts.cumsum(0) - counts)[scan]

    def sum_per_scan(values: Tensor) -> Tensor:
        return values.new_zeros(len(counts)).index_add(0, scan, values)

    target = torch.exp(-((position - key_slices[scan]) ** 2) / (2 * _KEY_SLICE_SIGMA**2))
    target = (target / sum_per_scan(target)[scan]).clamp(min=1e-5)
    attention = slice_attentions.float().clamp(min=1e-5)
    return sum_per_scan((target - attention) * (target.log() - attention.log()))[key_slices >= 0] / 2


def patch_losses(logits: Tensor, masks: Tensor, mask_rows: Tensor, unlocated: Tensor) -> Tensor:
    """For each slice, the sum over the disorders of the weighted mean of the patches' binary cross-entropy.

    A mask marks the patches that it covers at least half as much as the patch that it covers most, so that a small
    lesion marks a patch, too; patches that it covers less have no weight. All patches of a mask together have the
    weight of all patches of a slice without one, whatever the size of a lesion. In a case with a disorder that no mask
    shows, that disorder has no weight; a disorder that the case does not have is a negative in all its patches.

    Args:
        logits: (slices, h, w, disorders).
        masks: (masks, H, W) bool.
        mask_rows: (masks, 2) int64, the slice and the disorder of each.
        unlocated: (slices, disorders) bool: disorders of the slice's case that no mask shows.
    Returns:
        (slices,)
    """
    grid = logits.shape[1:3]
    coverage = F.adaptive_avg_pool2d(masks[:, None].float(), grid)[:, 0]
    coverage = coverage / coverage.amax((1, 2), keepdim=True).clamp(min=1e-6)
    marked, (slices, disorders) = coverage >= _PATCH_COVERAGE, mask_rows.T
    targets = torch.zeros_like(logits, dtype=torch.float32)
    weights = torch.full_like(targets, 1 / grid.numel())
    weights.masked_fill_(unlocated[:, None, None], 0)
    targets[slices, :, :, disorders] = marked.float()
    share = marked / marked.sum((1, 2), keepdim=True).clamp(min=1)
    weights[slices, :, :, disorders] = torch.where(marked, share, (coverage == 0) / grid.numel())
    return (weights * binary_cross_entropy(logits, targets)).sum((1, 2, 3))


def labels_of_scans(
    labels: Tensor, unlocated: Tensor, mask_rows: Tensor, slices_per_scan: Tensor, scans_per_case: Tensor
) -> Tensor:
    """(cases, disorders) labels -> (scans, disorders): the disorders that each scan shows, as far as masks tell.

    A scan keeps the disorders of its case that its masks show, and those that no mask of the case shows.
    """
    labels, unlocated = (x.repeat_interleave(scans_per_case, dim=0) for x in (labels, unlocated))
    scan = torch.arange(len(slices_per_scan), device=labels.device).repeat_interleave(slices_per_scan)  # of each slice
    shown = torch.zeros_like(unlocated)
    shown[scan[mask_rows[:, 0]], mask_rows[:, 1]] = True
    return labels * (shown | unlocated)
