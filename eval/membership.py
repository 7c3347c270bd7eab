"""Membership inference: can a case be recognised as a training case of a generator by how well it is denoised?

    >>> generator = Generator.from_pretrained("runs/diffusion")
    >>> measure_membership(generator, "datasets/mine-latents", masks="datasets/mine")["auc"]

Decisions:
- The attack is that by the loss (Carlini et al., "Extracting training data from diffusion models", USENIX Security
  2023; Matsumoto et al., IEEE S&P Workshops 2023): a generator removes noise better from latents that it was trained
  on. Each latent has the loss at several noise levels, with the same noise as all others, under its own prompt.
- Slices are those that the generator learned from, chosen and described as in its training. Other data or prompts would
  make it look as if it remembered less.
- The AUC is that of training against validation cases: 0.5 means that they cannot be discriminated. Recall at a false
  positive rate of 1% is what Carlini et al. propose to report: some cases may be recognised where most are not.
- It takes the validation cases for cases of the same kind as the training cases. Where a collection is in one of the
  splits only, as in some official splits, the AUC is that of the collections, too.
- Stronger attacks, such as those with generators trained without the case, can find more.
"""

from pathlib import Path
from typing import Any

import numpy as np

from radfm.data_prep.latent_slices import LatentSlices
from radfm.data_prep.stored_cases import load, patient_of
from radfm.eval.bootstrap import patient_weights
from radfm.eval.comparisons import figure
from radfm.eval.metrics import measure
from radfm.latents.generator import Generator
from radfm.progress import Progress, no_progress

SIGMAS = (0.2, 0.5, 1.0)
RECALL = "recall@fpr=0.01"

_NOISES = 4  # for each latent and level
_AT_ONCE = 64


def measure_membership(
    generator: Generator,
    latents: str | Path,
    masks: str | Path | None = None,
    limit: int = 500,
    bootstraps: int = 1000,
    seed: int = 0,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """How well training slices of a latent data set are told from validation slices by the generator's loss; JSON-able.

    Args:
        latents: folder that the generator was trained on.
        masks: the data set that they were made of, for its masks; used if the generator was trained with them.
        limit: at most so many slices of each split, sampled by `seed`.
    Returns:
        `training`, `held_out`: numbers of slices; `auc` and `recall` at a false positive rate of 1%: {value, low,
        high}; `losses`: noise level -> mean of the training and of the held-out slices.
    Raises:
        ValueError: the generator learned from other latents, or there are no training or no validation cases.
    """
    losses, patients = [], []
    for split in ("train", "validation"):
        slices = _slices(generator, latents, split, masks)
        cases = slices.cases
        rows = np.sort(np.random.default_rng(seed).permutation(len(slices))[:limit])
        losses.append(_losses(generator, slices, rows, seed))
        of_slices = [patient_of(row) for row in cases.rows for _ in row["scan_rows"]]
        patients += [of_slices[row] for row in rows]
        progress(len(losses), 2)
    of_levels = np.concatenate(losses, 1)
    scores = -(of_levels / np.median(of_levels, 1, keepdims=True)).mean(0)[:, None]
    labels = np.repeat([True, False], [one.shape[1] for one in losses])[:, None]
    values = measure(scores, labels, metrics=["auc", RECALL])
    resamples = measure(scores, labels, patient_weights(patients, bootstraps, seed), metrics=["auc", RECALL])
    return {
        "training": losses[0].shape[1],
        "held_out": losses[1].shape[1],
        "auc": figure(values["auc"][0], resamples["auc"][0]),
        "recall": figure(values[RECALL][0], resamples[RECALL][0]),
        "losses": {str(sigma): [float(one[i].mean()) for one in losses] for i, sigma in enumerate(SIGMAS)},
    }


def _slices(generator: Generator, latents: str | Path, split: str, masks: str | Path | None) -> LatentSlices:
    """What the generator learned from, or would have, in a split. Raises: ValueError: it learned from other latents."""
    chosen = generator.facts.get("chosen") or {"withheld": [], "publishable": True, "masks": True}
    if masks is None and chosen["masks"] and "chosen" in generator.facts:
        raise ValueError("the generator was trained with masks: give the data set that has them")
    cases = load(latents, split, without=chosen["withheld"], publishable=chosen["publishable"])
    made_of = None if masks is None or not chosen["masks"] else load(masks)
    slices, trained_on = LatentSlices(cases, made_of), generator.trained_on["fingerprint"]
    is_other = trained_on not in (None, cases.record["fingerprint"])
    if is_other or cases.record["latents"]["autoencoder"] != generator.autoencoder.fingerprint:
        raise ValueError(
            f"{latents} is {cases.record['fingerprint']}, and the generator was trained on {trained_on}, by the "
            f"autoencoder {generator.autoencoder.fingerprint}: give the latents that it was trained on"
        )
    if not len(slices):
        raise ValueError(f"{latents} has no case in its split {split!r}")
    return slices


def _losses(generator: Generator, slices: LatentSlices, rows: np.ndarray, seed: int) -> np.ndarray:
    """(levels, slices): the mean over some noises, which are the same for all slices."""
    losses = np.zeros((len(SIGMAS), len(rows)))
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        latents, prompts = slices.latents(part), [slices[row] for row in part.tolist()]
        for level, sigma in enumerate(SIGMAS):
            for noise in range(_NOISES):
                seeds = [seed + noise] * len(part)
                loss = generator.loss(latents, prompts, sigma, seeds)
                losses[level, start : start + len(part)] += loss.cpu().numpy() / _NOISES
    return losses
