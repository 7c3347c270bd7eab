"""How unlike the training data a case is: what is kept of it beside the weights, in `radfm_reference.safetensors`.

The distance of a scan is Mahalanobis', of its embedding to those of the training scans. A case is as far as its
farthest scan, and is compared with the validation cases, whose distances are kept.

Decisions:
- One normal distribution, whatever the disorder: a case without any has to be near, too. It keeps a mean and a matrix,
  and no embedding of any patient.
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


@dataclass
class TrainingReference:
    """
    Attributes:
        mean: (d,) float32, of the training scans' embeddings.
        whitening: (d, d) float32: a difference from the mean times it has unit variance in all directions.
        distances: (cases,) float32, ascending, of the validation cases.
        modalities: of the training scans.
        about: JSON-able: "weights" (their SHA-256), "data" and more.
    """

    mean: Tensor
    whitening: Tensor
    distances: Tensor
    modalities: list[str]
    about: dict[str, Any] = field(default_factory=dict)

    def scan_distances(self, scan_features: Tensor) -> Tensor:
        """(scans, d) as the model returns them -> (scans,) float32."""
        return ((scan_features.detach().float().cpu() - self.mean) @ self.whitening).norm(dim=1)

    def p(self, distance: float) -> float:
        """How many of the validation cases, and this one, are at least as far."""
        farther = len(self.distances) - int(torch.searchsorted(self.distances, torch.tensor(distance)))
        return (1 + farther) / (1 + len(self.distances))

    @property
    def least_p(self) -> float:
        """From which p, downwards, a case is unlike."""
        return max(FALSE_ALARMS, 1 / (1 + len(self.distances)))

    def judge(self, scan_features: Tensor, modalities: Sequence[str | None]) -> dict[str, Any]:
        """One case: (scans, d) and the modality of each -> `unlike` (bool), `p`, `new_modalities`, `scans` (p of each).

        A scan's p is that of a case of which it is the farthest.
        """
        distances = self.scan_distances(scan_features).tolist()
        new = sorted({modality for modality in modalities if modality and modality not in self.modalities})
        p = self.p(max(distances))
        return {
            "unlike": bool(new) or p <= self.least_p,
            "p": p,
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


def weights_sha256(folder: str | Path) -> str:
    """Of a checkpoint's weights, as `sha256sum model.safetensors` prints it; of several files, of one after another."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("model*.safetensors")):
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


__all__ = ["FILE", "TrainingReference", "weights_sha256"]
