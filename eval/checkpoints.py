"""Loads a checkpoint for evaluation, on the device that computes."""

from pathlib import Path

import torch

from radfm.checkpoints import find
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor


def load_checkpoint(folder: str | Path, device: str | None = None) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    """Args: device: "cpu", "cuda", ...; None: a GPU if there is one. Raises: as `radfm.checkpoints.find`."""
    folder = find(folder, local=True)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return RadFMForDiagnosis.from_pretrained(folder).eval().to(target), RadFMProcessor.from_pretrained(folder)
