"""Out-of-distribution (OOD) detection: fits what a checkpoint keeps of its training data, and measures the detection.

    >>> reference = fit_reference(network, processor, "datasets/mine")  # radfm calibrate saves it with the checkpoint
    >>> measure_ood("runs/mine", Evaluation("datasets/mine"), pictures=["cat.jpg"])["kinds"]["cat.jpg"]["auc"]

Decisions:
- Only the distance of `radfm.reference_radfm.TrainingReference` is measured. That a modality that no training scan had
  is always OOD is a rule, and would be right by definition.
- Noise keeps the pixels of each scan in random order, so grey values and their frequencies stay the same. This is
  harder to detect than noise of another distribution.
- A picture is tested by its crops, which count as the cases of one patient.
- Beside the distance, the error with which an autoencoder reconstructs a case can be measured. Nothing is fitted to it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_curve
from torch import Tensor

from radfm.cases import Case, Scan
from radfm.checkpoints import find
from radfm.data_prep.batches.case_dataset import CaseDataset
from radfm.data_prep.latents import refuse_latents
from radfm.data_prep.stored_cases import StoredCases, load, patient_of
from radfm.eval.anomaly_maps import MapMaker
from radfm.eval.bootstrap import patient_weights
from radfm.eval.checkpoints import load_checkpoint
from radfm.eval.comparisons import figure
from radfm.eval.metrics import measure
from radfm.eval.predict import Evaluation, labelled_cases, outputs, require_unshared_patients
from radfm.latents import Autoencoder
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.progress import Progress, no_progress, part_of
from radfm.readers.read_case import read_case
from radfm.reference_radfm import SHIFTS, TrainingReference, ood_features

TRAINING_CASES = 1000  # that the reference is fitted to, at most
CROPS = 20
_CASES_PER_STEP = 8

Distances = Callable[[Iterable[Case]], np.ndarray]  # cases -> (cases,) distance of each to the training data
Scored = tuple[np.ndarray, Sequence]  # (cases,) scores, and the patient of each


def fit_reference(
    network: RadFMForDiagnosis,
    processor: RadFMProcessor,
    data: str | Path,
    validation: Iterable[Tensor] | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> TrainingReference:
    """Fits the reference to the training split of a data set: to at most 1,000 cases, sampled by `seed`.

    The covariances are shrunk according to the number of scans (Ledoit and Wolf, A well-conditioned estimator for
    large-dimensional covariance matrices, Journal of Multivariate Analysis 88:365, 2004).

    Args:
        validation: (scans, d + 4) of each validation case, as `case_features` returns them; None: they are computed.
    Raises:
        ValueError: the training or the validation split has no labelled case.
    """
    cases = labelled_cases(data, "train", publishable=True)
    sample = np.random.default_rng(seed).permutation(len(cases))[:TRAINING_CASES]
    dataset = CaseDataset(cases, processor, rows=sorted(sample.tolist()))
    scans = torch.cat(extract_features(network, dataset, progress)).double()
    modalities = {cases.scan_header(scan)["modality"] for row in cases.rows for scan in row["scan_rows"]}
    parts = scans.split([scans.shape[1] - len(SHIFTS), len(SHIFTS)], dim=1)
    (whitening, shrinkage), (of_smoothness, _) = map(_whitening, parts)
    reference = TrainingReference(
        mean=scans.mean(0).float(),
        whitening=torch.block_diag(whitening, of_smoothness).float(),
        distances=torch.zeros(0),
        modalities=sorted(modality or "other" for modality in modalities),
        metadata={
            "data": cases.record["fingerprint"],
            "training_cases": len(dataset),
            "training_scans": len(scans),
            "shrinkage": shrinkage,
            "shifts": list(SHIFTS),
            "radfm": version("radfm"),
        },
    )
    if validation is None:
        validation = extract_features(
            network, CaseDataset(labelled_cases(data, "validation", publishable=True), processor)
        )
    farthest = [reference.scan_distances(of_case).max() for of_case in validation]
    reference.distances = torch.stack(farthest).sort().values
    return reference


def extract_features(
    network: RadFMForDiagnosis, dataset: CaseDataset, progress: Progress = no_progress
) -> list[Tensor]:
    """(scans, d + 4) float32 of each case, as `radfm.reference_radfm.ood_features` returns them."""
    features: dict[int, Tensor] = {}
    for rows, batch, output in outputs(network, dataset, progress=progress):
        features |= zip(rows.tolist(), case_features(batch, output), strict=True)
    return [features[row] for row in range(len(dataset))]


def case_features(batch: Mapping[str, Tensor], output) -> tuple[Tensor, ...]:
    """(scans, d + 4) of each case of a packed batch, from the model's output for it."""
    scans = ood_features(output.scan_features, batch["pixel_values"], batch["slices_per_scan"])
    return scans.split(batch["scans_per_case"].tolist())


