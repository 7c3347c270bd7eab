"""`radfm evaluate learnability` and `radfm evaluate augmentation`: what is trained, what is compared, what resumes."""

import json
import os
import shutil
import threading
from pathlib import Path

import diffusers
import numpy as np
import pytest
from filelock import FileLock

from radfm.data_prep import load
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.eval.diagnosis import compare
from radfm.eval.paired_macros import PairedMacros, share
from radfm.eval.scores import Scores
from radfm.train.config import configured
from radfm.train.diagnosis_config import DiagnosisTraining, read_diagnosis_config
from radfm.train.learnability import SPACES
from radfm.train.studies import Run, finish_runs
from radfm.train.tower_cost import tower_cost, widened_to
from tests.waiting import TIMEOUT, wait_until

SIZE = 32
NO_LAYERS = {"num_hidden_layers": 0}
BRIEF = {"max_steps": 1, "save_steps": 1, "eval_strategy": "no", "bf16": False, "report_to": [], "disable_tqdm": True}


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "knees"
    prepare(Phantoms(300, 0, SIZE, "knee"), folder, Settings(size=SIZE, fractions=(0.5, 0.1, 0.4), max_slices=2))
    return folder


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "made"
    prepare(Phantoms(40, 1, SIZE, "knee"), folder, Settings(size=SIZE, fractions=(1.0, 0.0, 0.0), max_slices=2))
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder") / "small"
    sides = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    network = diffusers.AutoencoderKL(
        latent_channels=4, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, sample_size=SIZE, **sides
    )
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, text_encoder) -> Path:
    """A configuration as a file, of a small ConvNeXt that takes one step."""
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    architecture = {"vision_config": {"tower": "test_convnext"}, "scan_config": NO_LAYERS, "case_config": NO_LAYERS}
    content = {
        "model": {"text_encoder": str(text_encoder), "architecture": architecture | {"hidden_size": 32}},
        "objectives": {"weights": {"key_slice": 0}, "label_smoothing": 0},
        "sampling": {"slices_per_step": 8, "slices_per_scan": 1},
        "augmentation": {"drop_scans": 0},
        "training": BRIEF,
    }
    file.write_text(json.dumps(content))  # JSON is YAML
    return file


@pytest.fixture(scope="module")
def study(tmp_path_factory, real, autoencoder, recipe) -> Path:
    from radfm.train.learnability import learnability

    out = tmp_path_factory.mktemp("study") / "learnability"
    learnability(real, {"small": autoencoder}, out, read_diagnosis_config(recipe), seeds=1, bootstraps=20)
    return out


def test_one_classifier_is_trained_in_each_space_and_compared_with_the_others(study, real):
    result = json.loads((study / "learnability.json").read_text())
    assert (result["data"], result["synthetic"]) == (load(real).record["fingerprint"], True)
    assert result["cases"] == len(load(real, "test"))
    one = result["autoencoders"]["small"]
    assert list(one["spaces"]) == [space.name for space in SPACES]
    assert (one["size"], one["factor"], one["channels"]) == (SIZE, 2, 4)
    assert one["psnr"] > 0
    configs = {
        run.name: json.loads((run / "radfm_diagnosis.json").read_text())["config"]
        for run in (study / "runs").iterdir()
        if run.is_dir()
    }
    assert len(configs) == len(SPACES)
    distilled = configs["latents-distilled-small-0"]
    assert distilled["model"]["teacher"] == "images-32-0"
    assert distilled["objectives"]["weights"] == {"key_slice": 0, "diagnosis": 0.5, "distillation": 0.5}
    towers = {name: config["model"]["architecture"]["vision_config"] for name, config in configs.items()}
    arguments = {name: tower["tower_args"] for name, tower in towers.items() if tower["family"] == "latent"}
    assert {name: of["patch_size"] for name, of in arguments.items()} == {
        "latents-small-0": 4,
        "latents-stem-1-small-0": 1,
        "latents-equal-compute-small-0": 1,
        "latents-distilled-small-0": 4,
    }
    assert [name for name, of in arguments.items() if of["noise_conditioned"]] == ["latents-distilled-small-0"]
    for config in configs.values():  # what does not depend on the space
        assert config["training"] == BRIEF
        assert config["sampling"] == distilled["sampling"]
    page = (study / "learnability.html").read_text()
    assert "SYNTHETIC: no case of this data set is a patient." in page
    assert "Research use only, not a medical device." in page
    assert "latents, equal compute" in page


