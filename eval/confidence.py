"""Calibration and confidence of a checkpoint, fitted to a data set and saved with the weights: `radfm calibrate`.

    >>> fit_confidence("runs/mine", "datasets/mine")["after"]["ece"]

On the validation split: slopes and shifts that make scores probabilities, thresholds, and the rule for prediction sets.
On the training split: the reference for out-of-distribution detection.

Decisions:
- No weight changes: all goes into `config.json`, and into `radfm_reference.safetensors` beside it.
- A checkpoint that training calibrated is calibrated further, so a linear probe keeps its logit offsets.
- The guarantee of prediction sets needs scores that were not fitted to the validation split. So sets are fitted to
  logits, and the threshold of each disorder is the probability that calibration gives to one logit. For mutually
  exclusive disorders no single probability belongs to a logit. Sets are then fitted to the probabilities of each
  patient by a calibration on the other patients (Vovk, Cross-conformal predictors, 2015), for which the guarantee is
  approximate.
- The same command has the same result when it is repeated: what it fitted before is removed first.
- Names of the checkpoint that the data does not have keep their scores.
"""

import json
import shutil
from dataclasses import dataclass, replace
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
from radfm.eval.checkpoints import load_checkpoint
from radfm.eval.conformal import Guarantee, SetRule, fit
from radfm.eval.ood_detection import case_features, fit_reference
from radfm.eval.predict import labelled_cases, outputs, require_unshared_patients
from radfm.eval.score_tables import table_of
from radfm.eval.scores import Scores
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.progress import Progress, no_progress
from radfm.reference_radfm import FILE, TrainingReference, weights_sha256


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
    """Fits all, saves it with the checkpoint, and returns a JSON-able record.

    Args:
        model: folder of a checkpoint.
        data: folder that `radfm prepare` made, preferably the one that the model was trained on.
        output: folder for a calibrated copy; None: the checkpoint itself is changed.
        coverage, guarantee: see `radfm.eval.conformal`.
        seed: of the sample of training cases, and of the bootstrap.
    Returns:
        `cases`; `disorders`: {`calibrated`, `vocabulary`, `without_positives`}; `before`, `after`: see
        `radfm.eval.calibration.measure_calibration`, after by a fit to the other patients; `thresholds_of_their_own`:
        number of disorders with one; `calibration_before`: of the configuration; `prediction_sets`: see
        `radfm.eval.conformal.SetRule`; `reference`: {`training_cases`, `training_scans`, `validation_cases`,
        `modalities`}; `left_out`: cases that cannot be read; `data`, `weights`: fingerprints.
    Raises:
        FileNotFoundError: there is no such checkpoint or data set.
        ValueError: a split has no labelled case, patients are in several splits, no name of the data is in the
            checkpoint's vocabulary, no validation case has any of them, scores are nan; or as `fit`.
    """
    network, processor, model = load_uncalibrated(model, output, device)
    everything, cases = load(data), labelled_cases(data, "validation", publishable=True)
    require_unshared_patients(everything, "validation")
    names, rows = _shared_names(network, cases.vocabulary.names, data)
    dataset = CaseDataset(cases, processor)
    logits, features = _logits_and_features(network, dataset, progress)
    before = table_of(dataset, everything, network.log_odds(logits)[:, rows].numpy(), names)
    if not before.labels.any():
        raise ValueError(f"no validation case of {data} has any of the checkpoint's {len(rows):,} disorders")
    fitted = _fit_to_validation(network, rows, logits, before, coverage, guarantee)
    after = table_of(dataset, everything, fitted.cross_fitted.numpy(), names)
    reference = fit_reference(network, processor, data, features, seed, progress)
    reference.metadata["weights"] = weights_sha256(model)
    n = len(network.config.disorders)
    record = {
        "cases": len(dataset),
        "disorders": {
            "calibrated": len(rows),
            "vocabulary": n,
            "without_positives": int((~before.labels.any(0)).sum()),
        },
        "before": calibration.measure_calibration(before, bootstraps, seed),
        "after": calibration.measure_calibration(after, bootstraps, seed),
        "thresholds_of_their_own": sum(fitted.own_threshold),
        "prediction_sets": fitted.rule.to_dict(),
        "reference": {
            "training_cases": reference.metadata["training_cases"],
            "training_scans": reference.metadata["training_scans"],
            "validation_cases": len(reference.distances),
            "modalities": reference.modalities,
        },
        "calibration_before": network.config.calibration,
        "left_out": dict(dataset.skipped),
        "data": everything.record["fingerprint"],
        "weights": reference.metadata["weights"],
    }
    changes = {
        "calibration": fitted.calibration,
        "thresholds": _with_rows(network.config.thresholds, rows, fitted.thresholds, n),
        "prediction_sets": fitted.rule.to_dict(),
    }
    _save(save_with(model, output or model, changes), reference, record)
    return record


def load_uncalibrated(
    model: str | Path, output: str | Path | None, device: str | None
) -> tuple[RadFMForDiagnosis, RadFMProcessor, Path]:
    """The checkpoint without what `radfm calibrate` fitted before, and its folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it comes with radfm, and no output folder is given.
    """
    if output is None and str(model) in NAMES and not Path(model).is_dir():
        raise ValueError(f"{model} comes with radfm and cannot be changed: give --output for a calibrated copy")
    network, processor = load_checkpoint(model, device)
    folder = Path(find(model))
    if (folder / CONFIDENCE).is_file():
        record = json.loads((folder / CONFIDENCE).read_text(encoding="utf-8"))
        if record["weights"] == weights_sha256(folder):
            network.config.calibration = record["calibration_before"]
    return network, processor, folder