def measure_ood(
    model: str | Path,
    evaluation: Evaluation,
    pictures: Sequence[str | Path] = (),
    limit: int | None = None,
    bootstraps: int = 1000,
    seed: int = 0,
    autoencoder: str | Path | None = None,
) -> dict[str, Any]:
    """How well the distance discriminates OOD cases from those of a split; JSON-able.

    Args:
        evaluation: the data set, its split, the device.
        pictures: files that no hospital would send, each a kind of OOD cases with its name.
        limit: at most so many cases of the split, evenly spaced.
        seed: of the noise, the crops and the bootstrap.
        autoencoder: folder of an autoencoder of slices, to measure its reconstruction error, too.
    Returns:
        `cases`; `false_positive_rate`: figure {value, low, high}, the share of the split's cases that are detected as
        OOD, and `nominal`, the share that the detection was set to; `modalities`: of the training scans.
        `kinds`: kind -> {`cases`, `auc`: figure, how often an OOD case has a larger distance than one of the split;
        `detected`: share; `roc`: list of [false positive rate, recall]}, and with an autoencoder `reconstruction_auc`:
        figure. Kinds are "noise", the names of the pictures, and the modalities that no training scan had, whose cases
        do not count as cases of the split.
    Raises:
        ValueError: the checkpoint has no reference, a picture cannot be read, or the data set of an autoencoder holds
            latents; or as `radfm.eval.predict.score`.
    """
    network, processor = load_checkpoint(model, evaluation.device)
    reference = TrainingReference.load(find(model))
    if reference is None:
        raise ValueError(f"{model} has no reference of its training data: run radfm calibrate first")
    cases = labelled_cases(evaluation.data, evaluation.split)
    require_unshared_patients(load(evaluation.data), evaluation.split)
    if autoencoder is not None:
        refuse_latents(cases)
    crops = {Path(picture).name: _crops(picture, seed) for picture in pictures}
    count = min(limit or len(cases), len(cases))
    rows = np.unique(np.linspace(0, len(cases) - 1, count).round().astype(int)).tolist()
    total, parts = 2 * len(rows) + sum(map(len, crops.values())), 1 if autoencoder is None else 2
    progress = part_of(evaluation.progress, 0, parts)
    distances = distance_function(network, processor, reference, total, progress)
    new_modalities = _new_modalities(cases, rows, reference)
    if all(new_modalities):
        raise ValueError(f"every case of the split {evaluation.split!r} has a modality that no training scan had")
    in_distribution, ood = _grouped(distances, cases, rows, crops, new_modalities, seed)
    kinds = {kind: _discrimination(in_distribution, one, reference, bootstraps, seed) for kind, one in ood.items()}
    if autoencoder is not None:
        progress = part_of(evaluation.progress, 1, parts)
        errors = error_function(autoencoder, total, evaluation.device, progress)
        usual, ood = _grouped(errors, cases, rows, crops, new_modalities, seed)
        for kind, of_kind in ood.items():
            kinds[kind]["reconstruction_auc"] = _area(usual, of_kind, bootstraps, seed)
    detected = _detected(in_distribution[0], reference)
    weights = patient_weights(in_distribution[1], bootstraps, seed)
    return {
        "cases": len(detected),
        "false_positive_rate": figure(float(detected.mean()), detected @ weights / weights.sum(0)),
        "nominal": reference.significance_level,
        "modalities": reference.modalities,
        "kinds": kinds,
    }


def _grouped(
    scores_of: Distances,
    cases: StoredCases,
    rows: Sequence[int],
    crops: Mapping[str, list[Case]],
    new_modalities: Sequence[list[str]],
    seed: int,
) -> tuple[Scored, dict[str, Scored]]:
    """The scores of the cases of the split, and of each kind of OOD cases, see `measure_ood`."""
    patients = np.array([patient_of(cases.rows[row]) for row in rows])
    of_split = scores_of(cases[row] for row in rows)
    kinds: dict[str, Scored] = {
        "noise": (scores_of(_noise(cases[row], [seed, row]) for row in rows), patients.tolist()),
        **{name: (scores_of(of_picture), [name] * len(of_picture)) for name, of_picture in crops.items()},
    }
    for modality in sorted({name for names in new_modalities for name in names}):
        shows = np.array([modality in names for names in new_modalities])
        kinds[modality] = of_split[shows], patients[shows]
    known = np.array([not names for names in new_modalities])
    return (of_split[known], patients[known]), kinds


def _whitening(scans: Tensor) -> tuple[Tensor, float]:
    """(scans, d) -> (d, d), by which differences from the mean have a median length of 1; and the shrinkage."""
    fitted = LedoitWolf().fit(scans.numpy())
    values, vectors = np.linalg.eigh(fitted.covariance_)
    whitening = torch.from_numpy(vectors / np.sqrt(values.clip(values.max() * 1e-9)))
    return whitening / ((scans - scans.mean(0)) @ whitening).norm(dim=1).median(), float(fitted.shrinkage_)


