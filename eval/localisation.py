"""How well saliency maps and key slices localise lesions, on data with segmentation masks.

    >>> from radfm.eval.localisation import localise
    >>> evaluation = Evaluation("datasets/phantoms")
    >>> localise("runs/mine", evaluation, limit=100)["rows"]["model"]["point"]

Decisions:
- What is measured is a lesion: a disorder of a case on one scan whose masks show it.
- The pointing game (Zhang et al. 2018, "Top-down neural attention by excitation backprop"): is the maximum of the map
  in the mask? Measured twice: as it is, and with their tolerance, 15 pixels if the shorter side has 224, in the same
  slice. In addition, the share of the map in the mask (Wang et al. 2020, Score-CAM), which depends on all voxels.
- A key slice is correct within two slices of any slice of the mask; scans of one slice are left out.
- These figures need a baseline, since lesions are often in the middle of images: the centre of the scan with a uniform
  map, and the same network with random weights in place of all but those of the text encoder and the head.
- Intervals are from bootstrap resamples of patients, as everywhere in `radfm evaluate`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from radfm.data_prep.stored_cases import StoredCases, load, patient_of
from radfm.eval.bands import bands
from radfm.eval.bootstrap import interval, patient_weights
from radfm.eval.checkpoints import load_checkpoint
from radfm.eval.predict import Evaluation, require_unshared_patients
from radfm.eval.saliency import Explanation, explain
from radfm.modeling_radfm import RadFMForDiagnosis

MEASURES = {
    "point": "pointing game",
    "within": "within 15 of 224",
    "inside": "share inside",
    "key_slice": "key slice",
    "brightest_slice": "brightest slice",
}
ROWS = {"model": "model", "centre": "centre of the scan", "random": "random weights"}
NEAR = 2  # slices
TOLERANCE = 15 / 224  # of the shorter side

_RESAMPLES = 1000


def localise(
    model: str | Path,
    evaluation: Evaluation,
    limit: int | None = None,
    seed: int = 0,
) -> dict:
    """Compares the maps of a checkpoint with the masks of a data set.

    Args:
        model: folder of a checkpoint.
        evaluation: the data set, of phantoms or another source with masks, its split, the device.
        limit: at most so many cases, evenly spaced among those with masks; None: all.
        seed: of the random weights and of the bootstrap.
    Returns:
        `rows`: "model", "centre" and "random", of each "point", "within" (the same with the tolerance), "inside",
            "key_slice" (of the attention, the same for all disorders) and "brightest_slice" (of the map) as {"value",
            "low", "high"}, or None where nothing can be measured; `bands`: head, body and tail -> `tries`, and the same
            `rows` of the disorders with so many training cases; and `cases`, `patients`, `tries`, `key_slice_tries`,
            `left_out` (disorders that an mlp head does not have).
    Raises:
        FileNotFoundError: there is no such data set or checkpoint.
        ValueError: no case of the split has a mask, or a patient is in several splits.
    """
    data, split = evaluation.data, evaluation.split
    require_unshared_patients(load(data), split)
    cases = load(data, split, labelled=True)
    masked = [index for index, row in enumerate(cases.rows) if any(cases.masks(scan) for scan in row["scan_rows"])]
    if not masked:
        raise ValueError(f"{data} has no mask in its split {split!r}: phantoms have, see radfm prepare phantoms")
    if limit is not None and limit < len(masked):
        masked = [masked[int(i * len(masked) / limit)] for i in range(limit)]
    network, processor = load_checkpoint(model, evaluation.device)
    models = {"model": network, "random": with_random_vision(network, seed)}
    lesions: dict[str, list[dict]] = {row: [] for row in ROWS}
    patients, disorders, left_out = [], [], set()
    for done, index in enumerate(masked, 1):
        names, missing = _disorders_with_masks(network, cases, index)
        left_out |= missing
        if names:
            disorders += _measure_case(models, processor, cases, index, names, lesions)
            row = cases.rows[index]
            patients += [patient_of(row)] * (len(lesions["model"]) - len(patients))
        evaluation.progress(done, len(masked))
    weights = patient_weights(patients, _RESAMPLES, seed)
    of_bands = _lesions_of_bands(disorders, load(data, "train", labelled=True))
    return {
        "data": cases.record["fingerprint"],
        "split": split,
        "cases": len(masked),
        "patients": len(set(patients)),
        "tries": len(patients),
        "key_slice_tries": sum(one["key_slice"] is not None for one in lesions["model"]),
        "left_out": sorted(left_out),
        "rows": _rows(lesions, range(len(disorders)), weights),
        "bands": {
            band: {"tries": len(chosen), "rows": _rows(lesions, chosen, weights)} for band, chosen in of_bands.items()
        },
    }


def with_random_vision(model: RadFMForDiagnosis, seed: int = 0) -> RadFMForDiagnosis:
    """The same network with random weights, except those of the text encoder and the head."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random = RadFMForDiagnosis(model.config).eval()
    of_text = ("radfm.text_encoder.", "head.")
    random.load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith(of_text)}, strict=False)
    return random.to(device=model.device, dtype=model.dtype)


