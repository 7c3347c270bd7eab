"""Fine-tuning: it improves a checkpoint, keeps its knowledge, calibrates it and chooses thresholds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model, pipeline

from radfm import RadFMConfig, RadFMForDiagnosis, RadFMProcessor, cli
from radfm.configuration_radfm import LabelKind
from radfm.data_prep import load
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.pseudonyms import Pseudonyms
from radfm.data_prep.sources.folder import FolderPerClass
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.eval import calibration
from radfm.eval.metrics import macro_auc
from radfm.losses_radfm import CrossEntropyLoss
from radfm.starting_points import embed_texts, from_transformers
from radfm.train import shots
from radfm.train.adapters import with_adapters
from radfm.train.class_weights import class_weights
from radfm.train.diagnosis_trainer import DiagnosisTrainer
from radfm.train.finetune import finetune
from radfm.train.finetune_config import finetune_config
from radfm.train.wise_ft import smallest_share
from tests.waiting import TIMEOUT

KNOWN = ["Pneumothorax", "Glioma", "Gallstones"]
TRAINING = {"report_to": [], "disable_tqdm": True}
FEW_STEPS = TRAINING | {"max_steps": 4, "eval_steps": 2}


@pytest.fixture(scope="session")
def textures(tmp_path_factory) -> Path:
    """One disorder a case, or none: stripes across, stripes along, and noise alone."""
    folder, rng = tmp_path_factory.mktemp("textures"), np.random.default_rng(0)
    waves = 60 * np.sin(np.arange(48) * 1.5)
    for name, pattern in (("Glioma", waves[:, None]), ("Meningioma", waves[None]), ("normal", 0)):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(32):
            pixels = 128 + pattern + rng.normal(0, 40, (48, 48))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "pictures" / name / f"{name}{i}.png")
    source = FolderPerClass(folder / "pictures", "MRI", Pseudonyms(None))
    prepare(source, folder / "data", Settings(size=48, fractions=(0.6, 0.4, 0.0)))
    return folder / "data"


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """Several disorders a case."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    prepare(Phantoms(30, size=48), folder, Settings(size=48, fractions=(0.6, 0.4, 0.0)))
    return folder


def checkpoint(config: dict, folder: Path, head: str) -> Path:
    torch.manual_seed(0)
    config = config | {"vision_config": config["vision_config"] | {"image_size": 48}}
    if head == "mlp":
        config |= {"text_config": None, "head": "mlp"}
    model = RadFMForDiagnosis(RadFMConfig(**config, disorders=KNOWN)).eval()
    processor = RadFMProcessor()
    processor.image_processor.size = 48
    embeds = embed_texts(model, processor, KNOWN).clone() if head == "text" else None
    model.set_disorders(KNOWN, embeds, [["J93.9"], [], ["K80.20"]])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def model(tiny_config, tmp_path) -> Path:
    return checkpoint(tiny_config, tmp_path / "model", "text")


def run(data_set: Path, checkpoint: Path, output: Path, **given) -> dict:
    """Fine-tunes, with changes of top-level keys and sections."""
    sections = {
        "output": str(output),
        "data": {"path": str(data_set)} | given.pop("data", {}),
        "model": {"checkpoint": str(checkpoint)} | given.pop("model", {}),
        "training": TRAINING,
    }
    return finetune(finetune_config(sections | given))


