"""A ridge regression from the features of a tower to the embeddings of the names, which initialises a model.

    >>> fit_linear_start(model, CaseDataset(cases, processor, features=features))

A network that is trained on pairs of cases and disorders discriminates the disorders of its cases, and generalises
little to the embeddings of others. A ridge regression from the features of a pretrained tower to the embedding of the
diagnosis is worse at the first and better at the second. With few cases it is useful on its own, with a frozen tower
and no further training (`training.max_steps=0`). Or training starts from it instead of from random weights (Kumar et
al., Fine-tuning can distort pretrained features, ICLR 2022, https://arxiv.org/abs/2202.10054, start from a linear probe
in the same way).

Decisions:
- A case is the mean of its scans, and a scan the mean of its slices: what scan and case encoder compute before training
  if they have no layers or `residual_mean`.
- The weight of a case is that of its rarest disorder. Normal cases have no embedding as a target, and are left out.
- The penalty is for features of variance 1 and an average case, so it means the same for any tower and number of cases.
- A text head uses directions only, so the fitted weights are scaled to the size of those that they replace: an
  optimizer then changes both at the same rate.
- Scale and bias of the logits come from a logistic regression on held-out cases, in five folds.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from radfm.data_prep.batches.case_dataset import CaseDataset, step_loader
from radfm.data_prep.batches.sampling import steps_in_order
from radfm.modeling_radfm import RadFMForDiagnosis

PENALTY = 2.0  # of the squared weights; this and the power measured best on real cases
POWER = 0.25  # of the number of cases by which a disorder's cases count less; 0: all cases equally, 1: all disorders
_FOLDS = 5
_SLICES_AT_ONCE = 4096


@torch.no_grad()
def fit_linear_start(
    model: RadFMForDiagnosis, data: CaseDataset, penalty: float = PENALTY, power: float = POWER
) -> None:
    """Sets both projections, of slices and of cases, and the scale and bias of the logits.

    Args:
        data: the training cases, with `features`.
        penalty: of the squared weights, above 0.
        power: of the number of cases by which those of a disorder count less.

    Raises:
        ValueError: the model's encoders do more than average before training, or fewer than two cases have a disorder.
    """
    network = model.radfm
    if any(encoder.layers and encoder.gate is None for encoder in (network.scan_encoder, network.case_encoder)):
        raise ValueError(
            "model.linear_start needs encoders that start as averages: set residual_mean=true in scan_config and "
            "case_config of model.architecture, or num_hidden_layers=0"
        )
    features, labels = _cases_of(data)
    embeds = model.head.disorder_embeds.double().cpu()
    diagnosed = (labels.sum(1) > 0).nonzero().flatten()
    if len(diagnosed) < 2:
        raise ValueError(
            f"model.linear_start: {len(diagnosed)} cases of the training split have a disorder, at least 2 are needed"
        )
    features, labels = features[diagnosed], labels[diagnosed]
    targets = labels @ embeds / labels.sum(1, keepdim=True)
    case_weights = (labels / labels.sum(0).clamp(min=1) ** power).amax(1)

    fold = torch.from_numpy(np.random.default_rng(0).permutation(len(features)) % _FOLDS)
    held_out = torch.empty_like(targets)
    for out in (fold == number for number in range(min(_FOLDS, len(features)))):
        held_out[out] = features[out] @ ridge(features[~out], targets[~out], case_weights[~out], penalty).T
    known = labels.sum(0) > 0
    scale, bias = logistic(F.normalize(held_out, dim=-1) @ embeds[known].T, labels[:, known])
    model.head.logit_scale.fill_(scale.log())
    model.head.logit_bias.fill_(bias)
    weight = ridge(features, targets, case_weights, penalty)
    _set_projections(weight, network.slice_encoder.projection, network.case_projection)


def ridge(features: Tensor, targets: Tensor, case_weights: Tensor, penalty: float) -> Tensor:
    """(d, f): the weights with the least squared error and penalty, through the origin, as projections have no bias.

    Args:
        features, targets: (cases, f), (cases, d).
        case_weights: (cases,).
    """
    spread = features.std(0).clamp(min=1e-6)
    features = features / spread
    weighted = features * (case_weights / case_weights.sum())[:, None]
    covariance = weighted.T @ features + penalty * torch.eye(features.shape[1], dtype=features.dtype)
    return torch.linalg.solve(covariance, weighted.T @ targets).T / spread


def logistic(cosines: Tensor, labels: Tensor) -> Tensor:
    """(2,): scale, above 0, and bias of a logistic regression of the labels on the cosines."""
    fit = torch.tensor([10.0, -5.0], dtype=cosines.dtype)
    with torch.enable_grad():
        fit.requires_grad_()
        optimizer = torch.optim.LBFGS([fit], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.binary_cross_entropy_with_logits(fit[0] * cosines + fit[1], labels)
            value.backward()
            return value

        optimizer.step(loss)
    return torch.stack([fit[0].clamp(min=1.0), fit[1]]).detach()


def _set_projections(weight: Tensor, first: nn.Linear, second: nn.Linear | nn.Identity) -> None:
    """Sets `first` and then `second` to that (d, f) map; where they are narrower, to its best approximation."""
    parts = {first: weight}
    if isinstance(second, nn.Linear):
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        width = second.in_features
        roots = s[:width].sqrt()
        padding = max(width - len(roots), 0)
        parts = {
            first: F.pad(roots[:, None] * v[:width], (0, 0, 0, padding)),
            second: F.pad(u[:, :width] * roots, (0, padding)),
        }
    for layer, fitted in parts.items():
        layer.weight.copy_(fitted * (layer.weight.double().std() / fitted.std()))


def _cases_of(data: CaseDataset) -> tuple[Tensor, Tensor]:
    """(cases, f) float64, (cases, disorders) float64."""
    features, labels = [], []
    for batch in step_loader(data, steps_in_order(data.slice_counts, _SLICES_AT_ONCE)):
        scans = _means(batch["pixel_values"].double(), batch["slices_per_scan"].tolist())
        features.append(_means(scans, batch["scans_per_case"].tolist()))
        labels.append(batch["labels"].double())
    return torch.cat(features), torch.cat(labels)


def _means(rows: Tensor, sizes: list[int]) -> Tensor:
    return torch.stack([part.mean(0) for part in rows.split(sizes)])