def _disorders_with_masks(network: RadFMForDiagnosis, cases: StoredCases, index: int) -> tuple[list[str], set[str]]:
    """The disorders of a case that have masks, and those of them that the model does not have."""
    names = sorted({name for scan in cases.rows[index]["scan_rows"] for name in cases.masks(scan)})
    if network.head.reads_text:
        return names, set()
    known = network.config.vocabulary
    return [name for name in names if name in known], {name for name in names if name not in known}


def _measure_case(
    models: Mapping[str, RadFMForDiagnosis],
    processor,
    cases: StoredCases,
    index: int,
    names: list[str],
    lesions: dict[str, list[dict]],
) -> list[str]:
    """Appends the measures of a case's lesions to those of each row; returns the disorder of each lesion."""
    case, masks = cases[index], [cases.masks(scan) for scan in cases.rows[index]["scan_rows"]]
    for row, model in models.items():
        for explanation in explain(model, processor, case, names):
            for scan, of_scan in enumerate(masks):
                if explanation.disorder in of_scan:
                    lesions[row].append(measures_of_map(explanation, scan, of_scan[explanation.disorder]))
    for name in names:
        lesions["centre"] += [measures_of_centre(of_scan[name]) for of_scan in masks if name in of_scan]
    return [name for name in names for of_scan in masks if name in of_scan]


def _lesions_of_bands(disorders: list[str], training: StoredCases) -> dict[str, list[int]]:
    """head, body, tail -> which lesions are of such a disorder, by its training cases."""
    counts = np.zeros(len(training.vocabulary), int)
    for row in training.rows:
        counts[row["labels"]] += 1
    row_of = {name: row for row, name in enumerate(training.vocabulary.names)}
    inside = {band: rows for band, rows in bands(counts).items() if band != "all"}
    return {band: [i for i, name in enumerate(disorders) if rows[row_of[name]]] for band, rows in inside.items()}


def _rows(lesions: dict[str, list[dict]], chosen: Sequence[int], weights: np.ndarray) -> dict:
    return {
        row: {
            measure: mean_with_interval([of_row[i][measure] for i in chosen], weights[list(chosen)])
            for measure in MEASURES
        }
        for row, of_row in lesions.items()
    }


def measures_of_map(explanation: Explanation, scan: int, mask: np.ndarray) -> dict[str, float | None]:
    """`MEASURES` of a scan's map, by the mask (slices, H, W) of a disorder; None for the key slice of a single one."""
    saliency_map = explanation.scan_map(scan)
    total = float(saliency_map.sum())
    if not total:  # the map of this scan is dark
        key_slice = _near(explanation.key_slice(scan), mask)
        return {"point": 0.0, "within": 0.0, "inside": 0.0, "key_slice": key_slice, "brightest_slice": key_slice}
    peak = explanation.peak(scan)
    return {
        "point": float(mask[peak]),
        "within": _within_tolerance(peak, mask),
        "inside": float(saliency_map[mask].sum()) / total,
        "key_slice": _near(explanation.key_slice(scan), mask),
        "brightest_slice": _near(peak[0], mask),
    }


def measures_of_centre(mask: np.ndarray) -> dict[str, float | None]:
    """`MEASURES` of the centre of the scan and a uniform map."""
    middle = tuple(length // 2 for length in mask.shape)
    slices = dict.fromkeys(("key_slice", "brightest_slice"), _near(middle[0], mask))
    within = _within_tolerance(middle, mask)
    return {"point": float(mask[middle]), "within": within, "inside": float(mask.mean()), **slices}


def _within_tolerance(point: tuple[int, int, int], mask: np.ndarray) -> float:
    rows, columns = np.nonzero(mask[point[0]])
    allowed = TOLERANCE * min(mask.shape[1:])
    return float(bool(len(rows)) and np.hypot(rows - point[1], columns - point[2]).min() <= allowed)


def _near(key_slice: int, mask: np.ndarray) -> float | None:
    if len(mask) == 1:
        return None
    return float(np.abs(np.flatnonzero(mask.any((1, 2))) - key_slice).min() <= NEAR)


def mean_with_interval(values: list[float | None], weights: np.ndarray) -> dict[str, float] | None:
    """The mean of the values that are not None, with its interval; None if there is none.

    Args:
        weights: (values, resamples), as `patient_weights` returns them.
    """
    measured = np.array([value is not None for value in values])
    if not measured.any():
        return None
    known, counts = np.array(values, dtype=float)[measured], weights[measured]
    with np.errstate(invalid="ignore"):  # a resample without any is nan
        resamples = (known @ counts) / counts.sum(0)
    low, high = interval(resamples, within=(0, 1))
    return {"value": float(known.mean()), "low": float(low), "high": float(high)}
