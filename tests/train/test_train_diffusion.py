"""Training a generator: it learns, resumes to the same weights, and refuses what does not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import AutoencoderKL
from safetensors.torch import load_file

from radfm.data_prep import load
from radfm.data_prep.latent_slices import LatentSlices
from radfm.data_prep.latents import prepare_latents
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.latents.autoencoders import Autoencoder, AutoencoderSettings
from radfm.latents.conditions import TextConditions
from radfm.latents.denoisers import Denoiser
from radfm.latents.generator import WEIGHTS, Generator
from radfm.recipes_radfm import AUTOENCODER_RECIPE
from radfm.train.config import configured
from radfm.train.diffusion import train
from radfm.train.diffusion_config import DiffusionTraining, StepsSection
from radfm.train.diffusion_trainer import DiffusionTrainer
from radfm.train.step_checkpoints import load_checkpoint
from tests.tiny_generator import TINY_UNET, WIDTH, tiny_autoencoder

STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Phantoms, their latents, and the autoencoder."""
    folder = tmp_path_factory.mktemp("diffusion")
    prepare(
        Phantoms(24, size=32), folder / "phantoms", Settings(size=32, cases_per_shard=12, fractions=(0.6, 0.2, 0.2))
    )
    tiny_autoencoder().save_pretrained(folder / "autoencoder")
    prepare_latents(folder / "phantoms", folder / "latents", folder / "autoencoder")
    return folder


def config(folder: Path, output: Path, *changes: str) -> DiffusionTraining:
    content = {
        "output": str(output),
        "data": {"path": str(folder / "latents")},
        "model": {"autoencoder": str(folder / "autoencoder"), "arguments": TINY_UNET | {"dropout": 0.1}},
        "training": {"max_steps": STEPS, "batch_size": 8, "warmup_steps": 2, "save_steps": 4, "eval_steps": 4},
    }
    return configured(DiffusionTraining, content, ["training.logging_steps=2", *changes])


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    return train(config(folder, folder / "run"))


def test_a_training_gives_a_generator_with_recipe_and_card(folder, trained):
    generator = Generator.from_pretrained(trained)
    cases = load(folder / "latents", "train")
    slices = LatentSlices(cases)
    assert generator.known == slices.known
    assert sum(count for *_, count in generator.contexts.get("", [])) == sum(
        prompt.disorders == () for prompt in slices
    )
    assert generator.autoencoder.fingerprint == cases.record["latents"]["autoencoder"]
    assert generator.sample([slices[0]], [0], steps=2).isfinite().all()
    recipe = json.loads((trained / "radfm_diffusion.json").read_text())
    assert [entry["step"] for entry in recipe["log"]] == [2, 4, 6, 8]
    assert [entry["step"] for entry in recipe["log"] if "validation" in entry] == [4, 8]
    card = (trained / "README.md").read_text()
    for text in ("Research use only, not a medical device", "**synthetic**", "radfm phantoms", *list(slices.known)[:3]):
        assert text in card


def test_terms_of_the_autoencoder_s_data_are_terms_of_the_samples(folder, tmp_path):
    shutil.copytree(folder / "autoencoder", tmp_path / "autoencoder")
    data = {"title": "The archive", "licence": "CC BY-NC 4.0", "citation": "The archive's paper", "unpublishable": 3}
    (tmp_path / "autoencoder" / AUTOENCODER_RECIPE).write_text(json.dumps({"data": data}))
    changes = (f"model.autoencoder={tmp_path / 'autoencoder'}", "training.max_steps=1", "data.publishable=false")
    run = train(config(folder, tmp_path / "run", *changes))
    facts, record = Generator.from_pretrained(run).facts, load(folder / "latents").record
    assert facts["publish"] is False
    assert "CC BY-NC 4.0" in facts["licence"]
    assert "The archive's paper" in facts["attribution"]
    assert facts["derived_from"] == record["derived_from"] == load(folder / "phantoms").record["fingerprint"]
    assert facts["chosen"] == {"withheld": [], "publishable": False, "masks": False}
    assert "| The archive, licence CC BY-NC 4.0; with cases that a published" in (run / "README.md").read_text()


