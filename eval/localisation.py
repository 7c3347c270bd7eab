"""How often maps and key slices meet the lesion, on data whose masks are known.

    >>> from radfm.eval.localisation import localise
    >>> localise("runs/mine", "datasets/phantoms", split="test", limit=100)["rows"]["model"]["point"]

Decisions:
- One try is a disorder of a case on one scan that shows it, as the masks say.
- The pointing game (Zhang et al. 2018, "Top-down neural attention by excitation backprop"): is the middle of the
  scan's brightest place in the mask? Asked twice: as it is, and with their tolerance, 15 pixels where the shorter side
  has 224, in the same slice. Beside it, what share of the map lies in the mask (Wang et al. 2020, Score-CAM), which
  does not hang on one voxel.
- A key slice meets where it is within two slices of any slice of the mask; scans of one slice are not asked.
- A figure alone says little, since lesions lie in the middle of pictures. Beside the model stand the centre of the
  scan, with a map that is the same everywhere, and the same model with its weights but those of the text drawn anew.
- Intervals are from draws of patients, as everywhere in `radfm evaluate`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from radfm.data_prep.stored_cases import StoredCases, load, patient_of
from radfm.eval.bands import bands
from radfm.eval.bootstrap import interval, patient_weights
from radfm.eval.predict import load_checkpoint, refuse_shared_patients
from radfm.eval.saliency import Explanation, explain
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.progress import Progress, no_progress

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

_DRAWS = 1000


def localise(
    model: str | Path,
    data: str | Path,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: Progress = no_progress,
) -> dict:
    """Measures the maps of a checkpoint against the masks of a data set.

    Args:
        model: folder of a checkpoint.
        data: folder that `radfm prepare phantoms` made, or of another source that knows masks.
        limit: at most so many cases, evenly spaced among those with masks; None: all.
        seed: of the random weights and of the draws.
        progress: told how many cases are done, of how many.
    Returns:
        `rows`: "model", "centre" and "random", of each "point", "within" (the same with the tolerance), "inside",
            "key_slice" (of the attention, the same for all disorders) and "brightest_slice" (of the map) as {"value",
            "low", "high"}, or None where nothing could be asked; `bands`: head, body and tail -> `tries`, and the same
            `rows` of the disorders with so many training cases; and `cases`, `patients`, `tries`, `key_slice_tries`,
            `left_out` (disorders that an mlp head lacks).
    Raises:
        FileNotFoundError: there is no such data set or checkpoint.
        ValueError: no case of the split has a mask, or a patient is in several splits.
    """
    refuse_shared_patients(load(data), split)
    cases = load(data, split, labelled=True)
    masked = [index for index, row in enumerate(cases.rows) if any(cases.masks(scan) for scan in row["scan_rows"])]
    if not masked:
        raise ValueError(f"{data} has no mask in its split {split!r}: phantoms have, see radfm prepare phantoms")
    if limit is not None and limit < len(masked):
        masked = [masked[int(i * len(masked) / limit)] for i in range(limit)]
    network, processor = load_checkpoint(model, device)
    models = {"model": network, "random": with_random_vision(network, seed)}
    tries: dict[str, list[dict]] = {row: [] for row in ROWS}
    patients, asked, left_out = [], [], set()
    for done, index in enumerate(masked, 1):
        names, missing = _asked(network, cases, index)
        left_out |= missing
        if names:
            asked += _try(models, processor, cases, index, names, tries)
            row = cases.rows[index]
            patients += [patient_of(row)] * (len(tries["model"]) - len(patients))
        progress(done, len(masked))
    weights = patient_weights(patients, _DRAWS, seed)
    of_band = _of_bands(asked, load(data, "train", labelled=True))
    return {
        "data": cases.record["fingerprint"],
        "split": split,
        "cases": len(masked),
        "patients": len(set(patients)),
        "tries": len(patients),
        "key_slice_tries": sum(one["key_slice"] is not None for one in tries["model"]),
        "left_out": sorted(left_out),
        "rows": _rows(tries, range(len(asked)), weights),
        "bands": {name: {"tries": len(of), "rows": _rows(tries, of, weights)} for name, of in of_band.items()},
    }


def with_random_vision(model: RadFMForDiagnosis, seed: int = 0) -> RadFMForDiagnosis:
    """The same model with all weights drawn anew but those of the text: it has seen no picture."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = RadFMForDiagnosis(model.config).eval()
    of_text = ("radfm.text_encoder.", "head.")
    drawn.load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith(of_text)}, strict=False)
    return drawn.to(device=model.device, dtype=model.dtype)


