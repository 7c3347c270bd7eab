"""`radfm evaluate selection`: what is simulated, that it continues, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from radfm.checkpoints import find
from radfm.data_prep import load
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.recipes_radfm import DIAGNOSIS_RECIPE
from radfm.train.selection_study import selection_study

MODEL = "radfm-phantom-mini"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "knees"
    prepare(Phantoms(300, 5, 48, "knee"), folder, Settings(size=48, max_slices=1, fractions=(0.6, 0.0, 0.4)))
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory, data) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("study") / "selection"
    return out, selection_study(data, MODEL, out, ["rare", "badge"], [4, 8, 16], seeds=2)


def test_all_strategies_are_measured_with_as_many_labels_and_paired_with_random(study, data):
    out, result = study
    assert list(result["strategies"]) == ["random", "rare", "badge"]
    runs = {name: [json.loads((out / "runs" / f"{name}-{seed}.json").read_text()) for seed in (0, 1)]
            for name in result["strategies"]}  # fmt: skip
    for name, one in result["strategies"].items():
        assert [run["labelled"] for run in runs[name]] == [[4, 8, 16]] * 2
        aucs, randoms = (np.array([run["auc"] for run in runs[key]]) for key in (name, "random"))
        np.testing.assert_allclose([figure["value"] for figure in one["auc"]], aucs.mean(0))
        np.testing.assert_allclose([figure["value"] for figure in one["less_random"]], (aucs - randoms).mean(0))
        doubled = one["less_random_doubled"]
        assert doubled[2] is None
        assert doubled[1]["value"] == pytest.approx((aucs[:, 1] - randoms[:, 2]).mean())
        difference = aucs[:, 1] - randoms[:, 2]
        half = 12.7062 * difference.std(ddof=1) / 2**0.5  # Student's t with one degree of freedom
        assert doubled[1]["high"] - doubled[1]["value"] == pytest.approx(half, rel=1e-4)
    assert result["pool"] == len(load(data, "train", labelled=True))
    assert 0.5 < result["without_labels"] < 1
    page = (out / "selection.html").read_text(encoding="utf-8")
    assert "SYNTHETIC" in page
    assert "Research use only" in page


def test_a_study_continues_and_takes_more_seeds(study, data):
    out, result = study
    kept = {file.name: file.stat().st_mtime_ns for file in (out / "runs").glob("*.json")}
    more = selection_study(data, MODEL, out, ["rare", "badge"], [4, 8, 16], seeds=3)
    assert {file.name: file.stat().st_mtime_ns for file in (out / "runs").glob("*-[01].json")} == kept
    assert more["seeds"] == 3
    assert more["without_labels"] == result["without_labels"]
    with pytest.raises(ValueError, match="holds a study with another labels"):
        selection_study(data, MODEL, out, ["rare"], [4, 8], seeds=2)


def test_a_model_that_was_trained_on_the_cases_is_refused(data, tmp_path):
    model = shutil.copytree(find(MODEL, local=True), tmp_path / "model")
    recipe = model / DIAGNOSIS_RECIPE
    content = json.loads(recipe.read_text())
    content["data"]["fingerprint"] = f"of another site; {load(data).fingerprint}"
    recipe.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="was trained on"):
        selection_study(data, model, tmp_path / "out")


def test_more_labels_than_the_pool_has_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="the budget is"):
        selection_study(data, MODEL, tmp_path / "out", ["random"], [10_000], seeds=2)