def _detected(distances: np.ndarray, reference: TrainingReference) -> np.ndarray:
    """(cases,) bool: detected as OOD."""
    return np.array([reference.p_value(distance) <= reference.significance_level for distance in distances])


def _discrimination(
    in_distribution: Scored, ood: Scored, reference: TrainingReference, bootstraps: int, seed: int
) -> dict[str, Any]:
    """The figures of one kind by distance, see `measure_ood`."""
    (near, _), (far, _) = in_distribution, ood
    labels = np.repeat([False, True], [len(near), len(far)])
    false_positive_rate, recall, _ = roc_curve(labels, np.concatenate([near, far]))
    return {
        "cases": len(far),
        "auc": _area(in_distribution, ood, bootstraps, seed),
        "detected": float(_detected(far, reference).mean()),
        "roc": np.stack([false_positive_rate, recall], 1).tolist(),
    }


def _area(in_distribution: Scored, ood: Scored, bootstraps: int, seed: int) -> dict[str, float]:
    """AUC with its interval: how often an OOD case has a higher score than one of the split."""
    (near, patients), (far, ood_patients) = in_distribution, ood
    scores = np.concatenate([near, far])[:, None]
    labels = np.repeat([False, True], [len(near), len(far)])[:, None]
    groups = [f"in {patient}" for patient in patients] + [f"out {patient}" for patient in ood_patients]
    area = measure(scores, labels, metrics=["auc"])["auc"][0]
    resamples = measure(scores, labels, patient_weights(groups, bootstraps, seed), metrics=["auc"])["auc"][0]
    return figure(float(area), resamples)


def distance_function(network, processor, reference: TrainingReference, total: int, progress: Progress) -> Distances:
    """A function from cases to their distances, which reports progress on `total` cases over all its calls."""
    done = 0

    def distances(cases: Iterable[Case]) -> np.ndarray:
        nonlocal done
        values = []
        for step in _steps(cases):
            batch = processor(cases=step).to(network.device)
            with torch.inference_mode():
                output = network.radfm(**batch)
            values += [float(reference.scan_distances(scans).max()) for scans in case_features(batch, output)]
            done += len(step)
            progress(done, total)
        return np.array(values)

    return distances


def error_function(
    autoencoder: str | Path, total: int, device: str | None = None, progress: Progress = no_progress
) -> Distances:
    """As `distance_function`, with the reconstruction error: that of the slice of a case with the highest one."""
    network = Autoencoder.from_pretrained(autoencoder, device=device)
    network.ensure_statistics()
    maker, done = MapMaker(network), 0

    def errors(cases: Iterable[Case]) -> np.ndarray:
        nonlocal done
        values = []
        for case in cases:
            values.append(max(maker(scan).mean_error("reconstruction") for scan in case.scans))
            done += 1
            progress(done, total)
        return np.array(values)

    return errors


def _new_modalities(cases: StoredCases, rows: Sequence[int], reference: TrainingReference) -> list[list[str]]:
    """Of each case the modalities that no training scan had."""
    return [
        sorted({scan.modality for scan in cases[row].scans if scan.modality} - {*reference.modalities}) for row in rows
    ]


def _steps(cases: Iterable[Case]) -> Iterator[list[Case]]:
    step: list[Case] = []
    for case in cases:
        step.append(case)
        if len(step) == _CASES_PER_STEP:
            yield step
            step = []
    if step:
        yield step


def _noise(case: Case, seed: list[int]) -> Case:
    """The case with the pixels of each scan in random order."""
    rng = np.random.default_rng(seed)
    return replace(case, scans=[replace(scan, pixels=_shuffled(scan.pixels, rng)) for scan in case.scans])


def _shuffled(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    flat = pixels.reshape(-1, *pixels.shape[3:])
    return flat[rng.permutation(len(flat))].reshape(pixels.shape)


def _crops(picture: str | Path, seed: int) -> list[Case]:
    """Square crops of at least half the picture's shorter side, half of them mirrored."""
    scan = read_case(picture).scans
    if not scan:
        raise ValueError(f"{picture} cannot be read as an image: give a PNG or JPEG file, for example")
    pixels, rng, crops = scan[0].pixels, np.random.default_rng(seed), []
    for number in range(CROPS):
        height, width = pixels.shape[1:3]
        side = int(rng.integers(min(height, width) // 2, min(height, width) + 1))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        crop = pixels[:, top : top + side, left : left + side]
        crops.append(Case([Scan(np.ascontiguousarray(crop[:, :, :: -1 if number % 2 else 1]), scan[0].modality)]))
    return crops
