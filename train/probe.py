"""A linear probe: new classifiers on what a frozen model sees, starting from those that it has.

Decisions:
- The penalty pulls towards the classifiers that the model has (for a text head, the disorders' embeddings), not towards
  zero. So few cases move them little, no case not at all, and what is learned is what the text did not know.
- How strongly it pulls is chosen on the validation split, between a strength that moves nothing and one that hardly
  pulls.
- A disorder that no training case has keeps its classifier.
- What is fitted becomes weights of the checkpoint. A text head has one bias for all disorders; what each would add to
  it is returned, and becomes the shift of its calibration.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

STRENGTHS = (1e4, 1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2)  # of the pull, per squared distance, for features of variance 1


class LinearMap(NamedTuple):
    """What ends a head, `LinearMap(*model.head.linear())`: (disorders, width) weight and (disorders,) bias."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return features @ self.weight.T + self.bias


def fit(
    features: Tensor,
    labels: Tensor,
    start: LinearMap,
    loss: Callable[[Tensor, Tensor], Tensor],
    quality: Callable[[LinearMap], float],
) -> tuple[LinearMap, float, dict[float, float]]:
    """The best head of all strengths, its strength, and the quality of each.

    Args:
        features: (cases, width).
        labels: (cases, disorders) of 0 and 1.
        loss: (cases, disorders) logits and labels -> (), a mean over the cases.
        quality: of a head on the validation split, the higher the better.
    """
    learned = labels.sum(0) > 0
    centre = features.mean(0)
    spread = (features - centre).std().clamp(min=1e-6)
    inputs = (features - centre) / spread
    begin = LinearMap(start.weight * spread, start(centre))
    found, heads, now = {}, {}, begin
    for strength in STRENGTHS:
        now = _pulled(inputs, labels, begin, now, learned, loss, strength)
        weight = now.weight / spread
        heads[strength] = LinearMap(weight, now.bias - weight @ centre)
        found[strength] = quality(heads[strength])
    best = max(found, key=lambda strength: (found[strength], strength))
    return heads[best], best, found


def _pulled(
    inputs: Tensor,
    labels: Tensor,
    begin: LinearMap,
    now: LinearMap,
    learned: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    strength: float,
) -> LinearMap:
    """The head with the least loss over all cases, plus the pull to `begin`; sought from `now`."""
    mask = learned.float()
    weight = (now.weight - begin.weight).clone().requires_grad_()
    bias = (now.bias - begin.bias).clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def head() -> LinearMap:
        return LinearMap(begin.weight + weight * mask[:, None], begin.bias + bias * mask)

    def total() -> Tensor:
        optimizer.zero_grad()
        pull = strength * weight.square().sum() + 0.01 * bias.square().sum()
        value = loss(head()(inputs), labels) + pull / (2 * len(inputs))
        value.backward()
        return value

    optimizer.step(total)
    # A disorder without a case is as likely as the others have become.
    moved = bias.detach()[learned].median() if learned.any() else bias.new_zeros(())
    return LinearMap(head().weight.detach(), begin.bias + torch.where(learned, bias.detach(), moved))
