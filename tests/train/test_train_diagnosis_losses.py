"""The losses of the diagnosis stage, compared with hand-computed figures and with open_clip, and their options."""

import math

import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from radfm.losses_radfm import (
    LOSSES,
    AsymmetricLoss,
    BCELoss,
    FocalLoss,
    SigmoidContrastiveLoss,
    SoftmaxContrastiveLoss,
    loss_function,
)
from radfm.train.label_smoothing import hierarchical_similarity, smooth_labels


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 9, generator=generator), (torch.rand(6, 9, generator=generator) > 0.7).float()


@pytest.fixture
def towers() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    cases, texts = torch.randn(2, 5, 8, generator=generator)
    return normalize(cases, dim=-1), normalize(texts, dim=-1)


def test_with_one_disorder_each_the_sigmoid_loss_is_open_clips(towers):
    cases, texts = towers
    theirs = open_clip.loss.SigLipLoss()(cases, texts, torch.tensor(7.0), torch.tensor(-2.0))
    ours = SigmoidContrastiveLoss()(7 * cases @ texts.T - 2, torch.eye(5))
    torch.testing.assert_close(ours, theirs)


def test_with_one_disorder_each_the_softmax_loss_is_open_clips(towers):
    cases, texts = towers
    theirs = open_clip.loss.ClipLoss()(cases, texts, torch.tensor(7.0))
    torch.testing.assert_close(SoftmaxContrastiveLoss()(7 * cases @ texts.T, torch.eye(5)), theirs)


def test_two_positives_share_a_case_and_a_case_without_any_adds_no_loss():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    total = math.log(math.exp(2) + math.e + 1)
    assert SoftmaxContrastiveLoss(over_cases=0)(logits, labels).item() == pytest.approx(total - 1.5, abs=1e-6)


def test_binary_losses_match_their_formulas():
    logits, labels = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1.0, 0.0]])  # p = 0.5, 0.75
    positive, negative = math.log(2), math.log(4)
    assert BCELoss()(logits, labels).item() == pytest.approx((positive + negative) / 2)
    assert BCELoss(3.0)(logits, labels).item() == pytest.approx((3 * positive + negative) / 2)
    assert SigmoidContrastiveLoss()(logits, labels).item() == pytest.approx(positive + negative)
    assert FocalLoss(2)(logits, labels).item() == pytest.approx((0.25 * positive + 0.5625 * negative) / 2)
    assert FocalLoss(0, 0.2)(logits, labels).item() == pytest.approx((0.2 * positive + 0.8 * negative) / 2)
    shifted = 0.75 - 0.05
    expected = (0.5 * positive - shifted**4 * math.log(1 - shifted)) / 2
    assert AsymmetricLoss()(logits, labels).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_falls_along_its_gradient(name, pairs):
    logits, labels = pairs[0].clone().requires_grad_(), pairs[1]
    loss = LOSSES[name]()
    first = loss(logits, labels)
    first.backward()
    assert loss(logits - logits.grad / logits.grad.norm(), labels) < first
    assert loss(logits.bfloat16(), labels).dtype == torch.float32


def test_logit_offsets_are_added_in_the_loss(pairs):
    logits, labels = pairs
    offsets = [0.5 * row for row in range(9)]
    loss = loss_function({"name": "bce", "logit_offsets": offsets})
    torch.testing.assert_close(loss(logits, labels), BCELoss()(logits + torch.tensor(offsets), labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"name": "hinge"}, "there is no loss 'hinge'"), ({"name": "focal", "gama": 2}, "unexpected keyword argument")],
)
def test_a_wrong_loss_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        loss_function(options)


def test_labels_are_smoothed_by_the_distance_in_icd10cm():
    similarity = hierarchical_similarity([["J93.0"], ["J93.1"], ["J94.2"], ["S82.1"], []], strength=0.4, reach=6)
    assert torch.equal(similarity, similarity.T)
    assert torch.equal(similarity.diag(), torch.ones(5))
    assert 0.4 > similarity[0, 1] > similarity[0, 2] > 0
    assert similarity[0, 3] == similarity[0, 4] == 0
    smoothed = smooth_labels(torch.tensor([[1.0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]), similarity)
    torch.testing.assert_close(smoothed[0], similarity[0])
    torch.testing.assert_close(smoothed[1, :2], torch.ones(2))
    assert not smoothed[2].any()
