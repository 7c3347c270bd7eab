"""How sure a checkpoint is: calibrated, with sets, and with a word on cases unlike any it learned from."""

import hashlib
import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from picture_cases import blurring_autoencoder
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage.data import chelsea
from transformers import pipeline

from radfm import Case, RadFMConfig, RadFMForDiagnosis, RadFMProcessor, Scan
from radfm.data_prep import load
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.data_prep.tables import write_rows
from radfm.eval import ood_detection
from radfm.eval.confidence import fit_confidence, save_with
from radfm.eval.hubness import lower_hubs
from radfm.eval.ood_detection import case_features, measure_ood
from radfm.eval.predict import Evaluation, score
from radfm.eval.uncertainty import dropout_scores, ensemble
from radfm.eval.zero_shot import abnormal, abnormal_by_prompts, open_clip_scores, prompt_embeds, zero_shot_scores
from radfm.knowledge.disorders import Vocabulary
from radfm.latents import Autoencoder
from radfm.reference_radfm import FILE, SHIFTS, TrainingReference, ood_features
from radfm.starting_points import embed_texts, from_open_clip, processor_for
from tests.tiny_generator import tiny_autoencoder

TUNED = {"slopes": [1.0], "shifts": [0.0], "exclusive": []}
LAYER = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    prepare(Phantoms(120, size=48), folder, Settings(size=48, cases_per_shard=40, fractions=(0.4, 0.4, 0.2)))
    return folder


def save_model(folder: Path, names=(), **changes) -> Path:
    torch.manual_seed(0)
    config = {
        "vision_config": {"tower": "test_resnet", "image_size": 48},
        "scan_config": LAYER,
        "case_config": LAYER,
        "text_config": {"model_type": "bert", "hidden_size": 32, **LAYER},
        "hidden_size": 32,
        "projection_dim": 32,
    }
    model = RadFMForDiagnosis(RadFMConfig(**config | changes)).eval()
    processor = processor_for(model.config)
    processor.image_processor.max_slices = 3
    if names and model.config.head == "text":
        model.set_disorders(names, embed_texts(model, processor, names).clone())
    elif names:
        model.set_disorders(names)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory, phantoms) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "plain", load(phantoms).vocabulary.names)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory, plain, phantoms) -> Path:
    folder = tmp_path_factory.mktemp("models") / "calibrated"
    fit_confidence(plain, phantoms, folder, bootstraps=20)
    return folder


@pytest.fixture(scope="module")
def cat(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "cat.png"
    Image.fromarray(chelsea()).save(file)
    return file


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48)).astype(np.uint8)).save(file)
    return file


def test_calibrating_changes_no_weight_and_makes_scores_probabilities(plain, calibrated, phantoms):
    assert (plain / "model.safetensors").read_bytes() == (calibrated / "model.safetensors").read_bytes()
    before, after = (score(folder, Evaluation(phantoms, "validation")) for folder in (plain, calibrated))
    np.testing.assert_allclose(after.logits, before.scores, rtol=1e-5)
    assert before.logits is None
    rate = 1 / (1 + np.exp(-after.scores.astype(float)))
    assert rate.sum() == pytest.approx(after.labels.sum(), rel=0.25)  # as many as there are; before, e^-10 of them
    assert len(after.about["thresholds"]) == len(after.names)
    record = json.loads((calibrated / "radfm_confidence.json").read_text())
    assert record["after"]["log_loss"]["value"] < record["before"]["log_loss"]["value"]
    assert record["cases"] == len(before.case_ids)


def test_measuring_on_the_cases_of_the_calibration_is_reported(radfm, plain, calibrated, phantoms):
    warning = "calibrated on these cases, so its ranks are optimistic"
    for folder, split, is_warned in (
        (calibrated, "validation", True),
        (calibrated, "test", False),
        (plain, "validation", False),
    ):
        status, out, _ = radfm("evaluate", phantoms, "--model", folder, "--split", split, "--bootstraps", 5)
        assert status == 0
        assert (warning in " ".join(out.split())) == is_warned


