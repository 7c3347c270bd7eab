"""Known noise is added to slices and removed again."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_cases import PictureCase, data_set, smooth
from PIL import Image

from radfm.data_prep.latents import prepare_latents
from radfm.eval.denoising import (
    MEASURES,
    Denoising,
    Slice,
    measure_denoising,
    psnr_within,
    ssim_within,
    without_rician_bias,
)
from radfm.eval.predict import Evaluation
from radfm.latents.generator import Prompt
from tests.tiny_generator import save, tiny_autoencoder, tiny_generator

METHODS = ["noisy", "non-local means", "total variation", "wavelets", "autoencoder", "generator"]


def grey(modality: str, number: int = 0, level: float = 0.5) -> Slice:
    """An even slice, whose right half is padding."""
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[:, :32] = True
    return Slice(inside * torch.full((3, 64, 64), level), inside, 1, torch.ones(3), Prompt(None, modality), "p", number)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    cases = [
        PictureCase(smooth(seed), "train" if seed < 12 else "test", modality=modality)
        for seed in range(18)
        for modality in [("MRI", "X-ray", "ultrasound")[seed % 3]]
    ]
    return data_set(tmp_path_factory.mktemp("pictures") / "data", cases)


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> Path:
    return save(tiny_generator(), tmp_path_factory.mktemp("generator") / "generator")


@pytest.fixture(scope="module")
def study(pictures, generator) -> Denoising:
    evaluation = Evaluation(pictures, "test")
    return measure_denoising(evaluation, generator / "autoencoder", generator, strengths=(0.05, 0.4), bootstraps=20)


def test_noise_is_of_the_stated_kind_and_strength():
    x_ray, mri, ultrasound = (grey(modality) for modality in ("X-ray", "MRI", "ultrasound"))
    assert [one.kind for one in (x_ray, mri, ultrasound)] == ["Gaussian", "Rician", "speckle"]
    added = (x_ray.noisy(0.1) - x_ray.picture)[0]
    assert added[:, :32].std() == pytest.approx(0.1, abs=0.01)
    assert (added[:, 32:] == 0).all()  # padding
    air = grey("MRI", level=0.0).noisy(0.1)[0, :, :32]
    assert air.min() > 0
    assert air.square().mean() == pytest.approx(2 * 0.1**2, rel=0.1)  # of a Rayleigh distribution
    assert (ultrasound.noisy(0.1) - ultrasound.picture)[0, :, :32].std() == pytest.approx(0.05, abs=0.005)
    np.testing.assert_allclose(ultrasound.deviations(ultrasound.noisy(0.1), 0.1), [0.05], atol=0.005)


def test_the_mean_of_rician_noise_is_taken_off():
    for level in (0.0, 0.1, 0.3, 0.9):
        noisy = torch.stack([grey("MRI", number, level).noisy(0.1) for number in range(40)])[..., :32]
        estimate = without_rician_bias(noisy.mean().reshape(1), 0.1)
        assert float(estimate) == pytest.approx(level, abs=0.02 if level else 0.05)
    assert float(without_rician_bias(torch.ones(1), 0.01)) == pytest.approx(0.99995, abs=1e-5)


def test_noise_depends_on_the_slice_and_the_seed_and_grows_with_the_strength():
    first, second = grey("X-ray", 1), grey("X-ray", 2)
    assert torch.equal(first.noisy(0.1), grey("X-ray", 1).noisy(0.1))
    assert not torch.equal(first.noisy(0.1), second.noisy(0.1))
    assert not torch.equal(first.noisy(0.1), first.noisy(0.1, seed=1))
    torch.testing.assert_close(first.noisy(0.2) - first.picture, 2 * (first.noisy(0.1) - first.picture))


def test_windows_of_ct_get_the_same_noise_and_colours_their_own():
    ct = replace(grey("CT"), channels=3, scale=torch.tensor([0.25, 1.0, 0.2]))
    added = ct.noisy(0.1) - ct.picture
    torch.testing.assert_close(added[0], added[1] * 0.25)
    colour = replace(grey("dermoscopy"), channels=3)
    added = (colour.noisy(0.1) - colour.picture)[:, :, :32].flatten(1)
    assert torch.corrcoef(added).fill_diagonal_(0).abs().max() < 0.15


def test_psnr_and_ssim_are_measured_within_the_picture():
    one = grey("X-ray")
    outside = one.picture + 0.5 * ~one.inside
    assert psnr_within(outside[None], [one])[0] == 100
    darker = one.picture - 0.1 * one.inside
    assert psnr_within(darker[None], [one])[0] == pytest.approx(20)
    assert ssim_within(one.picture[None], [one])[0] == pytest.approx(1)
    assert ssim_within(one.noisy(0.2)[None], [one])[0] < 0.3


def test_classical_methods_remove_noise_and_what_wins_is_said(study):
    kinds = study.result["kinds"]
    assert list(kinds) == ["Gaussian", "Rician", "speckle"]
    assert kinds["Rician"]["modalities"] == {"MRI": 2}
    for of_kind in kinds.values():
        methods = of_kind["strengths"]["0.4"]["methods"]
        assert list(methods) == METHODS
        for name in ("total variation", "non-local means"):
            assert methods[name]["psnr"]["value"] > methods["noisy"]["psnr"]["value"]
        for one in of_kind["strengths"].values():
            for measure in MEASURES:
                best = one["best"][measure]
                assert one["methods"][best][measure]["value"] == max(
                    m[measure]["value"] for m in one["methods"].values()
                )
                assert set(one["best_less"][measure]) == {*METHODS} - {best}
                assert min(less["value"] for less in one["best_less"][measure].values()) >= 0
    gaussian = kinds["Gaussian"]["strengths"]["0.05"]["methods"]["noisy"]["psnr"]["value"]
    assert gaussian == pytest.approx(-20 * np.log10(0.05), abs=0.3)


def test_what_a_method_makes_of_a_slice_is_what_was_measured(study):
    of_kind = [one for one in study.slices if one.kind == "Rician"]
    estimates = [study.estimates(one, 0.4) for one in of_kind]
    for name, method in study.result["kinds"]["Rician"]["strengths"]["0.4"]["methods"].items():
        values = psnr_within(torch.stack([one[name] for one in estimates]), of_kind)
        assert values.mean() == pytest.approx(method["psnr"]["value"], abs=1e-3)


def test_the_command_writes_a_page_with_pictures_and_numbers(radfm, pictures, generator, tmp_path):
    arguments = ("evaluate", "denoising", pictures, "--autoencoder", generator / "autoencoder", "--strength", 0.3)
    arguments += ("--bootstraps", 20)
    status, shown, _ = radfm(*arguments, "--generator", generator, "--out", tmp_path / "out")
    assert status == 0
    assert "6 slices of 6 patients, test split, 16 pixels a side" in shown
    assert "0.3: by PSNR" in shown
    page = (tmp_path / "out" / "denoising.html").read_text()
    assert re.search(r"over kinds and strengths: by PSNR [\w -]+ \d.*; by SSIM [\w -]+ \d", page)
    assert all(name in page for name in (*METHODS, "Rician noise", "not a medical device"))
    assert "http" not in page.split("</style>")[1]
    with Image.open(tmp_path / "out" / "pictures.png") as figure:
        assert figure.width > 800
    result = json.loads((tmp_path / "out" / "denoising.json").read_text())
    status, shown, _ = radfm(*arguments, "--json")
    alone = json.loads(shown)
    assert alone["generator"] is None
    for kind, of_kind in alone["kinds"].items():
        for name, method in of_kind["strengths"]["0.3"]["methods"].items():
            assert method == result["kinds"][kind]["strengths"]["0.3"]["methods"][name]


def test_wrong_data_and_autoencoders_are_one_line(radfm, pictures, generator, tmp_path):
    autoencoder = generator / "autoencoder"
    prepare_latents(pictures, tmp_path / "latents", autoencoder)
    for given, message in (
        ((tmp_path / "latents", "--autoencoder", autoencoder), "holds latents, and an autoencoder reads pictures"),
        ((pictures, "--autoencoder", autoencoder, "--split", "validation"), "has no scan in its split 'validation'"),
    ):
        status, _, error = radfm("evaluate", "denoising", *given)
        assert status != 0
        assert message in error
    other = tiny_autoencoder()
    other.network.quant_conv.bias.data += 1
    other.save_pretrained(tmp_path / "other")
    status, _, error = radfm(
        "evaluate", "denoising", pictures, "--autoencoder", tmp_path / "other", "--generator", generator
    )
    assert status != 0
    assert "latents are of another autoencoder" in error
