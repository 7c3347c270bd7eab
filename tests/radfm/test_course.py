"""`radfm diagnose --course`: the dates of a case, one by one."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import pipeline

from radfm import Case, RadFMConfig, RadFMForDiagnosis, Scan
from radfm.course import diagnose_course, direction, split_by_date
from radfm.examples import folder
from radfm.starting_points import processor_for

NAMES = ["Pneumothorax", "Rib fracture", "Gout"]


def scan(days: float | None, modality: str = "X-ray", seed: int = 0) -> Scan:
    pixels = np.random.default_rng(seed).integers(0, 255, (1, 40, 40), dtype=np.uint8)
    return Scan(pixels, modality, days=days, source=f"{days}.png")


@pytest.fixture
def checkpoint(tiny_config, tmp_path):
    torch.manual_seed(0)
    model = RadFMForDiagnosis(RadFMConfig(**tiny_config))
    model.set_disorders(NAMES, torch.randn(3, 32), [["J93.9"], ["S22.3"], ["M10.9"]])
    model.save_pretrained(tmp_path / "checkpoint")
    processor_for(model.config).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def pipe(checkpoint):
    return pipeline("zero-shot-diagnosis", model=str(checkpoint))


def test_dates_are_oldest_first_and_each_is_the_newest_of_its_own_case():
    case = Case([scan(0.0), scan(30.0), scan(None), scan(30.0), scan(7.0)], history="cough")
    dates = split_by_date(case)
    assert [day for day, _ in dates] == [30.0, 7.0, 0.0]
    assert [len(one.scans) for _, one in dates] == [2, 1, 1]
    assert all(one.days == 0 for _, date in dates for one in date.scans)
    assert dates[0][1].history == "cough"
    assert case.scans[1].days == 30.0


@pytest.mark.parametrize(("days", "reason"), [([None, None], "no scan .* has a date"), ([0.0, 0.0], "of one date")])
def test_a_case_without_two_dates_is_refused_with_the_remedy(days, reason):
    with pytest.raises(ValueError, match=f"{reason}: a course needs two or more"):
        split_by_date(Case([scan(day) for day in days]))


def test_the_odds_have_to_become_three_times_as_high_or_low():
    assert [direction(math.log(ratio)) for ratio in (3.1, 2.9, 1, 1 / 2.9, 1 / 3.1)] == [
        "rises",
        "stays",
        "stays",
        "stays",
        "falls",
    ]


def test_the_scores_of_a_date_are_those_of_its_scans_alone(pipe):
    case = Case([scan(9.0, seed=1), scan(0.0, "CT", seed=2), scan(None, seed=3)])
    course = diagnose_course(pipe, case, top_k=2)
    assert [date["days"] for date in course["dates"]] == [9.0, 0.0]
    assert course["undated"] == 1
    assert not course["same_modalities"]
    assert len(course["disorders"]) == 2
    for number, (_, date) in enumerate(split_by_date(case)):
        alone = {one["label"]: one["score"] for one in pipe(date, top_k=3)}
        for one in course["disorders"]:
            assert one["scores"][number] == pytest.approx(alone[one["label"]])
    one = course["disorders"][0]
    odds = [math.log(score / (1 - score)) for score in one["scores"]]
    assert one["change"] == pytest.approx(odds[1] - odds[0], abs=1e-4)
    assert one["steps"] == [one["direction"]] == [direction(one["change"])]


def test_given_names_are_scored_on_each_date(pipe):
    course = diagnose_course(pipe, Case([scan(9.0), scan(0.0)]), ["Gout"])
    assert [one["label"] for one in course["disorders"]] == ["Gout"]
    assert course["disorders"][0]["direction"] == "stays"  # both pictures are the same


def test_the_command_prints_writes_and_draws_the_course(radfm, checkpoint, tmp_path):
    study, report = folder("covid"), tmp_path / "case.html"
    status, out, _ = radfm("diagnose", study, "--model", checkpoint, "--course", "--report", report)
    assert status == 0
    assert "8 days" in out
    assert "newest" in out
    page = report.read_text(encoding="utf-8")
    assert page.count('<svg class="line"') == 3
    assert "8 days before" in page
    status, out, _ = radfm("diagnose", study, "--model", checkpoint, "--course", "--json")
    course = json.loads(out)["course"]
    assert status == 0
    assert [date["days"] for date in course["dates"]] == [8.0, 5.0, 3.0, 0.0]


def test_a_report_without_a_course_has_no_such_section(radfm, checkpoint, tmp_path):
    radfm("diagnose", folder("covid"), "--model", checkpoint, "--report", tmp_path / "case.html")
    assert 'id="course"' not in (tmp_path / "case.html").read_text(encoding="utf-8")


def test_pictures_without_dates_are_refused_in_one_line(radfm, checkpoint, tmp_path):
    file = tmp_path / "scan.npy"
    np.save(file, scan(None).pixels)
    status, _, error = radfm("diagnose", file, "--model", checkpoint, "--modality", "X-ray", "--course")
    assert status != 0
    assert "a course needs two or more" in " ".join(error.split())
    assert "Traceback" not in error
