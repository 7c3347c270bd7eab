"""`radfm publish`: the folder loads without radfm, its card has the measured figures, and patient data is refused."""

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from radfm import RadFMConfig, RadFMForDiagnosis, RadFMProcessor
from radfm.checkpoints.reproduction import check
from radfm.eval.diagnosis import compare
from radfm.eval.scores import Scores
from radfm.eval.text_tasks import METRICS
from radfm.publishing.publish import Request, publish
from radfm.reference_radfm import FILE, TrainingReference, weights_sha256
from radfm.starting_points import embed_texts

DISORDERS = ["Glioma", "Meningioma", "Pneumothorax"]
CODES = [["C71.9"], ["D32.9"], ["J93.9"]]
CASES = 40
DATA = {
    "title": "radfm phantoms",
    "source": "phantoms",
    "licence": "Apache-2.0",
    "citation": None,
    "fingerprint": "f" * 64,
    "patients": 90,
    "cases": 100,
    "normal": 10,
    "scans": 250,
    "slices": 4000,
    "disorders": 3,
    "modalities": {"CT": 150, "MRI": 100},
    "body_parts": {"brain": 200, "chest": 50},
    "ages": {"18 to 39": 60, "not stated": 30},
    "sexes": {"F": 50, "M": 40},
}
UPLOAD = """
import hashlib, json, sys
from pathlib import Path
from huggingface_hub import ModelCard, snapshot_download
from radfm.publishing.publish import Request, publish

model, evaluation = map(Path, sys.argv[1:])
first = publish(Request(model, "me/small", [evaluation], "apache-2.0"))
try:
    publish(Request(model, "somebody-else/small"))
except ValueError as error:
    refused = str(error)
ModelCard.load("me/small").validate()
published = Path(snapshot_download("me/small"))
files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in published.iterdir()}
again = publish(Request(model, "me/small", [evaluation], "apache-2.0", max_shard_size="500KB"))
print(json.dumps([first.url, first.files, files, again.files, refused]))
"""
ELSEWHERE = """
import importlib.util, json, sys
import torch
from transformers import AutoModel, AutoProcessor

assert importlib.util.find_spec("radfm") is None, "radfm must not be here"
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
with torch.no_grad():
    texts = model.get_text_features(**processor(text=["Glioma"]))
embeds = model.head.disorder_embeds.tolist()
print(json.dumps([texts.tolist(), embeds, model.config.disorders, model.config.thresholds]))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A small model in bfloat16, calibrated, with reference and recipe, as training leaves it with its checkpoints."""
    folder = tmp_path_factory.mktemp("run") / "model"
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = RadFMConfig(
        vision_config={"family": "resnet", "tower": "test_resnet", "image_size": 64},
        scan_config={**small, "num_positions": 8},
        case_config=small,
        text_config={"model_type": "bert", "hidden_size": 32, **small},
        hidden_size=48,
        projection_dim=32,
        trained=True,
        calibration={"slopes": [1.5, 1.0, 2.0], "shifts": [0.1, 0.0, -0.2], "exclusive": []},
        thresholds=[0.4, 0.5, None],
    )
    torch.manual_seed(0)
    model, processor = RadFMForDiagnosis(config).eval(), RadFMProcessor()
    model.set_disorders(DISORDERS, embed_texts(model, processor, DISORDERS), CODES)
    model.config.thresholds = [0.4, 0.5, None]
    model.config.calibration = {"slopes": [1.5, 1.0, 2.0], "shifts": [0.1, 0.0, -0.2], "exclusive": []}
    model.bfloat16().save_pretrained(folder)
    processor.save_pretrained(folder)
    about = {"weights": weights_sha256(folder), "data": DATA["fingerprint"]}
    reference = TrainingReference(torch.zeros(32), torch.eye(32), torch.arange(120.0), ["CT", "MRI"], about)
    (folder / FILE).write_bytes(reference.to_bytes())
    recipe = {
        "config": {"seed": 0, "data": {"withheld": ["Gout"]}, "model": {"text_encoder": "text"}},
        "data": DATA,
        "started_from": {
            "text_encoder": {
                "name": "text",
                "icd10cm": "simple-icd-10-cm 1.5.0",
                "ontologies": [],
                "effort": {"seconds": 2400.0, "resumed": False, "processes": 1, "device": "CPU, 4 threads"},
            }
        },
        "effort": {"seconds": 5400.0, "resumed": False, "processes": 2, "device": "CPU, 4 threads"},
        "cases": {"train": 100, "validation": 20},
        "left_out": {"case-of-somebody": "cannot be read"},
        "steps": 30,
        "step": 20,
    }
    (folder / "radfm_diagnosis.json").write_text(json.dumps(recipe))
    (folder / "checkpoint-20").mkdir()
    torch.save({"step": 20}, folder / "checkpoint-20" / "optimizer.pt")
    (folder / "cases.csv").write_text("case,patient\n1,Smith^John\n")
    return folder


