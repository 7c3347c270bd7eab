"""Small files of kinds that public bug reports describe, with the right answers, where they lie beside the repository.

../shared/inputs/README.md says what the answers mean.
"""

import json
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest

from radfm import read_case

INPUTS = Path(__file__).parents[2].parent / "shared" / "inputs"
pytestmark = pytest.mark.skipif(not INPUTS.is_dir(), reason="no reported inputs beside the repository")
NAMES = sorted(
    name.replace("_", "-") for name in runpy.run_path(str(INPUTS / "make_inputs.py"))["CASES"]
) if INPUTS.is_dir() else []  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    out = tmp_path_factory.mktemp("inputs")
    runpy.run_path(str(INPUTS / "make_inputs.py"))["main"](out)
    return out, json.loads((out / "expected.json").read_text("utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_reported_inputs_are_read_right(name, inputs, radfm, tmp_path):
    folder, expected = inputs
    entry = expected[name]
    if "icd" in entry:
        status, out, _ = radfm("icd", "--names", folder / entry["icd"], "--json")
        verdicts = {row["text"]: row["verdict"] for row in json.loads(out)}
        assert status == 0
        assert {verdicts[text] for text in entry["expect"]["confident"]} == {"confident"}
        assert "confident" not in {verdicts[text] for text in entry["expect"]["not_confident"]}
        return
    case = read_case(folder / entry["read"])
    answers = entry["expect"].get("any_of", [entry["expect"]])
    faults = [answer_fault(case, answer) for answer in answers]
    assert None in faults, faults
    for command in entry["expect"].get("run", []):
        filled = [part.format(read=folder / entry["read"], out=tmp_path) for part in command]
        status, out, err = radfm(*filled)
        assert status == 0, f"{shlex.join(filled)}\n{out}{err}"


def answer_fault(case, answer) -> str | None:
    """What is wrong with a case; None where it is as the answer says."""
    left = list(case.scans)
    for expected in answer.get("scans", []):
        faults = [scan_fault(scan, expected) for scan in left]
        if None not in faults:
            return f"no scan is {expected}: {faults}"
        left.pop(faults.index(None))
    if left and "scans" in answer:
        return f"{len(left)} more scans"
    if "listed" in answer and len({file for file, _ in case.skipped}) != answer["listed"]:
        return f"listed: {case.skipped}"
    return None


def scan_fault(scan, expected) -> str | None:
    within, pixels = expected.get("within", 0), scan.pixels.astype(float)
    checks = {
        "first_pixels": lambda values: near(pixels.reshape(len(pixels), -1)[:, 0], values, within),
        "shape": lambda shape: list(pixels.shape) == shape,
        "spacing_mm": lambda mm: all(a is None or abs(a - b) <= 0.01 for a, b in zip(mm, scan.spacing_mm, strict=True)),
        "pixel_ratio": lambda ratio: scan.spacing_mm and near(scan.spacing_mm[1] / scan.spacing_mm[2], ratio, 0.01),
        "slices_at": lambda places: scan.affine is not None and near(first_voxels(scan), places, 0.05),
        "last_slice_at": lambda place: scan.affine is not None and near(first_voxels(scan)[-1], place, 0.05),
        "unplaced": lambda unplaced: (scan.affine is None) == unplaced,
        "first_row": lambda row: near(pixels[:, 0, row["columns"]], [row["values"]] * len(pixels), within),
        "first_row_order": lambda order: (np.diff(pixels[0, 0]) * (1 if order == "rising" else -1) > 0).all(),
        "darkest": lambda places: all(pixels[0][tuple(place)] == pixels[0].min() for place in places),
        "brighter": lambda places: (np.diff([pixels[0][tuple(place)] for place in places]) > 0).all(),
        "colour": lambda colour: near(pixels[0, pixels.shape[1] // 2, pixels.shape[2] // 2], colour, within),
        "range": lambda ends: near([pixels.min(), pixels.max()], ends, within),
    }
    for key, value in expected.items():
        if key != "within" and not checks[key](value):
            return key
    return None


def near(values, expected, within) -> bool:
    return np.shape(values) == np.shape(expected) and np.allclose(values, expected, rtol=0, atol=within)


def first_voxels(scan) -> np.ndarray:
    return np.array([(scan.affine @ [i, 0, 0, 1])[:3] for i in range(len(scan.pixels))])
