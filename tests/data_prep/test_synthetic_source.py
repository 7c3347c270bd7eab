"""Synthetic cases: an ordinary data set that says everywhere that no case is a patient, and follows from its seed."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from radfm.data_prep import load
from radfm.data_prep.data_summary import data_summary
from radfm.data_prep.latent_slices import LatentSlices
from radfm.data_prep.latents import prepare_latents
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.shard import record_file
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.data_prep.sources.synthetic import NAME, TRIES, Synthetic, disorder_names
from radfm.data_prep.tables import read_rows, write_rows
from radfm.data_prep.training_distances import TrainingDistances
from radfm.latents.generator import Generator
from radfm.recipes_radfm import synthetic_only
from radfm.training_data_radfm import TrainingData
from tests.tiny_generator import save, tiny_generator

FACTS = {
    "known": {"Pneumothorax": 30, "Rib fracture": 5},
    "contexts": {
        "": [["CT", "axial", "chest", 9]],
        "Pneumothorax": [["X-ray", "frontal", "chest", 20], ["CT", "axial", "chest", 10]],
        "Rib fracture": [["CT", "axial", "chest", 5]],
    },
    "data": {"title": "Chest cases", "source": "folder", "fingerprint": "f" * 64},
    "licence": "CC BY 4.0",
    "attribution": "The hospital",
    "publish": False,
}
SETTINGS = Settings(size=16, cases_per_shard=3)
ASKED = ["Pneumothorax", "rib fracture", "no finding"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tiny_generator(facts=FACTS), tmp_path_factory.mktemp("model") / "generator")


def source(model: Path, **options) -> Synthetic:
    return Synthetic(model, ASKED, 4, seed=3, steps=2, **options)


@pytest.fixture(scope="module")
def made(model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "synthetic"
    prepare(source(model), out, SETTINGS)
    return out


def test_samples_are_an_ordinary_data_set(made):
    cases = load(made, "train", labelled=True)
    assert len(cases) == 12
    assert [case.disorders for case in cases[::4]] == [["Pneumothorax"], ["Rib fracture"], []]
    assert {(case.scans[0].modality, case.scans[0].plane) for case in cases[:4]} <= {
        ("X-ray", "frontal"),
        ("CT", "axial"),
    }
    for case in cases:
        (scan,) = case.scans
        assert scan.pixels.shape == (1, 16, 16)
        assert scan.body_part == "chest"
        assert scan.pixels.dtype == (np.float16 if scan.modality == "CT" else np.uint8)
    assert [row["normal"] for row in cases.rows] == [False] * 8 + [True] * 4


def test_no_row_table_report_or_card_passes_for_a_patient(made, model):
    cases, fingerprint = load(made), Generator.from_pretrained(model).fingerprint
    assert cases.is_synthetic
    assert cases.record["source"] == NAME
    assert cases.record["synthetic"]["generator"] == fingerprint
    for number, row in enumerate(cases.rows):
        assert row["case_id"] == row["patient_id"]
        assert re.fullmatch(rf"synthetic-{fingerprint}-[0-9a-f]{{6}}-{number:06d}", row["case_id"])
        assert row["collection"] == NAME
        assert (row["licence"], row["attribution"], row["publish"]) == ("CC BY 4.0", "The hospital", False)
        assert cases.scan_header(row["scan_rows"][0])["source"] == NAME
    card = (made / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert "synthetic" in metadata["tags"]
    assert metadata["pretty_name"].startswith("SYNTHETIC")
    assert "**SYNTHETIC: no case of this data set is a patient.**" in card
    assert "not compared with the training cases" in card
    assert "SYNTHETIC: no case of this data set is a patient." in (made / "report.html").read_text()
    summary = data_summary(cases)
    assert summary["synthetic"] == fingerprint
    assert synthetic_only({"data": summary})
    assert TrainingData.of_recipe({"data": summary}).summary.startswith("Trained on 12 synthetic patients")


def test_phantoms_and_their_latents_are_synthetic_too(tmp_path, model):
    prepare(Phantoms(2, size=32), tmp_path / "phantoms", Settings(size=32))
    prepare_latents(tmp_path / "phantoms", tmp_path / "latents", model / "autoencoder")
    for folder in ("phantoms", "latents"):
        cases = load(tmp_path / folder)
        assert cases.is_synthetic
        assert synthetic_only({"data": data_summary(cases)})
    assert "SYNTHETIC: no case" in (tmp_path / "phantoms" / "report.html").read_text()


def test_a_killed_run_continues_with_the_same_samples(made, model, tmp_path, monkeypatch):
    sample, calls = Generator.sample, []

    def killed(generator, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(generator, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "sample", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(source(model), tmp_path / "out", SETTINGS)
    assert [record_file(tmp_path / "out", shard).exists() for shard in range(4)] == [True, True, False, False]
    prepare(source(model), tmp_path / "out", SETTINGS)
    for file in sorted(made.rglob("*")):
        if file.is_file():
            assert (tmp_path / "out" / file.relative_to(made)).read_bytes() == file.read_bytes(), file


def test_a_sample_does_not_depend_on_what_else_is_asked_for(made, model, tmp_path):
    prepare(
        Synthetic(model, ["Rib fracture"], 4, seed=3, steps=2), tmp_path / "out", Settings(size=16, cases_per_shard=4)
    )
    alone, together = load(tmp_path / "out"), load(made)
    for row in range(4):
        first, second = (cases[i].scans[0].pixels.astype(float) for cases, i in ((alone, row), (together, 4 + row)))
        np.testing.assert_allclose(first, second, atol=1, rtol=1e-2)


def test_an_unknown_disorder_warns_with_the_nearest_known_and_is_made(model, tmp_path):
    with pytest.warns(UserWarning, match="never saw 'Collapsed lung'; the nearest that it knows is 'Pneumothorax'"):
        unknown = Synthetic(model, ["Collapsed lung"], 2, steps=2)
    record = prepare(unknown, tmp_path / "out", SETTINGS)
    assert record["synthetic"]["never_seen_by_the_generator"] == {"Collapsed lung": "Pneumothorax"}
    assert {case.scans[0].modality for case in load(tmp_path / "out")} <= {"X-ray", "CT"}
    assert "Collapsed lung (never seen by the generator)" in (tmp_path / "out" / "README.md").read_text()


@pytest.fixture(scope="module")
def real(tmp_path_factory, model) -> Path:
    folder = tmp_path_factory.mktemp("real")
    prepare(Phantoms(30, size=32), folder / "phantoms", Settings(size=32, fractions=(0.5, 0.3, 0.2)))
    prepare_latents(folder / "phantoms", folder / "latents", model / "autoencoder")
    return folder / "latents"


def trained_on(real: Path, folder: Path) -> Path:
    """A generator that states that it was trained on these latents."""
    record = load(real).record
    facts = FACTS | {"data": {"title": "Phantoms", "fingerprint": record["fingerprint"]}}
    facts |= {"derived_from": record["derived_from"]}
    return save(tiny_generator(facts=facts), folder)


def test_copies_of_training_cases_are_recognised(real):
    distances = TrainingDistances(real)
    training, held_out = LatentSlices(load(real, "train")), LatentSlices(load(real, "validation"))
    copies, others = training.latents([0, 5]), held_out.latents(range(len(held_out)))
    assert distances(copies + 0.001 * torch.randn_like(copies)).max() < 0.002
    modalities = [prompt.modality for prompt in held_out]
    limits = torch.tensor([distances.limit(modality) for modality in modalities])
    closer = (distances(others) < limits).float().mean()
    assert 0 < closer <= 0.1


def test_samples_that_are_too_close_to_a_training_case_are_refused_and_replaced(real, tmp_path, monkeypatch):
    model = trained_on(real, tmp_path / "generator")
    copy = LatentSlices(load(real, "train")).latents([0])[0]
    sample = Generator.sample

    def memorised(generator, prompts, seeds, *arguments):
        samples = sample(generator, prompts, seeds, *arguments)
        return torch.where((torch.tensor(seeds) % 2 == 0).view(-1, 1, 1, 1), copy, samples)

    monkeypatch.setattr(Generator, "sample", memorised)
    record = prepare(source(model, real=real, closest=0.2), tmp_path / "out", SETTINGS)
    accepted = record["synthetic"]["disorders"]["Pneumothorax"]
    assert accepted["samples"] == accepted["accepted"] + accepted["too_close"]
    assert accepted["too_close"] > 0
    refused = list(csv.DictReader((tmp_path / "out" / "rejected.csv").open()))
    assert {line["what"] for line in refused} >= {"sample"}
    reasons = {line["reason"] for line in refused if line["what"] == "sample"}
    assert reasons == {"it is closer to a training case than other patients are"}  # and not by how much
    assert "were refused" in (tmp_path / "out" / "README.md").read_text()


def test_copies_and_shared_patients_among_the_held_out_latents_are_left_out(real, tmp_path):
    plain = TrainingDistances(real)
    assert plain.left_out == 0
    copied, shared, *_ = load(real, "validation").rows
    shutil.copytree(real, tmp_path / "latents")
    rows = read_rows(real, "cases")
    for row in rows:
        if row["case_id"] == copied["case_id"]:
            row["scan_rows"] = load(real, "train").rows[0]["scan_rows"]
        if row["case_id"] == shared["case_id"]:
            row["patient_id"] = load(real, "train").rows[1]["patient_id"]
    write_rows(tmp_path / "latents", "cases", rows)
    distances = TrainingDistances(tmp_path / "latents", closest=0.05)
    assert distances.left_out == len(load(real, "train").rows[0]["scan_rows"]) + len(shared["scan_rows"])
    assert distances.limit("no modality") > 0.01


def test_sets_of_two_seeds_can_be_joined_and_say_what_their_generator_learned_from(real, tmp_path):
    model = trained_on(real, tmp_path / "generator")
    for seed in (0, 1):
        source = Synthetic(model, ["Rib fracture"], 2, seed, steps=2)
        record = prepare(source, tmp_path / f"seed{seed}", SETTINGS)
        stated = load(real).record
        assert record["synthetic"]["trained_on"] == {
            "fingerprint": stated["fingerprint"],
            "derived_from": stated["derived_from"],
        }
    first, second = ({row["case_id"] for row in load(tmp_path / f"seed{seed}").rows} for seed in (0, 1))
    assert len(first | second) == 4


def test_a_generator_that_only_copies_makes_no_data_set(real, tmp_path, monkeypatch):
    model = trained_on(real, tmp_path / "generator")
    copy = LatentSlices(load(real, "train")).latents([0])
    monkeypatch.setattr(Generator, "sample", lambda generator, prompts, *_: copy.expand(len(prompts), -1, -1, -1))
    with pytest.raises(ValueError, match="no case has a usable scan"):
        prepare(Synthetic(model, ["Pneumothorax"], 2, steps=2, real=real), tmp_path / "out", SETTINGS)
    assert len(list(csv.DictReader((tmp_path / "out" / "rejected.csv").open()))) == 2 * (TRIES + 1)


def test_other_latents_than_those_of_the_training_are_refused(real, model):
    with pytest.raises(ValueError, match="is not the data set that the generator was trained on"):
        source(model, real=real)


def test_names_are_given_with_commas_or_semicolons_between_them(tmp_path):
    known = {"Malignant neoplasm of upper lobe, bronchus or lung": 3, "Gout": 2}
    model = save(tiny_generator(facts={"known": known}), tmp_path / "generator")
    assert disorder_names("gout, malignant neoplasm of upper lobe, bronchus or lung,Ascites", model) == [
        "gout",
        "malignant neoplasm of upper lobe, bronchus or lung",
        "Ascites",
    ]
    assert disorder_names("Aneurysm, ruptured; Gout", model) == ["Aneurysm, ruptured", "Gout"]
    assert disorder_names("all", model) == list(known)


def test_wrong_arguments_are_named(model):
    for disorders, count, options in ((["Gout"], 0, {}), ([" "], 1, {}), (["Gout"], 1, {"threshold": 2.0})):
        with pytest.raises(ValueError, match=r"at least one|from 0 to 1"):
            Synthetic(model, disorders, count, **options)


def test_the_command_makes_a_marked_data_set(radfm, model, tmp_path):
    options = ("--disorders", "Pneumothorax,Gout", "--per-disorder", 2, "--steps", 2, "--processes", 1)
    status, _, errors = radfm("prepare", "synthetic", tmp_path / "out", "--model", model, *options)
    assert status == 1
    assert "give --real LATENTS" in errors
    options += ("--no-comparison",)
    status, output, errors = radfm("prepare", "synthetic", tmp_path / "out", "--model", model, *options)
    assert status == 0, errors
    assert "SYNTHETIC: no case is a patient" in output
    assert "Pneumothorax: 2 of 2 (100%)" in output
    assert "never saw 'Gout'" in errors
    status, output, errors = radfm(
        "prepare", "synthetic", tmp_path / "other", "--model", tmp_path, "--disorders", "Gout", "--no-comparison"
    )
    assert status == 1
    assert errors.strip().count("\n") == 0
    assert "holds no generator" in errors
