"""A latent classifier keeps the samples in which it sees what was asked for, and decodes no others."""

import csv
from pathlib import Path

import pytest
import torch

from radfm import Case, RadFMConfig, RadFMForDiagnosis, RadFMImageProcessor, RadFMProcessor, Scan
from radfm.data_prep import load
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.synthetic import Synthetic
from radfm.latents.autoencoders import Autoencoder
from radfm.latents.generator import Prompt
from radfm.latents.rejection import LatentClassifier
from tests.tiny_generator import save, tiny_autoencoder, tiny_generator

NAMES = ["Pneumothorax", "Rib fracture", "Meniscus tear"]
CHEST = [["X-ray", "frontal", "chest", 5]]
FACTS = {
    "known": dict.fromkeys(NAMES, 5),
    "contexts": {"": CHEST, NAMES[0]: CHEST, NAMES[1]: CHEST, NAMES[2]: [["MRI", "sagittal", "knee", 5]]},
}


def classifier_folder(config: dict, folder: Path, autoencoder: str) -> Path:
    """A classifier of random weights, whose probabilities of the three disorders differ from sample to sample."""
    torch.manual_seed(0)
    vision = {
        "family": "latent",
        "tower": "test_convnext",
        "image_size": 8,
        "tower_args": {"in_chans": 4, "patch_size": 1},
    }
    model = RadFMForDiagnosis(RadFMConfig(**config | {"vision_config": vision}, head="linear", disorders=NAMES))
    torch.nn.init.normal_(model.head.fc.weight, std=2)
    images = RadFMImageProcessor(size=8, latents={"autoencoder": autoencoder, "channels": 4})
    processor = RadFMProcessor(images)
    cases = [Case([Scan(latent[None], "X-ray")]) for latent in torch.randn(40, 4, 8, 8).numpy()]
    with torch.no_grad():
        model.head.fc.bias -= model.eval()(**processor(cases=cases)).logits.mean(0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def classifier(tiny_config, tmp_path) -> Path:
    return classifier_folder(tiny_config, tmp_path / "classifier", tiny_autoencoder().fingerprint)


def test_a_sample_is_kept_if_no_rival_is_more_probable(classifier):
    judge = LatentClassifier(classifier, NAMES, tiny_autoencoder().fingerprint)
    latents, prompts = torch.randn(40, 4, 8, 8), [Prompt([NAMES[0]], "X-ray")] * 40
    probabilities = judge.probabilities(latents, prompts)
    assert probabilities.std(0).min() > 0.01
    rivals = [set(NAMES[:2])] * 40
    reasons = judge.refusals(latents, prompts, rivals, threshold=0.4)
    kept = [reason is None for reason in reasons]
    assert kept == ((probabilities[:, 0] >= 0.4) & (probabilities[:, 0] >= probabilities[:, 1])).tolist()
    assert 0 < sum(kept) < 40
    normal = judge.refusals(latents, [Prompt((), "X-ray")] * 40, rivals, threshold=0.4)
    assert [reason is None for reason in normal] == (probabilities[:, :2].amax(1) <= 0.4).tolist()


def test_the_data_set_has_what_the_classifier_sees_and_nothing_else_is_decoded(classifier, tmp_path, monkeypatch):
    model = save(tiny_generator(facts=FACTS), tmp_path / "generator")
    decoded, decode = [], Autoencoder.decode
    monkeypatch.setattr(Autoencoder, "decode", lambda own, latents: decoded.extend(latents) or decode(own, latents))
    source = Synthetic(model, NAMES[:2], 6, seed=1, steps=2, classifier=classifier, threshold=0.3)
    record = prepare(source, tmp_path / "out", Settings(size=16))
    cases = load(tmp_path / "out")
    accepted = record["synthetic"]["disorders"]
    assert len(decoded) == len(cases) == sum(one["accepted"] for one in accepted.values())
    refused = [line for line in csv.DictReader((tmp_path / "out" / "rejected.csv").open()) if line["what"] == "sample"]
    assert len(refused) == sum(one["not_seen"] for one in accepted.values()) > 0
    assert all(line["reason"].startswith("the classifier") for line in refused)
    judge = LatentClassifier(classifier, NAMES, source.generator.autoencoder.fingerprint)
    prompts = [Prompt(tuple(row["disorders"]), "X-ray", "frontal", "chest") for row in cases.rows]
    assert judge.refusals(torch.stack(decoded), prompts, [set(NAMES[:2])] * len(prompts), 0.3) == [None] * len(prompts)
    assert f"`{judge.fingerprint}` refused samples" in (tmp_path / "out" / "README.md").read_text()


def test_the_command_says_where_it_made_fewer_cases_than_asked(radfm, classifier, tmp_path, monkeypatch):
    model = save(tiny_generator(facts=FACTS), tmp_path / "generator")
    monkeypatch.setattr("radfm.data_prep.sources.synthetic.TRIES", 1)
    options = ("--classifier", classifier, "--threshold", 0.4, "--steps", 2, "--processes", 1, "--no-comparison")
    asked = ("--disorders", NAMES[0], "--per-disorder", 12)
    status, shown, errors = radfm("prepare", "synthetic", tmp_path / "out", "--model", model, *asked, *options)
    assert status == 0, errors
    accepted = len(load(tmp_path / "out"))
    assert 0 < accepted < 12
    assert f"fewer cases than asked for: {NAMES[0]} ({accepted} of 12); a lower --threshold or a higher" in shown


def test_a_classifier_of_other_latents_or_of_pictures_is_refused(tiny_config, classifier, tmp_path):
    with pytest.raises(ValueError, match="reads latents of the autoencoder"):
        LatentClassifier(classifier, NAMES, "0" * 16)
    model = RadFMForDiagnosis(RadFMConfig(**tiny_config, disorders=NAMES))
    model.save_pretrained(tmp_path / "pictures")
    RadFMProcessor(RadFMImageProcessor(size=64)).save_pretrained(tmp_path / "pictures")
    with pytest.raises(ValueError, match="reads pictures, not latents"):
        LatentClassifier(tmp_path / "pictures", NAMES, tiny_autoencoder().fingerprint)


def test_a_disorder_that_the_classifier_cannot_see_is_named(classifier, tmp_path):
    model = save(tiny_generator(facts=FACTS), tmp_path / "generator")
    with pytest.warns(UserWarning, match="never saw 'Gout'"), pytest.raises(ValueError, match="cannot see 'Gout'"):
        Synthetic(model, ["Gout"], 2, steps=2, classifier=classifier)
