"""Losses over case-disorder pairs, (cases, disorders) logits against labels in [0, 1].

| loss | what it asks | `loss.name` |
|---|---|---|
| [`SigmoidContrastiveLoss`] | of every pair: does the case show the disorder? Default with a text head | sigmoid |
| [`SoftmaxContrastiveLoss`] | of a case: which disorder? of a disorder: which case of the step? | softmax |
| [`OneOfLoss`] | of a case that has at most one disorder: which, or none? | one_of |
| [`BCELoss`] | as sigmoid, the mean over all pairs: the paper's loss; default with an mlp head | bce |
| [`FocalLoss`] | as bce, what is easy counts less | focal |
| [`AsymmetricLoss`] | as focal, for negatives only, and the easiest not at all | asymmetric |

Decisions:
- A loss is a function of logits and labels, and sees those of all processes: see `gathered`. So every loss is the same
  on one process and on several, whether or not it compares cases with each other.
- What a loss is told of medicine (`soft_labels`) and of the long tail (`LogitAdjustment`) is apart from it, and goes
  with any of them.
- open_clip's losses take one positive per row, equally many rows on each process, and cosines rather than logits, so a
  case with two disorders does not fit. With one positive each, ours are theirs: a test holds them against each other.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from radfm.knowledge import icd10cm


class SigmoidContrastiveLoss(nn.Module):
    """Every case with every disorder is a question of its own (SigLIP, with as many positives as a case has).

    The sum over the disorders of the binary cross-entropy, averaged over the cases. A disorder's negatives are all
    cases of the step without it; a case's negatives are all disorders that it does not have.

    Args:
        positive_weight: how much a positive pair counts against a negative one; one number, or one of each disorder.

    References:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023, https://arxiv.org/abs/2303.15343

    Requirements:
        A learned scale and bias in the logits, as the text head has. No need to compare cases, so any batch will do.

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
        return _cross_entropy(logits, labels, self.positive_weight).sum(1).mean()


class SoftmaxContrastiveLoss(nn.Module):
    """Disorders compete for a case, and the cases of the step for a disorder, with several positives each.

    The cross-entropy between the softmax of the logits and the labels scaled to sum to 1, in both directions: over the
    disorders for each case that has one, over the cases for each disorder that one of them has. The mean of the two.

    Args:
        over_cases: what the second direction counts, 0 to 1.

    References:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021,
        https://arxiv.org/abs/2103.00020; several positives as in Khosla et al., Supervised Contrastive Learning,
        NeurIPS 2020, https://arxiv.org/abs/2004.11362, equation 2

    Requirements:
        Many cases in a step: they are each other's negatives. Its scores rank, but are no probabilities: a sigmoid of
        them means nothing before it is calibrated. A case without a disorder teaches the second direction only.

    Relations:
        [`SigmoidContrastiveLoss`] gives probabilities and needs no large step.

    Example:
        >>> loss = SoftmaxContrastiveLoss()
        >>> loss(model(**batch).logits, batch["labels"]).backward()
    """

    def __init__(self, over_cases: float = 0.5):
        super().__init__()
        self.over_cases = over_cases

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(cases, disorders) logits, (cases, disorders) labels in [0, 1] -> ()."""
        which_disorder, which_case = _competition(logits, labels), _competition(logits.T, labels.T)
        return (1 - self.over_cases) * which_disorder + self.over_cases * which_case


class OneOfLoss(nn.Module):
    """Which disorder a case has, when it has at most one: the cross-entropy of a softmax.

    Args:
        none: whether a case may have none, which then is a class whose logit is 0: with a single disorder this is its
            binary cross-entropy. Else a case without a disorder teaches nothing.
        class_weights: how much a case of each disorder counts, and with `none`, last, one without; None: all alike.

    Requirements:
        Labels of a case that sum to at most 1.

    Relations:
        [`SoftmaxContrastiveLoss`] with `over_cases=0` knows no class of normal cases.

    Example:
        >>> loss = OneOfLoss(none=True)
        >>> loss(model(**batch).logits, batch["labels"]).backward()
    """

    def __init__(self, none: bool = True, class_weights: Sequence[float] | None = None):
        super().__init__()
        self.none, self.class_weights = none, class_weights

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(cases, disorders) logits, (cases, disorders) labels in [0, 1] -> ()."""
        logits, labels = logits.float(), labels.float()
        if self.none:
            logits = F.pad(logits, (0, 1))
            labels = torch.cat([labels, 1 - labels.sum(1, keepdim=True)], dim=1)
        weights = 1.0 if self.class_weights is None else logits.new_tensor(self.class_weights)
        losses = -(weights * labels * logits.log_softmax(1)).sum(1)
        asked = labels.sum(1) > 0
        return losses[asked].mean() if asked.any() else (logits * 0.0).sum()


