"""Classifiers that read latents, with and without a teacher of images."""

import json
import shutil
from importlib.resources import files
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import yaml

from radfm import RadFMConfig, RadFMForDiagnosis, RadFMImageProcessor, RadFMProcessor
from radfm.data_prep import load
from radfm.data_prep.batches.augmentation import Augmentation
from radfm.data_prep.batches.case_dataset import CaseDataset, Sampling
from radfm.data_prep.batches.sampling import Sample
from radfm.data_prep.latents import prepare_latents, prepare_reconstructions
from radfm.data_prep.pictures import ct_window, slice_image
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.eval.predict import Evaluation, score
from radfm.latent_tower_radfm import ConditionedStage
from radfm.recipes_radfm import DIAGNOSIS_RECIPE
from radfm.train.config import configured
from radfm.train.diagnosis import train
from radfm.train.diagnosis_config import DiagnosisTraining, read_diagnosis_config
from radfm.train.teacher import teacher_logits

AUTOENCODER = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "mid_block_add_attention": False,
    "sample_size": 48,
}
LAYER = {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
PARTS = {"scan_config": LAYER, "case_config": LAYER, "hidden_size": 32}
TOWERS = {
    "latent": {"family": "latent", "tower": "test_convnext", "tower_args": {"patch_size": 1}},
    "images": {"tower": "test_resnet", "image_size": 48},
}
TRAINING = {"max_steps": 6, "save_steps": 3, "eval_steps": 3, "logging_steps": 1, "learning_rate": 1e-3, "bf16": False}
TRAINING |= {"warmup_steps": 0, "report_to": [], "disable_tqdm": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """A data set of images, and the latents and reconstructions of an autoencoder with random weights."""
    folder = tmp_path_factory.mktemp("data")
    sets = {name: folder / name for name in ("images", "latents", "reconstructions")}
    settings = Settings(size=48, max_slices=2, cases_per_shard=8, fractions=(0.6, 0.4, 0.0))
    prepare(Phantoms(24, size=48), sets["images"], settings)
    torch.manual_seed(0)
    diffusers.AutoencoderKL(**AUTOENCODER).save_pretrained(folder / "autoencoder")
    prepare_latents(sets["images"], sets["latents"], folder / "autoencoder")
    prepare_reconstructions(sets["images"], sets["reconstructions"], folder / "autoencoder")
    return sets


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def tiny(path: Path, output: Path, tower: str = "latent", **changes: dict) -> DiagnosisTraining:
    model = {"architecture": PARTS | {"vision_config": TOWERS[tower]}, "head": "linear"} | changes.get("model", {})
    sections = {
        "output": str(output),
        "data": {"path": str(path)} | changes.get("data", {}),
        "model": model,
        "objectives": {"weights": {"key_slice": 0.0} | changes.get("weights", {}), "label_smoothing": 0.0},
        "sampling": {"slices_per_step": 40, "slices_per_scan": 3},
        "augmentation": changes.get("augmentation", {"drop_scans": 0.1}),
        "training": TRAINING | changes.get("training", {}),
    }
    return configured(DiagnosisTraining, sections)


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory) -> Path:
    return train(tiny(data["images"], tmp_path_factory.mktemp("teacher") / "run", "images"))


def distilled(data: dict[str, Path], teacher: Path, output: Path, **changes: dict) -> DiagnosisTraining:
    given = {"data": {"reconstructions": str(data["reconstructions"])}, "model": {"teacher": str(teacher)}}
    return tiny(data["latents"], output, weights={"diagnosis": 0.5, "distillation": 0.5}, **given | changes)


def test_a_classifier_of_latents_is_trained_scored_and_resumed(data, teacher, tmp_path):
    config = distilled(data, teacher, tmp_path / "run")
    output = train(config)
    model, processor = RadFMForDiagnosis.from_pretrained(output), RadFMProcessor.from_pretrained(output)
    record = load(data["latents"]).record["latents"]
    assert processor.image_processor.latents == {"autoencoder": record["autoencoder"], "channels": 4}
    assert model.config.vision_config.image_size == record["size"][0] == 24
    stages = [module for module in model.modules() if isinstance(module, ConditionedStage)]
    assert len(stages) == 4
    assert all(stage.film.weight.abs().max() > 0 for stage in stages)
    recipe = json.loads((output / DIAGNOSIS_RECIPE).read_text())
    assert recipe["started_from"]["teacher"]["name"] == "run"
    scores = score(output, Evaluation(data["latents"], "validation"))
    assert np.isfinite(scores.scores).all()

    weights = (output / "model.safetensors").read_bytes()
    (output / "model.safetensors").unlink()
    shutil.rmtree(output / "checkpoint-6")
    train(config)
    assert (output / "model.safetensors").read_bytes() == weights


def test_the_teacher_sees_the_reconstructions_of_the_training_cases(data, teacher):
    cases = load(data["latents"], "train", labelled=True)
    logits = teacher_logits(str(teacher), data["reconstructions"], cases)
    expected = score(teacher, Evaluation(data["reconstructions"], "train"))
    assert [row["case_id"] for row in cases.rows] == expected.case_ids
    np.testing.assert_allclose(logits, expected.scores, atol=1e-5)
    of_images = score(teacher, Evaluation(data["images"], "train")).scores
    assert not np.allclose(logits, of_images, atol=1e-3)
    processor = RadFMProcessor(RadFMImageProcessor(size=24, latents=cases.record["latents"]))
    batch = CaseDataset(cases, processor, teacher_logits=logits).__getitems__([Sample(3), Sample(1)])
    assert torch.equal(batch["teacher_logits"], logits[[3, 1]])


def test_the_logits_of_a_teacher_are_computed_once(data, teacher, capsys):
    cases = load(data["latents"], "train", labelled=True, fold="1/3")
    first = teacher_logits(str(teacher), data["reconstructions"], cases)
    assert "The teacher scores" in capsys.readouterr().err
    assert torch.equal(teacher_logits(str(teacher), data["reconstructions"], cases), first)
    assert "The teacher scores" not in capsys.readouterr().err


def test_distillation_is_the_mean_squared_error_to_the_logits_of_the_teacher(tiny_config):
    config = RadFMConfig(**tiny_config, disorders=["Gout", "Glioma"], objectives={"distillation": {"weight": 0.5}})
    model = RadFMForDiagnosis(config).eval()
    pixels = torch.randn(3, 3, 64, 64)
    counts = {"slices_per_scan": torch.tensor([1, 2]), "scans_per_case": torch.tensor([1, 1])}
    batch = {"pixel_values": pixels, **counts, "modality_ids": torch.tensor([0, 1]), "labels": torch.zeros(2, 2)}
    targets = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    outputs = model(**batch, teacher_logits=targets)
    torch.testing.assert_close(outputs.losses["distillation"], (outputs.logits - targets).square().mean() / 2)
    assert "distillation" not in model(**batch).losses


def test_a_model_and_a_data_set_of_different_latents_are_refused(data, tmp_path):
    latents, images = load(data["latents"]), load(data["images"])
    made_by = latents.record["latents"]["autoencoder"]
    other = RadFMProcessor(RadFMImageProcessor(size=24, latents={"autoencoder": "ffff", "channels": 4}))
    with pytest.raises(ValueError, match=f"holds latents of autoencoder {made_by}, the model reads latents of .* ffff"):
        CaseDataset(latents, other)
    with pytest.raises(ValueError, match="holds pixels, the model reads latents of autoencoder ffff: run"):
        CaseDataset(images, other)
    with pytest.raises(ValueError, match=f"holds latents of autoencoder {made_by}, and the model reads pixels"):
        CaseDataset(latents, RadFMProcessor())
    with pytest.raises(ValueError, match=r"the data set holds latents: use the config latent_classifier.yaml"):
        train(tiny(data["latents"], tmp_path / "a", "images"))
    with pytest.raises(ValueError, match=r"vision_config.family=latent: the data set holds pixels"):
        train(tiny(data["images"], tmp_path / "b"))


def test_pixels_of_latents_cannot_be_changed(data):
    cases = load(data["latents"], labelled=True)
    processor = RadFMProcessor(RadFMImageProcessor(size=24, latents=cases.record["latents"]))
    with pytest.raises(ValueError, match="latents have no pixels to change: leave affine"):
        CaseDataset(cases, processor, Sampling(Augmentation(affine=0.1)))
    sampled = CaseDataset(cases, processor, Sampling(Augmentation(drop_scans=0.2), slices_per_scan=2), masks=True)
    assert sampled.__getitems__([Sample(0)])["pixel_values"].shape[1:] == (4, 24, 24)


def test_a_teacher_that_does_not_know_a_disorder_is_refused(data, teacher, tmp_path):
    folder = tmp_path / "teacher"
    model = RadFMForDiagnosis.from_pretrained(teacher)
    model.set_disorders(list(model.config.disorders)[1:])
    model.save_pretrained(folder)
    RadFMProcessor.from_pretrained(teacher).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"model.teacher: .* has a fixed list of disorders without") as raised:
        train(distilled(data, folder, tmp_path / "run"))
    assert "\n" not in str(raised.value)


