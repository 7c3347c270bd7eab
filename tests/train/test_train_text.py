"""Training of a text encoder: its pairs and batches, on one process and on two, and after it was killed."""

import json
import os
import shutil
import subprocess
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from radfm import starting_points
from radfm.knowledge import icd10cm, ontology
from radfm.starting_points.sentence_encoder import load_encoder
from radfm.train.batches import LengthBatchSampler
from radfm.train.config import configured
from radfm.train.text import TextTraining, train
from radfm.train.text_pairs import text_pairs
from radfm.train.vocabulary import spell_abbreviations, trim_vocabulary
from tests.waiting import TIMEOUT

ORGANS = ["lung", "liver", "kidney", "spleen", "brain", "heart", "bone", "skin", "eye", "ear", "colon", "breast"]


@pytest.fixture(scope="module")
def obo(tmp_path_factory) -> Path:
    """Two kinds of disease of twelve organs, each with a synonym, a definition and a code."""
    lines = ["format-version: 1.2", "ontology: toy", "data-version: 2026-01-01"]
    lines += ['property_value: terms:license "https://creativecommons.org/publicdomain/zero/1.0/" xsd:string']
    lines += ["", "[Term]", "id: T:0", "name: disease"]
    for i, organ in enumerate(ORGANS):
        for k, (kind, code) in enumerate((("cancer", "C80.1"), ("abscess", "L02.91"))):
            lines += ["", "[Term]", f"id: T:{2 * i + k + 1}", f"name: {organ} {kind}", "is_a: T:0"]
            lines += [f'def: "A {kind} that is located_in the {organ}." []', f"xref: ICD10CM:{code}"]
            lines += [f'synonym: "{kind} of the {organ}" EXACT []']
    path = tmp_path_factory.mktemp("obo") / "toy.obo"
    path.write_text("\n".join(lines) + "\n")
    return path


def config(output: Path, base: Path, obo: Path, **changes) -> TextTraining:
    training = {"per_device_train_batch_size": 8, "max_steps": 6, "save_steps": 3, "logging_steps": 1}
    training |= {"learning_rate": 1e-3, "report_to": [], "disable_tqdm": True} | changes.pop("training", {})
    kinds = ["synonyms", "definitions", "cross references", "hierarchy"]
    data = {"ontologies": [str(obo)], "knowledge": kinds, "hierarchy_pairs": 40}
    model = {"base": str(base), "trim": False, "base_share": 0.0, "average_from": None}
    sections = {
        "output": str(output),
        "data": data | changes.get("data", {}),
        "model": model | changes.get("model", {}),
        "training": training,
    }
    return configured(TextTraining, sections)