def scores(folder: Path, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated logits of the data's disorders, and their labels, (cases, disorders), of the validation split."""
    model, processor = RadFMForDiagnosis.from_pretrained(folder).eval(), RadFMProcessor.from_pretrained(folder)
    cases = load(data, "validation", labelled=True)
    with torch.no_grad():
        odds = model.log_odds(model(**processor(cases=list(cases))).logits)
    columns = [list(model.config.disorders).index(name) for name in cases.vocabulary.names]
    return odds[:, columns].numpy(), np.stack([cases.labels(i) for i in range(len(cases))])


def probed_odds(folder: Path, data: Path) -> np.ndarray:
    """(cases, disorders) log odds of the validation split by the fitted linear map, before they are calibrated."""
    model, processor = RadFMForDiagnosis.from_pretrained(folder).eval(), RadFMProcessor.from_pretrained(folder)
    cases = load(data, "validation", labelled=True)
    columns = [list(model.config.disorders).index(name) for name in cases.vocabulary.names]
    with torch.no_grad():
        logits = model(**processor(cases=list(cases))).logits[:, columns]
        offsets = load_file(folder / "training" / "probe.safetensors")["bias"] - model.head.linear()[1][columns]
    return calibration.log_odds(logits + offsets, LabelKind.AT_MOST_ONE).numpy()


@pytest.mark.parametrize("head", ["text", "mlp"])
def test_a_linear_probe_improves_and_becomes_weights_of_a_checkpoint(head, tiny_config, textures, tmp_path):
    start = checkpoint(tiny_config, tmp_path / "model", head)
    recipe = run(textures, start, tmp_path / "run", method="linear", interpolate=1.0)
    assert (recipe["task"], recipe["normal_is_a_class"]) == ("multiclass", True)
    assert recipe["after"]["auc"] > max(0.9, recipe["before"]["auc"])
    assert recipe["after"]["log_loss"] < recipe["before"]["log_loss"]
    odds, labels = scores(tmp_path / "run", textures)
    before_calibration = probed_odds(tmp_path / "run", textures)
    assert macro_auc(before_calibration, labels, labels.sum(0))["auc"] == pytest.approx(recipe["after"]["auc"])
    p = torch.from_numpy(odds).sigmoid()
    assert (p.sum(1) <= 1 + 1e-5).all(), "what a case has at most one of has probabilities of at most 1 together"

    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "run"))
    changed = {
        name for name in before if before[name].shape != after[name].shape or not before[name].equal(after[name])
    }
    assert changed == ({"head.disorder_embeds"} if head == "text" else {"head.fc2.weight", "head.fc2.bias"})


def test_names_that_the_data_does_not_have_keep_their_codes_and_scores(model, textures, tmp_path):
    run(textures, model, tmp_path / "run", method="linear", interpolate=1.0)
    old, new = (pipeline("zero-shot-diagnosis", model=str(folder)) for folder in (model, tmp_path / "run"))
    assert list(new.model.config.disorders) == ["Pneumothorax", "Gallstones", "Glioma", "Meningioma"]
    case = load(textures, "validation")[0]
    before, after = ({d["label"]: d for d in pipe(case)} for pipe in (old, new))
    for name in ("Pneumothorax", "Gallstones"):
        assert after[name]["score"] == pytest.approx(before[name]["score"], rel=1e-4)
        assert after[name]["icd10cm"] == before[name]["icd10cm"]
        assert "above_threshold" not in after[name]
    assert {"above_threshold"} <= set(after["Glioma"]) & set(after["Meningioma"])
    assert after["Glioma"]["score"] != pytest.approx(before["Glioma"]["score"], rel=1e-2)

    run(textures, model, tmp_path / "without", method="linear", keep_names=False)
    assert list(RadFMForDiagnosis.from_pretrained(tmp_path / "without").config.disorders) == ["Glioma", "Meningioma"]


def test_a_fine_tuned_checkpoint_can_be_fine_tuned_again(model, textures, phantoms, tmp_path):
    run(textures, model, tmp_path / "first", method="linear", interpolate=1.0)
    run(phantoms, tmp_path / "first", tmp_path / "second", method="linear", interpolate=1.0)
    case = load(textures, "validation")[0]
    labels = {"candidate_labels": ["Glioma", "Meningioma", "Pneumothorax"]}
    first, second = (
        {d["label"]: d for d in pipeline("zero-shot-diagnosis", model=str(tmp_path / name))(case, **labels)}
        for name in ("first", "second")
    )
    for name in ("Glioma", "Meningioma"):
        assert second[name]["score"] == pytest.approx(first[name]["score"], rel=1e-4)
        assert second[name]["above_threshold"] is first[name]["above_threshold"]


@pytest.mark.parametrize(("method", "head"), [("lora", "text"), ("full", "text"), ("lora", "mlp")])
def test_weights_are_interpolated_with_those_of_the_zero_shot_model(method, head, tiny_config, phantoms, tmp_path):
    start = checkpoint(tiny_config, tmp_path / "model", head)
    for share in (0.5, 1.0):
        few = {"method": method, "training": FEW_STEPS | {"learning_rate": 0.01}, "interpolate": share}
        recipe = run(phantoms, start, tmp_path / f"{share}", sampling={"slices_per_step": 64}, **few)
        assert (recipe["method"], recipe["task"]) == (method, "multilabel")
    before, half, whole = (
        load_file(folder / "model.safetensors") for folder in (start, tmp_path / "0.5", tmp_path / "1.0")
    )
    assert set(before) == set(half) == set(whole)
    moved = {name for name in before if before[name].shape == whole[name].shape and not before[name].equal(whole[name])}
    assert any(name.startswith("radfm.slice_encoder.tower") for name in moved)
    assert not any("text_encoder" in name or "running" in name for name in moved)
    for name in moved:
        torch.testing.assert_close(half[name], (before[name] + whole[name]) / 2, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", ["linear", "lora"])
def test_a_vision_model_of_transformers_is_fine_tuned(method, textures, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 48, "patch_size": 8}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "dino")
    BitImageProcessor(size={"shortest_edge": 48}, crop_size=48).save_pretrained(tmp_path / "dino")
    model, processor = from_transformers(tmp_path / "dino")
    model.set_disorders(KNOWN, embed_texts(model, processor, KNOWN).clone())
    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    run(textures, tmp_path / "start", tmp_path / "run", method=method, interpolate=1.0, training=FEW_STEPS)
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "start", tmp_path / "run"))
    changed = [name for name, tensor in before.items() if ".tower." in name and not torch.equal(after[name], tensor)]
    assert bool(changed) == (method == "lora")
    assert np.isfinite(scores(tmp_path / "run", textures)[0]).all()