def test_the_same_command_gives_the_same_result(calibrated, phantoms, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(calibrated, again)
    fit_confidence(again, phantoms, bootstraps=20)
    for file in ("config.json", FILE, "radfm_confidence.json"):
        assert (again / file).read_bytes() == (calibrated / file).read_bytes()


def test_a_calibration_that_was_there_is_calibrated_further(plain, calibrated, phantoms, tmp_path):
    """Logits times a, plus b, calibrated, are what the logits are, calibrated, but for how hard both are held back."""
    config = json.loads((plain / "config.json").read_text())
    n = len(config["disorders"])
    config["calibration"] = {"slopes": [1.0] * n, "shifts": [3.0] * n, "exclusive": []}
    shutil.copytree(plain, tmp_path / "shifted")
    (tmp_path / "shifted" / "config.json").write_text(json.dumps(config))
    fit_confidence(tmp_path / "shifted", phantoms, bootstraps=20)
    one, other = (score(folder, Evaluation(phantoms)).scores for folder in (calibrated, tmp_path / "shifted"))
    difference = np.abs(one - other)
    assert np.quantile(difference, 0.99) < 0.3
    assert difference.mean() < 0.1
    assert abs(one - score(plain, Evaluation(phantoms)).scores).max() > 2


def test_a_set_holds_the_disorders_whose_plain_logit_reaches_one_value(plain, calibrated, phantoms):
    diagnose = pipeline("zero-shot-diagnosis", model=str(calibrated))
    values = score(plain, Evaluation(phantoms))
    row = {name: i for i, name in enumerate(values.names)}
    inside, outside = [], []
    for number, case in enumerate(load(phantoms, "test")[:8]):
        for answer in diagnose(case, top_k=1000):
            (inside if answer["in_set"] else outside).append(values.scores[number, row[answer["label"]]])
    assert inside
    assert outside
    assert min(inside) > max(outside) - 1e-4
    table = score(calibrated, Evaluation(phantoms, "validation"))
    sets = 1 / (1 + np.exp(-table.scores.astype(float))) >= np.array(table.about["prediction_sets"]["threshold"])
    ill = table.labels.any(1)
    covered = ((sets & table.labels).sum(1) / table.labels.sum(1).clip(1))[ill].mean()
    assert covered >= 0.9  # on the cases that it was fitted to, it cannot be less


def test_disorders_that_exclude_one_another_are_calibrated_as_such(phantoms, tmp_path):
    data = tmp_path / "single"
    shutil.copytree(phantoms, data)
    rows = load(data).rows
    for row in rows:
        row["labels"], row["disorders"] = row["labels"][:1], row["disorders"][:1]
    write_rows(data, "cases", rows)
    model = save_model(tmp_path / "model", load(data).vocabulary.names)
    record = fit_confidence(model, data, bootstraps=20)
    assert isinstance(record["prediction_sets"]["threshold"], float)
    table = score(model, Evaluation(data))
    assert (1 / (1 + np.exp(-table.scores.astype(float)))).sum(1).max() < 1 + 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("names", "is in the checkpoint's vocabulary of 1"),
        ("nowhere", "nowhere: no such folder"),
        ("no validation", "has no labelled case in its split 'validation'"),
        ("no positives", "no validation case of .* has any"),
        ("nan", "validation cases have scores that are nan"),
        ("coverage", "coverage is a share between 0 and 1"),
        ("output", "is not empty"),
    ],
)
def test_what_cannot_be_calibrated_is_one_line(change, message, radfm, capsys, plain, phantoms, tmp_path):
    model, data, more = plain, phantoms, []
    if change == "names":
        model = save_model(tmp_path / "model", ["Fear of clowns"])
    if change == "nowhere":
        model = "nowhere"
    if change in ("no validation", "no positives"):
        data = tmp_path / "data"
        shutil.copytree(phantoms, data)
        rows = load(data).rows
        for row in rows:
            if row["split"] == "validation" and change == "no validation":
                row["split"] = "train"
            elif row["split"] == "validation":
                row["labels"], row["disorders"] = [], []
        write_rows(data, "cases", rows)
    if change == "nan":
        model = tmp_path / "model"
        shutil.copytree(plain, model)
        weights = load_file(model / "model.safetensors")
        save_file(
            weights | {"head.logit_bias": torch.tensor([float("nan")])}, model / "model.safetensors", {"format": "pt"}
        )
    if change == "coverage":
        more = ["--coverage", "90"]
    if change == "output":
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        more = ["--output", tmp_path / "full"]
    capsys.readouterr()  # discards the output of building the model
    status, out, err = radfm("calibrate", data, "--model", model, *more)
    assert (status, out) == (1, "")
    assert len(err.strip().splitlines()) == 1
    assert re.search(message, err), err