def losses(output: Path) -> list[float]:
    last = max(output.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_a_term_held_out_gives_neither_names_nor_synonyms_nor_definition(obo):
    known = ontology.read(obo)
    secret = [term for term in known if ontology.fold(term.id) == 2 and term.synonyms]
    assert len(secret) > 2
    pairs = text_pairs([known], ["synonyms", "definitions", "parents", "cross references"], held_out=2)
    used = {text for rows in pairs.values() for name in rows.column_names[:2] for text in rows[:][name]}
    for term in secret:
        assert used.isdisjoint({term.name, term.definition, *(s.text for s in term.synonyms)})
    assert used >= {term.name for term in known if ontology.fold(term.id) != 2 and term.synonyms}


def test_a_term_held_out_of_one_ontology_is_held_out_of_another(tmp_path):
    held, other = (next(f"{kind}:{i}" for i in range(99) if (ontology.fold(f"{kind}:{i}") == 2) == out)
                   for kind, out in (("A", True), ("B", False)))  # fmt: skip
    known = []
    for term, name, synonym in ((held, "IgA vasculitis", "Schoenlein purpura"), (other, "Purpura", "IgA Vasculitis")):
        file = tmp_path / f"{term[0]}.obo"
        file.write_text(f'format-version: 1.2\n\n[Term]\nid: {term}\nname: {name}\nsynonym: "{synonym}" EXACT []\n'
                        f'\n[Term]\nid: {term[0]}:fever\nname: fever\nsynonym: "pyrexia" EXACT []\n')  # fmt: skip
        known.append(ontology.read(file))
    assert {"Purpura", "IgA vasculitis"} <= set(text_pairs(known, ["synonyms"])["names"]["positive"])
    assert set(text_pairs(known, ["synonyms"], held_out=2)["names"]["positive"]) == {"fever"}


def test_kinds_of_knowledge_can_be_left_out(obo):
    known = [ontology.read(obo)]
    assert set(text_pairs(known, ["synonyms"])) == {"names"}
    assert set(text_pairs(known, ["definitions", "hierarchy"])) == {"definitions", "hierarchy"}
    with pytest.raises(ValueError, match="no such kind of knowledge: gossip"):
        text_pairs(known, ["gossip"])


def test_hierarchy_pairs_grade_kinship_and_leave_out_held_out_categories():
    rows = text_pairs(kinds=["hierarchy"], held_out=0, hierarchy_pairs=300)["hierarchy"]
    assert min(rows["score"]) < 0.3
    assert max(rows["score"]) > 0.8
    secret = {e.description for e in icd10cm.entries("category") if ontology.fold(e.code) == 0}
    assert secret.isdisjoint(rows["first"])


def test_every_name_of_a_code_is_a_pair_with_its_description():
    rows = text_pairs(kinds=["inclusion terms"])["names"]
    pairs = set(zip(rows["anchor"], rows["positive"], strict=True))
    assert ("Classical cholera", "Cholera due to Vibrio cholerae 01, biovar cholerae") in pairs
    assert all(anchor != positive for anchor, positive in pairs)
    assert len(pairs) == len(rows)


def test_initials_stand_for_the_one_name_that_they_spell(tmp_path):
    names = ["Allan-Herndon-Dudley syndrome", "Charcot-Marie-Tooth disease type 2A", "fever"]
    names += ["neuropathy, ataxia and retinitis pigmentosa", "nail atrophy of rare people"]  # both of them NARP
    names += ["hypertension"]
    lines = ["format-version: 1.2"]
    for i, name in enumerate(names):
        lines += ["", "[Term]", f"id: T:{i}", f"name: {name}"]
    (tmp_path / "toy.obo").write_text("\n".join(lines) + "\n")
    rows = text_pairs([ontology.read(tmp_path / "toy.obo")], ["initials"])["names"]
    pairs = dict(zip(rows["anchor"], rows["positive"], strict=True))
    assert pairs == {"AHDS": names[0], "CMTD2A": names[1], "FEVER": "fever"}


def test_parents_are_near_and_not_the_same(obo):
    rows = text_pairs([ontology.read(obo)], ["parents"], hierarchy_pairs=400)["hierarchy"]
    parents = {round(row["score"], 3) for row in rows if "disease" in (row["first"], row["second"])}
    siblings = {round(row["score"], 3) for row in rows if "disease" not in (row["first"], row["second"])}
    assert round(11 / 12, 3) in parents
    assert round(10 / 12, 3) in siblings
    assert max(parents | siblings) < 1


def test_batches_hold_texts_of_like_length_and_none_twice():
    texts = [f"{'long ' * (i % 10)}text {i % 90}" for i in range(400)]
    rows = Dataset.from_dict({"anchor": texts, "positive": [f"{t}!" for t in texts]})
    sampler = LengthBatchSampler(rows, batch_size=16, drop_last=True, seed=1)
    batches = list(sampler)
    assert batches == list(sampler)
    spread = [max(map(len, actual)) - min(map(len, actual)) for actual in ([texts[i] for i in b] for b in batches)]
    assert sum(spread) / len(spread) < 16  # of 50
    assert all(len({texts[i] for i in batch}) == 16 for batch in batches)
    sampler.set_epoch(1)
    assert batches != list(sampler)


def test_no_text_meets_another_of_its_names_in_a_batch():
    names = [f"disease {i}" for i in range(64)]
    pairs = [(f"{name}, otherwise {k}", name) for name in names for k in range(4)]
    pairs += [(f"{name}, otherwise {k}", f"code of {name}") for name in names for k in range(4)]
    anchors, positives = map(list, zip(*pairs, strict=True))
    sampler = LengthBatchSampler(Dataset.from_dict({"anchor": anchors, "positive": positives}), 16, drop_last=True)
    for batch in sampler:
        assert len({pairs[i][1].removeprefix("code of ") for i in batch}) == 16


def test_neighbours_meet_in_a_batch_more_often_than_by_chance():
    families = [f"{kind} {i}" for kind in ("goitre", "stroke", "asthma", "eczema") for i in range(64)]
    rows = Dataset.from_dict({"anchor": families, "positive": [f"{name}!" for name in families]})
    batches = list(LengthBatchSampler(rows, batch_size=8, drop_last=True, seed=0))
    alike = [families[i].split()[0] == families[j].split()[0] for b in batches for i in b for j in b if i != j]
    assert sum(alike) / len(alike) > 0.4  # by chance 0.25


def test_a_trimmed_vocabulary_embeds_its_texts_as_before_and_still_spells_all_others(text_encoder):
    texts = ["Pneumothorax", "Crohn's disease of the small bowel", "tumour of the pleura"]
    whole, trimmed = load_encoder(text_encoder), load_encoder(text_encoder)
    before = len(trimmed.tokenizer)
    left = trim_vocabulary(trimmed, texts)
    assert left == len(trimmed.tokenizer) < before / 5
    torch.testing.assert_close(
        trimmed.encode(texts, convert_to_tensor=True), whole.encode(texts, convert_to_tensor=True)
    )
    assert trimmed.tokenizer.unk_token not in trimmed.tokenizer.tokenize("quizzical zygote")


def test_abbreviations_are_spelled_and_so_they_stay_in_the_file(text_encoder, tmp_path):
    model = load_encoder(text_encoder)
    spell_abbreviations(model)
    trim_vocabulary(model, ["left anterior cruciate ligament tear"])
    model.save(str(tmp_path))
    spelled = SentenceTransformer(str(tmp_path), device="cpu").tokenizer.backend_tokenizer.normalizer.normalize_str
    for text, read in {
        "left ACL tear": "left a c l tear",
        "CMT2A": "c m t 2 a",
        "SCA17, COG5-CDG": "s c a 17, c o g 5-c d g",
        "LAD III": "l a d iii",
        "type IV, type IIIA": "type iv, type iii a",
        "HIV": "h i v",
        "X-linked": "x-linked",
        "PNEUMONIA": "pneumonia",
        "ACUTE MYELOID TUMOR": "acute myeloid tumor",
    }.items():
        assert spelled(text) == read


def test_a_trained_encoder_loads_as_sentence_transformer_and_as_a_models_text_encoder(tmp_path, text_encoder, obo):
    output = train(config(tmp_path / "out", text_encoder, obo, model={"trim": True}, data={"held_out": 1}))
    recipe = json.loads((output / "radfm_text.json").read_text())
    assert recipe["held_out"] == 1
    licence = "https://creativecommons.org/publicdomain/zero/1.0/"
    assert recipe["ontologies"] == [{"name": "toy", "terms": 25, "version": "2026-01-01", "licence": licence}]
    assert recipe["effort"]["seconds"] > 0
    assert str(tmp_path) not in json.dumps(recipe)
    assert not list(output.glob("*.bin"))
    texts = ["lung cancer", "abscess of the liver"]
    theirs = SentenceTransformer(str(output), device="cpu").encode(texts, normalize_embeddings=True)
    model, processor = starting_points.untrained(text_encoder=output)
    ours = starting_points.embed_texts(model, processor, texts)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    assert not [file for file in (tmp_path / "model").glob("*.json") if str(tmp_path) in file.read_text()]
    assert type(model).from_pretrained(tmp_path / "model").config.text_config.vocab_size < 30522


def test_a_killed_run_resumes_to_the_same_weights(tmp_path, text_encoder, obo):
    whole = train(config(tmp_path / "whole", text_encoder, obo))
    shutil.copytree(whole / "checkpoint-3", tmp_path / "killed" / "checkpoint-3")
    resumed = train(config(tmp_path / "killed", text_encoder, obo))
    assert losses(resumed) == losses(whole)
    expected, actual = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_a_run_killed_after_its_last_checkpoint_takes_no_further_step(tmp_path, text_encoder, obo):
    whole = train(config(tmp_path / "whole", text_encoder, obo, model={"base_share": 0.5}))
    shutil.copytree(whole / "checkpoint-6", tmp_path / "killed" / "checkpoint-6")
    ended = train(config(tmp_path / "killed", text_encoder, obo, model={"base_share": 0.5}))
    assert [folder.name for folder in ended.glob("checkpoint-*")] == ["checkpoint-6"]
    expected, actual = load_file(whole / "model.safetensors"), load_file(ended / "model.safetensors")
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())
    kept = [{file.name for file in folder.iterdir()} - {"checkpoint-3", "runs"} for folder in (whole, ended)]
    assert kept[0] == kept[1]


