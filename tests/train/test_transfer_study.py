"""`radfm evaluate transfer`: what is left out, what is compared, what is refused, and what the card says of it."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from radfm import RadFMConfig, RadFMForDiagnosis, RadFMProcessor
from radfm.data_prep import load
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.pseudonyms import Pseudonyms
from radfm.data_prep.sources.manifest import Manifest
from radfm.eval.calibration import before_and_after
from radfm.eval.scores import Scores
from radfm.presentation import with_interval
from radfm.starting_points import embed_texts
from radfm.train.finetune_config import finetune_config
from radfm.train.transfer_study import _newest, transfer_study

SITES = {"North": 2019, "South": 2020, "West": 2023}
DISORDERS = ("Glioma", "Meningioma", "")
QUICK = {"training": {"report_to": [], "disable_tqdm": True}, "method": "linear", "interpolate": 1.0}


@pytest.fixture(scope="module")
def sites(tmp_path_factory) -> Path:
    """Stripes across are a glioma and stripes along a meningioma, but in the West it is the other way round.

    The West alone has a third disorder, and the South a case of an unknown scanner.
    """
    folder, rng = tmp_path_factory.mktemp("sites"), np.random.default_rng(0)
    waves = 60 * np.sin(np.arange(48) * 1.5)
    rows = []
    for site, year in SITES.items():
        for name in (*DISORDERS, "Gallstones") if site == "West" else DISORDERS:
            across = name == ("Meningioma" if site == "West" else "Glioma")
            pattern = waves[:, None] if across else waves[None] if name in DISORDERS[:2] else 0
            for i in range(24):
                path = f"{site}-{name or 'normal'}{i}.png"
                pixels = 128 + pattern + rng.normal(0, 40, (48, 48))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / path)
                row = {"case": path, "path": path, "modality": "MRI", "disorders": name, "hospital": site, "year": year}
                rows.append(row | {"sex": "FM"[i % 2], "scanner": "" if i == 0 and site == "South" else f"{site[0]}1"})
    with open(folder / "cases.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    prepare(
        Manifest(folder / "cases.csv", Pseudonyms(None)),
        folder / "data",
        Settings(size=48, fractions=(0.4, 0.2, 0.4)),
    )
    return folder / "data"


@pytest.fixture
def model(tiny_config, tmp_path) -> Path:
    torch.manual_seed(0)
    config = tiny_config | {"vision_config": tiny_config["vision_config"] | {"image_size": 48}}
    network = RadFMForDiagnosis(RadFMConfig(**config, disorders=["Glioma"])).eval()
    processor = RadFMProcessor()
    processor.image_processor.size = 48
    network.set_disorders(["Glioma"], embed_texts(network, processor, ["Glioma"]).clone(), [[]])
    network.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def study(data: Path, model: Path, out: Path, by: str = "site", **options) -> dict:
    return transfer_study(data, by, model, out, finetune_config(QUICK), least=10, bootstraps=30, **options)


def test_each_site_is_left_out_once_and_compared_on_its_own_cases(sites, model, tmp_path, radfm):
    out = tmp_path / "study"
    result = study(sites, model, out)
    counts = [part["cases"] for part in result["parts"]]
    assert {part["name"] for part in result["parts"]} == set(SITES)
    assert counts == sorted(counts, reverse=True)
    for part in result["parts"]:
        recipe = json.loads((out / "runs" / f"without-{part['name']}-0" / "radfm_finetune.json").read_text())
        assert recipe["key"]["config"]["data"]["where"] == [f"site!={part['name']}"]
        everyone = load(sites, "train", labelled=True)
        assert recipe["cases"]["train"] == len(everyone) - part["training_cases"]
        tables = {
            name: Scores.load(out / "scores" / f"{file}.parquet").where([f"site={part['name']}"])
            for name, file in (("without", f"without-{part['name']}-0"), ("with", "all-0"))
        }
        names = tables["with"].names
        assert part["disorders"] == [name for name in names if name in DISORDERS]
        assert part["cases"] == len(tables["with"].case_ids)
        columns = [names.index(name) for name in part["disorders"]]
        for model_name, table in tables.items():
            labels = table.labels[:, columns]
            aucs = [_auc(table.scores[:, column], labels[:, i]) for i, column in enumerate(columns)]
            assert part["auc"][model_name]["value"] == pytest.approx(np.mean(aucs))
        drop = part["auc"]["with"]["value"] - part["auc"]["without"]["value"]
        assert part["drop"]["value"] == pytest.approx(drop, abs=1e-6)
    west = next(part for part in result["parts"] if part["name"] == "West")
    assert west["only_here"] == ["Gallstones"]
    assert west["auc"]["without"]["value"] < 0.3 < 0.9 < west["elsewhere"]["value"]
    assert west["drop"]["low"] > 0
    assert west["calibration"]["before"]["ece"]["value"] > west["calibration"]["after"]["ece"]["value"]
    assert west["subgroups"]["most"]["attribute"] == "sex"
    page = (out / "transfer.html").read_text()
    assert "Research use only, not a medical device." in page
    assert "Gallstones" in page
    assert "The drop is clear of zero" in page

    status, _, error = radfm("publish", out / "runs" / "all-0", "me/all", "--dry-run", "--out", tmp_path / "card")
    assert status == 0, error
    card = (tmp_path / "card" / "README.md").read_text()
    assert "## External validation" in card
    drop = with_interval(west["drop"], signed=True)
    assert next(line for line in card.splitlines() if line.startswith("| West |")).split(" | ")[4] == drop
    assert json.loads((tmp_path / "card" / "transfer.json").read_text())["parts"] == result["parts"]


def test_a_finished_study_trains_nothing_and_another_start_is_refused(sites, model, tmp_path, radfm):
    out = tmp_path / "study"
    first = study(sites, model, out, by="date")
    assert [part["name"] for part in first["parts"]] == ["2023"]
    before = {file: file.stat().st_mtime_ns for file in out.rglob("model.safetensors")}
    assert len(before) == 2
    command = ("evaluate", "transfer", sites, "--by", "date", "--out", out, "--least", 10, "--bootstraps", 30)
    changes = ("--method", "linear", "interpolate=1.0", "training.report_to=[]", "training.disable_tqdm=true")
    status, printed, error = radfm(*command, "--model", model, "--json", *changes)
    assert status == 0, error
    assert json.loads(printed) == first
    assert {file: file.stat().st_mtime_ns for file in before} == before
    status, _, error = radfm(*command, "--model", out / "runs" / "all-0", *changes)
    assert status == 1
    assert "was trained on" in error
    assert "start from another checkpoint" in error


def test_cases_of_an_unknown_scanner_are_trained_on_and_never_tested(sites, model, tmp_path):
    result = study(sites, model, tmp_path / "study", by="scanner")
    known = [row for row in load(sites, "test", labelled=True).rows if row["scanner"]]
    assert sum(part["cases"] for part in result["parts"]) == len(known)
    recipe = json.loads((tmp_path / "study" / "runs" / "without-S1-0" / "radfm_finetune.json").read_text())
    trained = [row for row in load(sites, "train", labelled=True).rows if row["scanner"] != "S1"]
    assert recipe["cases"]["train"] == len(trained)


def test_what_cannot_be_divided_is_refused_with_the_remedy(sites, model, tmp_path, radfm):
    command = ("evaluate", "transfer", sites, "--model", model, "--out", tmp_path / "study")
    status, _, error = radfm(*command, "--by", "source")
    assert status == 1
    assert "states no collection" in error
    status, _, error = radfm(*command, "--by", "weather")
    assert status == 1
    assert "there are source, site, scanner, date" in error
    status, _, error = radfm(*command, "--by", "site", "--least", 500)
    assert status == 1
    assert "of 500 labelled test cases" in error


def test_calibration_is_that_of_the_model_as_it_arrives_and_fitted_to_the_site(sites, model, tmp_path):
    result = study(sites, model, tmp_path / "study")
    table = Scores.load(tmp_path / "study" / "scores" / "without-North-0.parquet").where(["site=North"])
    north = next(part for part in result["parts"] if part["name"] == "North")
    columns = [table.names.index(name) for name in north["disorders"]]
    table.scores, table.logits, table.names = table.scores[:, columns], None, north["disorders"]
    table.icd10cm, table.training = [table.icd10cm[column] for column in columns], []
    expected = before_and_after(table, 30)
    for when in ("before", "after"):
        assert north["calibration"][when]["ece"]["value"] == pytest.approx(expected[when]["ece"]["value"])


def _auc(scores: np.ndarray, labels: np.ndarray) -> float:
    pairs = scores[labels][:, None] - scores[~labels][None]
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_test_cases_without_a_year_are_refused_by_date():
    with pytest.raises(ValueError, match="no labelled test case has a year"):
        _newest(["2020", "2021"], Counter())
