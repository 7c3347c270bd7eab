"""What a checkpoint needs to say how sure it is, fitted to a data set and saved with it: `radfm calibrate`.

    >>> fit_confidence("runs/mine", "datasets/mine")["after"]["ece"]

On the validation split: slopes and shifts that make scores probabilities, thresholds, and the rule for prediction sets;
on the training split: what a case should be like.

Decisions:
- No weight changes: all goes into `config.json`, and into `radfm_reference.safetensors` beside it.
- A checkpoint that was calibrated before is calibrated further, so a linear probe keeps what its logits lack.
- The promise of sets holds for scores that owe nothing to the validation split. So they go by plain logits, and the
  threshold of each disorder is the probability that calibration makes of one logit. Where disorders exclude one another
  no probability belongs to a logit: sets then go by the probabilities of each patient by the others' calibration (Vovk,
  Cross-conformal predictors, 2015), which keeps the promise nearly.
- The same command brings the same: what it fitted before is undone first.
- Names of the checkpoint that the data does not have keep the scores they had.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.special import expit
from torch import Tensor

from radfm.checkpoints import CONFIDENCE, NAMES, find
from radfm.configuration_radfm import LabelKind
from radfm.data_prep.batches.case_dataset import CaseDataset
from radfm.data_prep.stored_cases import load
from radfm.data_prep.tables import replacing, write_text
from radfm.eval import calibration
from radfm.eval.conformal import Guarantee, fit
from radfm.eval.predict import labelled_cases, load_checkpoint, outputs, refuse_shared_patients, table_of
from radfm.eval.refusal import fit_reference, looks_of
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.progress import Progress, no_progress
from radfm.reference_radfm import FILE, weights_sha256

KEYS = ("calibration", "thresholds", "prediction_sets")  # of the configuration


def fit_confidence(
    model: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    coverage: float = 0.9,
    guarantee: Guarantee = "share",
    bootstraps: int = 1000,
    seed: int = 0,
    device: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Fits all, saves it with the checkpoint, and returns what it brought; JSON-able.

    Args:
        model: folder of a checkpoint.
        data: folder that `radfm prepare` made, best the one that it learned from.
        output: folder for a calibrated copy; None: the checkpoint itself becomes it.
        coverage, guarantee: see `radfm.eval.conformal`.
    Returns:
        `cases`; `disorders`: {`calibrated`, `vocabulary`, `without_positives`}; `before`, `after`: see
        `radfm.eval.calibration.measure_calibration`, after by the fit to the other patients; `thresholds_of_their_own`;
        `calibration_before`: of the configuration; `prediction_sets`: see `radfm.eval.conformal.SetRule`; `reference`:
        {`training_cases`, `training_scans`, `validation_cases`, `modalities`}; `left_out`: cases that cannot be read;
        `data`, `weights`: fingerprints.
    Raises:
        FileNotFoundError: there is no such checkpoint or data set.
        ValueError: a split has no labelled case, patients are in several splits, no name of the data is in the
            checkpoint's vocabulary, no validation case has any of them, scores are nan; or as `fit`.
    """
    network, processor, model = to_calibrate(model, output, device)
    everything, cases = load(data), labelled_cases(data, "validation")
    refuse_shared_patients(everything, "validation")
    names, rows = _shared(network, cases.vocabulary.names, data)
    shown = CaseDataset(cases, processor)
    logits, looks = _looked(network, shown, progress)
    old = affine(network, logits)[:, rows]
    table = table_of(shown, everything, network.log_odds(logits)[:, rows].numpy(), names)
    if not table.labels.any():
        raise ValueError(f"no validation case of {data} has any of the checkpoint's {len(rows):,} disorders")
    labels = torch.tensor(table.labels)
    label_kind = calibration.label_kind_of(table.labels)
    slopes, shifts = calibration.calibrate(old, labels, label_kind)
    found = calibration.log_odds(old * slopes + shifts, label_kind).sigmoid().numpy()
    by_others = calibration.calibrated_by_others(old, labels, label_kind, table.patients)
    by_others = calibration.log_odds(by_others, label_kind)
    thresholds, own = calibration.thresholds(found, table.labels.astype(float))
    joined = _joined(network, rows, slopes, shifts, label_kind)
    multi_label = label_kind == LabelKind.MULTI_LABEL
    unspent = logits[:, rows].double() if multi_label else by_others
    rule = fit(unspent.numpy(), table.labels, table.patients, coverage, guarantee)
    at = _points(joined, rule.threshold) if multi_label else float(expit(rule.threshold))
    rule = replace(rule, threshold=at)
    fair = table_of(shown, everything, by_others.numpy(), names)
    reference = fit_reference(network, processor, data, looks, seed, progress)
    reference.metadata["weights"] = weights_sha256(model)
    changes = {
        "calibration": joined,
        "thresholds": _replaced(network.config.thresholds, rows, thresholds, len(network.config.disorders)),
        "prediction_sets": rule.to_dict(),
    }
    record = {
        "cases": len(shown),
        "disorders": {
            "calibrated": len(rows),
            "vocabulary": len(network.config.disorders),
            "without_positives": int((~table.labels.any(0)).sum()),
        },
        "before": calibration.measure_calibration(table, bootstraps, seed),
        "after": calibration.measure_calibration(fair, bootstraps, seed),
        "thresholds_of_their_own": sum(own),
        "prediction_sets": rule.to_dict(),
        "reference": {
            "training_cases": reference.metadata["training_cases"],
            "training_scans": reference.metadata["training_scans"],
            "validation_cases": len(reference.distances),
            "modalities": reference.modalities,
        },
        "calibration_before": network.config.calibration,
        "left_out": dict(shown.skipped),
        "data": everything.record["fingerprint"],
        "weights": reference.metadata["weights"],
    }
    output = save_with(model, output or model, changes)
    with replacing(output / FILE) as draft:
        Path(draft).write_bytes(reference.to_bytes())
    write_text(output / CONFIDENCE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return record


def to_calibrate(
    model: str | Path, output: str | Path | None, device: str | None
) -> tuple[RadFMForDiagnosis, RadFMProcessor, Path]:
    """The checkpoint without what was calibrated here before, so that the same command brings the same; its folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it comes with radfm, and no other folder is given.
    """
    if output is None and str(model) in NAMES and not Path(model).is_dir():
        raise ValueError(f"{model} comes with radfm and stays as it is: give --output for a calibrated copy")
    network, processor = load_checkpoint(model, device)
    folder = Path(find(model))
    if (folder / CONFIDENCE).is_file():
        record = json.loads((folder / CONFIDENCE).read_text(encoding="utf-8"))
        if record["weights"] == weights_sha256(folder):
            network.config.calibration = record["calibration_before"]
    return network, processor, folder


def affine(network: RadFMForDiagnosis, logits: Tensor) -> Tensor:
    """(cases, disorders) logits by the slopes and shifts that the checkpoint has, before any compete."""
    fit = network.config.calibration
    return logits if fit is None else logits * torch.tensor(fit["slopes"]) + torch.tensor(fit["shifts"])


def _points(fit: dict, logit: float) -> list[float]:
    """(vocabulary,) the probability that the calibration makes of a logit of each disorder."""
    return (torch.tensor(fit["slopes"]).double() * logit + torch.tensor(fit["shifts"]).double()).sigmoid().tolist()


@torch.inference_mode()
def _looked(network: RadFMForDiagnosis, shown: CaseDataset, progress) -> tuple[Tensor, list[Tensor]]:
    """(cases, vocabulary) logits, and (scans, d + 4) of each case, as a reference reads them."""
    logits, looks = {}, {}
    for rows, batch, seen in outputs(network, shown, progress=progress):
        logits |= zip(rows.tolist(), seen.logits.float().cpu(), strict=True)
        looks |= zip(rows.tolist(), looks_of(batch, seen), strict=True)
    found = torch.stack([logits[row] for row in range(len(shown))])
    if found.isnan().any():
        raise ValueError(f"{int(found.isnan().any(1).sum()):,} validation cases have scores that are no number")
    return found.clone(), [looks[row].clone() for row in range(len(shown))]


def _shared(network: RadFMForDiagnosis, names: list[str], data: str | Path) -> tuple[list[str], list[int]]:
    """The data's names that the checkpoint's vocabulary has, and their rows there."""
    row_of = {name.casefold(): row for row, name in enumerate(network.config.disorders)}
    both = [(name, row_of[name.casefold()]) for name in names if name.casefold() in row_of]
    if not both:
        raise ValueError(
            f"none of the {len(names):,} disorders of {data} is in the checkpoint's vocabulary of {len(row_of):,}: "
            "calibrate on the data that it learned from, or fine-tune it first (radfm finetune)"
        )
    return [name for name, _ in both], [row for _, row in both]


def _joined(network: RadFMForDiagnosis, rows: list[int], slopes: Tensor, shifts: Tensor, label_kind: LabelKind) -> dict:
    """The checkpoint's calibration, further calibrated in these rows."""
    n = len(network.config.disorders)
    old = network.config.calibration or {"slopes": [1.0] * n, "shifts": [0.0] * n, "exclusive": []}
    new = {name: list(old[name]) for name in ("slopes", "shifts")}
    for row, slope, shift in zip(rows, slopes.tolist(), shifts.tolist(), strict=True):
        new["slopes"][row] = old["slopes"][row] * slope
        new["shifts"][row] = old["shifts"][row] * slope + shift
    mine = set(rows)
    groups = [group | {"rows": [r for r in group["rows"] if r not in mine]} for group in old["exclusive"]]
    new["exclusive"] = [group for group in groups if group["rows"]]
    if label_kind != LabelKind.MULTI_LABEL:
        new["exclusive"].append({"rows": rows, "label_kind": str(label_kind)})
    return new


def _replaced(old: list | None, rows: list[int], new: list, n: int) -> list:
    found = list(old or [None] * n)
    for row, value in zip(rows, new, strict=True):
        found[row] = value
    return found


def save_with(model: str | Path, output: str | Path, changes: dict) -> Path:
    """The checkpoint with these keys of its configuration changed, itself or as a copy; returns its folder.

    Raises:
        ValueError: the folder for the copy is not empty.
    """
    model, output = Path(model), Path(output)
    if output.resolve() != model.resolve():
        if output.exists() and any(output.iterdir()):
            raise ValueError(f"{output} is not empty: choose another --output")
        output.mkdir(parents=True, exist_ok=True)
        for file in model.iterdir():
            if file.is_file():
                shutil.copy2(file, output / file.name)
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    write_text(output / "config.json", json.dumps(config | changes, indent=2, sort_keys=True) + "\n")
    return output
