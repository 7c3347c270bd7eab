"""The API reference builds without a warning and has all names that users rely on."""

import importlib.util
import warnings
from pathlib import Path

import pytest
from workplace import ROOT

CONTRACT = {  # page -> names that it documents
    "radfm": [
        *("Case", "Scan", "read_case", "RadFMConfig", "RadFMModel", "RadFMForDiagnosis", "RadFMProcessor"),
        *("RadFMImageProcessor", "ZeroShotDiagnosisPipeline", "RadFMProcessor.from_pretrained", "Case.__init__"),
        *(f"Case.{name}" for name in ("scans", "history", "disorders", "case_id", "patient_id", "skipped")),
        *(f"Scan.{name}" for name in ("pixels", "modality", "plane", "spacing_mm", "days", "body_part")),
        *(f"Scan.{name}" for name in ("key_slice", "source", "affine")),
        *(f"RadFMForDiagnosis.{name}" for name in ("forward", "get_text_features", "get_case_features")),
        *(f"RadFMForDiagnosis.{name}" for name in ("set_disorders", "log_odds", "optimize_for_inference")),
    ],
    "radfm/starting_points/raddiag": ["from_checkpoint"],
    "radfm/checkpoints": ["folder"],
    "radfm/starting_points": ["untrained", "from_open_clip", "from_transformers", "from_merlin", "embed_texts"],
    "radfm/knowledge/icd10cm": ["get"],
    "radfm/knowledge/ontology": ["read"],
    "radfm/knowledge/disorders": ["link", "codes"],
    "radfm/knowledge/linking": ["Linker.link"],
    "radfm/data_prep": ["load"],
    "radfm/data_prep/batches/case_dataset": ["CaseDataset", "Sampling", "step_loader"],
    "radfm/data_prep/batches/sampling": ["StepSampler", "Sample"],
    "radfm/data_prep/phantoms": ["make_case", "disorders"],
    "radfm/eval/saliency": ["saliency", "to_nifti"],
    "radfm/eval/diagnosis": ["compare"],
    "radfm/eval/scores": ["Scores.load"],
    "radfm/train/diagnosis": ["train"],
    "radfm/train/diagnosis_config": ["DiagnosisTraining"],
    "radfm/train/finetune": ["finetune"],
    "radfm/train/text": ["train", "TextTraining"],
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    spec = importlib.util.spec_from_file_location("api", ROOT / "docs" / "api.py")
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    folder = tmp_path_factory.mktemp("api")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # pdoc warns with it
        api.build(folder)
    return folder


@pytest.mark.parametrize("page", CONTRACT)
def test_every_public_name_is_in_the_reference(page, reference):
    html = (reference / f"{page}.html").read_text(encoding="utf-8")
    missing = [name for name in CONTRACT[page] if f'id="{name}"' not in html]
    assert not missing


def test_the_reference_contains_no_command_and_no_path_of_this_machine(reference):
    pages = list(reference.rglob("*.html"))
    assert not [page for page in pages if "command" in page.name]
    assert not [page for page in pages if str(ROOT) in page.read_text(encoding="utf-8")]
