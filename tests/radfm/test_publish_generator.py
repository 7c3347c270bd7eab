"""`radfm publish` of generators: what is needed to sample from them, their card, and what was measured."""

import json
import re
import shutil
from pathlib import Path

import hub
import pytest

from radfm.latents.autoencoders import Autoencoder
from radfm.latents.generator import Generator
from radfm.publishing.publish import Request, publish
from radfm.recipes_radfm import DIFFUSION_RECIPE
from tests.tiny_generator import save, tiny_autoencoder, tiny_generator

PHANTOMS = {
    "title": "radfm phantoms",
    "source": "phantoms",
    "licence": "Apache-2.0",
    "fingerprint": "f" * 64,
    "patients": 9,
    "cases": 9,
    "scans": 20,
    "modalities": {"CT": 20},
    "body_parts": {"chest": 20},
    "unpublishable": 0,
}
HOSPITAL = PHANTOMS | {"title": "A hospital", "source": "dicom", "licence": None}
RECIPE = {
    "config": {
        "data": {"by_disorder": 0.3},
        "training": {"batch_size": 4, "learning_rate": 1e-3, "ema_decay": 0.9},
    },
    "latents": {"train": 20, "validation": 4},
    "steps": 5,
    "log": [],
}
FIGURE = {"value": 0.125, "low": 0.0625, "high": 0.25}
SPACE = {"closer": FIGURE, "closer_samples": 5, "auc": {"value": 0.375, "low": 0.25, "high": 0.5}, "copies": 0}


def generator_of(data: dict, folder: Path, **facts) -> Path:
    return save(tiny_generator(facts={"data": data, "known": {"Pneumothorax": 7}} | facts), folder)


def sharing_of(generator: Path, folder: Path) -> Path:
    folder.mkdir()
    result = {
        "generator": Generator.from_pretrained(generator).fingerprint,
        "data": "f" * 64,
        "samples": 40,
        "training": 20,
        "held_out": 10,
        "held_out_split": "test",
        "quantile": 0.05,
        "autoencoder": None,
        "spaces": {"pixels": SPACE, "model": SPACE},
        "membership": {"auc": {"value": 0.625, "low": 0.5, "high": 0.75}, "recall": FIGURE},
    }
    (folder / "sharing.json").write_text(json.dumps(result))
    return folder


def test_a_published_generator_is_the_same_without_paths_and_other_files(radfm, tmp_path):
    tiny_autoencoder().save_pretrained(tmp_path / "autoencoder")
    generator = tiny_generator(facts={"data": PHANTOMS})
    loaded = Autoencoder.from_pretrained(tmp_path / "autoencoder", statistics={"mean": [0.0] * 4, "std": [0.5] * 4})
    generator.autoencoder = loaded  # diffusers notes where it came from
    folder = save(generator, tmp_path / "generator")
    (folder / DIFFUSION_RECIPE).write_text(json.dumps(RECIPE))
    (folder / "notes.csv").write_text("case,patient\n1,Smith^John\n")
    out = tmp_path / "out"
    arguments = ("publish", folder, "me/lungs", "--license", "apache-2.0", "--dry-run", "--out", out)
    status, shown, _ = radfm(*arguments, "--json")
    assert status == 0
    answer = json.loads(shown)
    assert answer["left_out"] == ["notes.csv"]
    assert {"generator.json", "denoiser/model.safetensors", "autoencoder/config.json", DIFFUSION_RECIPE} <= {
        *answer["files"]
    }
    assert Generator.from_pretrained(out).fingerprint == generator.fingerprint
    assert str(tmp_path) not in "".join(file.read_text() for file in out.rglob("*.json"))
    card = (out / "README.md").read_text()
    assert not hub.faults(card)
    assert 'Generator.from_pretrained(snapshot_download("me/lungs"))' in card
    assert "license: apache-2.0" in card
    assert "**Not evaluated.**" in card


def test_a_generator_that_learned_from_patients_needs_what_was_measured_with_its_samples(tmp_path):
    folder = generator_of(HOSPITAL, tmp_path / "generator")
    with pytest.raises(
        ValueError, match="learned from patients, and may have memorised some: run radfm evaluate sharing"
    ):
        publish(Request(folder, "me/lungs"), tmp_path / "refused", upload=False)
    assert not (tmp_path / "refused").exists()
    learned_to_decode = generator_of(PHANTOMS, tmp_path / "other", autoencoder_data=HOSPITAL)
    with pytest.raises(ValueError, match="learned from patients"):
        publish(Request(learned_to_decode, "me/lungs"), tmp_path / "refused", upload=False)

    sharing = sharing_of(folder, tmp_path / "sharing")
    card = publish(Request(folder, "me/lungs", [sharing]), tmp_path / "out", upload=False).card
    assert not hub.faults(card)
    assert "| samples closer than 95% of the real slices (5% expected) | 12.5% (6.2% to 25.0%) | 12.5%" in card
    assert "0.375 (0.250–0.500)" in card
    assert "with an AUC of 0.625 (0.500–0.750)" in card
    table = re.search(r"(\|[^\n]*\n)+", card[card.index("| distance to the nearest") :]).group()
    assert [line.count("|") for line in table.splitlines()] == [4] * 5
    again = publish(Request(tmp_path / "out", "me/lungs"), tmp_path / "again", upload=False)
    assert again.card == card

    shutil.copy(sharing / "sharing.json", tmp_path / "sharing.json")
    other = save(tiny_generator("dit", {"data": HOSPITAL}), tmp_path / "dit")
    request = Request(other, "me/lungs", [tmp_path / "sharing.json"])
    with pytest.raises(ValueError, match="was made with samples of generator"):
        publish(request, tmp_path / "refused", upload=False)


@pytest.mark.parametrize("key", ["data", "autoencoder_data"])
def test_a_generator_of_cases_that_must_not_be_published_is_refused(tmp_path, key):
    facts = {"data": PHANTOMS, key: PHANTOMS | {"unpublishable": 2}}
    folder = save(tiny_generator(facts=facts), tmp_path / "generator")
    with pytest.raises(ValueError, match="has learned from 2 cases that a published model must not learn from"):
        publish(Request(folder, "me/lungs"), tmp_path / "refused", upload=False)


def test_a_damaged_generator_is_one_line(radfm, tmp_path):
    folder = generator_of(PHANTOMS, tmp_path / "generator")
    (folder / "denoiser" / "model.safetensors").write_bytes(b"x" * 100)
    status, _, error = radfm("publish", folder, "me/lungs", "--dry-run")
    assert status == 1
    assert "holds a damaged generator" in error
