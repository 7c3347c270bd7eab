"""`pipeline("zero-shot-diagnosis")`, from a saved checkpoint."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoProcessor, pipeline

from radfm import Case, RadFMConfig, RadFMForDiagnosis, RadFMImageProcessor, RadFMProcessor, Scan

DISORDERS = ["Pneumothorax", "Meningioma", "Gallstones", "Cirrhosis"]
CODES = [["J93.9"], [], ["K80.20"], ["K74.60"]]


def save(config: RadFMConfig, folder) -> str:
    torch.manual_seed(0)
    model = RadFMForDiagnosis(config)
    if config.head == "text":
        embeds = F.normalize(torch.randn(len(config.disorders), config.projection_dim), dim=-1)
        model.set_disorders(config.disorders, embeds, CODES)
    model.save_pretrained(folder)
    RadFMProcessor(RadFMImageProcessor(size=64)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def case() -> Case:
    rng = np.random.default_rng(0)
    first = Scan(rng.integers(-1000, 1000, (6, 50, 60)).astype(np.int16), modality="CT", plane="axial", source="ct")
    return Case(scans=[first, Scan(rng.integers(0, 255, (1, 64, 64)).astype(np.uint8), modality="X-ray", source="xr")])


@pytest.fixture
def checkpoint(tiny_config, tmp_path) -> str:
    return save(RadFMConfig(**tiny_config, disorders=DISORDERS), tmp_path)


@pytest.fixture
def diagnose(checkpoint):
    return pipeline("zero-shot-diagnosis", model=checkpoint)


def test_the_auto_classes_know_radfm(checkpoint):
    assert type(AutoModel.from_pretrained(checkpoint)) is RadFMForDiagnosis
    assert type(AutoProcessor.from_pretrained(checkpoint)) is RadFMProcessor


def test_the_vocabulary_is_ranked_with_its_codes(diagnose, case):
    ranked = diagnose(case, top_k=3)
    assert len(ranked) == 3
    assert [d["score"] for d in ranked] == sorted((d["score"] for d in ranked), reverse=True)
    assert {d["label"] for d in ranked} < set(DISORDERS)
    assert all(d["icd10cm"] == CODES[DISORDERS.index(d["label"])] for d in ranked)
    model = diagnose.model
    with torch.no_grad():
        expected = model(**diagnose.processor(cases=[case])).logits.sigmoid().max().item()
    assert ranked[0]["score"] == pytest.approx(expected, rel=1e-5)


def test_any_name_can_be_scored(diagnose, case):
    answers = diagnose(case, candidate_labels=["Rib fracture", "pneumothorax", "Rib fracture"])
    assert {d["label"] for d in answers} == {"Rib fracture", "pneumothorax"}
    known = next(d for d in answers if d["label"] == "pneumothorax")
    assert known["icd10cm"] == ["J93.9"]
    vocabulary = {d["label"]: d["score"] for d in diagnose(case)}
    assert known["score"] == pytest.approx(vocabulary["Pneumothorax"], rel=1e-4)
    with torch.no_grad():
        embeds = diagnose.model.get_text_features(**diagnose.processor(text=["Rib fracture"]))
        expected = diagnose.model(**diagnose.processor(cases=[case]), text_embeds=embeds).logits.sigmoid().item()
    assert next(d["score"] for d in answers if d["label"] == "Rib fracture") == pytest.approx(expected, rel=1e-4)


def assert_same_answers(expected, answers):
    for alone, together in zip(expected, answers, strict=True):
        assert [scan | {"weight": 0, "key_slice_weight": 0} for scan in alone["scans"]] == [
            scan | {"weight": 0, "key_slice_weight": 0} for scan in together["scans"]
        ]
        for key in ("weight", "key_slice_weight"):
            assert [scan[key] for scan in alone["scans"]] == pytest.approx([scan[key] for scan in together["scans"]])
        alone, together = ({d["label"]: d["score"] for d in answer["diagnoses"]} for answer in (alone, together))
        assert alone == pytest.approx(together, rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"batch_size": 3}, {"batch_size": 2, "num_workers": 1}])
def test_cases_of_a_list_or_generator_get_the_same_answers_as_alone(diagnose, case, options):
    cases = [case, Case(scans=case.scans[1:]), Case(scans=case.scans[::-1])]
    alone = [diagnose(one, return_attentions=True) for one in cases]
    together = diagnose(cases, return_attentions=True, **options)
    assert isinstance(together, list)
    assert_same_answers(alone, together)
    lazy = diagnose((one for one in cases), return_attentions=True, **options)
    assert not isinstance(lazy, list)
    assert_same_answers(alone, lazy)
    assert diagnose([]) == []


def test_colour_and_grey_cases_and_histories_of_any_length_share_a_batch(tiny_config, tmp_path, case):
    checkpoint = save(RadFMConfig(**tiny_config, disorders=DISORDERS, use_history=True), tmp_path)
    processor = RadFMProcessor.from_pretrained(checkpoint)
    processor.use_history = True
    processor.save_pretrained(checkpoint)
    diagnose = pipeline("zero-shot-diagnosis", model=checkpoint)
    colour = Scan(np.random.default_rng(1).integers(0, 255, (2, 40, 40, 3)).astype(np.uint8), modality="X-ray")
    cases = [
        Case(scans=case.scans, history="fell from a ladder, and has had pain in the left side of the chest since"),
        Case(scans=[colour], history="cough"),
        Case(scans=[colour]),
    ]
    alone = [diagnose(one, return_attentions=True) for one in cases]
    assert_same_answers(alone, diagnose(cases, return_attentions=True, batch_size=3))


def test_attentions_name_the_scan_and_the_slice(diagnose, case):
    answer = diagnose(case, return_attentions=True)
    assert sum(scan["weight"] for scan in answer["scans"]) == pytest.approx(1, abs=1e-4)
    assert [scan["source"] for scan in answer["scans"]] == ["ct", "xr"]
    assert 0 <= answer["scans"][0]["key_slice"] < 6
    assert answer["scans"][1]["key_slice"] == 0


def test_warnings_of_a_scan_are_in_the_answer_or_else_python_warnings(diagnose, case):
    case.scans[0].warnings = ["its slices are of two times"]
    case.scans[1].modality = "dental radiography"
    answer = diagnose(case, return_attentions=True)
    foreign = 'the model was not made for dental radiography, and takes the scan for "X-ray"'
    assert [scan["warnings"] for scan in answer["scans"]] == [["its slices are of two times"], [foreign]]
    with pytest.warns(UserWarning, match="two times") as caught:
        diagnose(case)
    assert [str(one.message) for one in caught] == ["ct: its slices are of two times", f"xr: {foreign}"]
    assert {one.filename for one in caught} == {__file__}


def test_the_template_is_what_is_embedded(diagnose, case):
    plain = diagnose(case, candidate_labels=["Rib fracture"])[0]["score"]
    framed = diagnose(case, candidate_labels=["Rib fracture"], hypothesis_template="a scan that shows {}")[0]["score"]
    assert plain != framed


def test_a_new_vocabulary_is_used_at_once(diagnose, case):
    diagnose(case)
    diagnose.model.set_disorders(["Sinusitis"], torch.ones(1, 32))
    assert [d["label"] for d in diagnose(case)] == ["Sinusitis"]


def test_a_fixed_list_scores_its_own_names_and_refuses_others(tiny_config, tmp_path, case):
    config = tiny_config | {"text_config": None, "head": "mlp", "disorders": DISORDERS, "icd10cm": CODES}
    diagnose = pipeline("zero-shot-diagnosis", model=save(RadFMConfig(**config), tmp_path))
    assert len(diagnose(case)) == 4
    answers = diagnose(case, candidate_labels=["meningioma", "Cirrhosis"])
    assert {d["label"] for d in answers} == {"meningioma", "Cirrhosis"}
    with pytest.raises(ValueError, match="'Gallstone' is not in the vocabulary: did you mean Gallstones"):
        diagnose(case, candidate_labels=["Gallstone"])


def test_a_folder_is_read(diagnose, tmp_path):
    np.save(tmp_path / "scan.npy", np.random.default_rng(0).integers(0, 255, (3, 40, 40)).astype(np.uint8))
    with pytest.warns(UserWarning, match="the modality is unknown"):
        assert len(diagnose(str(tmp_path / "scan.npy"))) == 4


def test_bad_input_is_refused_in_one_line(diagnose, case):
    with pytest.raises(ValueError, match=r"no readable scan .*cut short"):
        diagnose(Case(skipped=[("a.dcm", "is cut short")]))
    with pytest.raises(ValueError, match="none of them empty"):
        diagnose(case, candidate_labels=[])
    with pytest.raises(ValueError, match="none of them empty"):
        diagnose(case, candidate_labels=["Pneumothorax", " "])
    with pytest.raises(TypeError, match="'labels'"):
        diagnose(case, labels=["Pneumothorax"])
    with pytest.raises(TypeError, match="expected a Case"):
        diagnose(17)
    diagnose.model.set_disorders([], torch.zeros(0, 32))
    with pytest.raises(ValueError, match="give candidate_labels"):
        diagnose(case)


def test_scores_of_a_calibrated_vocabulary_are_probabilities_with_thresholds(diagnose, case, tmp_path):
    raw = {d["label"]: torch.tensor(d["score"]).double().logit() for d in diagnose(case)}
    assert not any("above_threshold" in d for d in diagnose(case))
    config = diagnose.model.config
    group = {"rows": [1, 3], "label_kind": "at_most_one"}
    config.calibration = {"slopes": [2.0, 1, 1, 1], "shifts": [15.0, 9, 0, 9.5], "exclusive": [group]}
    config.thresholds = [0.9, None, 0.0, 1.0]
    diagnose.save_pretrained(tmp_path / "calibrated")
    calibrated = pipeline("zero-shot-diagnosis", model=str(tmp_path / "calibrated"))
    answers = {d["label"]: d for d in calibrated(case)}
    assert answers["Pneumothorax"]["score"] == pytest.approx(float((2 * raw["Pneumothorax"] + 15).sigmoid()), rel=1e-3)
    assert answers["Gallstones"]["score"] == pytest.approx(float(raw["Gallstones"].sigmoid()), rel=1e-3)
    rivals = torch.stack([raw["Meningioma"] + 9, raw["Cirrhosis"] + 9.5, torch.zeros(()).double()]).softmax(0)
    assert answers["Meningioma"]["score"] == pytest.approx(float(rivals[0]), rel=1e-3)
    assert answers["Cirrhosis"]["score"] == pytest.approx(float(rivals[1]), rel=1e-3)
    assert answers["Pneumothorax"]["above_threshold"] is (answers["Pneumothorax"]["score"] >= 0.9)
    assert [answers[name].get("above_threshold") for name in DISORDERS[1:]] == [None, True, False]
    scores = {d["label"]: d["score"] for d in calibrated(case, candidate_labels=["meningioma", "Rib fracture"])}
    assert scores["meningioma"] == pytest.approx(answers["Meningioma"]["score"], rel=1e-5)
    token_embeds = calibrated(case, return_attentions=True)["token_embeds"]
    names = ["Rib fracture", "Gallstones", "meningioma"]
    again, at_once = calibrated.score(token_embeds, names), calibrated(case, candidate_labels=names)
    assert [d["score"] for d in again] == pytest.approx([d["score"] for d in at_once], rel=1e-5)
    assert [d | {"score": 0} for d in again] == [d | {"score": 0} for d in at_once]
    calibrated.model.set_disorders(["Gout"], torch.ones(1, calibrated.model.config.projection_dim))
    assert calibrated.model.config.calibration is None
