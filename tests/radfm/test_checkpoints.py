"""The checkpoints that come with radfm: loaded by name, from any folder, without a network."""

import os
import subprocess
import sys
from pathlib import Path

import hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, pipeline

from radfm import RadFMConfig, RadFMForDiagnosis, RadFMProcessor, checkpoints, examples, read_case
from radfm.cases import Case, Scan
from radfm.knowledge import icd10cm
from radfm.knowledge.disorders import link
from radfm.publishing.publish import Request, publish
from radfm.recipes_radfm import load_recipe
from radfm.starting_points import embed_texts, text_embedder, untrained
from tests.radfm.untrained import STUDY

MODEL, TEXT = "radfm-phantom-mini", "radfm-text-mini"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A user's empty cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        checkpoints.folder.cache_clear()
        yield
    checkpoints.folder.cache_clear()


@pytest.mark.parametrize(
    "finder", [AutoModel, RadFMForDiagnosis, AutoProcessor, RadFMProcessor, AutoConfig, RadFMConfig]
)
def test_from_pretrained_knows_the_name(finder):
    assert type(finder.from_pretrained(MODEL)).__name__.startswith("RadFM")


def test_a_study_is_diagnosed_in_three_lines():
    diagnose = pipeline("zero-shot-diagnosis", model=MODEL)
    answers = diagnose(read_case(STUDY), candidate_labels=["Cerebral infarction", "Segond fracture"])
    assert {answer["label"] for answer in answers} == {"Cerebral infarction", "Segond fracture"}
    assert diagnose.model.config.trained
    assert diagnose.model.dtype == torch.float32


def test_the_default_has_seen_patients_and_warns_of_what_it_has_not_seen():
    diagnose = pipeline("zero-shot-diagnosis", model=checkpoints.DEFAULT)
    learned = diagnose.training_data
    assert learned.patients > 3000
    assert learned.collections > 20
    assert not learned.synthetic_only
    assert diagnose.model_alerts == []
    known = diagnose(examples.load("pneumonia"), return_attentions=True)
    assert known["alerts"] == []
    assert known["diagnoses"][0]["score"] > known["diagnoses"][-1]["score"]
    noise = Scan(np.random.default_rng(0).normal(100, 40, (1, 200, 200)), modality="fluoroscopy", body_part="hip")
    alerts = diagnose(Case([noise]), return_attentions=True)["alerts"]
    assert any("is out of distribution" in alert for alert in alerts)
    assert any("body part: hip" in alert for alert in alerts)


def test_the_default_was_trained_on_what_may_be_published():
    recipe = load_recipe(str(checkpoints.folder(checkpoints.DEFAULT)))
    assert recipe["config"]["data"]["publishable"]
    assert recipe["data"]["unpublishable"] == 0
    assert all(each["licence"] and each["attribution"] for each in recipe["data"]["attributions"])
    assert not any("NC" in each["licence"] for each in recipe["data"]["attributions"])


@pytest.mark.parametrize("first", ["radfm", "transformers"])
def test_either_may_be_imported_first(first):
    second = {"radfm": "transformers", "transformers": "radfm"}[first]
    code = f"import {first}, {second}; from transformers import pipeline; "
    code += f"print(pipeline('zero-shot-diagnosis', model='{MODEL}').model.config.model_type)"
    if first == "transformers":
        code = "from transformers import pipeline; " + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "radfm\n"


def test_both_have_one_text_encoder():
    model, processor = RadFMForDiagnosis.from_pretrained(MODEL), RadFMProcessor.from_pretrained(MODEL)
    encoder, tokenizer = AutoModel.from_pretrained(TEXT), AutoTokenizer.from_pretrained(TEXT)
    own = model.radfm.text_encoder.encoder.state_dict()
    shared = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("pooler.")}
    assert own.keys() == shared.keys()
    assert all(torch.equal(own[name], shared[name]) for name in shared)
    assert tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    started, started_with = untrained(text_encoder=TEXT)
    likeness = embed_texts(started, started_with, ["torn ACL", "Sprain of anterior cruciate ligament", "Gallstones"])
    assert likeness[0] @ likeness[1] > likeness[0] @ likeness[2] + 0.2


def test_the_text_encoder_knows_what_names_mean_where_words_do_not():
    codes = [entry.code for entry in icd10cm.entries("category", "subcategory") if entry.code[0] in "JK"]
    codes = [code for code in codes if len(code) <= 5]
    embed = text_embedder(TEXT)
    described = embed([icd10cm.get(code).description for code in codes])
    for name, code in {
        "blocked bile duct": "K83.1",
        "swollen salivary gland": "K11.1",
        "gum inflammation": "K05",
    }.items():
        assert link(name, top=1).candidates[0].code != code
        assert codes[int((described @ embed([name])[0]).argmax())] == code


def test_radfm_embeds_texts_as_sentence_transformers_does():
    texts = ["water on the lung", "Pleural effusion, not elsewhere classified", "ACL tear"]
    theirs = SentenceTransformer(str(checkpoints.folder(TEXT))).encode(texts)
    np.testing.assert_allclose(text_embedder(TEXT)(texts), theirs, atol=0.01)  # computed in bfloat16


def test_together_they_are_under_60_megabytes_and_hold_no_pickle():
    files = [file for name in checkpoints.NAMES for file in (Path(checkpoints.__file__).parent / name).rglob("*")]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 60e6
    assert {file.suffix for file in files if file.is_file()} == {".json", ".safetensors"}


@pytest.mark.parametrize("name", checkpoints.NAMES)
def test_its_card_is_what_publishing_it_writes(name, tmp_path):
    """So each figure of model_cards/ is of the evaluation that lies beside these very weights."""
    done = publish(Request(checkpoints.folder(name), name), tmp_path / "out", upload=False)
    assert done.card == (ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8")
    assert not hub.faults(done.card)
    assert "Not evaluated" not in done.card
    assert "unknown" not in str(ModelCard(done.card).data.license)


def test_the_whole_folder_is_made_once(cache):
    whole = checkpoints.folder(MODEL)
    before = (whole / "model.safetensors").stat().st_mtime_ns
    checkpoints.folder.cache_clear()
    assert checkpoints.folder(MODEL) == whole
    assert (whole / "model.safetensors").stat().st_mtime_ns == before
    kept = {folder.name.rpartition("-")[0] for folder in whole.parent.parent.iterdir()}
    assert kept <= set(checkpoints.NAMES)  # nothing half done is left


def test_a_checkpoint_loads_without_a_writable_home(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    checkpoints.folder.cache_clear()
    assert (checkpoints.folder(MODEL) / "model.safetensors").is_file()
    checkpoints.folder.cache_clear()


def test_a_folder_of_that_name_takes_precedence(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    os.mkdir(MODEL)
    assert checkpoints.resolve(MODEL) == MODEL
    with pytest.raises(ValueError, match="holds no config"):
        checkpoints.find(MODEL)


@pytest.mark.parametrize(
    ("model", "local", "message"),
    [
        ("nowhere", False, "nowhere: no such folder"),
        ("some-owner/some-model", True, "some-owner/some-model: no such folder"),
        (TEXT, True, "config.json is of another model"),
    ],
)
def test_a_folder_that_is_not_a_checkpoint_is_refused(model, local, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        checkpoints.find(model, local=local)


def test_a_name_on_the_hub_is_left_to_transformers():
    assert checkpoints.find("some-owner/some-model") == "some-owner/some-model"
    with pytest.raises(ValueError, match="there are radfm-text-mini, radfm-open-mini, radfm-phantom-mini"):
        checkpoints.folder("radfm-maxi")