def test_the_command_prints_calibration_prediction_sets_and_modalities(radfm, plain, phantoms, tmp_path):
    status, out, _ = radfm("calibrate", phantoms, "--model", plain, "--output", tmp_path / "out", "--guarantee", "all")
    assert status == 0
    for words in ("calibration error", "all disorders of a case in 90% of cases", "MRI", "not a medical device"):
        assert words in out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["prediction_sets"]["guarantee"] == "all"


# Hubs


def test_names_near_to_every_case_are_lowered_by_what_their_nearest_training_cases_score(
    radfm, plain, phantoms, tmp_path
):
    status, out, _ = radfm("calibrate", phantoms, "--model", plain, "--output", tmp_path / "hubs", "--hubness")
    assert status == 0
    before, after = (score(model, Evaluation(phantoms, "train")) for model in (plain, tmp_path / "hubs"))
    near = np.sort(before.scores, axis=0)[-10:].mean(0) / 2
    np.testing.assert_allclose(after.scores, before.scores - near + near.mean(), atol=1e-4)
    lowest, highest = (before.names[place(near)] for place in (np.argmax, np.argmin))
    assert out.index(lowest) < out.index(highest)
    config = (tmp_path / "hubs" / "config.json").read_text()
    assert "calibrated_on" not in after.about
    lower_hubs(tmp_path / "hubs", phantoms)
    assert (tmp_path / "hubs" / "config.json").read_text() == config


def test_hubs_are_lowered_first_and_stay_so(plain, calibrated, phantoms, tmp_path):
    lower_hubs(calibrated, phantoms, tmp_path / "again")
    with pytest.raises(ValueError, match="does not compare cases with names"):
        lower_hubs(save_model(tmp_path / "mlp", ["Rickets"], head="mlp", text_config=None), phantoms)
    lower_hubs(plain, phantoms, tmp_path / "hubs")
    shifts = RadFMConfig.from_pretrained(tmp_path / "hubs").calibration["shifts"]
    record = fit_confidence(tmp_path / "hubs", phantoms, bootstraps=20)
    assert record["calibration_before"]["shifts"] == shifts
    again = RadFMConfig.from_pretrained(tmp_path / "again")
    assert (again.calibration["shifts"], again.thresholds, again.prediction_sets) == (shifts, None, None)
    with pytest.raises(ValueError, match="calibrated by fine-tuning"):
        lower_hubs(save_with(plain, tmp_path / "tuned", {"calibration": TUNED}), phantoms)


# Unlike the training data


