"""Losses over case-disorder pairs: (cases, disorders) logits against labels in [0, 1].

| loss | question | `config.loss["name"]` |
|---|---|---|
| [`SigmoidContrastiveLoss`] | for every pair: does the case have the disorder? Default with a text head | sigmoid |
| [`SoftmaxContrastiveLoss`] | which disorder does a case have, and which case of the step has a disorder? | softmax |
| [`CrossEntropyLoss`] | which disorder does a case have, if it has at most one? | cross_entropy |
| [`BCELoss`] | as sigmoid, the mean over all pairs: the loss of RadDiag; default with a fixed list | bce |
| [`FocalLoss`] | as bce; easy pairs count less | focal |
| [`AsymmetricLoss`] | as focal, for negatives only; the easiest do not count at all | asymmetric |

Decisions:
- `config.loss` holds the name and the arguments of the loss, and `logit_offsets`, (disorders,), which are added to the
  logits in the loss alone. The model's `forward` computes that loss, so every trainer trains the same.
- A loss is a function of logits and labels of all processes, see `all_gather_rows`. So every loss is the same on one
  process and on several, whether or not it compares cases with each other.
- Labels may be soft: hierarchical label smoothing is applied before, and works with every loss.
- open_clip's losses take one positive per row, equally many rows on each process, and cosines rather than logits, so a
  case with two disorders does not fit. With one positive each, ours are equal to theirs: a test compares them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_radfm import LabelKind

LOGIT_LIMIT = 60.0  # logits are clamped to it in the binary cross-entropy, as in the code of RadDiag


class SigmoidContrastiveLoss(nn.Module):
    """Every pair of a case and a disorder is a binary classification (SigLIP, with as many positives as a case has).

    The sum over the disorders of the binary cross-entropy, averaged over the cases. A disorder's negatives are all
    cases of the step without it; a case's negatives are all disorders that it does not have.

    Args:
        positive_weight: weight of a positive pair against a negative one; one number, or one for each disorder.

    References:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023, https://arxiv.org/abs/2303.15343

    Requirements:
        A learned scale and bias in the logits, as the text head has. Cases are not compared, so any batch size will do.

    Relations:
        [`BCELoss`] is this divided by the number of disorders. [`SoftmaxContrastiveLoss`] lets disorders compete.

    Example:
        >>> loss = SigmoidContrastiveLoss()
        >>> loss(model(**batch).logits, batch["labels"]).backward()
    """

    def __init__(self, positive_weight: float | Sequence[float] = 1.0):
        super().__init__()
        self.positive_weight = positive_weight

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(cases, disorders) logits, (cases, disorders) labels in [0, 1] -> ()."""
        return binary_cross_entropy(logits, labels, self.positive_weight).sum(1).mean()


class SoftmaxContrastiveLoss(nn.Module):
    """Disorders compete for a case, and the cases of the step for a disorder, with several positives each.

    The cross-entropy between the softmax of the logits and the labels scaled to sum to 1, in both directions: over the
    disorders for each case that has one, over the cases for each disorder that one of them has. The mean of the two.

    Args:
        over_cases: weight of the second direction, 0 to 1.

    References:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021,
        https://arxiv.org/abs/2103.00020; several positives as in Khosla et al., Supervised Contrastive Learning,
        NeurIPS 2020, https://arxiv.org/abs/2004.11362, equation 2

    Requirements:
        Many cases in a step: they are each other's negatives. The scores rank, but are not probabilities before they
        are calibrated. A case without a disorder counts in the second direction only.

    Relations:
        [`SigmoidContrastiveLoss`] gives probabilities and needs no large batch.

    Example:
        >>> loss = SoftmaxContrastiveLoss()
        >>> loss(model(**batch).logits, batch["labels"]).backward()
    """

    def __init__(self, over_cases: float = 0.5):
        super().__init__()
        self.over_cases = over_cases

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(cases, disorders) logits, (cases, disorders) labels in [0, 1] -> ()."""
        over_disorders, over_cases = _softmax_loss(logits, labels), _softmax_loss(logits.T, labels.T)
        return (1 - self.over_cases) * over_disorders + self.over_cases * over_cases


class CrossEntropyLoss(nn.Module):
    """The cross-entropy of a softmax over disorders of which a case has at most one.

    Args:
        label_kind: "at_most_one": a case may have no disorder, which is a class with a logit of 0; with a single
            disorder the loss is then its binary cross-entropy. "exactly_one": cases without a disorder do not count.
        class_weights: the weight of a case of each disorder and, with "at_most_one", last, of a case without a
            disorder; None: 1.

    Requirements:
        Labels of a case that sum to at most 1.

    Relations:
        [`SoftmaxContrastiveLoss`] with `over_cases=0` has no class of normal cases.

    Example:
        >>> loss = CrossEntropyLoss(label_kind="at_most_one")
        >>> loss(model(**batch).logits, batch["labels"]).backward()
    """

    def __init__(
        self, label_kind: LabelKind | str = LabelKind.AT_MOST_ONE, class_weights: Sequence[float] | None = None
    ):
        super().__init__()
        self.label_kind, self.class_weights = LabelKind(label_kind), class_weights
        if self.label_kind == LabelKind.MULTI_LABEL:
            raise ValueError("cross_entropy is for cases with at most one disorder: choose sigmoid or bce")

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(cases, disorders) logits, (cases, disorders) labels in [0, 1] -> ()."""
        logits = add_no_disorder_logit(logits.float(), self.label_kind)
        labels = add_no_disorder_label(labels.float(), self.label_kind)
        weights = 1.0 if self.class_weights is None else logits.new_tensor(self.class_weights)
        losses = -(weights * labels * logits.log_softmax(1)).sum(1)
        labelled = labels.sum(1) > 0
        return losses[labelled].mean() if labelled.any() else (logits * 0.0).sum()


