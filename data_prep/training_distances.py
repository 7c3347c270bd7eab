"""The distances of latents to the training latents of a generator, by which a copy of a training case is recognised.

Decisions:
- The distance is the root mean square difference of two normalised latents, whose standard deviation is 0.5.
- What is too close follows from real cases: a sample may not be closer to a training case than all but a share of the
  held-out cases are. It is found for each modality, since some differ less from case to case than others.
- The training latents are those that the generator saw, one slice of each scan.
- A held-out latent that is one of the training latents, or is of a patient with one, says nothing about how close other
  patients are. Such latents are left out; a few of them would make the limit zero.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from radfm.data_prep.latent_slices import LatentSlices
from radfm.data_prep.stored_cases import load, patient_of

SAME = 1e-3  # distance of latents of one picture
_LEAST = 20  # held-out latents of a modality that has a limit of its own
_AT_ONCE = 64


class TrainingDistances:
    """
    Args:
        folder: the latent data set that the generator was trained on.
        closest: share of the held-out latents that are closer to a training latent than the limit.
    Attributes:
        fingerprint: of the data set.
        left_out: number of held-out latents that are left out.
    Raises:
        FileNotFoundError, ValueError: there is no such data set, or it has no latents in training and validation split.
    """

    def __init__(self, folder: str | Path, closest: float = 0.05):
        training, held_out = (LatentSlices(load(folder, split)) for split in ("train", "validation"))
        if not len(training) or not len(held_out):
            raise ValueError(f"{folder} needs latents in its training and its validation split to compare with")
        self.fingerprint: str = training.cases.record["fingerprint"]
        self._training = training.latents(range(len(training))).flatten(1)
        distances = self(held_out.latents(range(len(held_out)))).numpy()
        known = {patient_of(row) for row in training.cases.rows}
        patients = [patient_of(row) for row in held_out.cases.rows for _ in row["scan_rows"]]
        others = (distances > SAME) & [patient not in known for patient in patients]
        if not others.any():
            raise ValueError(f"{folder} has no validation case that is not in its training split, too: split it anew")
        self.left_out = int((~others).sum())
        modalities = np.array([prompt.modality or "" for prompt in held_out])
        self._limits = _limits(distances[others], modalities[others], closest)

    def __call__(self, latents: Tensor) -> Tensor:
        """(n,) distances to the closest training latent, of latents (n, channels, h, w)."""
        flat = latents.float().cpu().flatten(1)
        nearest = [torch.cdist(some, self._training).amin(1) for some in flat.split(_AT_ONCE)]
        return torch.cat(nearest) / flat.shape[1] ** 0.5

    def limit(self, modality: str | None) -> float:
        """The distance below which a sample is too close to a training case."""
        return self._limits.get(modality, self._limits[None])


def _limits(distances: np.ndarray, modalities: np.ndarray, closest: float) -> dict[str | None, float]:
    limits: dict[str | None, float] = {None: float(np.quantile(distances, closest))}
    for modality in sorted(set(modalities)):
        of_modality = distances[modalities == modality]
        if modality and len(of_modality) >= _LEAST:
            limits[modality] = float(np.quantile(of_modality, closest))
    return limits
