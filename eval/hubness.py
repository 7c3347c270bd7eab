"""Names that are near to every case, and so rank high whatever a case has: `radfm calibrate --hubness` lowers them.

    >>> lower_hubs("runs/mine", "datasets/mine")["lowered"]

In a space of many dimensions some points are among the nearest of most others, by accident (Radovanović et al., Hubs in
space, JMLR 11:2487, 2010). By cross-domain similarity local scaling (Conneau et al., Word translation without parallel
data, ICLR 2018, https://arxiv.org/abs/1710.04087) a name gives up half of what it scores with its ten nearest training
cases.

Decisions:
- No label is read, so names that no training case has are treated as the others are.
- One number for each name changes its rank among names, and no AUC: that compares cases.
- The numbers are shifts of the calibration, zero on average, so that scores stay beside those of names that are typed.
  `radfm calibrate` goes on from there; what it fitted before is undone, for it was fitted to other scores.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radfm.checkpoints import CONFIDENCE
from radfm.data_prep.batches.case_dataset import CaseDataset
from radfm.eval.confidence import save_with, to_calibrate
from radfm.eval.predict import labelled_cases, outputs
from radfm.progress import Progress, no_progress

NEAREST = 10  # training cases, as in the paper


def lower_hubs(
    model: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    device: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Saves the shifts with the checkpoint, and returns what they are; JSON-able.

    Args:
        model: folder of a checkpoint.
        data: folder that `radfm prepare` made, best the one that it learned from.
        output: folder for a copy that has them; None: the checkpoint itself gets them.
    Returns:
        `cases`: of the training split; `lowered`: name -> its shift, lowest first.
    Raises:
        FileNotFoundError: there is no such checkpoint or data set.
        ValueError: the head reads no names, there is no vocabulary, fine-tuning calibrated the checkpoint, the training
            split has no labelled case, or scores are nan.
    """
    network, processor, model = to_calibrate(model, output, device)
    config = network.config
    if not network.head.reads_text or not config.disorders:
        raise ValueError(f"{model} has no names that cases could be near to: it needs a text head and a vocabulary")
    if config.calibration is not None and "nearest" not in config.calibration:
        raise ValueError(f"{model} was calibrated by fine-tuning, and its names stay as that left them")
    shown = CaseDataset(labelled_cases(data, "train"), processor)
    nearest = _nearest(network, shown, progress)
    if nearest.isnan().any():
        raise ValueError(f"{model} has scores that are no number")
    near = nearest.mean(0) / 2
    shifts = (near.mean() - near).tolist()
    fit = {"slopes": [1.0] * len(shifts), "shifts": shifts, "exclusive": [], "nearest": NEAREST}
    output = save_with(model, output or model, {"calibration": fit, "thresholds": None, "prediction_sets": None})
    (output / CONFIDENCE).unlink(missing_ok=True)
    lowest = sorted(zip(config.disorders, shifts, strict=True), key=lambda pair: pair[1])
    return {"cases": len(shown), "lowered": dict(lowest)}


@torch.inference_mode()
def _nearest(network, shown: CaseDataset, progress) -> Tensor:
    """(at most 10, vocabulary) the highest logits of each name."""
    best = torch.empty(0, len(network.config.disorders))
    for _, _, seen in outputs(network, shown, progress=progress):
        both = torch.cat([best, seen.logits.float().cpu()])
        best = both.topk(min(NEAREST, len(both)), dim=0).values
    return best