def test_figures_are_those_of_compare_and_differences_are_paired(study):
    tables = {file.stem: [Scores.load(file)] for file in sorted((study / "scores").glob("*.parquet"))}
    for of_space in tables.values():
        of_space[0].about["data"] = "the data set that all were derived from"
    names = ["images-32-0", "latents-small-0"]
    expected = compare({name: tables[name] for name in names}, bootstraps=20)
    macros = PairedMacros(tables, bootstraps=20)
    result = json.loads((study / "learnability.json").read_text())["autoencoders"]["small"]
    for name in names:
        assert macros.auc(name)["all"] == pytest.approx(expected["models"][name]["macro"]["auc"]["all"])
    difference = expected["differences"]["latents-small-0"]["macro"]["auc"]["all"]
    assert macros.difference("latents-small-0", "images-32-0")["all"] == pytest.approx(difference, abs=1e-6)
    assert result["spaces"]["latents"]["less_images"]["all"] == pytest.approx(difference, abs=1e-6)


def test_a_killed_study_trains_what_is_missing_alone_and_another_recipe_is_refused(
    study, real, autoencoder, recipe, radfm, tmp_path
):
    out = tmp_path / "copy"
    shutil.copytree(study, out)
    (out / "scores" / "latents-small-0.parquet").unlink()  # as if it had been killed while it scored
    shutil.rmtree(out / "runs" / "latents-small-0")
    before = {file: file.stat().st_mtime_ns for file in out.rglob("model.safetensors")}
    command = ("evaluate", "learnability", real, "--autoencoder", f"small={autoencoder}", "--out", out)
    status, printed, _ = radfm(*command, "--config", recipe, "--seeds", 1, "--bootstraps", 20, "--json")
    assert status == 0
    assert (out / "runs" / "latents-small-0" / "model.safetensors").exists()
    assert not list(out.rglob("checkpoint-*"))
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert json.loads(printed) == json.loads((study / "learnability.json").read_text())
    # Another recipe would give other results in the same folder.
    status, _, error = radfm(*command, "--config", recipe, "--seeds", 1, "training.max_steps=2")
    assert status == 1
    assert "holds a study with another config.training.max_steps" in error


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["model.architecture.vision_config.tower=resnet10t"], "the controls need the stem of a ConvNeXt"),
        (["augmentation.affine=0.5"], "latents have no pixels to augment"),
        (["model.checkpoint=somewhere"], "classifiers with random weights"),
    ],
)
def test_recipes_that_are_not_the_same_in_all_spaces_are_refused(changes, reason, real, autoencoder, recipe, radfm):
    command = ("evaluate", "learnability", real, "--autoencoder", autoencoder, "--out", "study", "--config", recipe)
    status, _, error = radfm(*command, *changes)
    assert status == 1
    assert reason in error
    assert not os.path.exists("study")


def test_share_of_a_gap_is_given_where_the_gap_is_clear_of_zero():
    gaps, gains = np.array([0.08, 0.10, 0.12]), np.array([0.02, 0.05, 0.09])
    found = share(0.05, 0.10, gains, gaps)
    assert found is not None
    assert found["value"] == pytest.approx(0.5)
    assert (found["low"], found["high"]) == pytest.approx((0.25 + 0.05 * 0.25, 0.75 - 0.05 * 0.25))
    assert share(-0.05, 0.10, -gains, gaps)["value"] == pytest.approx(-0.5)
    assert share(0.05, 0.01, gains, np.array([-0.08, 0.01, 0.10])) is None
    assert share(np.nan, np.nan, gains, np.full(3, np.nan)) is None


