"""How well anomaly scores discriminate normal from abnormal cases, and where their maps find the lesions.

    >>> detector, evaluation = fit_detector("datasets/phantoms", "runs/autoencoder"), Evaluation("datasets/phantoms")
    >>> found = score_anomaly(detector, evaluation, model="runs/mine")
    >>> result = measure_anomaly(detector, found, evaluation)
    >>> result["scores"]["standardised reconstruction"]["auc"], result["best"]

Decisions:
- No score is told what a disorder looks like: reconstruction and diffusion are compared with normal training cases
  (`radfm.eval.anomaly_maps`), and the Mahalanobis distance of a model with its training cases, as in OOD detection.
- A case has the score of its scan with the highest score. Scores of maps are in standard deviations of normal scans of
  the same kind, so scans of several modalities can be compared; raw errors cannot, and are shown for comparison.
- Normal and abnormal cases of a data set often differ in collection or body part, and any score can tell those apart.
  So the AUC is also measured within each collection or, where none is stated, body part, and averaged over the groups
  with at least 5 normal and 5 abnormal cases. This average decides which score is the best, if there is one.
- The best score is compared with all others in the same resamples of patients.
- Maps are measured against masks as saliency maps are, beside the centre of the scan (`radfm.eval.localisation`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from radfm.cases import Case
from radfm.checkpoints import find
from radfm.data_prep.latents import refuse_latents
from radfm.data_prep.stored_cases import StoredCases, load, patient_of
from radfm.eval.anomaly_maps import MapMaker, NormalCases, ScanMaps, fit_normal
from radfm.eval.bootstrap import patient_weights
from radfm.eval.checkpoints import load_checkpoint
from radfm.eval.comparisons import figure
from radfm.eval.localisation import mean_with_interval, measures_of_centre, measures_of_map
from radfm.eval.metrics import measure
from radfm.eval.ood_detection import distance_function
from radfm.eval.predict import Evaluation, labelled_cases, require_unshared_patients
from radfm.eval.saliency import Explanation
from radfm.latents import Autoencoder
from radfm.latents.generator import Generator
from radfm.progress import Progress, part_of
from radfm.reference_radfm import TrainingReference

LEAST_CASES = 5  # normal and abnormal ones each, of a group that is measured
MEASURES = ("point", "within", "inside", "brightest_slice")  # of `radfm.eval.localisation.MEASURES`
CENTRE = "centre of the scan"
MAHALANOBIS = "Mahalanobis distance"
MAPS = {  # kind of a map -> name of its score
    "reconstruction": "standardised reconstruction",
    "diffusion": "standardised diffusion",
    "both": "both, standardised",
    "contrast": "contrast",
}

_LEAST_NORMAL = 10  # normal training cases; with fewer, all training cases are compared with
_MEASURED_PICTURES = 64  # scans that the latents of an autoencoder are measured on, where it does not state them


@dataclass
class AnomalyScores:
    """The scores of the cases of a split.

    Attributes:
        case_ids, patients, groups: (cases,) of each.
        abnormal: (cases,) bool.
        scores: name -> (cases,) float64, the higher the more abnormal.
        lesions: name of a map -> measures of each lesion, see `radfm.eval.localisation.measures_of_map`.
        lesion_patients: (lesions,) the patient of each.
    """

    case_ids: list[str]
    patients: list[str]
    groups: list[str]
    abnormal: np.ndarray
    scores: dict[str, np.ndarray]
    lesions: dict[str, list[dict]] = field(default_factory=dict)
    lesion_patients: list[str] = field(default_factory=list)


@dataclass
class Detector:
    """Anomaly maps with the normal cases that they are compared with.

    Attributes:
        maker: scan -> maps.
        normal: what normal training cases have.
        fitted_to: JSON-able: `cases`, `scans`, `only_normal`.
    """

    maker: MapMaker
    normal: NormalCases
    fitted_to: dict[str, Any]

    def explain(self, case: Case, maps: Sequence[ScanMaps], kind: str) -> Explanation:
        """The standardised maps of a case, in [0, 1] with 1 at its maximum, as an explanation of "abnormal"."""
        values = [self.normal.standardised(one)[kind] for one in maps]
        highest = max(max(float(one.max()) for one in values), 1e-6)
        attentions = [np.ones(len(one)) for one in values]
        coarse, taken = [one / highest for one in values], [one.taken for one in maps]
        return Explanation("abnormal", highest, case.scans, coarse, attentions, taken, self.maker.images)


def fit_detector(
    data: str | Path,
    autoencoder: str | Path,
    generator: str | Path | None = None,
    slices: int = 16,
    training_cases: int = 500,
    seed: int = 0,
    device: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Detector:
    """Computes the maps of normal training cases, of at most so many, sampled by `seed`.

    Raises:
        FileNotFoundError: there is no such data set, autoencoder or generator.
        ValueError: the training split has no labelled case, or the data set holds latents; or as `MapMaker`.
    """
    cases = labelled_cases(data, "train")
    refuse_latents(cases)
    network, of_generator = Autoencoder.from_pretrained(autoencoder, device=device), None
    if generator is not None:
        of_generator = Generator.from_pretrained(generator, device=device)
    normal = [i for i, row in enumerate(cases.rows) if not _is_abnormal(row)]
    chosen = normal if len(normal) >= _LEAST_NORMAL else list(range(len(cases)))
    chosen = sorted(np.random.default_rng(seed).permutation(chosen)[:training_cases].tolist())
    if of_generator is None and not network.is_measured:
        scans = [cases.rows[i]["scan_rows"][0] for i in chosen[:_MEASURED_PICTURES] if cases.rows[i]["scan_rows"]]
        network.measure(network.prepare(cases.scan(scan)) for scan in scans)
    maker = MapMaker(network, of_generator, slices, seed)
    maps: list[ScanMaps] = []
    for done, index in enumerate(chosen, 1):
        maps += [maker(scan) for scan in cases[index].scans]
        progress(done, len(chosen))
    fitted_to = {"cases": len(chosen), "scans": len(maps), "only_normal": len(normal) >= _LEAST_NORMAL}
    return Detector(maker, fit_normal(maps), fitted_to)


def score_anomaly(
    detector: Detector, evaluation: Evaluation, model: str | Path | None = None, limit: int | None = None
) -> AnomalyScores:
    """The scores of the cases of a split.

    Args:
        model: folder of a calibrated checkpoint, for the Mahalanobis distance.
        limit: at most so many cases, evenly spaced.
    Raises:
        ValueError: the split has no normal or no abnormal case, a patient is in several splits, or the checkpoint has
            no reference.
    """
    cases = labelled_cases(evaluation.data, evaluation.split)
    require_unshared_patients(load(evaluation.data), evaluation.split)
    count = min(limit or len(cases), len(cases))
    rows = np.unique(np.linspace(0, len(cases) - 1, count).round().astype(int)).tolist()
    abnormal = np.array([_is_abnormal(cases.rows[row]) for row in rows])
    if abnormal.all() or not abnormal.any():
        missing = "normal" if abnormal.all() else "abnormal"
        raise ValueError(f"{evaluation.data} has no {missing} case in its split {evaluation.split!r}: measure another")
    parts = 1 if model is None else 2
    found = AnomalyScores(
        case_ids=[cases.rows[row]["case_id"] for row in rows],
        patients=[patient_of(cases.rows[row]) for row in rows],
        groups=[_group(cases, row) for row in rows],
        abnormal=abnormal,
        scores={},
    )
    of_cases = []
    for done, row in enumerate(rows, 1):
        case = cases[row]
        maps = [detector.maker(scan) for scan in case.scans]
        of_cases.append(_case_scores(detector, maps))
        _measure_lesions(detector, cases, row, case, maps, found)
        part_of(evaluation.progress, 0, parts)(done, len(rows))
    found.scores = {name: np.array([one[name] for one in of_cases]) for name in of_cases[0]}
    if model is not None:
        progress = part_of(evaluation.progress, 1, parts)
        found.scores[MAHALANOBIS] = _mahalanobis(model, cases, rows, replace(evaluation, progress=progress))
    return found


def measure_anomaly(
    detector: Detector, found: AnomalyScores, evaluation: Evaluation, bootstraps: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """The figures of all scores; JSON-able.

    Returns:
        `cases`, `normal`, `abnormal`, `patients`, `split`, `data`, `autoencoder` (fingerprints), `fitted_to`;
        `scores`: name -> `auc` and `within_groups` {value, low, high}, the second None where no group can be measured;
        `groups`: group -> `normal`, `abnormal`, `auc`: name -> value; `best`: the name of the best score, `best_by`
        "auc" or "within_groups", and `best_less`: name -> by how much the best is higher {value, low, high};
        `localisation`: `lesions`, `rows`: name -> measure -> {value, low, high} or None; None without masks.
    """
    weights = patient_weights(found.patients, bootstraps, seed)
    names = list(found.scores)
    table = np.stack([found.scores[name] for name in names], 1)
    values, resamples = _areas(table, np.repeat(found.abnormal[:, None], len(names), 1), weights)
    groups = _measurable_groups(found)
    of_groups = {group: _areas_within(found, table, group, weights) for group in groups}
    by = "within_groups" if groups else "auc"
    main = (values, resamples)
    if groups:
        main = tuple(np.mean([one[part] for one in of_groups.values()], axis=0) for part in (0, 1))
    best = int(np.argmax(main[0]))
    return {
        "data": load(evaluation.data).record["fingerprint"],
        "split": evaluation.split,
        "cases": len(found.case_ids),
        "normal": int((~found.abnormal).sum()),
        "abnormal": int(found.abnormal.sum()),
        "patients": len(set(found.patients)),
        "autoencoder": detector.maker.autoencoder.fingerprint,
        "fitted_to": detector.fitted_to,
        "scores": {
            name: {
                "auc": figure(values[i], resamples[i]),
                "within_groups": figure(main[0][i], main[1][i]) if groups else None,
            }
            for i, name in enumerate(names)
        },
        "groups": {
            group: {
                "normal": int((inside & ~found.abnormal).sum()),
                "abnormal": int((inside & found.abnormal).sum()),
                "auc": dict(zip(names, of_groups[group][0].tolist(), strict=True)),
            }
            for group in groups
            for inside in [np.array([one == group for one in found.groups])]
        },
        "best": names[best],
        "best_by": by,
        "best_less": {
            name: figure(main[0][best] - main[0][i], main[1][best] - main[1][i], (-1, 1))
            for i, name in enumerate(names)
            if i != best
        },
        "localisation": _localisation(found, bootstraps, seed),
    }


def _is_abnormal(row: dict) -> bool:
    return bool(row["labels"]) or row["normal"] is False


def _group(cases: StoredCases, row: int) -> str:
    """The collection of a case, or the body parts that it shows, such as "abdomen, chest"."""
    of_case = cases.rows[row]
    parts = {cases.scan_header(scan)["body_part"] or "unknown" for scan in of_case["scan_rows"]}
    return of_case["collection"] or ", ".join(sorted(parts))


def _case_scores(detector: Detector, maps: Sequence[ScanMaps]) -> dict[str, float]:
    """Name -> score, of the scan with the highest one. Raises: ValueError: the case has no scan."""
    if not maps:
        raise ValueError("a case without scans has no anomaly score: leave it out of the data set")
    raw = {f"{kind} error": max(one.mean_error(kind) for one in maps) for kind in detector.maker.kinds}
    scans = [detector.normal.scan_scores(one) for one in maps]
    return raw | {MAPS[kind]: max(one[kind] for one in scans) for kind in MAPS if kind in scans[0]}


def _measure_lesions(
    detector: Detector, cases: StoredCases, row: int, case: Case, maps: Sequence[ScanMaps], found: AnomalyScores
) -> None:
    """Appends the measures of a case's lesions, those of its scans' masks."""
    masks = [cases.masks(scan) for scan in cases.rows[row]["scan_rows"]]
    if not any(masks):
        return
    kinds = [kind for kind in MAPS if kind in detector.normal.standardised(maps[0])]
    explanations = {MAPS[kind]: detector.explain(case, maps, kind) for kind in kinds}
    for scan, of_scan in enumerate(masks):
        for mask in of_scan.values():
            for name, explanation in explanations.items():
                found.lesions.setdefault(name, []).append(measures_of_map(explanation, scan, mask))
            found.lesions.setdefault(CENTRE, []).append(measures_of_centre(mask))
            found.lesion_patients.append(patient_of(cases.rows[row]))


def _localisation(found: AnomalyScores, bootstraps: int, seed: int) -> dict[str, Any] | None:
    if not found.lesion_patients:
        return None
    weights = patient_weights(found.lesion_patients, bootstraps, seed)
    rows = {
        name: {one: mean_with_interval([lesion[one] for lesion in lesions], weights) for one in MEASURES}
        for name, lesions in found.lesions.items()
    }
    return {"lesions": len(found.lesion_patients), "rows": rows}


def _mahalanobis(model: str | Path, cases: StoredCases, rows: Sequence[int], evaluation: Evaluation) -> np.ndarray:
    network, processor = load_checkpoint(model, evaluation.device)
    reference = TrainingReference.load(find(model))
    if reference is None:
        raise ValueError(f"{model} has no reference of its training data: run radfm calibrate first")
    distances = distance_function(network, processor, reference, len(rows), evaluation.progress)
    return distances(cases[row] for row in rows)


def _measurable_groups(found: AnomalyScores) -> list[str]:
    """Groups with enough normal and abnormal cases, in alphabetical order."""
    counts: dict[str, list[int]] = {}
    for group, abnormal in zip(found.groups, found.abnormal, strict=True):
        counts.setdefault(group, [0, 0])[int(abnormal)] += 1
    return sorted(group for group, of_group in counts.items() if min(of_group) >= LEAST_CASES)


def _areas_within(found: AnomalyScores, table: np.ndarray, group: str, weights: np.ndarray) -> tuple:
    """AUC of each score among the cases of a group; resamples without normal or abnormal cases take the value."""
    inside = np.array([one == group for one in found.groups])
    labels = np.repeat(found.abnormal[inside, None], table.shape[1], 1)
    values, resamples = _areas(table[inside], labels, weights[inside])
    return values, np.where(np.isnan(resamples), values[:, None], resamples)


def _areas(table: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC of each score: (scores,) values and (scores, resamples)."""
    return measure(table, labels, metrics=["auc"])["auc"], measure(table, labels, weights, metrics=["auc"])["auc"]
