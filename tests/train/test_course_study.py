"""`radfm evaluate course`: what is compared, by hand-computed tables, and the whole study on small phantoms."""

import json
import re

import numpy as np
import pytest
import torch

from radfm import RadFMConfig, RadFMForDiagnosis
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.eval.course import Steps, measure_steps, words_of
from radfm.starting_points import processor_for
from radfm.train.course_study import CHANGE, EARLIER, LATER, RECURRENT, course_study
from radfm.train.recurrent_course import recurrent_scores


def steps_with(changes: list[str], disorders: list[int] | None = None) -> Steps:
    """Steps of one patient each, between its two dates."""
    count = len(changes)
    dates = np.arange(2 * count).reshape(count, 2)
    patients = np.array([f"p{number}" for number in range(count)], object)
    disorders = [0] * count if disorders is None else disorders
    volumes = np.ones((count, 2))
    return Steps(dates[:, 0], dates[:, 1], np.array(disorders), np.array(changes, object), patients, volumes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course") / "follow_up"
    source = Phantoms(220, 0, 32, "brain", follow_up=True)
    prepare(source, folder, Settings(size=32, fractions=(0.4, 0.0, 0.6), max_slices=1))
    return folder


@pytest.fixture
def checkpoint(tiny_config, tmp_path):
    torch.manual_seed(0)
    model = RadFMForDiagnosis(RadFMConfig(**tiny_config))
    model.set_disorders(["Cerebral infarction"], torch.randn(1, 32), [["I63.9"]])
    model.save_pretrained(tmp_path / "checkpoint")
    processor_for(model.config).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_pairs_of_the_same_disorder_are_compared_and_a_tie_counts_half():
    steps = steps_with(["grew", "appeared", "shrank", "grew", "resolved", "stayed"], [0, 0, 0, 1, 1, 1])
    scores = np.array([2.0, 1.0, 1.0, -5.0, -9.0, 99.0])
    result = measure_steps(steps, {"change": scores, "other": -scores}, ["other"], bootstraps=10)
    # Pairs: grew and shrank (right), appeared and shrank (tie), grew and resolved of the other disorder (right).
    assert result["pairs"] == {"direction": 3, "size": 1, "presence": 0}
    assert result["methods"]["change"]["direction"]["auc"]["value"] == pytest.approx(2.5 / 3)
    assert result["methods"]["change"]["direction"]["less_reference"]["value"] == pytest.approx(2 / 3)
    assert result["methods"]["change"]["size"]["auc"]["value"] == 1
    assert result["methods"]["change"]["presence"]["auc"] is None
    assert result["counts"] == {"grew": 2, "shrank": 1, "stayed": 1, "appeared": 1, "resolved": 1}


def test_the_reference_is_the_better_of_the_two():
    steps, scores = steps_with(["grew", "shrank"]), np.array([1.0, 0.0])
    result = measure_steps(steps, {"change": scores, "a": -scores, "b": scores}, ["a", "b"], bootstraps=2)
    assert result["reference"] == "b"
    assert result["methods"]["b"]["direction"]["less_reference"] is None


def test_a_resample_without_a_pair_does_not_count():
    result = measure_steps(steps_with(["grew", "shrank"]), {"a": np.array([1.0, 0.0])}, ["a"], bootstraps=50)
    figure = result["methods"]["a"]["direction"]["auc"]
    assert (figure["low"], figure["value"], figure["high"]) == (1, 1, 1)


def test_there_is_nothing_to_compare_where_all_disorders_go_up():
    with pytest.raises(ValueError, match="no disorder went up in one case and down in another"):
        measure_steps(steps_with(["grew", "appeared"]), {"a": np.zeros(2)}, ["a"], bootstraps=2)


def test_words_are_counted_by_the_true_change():
    words = words_of(steps_with(["grew", "grew", "shrank", "stayed"]), np.array([2.0, 0.1, -2.0, 2.0]))
    assert words["grew"] == {"rises": 1, "stays": 1, "falls": 0}
    assert words["shrank"]["falls"] == words["stayed"]["rises"] == 1


def test_the_recurrent_model_learns_what_needs_both_dates():
    rng = np.random.default_rng(0)

    def patients(count: int):
        """Embeddings whose first value falls or rises; its level differs more between patients."""
        embeds = rng.normal(0, 1, (2 * count, 4)).astype(np.float32)
        up = rng.random(count) < 0.5
        embeds[::2, 0] = rng.normal(0, 2, count)
        embeds[1::2, 0] = embeds[::2, 0] + np.where(up, 1, -1)
        rows = [{"case_id": str(case), "days": days} for case in range(count) for days in (60.0, 0.0)]
        return embeds, rows, steps_with(["grew" if one else "shrank" for one in up])

    training, test = patients(300), patients(200)
    logits = recurrent_scores(training, test, np.eye(1, 4, dtype=np.float32), seeds=1)
    methods = {"recurrent": logits, "later": test[0][1::2, 0]}
    result = measure_steps(test[2], methods, ["later"], bootstraps=50)["methods"]
    assert result["recurrent"]["direction"]["auc"]["value"] > 0.9
    assert result["later"]["direction"]["auc"]["value"] < 0.85


def test_a_study_writes_its_results_and_continues_with_the_scores_that_it_has(radfm, prepared, checkpoint, tmp_path):
    out = tmp_path / "study"
    command = ("evaluate", "course", prepared, "--model", checkpoint, "--out", out, "--bootstraps", 20, "--seeds", 1)
    status, printed, error = radfm(*command, "--json")
    assert status == 0, error
    result = json.loads(printed[printed.index("{\n") :])  # after a line of a library
    assert result == json.loads((out / "course.json").read_text())
    assert list(result["methods"]) == [CHANGE, LATER, EARLIER, RECURRENT]
    assert sum(result["counts"].values()) == result["steps"] > 10
    assert sum(sum(words.values()) for words in result["words"].values()) == result["steps"]
    page = (out / "course.html").read_text(encoding="utf-8")
    assert "SYNTHETIC" in page
    assert "<script" not in page
    assert re.search(r"(src|href)=\"(?!data:|figures/|course|#)", page) is None
    assert "data:image/jpeg" in page
    written = {file: file.stat().st_mtime_ns for file in (out / "scores").iterdir()}
    status, printed, _ = radfm(*command)
    assert status == 0
    assert "earlier" in printed
    assert {file: file.stat().st_mtime_ns for file in (out / "scores").iterdir()} == written


def test_a_folder_with_the_scores_of_another_model_is_refused(prepared, checkpoint, tmp_path):
    course_study(prepared, checkpoint, tmp_path / "study", seeds=1, bootstraps=2)
    model = RadFMForDiagnosis.from_pretrained(checkpoint)
    with torch.no_grad():
        model.head.logit_bias += 1
    model.save_pretrained(checkpoint)
    with pytest.raises(ValueError, match="scores of another model or data set: choose another --out"):
        course_study(prepared, checkpoint, tmp_path / "study", seeds=1, bootstraps=2)


def test_a_data_set_that_does_not_tell_how_disorders_changed_is_refused(checkpoint, tmp_path):
    prepare(Phantoms(40, 0, 32), tmp_path / "plain", Settings(size=32, max_slices=1, fractions=(0.5, 0.0, 0.5)))
    with pytest.raises(ValueError, match="it has no table of sizes"):
        course_study(tmp_path / "plain", checkpoint, tmp_path / "study")