class BCELoss(nn.Module):
    """Mean binary cross-entropy over all pairs, the loss of RadDiag.

    Args:
        positive_weight: weight of a positive pair against a negative one; one number, or one for each disorder.

    References:
        Zheng et al., Large-scale long-tailed disease diagnosis on radiology images, Nature Communications 15:10147,
        2024

    Requirements:
        None.

    Relations:
        [`SigmoidContrastiveLoss`] is its sum over the disorders. [`FocalLoss`] with gamma 0 is this.

    Example:
        >>> loss = BCELoss()
        >>> loss(model(**batch).logits, batch["labels"]).backward()
    """

    def __init__(self, positive_weight: float | Sequence[float] = 1.0):
        super().__init__()
        self.positive_weight = positive_weight

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(cases, disorders) logits, (cases, disorders) labels in [0, 1] -> ()."""
        return binary_cross_entropy(logits, labels, self.positive_weight).mean()


class FocalLoss(nn.Module):
    """Binary cross-entropy in which a pair has the weight (1 - p) ** gamma, p being the probability of its label.

    Args:
        gamma: the larger, the less easy pairs count; 0: all pairs count alike.
        alpha: weight of positives, 0 to 1, that of negatives being 1 - alpha; None: both count alike.

    References:
        Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, https://arxiv.org/abs/1708.02002, equations 4, 5

    Requirements:
        Labels of 0 and 1 for the published loss; with soft labels |label - p| takes the place of 1 - p.

    Relations:
        [`AsymmetricLoss`] treats positives and negatives apart, which suits many negatives better.

    Example:
        >>> loss = FocalLoss(gamma=2)
        >>> loss(model(**batch).logits, batch["labels"]).backward()
    """

    def __init__(self, gamma: float = 2.0, alpha: float | None = None):
        super().__init__()
        self.gamma, self.alpha = gamma, alpha

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(cases, disorders) logits, (cases, disorders) labels in [0, 1] -> ()."""
        errors = (labels - logits.float().sigmoid()).abs()
        losses = errors**self.gamma * binary_cross_entropy(logits, labels)
        if self.alpha is not None:
            losses = losses * (self.alpha * labels + (1 - self.alpha) * (1 - labels))
        return losses.mean()


