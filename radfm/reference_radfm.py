"""How unlike the training data a case is: what is kept of it beside the weights, in `radfm_reference.safetensors`.

A scan has two distances of Mahalanobis, to the training scans: of its embedding, and of how smooth its slices are. Each
is in units of what is usual in training, and the larger counts. A case is as far as its farthest scan, and is compared
with the validation cases, whose distances are kept.

Decisions:
- One normal distribution, whatever the disorder: a case without any has to be near, too. It keeps a mean and a matrix,
  and no embedding of any patient.
- Embeddings alone are not enough: of a model of real cases, whose tower came from ImageNet, noise was no farther than
  the cases themselves. How alike neighbours among pixels are does not depend on any encoder.
- `p` is the share of validation cases that are at least as far, the case counted among them: a case like them has a p
  of at most 0.01 with a chance of at most 1%. With fewer than 99 of them it is unlike if it is farther than all.
- A modality that no training scan had makes a case unlike, wherever its embedding lies.

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
FALSE_ALARMS = 0.01  # of cases like those of the validation split
SHIFTS = (1, 2, 4, 8)  # pixels, over which smoothness is measured
_SLICES = 64  # at once


@dataclass
class TrainingReference:
    """
    Attributes:
        mean: (d + 4,) float32, of the training scans as `ood_features` returns them.
        whitening: (d + 4, d + 4) float32, zero between the two parts: a difference from the mean times it has the same
            variance in all directions of a part, and in each part the training scans' median length is 1.
        distances: (cases,) float32, ascending, of the validation cases.
        modalities: of the training scans.
        about: JSON-able: "weights" (their SHA-256), "data", "shifts" and more. An older file has no shifts, and
            knows embeddings alone: `mean` is (d,).
    """

    mean: Tensor
    whitening: Tensor
    distances: Tensor
    modalities: list[str]
    about: dict[str, Any] = field(default_factory=dict)

    def scan_distances(self, scans: Tensor) -> Tensor:
        """(scans, d + 4) as `ood_features` returns them -> (scans,) float32."""
        size, smoothness = len(self.mean), len(self.about.get("shifts", ()))
        differences = (scans[:, :size] - self.mean) @ self.whitening
        parts = differences.split([size - smoothness, smoothness], dim=1)
        return torch.stack([part.norm(dim=1) for part in parts]).amax(0)

    def p(self, distance: float) -> float:
        """How many of the validation cases, and this one, are at least as far."""
        farther = len(self.distances) - int(torch.searchsorted(self.distances, torch.tensor(distance)))
        return (1 + farther) / (1 + len(self.distances))

    @property
    def least_p(self) -> float:
        """From which p, downwards, a case is unlike."""
        return max(FALSE_ALARMS, 1 / (1 + len(self.distances)))

    def judge(self, scans: Tensor, modalities: Sequence[str | None]) -> dict[str, Any]:
        """One case: (scans, d + 4) as `ood_features` returns them and the modality of each.

        Returns:
            `is_ood` (bool), `p_value`, `new_modalities`; `scans`: the p-value of each, that of a case of which it is
            the farthest.
        """
        distances = self.scan_distances(scans).tolist()
        new = sorted({modality for modality in modalities if modality and modality not in self.modalities})
        p = self.p(max(distances))
        return {
            "is_ood": bool(new) or p <= self.least_p,
            "p_value": p,
            "new_modalities": new,
            "scans": [self.p(distance) for distance in distances],
        }

    def to_bytes(self) -> bytes:
        """The content of the file."""
        tensors = {name: getattr(self, name).float().contiguous() for name in ("mean", "whitening", "distances")}
        rest = {"modalities": self.modalities, "about": self.about}
        return save(tensors, {"radfm": json.dumps(rest, ensure_ascii=False)})

    @classmethod
    def load(cls, model: str | Path) -> "TrainingReference | None":
        """Of a checkpoint, by its folder or name on the Hub; None where it has none.

        Raises:
            ValueError: the file is damaged, or belongs to other weights.
        """
        found = cached_file(
            str(model),
            FILE,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        if found is None:
            return None
        try:
            with safe_open(found, "pt") as file:
                rest = json.loads(file.metadata()["radfm"])
                tensors = {name: file.get_tensor(name) for name in ("mean", "whitening", "distances")}
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{found} is damaged: run radfm calibrate again ({error})") from error
        if Path(model).is_dir() and rest["about"].get("weights") != weights_sha256(model):
            raise ValueError(f"{found} belongs to other weights: run radfm calibrate again, or delete it")
        return cls(**tensors, **rest)


def ood_features(scan_features: Tensor, pixel_values: Tensor, slices_per_scan: Tensor) -> Tensor:
    """Each scan's embedding, and how smooth its slices are: (scans, d + 4) float32.

    Smoothness is the correlation of a slice with itself, shifted across and down by `SHIFTS` pixels, on the scale of
    the logit, which tells 0.1 from nothing; of a scan, the mean over its slices.

    Args:
        scan_features: (scans, d) as the model returns them.
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
    across = [(grey[:, :, shift:] * grey[:, :, :-shift]).mean((1, 2)) for shift in SHIFTS]
    down = [(grey[:, shift:] * grey[:, :-shift]).mean((1, 2)) for shift in SHIFTS]
    alike = (torch.stack(across, 1) + torch.stack(down, 1)) / (2 * power[:, None])
    return alike.clamp(1e-3, 1 - 1e-4).logit()


def weights_sha256(folder: str | Path) -> str:
    """Of a checkpoint's weights, as `sha256sum model.safetensors` prints it; of several files, of one after another."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("model*.safetensors")):
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


__all__ = ["FILE", "SHIFTS", "TrainingReference", "ood_features", "weights_sha256"]