@pytest.fixture(scope="module")
def evaluation(checkpoint, tmp_path_factory) -> Path:
    """What `radfm evaluate --out` writes of made-up scores of these weights."""
    draws = np.random.default_rng(0)
    names = [[DISORDERS[i]] for i in draws.integers(0, 3, CASES)]
    labels = np.array([[name in disorders for name in DISORDERS] for disorders in names])
    table = Scores(
        scores=(draws.normal(size=labels.shape) + 2 * labels).astype(np.float32),
        names=DISORDERS,
        icd10cm=CODES,
        case_ids=[f"case-{i}" for i in range(CASES)],
        patients=[f"patient-{i}" for i in range(CASES)],
        disorders=names,
        training=[[0]] * 100 + [[1]] * 30 + [[2]],
        attributes={
            "modality": [["CT"] if i % 2 else ["MRI"] for i in range(CASES)],
            "folder": [["Smith_John"] for _ in range(CASES)],
        },
        about={
            "model": "small",
            "checkpoint": weights_sha256(checkpoint),
            "trained_on": DATA["fingerprint"],
            "data": DATA["fingerprint"],
            "split": "test",
            "thresholds": [0.4, 0.5, None],
            "left_out": {"case-of-somebody-else": "cannot be read"},
        },
    )
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "metrics.json").write_text(json.dumps(compare({"small": [table]}, bootstraps=50)))
    return folder


