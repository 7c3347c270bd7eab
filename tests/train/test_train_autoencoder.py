"""Training an autoencoder: it learns, resumes, and measures what it keeps."""

import json

import pytest
import torch
from safetensors.torch import load_file

from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.latents import Autoencoder
from radfm.recipes_radfm import AUTOENCODER_RECIPE
from radfm.train.autoencoder import train
from radfm.train.autoencoder_config import read_autoencoder_config
from radfm.train.autoencoder_loop import AutoencoderLoop, PerceptualDistance
from radfm.train.step_checkpoints import FILE

SMALL = ("model.size=32", "model.channels=[8,8]", "model.latent_channels=4", "training.batch_size=2")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    prepare(Phantoms(16, size=32), folder, Settings(size=32, max_slices=8, fractions=(0.6, 0.4, 0.0)))
    return folder


def config(data, output, *changes):
    steps = (
        "training.max_steps=6",
        "training.save_steps=2",
        "training.eval_steps=3",
        "training.warmup_steps=1",
        "objectives.adversarial_from=0.5",
    )
    return read_autoencoder_config("autoencoder.yaml", [f"data={data}", f"output={output}", *SMALL, *steps, *changes])


def test_the_result_is_an_autoencoder_with_a_recipe(data, tmp_path):
    folder = train(config(data, tmp_path / "out"))
    autoencoder = Autoencoder.from_pretrained(folder)
    assert (autoencoder.size, autoencoder.factor, autoencoder.channels) == (32, 2, 4)
    assert autoencoder.is_measured
    recipe = json.loads((folder / AUTOENCODER_RECIPE).read_text())
    assert recipe["fingerprint"] == autoencoder.fingerprint
    first, last = recipe["history"]
    assert "discriminator" in last  # from step 3 on
    assert "discriminator" not in first
    assert recipe["validation"]["all"]["psnr"] > 0
    assert {"CT", "MRI", "all"} <= recipe["validation"].keys()
    assert not (folder / FILE).exists()
    before = (folder / "config.json").stat().st_mtime_ns
    assert train(config(data, tmp_path / "out")) == folder  # has ended
    assert (folder / "config.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds the result of another configuration"):
        train(config(data, tmp_path / "out", "seed=1"))


def test_it_is_trained_after_another_training_in_the_same_process(data, tmp_path):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    Accelerator(cpu=True, mixed_precision="bf16")
    assert Autoencoder.from_pretrained(train(config(data, tmp_path / "out", "training.max_steps=1"))).is_measured


def test_a_killed_run_resumes_to_the_same_weights(data, tmp_path, monkeypatch):
    whole = train(config(data, tmp_path / "whole"))
    step = AutoencoderLoop._train_step

    def killed(self, pictures):
        if self.step == 5:
            raise KeyboardInterrupt
        return step(self, pictures)

    given = config(data, tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderLoop, "_train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(given)
    assert (tmp_path / "killed" / FILE).exists()
    other = config(data, tmp_path / "killed", "training.learning_rate=1.0e-4")
    with pytest.raises(ValueError, match="holds a run with another configuration"):
        train(other)
    elsewhere = tmp_path / "elsewhere" / data.name
    prepare(Phantoms(16, size=32, seed=1), elsewhere, Settings(size=32, max_slices=8, fractions=(0.6, 0.4, 0.0)))
    with pytest.raises(ValueError, match="holds a run with another configuration or data set"):
        train(config(elsewhere, tmp_path / "killed"))
    resumed = train(config(data, tmp_path / "killed"))
    weights = [load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (whole, resumed)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    histories = [json.loads((f / AUTOENCODER_RECIPE).read_text())["history"] for f in (whole, resumed)]
    assert histories[0] == histories[1]


def test_pictures_are_learned(data, tmp_path):
    changes = ("training.max_steps=40", "training.eval_steps=20", "objectives.adversarial=0", "training.batch_size=4")
    folder = train(config(data, tmp_path / "out", *changes, "training.learning_rate=3.0e-3"))
    history = json.loads((folder / AUTOENCODER_RECIPE).read_text())["history"]
    assert history[-1]["reconstruction"] < 0.8 * history[0]["reconstruction"]


def test_volumes_are_learned_too(data, tmp_path):
    volume = "model.volume={size: [8, 32, 32], spacing_mm: [20, 6, 6]}"
    folder = train(config(data, tmp_path / "out", "model.spatial_dims=3", volume, "training.max_steps=2"))
    autoencoder = Autoencoder.from_pretrained(folder)
    assert autoencoder.spatial_dims == 3
    assert autoencoder.is_measured


def test_an_autoencoder_is_trained_on(data, tmp_path):
    first = train(config(data, tmp_path / "first", "training.max_steps=2"))
    second = train(config(data, tmp_path / "second", f"model.checkpoint={first}", "training.max_steps=1"))
    weights = [load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    assert not all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))


def test_what_a_classifier_loses_is_measured(data, tmp_path):
    folder = train(config(data, tmp_path / "out", "training.max_steps=1", "classifier=radfm-phantom-mini"))
    measured = json.loads((folder / AUTOENCODER_RECIPE).read_text())["classifier"]
    assert measured["model"] == "radfm-phantom-mini"
    assert measured["auc_reconstructions"] != measured["auc_images"]
    assert 0 <= measured["auc_reconstructions"] <= 1
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert not list(folder.rglob("*.arrow"))  # no picture of a case stays in the folder of the model


def test_the_perceptual_distance_is_zero_for_the_same_picture_and_grows_with_blur():
    distance = PerceptualDistance()
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    blurred = [torch.nn.functional.avg_pool2d(pictures, k, 1, k // 2) for k in (3, 7)]
    assert distance(pictures, pictures) == 0
    assert 0 < distance(blurred[0], pictures) < distance(blurred[1], pictures)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.size=33", "need a multiple of 2"),
        ("model.spatial_dims=3", "a 3D autoencoder needs size and spacing_mm"),
        ("training.batch_size=0", "batch_size"),
    ],
)
def test_a_wrong_configuration_is_refused_with_one_line(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, tmp_path / "out", change)