def test_reconstructions_of_other_cases_are_refused(data, teacher, tmp_path):
    prepare(Phantoms(12, size=48, seed=9), tmp_path / "other", Settings(size=48, fractions=(0.5, 0.5, 0.0)))
    with pytest.raises(ValueError, match=r"data.reconstructions: .* lacks .* training cases, such as"):
        train(distilled({**data, "reconstructions": tmp_path / "other"}, teacher, tmp_path / "run"))


def test_a_teacher_sees_the_reconstructions_of_these_latents_only(data, teacher, tmp_path):
    cases = load(data["latents"], "train", labelled=True)
    torch.manual_seed(1)
    diffusers.AutoencoderKL(**AUTOENCODER).save_pretrained(tmp_path / "other")
    prepare_reconstructions(data["images"], tmp_path / "by-another", tmp_path / "other")
    of_another = shutil.copytree(data["reconstructions"], tmp_path / "of-another")
    record = json.loads((of_another / "dataset.json").read_text())
    (of_another / "dataset.json").write_text(json.dumps(record | {"derived_from": "another"}))
    for folder in (data["images"], tmp_path / "by-another", of_another):
        with pytest.raises(ValueError, match="does not hold the reconstructions of the latents in"):
            teacher_logits(str(teacher), folder, cases)