class BCELoss(nn.Module):
    """Mean binary cross-entropy over all pairs, the loss of RadDiag.

    Args:
        positive_weight: how much a positive pair counts against a negative one; one number, or one of each disorder.

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
        return _cross_entropy(logits, labels, self.positive_weight).mean()


class FocalLoss(nn.Module):
    """Binary cross-entropy in which a pair counts as much as it is still wrong: (1 - p) ** gamma.

    Args:
        gamma: how fast what is easy ceases to count; 0: not at all.
        alpha: share of the positives, 0 to 1, that of the negatives being 1 - alpha; None: both count alike.

    References:
        Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, https://arxiv.org/abs/1708.02002, equations 4, 5

    Requirements:
        Labels of 0 and 1 to be the published loss; between, |label - p| takes the place of 1 - p.

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
        wrong = (labels - logits.float().sigmoid()).abs()
        losses = wrong**self.gamma * _cross_entropy(logits, labels)
        if self.alpha is not None:
            losses = losses * (self.alpha * labels + (1 - self.alpha) * (1 - labels))
        return losses.mean()


class AsymmetricLoss(nn.Module):
    """Focal loss with a gamma for positives and a larger one for negatives, whose easiest are left out.

    Args:
        gamma_positive, gamma_negative: focusing of the two.
        margin: a negative whose probability is below it does not count.

    References:
        Ridnik et al., Asymmetric Loss For Multi-Label Classification, ICCV 2021, https://arxiv.org/abs/2009.14119,
        equation 7; the focusing weights are not differentiated, as in the authors' own default

    Requirements:
        Many disorders and few per case, which is what it was made for.

    Relations:
        [`FocalLoss`] with both gammas alike and no margin.

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
    "one_of": OneOfLoss,
    "bce": BCELoss,
    "focal": FocalLoss,
    "asymmetric": AsymmetricLoss,
}


class LogitAdjustment(nn.Module):
    """Tells the loss how common a disorder is, so that the model need not learn it: logits + tau * log prior odds.

    A disorder of three cases then pays for a false alarm as much as one of three hundred. At test nothing is added, and
    the scores rank cases as if all disorders were equally common. The mean over the disorders is taken off, so that the
    logits keep their level.

    Args:
        counts: (disorders,) training cases of each.
        cases: how many training cases there are.
        tau: 0: off, 1: as published.

    References:
        Menon et al., Long-tail learning via logit adjustment, ICLR 2021, https://arxiv.org/abs/2007.07314, equation 10;
        with prior odds in place of priors, for a sigmoid

    Example:
        >>> adjust = LogitAdjustment(counts=[300, 3], cases=1000)
        >>> loss(adjust(logits), labels)
    """

    def __init__(self, counts: Sequence[int], cases: int, tau: float = 1.0):
        super().__init__()
        prior = (torch.tensor(counts, dtype=torch.float32) + 1) / (cases + 2)  # as if one case more had it, one not
        offsets = tau * prior.logit()
        self.register_buffer("offsets", offsets - offsets.mean())

    def forward(self, logits: Tensor, disorders: Tensor | slice = slice(None)) -> Tensor:
        """(cases, n) logits of these n disorders, by their rows -> the same, adjusted."""
        return logits.float() + self.offsets[disorders].to(logits.device)


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


def gathered(mine: Tensor) -> Tensor:
    """The rows of all processes in their order, (rows of all, ...). Only my own carry a gradient.

    Every process computes the loss of the whole step from them, and differentiates it by its own rows alone. The sum of
    the processes' gradients is then that of the loss; `summed_over_processes` makes up for the mean that is taken.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return mine
    counts = [torch.zeros(1, dtype=torch.int64, device=mine.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(mine)], device=mine.device))
    counts = [int(count) for count in counts]
    padded = mine.new_zeros((max(counts), *mine.shape[1:]))
    padded[: len(mine)] = mine.detach()
    rows = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(rows, padded)
    rows = [part[:n] for part, n in zip(rows, counts, strict=True)]
    rows[dist.get_rank()] = mine
    return torch.cat(rows)


def summed_over_processes(loss: Tensor) -> Tensor:
    """The same value, with a gradient that DDP's and DeepSpeed's mean over the processes turns into the sum."""
    if not (dist.is_available() and dist.is_initialized()):
        return loss
    return loss.detach() + (loss - loss.detach()) * dist.get_world_size()


def _cross_entropy(logits: Tensor, labels: Tensor, positive_weight: float | Sequence[float] = 1.0) -> Tensor:
    """(cases, disorders), in float32, logits clamped to +-60 as in the paper."""
    weight = None if positive_weight == 1 else logits.new_tensor(positive_weight, dtype=torch.float32)
    clamped = logits.float().clamp(-60, 60)
    return F.binary_cross_entropy_with_logits(clamped, labels.float(), pos_weight=weight, reduction="none")


def _competition(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row's softmax, over the rows that have a positive."""
    mass = labels.sum(1)
    losses = -(labels * logits.float().log_softmax(1)).sum(1) / mass.clamp(min=1e-8)
    asked = mass > 0
    return losses[asked].mean() if asked.any() else (logits * 0.0).sum()
