"""The distances of latents to the training latents of a generator, by which a copy of a training case is recognised.

Decisions:
- The distance is the root mean square difference of two normalised latents, whose standard deviation is 0.5.
- What is too close follows from real cases: a sample may not be closer to a training case than all but a share of the
  held-out cases are. It is found for each modality, since some differ less from case to case than others.
- The training latents are those that the generator saw, one slice of each scan.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from radfm.data_prep.latent_slices import LatentSlices
from radfm.data_prep.stored_cases import load

_LEAST = 20  # held-out latents of a modality that has a limit of its own
_AT_ONCE = 64


class TrainingDistances:
    """
    Args:
        folder: the latent data set that the generator was trained on.
        closest: share of the held-out latents that are closer to a training latent than the limit.
    Attributes:
        fingerprint: of the data set.
    Raises:
        FileNotFoundError, ValueError: there is no such data set, or it has no latents in training and validation split.
    """

    def __init__(self, folder: str | Path, closest: float = 0.05):
        training, held_out = (LatentSlices(load(folder, split)) for split in ("train", "validation"))
        if not len(training) or not len(held_out):
            raise ValueError(f"{folder} needs latents in its training and its validation split to compare with")
        self.fingerprint: str = training.cases.record["fingerprint"]
        self._training = training.latents(range(len(training))).flatten(1)
        self._limits = self._limits_of(held_out, closest)

    def __call__(self, latents: Tensor) -> Tensor:
        """(n,) distances to the closest training latent, of latents (n, channels, h, w)."""
        flat = latents.float().cpu().flatten(1)
        nearest = [torch.cdist(some, self._training).amin(1) for some in flat.split(_AT_ONCE)]
        return torch.cat(nearest) / flat.shape[1] ** 0.5

    def limit(self, modality: str | None) -> float:
        """The distance below which a sample is too close to a training case."""
        return self._limits.get(modality, self._limits[None])

    def _limits_of(self, held_out: LatentSlices, closest: float) -> dict[str | None, float]:
        distances = self(held_out.latents(range(len(held_out)))).numpy()
        modalities = np.array([prompt.modality or "" for prompt in held_out])
        limits: dict[str | None, float] = {None: float(np.quantile(distances, closest))}
        for modality in sorted(set(modalities)):
            of_modality = distances[modalities == modality]
            if modality and len(of_modality) >= _LEAST:
                limits[modality] = float(np.quantile(of_modality, closest))
        return limits
