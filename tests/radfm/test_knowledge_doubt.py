"""Names with a sign or word of doubt or denial are never linked with confidence, and all other names stay so."""

import json

import pytest

from radfm.knowledge import icd10cm
from radfm.knowledge.disorders import Vocabulary, codes, link
from radfm.knowledge.doubt import is_doubtful

SIGNS = ["?PE", "？PE", "pneumothorax?", "Pneumonia (?)", "[?] pneumonia", "Pneumothorax (-)", "(-) pneumothorax"]
SIGNS += [
    "pneumothorax -",
    "pneumothorax –",
    "- pneumothorax",
    "Pneumothorax (−)",
    "pneumothorax: -",
    "pneumothorax -ve",
]
SIGNS += ["Pneumothorax [ ]", "Pneumothorax []", "Pneumonia ( )", "pneumonia (±)", "pneumonia +/-", "∅ pneumonia"]
SIGNS += ["¬ pneumonia", "⊘ pneumonia", "☐ pneumonia", "✗ pneumonia", "❌ pneumonia", "pneumonia 👎", "!pneumonia"]
SIGNS += ["0 pneumonia", "pneumonia: 0", "pneumonia (0)", "pneumonia 0", "pneumonia (n)"]
WORDS = ["no pneumonia", "Pneumonia (NO)", "pneumonia; no", "not pneumonia", "without pneumothorax", "w/o pneumonia"]
WORDS += ["r/o pneumonia", "Pneumonia (R/O)", "rule out PE", "PE excluded", "nil pneumonia", "denies pneumonia"]
WORDS += ["neg for pneumonia", "negative for PE", "pneumonia (neg)", "pneumonia, negative", "HIV-negative"]
WORDS += ["possible pneumonia", "Pneumonia (POSS)", "suspected PE", "PE unlikely", "pneumonia vs atelectasis"]
WORDS += ["Pneumonia (FH)", "Pneumonia (HX)", "may be pneumonia", "absence of pneumonia", "Ø pneumonia"]
PLAIN = ["Pneumothorax", "Pneumothorax (+)", "• pneumonia", "* pneumonia", "✓ pneumonia", "“Pneumonia”", "pneumonia."]
PLAIN += ["hernia, hiatal", "non-small cell lung cancer", "left hip fracture", "Pulmonary embolism (PE)", "COVID-19"]
PLAIN += [
    "Crohn's disease",
    "Legg-Calvé-Perthes disease",
    "Gram-negative sepsis",
    "Absence of lung",
    "May-Thurner syndrome",
]
PLAIN += ["Type 2 diabetes mellitus without complications", "Abdominal aortic aneurysm, without rupture"]
PLAIN += ["Non-traumatic subarachnoid hemorrhage", "Neoplasm of uncertain behavior of ovary", "Pneumonia NOS"]
PLAIN += ["Collapsed vertebra, not elsewhere classified, lumbar region", "Type O blood, Rh negative"]


@pytest.mark.parametrize("name", SIGNS + WORDS)
def test_a_name_with_doubt_or_denial_has_no_confident_code(name):
    linked = link(name)
    assert linked.verdict != "confident"
    assert linked.codes == codes(name) == []
    assert all(candidate.confidence < 0.9 for candidate in linked.candidates)
    assert Vocabulary.from_names([name])[0].icd10cm == []


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_name_keeps_its_confident_code(name):
    assert link(name).verdict == "confident"


def test_the_evidence_says_why_a_name_is_not_confident():
    assert link("pneumonia?").candidates[0].evidence.endswith("with a sign of doubt or denial")


def test_no_name_of_icd10cm_is_taken_for_doubt():
    entries = icd10cm.entries("category", "subcategory", "extension")
    assert [entry.code for entry in entries if is_doubtful(entry.description, entry.description)] == []


def test_a_list_of_names_is_printed_as_csv_or_json_and_no_name_ends_it(radfm, tmp_path):
    names = ["Pneumothorax", "?PE", "", "x" * 400, "\ud800 pneumonia", 7]
    (tmp_path / "names.json").write_text(json.dumps(names), encoding="utf-8")
    status, out, _ = radfm("icd", "--names", tmp_path / "names.json", "--json")
    assert status == 0
    assert [one["verdict"] for one in json.loads(out)][:4] == ["confident", "doubtful", "unlinked", "unlinked"]
    status, out, err = radfm("icd", "--names", tmp_path / "names.json")
    assert status == 0
    assert len(out.splitlines()) == 1 + len(names)
    assert "6 names" in err
    (tmp_path / "names.txt").write_bytes("Größe".encode("latin-1"))
    status, out, err = radfm("icd", "--names", tmp_path / "names.txt")
    assert status == 1
    assert "is not UTF-8" in err
