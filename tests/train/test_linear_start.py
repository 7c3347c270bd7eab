"""`model.linear_start`: the regression is that of scikit-learn, and the model computes it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression, Ridge

from radfm.data_prep import load
from radfm.data_prep.batches.case_dataset import CaseDataset
from radfm.data_prep.batches.slice_features import slice_features
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.train.config import configured
from radfm.train.diagnosis import train
from radfm.train.diagnosis_config import DiagnosisTraining
from radfm.train.diagnosis_model import build
from radfm.train.linear_start import fit_linear_start, logistic, ridge

PENALTY = 0.3


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    prepare(Phantoms(40, size=32), folder, Settings(size=32, fractions=(0.7, 0.3, 0.0)))
    return folder


def config(
    phantoms: Path, text_encoder: Path, output: Path, hidden_size: int = 32, training: dict | None = None, **model
) -> DiagnosisTraining:
    """A small experiment, with changes of its sections `model` and `training`."""
    layer = {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "residual_mean": True}
    tower = {"tower": "test_resnet", "image_size": 32}
    steps = {"max_steps": 2, "save_steps": 1, "eval_steps": 2, "bf16": False, "report_to": [], "disable_tqdm": True}
    given = {
        "architecture": {"vision_config": tower, "scan_config": layer, "hidden_size": hidden_size},
        "level": "scan",
        "freeze_batch_norm": True,
        "text_encoder": str(text_encoder),
        "text_whitening": 1.0,
        "linear_start": True,
    }
    sections = {
        "data": str(phantoms),
        "output": str(output),
        "model": given | model,
        "sampling": {"slices_per_step": 60},
        "training": steps | {"lr_scheduler_type": "constant"} | (training or {}),
    }
    return configured(DiagnosisTraining, sections)


def test_the_ridge_regression_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    features, targets = rng.normal(3, 2, (60, 8)), rng.normal(size=(60, 5))
    case_weights = rng.uniform(0.1, 1, 60)
    spread = features.std(0, ddof=1)
    theirs = Ridge(alpha=PENALTY * case_weights.sum(), fit_intercept=False)
    theirs.fit(features / spread, targets, case_weights)
    ours = ridge(*map(torch.from_numpy, (features, targets, case_weights)), PENALTY)
    np.testing.assert_allclose(ours, theirs.coef_ / spread, rtol=1e-8)


def test_scale_and_bias_are_those_of_logistic_regression():
    rng = np.random.default_rng(0)
    cosines = rng.uniform(-1, 1, (200, 10))
    labels = rng.random((200, 10)) < 1 / (1 + np.exp(-(7 * cosines - 4)))
    theirs = LogisticRegression(C=np.inf).fit(cosines.reshape(-1, 1), labels.reshape(-1))
    ours = logistic(torch.from_numpy(cosines), torch.from_numpy(labels).double())
    np.testing.assert_allclose(ours, [theirs.coef_[0, 0], theirs.intercept_[0]], rtol=1e-3)


@pytest.mark.parametrize("hidden_size", [16, 32, 48], ids=["narrower than the names", "as wide", "wider"])
def test_the_embeddings_of_cases_are_those_of_the_regression(
    hidden_size, phantoms, text_encoder, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = config(phantoms, text_encoder, tmp_path, hidden_size)
    cases = load(phantoms, "train", labelled=True)
    model, processor = build(settings, cases.vocabulary, 0.01)
    data = CaseDataset(cases, processor)
    data.features = slice_features(cases, data.rows, model, processor)
    fit_linear_start(model, data, PENALTY, power=1.0)

    scans = [[cases.rows[row]["scan_rows"] for row in data.rows][case] for case in range(len(data))]
    means = np.stack([np.mean([data.features.of(s).astype(float).mean(0) for s in rows], axis=0) for rows in scans])
    labels = np.stack([cases.labels(row) for row in data.rows]).astype(float)
    diagnosed = labels.any(1)
    embeds = model.head.disorder_embeds.double().numpy()
    rarest = (labels / np.maximum(labels.sum(0), 1)).max(1)
    targets = labels[diagnosed] @ embeds / labels[diagnosed].sum(1, keepdims=True)
    weight = ridge(*map(torch.from_numpy, (means[diagnosed], targets, rarest[diagnosed])), PENALTY).numpy()
    u, s, v = np.linalg.svd(weight, full_matrices=False)
    kept = u[:, :hidden_size] * s[:hidden_size] @ v[:hidden_size]
    expected = F.normalize(torch.from_numpy(means @ kept.T), dim=-1)

    for case in range(0, len(data), 9):
        batch = processor(cases=[data.cases[data.rows[case]]])
        with torch.no_grad():
            embed = model.eval()(**batch).case_embeds[0]
        assert embed.double() @ expected[case] == pytest.approx(1, abs=1e-3)


def test_more_cases_of_a_disorder_do_not_count_more(phantoms, text_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cases = load(phantoms, "train", labelled=True)
    chosen = next(row for row in range(len(cases)) if len(cases.rows[row]["labels"]) == 1)
    disorder = cases.rows[chosen]["labels"]
    others = [row for row in range(len(cases)) if not set(cases.rows[row]["labels"]) & set(disorder)]

    def fitted(rows: list[int]) -> torch.Tensor:
        model, processor = build(config(phantoms, text_encoder, tmp_path), cases.vocabulary, 0.01)
        data = CaseDataset(cases, processor, rows=[*others, chosen])
        data.features = slice_features(cases, data.rows, model, processor)
        data.rows, data._slice_counts = [
            [*got, *[got[-1]] * (len(rows) - 1)] for got in (data.rows, data._slice_counts)
        ]
        fit_linear_start(model, data, PENALTY, power=1.0)
        return model.radfm.slice_encoder.projection.weight.detach()

    once, thrice = fitted([chosen]), fitted([chosen] * 3)
    assert F.cosine_similarity(once.flatten(), thrice.flatten(), dim=0) > 0.99


def test_a_resumed_run_gives_the_weights_of_one_that_was_not_killed(phantoms, text_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    train(config(phantoms, text_encoder, tmp_path / "whole"))
    train(config(phantoms, text_encoder, tmp_path / "killed", training={"max_steps": 1, "eval_strategy": "no"}))
    train(config(phantoms, text_encoder, tmp_path / "killed"))
    ends = [load_file(tmp_path / name / "checkpoint-2" / "model.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("frozen", [[], "tower"])
def test_without_a_step_the_regression_is_the_result(frozen, phantoms, text_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = config(phantoms, text_encoder, tmp_path / "run", training={"max_steps": 0}, frozen=frozen)
    output = train(settings)
    cases = load(phantoms, "train", labelled=True)
    positive = sum(len(row["labels"]) for row in cases.rows) / len(cases) / len(cases.vocabulary)
    model, processor = build(settings, cases.vocabulary, positive)
    data = CaseDataset(cases, processor)
    data.features = slice_features(cases, data.rows, model, processor)
    fit_linear_start(model, data)
    result = load_file(output / "model.safetensors")
    fitted = model.state_dict()
    assert all(torch.equal(result[name], tensor) for name, tensor in fitted.items() if "projection" in name)
    recipe = json.loads((output / "radfm_diagnosis.json").read_text())
    assert (recipe["steps"], recipe["step"]) == (0, 0)
    assert recipe["validation"]["eval_auc"] > 0

    before = {file.name: file.stat().st_mtime_ns for file in output.iterdir() if file.is_file()}
    train(settings)
    assert {file.name: file.stat().st_mtime_ns for file in output.iterdir() if file.is_file()} == before


def test_encoders_that_do_more_than_average_are_refused(phantoms, text_encoder, tmp_path):
    with pytest.raises(ValueError, match="residual_mean=true"):
        train(config(phantoms, text_encoder, tmp_path, level="case"))
