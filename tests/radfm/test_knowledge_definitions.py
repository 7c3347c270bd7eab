"""What a disorder is, by its name or its code."""

import pytest

from radfm.data_prep import phantoms
from radfm.knowledge import definitions, wording

ONTOLOGY = """format-version: 1.2

[Term]
id: DOID:1
name: lung abscess
def: "A lung disease located_in the lung, e.g. an apex. It has_symptom cough." []

[Term]
id: DOID:2
name: emphysema
def: "An emphysema that has_material_basis_in mutation in a gene." []

[Term]
id: DOID:3
name: something that no code is for
def: "A thing." []

[Term]
id: DOID:4
name: hydronephrosis
"""


@pytest.mark.parametrize(
    ("name", "codes", "defined"),
    [
        ("Pneumothorax", ["J93.9"], "Pneumothorax"),
        ("Haemothorax", [], "Hemothorax"),
        ("ABSCESSES OF THE LIVER", [], "Abscess of liver"),
        ("COPD", [], "chronic obstructive pulmonary disease"),
        ("collapsed lung", ["J93.9"], "Pneumothorax"),  # "Pneumothorax, unspecified"
        ("ACL tear", ["S83.51"], "Sprain of anterior cruciate ligament of knee"),
        ("no such thing", ["X99.99"], None),
        ("no such thing", [], None),
    ],
)
def test_a_disorder_is_defined_by_its_name_or_else_its_code(name, codes, defined):
    definition = definitions.define(name, codes)
    assert (definition and definition.name) == defined


def test_a_code_has_the_definition_of_its_description_only():
    assert definitions.define("Cyst of liver") is not None
    assert definitions.define("Focal nodular hyperplasia", ["K76.89"]) is None  # the same code


def test_every_disorder_of_the_phantoms_has_a_definition_of_its_own():
    for one in phantoms.disorders():
        definition = definitions.define(one.name)
        assert definition is not None, one.name
        assert definition.text.endswith(".")
        assert wording.key(definition.name) == wording.key(one.name)


def test_the_table_is_small_and_names_the_source_of_every_row():
    rows = wording.read_table(definitions.TABLE)
    assert all(row["source"] == definitions.OWN or row["source"].startswith("DOID:") for row in rows)
    assert all(row["name"] and row["text"] and "_" not in row["text"] for row in rows)
    assert sum(len(text) for row in rows for text in row.values()) < 150_000


def test_terms_of_an_ontology_that_icd10cm_has_are_taken_with_their_first_sentence(tmp_path):
    (tmp_path / "small.obo").write_text(ONTOLOGY)
    assert [(one.name, one.text, one.source) for one in definitions.ontology_definitions(tmp_path / "small.obo")] == [
        ("lung abscess", "A lung disease located in the lung, e.g. an apex.", "DOID:1")
    ]
