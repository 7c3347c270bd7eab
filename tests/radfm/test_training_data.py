"""What a model has learned from, in a sentence, and the alerts of a study that is unlike it."""

import json

import numpy as np
import pytest
from transformers import pipeline
from untrained import build

from radfm import Case, Scan
from radfm.recipes_radfm import SYNTHETIC_ONLY
from radfm.training_data_radfm import UNTRAINED, TrainingData

REAL = {
    "source": "manifest",
    "fingerprint": "a",
    "patients": 4901,
    "collections": 31,
    "modalities": {"X-ray": 5000, "CT": 900, "MRI": 800, "ultrasound": 700, "other": 50, "not stated": 3},
    "body_parts": {"chest": 5000, "knee": 900, "brain": 800, "limb": 12, "not stated": 9},
}
DRAWN = {
    "source": "phantoms",
    "fingerprint": "b",
    "patients": 4200,
    "modalities": {"mammography": 90},
    "body_parts": {},
}
IN_DISTRIBUTION = {"is_ood": False, "p_value": 0.5, "new_modalities": [], "scans": [0.5]}


def of(data: dict | None = None, **starts: dict) -> TrainingData:
    started = {role: {"name": "start", "data": summary} for role, summary in starts.items()}
    return TrainingData.of_recipe({"config": {}, "data": data, "started_from": started})


def scan(modality: str | None = "X-ray", body_part: str | None = "chest") -> dict:
    return {"modality": modality, "body_part": body_part}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (of(REAL), "Trained on 4,901 patients of 31 collections: X-ray, CT, MRI, ultrasound."),
        (of(REAL | {"collections": 1}), "Trained on 4,901 patients: X-ray, CT, MRI, ultrasound."),
        (of(DRAWN), "Trained on 4,200 synthetic patients: mammography."),
        (
            of(REAL, model=DRAWN),
            "Trained on 4,901 patients of 31 collections and 4,200 synthetic patients: "
            "X-ray, CT, MRI, ultrasound, mammography.",
        ),
        (
            of(REAL | {"added_synthetic": [{"fingerprint": "c", "cases": 300}, {"fingerprint": "d", "cases": 1000}]}),
            "Trained on 4,901 patients of 31 collections and 1,300 synthetic cases: X-ray, CT, MRI, ultrasound.",
        ),
        (
            of(
                REAL | {"added_synthetic": [{"fingerprint": "c", "cases": 200}]},
                model=DRAWN | {"added_synthetic": [{"fingerprint": "c", "cases": 300}]},
            ),
            "Trained on 4,901 patients of 31 collections, 4,200 synthetic patients and 300 synthetic cases: "
            "X-ray, CT, MRI, ultrasound, mammography.",
        ),
        (
            of(REAL | {"modalities": {f"modality {i}": 9 - i for i in range(7)}}),
            "Trained on 4,901 patients of 31 collections: "
            "modality 0, modality 1, modality 2, modality 3, modality 4 and 2 more.",
        ),
        (of(), "What this model was trained on is not recorded."),
        (TrainingData.of_model(""), "What this model was trained on is not recorded."),
    ],
)
def test_one_sentence_says_what_a_model_has_learned_from(data, sentence):
    assert data.summary == sentence


def test_a_data_set_that_every_stage_of_a_training_used_counts_once():
    stages = of(REAL, tower_weights=REAL | {"patients": 4000}, model=REAL | {"fingerprint": "c", "patients": 99})
    assert stages.patients == 5000
    assert of(REAL | {"patients": 4000}, tower_weights=REAL).patients == 4901


def test_collections_are_counted_by_their_attributions_where_an_older_recipe_has_no_number():
    old = {key: value for key, value in REAL.items() if key != "collections"}
    assert of(old | {"attributions": [{"licence": "CC0"}, {"licence": "MIT"}]}).collections == 2


def test_a_study_like_the_training_data_has_no_alert():
    assert of(REAL).alerts([scan(), scan("MRI", "Brain"), scan(None, None)], IN_DISTRIBUTION) == []
    assert of(REAL).alerts([scan()], None) == []


def test_a_modality_that_no_training_scan_had_is_named_once():
    alerts = of(REAL).alerts([scan("mammography", None), scan("mammography", None), scan("other", None)], None)
    assert alerts == ["No training scan was of this modality: mammography."]
    judged = IN_DISTRIBUTION | {"is_ood": True, "new_modalities": ["mammography"]}
    (alert,) = of(REAL).alerts([scan("mammography", None)], judged)
    assert alert == "This case is out of distribution (no training scan was of mammography): its scores are unreliable."


@pytest.mark.parametrize(
    ("part", "known"),
    [
        *[("thorax", True), ("Lung", True), ("chestabdomen", True), ("HEAD", True), ("head and neck", True)],
        *[("left knee", True), ("lower limb", True), ("whole body", True), ("joint", True)],
        *[
            ("elbow", False),
            ("abdomen", False),
            ("lspine", False),
            ("breast", False),
            ("right hip", False),
            ("retina", False),
        ],
    ],
)
def test_a_body_part_is_new_if_no_training_scan_was_of_its_region(part, known):
    expected = [] if known else [f"No training scan was of this body part: {part}."]
    assert of(REAL).alerts([scan(body_part=part)], None) == expected


def test_nothing_is_new_to_a_model_whose_training_is_not_recorded():
    assert of().alerts([scan("CT", "elbow")], None) == []


def test_a_model_learned_from_real_patients_if_its_teacher_did():
    assert of(DRAWN, teacher=DRAWN).synthetic_only
    assert not of(DRAWN, teacher=REAL).synthetic_only


def test_the_answer_has_the_alerts_and_what_the_model_was_trained_on(tmp_path):
    build(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (1, 64, 64), np.uint8)
    case = Case([Scan(pixels, "mammography", body_part="elbow")])
    new = ["No training scan was of this modality: mammography.", "No training scan was of this body part: elbow."]
    answer = pipeline("zero-shot-diagnosis", model=str(tmp_path))(case, return_attentions=True)
    assert answer["alerts"] == [UNTRAINED]
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"trained": True}))
    (tmp_path / "radfm_diagnosis.json").write_text(json.dumps({"config": {}, "data": REAL}))
    trained = pipeline("zero-shot-diagnosis", model=str(tmp_path))
    answer = trained(case, return_attentions=True)
    assert answer["alerts"] == new
    assert answer["scans"][0]["body_part"] == "elbow"
    assert answer["training_data"]["summary"] == of(REAL).summary
    assert answer["training_data"]["patients"] == 4901
    with pytest.warns(UserWarning, match="No training scan") as warned:
        trained(case)
    assert [str(one.message) for one in warned] == new
    (tmp_path / "radfm_diagnosis.json").write_text(json.dumps({"config": {}, "data": DRAWN}))
    answer = pipeline("zero-shot-diagnosis", model=str(tmp_path))(case, return_attentions=True)
    assert answer["alerts"] == [SYNTHETIC_ONLY]
    assert answer["training_data"]["synthetic_only"]
