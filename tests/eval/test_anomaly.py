"""Anomaly scores: normal against abnormal cases, and maps."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from picture_cases import SIDE, PictureCase, blurring_autoencoder, data_set
from PIL import Image

from radfm.data_prep import load
from radfm.data_prep.latents import prepare_latents
from radfm.eval.anomaly import CENTRE, MAHALANOBIS, MAPS, Detector, measure_anomaly, score_anomaly
from radfm.eval.anomaly_maps import GRID, MapMaker, fit_normal
from radfm.eval.predict import Evaluation
from tests.tiny_generator import save, tiny_autoencoder, tiny_generator

BLOCKS = (slice(0, SIDE), slice(0, 8))  # where normal cases have fine texture, which blurring loses
SPECK = (slice(18, 21), slice(22, 25))


def brain(seed: int, speck: bool = False) -> np.ndarray:
    """Blocks of one grey value each, a checkerboard of any strength at the left, and a faint speck at the right."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 110, (SIDE // 4, SIDE // 4)).repeat(4, 0).repeat(4, 1).astype(np.float32)
    rows, columns = np.indices((SIDE, SIDE))
    pixels[BLOCKS] += (rng.uniform(10, 90) * ((rows + columns) % 2 * 2 - 1))[BLOCKS]
    pixels[0, 0], pixels[0, 4] = 0, 255  # so that all are scaled alike
    if speck:
        pixels[SPECK] += 45
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def brains(tmp_path_factory) -> Path:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[SPECK] = True
    pictures = [PictureCase(brain(seed), "train") for seed in range(30)]
    pictures += [PictureCase(brain(seed), "test") for seed in range(100, 112)]
    pictures += [PictureCase(brain(seed, speck=True), "test", ["Glioma"], mask) for seed in range(200, 212)]
    return data_set(tmp_path_factory.mktemp("brains") / "data", pictures)


@pytest.fixture(scope="module")
def detector(brains) -> Detector:
    maker, cases = MapMaker(blurring_autoencoder()), load(brains, "train")
    maps = [maker(scan) for case in cases for scan in case.scans]
    return Detector(maker, fit_normal(maps), {"cases": len(cases), "scans": len(maps), "only_normal": True})


def test_the_standardised_error_finds_a_faint_speck_beside_strong_normal_texture(brains, detector):
    evaluation = Evaluation(brains)
    result = measure_anomaly(detector, score_anomaly(detector, evaluation), evaluation, bootstraps=50)
    assert (result["normal"], result["abnormal"]) == (12, 12)
    assert result["scores"]["standardised reconstruction"]["auc"]["value"] == 1
    assert result["scores"]["reconstruction error"]["auc"]["value"] < 0.8  # it measures the texture
    (group,) = result["groups"]
    assert (group, result["groups"][group]["normal"]) == ("brain", 12)
    assert result["best_by"] == "within_groups"
    assert result["scores"][result["best"]]["auc"]["value"] == 1
    assert result["best_less"]["reconstruction error"]["low"] > 0
    rows = result["localisation"]["rows"]
    assert result["localisation"]["lesions"] == 12
    assert rows["standardised reconstruction"]["within"]["value"] == 1
    assert rows[CENTRE]["within"]["value"] == 0


def test_maps_and_scores_of_normal_cases_are_in_their_standard_deviations(detector, brains):
    maps = [detector.maker(case.scans[0]) for case in load(brains, "train")]
    values = np.stack([detector.normal.standardised(one)["contrast"] for one in maps])
    assert np.sqrt((values[..., :4] ** 2).mean()) == pytest.approx(1, abs=0.2)  # where the texture varies
    scores = np.array([detector.normal.scan_scores(one)["reconstruction"] for one in maps])
    assert scores.mean() == pytest.approx(0, abs=1e-5)
    assert scores.std() == pytest.approx(1, abs=1e-5)


def test_what_is_outside_the_picture_is_no_anomaly(detector, brains):
    (scan,) = load(brains, "test")[0].scans
    narrow = replace(scan, pixels=np.ascontiguousarray(scan.pixels[:, :, :16]))  # half of the square is padding
    standardised = detector.normal.standardised(detector.maker(narrow))["reconstruction"]
    assert standardised.any()
    assert not standardised[:, :, :4].any()
    assert not standardised[:, :, -4:].any()


def test_a_place_without_its_normal_texture_is_as_unusual_as_one_with_a_speck(detector, brains):
    (scan,) = load(brains, "test")[0].scans
    smooth = scan.pixels.copy()
    smooth[:, 8:24, :8] = 100
    values = detector.normal.standardised(detector.maker(replace(scan, pixels=smooth)))["contrast"][0]
    assert values[5:11, 1:3].min() > 2 > np.median(values)