@pytest.fixture(scope="module")
def published(checkpoint, evaluation, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "published"
    done = publish(Request(checkpoint, "me/small", [evaluation], "apache-2.0"), out, upload=False)
    assert done.left_out == ["cases.csv", "checkpoint-20/"]
    return out


def test_a_published_folder_is_published_again_with_licence_notes_and_evaluation(published, tmp_path):
    again = publish(Request(published, "me/small"), tmp_path / "again", upload=False)
    assert again.card == (published / "README.md").read_text()
    assert publish(Request(published, "me/small", licence="mit"), tmp_path / "mit", upload=False).card != again.card
    tuned = shutil.copytree(published, tmp_path / "tuned")
    (tuned / FILE).unlink()
    weights = load_file(tuned / "model.safetensors")
    weights["head.logit_scale"] += 1
    save_file(weights, tuned / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"evaluation\.json was made with other weights"):
        publish(Request(tuned, "me/tuned"), tmp_path / "refused", upload=False)


def test_the_weights_are_the_evaluated_ones_and_other_files_are_left_out(checkpoint, published):
    assert (published / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    not_of_the_model = {f"{name}_radfm.py" for name in ("pipeline", "recipes", "reference", "training_data")}
    code = {file.name for file in Path(__file__).parents[2].glob("radfm/*_radfm.py")} - not_of_the_model
    settings = {"config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    records = {"README.md", "evaluation.json", "radfm_card.json", "radfm_diagnosis.json", FILE, "model.safetensors"}
    records.add("radfm_check.json")
    assert check(published, "cpu").reproduced
    files = {file.relative_to(published).as_posix() for file in published.rglob("*")}
    assert files == code | settings | records
    contents = [file.read_text() for file in published.glob("*.json") if file.name != "tokenizer.json"]
    assert not [text for text in contents if "somebody" in text]
    assert json.loads((published / "radfm_diagnosis.json").read_text())["left_out"] == 1


def test_vocabulary_codes_embeddings_calibration_and_reference_are_published(checkpoint, published):
    model, before = (RadFMForDiagnosis.from_pretrained(folder) for folder in (published, checkpoint))
    assert model.config.disorders == DISORDERS
    assert model.config.icd10cm == CODES
    assert model.config.thresholds == [0.4, 0.5, None]
    assert model.config.calibration == before.config.calibration
    assert torch.equal(model.head.disorder_embeds, before.head.disorder_embeds)
    assert TrainingReference.load(published).modalities == ["CT", "MRI"]


def test_the_card_has_the_figures_of_the_evaluation(published, evaluation):
    card = ModelCard.load(published / "README.md")
    assert hub.faults(str(card)) == []
    measured = json.loads((evaluation / "metrics.json").read_text())["models"]["small"]
    results = {result.metric_name: result for result in card.data.eval_results}
    for band in ("all disorders", "head", "body", "tail"):
        figure = measured["macro"]["auc"]["all" if band == "all disorders" else band]
        result = results[f"Macro AUC, {band}"]
        assert result.metric_value == round(figure["value"], 4)
        ends = {end: round(figure[end], 4) for end in ("low", "high")}
        assert result.metric_args == ends | {"interval": 0.95}
        assert f"| {figure['value']:.3f}<br>{figure['low']:.3f}–{figure['high']:.3f} |" in card.text
        assert result.dataset_name == "radfm phantoms"
    assert card.data.license == "apache-2.0"
    for words in (
        "Research use only, not a medical device.",
        "**It was trained on synthetic patients only.**",
        "| licence | Apache-2.0 |",
        "| cases | 100 |",
        "Modalities: X-ray, ultrasound,",
        "Body parts other than brain and chest.",
        "Ages: no patient known to be 0 to 17 or 40 to 64 or 65 and more.",
        "Disorders withheld from training: Gout.",
        "1.5 hours on 2 processes",
        "Its starting points took: text, 40.0 minutes; 2.2 hours in total. Searches and failed runs",
        "Not measured. At an assumed 65 W per process it is 0.24 kWh in total.",
        'pipeline("zero-shot-diagnosis", model="me/small")',
    ):
        assert words in card.text, words
    assert "Smith" not in str(card)


def test_every_block_of_code_in_a_card_can_be_parsed(published):
    blocks = re.findall(r"```python\n(.*?)```", (published / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "README.md", "exec")


def test_equal_subgroups_are_shown_once(checkpoint, evaluation, tmp_path):
    card = publish(Request(checkpoint, "me/small", [evaluation, evaluation]), tmp_path / "out", upload=False).card
    assert card.count("resamples of the patients") == 2
    assert card.count("**Subgroups.**") == 1


def test_what_is_not_recorded_is_unknown(checkpoint, tmp_path):
    bare = shutil.copytree(checkpoint, tmp_path / "bare")
    (bare / "radfm_diagnosis.json").unlink()
    card = publish(Request(bare, "me/bare"), tmp_path / "out", upload=False).card
    for words in ("**Unknown.** The checkpoint has no recipe", "**Not evaluated.**", "Not recorded.",
                  "Modalities: not recorded.", "is **unknown**: ask"):  # fmt: skip
        assert words in card, words
    assert not hub.faults(card)


def test_counts_and_licence_can_come_from_the_training_data_set(checkpoint, tmp_path):
    old = shutil.copytree(checkpoint, tmp_path / "old")
    recipe = json.loads((old / "radfm_diagnosis.json").read_text())
    recipe["data"] = {"fingerprint": DATA["fingerprint"], "source": "phantoms"}
    (old / "radfm_diagnosis.json").write_text(json.dumps(recipe))
    assert "are not recorded with" in publish(Request(old, "me/m"), tmp_path / "a", upload=False).card
    assert "| scans | 250 |" in publish(Request(old, "me/m", training_data=DATA), tmp_path / "b", upload=False).card
    with pytest.raises(ValueError, match="was trained on other data"):
        publish(Request(old, "me/m", training_data=DATA | {"fingerprint": "0" * 64}), tmp_path / "c", upload=False)


@pytest.mark.parametrize(
    ("source", "synthetic_only"), [({"data": DATA}, True), ({"data": DATA | {"source": "folder"}}, False), ({}, False)]
)
def test_the_card_of_a_fine_tuned_checkpoint_states_its_starting_point(checkpoint, tmp_path, source, synthetic_only):
    tuned = shutil.copytree(checkpoint, tmp_path / "tuned")
    recipe = {
        "key": {"config": {"seed": 0}, "data": DATA["fingerprint"]},
        "data": DATA,
        "started_from": {"model": {"name": "base", **source}},
        "method": "lora",
        "interpolation": {"share": 0.6},
        "thresholds_of_their_own": 1,
    }
    (tuned / "radfm_finetune.json").write_text(json.dumps(recipe))
    card = publish(Request(tuned, "me/tuned"), tmp_path / "out", upload=False).card
    assert "Fine-tuned by method lora; interpolated with the old weights, share of the new ones 0.6." in card
    origin = "trained on radfm phantoms (Apache-2.0)" if source else "its training data is not recorded here"
    assert f"checkpoint `base`{',' if source else ';'} {origin}" in card
    assert "2 of 3 disorders have one, 1 their own" in card
    assert ("It was trained on synthetic patients only" in card) == synthetic_only


@pytest.mark.parametrize("of_start", [False, True])
def test_a_model_of_cases_that_must_not_be_published_is_refused(checkpoint, tmp_path, of_start):
    folder = shutil.copytree(checkpoint, tmp_path / "home")
    file = folder / "radfm_diagnosis.json"
    recipe = json.loads(file.read_text())
    if of_start:
        recipe["started_from"]["model"] = {"name": "start", "data": DATA | {"unpublishable": 7}}
    else:
        recipe["data"] |= {"unpublishable": 7}
    file.write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=f"{'start' if of_start else 'home'} has learned from 7 cases .* must not"):
        publish(Request(folder, "me/small"), tmp_path / "out", upload=False)


def test_a_large_file_is_split_and_the_fingerprint_follows(checkpoint, evaluation, tmp_path):
    request = Request(checkpoint, "me/small", [evaluation], max_shard_size="500KB")
    done = publish(request, tmp_path / "out", upload=False)
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert "model.safetensors.index.json" in done.files
    tensors = {name: tensor for file in shards for name, tensor in load_file(file).items()}
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        assert torch.equal(tensors[name], tensor), name
    assert "model.safetensors" not in done.left_out
    assert TrainingReference.load(tmp_path / "out").metadata["weights"] == weights_sha256(tmp_path / "out")
    assert weights_sha256(tmp_path / "out") in done.card
    assert RadFMForDiagnosis.from_pretrained(tmp_path / "out").config.disorders == DISORDERS


def test_a_text_encoder_is_published_too(text_encoder, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = shutil.copytree(text_encoder, tmp_path / "text")
    (folder / "radfm_text.json").write_text(
        json.dumps({"config": {"output": "/tmp/runs/text", "model": {"average_from": 0.33}}, "base": None,
                    "icd10cm": "1.5.0", "held_out": 4,
                    "ontologies": [{"name": "doid", "terms": 6061, "licence": "CC0"}], "pairs": {"names": 34594}})
    )  # fmt: skip
    figures = {space: {"A@1": 0.25, "B@1": 0.5} for space in ("TF-IDF", "all-MiniLM-L6-v2", "/home/me/text")}
    evaluation = {"ontology": "doid", "terms": 50, "linked": 30, "candidates": 90, "figures": figures}
    evaluation["metrics"] = {key: asdict(metric) for key, metric in METRICS.items()}
    evaluation["checkpoints"] = {"/home/me/text": weights_sha256(folder)}
    (tmp_path / "text.json").write_text(json.dumps(evaluation))
    done = publish(Request(folder, "me/text", [tmp_path / "text.json"], "apache-2.0"), tmp_path / "out", upload=False)
    assert not hub.faults(done.card)
    assert "| doid | 6,061 terms | CC0 |" in done.card
    assert "the mean of the checkpoints after 33% of the training" in done.card
    assert "| **text** |" in done.card
    assert [r.metric_value for r in ModelCard(done.card).data.eval_results] == [0.25, 0.5]
    encoders = (SentenceTransformer(str(path), device="cpu") for path in (folder, tmp_path / "out"))
    before, after = (encoder.encode(["ACL tear"]) for encoder in encoders)
    np.testing.assert_array_equal(before, after)


# What may not be published


def pickle_beside(folder):
    (folder / "weights.dat").write_bytes(pickle.dumps({"weights": [1.0]}))


def torch_file_beside(folder):
    torch.save({"weights": torch.zeros(3)}, folder / "weights.dat")


def pickled_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def arguments_of_a_trainer(folder):
    torch.save({"lr": 0.1}, folder / "training_args.bin")


def a_pickle_called_safetensors(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weights": [1.0]}))


def a_pickle_called_json(folder):
    (folder / "config.json").write_bytes(pickle.dumps({"model_type": "radfm"}))


def an_optimizer(folder):
    torch.save({"step": 1}, folder / "optimizer.pt")


def a_state_of_training(folder):
    (folder / "trainer_state.json").write_text("{}")


def in_json(file, **changes):
    def change(folder):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | changes))

    return change


def in_the_header(folder):
    file = folder / "model.safetensors"
    save_file(load_file(file), file, {"format": "pt", "from": "/home/me/runs/model"})
    (folder / FILE).unlink()


def in_the_reference(folder):
    reference = TrainingReference.load(folder)
    reference.metadata["patient_ids"] = ["17"]
    (folder / FILE).write_bytes(reference.to_bytes())


def other_weights_than_the_reference(folder):
    weights = load_file(folder / "model.safetensors")
    weights["head.logit_scale"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def a_weight_missing(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["head.logit_scale"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / FILE).unlink()


def no_checkpoint(folder):
    (folder / "config.json").unlink()


NAMED = {"disorders": ["Glioma", "Meningioma", "Smith^John"]}
RECIPE = "radfm_diagnosis.json"


@pytest.mark.parametrize(
    ("change", "file", "reason"),
    [
        (pickle_beside, "weights.dat", "is a pickle"),
        (torch_file_beside, "weights.dat", "is a pickle"),
        (pickled_weights, "pytorch_model.bin", "save the weights as safetensors"),
        (arguments_of_a_trainer, "training_args.bin", "is a pickle"),
        (a_pickle_called_safetensors, "model.safetensors", "is a pickle"),
        (a_pickle_called_json, "config.json", "is a pickle"),
        (an_optimizer, "optimizer.pt", "is the state of a trainer"),
        (a_state_of_training, "trainer_state.json", "publish the folder above"),
        (in_json(RECIPE, note="made in /home/me/runs"), RECIPE, "contains a local path, '/home/me/runs'"),
        (in_json(RECIPE, note=r"C:\Users\me"), RECIPE, "contains a local path"),
        (in_json("config.json", **NAMED), "config.json, disorders[2]", "a person's name"),
        (in_json(RECIPE, seen={"PatientName": "x"}), f"{RECIPE}, seen.PatientName", "identifies a patient"),
        (in_json(RECIPE, of=["c-0123456789abcdef"]), f"{RECIPE}, of[0]", "a pseudonym"),
        (in_json(RECIPE, of=["d-0123456789abcdef"]), f"{RECIPE}, of[0]", "a pseudonym"),
        (in_json(RECIPE, study="1.2.840.113619.2.55.3"), f"{RECIPE}, study", "a DICOM UID"),
        (in_json(RECIPE, note="MRN: 0012345"), f"{RECIPE}, note", "a record number"),
        (in_json(RECIPE, note="Patient 4711234, follow-up"), f"{RECIPE}, note", "a record number"),
        (in_json(RECIPE, note="She was born on 1954-03-12."), f"{RECIPE}, note", "a date of birth"),
        (in_json(RECIPE, note="DOB 19540312"), f"{RECIPE}, note", "a date of birth"),
        (in_json(RECIPE, seen=[{"patient": "4711234"}]), f"{RECIPE}, seen[0].patient", "identifies a patient"),
        (in_json(RECIPE, seen={"BirthDate": "19540312"}), f"{RECIPE}, seen.BirthDate", "identifies a patient"),
        (in_json(RECIPE, note="read from /data"), f"{RECIPE}, note", "contains a local path, '/data'"),
        (in_json(RECIPE, salt="secret"), f"{RECIPE}, salt", "identifies a patient"),
        (in_the_header, "model.safetensors, from", "contains a local path"),
        (in_the_reference, f"{FILE}, radfm.metadata.patient_ids", "identifies a patient"),
        (other_weights_than_the_reference, FILE, "belongs to other weights"),
        (a_weight_missing, "model.safetensors", "lacks head.logit_scale"),
        (no_checkpoint, "model", "holds no config.json"),
    ],
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else None),
)
def test_what_may_not_be_published_is_refused_in_one_line_that_names_it(
    radfm, checkpoint, tmp_path, change, file, reason
):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    change(folder)
    status, out, err = radfm("publish", folder, "me/small", "--dry-run", "--out", tmp_path / "out")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert file in err
    assert reason in err
    assert "Smith" not in err
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_an_evaluation_of_other_weights_is_refused(checkpoint, evaluation, tmp_path):
    metrics = json.loads((evaluation / "metrics.json").read_text())
    metrics["models"]["small"]["tables"][0]["checkpoint"] = "0" * 64
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match=r"metrics\.json was made with other weights \(000000000000, not"):
        publish(Request(checkpoint, "me/small", [tmp_path]), tmp_path / "out", upload=False)


def test_an_evaluation_from_before_calibrating_is_refused(checkpoint, evaluation, tmp_path):
    metrics = json.loads((evaluation / "metrics.json").read_text())
    del metrics["models"]["small"]["tables"][0]["thresholds"]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match="was made before these weights were calibrated"):
        publish(Request(checkpoint, "me/small", [tmp_path]), tmp_path / "out", upload=False)


def test_notes_are_searched_too(checkpoint, tmp_path):
    (tmp_path / "notes.md").write_text("Trained for Miller^Anna.\n")
    with pytest.raises(ValueError, match=r"README\.md \(.*notes\.md\), line \d+ contains a person's name"):
        publish(Request(checkpoint, "me/small", notes=tmp_path / "notes.md"), tmp_path / "out", upload=False)


@pytest.mark.parametrize(
    ("repo_id", "offline", "token", "reason"),
    [
        ("me/small", False, hub.TOKEN, "http://127.0.0.1:9 did not take me/small: "),
        ("me/small", True, hub.TOKEN, "HF_HUB_OFFLINE is set"),
        ("me/small", False, None, "there is no token for"),
        ("small", False, hub.TOKEN, "write OWNER/small"),
        ("me/no name", False, hub.TOKEN, "is not a name of a repository"),
    ],
)
def test_an_upload_that_cannot_be_ends_in_one_line(
    radfm, checkpoint, tmp_path, monkeypatch, repo_id, offline, token, reason
):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # no server is there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    status, out, err = radfm("publish", checkpoint, repo_id)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert reason in err


def test_the_hubs_own_client_uploads_it_and_it_loads_elsewhere(
    checkpoint, evaluation, published, python_without_radfm, tmp_path
):
    with hub.running() as stand_in:
        environment = {**os.environ, **stand_in.environment(tmp_path / "home")}
        command = [sys.executable, "-c", UPLOAD, checkpoint, evaluation]
        run = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert run.returncode == 0, run.stderr[-2000:]
        url, files, downloaded, again, refused = json.loads(run.stdout.splitlines()[-1])

        assert url == f"{stand_in.url}/me/small"
        assert refused.startswith(f"{stand_in.url} did not take somebody-else/small: 403 Forbidden")
        assert stand_in.repos.keys() == {"me/small"}
        assert ("POST", "/me/small.git/info/lfs/objects/batch") in stand_in.requests
        local = {name: hashlib.sha256((published / name).read_bytes()).hexdigest() for name in files}
        assert downloaded.items() >= local.items()
        assert downloaded.keys() - local.keys() == {".gitattributes"}
        stored = stand_in.repos["me/small"]
        assert stored.keys() == again.keys() | {".gitattributes"}, "what was published before is in the way"
        assert "model.safetensors" not in stored

        environment |= stand_in.environment(tmp_path / "elsewhere") | {"HF_TOKEN": ""}
        command = [python_without_radfm, "-c", ELSEWHERE, "me/small"]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert run.returncode == 0, run.stderr[-2000:]
    texts, embeds, disorders, thresholds = json.loads(run.stdout.splitlines()[-1])
    model = RadFMForDiagnosis.from_pretrained(checkpoint)
    with torch.no_grad():
        expected = model.get_text_features(**RadFMProcessor.from_pretrained(checkpoint)(text=["Glioma"]))
    torch.testing.assert_close(torch.tensor(texts), expected.float())
    torch.testing.assert_close(torch.tensor(embeds), model.head.disorder_embeds.float())
    assert (disorders, thresholds) == (DISORDERS, [0.4, 0.5, None])


def test_the_command_prints_the_card_or_what_it_wrote(radfm, checkpoint, evaluation, tmp_path):
    status, out, _ = radfm("publish", checkpoint, "me/small", "--evaluation", evaluation, "--dry-run")
    assert status == 0
    assert yaml.safe_load(out.split("---\n")[1])["model-index"]
    status, out, _ = radfm("publish", checkpoint, "me/small", "--dry-run", "--out", tmp_path / "out", "--json")
    assert json.loads(out)["left_out"] == ["cases.csv", "checkpoint-20/"]
    status, _, err = radfm("publish", checkpoint, "me/small", "--dry-run", "--out", tmp_path / "out")
    assert status == 1
    assert "is not empty" in err