def _asked(network: RadFMForDiagnosis, cases: StoredCases, index: int) -> tuple[list[str], set[str]]:
    """The disorders that the masks of a case show, and of these the ones that the model cannot be asked for."""
    shown = sorted({name for scan in cases.rows[index]["scan_rows"] for name in cases.masks(scan)})
    if network.head.reads_text:
        return shown, set()
    known = network.config.vocabulary
    return [name for name in shown if name in known], {name for name in shown if name not in known}


def _try(
    models, processor, cases: StoredCases, index: int, names: list[str], tries: dict[str, list[dict]]
) -> list[str]:
    """Adds the tries of a case to those of each row; returns which disorder each asked for."""
    case, masks = cases[index], [cases.masks(scan) for scan in cases.rows[index]["scan_rows"]]
    for row, model in models.items():
        for found in explain(model, processor, case, names):
            for scan, of_scan in enumerate(masks):
                if found.disorder in of_scan:
                    tries[row].append(_met(found, scan, of_scan[found.disorder]))
    for name in names:
        tries["centre"] += [_met_by_the_centre(of_scan[name]) for of_scan in masks if name in of_scan]
    return [name for name in names for of_scan in masks if name in of_scan]


def _of_bands(asked: list[str], training: StoredCases) -> dict[str, list[int]]:
    """head, body, tail -> which tries asked for such a disorder, by its training cases."""
    counts = np.zeros(len(training.vocabulary), int)
    for row in training.rows:
        counts[row["labels"]] += 1
    row_of = {name: row for row, name in enumerate(training.vocabulary.names)}
    inside = {band: rows for band, rows in bands(counts).items() if band != "all"}
    return {band: [i for i, name in enumerate(asked) if rows[row_of[name]]] for band, rows in inside.items()}


def _rows(tries: dict[str, list[dict]], chosen: Sequence[int], weights: np.ndarray) -> dict:
    return {
        row: {measure: _mean([found[i][measure] for i in chosen], weights[list(chosen)]) for measure in MEASURES}
        for row, found in tries.items()
    }


def _met(found: Explanation, scan: int, mask: np.ndarray) -> dict:
    seen = found.scan_map(scan)
    total = float(seen.sum())
    if not total:  # nothing in this scan spoke for the disorder
        key_slice = _near(found.key_slice(scan), mask)
        return {"point": 0.0, "within": 0.0, "inside": 0.0, "key_slice": key_slice, "brightest_slice": key_slice}
    peak = found.peak(scan)
    return {
        "point": float(mask[peak]),
        "within": _within_tolerance(peak, mask),
        "inside": float(seen[mask].sum()) / total,
        "key_slice": _near(found.key_slice(scan), mask),
        "brightest_slice": _near(peak[0], mask),
    }


def _met_by_the_centre(mask: np.ndarray) -> dict:
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


def _mean(values: list[float | None], weights: np.ndarray) -> dict[str, float] | None:
    asked = np.array([value is not None for value in values])
    if not asked.any():
        return None
    known, drawn = np.array(values, dtype=float)[asked], weights[asked]
    with np.errstate(invalid="ignore"):  # a draw without any is nan
        draws = (known @ drawn) / drawn.sum(0)
    low, high = interval(draws, within=(0, 1))
    return {"value": float(known.mean()), "low": float(low), "high": float(high)}
