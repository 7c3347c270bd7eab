"""A linear probe: new classifiers on the features of a frozen model, starting from its own classifiers.

Decisions:
- The penalty is on the distance from the model's classifiers (for a text head, the disorders' embeddings), not from
  zero. So few cases change them little and no case changes nothing, and training adds what the text does not contain.
- The strength of the penalty is chosen on the validation split, from one that prevents any change to one that has
  almost no effect.
- A disorder that no training case has keeps its classifier.
- The result becomes weights of the checkpoint. A text head has one bias for all disorders; the differences to the
  fitted biases are returned as `logit_offsets`, and become the shifts of its calibration.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from radfm.layers_radfm import mean_of_groups

STRENGTHS = (1e4, 1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2)  # of the penalty on the squared distance, for features of variance 1


class LinearMap(NamedTuple):
    """The last layer of a head, `LinearMap(*model.head.linear())`: (disorders, width) weight and (disorders,) bias."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return features @ self.weight.T + self.bias


class TokenFeatures(NamedTuple):
    """The features of the tokens that the head scores.

    Args:
        rows: (tokens, width), case by case.
        counts: (cases,) int64, tokens of each case.
    """

    rows: Tensor
    counts: Tensor

    @property
    def means(self) -> Tensor:
        """(cases, width)."""
        return mean_of_groups(self.rows, self.counts.tolist())


# (tokens, disorders) logits and the tokens of each case -> (cases, disorders), as `RadFMForDiagnosis.pool`
Pool = Callable[[Tensor, list[int]], Tensor]


def fit(
    features: TokenFeatures,
    labels: Tensor,
    start: LinearMap,
    loss: Callable[[Tensor, Tensor], Tensor],
    quality: Callable[[LinearMap], float],
    pool: Pool,
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[LinearMap, float, dict[float, float]]:
    """The best map of all strengths, its strength, and the quality of each strength.

    Args:
        labels: (cases, disorders) of 0 and 1.
        loss: (cases, disorders) logits and labels -> (), a mean over the cases.
        quality: of a map on the validation split; higher is better.
        pool: of the model.
        strengths: of the penalty, from the strongest.
    """
    trained = labels.sum(0) > 0
    centre = features.means.mean(0)
    spread = (features.means - centre).std().clamp(min=1e-6)  # between cases, not between their tokens
    inputs = TokenFeatures((features.rows - centre) / spread, features.counts)
    initial = LinearMap(start.weight * spread, start(centre))
    aucs, maps, current = {}, {}, initial
    for strength in strengths:
        current = _penalised_fit(inputs, labels, initial, current, trained, loss, strength, pool)
        weight = current.weight / spread
        maps[strength] = LinearMap(weight, current.bias - weight @ centre)
        aucs[strength] = quality(maps[strength])
    best = max(aucs, key=lambda strength: (aucs[strength], strength))
    return maps[best], best, aucs


def _penalised_fit(
    inputs: TokenFeatures,
    labels: Tensor,
    initial: LinearMap,
    current: LinearMap,
    trained: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    strength: float,
    pool: Pool,
) -> LinearMap:
    """The map with the minimal loss over all cases plus the penalty; the search starts from `current`."""
    mask = trained.float()
    weight = (current.weight - initial.weight).clone().requires_grad_()
    bias = (current.bias - initial.bias).clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def fitted() -> LinearMap:
        return LinearMap(initial.weight + weight * mask[:, None], initial.bias + bias * mask)

    def total_loss() -> Tensor:
        optimizer.zero_grad()
        penalty = strength * weight.square().sum() + 0.01 * bias.square().sum()
        value = loss(pool(fitted()(inputs.rows), inputs.counts.tolist()), labels) + penalty / (2 * len(labels))
        value.backward(inputs=[weight, bias])
        return value

    optimizer.step(total_loss)
    # The bias of a disorder without a case changes as the median of the others.
    median = bias.detach()[trained].median() if trained.any() else bias.new_zeros(())
    return LinearMap(fitted().weight.detach(), initial.bias + torch.where(trained, bias.detach(), median))