@torch.no_grad()
def test_adapters_of_dilated_convolutions_are_merged_exactly(tiny_config):
    """As in the tower of radfm-phantom-mini."""
    tiny_config["vision_config"]["tower_args"] = {"output_stride": 8}
    model = RadFMForDiagnosis(RadFMConfig(**tiny_config)).eval()
    batch = {"pixel_values": torch.randn(3, 3, 64, 64), "slices_per_scan": torch.tensor([1, 2])}
    batch |= {"scans_per_case": torch.tensor([2]), "modality_ids": torch.tensor([0, 1])}
    before = model.get_case_features(**batch)
    adapters = with_adapters(model, rank=2)
    torch.testing.assert_close(model.get_case_features(**batch), before)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            weight.normal_(0, 0.1)
    changed = model.get_case_features(**batch)
    assert (changed - before).abs().max() > 0.01
    adapters.merge_and_unload()
    torch.testing.assert_close(model.get_case_features(**batch), changed, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("at", [0, 3])  # before the first checkpoint, and after it
def test_a_killed_run_is_resumed_and_a_finished_one_is_not_repeated(model, phantoms, tmp_path, monkeypatch, at):
    few = {"method": "lora", "training": FEW_STEPS, "interpolate": 1.0, "sampling": {"slices_per_step": 64}}
    whole = run(phantoms, model, tmp_path / "whole", **few)
    step = DiagnosisTrainer.training_step

    def killed(self, *inputs):
        if self.state.global_step == at:
            raise KeyboardInterrupt
        return step(self, *inputs)

    monkeypatch.setattr(DiagnosisTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(phantoms, model, tmp_path / "killed", **few)
    monkeypatch.undo()
    resumed = run(phantoms, model, tmp_path / "killed", **few)
    assert (whole.pop("effort")["resumed"], resumed.pop("effort")["resumed"]) == (False, True)
    assert resumed == whole
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())

    monkeypatch.setattr(RadFMForDiagnosis, "forward", None)  # nothing is computed again
    again = run(phantoms, model, tmp_path / "whole", **few)
    assert not again.pop("effort")["resumed"]
    assert again == whole
    with pytest.raises(ValueError, match="holds another run"):
        run(phantoms, model, tmp_path / "whole", **few | {"rank": 4})


def test_two_processes_train_what_one_does_and_print_it_once(python, model, phantoms, tmp_path):
    given = ["--method", "lora", "--interpolate", "1e0", "sampling.slices_per_step=64", "training.learning_rate=0.01"]
    given += [f"training.{name}={value}" for name, value in FEW_STEPS.items()]
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    printed = {}
    for output, launch in ((tmp_path / "one", [python, "-m"]), (tmp_path / "two", torchrun)):
        command = [*launch, "radfm.cli", "finetune", str(phantoms), "--model", str(model), "--output", str(output)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, *given], env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        assert done.returncode == 0, done.stderr[-3000:]
        printed[output.name] = done.stdout
    assert printed["two"].count("lora, multilabel") == 1
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert set(one) == set(two)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=5e-4, rtol=0)


def test_training_stops_after_validations_without_a_gain(model, phantoms, tmp_path):
    still = FEW_STEPS | {"max_steps": 8, "eval_steps": 1, "learning_rate": 0.0}
    for _ in range(2):
        run(
            phantoms,
            model,
            tmp_path / "run",
            method="lora",
            sampling={"slices_per_step": 64},
            patience=2,
            training=still,
        )
        checkpoints = (tmp_path / "run" / "training").glob("checkpoint-*")
        assert max(int(folder.name.rpartition("-")[2]) for folder in checkpoints) == 3
        (tmp_path / "run" / "radfm_finetune.json").unlink()  # as if killed just before the end