def test_a_latent_is_shown_in_reports_as_the_mean_of_its_channels(data):
    scan = load(data["latents"])[0].scans[0]
    scan.modality = "CT"
    assert ct_window(scan) is None
    picture = np.asarray(slice_image(scan, 0, ct_window(scan))).astype(float)
    assert picture.shape == (24, 24)
    assert np.corrcoef(picture.ravel(), scan.pixels[0].astype(float).mean(0).ravel())[0, 1] > 0.999


def test_a_teacher_and_synthetic_cases_which_have_no_reconstructions_are_refused():
    with pytest.raises(ValueError, match=r"data.synthetic has no reconstructions that model.teacher could see"):
        read_diagnosis_config("latent_classifier.yaml", ["data.synthetic=[datasets/synthetic-latents]"])


@pytest.mark.parametrize("missing", ["teacher", "reconstructions", "distillation"])
def test_a_teacher_without_its_data_or_weight_is_refused(missing):
    changes = {"teacher": "model.teacher=null", "reconstructions": "data.reconstructions=null"}
    changes["distillation"] = "objectives.weights.distillation=0"
    with pytest.raises(ValueError, match=r"are of use together only: give all three, or set model.teacher=null"):
        read_diagnosis_config("latent_classifier.yaml", [changes[missing]])


def test_the_command_takes_a_config_or_changes_of_the_default_one(radfm, data, tmp_path):
    vision = yaml.safe_dump(TOWERS["latent"], default_flow_style=True).strip()
    small = [f"model.architecture.vision_config={vision}", "model.text_encoder=null", "sampling.slices_per_step=9"]
    small += ["training.max_steps=1", "training.eval_strategy=no", "training.disable_tqdm=true"]
    small += ["model.teacher=null", "data.reconstructions=null", "objectives.weights.distillation=0"]
    small += [f"data={data['latents']}"]
    code, out, err = radfm("train", "latent-classifier", *small, f"output={tmp_path / 'a'}")
    assert code == 0, err
    assert out.split()[-1] == str(tmp_path / "a")
    own = tmp_path / "own.yaml"
    own.write_text((files("radfm.train") / "configs" / "latent_classifier.yaml").read_text())
    code, out, err = radfm("train", "latent-classifier", own, *small, f"output={tmp_path / 'b'}")
    assert code == 0, err
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