def save_with(model: str | Path, output: str | Path, changes: dict) -> Path:
    """Saves the checkpoint with these keys of its configuration changed, in place or as a copy; returns its folder.

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


@dataclass(frozen=True)
class _Fitted:
    """What is fitted to the validation split.

    Attributes:
        calibration: of the vocabulary, as in the configuration.
        cross_fitted: (cases, disorders) log odds of each case by a fit to the other patients.
        thresholds, own_threshold: of the calibrated disorders, see `radfm.eval.calibration.thresholds`.
        rule: for prediction sets.
    """

    calibration: dict
    cross_fitted: Tensor
    thresholds: list[float]
    own_threshold: list[bool]
    rule: SetRule


def _fit_to_validation(
    network: RadFMForDiagnosis,
    rows: list[int],
    logits: Tensor,
    table: Scores,
    coverage: float,
    guarantee: Guarantee,
) -> _Fitted:
    """Args: rows: of the calibrated disorders in the vocabulary; logits: (cases, vocabulary)."""
    labels, label_kind = torch.tensor(table.labels), calibration.label_kind_of(table.labels)
    odds = _affine(network, logits)[:, rows]
    slopes, shifts = calibration.calibrate(odds, labels, label_kind)
    probabilities = calibration.log_odds(odds * slopes + shifts, label_kind).sigmoid().numpy()
    cross_fitted = calibration.calibrated_by_others(odds, labels, label_kind, table.patients)
    cross_fitted = calibration.log_odds(cross_fitted, label_kind)
    thresholds, own = calibration.thresholds(probabilities, table.labels.astype(float))
    fit_of_vocabulary = _combined(network, rows, slopes, shifts, label_kind)
    multi_label = label_kind == LabelKind.MULTI_LABEL
    unfitted = logits[:, rows].double() if multi_label else cross_fitted
    rule = fit(unfitted.numpy(), table.labels, table.patients, coverage, guarantee)
    at = rule.threshold
    assert isinstance(at, float)  # one for all disorders, before it is put into the scale of each
    threshold = _probabilities_at(fit_of_vocabulary, at) if multi_label else float(expit(at))
    return _Fitted(fit_of_vocabulary, cross_fitted, thresholds, own, replace(rule, threshold=threshold))


def _save(folder: Path, reference: TrainingReference, record: dict) -> None:
    with replacing(folder / FILE) as draft:
        Path(draft).write_bytes(reference.to_bytes())
    write_text(folder / CONFIDENCE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _affine(network: RadFMForDiagnosis, logits: Tensor) -> Tensor:
    """(cases, disorders) logits by the slopes and shifts of the checkpoint, before exclusive disorders are combined."""
    fit = network.config.calibration
    return logits if fit is None else logits * torch.tensor(fit["slopes"]) + torch.tensor(fit["shifts"])


def _probabilities_at(fit: dict, logit: float) -> list[float]:
    """(vocabulary,) the probability that the calibration gives to one logit of each disorder."""
    return (torch.tensor(fit["slopes"]).double() * logit + torch.tensor(fit["shifts"]).double()).sigmoid().tolist()


@torch.inference_mode()
def _logits_and_features(
    network: RadFMForDiagnosis, dataset: CaseDataset, progress: Progress
) -> tuple[Tensor, list[Tensor]]:
    """(cases, vocabulary) logits, and of each case the features for OOD detection, (scans, d + 4)."""
    logits, features = {}, {}
    for rows, batch, output in outputs(network, dataset, progress=progress):
        logits |= zip(rows.tolist(), output.logits.float().cpu(), strict=True)
        features |= zip(rows.tolist(), case_features(batch, output), strict=True)
    stacked = torch.stack([logits[row] for row in range(len(dataset))])
    if stacked.isnan().any():
        raise ValueError(f"{int(stacked.isnan().any(1).sum()):,} validation cases have scores that are nan")
    return stacked.clone(), [features[row].clone() for row in range(len(dataset))]


def _shared_names(network: RadFMForDiagnosis, names: list[str], data: str | Path) -> tuple[list[str], list[int]]:
    """The names of the data that are in the checkpoint's vocabulary, and their rows there."""
    vocabulary = network.config.vocabulary
    shared = [name for name in names if name in vocabulary]
    if not shared:
        raise ValueError(
            f"none of the {len(names):,} disorders of {data} is in the checkpoint's vocabulary of "
            f"{len(vocabulary):,}: calibrate on the data that it was trained on, or fine-tune it first (radfm finetune)"
        )
    return shared, vocabulary.rows(shared)


def _combined(
    network: RadFMForDiagnosis, rows: list[int], slopes: Tensor, shifts: Tensor, label_kind: LabelKind
) -> dict:
    """The checkpoint's calibration, followed by another one in these rows."""
    n = len(network.config.disorders)
    old = network.config.calibration or {"slopes": [1.0] * n, "shifts": [0.0] * n, "exclusive": []}
    new = {key: list(old[key]) for key in ("slopes", "shifts")}
    for row, slope, shift in zip(rows, slopes.tolist(), shifts.tolist(), strict=True):
        new["slopes"][row] = old["slopes"][row] * slope
        new["shifts"][row] = old["shifts"][row] * slope + shift
    calibrated = set(rows)
    groups = [group | {"rows": [r for r in group["rows"] if r not in calibrated]} for group in old["exclusive"]]
    new["exclusive"] = [group for group in groups if group["rows"]]
    if label_kind != LabelKind.MULTI_LABEL:
        new["exclusive"].append({"rows": rows, "label_kind": str(label_kind)})
    return new


def _with_rows(old: list | None, rows: list[int], new: list, n: int) -> list:
    """(n,) the old values, or None, with new ones in some rows."""
    values = list(old or [None] * n)
    for row, value in zip(rows, new, strict=True):
        values[row] = value
    return values
