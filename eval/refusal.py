"""Which cases a model should not be asked about: what it remembers of its training data, and how well that works.

    >>> reference = fit_reference(network, processor, "datasets/mine")  # radfm calibrate saves it with the checkpoint
    >>> measure_refusal("runs/mine", "datasets/mine", pictures=["cat.jpg"])["strangers"]["cat.jpg"]["auc"]

Decisions:
- What is measured is the distance of `radfm.reference_radfm.TrainingReference` alone, without the plain rule that a
  modality never trained on is refused, which would be right by definition.
- Noise is the harder kind: each scan's own pixels in random order, so that grey values and their share stay the same.
- A picture is shown in crops, as a photograph by accident would be; it is one picture, so they count as one patient.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from radfm.data_prep.stored_cases import load, patient_of
from radfm.eval.bootstrap import patient_weights
from radfm.eval.comparisons import figure
from radfm.eval.metrics import measure
from radfm.eval.predict import labelled_cases, load_checkpoint, outputs, refuse_shared_patients
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.outputs_radfm import RadFMDiagnosisOutput, RadFMModelOutput
from radfm.processing_radfm import RadFMProcessor
from radfm.progress import Progress, no_progress
from radfm.readers.read_case import read_case
from radfm.reference_radfm import SHIFTS, TrainingReference, ood_features

TRAINING_CASES = 1000  # that the reference is made of, at most
CROPS = 20
_CASES_PER_STEP = 8


def fit_reference(
    network: RadFMForDiagnosis,
    processor: RadFMProcessor,
    data: str | Path,
    validation: Iterable[Tensor] | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> TrainingReference:
    """What is kept of a data set's training split: of at most 1,000 cases, drawn by `seed`.

    The covariances are shrunk as far as the number of scans asks for (Ledoit and Wolf, A well-conditioned estimator for
    large-dimensional covariance matrices, Journal of Multivariate Analysis 88:365, 2004).

    Args:
        validation: (scans, d + 4) of each validation case, as `looks_of` gives them; None: they are computed.
    Raises:
        ValueError: the training or the validation split has no labelled case.
    """
    cases = labelled_cases(data, "train")
    chosen = np.random.default_rng(seed).permutation(len(cases))[:TRAINING_CASES]
    shown = CaseDataset(cases, processor, rows=sorted(chosen.tolist()))
    scans = torch.cat(looks(network, shown, progress)).double()
    kinds = {cases.scan_header(scan)["modality"] for row in cases.rows for scan in row["scan_rows"]}
    parts = scans.split([scans.shape[1] - len(SHIFTS), len(SHIFTS)], dim=1)
    (whitening, shrinkage), (of_smoothness, _) = map(_whitened, parts)
    reference = TrainingReference(
        mean=scans.mean(0).float(),
        whitening=torch.block_diag(whitening, of_smoothness).float(),
        distances=torch.zeros(0),
        modalities=sorted(kind or "other" for kind in kinds),
        metadata={
            "data": cases.record["fingerprint"],
            "training_cases": len(shown),
            "training_scans": len(scans),
            "shrinkage": shrinkage,
            "shifts": list(SHIFTS),
            "radfm": version("radfm"),
        },
    )
    if validation is None:
        validation = looks(network, CaseDataset(labelled_cases(data, "validation"), processor))
    farthest = [reference.scan_distances(mine).max() for mine in validation]
    reference.distances = torch.stack(farthest).sort().values
    return reference


def _whitened(scans: Tensor) -> tuple[Tensor, float]:
    """(scans, d) -> (d, d), by which differences from the mean have a median length of 1, and how far it was shrunk."""
    fitted = LedoitWolf().fit(scans.numpy())
    values, vectors = np.linalg.eigh(fitted.covariance_)
    whitening = torch.from_numpy(vectors / np.sqrt(values.clip(values.max() * 1e-9)))
    return whitening / ((scans - scans.mean(0)) @ whitening).norm(dim=1).median(), float(fitted.shrinkage_)


def looks(network: RadFMForDiagnosis, shown: CaseDataset, progress: Progress = no_progress) -> list[Tensor]:
    """(scans, d + 4) float32 of each case, as `radfm.reference_radfm.ood_features` has them."""
    found: dict[int, Tensor] = {}
    for rows, batch, seen in outputs(network, shown, progress=progress):
        found |= zip(rows.tolist(), looks_of(batch, seen), strict=True)
    return [found[row] for row in range(len(shown))]


def looks_of(batch: Mapping[str, Tensor], seen: RadFMModelOutput | RadFMDiagnosisOutput) -> tuple[Tensor, ...]:
    """(scans, d + 4) of each case of a packed batch."""
    scans = ood_features(seen.scan_features, batch["pixel_values"], batch["slices_per_scan"])
    return scans.split(batch["scans_per_case"].tolist())


def measure_refusal(
    model: str | Path,
    data: str | Path,
    split: str = "test",
    pictures: Sequence[str | Path] = (),
    limit: int | None = None,
    bootstraps: int = 1000,
    seed: int = 0,
    device: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """How well the distance tells strange cases from those of a split; JSON-able.

    Args:
        pictures: files that no hospital would send, each a kind of its own by its name.
        limit: at most so many cases of the split, evenly spaced.
    Returns:
        `cases`; `false_alarms`: figure {value, low, high}, the share of the split's cases that are refused, and
        `promised`, the share that it was set for; `modalities`: of the training scans.
        `strangers`: kind -> {`cases`, `auc`: figure, how often a strange case is farther than one of the split;
        `refused`: share; `roc`: list of [false positive rate, recall]}. Kinds are "noise", the names of the pictures,
        and the modalities that no training scan had, whose cases are then none of the split's.
    Raises:
        ValueError: the checkpoint has no reference, a picture cannot be read; or as `radfm.eval.predict.score`.
    """
    network, processor = load_checkpoint(model, device)
    reference = TrainingReference.load(find(model))
    if reference is None:
        raise ValueError(f"{model} does not remember its training data: run radfm calibrate first")
    cases = labelled_cases(data, split)
    refuse_shared_patients(load(data), split)
    strangers = {Path(picture).name: _crops(picture, seed) for picture in pictures}
    rows = np.unique(np.linspace(0, len(cases) - 1, min(limit or len(cases), len(cases))).round().astype(int)).tolist()
    patients = [patient_of(cases.rows[row]) for row in rows]
    new = [sorted({s.modality for s in cases[row].scans if s.modality} - {*reference.modalities}) for row in rows]
    total, done = 2 * len(rows) + sum(map(len, strangers.values())), 0

    def distances(some: Iterable[Case]) -> np.ndarray:
        nonlocal done
        found = []
        for part in _in_steps(some):
            found += _distances(network, processor, reference, part)
            done += len(part)
            progress(done, total)
        return np.array(found)

    plain = distances(cases[row] for row in rows)
    kinds = {"noise": (distances(_noise(cases[row], [seed, row]) for row in rows), patients)}
    for name, some in strangers.items():
        kinds[name] = (distances(some), [name] * len(some))
    known = np.array([not mine for mine in new])
    for modality in sorted({name for mine in new for name in mine}):
        mine = np.array([modality in others for others in new])
        kinds[modality] = (plain[mine], [patients[i] for i in np.flatnonzero(mine)])
    if not known.any():
        raise ValueError(f"every case of the split {split!r} has a modality that no training scan had")
    plain, own = plain[known], [patients[i] for i in np.flatnonzero(known)]
    refused = np.array([reference.p_value(distance) <= reference.significance_level for distance in plain])
    weights = patient_weights(own, bootstraps, seed)
    return {
        "cases": len(plain),
        "false_alarms": figure(float(refused.mean()), refused @ weights / weights.sum(0)),
        "promised": reference.significance_level,
        "modalities": reference.modalities,
        "strangers": {
            kind: _told(plain, own, far, theirs, reference, bootstraps, seed) for kind, (far, theirs) in kinds.items()
        },
    }


def _told(plain, own, far, theirs, reference: TrainingReference, bootstraps: int, seed: int) -> dict[str, Any]:
    values = np.concatenate([plain, far])[:, None]
    strange = np.repeat([False, True], [len(plain), len(far)])[:, None]
    groups = [f"own {patient}" for patient in own] + [f"strange {patient}" for patient in theirs]
    area = measure(values, strange, metrics=["auc"])["auc"][0]
    draws = measure(values, strange, patient_weights(groups, bootstraps, seed), metrics=["auc"])["auc"][0]
    alarms, recall, _ = roc_curve(strange[:, 0], values[:, 0])
    return {
        "cases": len(far),
        "auc": figure(float(area), draws),
        "refused": float(np.mean([reference.p_value(distance) <= reference.significance_level for distance in far])),
        "roc": np.stack([alarms, recall], 1).tolist(),
    }


@torch.inference_mode()
def _distances(network, processor, reference: TrainingReference, cases: list[Case]) -> list[float]:
    batch = processor(cases=cases).to(network.device)
    return [float(reference.scan_distances(mine).max()) for mine in looks_of(batch, network.radfm(**batch))]


def _in_steps(cases: Iterable[Case]) -> Iterator[list[Case]]:
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
        raise ValueError(f"{picture} is no picture that radfm reads")
    pixels, rng, crops = scan[0].pixels, np.random.default_rng(seed), []
    for number in range(CROPS):
        height, width = pixels.shape[1:3]
        side = int(rng.integers(min(height, width) // 2, min(height, width) + 1))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        crop = pixels[:, top : top + side, left : left + side]
        crops.append(Case([Scan(np.ascontiguousarray(crop[:, :, :: -1 if number % 2 else 1]), scan[0].modality)]))
    return crops
