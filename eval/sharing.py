"""Can samples be shared? How close they are to training cases, beside how close other real cases are.

    >>> found = find_neighbours("datasets/synthetic", "datasets/mine", "runs/mine")
    >>> result = measure_sharing(found)
    >>> result["spaces"]["pixels"]["closer"], result["spaces"]["pixels"]["copies"]

Decisions:
- The distance of a sample to its nearest training case says nothing by itself: simple pictures are close to each other.
  It is compared with the distances of real cases of other patients, which the generator never saw, to their nearest
  training cases. Those are of the same modality and body part, or of the same modality, where there are 20 or more.
- A sample is called closer if it is below a quantile of these, 5% by default. A generator that does not copy has about
  that share of closer samples. The AUC of distances says the same without a threshold: 0.5 is as far as real cases are.
- With the autoencoder of the generator, training and held-out slices are compared as it reconstructs them: a sample was
  decoded, too, and a copy of a training latent is not closer to the slice itself than its reconstruction is. Samples as
  close as copies are then counted; without the autoencoder only samples with the pixels of a training slice can be.
- The AUC is that within the groups of comparable slices, averaged over samples: these may be of other modalities and
  body parts than most real cases.
- Held-out slices that are copies of a training slice, or of a patient with one, are left out and counted.
- Distances find copies, and not everything that can be learnt of a patient. What a generator's loss tells about its
  training cases is measured by `radfm.eval.membership`. Neither is a proof, as differential privacy would be.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from radfm.data_prep.stored_cases import StoredCases, load
from radfm.eval.bootstrap import patient_weights
from radfm.eval.checkpoints import load_checkpoint
from radfm.eval.comparisons import figure
from radfm.eval.metrics import measure
from radfm.eval.neighbours import MODEL, PIXELS, Neighbours, Slices, Spaces, nearest
from radfm.latents import Autoencoder
from radfm.progress import Progress, no_progress, part_of

SPACES = {PIXELS: "pixels", MODEL: "the model's space"}
QUANTILE = 0.05
COPY = 1e-3  # distance up to which a sample is as close as a copy
COPIES = {True: "samples as close as a copy", False: "samples with the pixels of a training slice"}  # decoded alike?
LEAST_CASES = 20  # held-out slices of a modality and body part

Group = tuple[str | None, ...]


@dataclass
class FoundNeighbours:
    """The nearest training slice of each sample and of each held-out slice.

    Attributes:
        samples, training, held_out: the slices.
        held_out_split: "test", or "validation" where there is no test split.
        left_out: number of held-out slices that are copies of training slices, or of their patients.
        of_samples, of_held_out: space -> neighbours among the training slices.
    """

    samples: Slices
    training: Slices
    held_out: Slices
    held_out_split: str
    left_out: int
    of_samples: dict[str, Neighbours]
    of_held_out: dict[str, Neighbours]

    def shares(self, space: str) -> np.ndarray:
        """(samples,) the share of the comparable held-out slices, and of this one, that are at least as close."""
        distances = self.of_samples[space].distances
        groups = _reference_distances(self.held_out, self.of_held_out[space].distances)
        shares = []
        for place, distance in zip(self.samples, distances, strict=True):
            reference = groups[_known(place.group, groups)]
            shares.append((1 + np.searchsorted(reference, distance, side="right")) / (1 + len(reference)))
        return np.array(shares)


def find_neighbours(
    synthetic: str | Path,
    real: str | Path,
    model: str | Path,
    limit: int = 2000,
    device: str | None = None,
    progress: Progress = no_progress,
    autoencoder: Autoencoder | None = None,
) -> FoundNeighbours:
    """Compares samples and held-out cases with all training cases.

    Args:
        synthetic: data set of samples.
        real: data set that the generator was trained on.
        model: folder of a checkpoint, for distances in its space.
        limit: at most so many samples, and so many held-out slices, evenly spaced.
        autoencoder: of the generator, of slices; real slices are compared as it reconstructs them.
    Raises:
        FileNotFoundError: there is no such data set or checkpoint.
        ValueError: both are the same data set, the generator of the samples learned from another one, or there is no
            training or no held-out case.
    """
    drawn = load(synthetic)
    _require_its_data(drawn, load(real))
    split = next((one for one in ("test", "validation") if len(load(real, one))), None)
    training = Slices(load(real, "train"), autoencoder=autoencoder)
    if split is None or not len(training):
        raise ValueError(f"{real} has no {'training' if split else 'test and no validation'} cases to compare with")
    samples, held_out = Slices(drawn, limit), Slices(load(real, split), limit, autoencoder)
    if not len(samples):
        raise ValueError(f"{synthetic} has no scan to compare")
    spaces = Spaces(*load_checkpoint(model, device))
    queries = [spaces.vectors(slices, part_of(progress, i, 3)) for i, slices in enumerate((samples, held_out))]
    joined = {space: torch.cat([one[space] for one in queries]) for space in SPACES}
    found = nearest(joined, spaces.blocks(training, part_of(progress, 2, 3)))
    count = len(samples)
    of_samples = {space: Neighbours(one.distances[:count], one.indices[:count]) for space, one in found.items()}
    others = _of_others(held_out, training, found[PIXELS].distances[count:])
    left_out = len(held_out) - len(others)
    held_out.keep(others)
    if not others:
        raise ValueError(f"{real} has no {split} slice that is not among its training slices, too: split it anew")
    of_held_out = {
        space: Neighbours(one.distances[count:][others], one.indices[count:][others]) for space, one in found.items()
    }
    return FoundNeighbours(samples, training, held_out, split, left_out, of_samples, of_held_out)


def measure_sharing(
    found: FoundNeighbours, quantile: float = QUANTILE, bootstraps: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """The figures of the distances; JSON-able.

    Returns:
        `samples`, `training`, `held_out`: numbers of slices; `held_out_split`; `left_out`: number of held-out slices
        that are training slices; `generator`: its fingerprint, as the samples state it, or None; `autoencoder`:
        fingerprint of that which reconstructed the real slices, or None;
        `synthetic`: whether the data set of the samples says that it is; `quantile`; `spaces`: space -> `closer`
        {value, low, high}, the share of samples that are closer than the quantile, `closer_samples`, their number,
        `auc` {value, low, high}, how often a sample is closer than a held-out slice of its group, `copies`, how many
        are as close as copies, `medians` of the distances of samples and of held-out slices.
    """
    autoencoder = found.training.autoencoder
    return {
        "data": found.training.cases.record["fingerprint"],
        "synthetic_data": found.samples.cases.record["fingerprint"],
        "synthetic": "synthetic" in found.samples.cases.record,
        "generator": found.samples.cases.record.get("synthetic", {}).get("generator"),
        "samples": len(found.samples),
        "training": len(found.training),
        "held_out": len(found.held_out),
        "held_out_split": found.held_out_split,
        "left_out": found.left_out,
        "autoencoder": autoencoder and autoencoder.fingerprint,
        "quantile": quantile,
        "spaces": {space: _measure_space(found, space, quantile, bootstraps, seed) for space in SPACES},
    }


def _measure_space(found: FoundNeighbours, space: str, quantile: float, bootstraps: int, seed: int) -> dict[str, Any]:
    ours, others = found.of_samples[space].distances, found.of_held_out[space].distances
    closer = found.shares(space) <= quantile
    patients = [f"sample {one.patient_id}" for one in found.samples]
    weights = patient_weights(patients, bootstraps, seed)
    patients += [f"real {one.patient_id}" for one in found.held_out]
    area, resamples = _area(found, space, patient_weights(patients, bootstraps, seed))
    return {
        "closer": figure(float(closer.mean()), closer @ weights / weights.sum(0)),
        "closer_samples": int(closer.sum()),
        "auc": figure(area, resamples),
        "copies": int((ours <= COPY).sum()),
        "medians": {"samples": float(np.median(ours)), "held_out": float(np.median(others))},
    }


def _area(found: FoundNeighbours, space: str, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """How often a sample is closer than a held-out slice of its group: the mean over the samples, and its resamples.

    Args:
        weights: (samples and held-out slices, resamples).
    """
    ours, others = found.of_samples[space].distances, found.of_held_out[space].distances
    groups = _reference_distances(found.held_out, others)
    of_samples = [_known(place.group, groups) for place in found.samples]
    total, resamples = 0.0, np.zeros(weights.shape[1])
    for group in sorted(set(of_samples), key=str):
        inside = [one == group for one in of_samples] + [group in _wider(place.group) for place in found.held_out]
        scores = -np.concatenate([ours, others])[inside, None]
        labels = np.repeat([True, False], [len(ours), len(others)])[inside, None]
        area = float(measure(scores, labels, metrics=["auc"])["auc"][0])
        drawn = measure(scores, labels, weights[inside], metrics=["auc"])["auc"][0]
        share = of_samples.count(group) / len(of_samples)
        total, resamples = total + share * area, resamples + share * np.where(np.isnan(drawn), area, drawn)
    return total, resamples


def _require_its_data(samples: StoredCases, real: StoredCases) -> None:
    """Raises: ValueError: the samples are not of a generator of this data set, or one of the two holds latents."""
    fingerprint = real.record["fingerprint"]
    if samples.record["fingerprint"] == fingerprint:
        raise ValueError(f"{samples.folder} and {real.folder} are the same data set: give the samples, and real cases")
    for cases in (samples, real):
        if cases.record.get("latents"):
            raise ValueError(f"{cases.folder} holds latents: give the data set of their pictures")
    made_of = samples.record.get("synthetic", {}).get("trained_on", {}).get("derived_from")
    if made_of not in (None, fingerprint):
        raise ValueError(
            f"the generator of {samples.folder} learned from the data set {made_of}, and {real.folder} is "
            f"{fingerprint}: compare with what it learned from"
        )


def _of_others(held_out: Slices, training: Slices, distances: np.ndarray) -> list[int]:
    """The held-out slices that are no copies of training slices, and of patients without any."""
    known = {place.patient_id for place in training}
    pairs = enumerate(zip(held_out, distances, strict=True))
    return [i for i, (place, distance) in pairs if distance > COPY and place.patient_id not in known]


def _reference_distances(held_out: Slices, distances: np.ndarray) -> dict[Group, np.ndarray]:
    """Group -> the sorted distances of its held-out slices: of modality and body part, of the modality, of all."""
    groups: dict[Group, list[float]] = {}
    for place, distance in zip(held_out, distances.tolist(), strict=True):
        for group in _wider(place.group):
            groups.setdefault(group, []).append(distance)
    return {group: np.sort(one) for group, one in groups.items() if len(one) >= LEAST_CASES or not group}


def _wider(group: Group) -> list[Group]:
    return [group, group[:1], ()]


def _known(group: Group, groups: dict[Group, np.ndarray]) -> Group:
    return next(one for one in _wider(group) if one in groups)