class AsymmetricLoss(nn.Module):
    """Focal loss with one gamma for positives and a larger one for negatives; the easiest negatives do not count.

    Args:
        gamma_positive, gamma_negative: focusing parameters of the two.
        margin: negatives with a probability below it do not count.

    References:
        Ridnik et al., Asymmetric Loss For Multi-Label Classification, ICCV 2021, https://arxiv.org/abs/2009.14119,
        equation 7; the focusing weights are not differentiated, as in the authors' own default

    Requirements:
        Many disorders and few per case.

    Relations:
        [`FocalLoss`] has one gamma for both and no margin.

    Example:
        >>> loss = AsymmetricLoss()
        >>> loss(model(**batch).logits, batch["labels"]).backward()
    """

    def __init__(self, gamma_positive: float = 1.0, gamma_negative: float = 4.0, margin: float = 0.05):
        super().__init__()
        self.gamma_positive, self.gamma_negative, self.margin = gamma_positive, gamma_negative, margin

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(cases, disorders) logits, (cases, disorders) labels in [0, 1] -> ()."""
        p = logits.float().sigmoid()
        shifted = (p - self.margin).clamp(min=0)
        positive = labels * p.clamp(min=1e-8).log() * (1 - p).detach() ** self.gamma_positive
        negative = (1 - labels) * (1 - shifted).clamp(min=1e-8).log() * shifted.detach() ** self.gamma_negative
        return -(positive + negative).mean()


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "sigmoid": SigmoidContrastiveLoss,
    "softmax": SoftmaxContrastiveLoss,
    "cross_entropy": CrossEntropyLoss,
    "bce": BCELoss,
    "focal": FocalLoss,
    "asymmetric": AsymmetricLoss,
}


def loss_function(options: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """`config.loss` -> the loss, a function of (cases, disorders) logits and labels.

    Raises:
        ValueError: there is no such loss, or it has no such argument.
    """
    arguments = dict(options)
    name, offsets = arguments.pop("name", None), arguments.pop("logit_offsets", None)
    if name not in LOSSES:
        raise ValueError(f"loss.name: there is no loss {name!r}: there are {', '.join(LOSSES)}")
    try:
        loss = LOSSES[name](**arguments)
    except TypeError as error:
        raise ValueError(f"loss: {error}") from error
    if offsets is None:
        return loss
    return lambda logits, labels: loss(logits.float() + logits.new_tensor(offsets, dtype=torch.float32), labels)


def binary_cross_entropy(logits: Tensor, labels: Tensor, positive_weight: float | Sequence[float] = 1.0) -> Tensor:
    """The binary cross-entropy of each logit, in float32, with logits clamped to +-60; shaped as the logits."""
    weight = None if positive_weight == 1 else logits.new_tensor(positive_weight, dtype=torch.float32)
    clamped = logits.float().clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
    return F.binary_cross_entropy_with_logits(clamped, labels.float(), pos_weight=weight, reduction="none")


def add_no_disorder_logit(logits: Tensor, label_kind: LabelKind) -> Tensor:
    """(cases, disorders) logits, with a column of zeros for "no disorder" behind them where a case may have none."""
    return F.pad(logits, (0, 1)) if label_kind == LabelKind.AT_MOST_ONE else logits


def add_no_disorder_label(labels: Tensor, label_kind: LabelKind) -> Tensor:
    """(cases, disorders) labels, with a column that is 1 for cases without a disorder where a case may have none."""
    if label_kind != LabelKind.AT_MOST_ONE:
        return labels
    return torch.cat([labels, 1 - labels.sum(1, keepdim=True)], dim=1)


def competing_log_odds(logits: Tensor, label_kind: LabelKind) -> Tensor:
    """(cases, disorders) logits of mutually exclusive disorders -> log p / (1 - p) of each, p being the softmax."""
    logits = logits.double()
    competing = add_no_disorder_logit(logits, label_kind)
    log_p = (logits - competing.logsumexp(1, keepdim=True)).clamp(max=-1e-12)
    return (log_p - torch.log(-torch.expm1(log_p))).float()


def all_gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks; only this process's own rows carry a gradient.

    Every process computes the loss of the whole step from them, and differentiates it with respect to its own rows. The
    sum of the processes' gradients is then the gradient of the loss; `sum_gradients_over_processes` makes up for the
    mean that DDP and DeepSpeed take. The processes may have different numbers of rows.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    counts = [int(count) for count in counts]
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows.detach()
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    gathered = [part[:n] for part, n in zip(gathered, counts, strict=True)]
    gathered[dist.get_rank()] = rows
    return torch.cat(gathered)


def sum_gradients_over_processes(loss: Tensor) -> Tensor:
    """The same value, with a gradient that DDP's and DeepSpeed's mean over the processes turns into the sum."""
    if not (dist.is_available() and dist.is_initialized()):
        return loss
    return loss.detach() + (loss - loss.detach()) * dist.get_world_size()


def _softmax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row's softmax, averaged over the rows that have a positive."""
    mass = labels.sum(1)
    losses = -(labels * logits.float().log_softmax(1)).sum(1) / mass.clamp(min=1e-8)
    labelled = mass > 0
    return losses[labelled].mean() if labelled.any() else (logits * 0.0).sum()
