"""What lies between the slice encoder and the names, fitted by regression before anything learns.

    >>> fit_linear_start(model, CaseDataset(cases, processor), LinearStart(penalty=2.0))

A network that learns from pairs tells the disorders of its cases apart, and learns little of where others would lie. A
ridge regression from what a pretrained tower says of a case to the embedding of its diagnosis knows less of the first
and more of the second. It is worth having by itself, where cases are few: with a tower that stays frozen nothing else
needs to learn. Or training goes on from it, and not from chance (Kumar et al., Fine-tuning can distort pretrained
features, ICLR 2022, https://arxiv.org/abs/2202.10054, start from a linear probe in the same way).

Decisions:
- A case is the mean of its scans, and a scan the mean of its slices: what scan and case encoder say before they have
  learned, if they have no layers or `residual_mean`.
- A case counts as its rarest disorder does. Normal cases have no embedding to be near to, and do not count.
- The penalty is for features of variance 1 and an average case, so it means the same for any tower and number of cases.
- Only directions count for a text head, so the weights are as large as those that they replace: an optimizer moves both
  as fast.
- Scale and bias of the logits are those of a logistic regression on cases that were left out, each a fifth of all.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from radfm.data_prep.batches.case_dataset import CaseDataset, step_loader
from radfm.data_prep.batches.sampling import steps_in_order
from radfm.modeling_radfm import RadFMForDiagnosis

FOLDS = 5
_SLICES = 4096  # at once


@dataclass(frozen=True)
class LinearStart:
    """
    Attributes:
        penalty: above 0, of the squared weights.
        power: of the number of cases by which those of a disorder count less; 0: all cases alike, 1: all disorders.
    """

    penalty: float = 2.0
    power: float = 0.25

    def __post_init__(self):
        if self.penalty <= 0 or self.power < 0:
            raise ValueError(
                f"linear_start has a penalty above 0 and a power of at least 0, not {self.penalty} and {self.power}"
            )


@torch.no_grad()
def fit_linear_start(model: RadFMForDiagnosis, data: CaseDataset, start: LinearStart) -> None:
    """Sets both projections, of slices and of cases, and the scale and bias of the logits.

    Args:
        data: with `features`; what training draws from.
    Raises:
        ValueError: the model's encoders do more than average before they have learned, or fewer than two cases have a
            disorder.
    """
    network = model.radfm
    if any(encoder.layers and encoder.gate is None for encoder in (network.scan_encoder, network.case_encoder)):
        raise ValueError(
            "linear_start begins with what averaging can do: set residual_mean=true in architecture.scan_config and "
            "architecture.case_config, or num_hidden_layers=0"
        )
    features, labels = _cases_of(data)
    embeds = model.head.disorder_embeds.double().cpu()
    named = (labels.sum(1) > 0).nonzero().flatten()
    if len(named) < 2:
        raise ValueError(
            f"linear_start: {len(named)} cases of the training split have a disorder, at least 2 are needed"
        )
    features, labels = features[named], labels[named]
    wanted = labels @ embeds / labels.sum(1, keepdim=True)
    counts = (labels / labels.sum(0).clamp(min=1) ** start.power).amax(1)

    fold = torch.from_numpy(np.random.default_rng(0).permutation(len(features)) % FOLDS)
    said = torch.empty_like(wanted)
    for out in (fold == number for number in range(min(FOLDS, len(features)))):
        said[out] = features[out] @ ridge(features[~out], wanted[~out], counts[~out], start.penalty).T
    known = labels.sum(0) > 0
    scale, bias = logistic(F.normalize(said, dim=-1) @ embeds[known].T, labels[:, known])
    model.head.logit_scale.fill_(scale.log())
    model.head.logit_bias.fill_(bias)
    _put(ridge(features, wanted, counts, start.penalty), network.slice_encoder.projection, network.case_projection)


def ridge(features: Tensor, wanted: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """(d, f): the weights with the least squared error and penalty, through the origin, as projections have no bias.

    Args:
        features, wanted: (cases, f), (cases, d).
        counts: (cases,) how much each counts.
    """
    spread = features.std(0).clamp(min=1e-6)
    features = features / spread
    weighted = features * (counts / counts.sum())[:, None]
    covariance = weighted.T @ features + penalty * torch.eye(features.shape[1], dtype=features.dtype)
    return torch.linalg.solve(covariance, weighted.T @ wanted).T / spread


def logistic(cosines: Tensor, labels: Tensor) -> Tensor:
    """(2,): the scale, above 0, and the bias with which the cosines are the likeliest log odds of the labels."""
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


def _put(weight: Tensor, first: nn.Linear, second: nn.Linear | nn.Identity) -> None:
    """Makes `second` after `first` that (d, f) map, or, where it is narrow between, what of it weighs most."""
    parts = {first: weight}
    if isinstance(second, nn.Linear):
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        width = second.in_features
        roots = s[:width].sqrt()
        spare = max(width - len(roots), 0)
        parts = {
            first: F.pad(roots[:, None] * v[:width], (0, 0, 0, spare)),
            second: F.pad(u[:, :width] * roots, (0, spare)),
        }
    for layer, fitted in parts.items():
        layer.weight.copy_(fitted * (layer.weight.double().std() / fitted.std()))


def _cases_of(data: CaseDataset) -> tuple[Tensor, Tensor]:
    """(cases, f) float64, (cases, disorders) float64."""
    features, labels = [], []
    for batch in step_loader(data, steps_in_order(data.slice_counts, _SLICES)):
        scans = _means(batch["pixel_values"].double(), batch["slices_per_scan"].tolist())
        features.append(_means(scans, batch["scans_per_case"].tolist()))
        labels.append(batch["labels"].double())
    return torch.cat(features), torch.cat(labels)


def _means(rows: Tensor, sizes: list[int]) -> Tensor:
    return torch.stack([part.mean(0) for part in rows.split(sizes)])