@given(st.integers(1, 400), st.integers(0, 2**32 - 1))
@examples(max_examples=30, deadline=None)
def test_cases_like_those_of_the_validation_are_out_of_distribution_at_the_stated_rate(n, seed):
    """Whichever of n + 1 exchangeable cases is the new one, at most so many of them would be refused, and no fewer."""
    cases = torch.from_numpy(np.random.default_rng(seed).random(n + 1)).float().unique()
    refused = 0
    for new in range(len(cases)):
        others = torch.cat([cases[:new], cases[new + 1 :]])
        reference = TrainingReference(torch.zeros(1), torch.eye(1), others, [])
        refused += reference.p_value(float(cases[new])) <= reference.significance_level
    assert refused == max(1, len(cases) // 100)


def test_noise_and_a_photograph_of_a_cat_are_detected_as_out_of_distribution(
    radfm, calibrated, phantoms, cat, tmp_path
):
    figures = measure_ood(calibrated, Evaluation(phantoms), pictures=[cat], bootstraps=50)
    for kind in ("noise", "cat.png"):
        assert figures["kinds"][kind]["auc"]["value"] > 0.95
        assert figures["kinds"][kind]["roc"][-1] == [1, 1]
    assert figures["false_positive_rate"]["value"] <= 0.2
    command = ["evaluate", "ood", phantoms, "--model", calibrated, "--limit", 10, "--picture", cat, "--figure"]
    tiny_autoencoder(64).save_pretrained(tmp_path / "autoencoder")
    status, out, _ = radfm(*command, tmp_path / "roc.svg", "--autoencoder", tmp_path / "autoencoder")
    assert status == 0
    assert "cat.png" in out
    assert "reconstruction error" in out
    assert (tmp_path / "roc.svg").read_text().count("(AUC ") >= 2  # a curve each, as text
    status, _, err = radfm(*command, tmp_path / "roc.doc")
    assert status == 1
    assert "roc.svg" in err


def test_the_reconstruction_error_is_measured_beside_the_distance(calibrated, phantoms, monkeypatch):
    monkeypatch.setattr(Autoencoder, "from_pretrained", lambda name, device: blurring_autoencoder())
    evaluation = Evaluation(phantoms)
    plain = measure_ood(calibrated, evaluation, bootstraps=20, limit=10)
    both = measure_ood(calibrated, evaluation, bootstraps=20, limit=10, autoencoder="blurring")
    error = both["kinds"]["noise"].pop("reconstruction_auc")
    assert both == plain
    assert error["low"] <= error["value"] <= error["high"]
    cases = load(phantoms, "test", labelled=True)
    rows = np.linspace(0, len(cases) - 1, 10).round().astype(int).tolist()
    errors_of = ood_detection.error_function("blurring", 20)
    own = errors_of(cases[row] for row in rows)
    noise = errors_of(ood_detection._noise(cases[row], [0, row]) for row in rows)
    assert error["value"] == pytest.approx((noise[:, None] > own).mean())


def test_noise_is_far_even_where_its_embedding_is_usual(calibrated, phantoms):
    reference, processor = TrainingReference.load(calibrated), RadFMProcessor.from_pretrained(calibrated)
    scans = [scan for case in load(phantoms, "test") for scan in case.scans]
    rng = np.random.default_rng(0)
    noise = [replace(scan, pixels=rng.permuted(scan.pixels.ravel()).reshape(scan.pixels.shape)) for scan in scans]
    usual = reference.mean[: -len(SHIFTS)].expand(len(scans), -1)
    own, strange = (processor(cases=[Case(some)]) for some in (scans, noise))
    own, strange = (ood_features(usual, batch["pixel_values"], batch["slices_per_scan"]) for batch in (own, strange))
    assert (reference.scan_distances(strange) > reference.distances[-1]).all()
    assert (reference.scan_distances(own) > reference.distances[-1]).float().mean() < 0.05
    embedded = torch.cat([usual + 100, own[:, -len(SHIFTS) :]], 1)
    assert (reference.scan_distances(embedded) > reference.distances[-1]).all()


def test_a_modality_that_no_training_scan_had_is_new(plain, phantoms, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    cases = load(data)
    for row in cases.rows:
        if row["split"] != "test":
            kept = [scan for scan in row["scan_rows"] if cases.scan_header(scan)["modality"] != "ultrasound"]
            row["scan_rows"] = kept
    write_rows(data, "cases", [row for row in cases.rows if row["scan_rows"]])
    model = tmp_path / "model"
    fit_confidence(plain, data, model, bootstraps=20)
    figures = measure_ood(model, Evaluation(data), bootstraps=20)
    assert "ultrasound" not in figures["modalities"]
    assert figures["kinds"]["ultrasound"]["cases"] + figures["cases"] == len(load(data, "test"))
    reference = TrainingReference.load(model)
    middle = reference.mean[None]
    assert not reference.judge(middle, ["MRI"])["is_ood"]
    assert reference.judge(middle, ["ultrasound"])["is_ood"]
    assert reference.judge(middle, ["ultrasound"])["new_modalities"] == ["ultrasound"]


def test_the_pipeline_warns_of_an_out_of_distribution_case_or_refuses_it(calibrated, plain, phantoms, noise):
    diagnose = pipeline("zero-shot-diagnosis", model=str(calibrated))
    judged = diagnose(str(noise), return_attentions=True)["out_of_distribution"]
    assert judged["is_ood"]
    assert judged["p_value"] <= 0.05
    with pytest.warns(UserWarning, match="out of distribution"):
        diagnose(str(noise))
    with pytest.raises(ValueError, match=r"out of distribution .* refused"):
        diagnose(str(noise), if_ood="refuse")
    with pytest.raises(ValueError, match="if_ood is warn, refuse or ignore"):
        diagnose(str(noise), if_ood="shrug")
    cases = load(phantoms, "train")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*out of distribution")
        diagnose(str(noise), if_ood="ignore")
        answers = [diagnose(case, return_attentions=True)["out_of_distribution"] for case in cases[:10]]
    assert sum(answer["is_ood"] for answer in answers) <= 2
    assert [len(answer["scans"]) for answer in answers] == [len(case.scans) for case in cases[:10]]
    unknown = pipeline("zero-shot-diagnosis", model=str(plain))
    assert unknown(str(noise), return_attentions=True)["out_of_distribution"] is None


def test_the_command_line_warns_refuses_and_reports(radfm, calibrated, plain, noise, tmp_path):
    page = tmp_path / "case.html"
    status, out, _ = radfm("diagnose", noise, "--model", calibrated, "--report", page)
    assert status == 0
    assert "out of distribution" in out
    assert "90% set" not in out  # none holds
    assert "This case is out of distribution" in page.read_text()
    status, out, err = radfm("diagnose", noise, "--model", calibrated, "--refuse-unlike")
    assert (status, out) == (1, "")
    assert "it is refused" in err
    status, _, err = radfm("diagnose", noise, "--model", plain, "--refuse-unlike")
    assert status == 1
    assert "run radfm calibrate" in err


def test_a_reference_of_other_weights_or_a_damaged_one_is_refused(calibrated, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(calibrated, other)
    weights = load_file(other / "model.safetensors")
    save_file(weights | {"head.logit_bias": torch.ones(1)}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="belongs to other weights"):
        TrainingReference.load(other)
    (other / FILE).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged"):
        TrainingReference.load(other)
    (other / FILE).unlink()
    assert TrainingReference.load(other) is None


def test_no_patient_data_and_no_path_is_saved(calibrated, phantoms):
    sums = hashlib.sha256((calibrated / "model.safetensors").read_bytes()).hexdigest()
    assert TrainingReference.load(calibrated).metadata["weights"] == sums
    saved = (calibrated / FILE).read_bytes() + (calibrated / "radfm_confidence.json").read_bytes()
    for word in (str(phantoms), str(calibrated), load(phantoms, "train").rows[0]["case_id"]):
        assert word.encode() not in saved


# Dropout


def test_dropout_left_on_makes_passes_differ(plain, phantoms, tmp_path, radfm):
    with pytest.raises(ValueError, match="trained without dropout"):
        dropout_scores(plain, Evaluation(phantoms), passes=2)
    a, b = dropout_scores(plain, Evaluation(phantoms), passes=2, rate=0.3)
    assert not np.allclose(a.scores, b.scores)
    assert ensemble([a, b]).disagreement.max() > 0
    assert np.array_equal(a.scores, dropout_scores(plain, Evaluation(phantoms), passes=2, rate=0.3)[0].scores)
    layer = LAYER | {"dropout": 0.2}
    with_it = save_model(tmp_path / "with", load(phantoms).vocabulary.names, scan_config=layer, case_config=layer)
    assert dropout_scores(with_it, Evaluation(phantoms), passes=1)[0].about["dropout"] == pytest.approx(0.2)
    np.testing.assert_allclose(score(with_it, Evaluation(phantoms)).scores, score(with_it, Evaluation(phantoms)).scores)
    for wrong, message in (({"passes": 0}, "at least 1 pass"), ({"rate": 1.5}, "between 0 and 1")):
        with pytest.raises(ValueError, match=message):
            dropout_scores(plain, Evaluation(phantoms), **wrong)
    options = ("evaluate", "uncertainty", phantoms, "--model", plain)
    status, out, _ = radfm(*options, "--dropout", 3, "--rate", 0.2, "--bootstraps", 20, "--out", tmp_path / "t.parquet")
    assert status == 0
    assert "mutual information" in out
    assert (tmp_path / "t.parquet").is_file()
    assert radfm(*options)[0] == 1


# Zero-shot


def test_templates_are_averaged_and_every_name_is_scored_by_its_text(plain, phantoms):
    model, processor = RadFMForDiagnosis.from_pretrained(plain), RadFMProcessor.from_pretrained(plain)
    templates = ["{}", "an image of {}, perhaps"]
    texts = ["Gout", "Measles", "an image of Gout, perhaps", "an image of Measles, perhaps"]
    each = model.get_text_features(**processor(text=texts)).detach()
    expected = F.normalize((each[:2] + each[2:]) / 2, dim=-1)
    torch.testing.assert_close(prompt_embeds(model, processor, ["Gout", "Measles"], templates), expected)
    table = zero_shot_scores(plain, Evaluation(phantoms, names=["Gout", load(phantoms).vocabulary.names[0]]), templates)
    assert table.scores.shape[1] == 2
    assert table.about["templates"] == templates
    case = load(phantoms, "test")[2]
    with torch.no_grad():
        embeds = prompt_embeds(model, processor, table.names, templates)
        logits = model(**processor(cases=[case]), text_embeds=embeds).logits
    np.testing.assert_allclose(table.scores[2], logits[0].numpy(), atol=1e-4)
    for wrong, message in (([], "there is no template"), (["image"], "'image' has no")):
        with pytest.raises(ValueError, match=message):
            prompt_embeds(model, processor, ["Gout"], wrong)


def test_normal_and_abnormal_cases_are_discriminated(plain, phantoms):
    table = zero_shot_scores(plain, Evaluation(phantoms))
    binary = abnormal(table)
    assert binary.names == ["Abnormal"]
    assert binary.labels[:, 0].tolist() == [bool(names) for names in table.disorders]
    assert binary.scores[:, 0].tolist() == table.scores.max(1).tolist()
    assert binary.training_counts[0] == len(table.training)
    by_prompts = abnormal_by_prompts(plain, Evaluation(phantoms))
    assert by_prompts.labels.tolist() == binary.labels.tolist()
    assert by_prompts.training_counts[0] == binary.training_counts[0]
    swapped = abnormal_by_prompts(plain, Evaluation(phantoms), normal=["ill"], abnormal=["well"])
    back = abnormal_by_prompts(plain, Evaluation(phantoms), normal=["well"], abnormal=["ill"])
    np.testing.assert_allclose(swapped.scores, -back.scores, atol=1e-4)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    folder.mkdir()
    torch.manual_seed(0)
    cfg = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 48, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": {}}))
    torch.save(open_clip.model.CustomTextCLIP(**cfg).state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


@torch.no_grad()
def test_an_open_clip_model_is_a_baseline_with_its_slices_averaged(clip_folder, phantoms, plain, radfm, tmp_path):
    name = f"local-dir:{clip_folder}"
    table = open_clip_scores(name, None, Evaluation(phantoms), ["a scan of {}"])
    clip = open_clip.create_model(name, force_custom_text=True).eval()
    case, vocabulary = load(phantoms, "test")[1], Vocabulary.load(phantoms)
    batch = from_open_clip(name)[1](cases=[case])
    slices = clip.encode_image(batch["pixel_values"]).split(batch["slices_per_scan"].tolist())
    image = F.normalize(torch.stack([scan.mean(0) for scan in slices]).mean(0), dim=-1)
    text = clip.encode_text(open_clip.get_tokenizer(name)([f"a scan of {n}" for n in vocabulary.names]), normalize=True)
    expected = clip.logit_scale.exp() * text @ image + (clip.logit_bias or 0)
    np.testing.assert_allclose(table.scores[1] - table.scores[1].mean(), expected - expected.mean(), atol=1e-3)
    assert table.names == vocabulary.names
    assert str(clip_folder) not in json.dumps(table.about)
    models = ("--model", f"ours={plain}", "--open-clip", name)
    status, out, _ = radfm("evaluate", "zero-shot", phantoms, *models, "--bootstraps", 20, "--out", tmp_path)
    assert status == 0
    assert "open_clip tiny" in out
    assert "Difference to ours" in out
    assert {file.name for file in tmp_path.glob("*.parquet")} == {"ours.parquet", "open_clip_tiny.parquet"}
    status, out, _ = radfm("evaluate", "zero-shot", phantoms, *models, "--normal", "--bootstraps", 20)
    assert status == 0
    assert "1 of 1" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --model or --open-clip"),
        (["--model", "PLAIN", "--normal", "--only", "Gallstones"], "leave out --only"),
        (["--open-clip", "ViT-B-32"], "without it the weights are random"),
        (["--open-clip", "ViT-B-32=nowhere.pt"], "nowhere.pt: no such file"),
        (["--model", "PLAIN", "--template", "image"], 'has no "{}"'),
        (["--model", "MLP"], "does not embed text"),
    ],
)
def test_an_impossible_request_is_an_error_of_one_line(arguments, message, radfm, capsys, plain, phantoms, tmp_path):
    names = load(phantoms).vocabulary.names
    models = {"PLAIN": plain}
    if "MLP" in arguments:
        models["MLP"] = save_model(tmp_path / "mlp", names, head="mlp", text_config=None)
    capsys.readouterr()
    status, out, err = radfm("evaluate", "zero-shot", phantoms, *(models.get(a, a) for a in arguments))
    assert (status, out) == (1, "")
    assert len(err.strip().splitlines()) == 1
    assert message in err


def test_a_case_is_as_far_as_its_farthest_scan(calibrated, phantoms):
    reference, model = TrainingReference.load(calibrated), RadFMForDiagnosis.from_pretrained(calibrated).eval()
    processor = RadFMProcessor.from_pretrained(calibrated)
    case = max(load(phantoms, "test"), key=lambda one: len(one.scans))
    noise = Scan(np.random.default_rng(0).integers(0, 255, (1, 48, 48)).astype(np.uint8), "MRI")
    with torch.no_grad():
        batch = processor(cases=[Case([*case.scans, noise])])
        (features,) = case_features(batch, model(**batch))
    judged = reference.judge(features, [scan.modality for scan in case.scans] + ["MRI"])
    assert judged["p_value"] == min(judged["scans"])
    assert judged["scans"][-1] == judged["p_value"]