def test_the_same_slices_have_the_same_maps_whichever_others_are_with_them(detector, brains):
    (scan,) = load(brains, "test")[0].scans
    stack = replace(scan, pixels=np.concatenate([scan.pixels] * 20))
    several, one = (MapMaker(blurring_autoencoder(), slices=5)(scan) for scan in (stack, scan))
    assert several.taken == [0, 4, 8, 12, 16]
    assert several.depths.tolist() == [0, 0, 1, 2, 3]
    np.testing.assert_allclose(several.errors["reconstruction"], one.errors["reconstruction"].repeat(5, 0), atol=1e-6)


def test_the_command_writes_scores_numbers_and_a_figure(radfm, brains, tmp_path):
    out = tmp_path / "anomaly"
    folder = save(tiny_generator(), tmp_path / "generator")
    arguments = ("--autoencoder", folder / "autoencoder", "--generator", folder, "--model", "radfm-phantom-mini")
    arguments += ("--bootstraps", 20)
    status, shown, _ = radfm("evaluate", "anomaly", brains, *arguments, "--out", out)
    assert status == 0
    assert "12 normal and 12 abnormal cases" in shown
    assert "Best by AUC within groups" in shown
    assert "centre of the scan" in shown
    result = json.loads((out / "anomaly.json").read_text())
    assert list(result["scores"]) == ["reconstruction error", "diffusion error", *MAPS.values(), MAHALANOBIS]
    assert result["fitted_to"] == {"cases": 30, "scans": 30, "only_normal": True}
    with open(out / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert sum(row["abnormal"] == "True" for row in rows) == 12
    with Image.open(out / "maps.png") as figure:
        assert figure.width > 500
    status, again, _ = radfm("evaluate", "anomaly", brains, *arguments, "--json")
    assert json.loads(again) == result


def test_a_split_without_normal_cases_is_one_line(radfm, tmp_path):
    data = data_set(tmp_path / "data", [PictureCase(brain(seed), "test", ["Glioma"]) for seed in range(3)] + [
        PictureCase(brain(9), "train")])  # fmt: skip
    tiny_autoencoder().save_pretrained(tmp_path / "autoencoder")
    status, _, error = radfm("evaluate", "anomaly", data, "--autoencoder", tmp_path / "autoencoder")
    assert status != 0
    assert "has no normal case in its split 'test'" in error


def test_latents_are_refused_where_an_autoencoder_reads_pictures(radfm, brains, tmp_path):
    tiny_autoencoder().save_pretrained(tmp_path / "autoencoder")
    prepare_latents(brains, tmp_path / "latents", tmp_path / "autoencoder")
    for command in (("anomaly",), ("ood", "--model", "radfm-phantom-mini")):
        arguments = ("evaluate", command[0], tmp_path / "latents", *command[1:])
        status, _, error = radfm(*arguments, "--autoencoder", tmp_path / "autoencoder")
        assert status != 0
        assert "latents holds latents, and an autoencoder reads pictures: give the data set" in error


def test_a_generator_adds_maps_of_what_it_removes_with_the_noise(brains):
    generator = tiny_generator()
    cases = load(brains, "train")[:12]
    maker = MapMaker(generator.autoencoder, generator)
    maps = [maker(scan) for case in cases for scan in case.scans]
    assert maps[0].errors["diffusion"].shape == (1, GRID, GRID)
    assert maps[0].errors["diffusion"].min() > 0
    np.testing.assert_array_equal(maker(cases[0].scans[0]).errors["diffusion"], maps[0].errors["diffusion"])
    standardised = fit_normal(maps).standardised(maps[0])
    assert set(standardised) == {"reconstruction", "diffusion", "contrast", "both"}
    mean = (standardised["reconstruction"] + standardised["diffusion"]) / 2
    np.testing.assert_allclose(standardised["both"], mean, atol=1e-6)


def test_latents_are_normalised_as_those_that_the_generator_learned_from(brains):
    generator = tiny_generator()
    scan = load(brains, "train")[0].scans[0]
    expected = MapMaker(generator.autoencoder, generator)(scan).errors
    other = tiny_autoencoder()
    other.settings.mean, other.settings.std = [1.0] * 4, [2.0] * 4
    for kind, errors in MapMaker(other, generator)(scan).errors.items():
        np.testing.assert_array_equal(errors, expected[kind])


def test_a_generator_of_another_autoencoder_is_refused():
    with pytest.raises(ValueError, match="latents are of another autoencoder"):
        MapMaker(blurring_autoencoder(), tiny_generator())


def test_a_generator_without_normal_slices_is_refused():
    generator = tiny_generator(facts={"contexts": {"Glioma": [["MRI", "axial", "brain", 3]]}})
    with pytest.raises(ValueError, match="from no slice without findings"):
        MapMaker(generator.autoencoder, generator)
    generator.facts["contexts"][""] = [["MRI", "axial", "brain", 1]]
    MapMaker(generator.autoencoder, generator)


def test_an_autoencoder_of_volumes_is_refused():
    network = blurring_autoencoder()
    network.settings.spatial_dims = 3
    with pytest.raises(ValueError, match="reads volumes"):
        MapMaker(network)
