"""Generators: samples follow from prompt and seed, and the preconditioning is EDM's."""

import pytest
import torch

from radfm.latents.conditions import TextConditions
from radfm.latents.denoisers import Denoiser, denoised, perfect_output
from radfm.latents.generator import SETTINGS, Generator, Prompt
from tests.tiny_generator import WIDTH, save, tiny_generator

PROMPTS = [
    Prompt(["Pneumothorax"], "X-ray", "frontal", "chest"),
    Prompt(["Rib fracture", "Pneumothorax"], "CT"),
    Prompt((), "MRI", body_part="knee"),
]


@pytest.fixture(scope="module")
def generator():
    return tiny_generator(
        facts={"known": {"Pneumothorax": 7, "Meniscus tear": 2}, "contexts": {"": [["CT", None, None, 3]]}}
    )


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_sample_does_not_depend_on_its_batch(kind):
    generator = tiny_generator(kind)
    together = generator.sample(PROMPTS, [5, 6, 7], steps=3)
    assert together.shape == (3, 4, 8, 8)
    assert together.isfinite().all()
    for row, prompt in enumerate(PROMPTS):
        alone = generator.sample([prompt], [5 + row], steps=3)
        torch.testing.assert_close(alone[0], together[row], atol=1e-3, rtol=1e-3)


def test_samples_differ_by_seed_and_by_prompt(generator):
    samples = generator.sample([*PROMPTS[:2], PROMPTS[0]], [0, 0, 1], steps=3)
    assert not torch.allclose(samples[0], samples[1], atol=1e-3)
    assert not torch.allclose(samples[0], samples[2], atol=1e-1)


def test_an_untrained_network_of_zeros_denoises_as_theory_says():
    """Without a network the best estimate of normal data of deviation 0.5 is the noisy latent, scaled."""
    noisy, sigma = torch.randn(5, 4, 8, 8), torch.tensor([0.01, 0.1, 0.5, 2.0, 80.0])
    expected = noisy * (0.25 / (0.25 + sigma**2)).view(-1, 1, 1, 1)
    torch.testing.assert_close(denoised(noisy, sigma, torch.zeros_like(noisy)), expected)


def test_the_perfect_output_gives_the_latents_and_no_loss(generator):
    latents, sigma = torch.randn(3, 4, 8, 8) / 2, torch.tensor([0.1, 1.0, 5.0])
    noisy = latents + sigma.view(-1, 1, 1, 1) * torch.randn_like(latents)
    output = perfect_output(latents, sigma, noisy)
    torch.testing.assert_close(denoised(noisy, sigma, output), latents, atol=1e-4, rtol=1e-4)
    assert output.square().mean() == pytest.approx(1, abs=0.3)  # the targets of all levels have the same variance


def test_the_loss_of_a_latent_follows_from_its_seed(generator):
    latents = torch.randn(2, 4, 8, 8)
    together = generator.loss(latents, PROMPTS[:2], 0.5, [3, 4])
    assert together.shape == (2,)
    torch.testing.assert_close(generator.loss(latents[1:], PROMPTS[1:2], 0.5, [4]), together[1:], atol=1e-4, rtol=1e-4)
    assert generator.loss(latents[1:], PROMPTS[1:2], 0.5, [5]) != together[1]


def test_little_noise_is_nearly_the_latent(generator):
    latents = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(generator.denoise(latents, 0.002, PROMPTS[:2]), latents, atol=0.02, rtol=0.02)


def test_unknown_and_no_disorders_are_different_prompts():
    conditions = TextConditions("radfm-text-mini")([Prompt(()), Prompt(None), Prompt(["Pneumothorax", "Gout"])])
    assert conditions.tokens.shape == (3, 5, WIDTH)
    assert conditions.mask.sum(1).tolist() == [4, 4, 5]
    assert not torch.allclose(conditions.pooled[0], conditions.pooled[1])
    torch.testing.assert_close(conditions.pooled[2, :WIDTH], conditions.tokens[2, :2].mean(0))


def test_a_saved_generator_is_the_same(generator, tmp_path):
    again = Generator.from_pretrained(save(generator, tmp_path / "generator"))
    assert again.fingerprint == generator.fingerprint
    assert (again.known, again.contexts) == (generator.known, {"": [("CT", None, None, 3)]})
    first, second = (one.sample(PROMPTS, [0, 1, 2], steps=3) for one in (generator, again))
    assert torch.equal(first, second)
    assert {file.suffix for file in (tmp_path / "generator").rglob("*") if file.is_file()} == {".json", ".safetensors"}


def test_the_nearest_known_disorder_is_found_by_its_name(generator):
    assert generator.nearest_known("Collapsed lung") == "Pneumothorax"


def test_a_folder_without_a_generator_or_with_a_damaged_one_is_refused(generator, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Generator.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=SETTINGS):
        Generator.from_pretrained(tmp_path)
    folder = save(generator, tmp_path / "generator")
    (folder / "denoiser" / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="damaged generator"):
        Generator.from_pretrained(folder)


def test_a_wrong_kind_or_argument_of_a_network_is_named():
    with pytest.raises(ValueError, match="use one of unet, dit"):
        Denoiser("gan", (4, 8, 8), WIDTH)
    with pytest.raises(ValueError, match="blocks"):
        Denoiser("unet", (4, 8, 8), WIDTH, {"blocks": 3})
    with pytest.raises(ValueError, match="reads no latents of the shape"):
        Denoiser("unet3d", (4, 8, 8), WIDTH)


def test_a_volume_denoiser_reads_volumes():
    denoiser = Denoiser("unet3d", (4, 4, 8, 8), WIDTH, {"channels": [16, 16]})
    conditions = TextConditions("radfm-text-mini")([Prompt(["Gout"], "CT"), Prompt(["Gout", "Rib fracture"], "CT")])
    inputs = torch.randn(2, 4, 4, 8, 8), torch.tensor([0.5, 2.0])
    assert denoiser(*inputs, conditions.tokens, conditions.mask, conditions.pooled).shape == (2, 4, 4, 8, 8)