def test_a_killed_run_resumes_to_the_same_weights(folder, trained, tmp_path):
    saved = "training.save_steps=5"  # between two entries of the log
    with pytest.raises(KeyboardInterrupt):
        _train_until(config(folder, tmp_path / "run", saved), step=6)
    assert load_checkpoint(tmp_path / "run")["step"] == 5
    with pytest.raises(ValueError, match="a run with other data or settings"):
        train(config(folder, tmp_path / "run", "seed=1"))
    again = train(config(folder, tmp_path / "run", saved))
    first, second = (load_file(run / WEIGHTS) for run in (trained, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    recipes = [json.loads((run / "radfm_diffusion.json").read_text()) for run in (trained, again)]
    assert recipes[0]["log"] == recipes[1]["log"]
    assert recipes[1]["effort"]["resumed"]


def _train_until(settings: DiffusionTraining, step: int) -> None:
    one_step = DiffusionTrainer._one_step

    def killed(trainer):
        if trainer.step == step:
            raise KeyboardInterrupt
        return one_step(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionTrainer, "_one_step", killed)
        train(settings)


def test_a_run_that_has_ended_stays_as_it_is(folder, trained):
    before = (trained / WEIGHTS).stat().st_mtime_ns
    train(config(folder, folder / "run"))
    assert (trained / WEIGHTS).stat().st_mtime_ns == before


def test_a_folder_of_another_run_is_refused(folder, trained):
    with pytest.raises(ValueError, match="a generator of other data or settings"):
        train(config(folder, trained, "seed=1"))


def test_accumulated_steps_are_those_of_one_batch(folder, trained, tmp_path):
    """Without dropout, whose masks depend on the parts."""
    changes = ("training.max_steps=2", f"model.arguments={json.dumps(TINY_UNET)}")
    whole = train(config(folder, tmp_path / "whole", *changes))
    parts = train(config(folder, tmp_path / "parts", *changes, "training.gradient_accumulation_steps=4"))
    # Losses and not weights: Adam moves a weight by its whole step where rounding turns the sign of a tiny gradient.
    logs = [json.loads((run / "radfm_diffusion.json").read_text())["log"] for run in (whole, parts)]
    for first, second in zip(*logs, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-3)
        assert first["validation"] == pytest.approx(second["validation"], rel=1e-3)
    with pytest.raises(ValueError, match="cannot be split into 3 equal parts"):
        train(config(folder, tmp_path / "odd", "training.gradient_accumulation_steps=3"))


def test_the_loss_of_eight_latents_falls(folder, tmp_path):
    slices = LatentSlices(load(folder / "latents", "train"))
    slices._places, slices._prompts, slices._all = slices._places[:8], slices._prompts[:8], slices._all[:8]
    steps = StepsSection(
        max_steps=60, batch_size=16, warmup_steps=5, learning_rate=3e-3, logging_steps=10, eval_steps=60
    )
    torch.manual_seed(0)
    denoiser = Denoiser("unet", slices.shape, WIDTH, TINY_UNET)
    trainer = DiffusionTrainer(
        denoiser, TextConditions("radfm-text-mini"), slices, slices, steps, 0.0, 0, tmp_path, "eight"
    )
    before = trainer.validation_loss()
    trainer.train()
    assert trainer.log[-1]["validation"] < 0.7 * before


def test_the_autoencoder_of_other_latents_is_refused(folder, tmp_path):
    other = tiny_autoencoder()
    with torch.no_grad():
        other.network.decoder.conv_out.bias += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="holds latents of the autoencoder"):
        train(config(folder, tmp_path / "run", f"model.autoencoder={tmp_path / 'other'}"))
    with pytest.raises(ValueError, match="holds no latents"):
        train(config(folder, tmp_path / "run", f"data={folder / 'phantoms'}"))


def test_a_loss_that_is_not_finite_ends_the_run(folder, tmp_path):
    with pytest.raises(ValueError, match="the loss is not finite in step"):
        train(config(folder, tmp_path / "run", "training.learning_rate=1e30"))


def test_masks_say_what_a_slice_shows(folder):
    everything, masks = load(folder / "latents"), load(folder / "phantoms")
    plain, masked = LatentSlices(everything), LatentSlices(everything, masks)
    assert [prompt.modality for prompt in plain] == [prompt.modality for prompt in masked]
    for row, (slice_of_case, shown) in enumerate(zip(plain, masked, strict=True)):
        assert set(shown.disorders) <= set(slice_of_case.disorders)
        scan, index = masked._places[row]
        on_slice = {name for name, mask in masks.masks(scan).items() if mask[index].any()}
        assert on_slice & set(slice_of_case.disorders) <= set(shown.disorders)
    assert sum(masked.known.values()) < sum(plain.known.values())
    with pytest.raises(ValueError, match="were not made of"):
        LatentSlices(everything, everything)


def test_rare_disorders_are_chosen_more_often(folder):
    slices = LatentSlices(load(folder / "latents", "train"))
    rarest = min(slices.known, key=slices.known.get)
    has_it = [rarest in prompt.disorders for prompt in slices]
    even, by_disorder = slices.weights(0), slices.weights(0.5)
    assert even.sum() == pytest.approx(1)
    assert by_disorder.sum() == pytest.approx(1)
    assert by_disorder[has_it].sum() > even[has_it].sum()


def test_a_wrong_key_or_value_is_named():
    with pytest.raises(ValueError, match=r"training\.steps: no such key"):
        configured(DiffusionTraining, {"training": {"steps": 3}})
    with pytest.raises(ValueError, match="'unet', 'dit', 'unet3d'"):
        configured(DiffusionTraining, {"model": {"denoiser": "gan"}})


def test_a_generator_of_volumes_is_trained_and_sampled(radfm, folder, tmp_path):
    settings = AutoencoderSettings(
        size=16, spatial_dims=3, mean=[0.0] * 4, std=[0.5] * 4,
        volume={"size": [8, 16, 16], "spacing_mm": [20, 12, 12], "least_slices": 1},
        monai={"spatial_dims": 3, "in_channels": 1, "out_channels": 1, "latent_channels": 4, "channels": [8, 8],
               "num_res_blocks": 1, "norm_num_groups": 4, "attention_levels": [False, False],
               "with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False},
    )  # fmt: skip
    torch.manual_seed(0)
    Autoencoder(AutoencoderKL(**settings.monai), settings).save_pretrained(tmp_path / "autoencoder")
    shape = prepare_latents(folder / "phantoms", tmp_path / "latents", tmp_path / "autoencoder")["latents"]
    assert (shape["channels"], shape["size"]) == (4, [4, 8, 8])
    changes = (f"data.path={tmp_path / 'latents'}", f"model.autoencoder={tmp_path / 'autoencoder'}")
    changes += ("model.denoiser=unet3d", "model.arguments={channels: [16, 16]}", "training.max_steps=2")
    run = train(config(folder, tmp_path / "run", *changes))
    generator = Generator.from_pretrained(run)
    assert generator.shape == (4, 4, 8, 8)
    disorder = next(iter(generator.known))
    arguments = ("--model", run, "--disorders", disorder, "--per-disorder", 2, "--steps", 2, "--no-comparison")
    status, _, error = radfm("prepare", "synthetic", tmp_path / "samples", *arguments, "--processes", 1)
    assert status == 0, error
    cases = load(tmp_path / "samples")
    first, second = (cases.scan(row["scan_rows"][0]) for row in cases.rows)
    assert first.pixels.shape == second.pixels.shape == (8, 16, 16)
    assert first.spacing_mm == (20, 12, 12)
    assert not np.array_equal(first.pixels, second.pixels)
    assert "one volume" in (run / "README.md").read_text()
