"""Out-of-distribution (OOD) detection: the reference of the training data, in `radfm_reference.safetensors`.

Each scan has two Mahalanobis distances to the training scans: one of its embedding, one of the smoothness of its
slices. Each is divided by the median of the training scans, and the larger counts. The distance of a case is that of
its farthest scan; it is compared with the distances of the validation cases, which the file holds.

Decisions:
- One normal distribution for all disorders: a case without a disorder has to be in distribution, too. The file holds a
  mean and a matrix, and no embedding of any patient.
- Embeddings alone are not enough: for a model of real cases with a tower from ImageNet, noise was no farther than the
  cases themselves. The correlation of neighbouring pixels does not depend on an encoder.
- The p-value is the share of validation cases that are at least as far, the case itself counted among them: for a case
  from the same distribution it is at most 0.01 with a probability of at most 1%. With fewer than 99 validation cases a
  case is out of distribution if it is farther than all of them.
- A case with a modality that no training scan had is out of distribution, whatever its embedding.

References:
    Lee et al., A simple unified framework for detecting out-of-distribution samples and adversarial attacks, NeurIPS
    2018, https://arxiv.org/abs/1807.03888; Kamoi and Kobayashi, Why is the Mahalanobis distance effective for anomaly
    detection?, 2020, https://arxiv.org/abs/2003.00402 (one distribution for all); Bates et al., Testing for outliers
    with conformal p-values, Annals of Statistics 51:149, 2023, https://arxiv.org/abs/2104.08279
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers.utils import cached_file

FILE = "radfm_reference.safetensors"
FALSE_POSITIVE_RATE = 0.01  # among cases from the distribution of the validation split
SHIFTS = (1, 2, 4, 8)  # pixels; distances over which smoothness is measured
_SLICES = 64  # at once


@dataclass
class TrainingReference:
    """
    Attributes:
        mean: (d + 4,) float32, of the training scans' `ood_features`.
        whitening: (d + 4, d + 4) float32, zero between the two parts. A difference from the mean times it has the same
            variance in all directions of a part, and a median length of 1 over the training scans in each part.
        distances: (cases,) float32, ascending, of the validation cases.
        modalities: of the training scans.
        metadata: JSON-able: "weights" (their SHA-256), "data", "shifts" and more. Without "shifts" there are embeddings
            alone, and `mean` is (d,).
    """

    mean: Tensor
    whitening: Tensor
    distances: Tensor
    modalities: list[str]
    metadata: dict[str, Any] = field(default_factory=dict)

    def scan_distances(self, scans: Tensor) -> Tensor:
        """(scans, d + 4) `ood_features` -> (scans,) float32, the distance to the training scans."""
        size, smoothness = len(self.mean), len(self.metadata.get("shifts", ()))
        differences = (scans[:, :size] - self.mean) @ self.whitening
        parts = differences.split([size - smoothness, smoothness], dim=1)
        return torch.stack([part.norm(dim=1) for part in parts]).amax(0)

    def p_value(self, distance: float) -> float:
        """The share of the validation cases, and this one, that are at least as far."""
        farther = len(self.distances) - int(torch.searchsorted(self.distances, torch.tensor(distance)))
        return (1 + farther) / (1 + len(self.distances))

    @property
    def significance_level(self) -> float:
        """A case with a p-value of at most this is out of distribution."""
        return max(FALSE_POSITIVE_RATE, 1 / (1 + len(self.distances)))

    def judge(self, scans: Tensor, modalities: Sequence[str | None]) -> dict[str, Any]:
        """Whether a case is out of distribution.

        Args:
            scans: (scans, d + 4) `ood_features` of the case.
            modalities: of each scan.
        Returns:
            `is_ood` (bool); `p_value`; `new_modalities`, those of the case that no training scan had; `scans`, the
            p-value of each scan as the farthest of its case.
        """
        distances = self.scan_distances(scans).tolist()
        new = sorted({modality for modality in modalities if modality and modality not in self.modalities})
        p_value = self.p_value(max(distances))
        return {
            "is_ood": bool(new) or p_value <= self.significance_level,
            "p_value": p_value,
            "new_modalities": new,
            "scans": [self.p_value(distance) for distance in distances],
        }

    def to_bytes(self) -> bytes:
        """The content of the file."""
        tensors = {name: getattr(self, name).float().contiguous() for name in ("mean", "whitening", "distances")}
        rest = {"modalities": self.modalities, "metadata": self.metadata}
        return save(tensors, {"radfm": json.dumps(rest, ensure_ascii=False)})

    @classmethod
    def load(cls, model: str | Path) -> "TrainingReference | None":
        """The reference of a checkpoint, by its folder or name on the Hub; None where it has none.

        Raises:
            ValueError: the file is damaged, or belongs to other weights.
        """
        file = cached_file(
            str(model),
            FILE,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        if file is None:
            return None
        try:
            with safe_open(file, "pt") as content:
                rest = json.loads(content.metadata()["radfm"])
                tensors = {name: content.get_tensor(name) for name in ("mean", "whitening", "distances")}
                weights = rest["metadata"].get("weights")
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is damaged: run radfm calibrate again ({error})") from error
        if Path(model).is_dir() and weights != weights_sha256(model):
            raise ValueError(f"{file} belongs to other weights: run radfm calibrate again, or delete it")
        return cls(**tensors, **rest)


def ood_features(scan_features: Tensor, pixel_values: Tensor, slices_per_scan: Tensor) -> Tensor:
    """The embedding of each scan and the smoothness of its slices: (scans, d + 4) float32.

    Smoothness is the correlation of a slice with itself shifted horizontally and vertically by `SHIFTS` pixels, as a
    logit; for a scan, the mean over its slices.

    Args:
        scan_features: (scans, d), an output of the model.
        pixel_values, slices_per_scan: of the same packed batch.
    """
    slices = torch.cat([_smoothness(part) for part in pixel_values.split(_SLICES)])
    scans = torch.stack([part.mean(0) for part in slices.split(slices_per_scan.tolist())])
    return torch.cat([scan_features.detach().float().cpu(), scans], 1)


def _smoothness(pixel_values: Tensor) -> Tensor:
    """(slices, C, H, W) -> (slices, 4)"""
    grey = pixel_values.float().mean(1).cpu()
    grey = grey - grey.mean((1, 2), keepdim=True)
    power = grey.square().mean((1, 2)) + 1e-6
    horizontal = [(grey[:, :, shift:] * grey[:, :, :-shift]).mean((1, 2)) for shift in SHIFTS]
    vertical = [(grey[:, shift:] * grey[:, :-shift]).mean((1, 2)) for shift in SHIFTS]
    correlation = (torch.stack(horizontal, 1) + torch.stack(vertical, 1)) / (2 * power[:, None])
    return correlation.clamp(1e-3, 1 - 1e-4).logit()


def weights_sha256(folder: str | Path) -> str:
    """The SHA-256 of a checkpoint's weights, as `sha256sum model.safetensors` prints it; of several files in order."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("model*.safetensors")):
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


__all__ = ["FILE", "SHIFTS", "TrainingReference", "ood_features", "weights_sha256"]
