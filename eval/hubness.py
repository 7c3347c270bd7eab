"""Hubness correction: lowers the scores of names that are similar to every case, `radfm calibrate --hubness`.

    >>> lower_hubs("runs/mine", "datasets/mine")["lowered"]

In a space of many dimensions some points, the hubs, are among the nearest neighbours of most others (Radovanović et
al., Hubs in space, JMLR 11:2487, 2010). Such names rank high in every case. By cross-domain similarity local scaling
(Conneau et al., Word translation without parallel data, ICLR 2018, https://arxiv.org/abs/1710.04087), the logit of a
name is lowered by half of its mean over the ten training cases that are nearest to it.

Decisions:
- No labels are used, so names that no training case has are treated like the others.
- One number for each name changes its rank among names. It does not change any AUC, which compares cases.
- The numbers are shifts of the calibration with a mean of zero, so that scores stay comparable with those of names that
  are not in the vocabulary. `radfm calibrate` continues from them; an earlier calibration is removed, because it was
  fitted to other scores.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radfm.checkpoints import CONFIDENCE
from radfm.data_prep.batches.case_dataset import CaseDataset
from radfm.eval.confidence import load_uncalibrated, save_with
from radfm.eval.predict import labelled_cases, outputs
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.progress import Progress, no_progress

NEAREST = 10  # training cases, as in the paper


def lower_hubs(
    model: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    device: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Saves the shifts with the checkpoint, and returns them; JSON-able.

    Args:
        model: folder of a checkpoint.
        data: folder that `radfm prepare` made, preferably the one that the model was trained on.
        output: folder for a copy with the shifts; None: the checkpoint itself is changed.
    Returns:
        `cases`: of the training split; `lowered`: name -> its shift, lowest first.
    Raises:
        FileNotFoundError: there is no such checkpoint or data set.
        ValueError: the head does not read text, there is no vocabulary, the checkpoint was calibrated by fine-tuning,
            the training split has no labelled case, or scores are nan.
    """
    network, processor, model = load_uncalibrated(model, output, device)
    config = network.config
    if not network.head.reads_text or not config.disorders:
        raise ValueError(f"{model} does not compare cases with names: give one with a text head and a vocabulary")
    if config.calibration is not None and "nearest" not in config.calibration:
        raise ValueError(f"{model} was calibrated by fine-tuning, which stays: give a checkpoint before fine-tuning")
    dataset = CaseDataset(labelled_cases(data, "train", publishable=True), processor)
    nearest = _nearest(network, dataset, progress)
    if nearest.isnan().any():
        raise ValueError(f"{model} has scores that are nan: train it again with a lower learning rate")
    near = nearest.mean(0) / 2
    shifts = (near.mean() - near).tolist()
    fit = {"slopes": [1.0] * len(shifts), "shifts": shifts, "exclusive": [], "nearest": NEAREST}
    output = save_with(model, output or model, {"calibration": fit, "thresholds": None, "prediction_sets": None})
    (output / CONFIDENCE).unlink(missing_ok=True)
    lowest = sorted(zip(config.disorders, shifts, strict=True), key=lambda pair: pair[1])
    return {"cases": len(dataset), "lowered": dict(lowest)}


@torch.inference_mode()
def _nearest(network: RadFMForDiagnosis, dataset: CaseDataset, progress: Progress) -> Tensor:
    """(at most 10, vocabulary) the highest logits of each name."""
    best = torch.empty(0, len(network.config.disorders))
    for _, _, output in outputs(network, dataset, progress=progress):
        both = torch.cat([best, output.logits.float().cpu()])
        best = both.topk(min(NEAREST, len(both)), dim=0).values
    return best