def test_the_result_names_no_folder_of_the_machine(model, textures, tmp_path):
    run(textures, model, tmp_path / "run", method="linear", data={"shots": 4})
    for file in (tmp_path / "run").iterdir():
        if file.is_file():
            for folder in (textures.parent, tmp_path, Path.home()):
                assert str(folder).encode() not in file.read_bytes(), f"{folder} is in {file.name}"
    assert json.loads((tmp_path / "run" / "radfm_finetune.json").read_text())["cases"]["train"] == 12


def test_shots_are_of_each_class_and_of_different_patients():
    labels = [[0], [0], [0], [0], [1], [1], [1], [], [], [2]]
    patients = ["a", "a", "a", "b", "c", "c", "c", "d", "e", "f"]
    for seed in range(5):
        rows, short = shots.choose(labels, patients, 2, seed)
        assert sum(labels[row] == [0] for row in rows) == 2
        assert {patients[row] for row in rows if labels[row] == [0]} == {"a", "b"}
        assert sum(labels[row] == [1] for row in rows) == 2, "of one patient only where there is no other"
        assert sum(labels[row] == [] for row in rows) == 2
        assert short == {2: 1}
        assert rows == shots.choose(labels, patients, 2, seed)[0]
    several = [[0, 1], [0], [1], [0, 1, 2]]
    rows, _ = shots.choose(several, list("abcd"), 1, 0)
    assert rows == [3], "a case counts for every disorder it has"


def test_cross_entropy_has_normal_as_a_class_and_weights():
    torch.manual_seed(0)
    logits, classes = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 3, 0])
    labels = F.one_hot(classes, 4)[:, :3].float()
    with_normal = torch.cat([logits, torch.zeros(6, 1)], 1)
    torch.testing.assert_close(CrossEntropyLoss()(logits, labels), F.cross_entropy(with_normal, classes))
    weights = [1.0, 2, 3, 4]
    weighted = (F.cross_entropy(with_normal, classes, reduction="none") * torch.tensor(weights)[classes]).mean()
    torch.testing.assert_close(CrossEntropyLoss(LabelKind.AT_MOST_ONE, weights)(logits, labels), weighted)
    known = classes < 3
    torch.testing.assert_close(
        CrossEntropyLoss(LabelKind.EXACTLY_ONE)(logits, labels), F.cross_entropy(logits[known], classes[known])
    )
    one = torch.tensor([[1.0], [0]])
    torch.testing.assert_close(
        CrossEntropyLoss()(logits[:2, :1], one), F.binary_cross_entropy_with_logits(logits[:2, :1], one)
    )


def test_classes_weigh_by_the_power_of_their_inverse_frequency():
    labels = np.zeros((100, 2))
    labels[:80, 0] = labels[80:90, 1] = 1
    assert class_weights(labels, LabelKind.MULTI_LABEL, 1.0) == pytest.approx([0.25, 9.0], rel=1e-3)
    assert class_weights(labels, LabelKind.MULTI_LABEL, 0.0) == [1, 1]
    balanced = np.array(class_weights(labels, LabelKind.AT_MOST_ONE, 1.0))
    assert balanced * [80, 10, 10] == pytest.approx([100 / 3] * 3, rel=1e-3)


def test_calibration_finds_slope_and_shift_and_leaves_rare_disorders_to_the_others():
    rng = np.random.default_rng(0)
    odds = rng.normal(-1, 2, (4000, 3))
    labels = torch.from_numpy(rng.random(odds.shape) < 1 / (1 + np.exp(-odds))).float()
    labels[5:, 2] = 0  # hardly any case, and these say little
    logits = torch.from_numpy(odds * 4 + 6).float()
    slopes, shifts = calibration.calibrate(logits[:, :2], labels[:, :2], LabelKind.MULTI_LABEL)
    np.testing.assert_allclose(slopes, 0.25, rtol=0.1)
    np.testing.assert_allclose(shifts, -1.5, atol=0.2)
    few = torch.arange(4000) < 5
    alone, _ = calibration.calibrate(logits[few], labels[few], LabelKind.MULTI_LABEL)
    slopes, _ = calibration.calibrate(logits, labels, LabelKind.MULTI_LABEL)
    assert (alone / alone.mean() - 1).abs().max() < 0.3, "five cases part no disorder from the others"
    assert slopes[0] == pytest.approx(0.25, rel=0.15)