def test_the_control_of_equal_compute_costs_what_the_image_classifier_costs():
    images = {"family": "resnet", "tower": "convnext_atto", "image_size": 96}
    latents = {"family": "latent", "tower": "convnext_atto", "image_size": 12}
    latents["tower_args"] = {"in_chans": 8, "patch_size": 1}
    cost = tower_cost(images)
    network = 201e6  # 0.55 G multiplications and additions at 224 pixels (timm), times (96 / 224)^2, times two
    assert cost["flops"] == pytest.approx(network, rel=0.02)
    wide = widened_to(latents, cost["flops"])
    assert tower_cost(latents)["flops"] < 0.3 * cost["flops"]
    assert tower_cost(wide)["flops"] == pytest.approx(cost["flops"], rel=0.05)
    assert wide["tower_args"] | {"dims": None} == latents["tower_args"] | {"dims": None}


def test_synthetic_cases_are_compared_with_the_better_arm_without_them(real, synthetic, recipe, radfm, tmp_path):
    out = tmp_path / "study"
    command = ("evaluate", "augmentation", real, "--synthetic", synthetic, "--out", out, "--config", recipe)
    changes = ("augmentation.affine=0.5", "model.architecture.vision_config.image_size=32")
    status, printed, _ = radfm(*command, "--seeds", 1, "--bootstraps", 20, *changes)
    assert status == 0
    assert "SYNTHETIC: no case of this data set is a patient." in " ".join(printed.split())
    result = json.loads((out / "augmentation.json").read_text())
    assert {arm: one["synthetic_cases"] for arm, one in result["arms"].items()} == {
        "real": 0,
        "augmented": 0,
        "synthetic": len(load(synthetic, "train")),
    }
    configs = {
        arm: json.loads((out / "runs" / f"{arm}-0" / "radfm_diagnosis.json").read_text())["config"]
        for arm in result["arms"]
    }
    assert [config["augmentation"]["affine"] for config in configs.values()] == [0, 0.5, 0.5]
    assert [config["sampling"]["by_disorder"] for config in configs.values()] == [0, 0.3, 0.3]
    assert len({config["training"]["max_steps"] for config in configs.values()}) == 1
    best, arms = result["best_without"], result["arms"]
    assert arms[best]["auc"]["tail"]["value"] == max(arms[arm]["auc"]["tail"]["value"] for arm in ("real", "augmented"))
    gain = arms["synthetic"]["auc"]["tail"]["value"] - arms[best]["auc"]["tail"]["value"]
    assert arms["synthetic"]["less_best_without"]["tail"]["value"] == pytest.approx(gain, abs=1e-6)
    table = (out / "augmentation.md").read_text()
    assert f"| synthetic | {len(load(synthetic, 'train'))} |" in table
    assert "Research use only" in table

    modified = {file: file.stat().st_mtime_ns for file in out.rglob("model.safetensors")}
    status, _, _ = radfm(*command, "--seeds", 1, "--bootstraps", 20, *changes)
    assert status == 0
    assert {file: file.stat().st_mtime_ns for file in modified} == modified
    status, _, error = radfm(*command[:3], "--out", tmp_path / "other", "--config", recipe)
    assert status == 1
    assert "give --synthetic or --filtered" in error


def test_a_process_leaves_a_training_to_the_process_that_has_it_and_takes_the_next(study, tmp_path):
    """Finished trainings, so that there is nothing to compute: taking one is asking for its lock."""
    out = tmp_path / "copy"
    shutil.copytree(study, out)
    names = ["images-32-0", "latents-small-0"]
    runs = [Run(name, configured(DiagnosisTraining, {"output": str(out / "runs" / name)}), out) for name in names]
    taken, tables = [], {}
    other = FileLock(out / "runs" / f".{names[0]}.lock")
    worker = threading.Thread(target=lambda: tables.update(finish_runs(out, runs, lambda *done: taken.append(done))))
    with other:
        worker.start()
        wait_until(lambda: taken == [(1, 2)])
        assert worker.is_alive()
    worker.join(TIMEOUT)
    assert taken == [(1, 2), (2, 2)]
    assert sorted(tables) == names


def test_the_packaged_recipes_are_valid():
    for name in ("learnability.yaml", "augmentation.yaml"):
        assert isinstance(read_diagnosis_config(name), DiagnosisTraining)
    assert configured(DiagnosisTraining, {}).data.synthetic == []
