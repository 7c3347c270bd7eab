"""How close samples are to training cases: copies, quantiles, membership inference, and the page."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from picture_cases import PictureCase, data_set, smooth
from PIL import Image

from radfm.data_prep import load
from radfm.data_prep.latent_slices import LatentSlices
from radfm.data_prep.latents import prepare_latents
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.synthetic import Synthetic
from radfm.eval.membership import measure_membership
from radfm.eval.neighbours import MODEL, PIXELS, Neighbours, SlicePlace, Slices, nearest
from radfm.eval.sharing import FoundNeighbours, _area, find_neighbours, measure_sharing
from radfm.latents.denoisers import perfect_output
from radfm.latents.generator import Generator
from tests.tiny_generator import save, tiny_autoencoder, tiny_generator

MODEL_NAME = "radfm-phantom-mini"
DISORDERS = ["Glioma", "Meningioma", "Brain abscess", "Hydrocephalus", "Stroke", "Pituitary adenoma"]
COPIED, DARKENED = 3, 5  # training cases that are among the samples


def some_cases(seeds: range, split: str) -> list[PictureCase]:
    return [PictureCase(smooth(seed), split, [DISORDERS[seed % len(DISORDERS)]]) for seed in seeds]


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    cases = (
        some_cases(range(24), "train") + some_cases(range(100, 124), "test") + some_cases(range(200, 212), "validation")
    )
    return data_set(tmp_path_factory.mktemp("real") / "data", cases)


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    dark = PictureCase(smooth(DARKENED) // 2, "train", ["Stroke"])
    copies = [PictureCase(smooth(COPIED), "train", ["Glioma"]), dark]
    return data_set(tmp_path_factory.mktemp("samples") / "data", copies + some_cases(range(300, 308), "train"))


def test_the_nearest_of_all_blocks_is_found_and_a_copy_has_no_distance():
    vectors = F.normalize(torch.randn(50, 7), dim=1)
    queries = torch.cat([vectors[[33]], F.normalize(torch.randn(4, 7), dim=1)])
    blocks = ({"a": block} for block in vectors.split(8))
    found = nearest({"a": queries}, blocks)["a"]
    expected = 1 - queries @ vectors.T
    assert found.indices.tolist() == expected.argmin(1).tolist()
    assert (found.indices[0], found.distances[0]) == (33, 0)
    np.testing.assert_allclose(found.distances, expected.amin(1), atol=1e-6)


def test_an_exact_and_a_darker_copy_of_training_cases_are_found_and_counted(real, samples):
    found = find_neighbours(samples, real, MODEL_NAME)
    pixels = found.of_samples[PIXELS]
    assert [found.training[i].case_id for i in pixels.indices[:2]] == [f"c{COPIED:03d}", f"c{DARKENED:03d}"]
    assert pixels.distances[0] == 0
    assert found.of_samples[MODEL].distances[0] == pytest.approx(0, abs=1e-6)
    assert pixels.distances[2:].min() > 0.1
    result = measure_sharing(found, bootstraps=50)
    assert (result["samples"], result["training"], result["held_out"], result["held_out_split"]) == (10, 24, 24, "test")
    assert not result["synthetic"]
    of_pixels = result["spaces"][PIXELS]
    assert of_pixels["copies"] == 2
    assert found.shares(PIXELS)[:2].tolist() == [1 / 25, 1 / 25]
    assert of_pixels["closer_samples"] == (found.shares(PIXELS) <= 0.05).sum() >= 2
    assert of_pixels["closer"]["value"] == pytest.approx(of_pixels["closer_samples"] / 10)


def test_samples_that_are_as_far_as_real_cases_have_an_auc_of_a_half(real, tmp_path):
    others = data_set(tmp_path / "others", some_cases(range(100, 124), "train"))
    result = measure_sharing(find_neighbours(others, real, MODEL_NAME), bootstraps=50)
    for space in (PIXELS, MODEL):
        of_space = result["spaces"][space]
        assert of_space["auc"]["value"] == 0.5
        assert of_space["copies"] == 0
        assert of_space["closer_samples"] == 0  # the closest of 24 has a share of 2 / 25
        assert of_space["medians"]["samples"] == of_space["medians"]["held_out"]


def places(modality: str, count: int) -> list[SlicePlace]:
    return [SlicePlace(i, i, f"{modality}{i}", f"{modality}{i}", (), (modality, "chest")) for i in range(count)]


def test_samples_are_compared_with_held_out_slices_of_their_modality(real):
    """All samples are X-rays, which are closer to each other than MRI scans are, in samples as in real cases."""
    near, far = np.linspace(0.1, 0.2, 20), np.linspace(0.5, 0.9, 60)
    of_samples, of_held_out = Neighbours(near, np.zeros(20, int)), Neighbours(np.concatenate([near, far]), np.zeros(80))
    samples, held_out = places("X-ray", 20), places("X-ray", 20) + places("MRI", 60)
    found = FoundNeighbours(
        samples, Slices(load(real)), held_out, "test", 0, {PIXELS: of_samples}, {PIXELS: of_held_out}
    )
    area, resamples = _area(found, PIXELS, np.ones((100, 3)))
    assert area == pytest.approx(0.5)
    np.testing.assert_allclose(resamples, 0.5)


def test_a_copy_is_known_after_the_decoder_too(real, tmp_path):
    """The samples are training cases as the autoencoder reconstructs them: what a generator that copies all makes."""
    autoencoder = tiny_autoencoder()
    slices = Slices(load(real, "train"), 6, autoencoder)
    copies = [PictureCase(slices.scan(i).pixels[0], "train", ["Glioma"]) for i in range(6)]
    made = data_set(tmp_path / "samples", [*copies, *some_cases(range(300, 304), "train")])
    plain = find_neighbours(made, real, MODEL_NAME)
    decoded = find_neighbours(made, real, MODEL_NAME, autoencoder=autoencoder)
    before, after = (measure_sharing(found, bootstraps=20) for found in (plain, decoded))
    assert before["spaces"][PIXELS]["copies"] == 0
    assert after["spaces"][PIXELS]["copies"] == 6
    assert (before["autoencoder"], after["autoencoder"]) == (None, autoencoder.fingerprint)


def test_held_out_slices_that_are_training_slices_are_left_out(samples, tmp_path):
    cases = [*some_cases(range(6), "train"), PictureCase(smooth(2), "test"), *some_cases(range(50, 53), "test")]
    found = find_neighbours(samples, data_set(tmp_path / "data", cases), MODEL_NAME)
    assert (len(found.held_out), found.left_out, len(found.of_held_out[PIXELS].distances)) == (3, 1, 3)
    assert measure_sharing(found, bootstraps=20)["left_out"] == 1


@pytest.fixture(scope="module")
def latents(real, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    tiny_autoencoder().save_pretrained(folder / "autoencoder")
    prepare_latents(real, folder / "data", folder / "autoencoder")
    return folder / "data"


def memorising_generator(latents: Path) -> Generator:
    """A generator that learns its few training latents by heart."""
    generator, slices = tiny_generator(), LatentSlices(load(latents, "train"))
    clean, network = slices.latents(range(len(slices))), generator.denoiser.train().requires_grad_(True)
    conditions = generator.conditions(list(slices))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(150):
        sigma = torch.empty(len(clean)).uniform_(0.2, 1.0)
        noisy = clean + sigma.view(-1, 1, 1, 1) * torch.randn_like(clean)
        output = network(noisy, sigma, conditions.tokens, conditions.mask, conditions.pooled)
        loss = (output - perfect_output(clean, sigma, noisy)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval().requires_grad_(False)
    return generator


def test_training_cases_of_a_generator_that_learnt_them_by_heart_are_recognised(latents):
    result = measure_membership(memorising_generator(latents), latents, bootstraps=50)
    assert (result["training"], result["held_out"]) == (24, 12)
    assert result["auc"]["value"] > 0.8  # 0.98 on one processor
    assert result["auc"]["low"] > measure_membership(tiny_generator(), latents, bootstraps=50)["auc"]["value"]
    assert all(training < held_out for training, held_out in result["losses"].values())


def test_latents_of_another_autoencoder_are_refused(real, tmp_path):
    other = tiny_autoencoder()
    other.network.encoder.conv_in.weight.data += 0.1
    other.save_pretrained(tmp_path / "autoencoder")
    prepare_latents(real, tmp_path / "latents", tmp_path / "autoencoder")
    with pytest.raises(ValueError, match="give the latents that it was trained on"):
        measure_membership(tiny_generator(), tmp_path / "latents")


def facts_of(latents: Path, **chosen) -> dict:
    record = load(latents).record
    return {
        "data": {"fingerprint": record["fingerprint"]},
        "derived_from": record["derived_from"],
        "chosen": {"withheld": [], "publishable": True, "masks": False} | chosen,
    }


def test_membership_is_measured_on_what_the_generator_learned_from(real, samples, latents, tmp_path):
    generator = tiny_generator(facts=facts_of(latents, withheld=["Stroke"]))
    result = measure_membership(generator, latents, bootstraps=20)
    assert (result["training"], result["held_out"]) == (20, 10)  # of 24 and 12, of which one in six has a stroke
    prepare_latents(samples, tmp_path / "latents", latents.parent / "autoencoder")
    with pytest.raises(ValueError, match="give the latents that it was trained on"):
        measure_membership(generator, tmp_path / "latents")
    with pytest.raises(ValueError, match="was trained with masks"):
        measure_membership(tiny_generator(facts=facts_of(latents, masks=True)), latents)
    masked = measure_membership(tiny_generator(facts=facts_of(latents, masks=True)), latents, real, bootstraps=20)
    assert masked["training"] == 24


def test_the_command_writes_a_page_that_loads_nothing(radfm, real, samples, latents, tmp_path):
    out, generator = tmp_path / "sharing", save(tiny_generator(), tmp_path / "generator")
    arguments = ("--real", real, "--model", MODEL_NAME, "--bootstraps", 20)
    membership = ("--generator", generator, "--latents", latents)
    status, shown, error = radfm("evaluate", "sharing", samples, *arguments, *membership, "--out", out)
    assert (status, error) == (0, "")
    assert "10 samples, 24 training slices, 24 real slices of the test split" in shown
    assert "does not say that it is synthetic" in shown
    result = json.loads((out / "sharing.json").read_text())
    assert result["autoencoder"] == tiny_generator().autoencoder.fingerprint
    assert "samples as close as a copy" in shown
    assert 0 <= result["membership"]["auc"]["value"] <= 1
    page = (out / "sharing.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert "Membership inference" in page
    assert "as the generator's autoencoder reconstructs them" in page
    with Image.open(out / "samples.png") as grid:
        assert grid.width > grid.height / 2
    status, shown, _ = radfm("evaluate", "sharing", samples, *arguments, "--out", out)
    assert "samples with the pixels of a training slice" in shown
    assert json.loads((out / "sharing.json").read_text())["spaces"][PIXELS]["copies"] == 2
    with open(out / "samples.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (len(rows), rows[0]["pixels nearest case"], float(rows[0]["pixels distance"])) == (10, "c003", 0)
    status, again, _ = radfm("evaluate", "sharing", samples, *arguments, "--json")
    assert json.loads(again) == json.loads((out / "sharing.json").read_text())


def test_samples_of_a_generator_are_known_as_such_and_those_of_another_are_refused(radfm, real, latents, tmp_path):
    context = ["MRI", "axial", "brain", 4]
    facts = {"known": {"Glioma": 4}, "contexts": {"": [context], "Glioma": [context]}}
    generator, other = tiny_generator(facts=facts), tiny_generator("dit")
    made_by = save(generator, tmp_path / "generator")
    prepare(Synthetic(made_by, ["Glioma"], 4, steps=2), tmp_path / "samples", Settings(size=16))
    result = measure_sharing(find_neighbours(tmp_path / "samples", real, MODEL_NAME), bootstraps=20)
    assert result["synthetic"]
    assert result["samples"] == 4
    assert result["spaces"][PIXELS]["copies"] == 0
    arguments = ("--real", real, "--model", MODEL_NAME, "--latents", latents)
    entry = load(tmp_path / "samples").record["synthetic"]
    assert entry["trained_on"] == {"fingerprint": None, "derived_from": None}
    of_other = ("--generator", save(other, tmp_path / "other"))
    status, _, error = radfm("evaluate", "sharing", tmp_path / "samples", *arguments, *of_other)
    assert status != 0
    assert f"holds samples of generator {generator.fingerprint}" in " ".join(error.split())


def test_samples_of_a_generator_of_other_data_are_refused(real, samples, latents, tmp_path):
    context = ["MRI", "axial", "brain", 4]
    facts = {"known": {"Glioma": 4}, "contexts": {"Glioma": [context]}} | facts_of(latents)
    generator = save(tiny_generator(facts=facts), tmp_path / "generator")
    prepare(Synthetic(generator, ["Glioma"], 2, steps=2), tmp_path / "samples", Settings(size=16))
    with pytest.raises(ValueError, match="compare with what it learned from"):
        find_neighbours(tmp_path / "samples", samples, MODEL_NAME)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda real, samples, latents, generator: (real,), "are the same data set"),
        (lambda real, samples, latents, generator: (latents,), "holds latents: give the data set of their pictures"),
        (lambda real, samples, latents, generator: (samples, "--latents", latents), "needs both --generator and"),
        (
            lambda real, samples, latents, generator: (samples, "--latents", latents, "--generator", generator),
            "was not made of",
        ),
    ],
)
def test_folders_that_do_not_belong_together_are_one_line(wrong, message, radfm, real, samples, tmp_path):
    generator = save(tiny_generator(), tmp_path / "generator")
    prepare_latents(samples, tmp_path / "latents", generator / "autoencoder")
    arguments = wrong(real, samples, tmp_path / "latents", generator)
    status, _, error = radfm("evaluate", "sharing", *arguments, "--real", real, "--model", MODEL_NAME)
    assert status != 0
    assert message in " ".join(error.split())
    assert "Traceback" not in error
