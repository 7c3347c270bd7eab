"""ORPHA codes of rare diseases: in ontologies, in the table, beside ICD-10-CM, and on the command line."""

import json

import pytest

from radfm.knowledge import ontology, orphanet, wording
from radfm.knowledge.disorders import Disorder

OBO = """format-version: 1.2

[Term]
id: DOID:1
name: Wobbly spine disease
synonym: "Rickety back" EXACT []
synonym: "RB" EXACT []
synonym: "bad back" BROAD []
xref: ORDO:123
xref: ICD10CM:M41.9

[Term]
id: MONDO:2
name: Glass hand
synonym: "brittle thing" EXACT []
xref: Orphanet:45 {source="MONDO:equivalentTo"}
property_value: has_point_prevalence "1-9 / 100 000" xsd:string

[Term]
id: Orphanet:67
name: Paper foot
synonym: "brittle thing" EXACT []
relationship: Orphanet:C016 Orphanet:409 ! <1 / 1 000 000

[Term]
id: X:3
name: Prostate cancer
xref: ORPHA:1331

[Term]
id: X:4
name: Common cold
xref: MESH:D003139
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "small.obo").write_text(OBO)
    return tmp_path / "small.obo"


def test_orpha_codes_are_read_under_every_prefix_and_with_their_prevalence(file):
    terms = ontology.read(file)
    assert {term.id: (term.orpha, term.prevalence) for term in terms} == {
        "DOID:1": (("ORPHA:123",), ""),
        "MONDO:2": (("ORPHA:45",), "1-9 / 100 000"),
        "Orphanet:67": (("ORPHA:67",), "<1 / 1 000 000"),
        "X:3": (("ORPHA:1331",), ""),
        "X:4": ((), ""),
    }


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("wobbly spine diseases", ["ORPHA:123"]),
        ("Rickety back", ["ORPHA:123"]),
        ("RB", []),  # initials
        ("bad back", []),  # a broader name
        ("brittle thing", []),  # of two diseases
        ("Glass hand", ["ORPHA:45"]),
        ("prostate cancer", []),  # common, the code is of a familial form
        ("Common cold", []),
    ],
)
def test_a_rare_disease_is_found_by_its_name_or_an_exact_synonym(file, name, codes):
    assert orphanet.RareDiseases(orphanet.of_ontology(ontology.read(file))).codes(name) == codes


def test_a_table_of_several_ontologies_has_all_their_rare_diseases(file, tmp_path):
    other = tmp_path / "other.obo"
    other.write_text("format-version: 1.2\n\n[Term]\nid: X:9\nname: Blue ear\nxref: ORPHA:9\nxref: ORPHA:10\n")
    orphanet.write_table([ontology.read(file), ontology.read(other)], tmp_path / "table.csv")
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[0] == ",".join(orphanet.COLUMNS)
    assert lines[1:] == [
        "Wobbly spine disease,RB|Rickety back,ORPHA:123,,DOID:1",
        "Glass hand,brittle thing,ORPHA:45,1-9 / 100 000,MONDO:2",
        "Paper foot,brittle thing,ORPHA:67,<1 / 1 000 000,Orphanet:67",
        "Blue ear,,ORPHA:10|ORPHA:9,,X:9",
    ]


def test_the_table_of_radfm_has_a_code_and_a_source_in_every_row_and_nothing_that_is_common():
    common = {wording.key(row["name"]) for row in wording.read_table(orphanet.NOT_RARE)}
    diseases = orphanet.shipped().diseases
    assert len(diseases) > 1500
    for disease in diseases:
        assert disease.orpha
        assert all(code.removeprefix("ORPHA:").isdigit() for code in disease.orpha)
        assert disease.source.startswith("DOID:")
        assert wording.key(disease.name) not in common


def test_a_disorder_has_orpha_codes_beside_icd_10_cm():
    assert Disorder("Biliary Atresia").orpha == ["ORPHA:30391"]
    assert Disorder("Pneumothorax").orpha == []


def test_the_command_shows_orpha_codes(radfm, file, tmp_path):
    status, out, _ = radfm("icd", "biliary atresia")
    assert status == 0
    assert "Rare disease: ORPHA:30391, biliary atresia" in out
    assert "Rare disease" not in radfm("icd", "Pneumothorax")[1]
    answer = json.loads(radfm("icd", "Glass hand", "--ontology", file, "--json")[1])
    assert (answer["orpha"], answer["prevalence"]) == (["ORPHA:45"], "1-9 / 100 000")
    assert "ORPHA:45, Glass hand, prevalence 1-9 / 100 000" in radfm("icd", "Glass hand", "--ontology", file)[1]
    (tmp_path / "names.txt").write_text("biliary atresia\nPneumothorax\n")
    lines = radfm("icd", "--names", tmp_path / "names.txt")[1].splitlines()
    assert lines[0].endswith(",orpha")
    assert [line.rsplit(",", 1)[1] for line in lines[1:3]] == ["ORPHA:30391", ""]


def test_an_ontology_adds_its_names_to_the_evidence(radfm, file):
    answer = json.loads(radfm("icd", "Rickety back", "--ontology", file, "--json")[1])
    assert (answer["codes"], answer["candidates"][0]["evidence"]) == (["M41.9"], "synonym in DOID")
    status, _, err = radfm("icd", "x", "--ontology", file.with_name("missing.obo"))
    assert status == 1
    assert "missing.obo" in err