def test_exclusive_disorders_are_calibrated_as_a_softmax():
    rng = np.random.default_rng(1)
    odds = torch.from_numpy(rng.normal(0, 2, (4000, 3)))
    classes = torch.multinomial(F.pad(odds, (0, 1)).softmax(1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    labels = F.one_hot(classes, 4)[:, :3].float()
    slopes, shifts = calibration.calibrate(odds * 3 - 1, labels, LabelKind.AT_MOST_ONE)
    np.testing.assert_allclose(slopes, 1 / 3, rtol=0.1)
    np.testing.assert_allclose(shifts, 1 / 3, atol=0.15)
    p = calibration.log_odds((odds * 3 - 1).float() * slopes + shifts, LabelKind.AT_MOST_ONE).sigmoid().numpy()
    assert calibration.calibration_error(p, labels.numpy()) < 0.02


def test_a_threshold_has_the_best_f1_and_rare_disorders_share_one():
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 3)) < [0.4, 0.05, 0.0]).astype(float)
    p = (labels * 0.3 + rng.random((60, 3)) * 0.7).round(2)
    thresholds, own = calibration.thresholds(p, labels)
    assert own == [True, False, False]
    assert thresholds[1] == thresholds[2]
    best = max(f1_score(labels[:, 0], p[:, 0] >= t) for t in np.unique(p[:, 0]))
    assert f1_score(labels[:, 0], p[:, 0] >= thresholds[0]) == best
    assert calibration.best_f1_threshold(np.ones(3), np.zeros(3)) == 0.5


def test_the_smallest_share_that_keeps_most_of_the_gain_is_chosen():
    assert smallest_share({0.0: 0.6, 0.4: 0.797, 0.8: 0.8, 1.0: 0.75}) == 0.4
    assert smallest_share({0.0: 0.6, 0.5: 0.59, 1.0: 0.58}) == 0.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "svm"}, "method=svm: Input should be 'auto', 'linear', 'lora' or 'full'"),
        ({"task": "regression"}, "task=regression: Input should be 'auto', 'multiclass' or 'multilabel'"),
        ({"interpolate": 1.5}, "interpolate=1.5: Input should be less than or equal to 1 or 'auto'"),
        ({"interpolate": "half"}, "interpolate=half: Input should be a valid number or 'auto'"),
        ({"data": {"shots": 0}}, "data.shots=0: Input should be greater than or equal to 1"),
        ({"model": {"architecture": {"hidden_size": 3}}}, "model.architecture: no such key"),
        ({"model": {"tower_patches": True}}, "model.tower_patches: no such key"),
        ({"model": {"frozen": "tower"}}, "model.frozen: no such key"),
        ({"model": {"text_layers": 1}}, "trained with method=full only"),
        ({"pateince": 3}, "pateince: no such key; there are"),
        ({"data": {"path": "nowhere"}}, "nowhere holds no finished data set"),
        ({"model": {"checkpoint": "./nowhere"}}, "no such folder"),
    ],
)
def test_a_wrong_configuration_is_refused_with_one_line(given, message, textures, model, tmp_path):
    with pytest.raises((ValueError, OSError), match=message):
        run(textures, model, tmp_path / "run", **given)


def test_data_with_one_class_or_without_validation_cases_is_refused(textures, phantoms, model, tmp_path):
    with pytest.raises(ValueError, match=r"task=multiclass, but .* has cases with"):
        run(phantoms, model, tmp_path / "run", task="multiclass")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is no checkpoint of radfm"):
        run(textures, tmp_path, tmp_path / "run")
    prepare(Phantoms(6, size=48), tmp_path / "data", Settings(size=48, fractions=(1.0, 0.0, 0.0)))
    with pytest.raises(ValueError, match="no labelled validation cases"):
        run(tmp_path / "data", model, tmp_path / "run")
    with pytest.raises(ValueError, match="have the same labels"):
        run(textures, model, tmp_path / "run", data={"withheld": ["Glioma", "Meningioma"]})


def test_the_command_prints_the_figures_and_the_next_steps(textures, model, tmp_path, monkeypatch, capsys):
    def radfm(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["radfm", "finetune", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    arguments = (
        textures,
        "--model",
        model,
        "--output",
        tmp_path / "run",
        "--shots",
        "50",
        "training.disable_tqdm=true",
    )
    status, out, err = radfm(*arguments)
    assert status == 0
    assert "linear, multiclass; 2 of 4 disorders, from 58 cases" in out
    assert "classes have fewer than 50 cases" in err
    assert "radfm diagnose YOUR_STUDY --model" in out
    status, out, _ = radfm(*arguments, "--json")
    assert json.loads(out)["method"] == "linear"
    status, out, err = radfm(*arguments, "--method", "svm")
    assert (status, out, err.count("\n")) == (1, "", 1)