def test_checkpoints_are_averaged_from_a_share_of_the_training_on_and_with_the_base(tmp_path, text_encoder, obo):
    averaged = train(
        config(tmp_path / "whole", text_encoder, obo, model={"average_from": 0.5}, training={"save_steps": 2})
    )
    ends = [load_file(averaged / f"checkpoint-{step}" / "model.safetensors") for step in (4, 6)]
    actual = load_file(averaged / "model.safetensors")
    for name, tensor in actual.items():
        torch.testing.assert_close(tensor, (ends[0][name] + ends[1][name]) / 2)
    shutil.copytree(averaged / "checkpoint-4", tmp_path / "killed" / "checkpoint-4")
    changes = {"model": {"average_from": 0.5, "base_share": 0.5}, "training": {"save_steps": 2}}
    half = load_file(train(config(tmp_path / "killed", text_encoder, obo, **changes)) / "model.safetensors")
    base = load_file(text_encoder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    torch.testing.assert_close(half[name], (actual[name] + base[name]) / 2)


@pytest.mark.parametrize(
    ("share", "training", "message"),
    [
        (0.5, {"save_total_limit": 2}, "needs all checkpoints"),
        (0.5, {"save_strategy": "no"}, "all checkpoints"),
        (400, {}, "average_from=400: Input should be less than or equal to 1"),
    ],
)
def test_averaging_that_is_impossible_is_refused_before_training(tmp_path, text_encoder, obo, share, training, message):
    with pytest.raises(ValueError, match=message):
        train(config(tmp_path, text_encoder, obo, model={"average_from": share}, training=training))


def test_a_run_that_has_ended_stays_as_it_is_unless_its_recipe_changes(tmp_path, text_encoder, obo):
    def written() -> dict[str, int]:
        return {str(file.relative_to(tmp_path)): file.stat().st_mtime_ns for file in tmp_path.rglob("*.*")}

    train(config(tmp_path, text_encoder, obo))
    ended = written()
    train(config(tmp_path, text_encoder, obo))
    assert written() == ended
    train(config(tmp_path, text_encoder, obo, training={"max_steps": 7}))
    assert len(losses(tmp_path)) == 7
    assert json.loads((tmp_path / "radfm_text.json").read_text())["config"]["training"]["max_steps"] == 7


@pytest.mark.parametrize("strategy", ["DDP", "zero2"])
def test_two_processes_learn_what_one_does(python, deepspeed_extensions, tmp_path, text_encoder, obo, strategy):
    ranked = ["synonyms", "definitions", "cross references"]  # CoSENT ranks the pairs of each process by themselves
    one = train(config(tmp_path / "one", text_encoder, obo, data={"knowledge": ranked}))
    written = config(tmp_path / "two", text_encoder, obo, data={"knowledge": ranked})
    if strategy == "zero2":
        written.training["deepspeed"] = str(files("radfm.train") / "configs" / "zero2.json")
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(asdict(written)))
    launch = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "radfm.train.text", str(tmp_path / "two.yaml")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected, actual = load_file(one / "model.safetensors"), load_file(tmp_path / "two" / "model.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, atol=2e-4, rtol=0)


def test_a_base_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere cannot be loaded"):
        load_encoder(tmp_path / "nowhere")
