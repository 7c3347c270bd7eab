"""Uncertainty of ensembles: of several models, or of one model with dropout left on.

    >>> mean = ensemble([first, second, third])  # tables of the same cases, or those of `dropout_scores`
    >>> mean.scores.save("evaluation/ensemble.parquet")  # measured like any other model
    >>> measure_uncertainty([first, second, third])["uncertainties"]["disagreement"]["error_auc"]

The probability of an ensemble is the mean of its members' probabilities, or of their log odds. The entropy of the mean
probability has two parts: the mean entropy of the members, and their disagreement (mutual information), which more
training cases would reduce.

Decisions:
- In the mean of probabilities a confident member dominates; in the mean of log odds a member with a low probability
  counts as much as one with a high probability (linear and logarithmic pooling: Genest and Zidek, Combining probability
  distributions, Statistical Science 1:114, 1986). The first suits members that were trained alike; the second those
  that were trained differently, see docs/results.md.
- An uncertainty is measured by how well it discriminates wrong from right cases: a case is wrong if it does not have
  the disorder ranked first. Normal cases, for which no first rank is right, are left out.
- Uncertainties are compared with that of a single model, which needs no further computation.
- A checkpoint that was trained without dropout can be given a dropout rate; the same measure tells whether that helps.

References:
    Lakshminarayanan, Pritzel and Blundell, Simple and scalable predictive uncertainty estimation using deep ensembles,
    NeurIPS 2017, https://arxiv.org/abs/1612.01474; Gal and Ghahramani, Dropout as a Bayesian approximation, ICML 2016,
    https://arxiv.org/abs/1506.02142; Houlsby et al., Bayesian active learning for classification and preference
    learning, 2011, https://arxiv.org/abs/1112.5745 (disagreement as mutual information); Geifman and El-Yaniv,
    Selective classification for deep neural networks, NeurIPS 2017, https://arxiv.org/abs/1705.08500 (risk, coverage)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import entr, expit, logit
from torch import nn

from radfm.encoder_radfm import RadFMEncoderLayer
from radfm.eval.bootstrap import patient_weights
from radfm.eval.calibration import calibration_error
from radfm.eval.checkpoints import load_checkpoint
from radfm.eval.comparisons import figure
from radfm.eval.diagnosis import require_same_cases
from radfm.eval.metrics import checked, measure
from radfm.eval.predict import Evaluation, score_with
from radfm.eval.scores import Scores
from radfm.progress import part_of

KINDS = {
    "single": "first member, 1 - its highest probability",
    "first": "mean, 1 - its highest probability",
    "entropy": "mean, entropy over the disorders",
    "disagreement": "mutual information about the first rank",
}

_POINTS = 101  # of a curve


@dataclass(frozen=True)
class Ensemble:
    """
    Attributes:
        scores: the table of the mean, as log odds.
        disagreement: (cases, disorders) mutual information, in nats, from 0 to log 2.
        entropy: (cases, disorders) of the mean probabilities, in nats; disagreement is a part of it.
    """

    scores: Scores
    disagreement: np.ndarray
    entropy: np.ndarray


def ensemble(members: Sequence[Scores], log_odds: bool = False) -> Ensemble:
    """Several models' tables of the same cases and disorders as one.

    Args:
        log_odds: average log odds in place of probabilities.
    Raises:
        ValueError: no table, or tables of other cases, labels or disorders.
    """
    if not members:
        raise ValueError("an ensemble needs at least one table of scores")
    table = members[0]
    for other in members[1:]:
        require_same_cases(table, other, str(other.about.get("model", "a member")))
    p = np.stack([expit(member.scores.astype(np.float64)) for member in members])  # (members, cases, disorders)
    mean = p.mean(0)
    entropy = _entropy(mean)
    if log_odds or len(members) == 1:
        odds = np.mean([member.scores for member in members], axis=0, dtype=np.float64)
    else:
        odds = logit(mean).clip(-700, 700)
    about = table.about | {"model": "ensemble", "members": [member.about for member in members]}
    about.pop("checkpoint", None)
    scores = replace(table, scores=np.asarray(odds, np.float32), logits=None, about=about)
    return Ensemble(scores, (entropy - _entropy(p).mean(0)).clip(0), entropy)


def dropout_scores(
    model: str | Path,
    evaluation: Evaluation,
    passes: int = 10,
    rate: float | None = None,
    seed: int = 0,
) -> list[Scores]:
    """One table for each pass of a checkpoint with dropout left on, to be combined by `ensemble`.

    Args:
        model, evaluation: as in `radfm.eval.predict.score`.
        passes: number of passes.
        rate: of dropout in the scan and case encoders; None: that of the checkpoint's training.
        seed: of the dropout.
    Raises:
        ValueError: the checkpoint was trained without dropout and no rate is given, a rate outside (0, 1), no pass; or
            as `score`.
    """
    if passes < 1:
        raise ValueError(f"there must be at least 1 pass, not {passes}")
    if rate is not None and not 0 < rate < 1:
        raise ValueError(f"a dropout rate is between 0 and 1, not {rate}")
    network, processor = load_checkpoint(model, evaluation.device)
    rate = _enable_dropout(network, rate)
    tables = []
    for number in range(passes):
        one_pass = replace(evaluation, progress=part_of(evaluation.progress, number, passes))
        about = {"model": Path(model).name, "dropout": rate, "pass": number}
        with torch.random.fork_rng():
            torch.manual_seed(seed * passes + number)
            tables.append(score_with(network, processor, one_pass, about=about))
    return tables


def measure_uncertainty(
    members: Sequence[Scores], bootstraps: int = 1000, seed: int = 0, log_odds: bool = False
) -> dict[str, Any]:
    """How good the mean of the members is, and how well uncertainties discriminate wrong cases; JSON-able.

    Args:
        log_odds: as in `ensemble`.
    Returns:
        `members`: their number; `cases`: with a disorder; `wrong`: figure {value, low, high}, the share of cases that
        do not have the disorder that the mean ranks first.
        `mean`, and `single` (the first member): {`auc`: macro over disorders, `log_loss`, `ece`}.
        `uncertainties`: kind of `KINDS` -> {`error_auc`: figure, how often a wrong case is more uncertain than a right
        one; `aurc`: area under the risk-coverage curve, lower is better; `curve`: list of [share of the cases kept,
        the most certain first; share of them wrong]}. "disagreement" is left out for one member.
    Raises:
        ValueError: as `ensemble`; no case with a disorder; all first ranks are right, or all wrong.
    """
    mean = ensemble(members, log_odds)
    scores, labels = checked(mean.scores.scores, mean.scores.labels)
    ill = labels.any(1)
    first = scores.argmax(1)
    wrong = ~labels[np.arange(len(labels)), first]
    if len(set(wrong[ill])) < 2:
        raise ValueError(f"the first ranks of all {ill.sum():,} cases are {'wrong' if wrong[ill][0] else 'right'}")
    uncertainties = {
        "single": -members[0].scores.max(1),
        "first": -scores.max(1),
        "entropy": mean.entropy.sum(1),
        "disagreement": mean.disagreement[np.arange(len(labels)), first],
    }
    if len(members) == 1:
        del uncertainties["disagreement"]
    weights = patient_weights(mean.scores.patients, bootstraps, seed)[ill]
    return {
        "members": len(members),
        "cases": int(ill.sum()),
        "wrong": figure(float(wrong[ill].mean()), wrong[ill] @ weights / weights.sum(0)),
        "mean": _figures(mean.scores),
        "single": _figures(members[0]),
        "uncertainties": {
            kind: _error_detection(values[ill].astype(np.float64), wrong[ill], weights)
            for kind, values in uncertainties.items()
        },
    }


def _figures(table: Scores) -> dict[str, float | None]:
    odds, labels = table.scores.astype(np.float64), table.labels
    areas = measure(odds, labels, metrics=["auc"])["auc"]
    return {
        "auc": float(np.nanmean(areas)) if not np.isnan(areas).all() else None,
        "log_loss": float(np.logaddexp(0, np.where(labels, -odds, odds)).sum(1).mean()),
        "ece": calibration_error(expit(odds), labels),
    }


def _error_detection(uncertainty: np.ndarray, wrong: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """How well an uncertainty discriminates wrong cases. Args: (cases,), (cases,) bool, (cases, resamples)."""
    column, truth = uncertainty[:, None], wrong[:, None]
    value = measure(column, truth, metrics=["auc"])["auc"][0]
    resamples = measure(column, truth, weights, metrics=["auc"])["auc"][0]
    order = np.argsort(uncertainty, kind="stable")
    risks = wrong[order].cumsum() / np.arange(1, len(wrong) + 1)
    shown = np.unique(np.linspace(0, len(risks) - 1, _POINTS).round().astype(int))
    return {
        "error_auc": figure(float(value), resamples),
        "aurc": float(risks.mean()),
        "curve": [[float((i + 1) / len(risks)), float(risks[i])] for i in shown],
    }


def _enable_dropout(network: nn.Module, rate: float | None) -> float:
    """Enables dropout in the scan and case encoders, in place; returns the highest rate."""
    layers = [layer for layer in network.modules() if isinstance(layer, RadFMEncoderLayer)]
    for layer in layers:
        layer.dropout = layer.dropout if rate is None else rate
        layer.train()
    highest = max((layer.dropout for layer in layers), default=0)
    if not layers:
        raise ValueError("the model has no layers with dropout: all passes would be the same")
    if not highest:
        raise ValueError("the checkpoint was trained without dropout: give a dropout rate, such as 0.1")
    return float(highest)


def _entropy(p: np.ndarray) -> np.ndarray:
    return entr(p) + entr(1 - p)
