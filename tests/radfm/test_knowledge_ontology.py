import pytest

from radfm.knowledge import ontology

HEADER = "format-version: 1.2\nontology: test\n"
ANEURYSM = """
[Term]
id: T:1
name: aortic aneurysm
def: "A bulge of the aorta." []
synonym: "aneurysm of aorta" EXACT []
synonym: "AA" RELATED []
xref: ICD10CM:I71
xref: ICD-10-CM:I71.3
xref: ICD10CM_2025:i719
xref: ICD10:I71.9
xref: ICD10PCS:02100
xref: MESH:D1
"""


@pytest.fixture
def write(tmp_path):
    def to_file(text: str | bytes):
        file = tmp_path / "test.obo"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return to_file


def test_names_definitions_synonyms_and_codes(write):
    result = ontology.read(write(HEADER + ANEURYSM))
    term = result["T:1"]
    assert (term.name, term.definition) == ("aortic aneurysm", "A bulge of the aorta.")
    assert {(s.text, s.scope) for s in term.synonyms} == {("aneurysm of aorta", "EXACT"), ("AA", "RELATED")}
    assert set(term.icd10cm) == {"I71", "I71.3", "I71.9"}
    assert result.skipped == []


def test_parents_children_and_ancestors(write):
    terms = (
        "\n[Term]\nid: T:2\nname: b\nis_a: T:1 ! aortic aneurysm\n\n[Term]\nid: T:3\nname: c\nis_a: T:2\nis_a: T:1\n"
    )
    result = ontology.read(write(HEADER + ANEURYSM + terms))
    assert [term.id for term in result.ancestors(result["T:3"])] == ["T:1", "T:2"]
    assert [term.id for term in result.children(result["T:1"])] == ["T:2", "T:3"]


def test_an_is_a_that_closes_a_cycle_is_left_out_and_listed(write):
    terms = "\n[Term]\nid: T:2\nname: b\nis_a: T:3\n\n[Term]\nid: T:3\nname: c\nis_a: T:2\n"
    result = ontology.read(write(HEADER + ANEURYSM + terms))
    assert result.skipped == [("T:3", "is_a T:2 closes a cycle")]
    assert [term.id for term in result.ancestors(result["T:2"])] == ["T:3"]
    assert result.ancestors(result["T:3"]) == []


def test_an_is_a_to_itself_is_left_out(write):
    result = ontology.read(write(HEADER + ANEURYSM + "is_a: T:1\n"))
    assert result["T:1"].parent_ids == ()
    assert result.skipped == [("T:1", "is_a T:1, which is itself")]


def test_a_dangling_is_a_is_listed(write):
    result = ontology.read(write(HEADER + ANEURYSM + "is_a: T:9\n"))
    assert result["T:1"].parent_ids == ()
    assert result.skipped == [("T:1", "is_a T:9, which is not in the file")]


def test_of_two_terms_with_one_id_the_first_counts(write):
    result = ontology.read(write(HEADER + ANEURYSM + "\n[Term]\nid: T:1\nname: other\n"))
    assert result["T:1"].name == "aortic aneurysm"
    assert result.skipped == [("T:1", "a second term of this id; the first counts")]


def test_a_code_that_icd_10_cm_does_not_have_is_listed(write):
    result = ontology.read(write(HEADER + ANEURYSM + "xref: ICD10CM:I71.99\n"))
    ((term, reason),) = result.skipped
    assert term == "T:1"
    assert "'I71.99' is not in ICD-10-CM" in reason


def test_an_ontology_without_codes_is_read_and_listed(write):
    result = ontology.read(write(HEADER + "\n[Term]\nid: T:1\nname: a\n"))
    assert len(result) == 1
    assert result.skipped == [("test.obo", "no term refers to ICD-10-CM: it adds names and relations, but no codes")]


def test_obsolete_and_nameless_terms_are_left_out(write):
    terms = "\n[Term]\nid: T:2\nname: b\nis_obsolete: true\n\n[Term]\nid: T:3\n\n[Term]\nid: T:4\nname: d\nis_a: T:2\n"
    result = ontology.read(write(HEADER + ANEURYSM + terms))
    assert list(result.terms) == ["T:1", "T:4"]
    assert result.skipped == [("T:3", "has no name"), ("T:4", "is_a T:2, which was left out")]


def test_imports_and_relations_are_not_followed(write):
    header = HEADER + "import: http://nowhere.invalid/other.obo\n"
    result = ontology.read(write(header + ANEURYSM + "relationship: part_of X:9\nintersection_of: X:8\n"))
    assert list(result.terms) == ["T:1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((HEADER + "\n[Term]\nid: T:1\nname: Ménétrier\n").encode("latin-1"), "line 6: not UTF-8"),
        ((HEADER + ANEURYSM).encode("utf-16"), "not UTF-8"),
        (b"", r"holds no \[Term\]: is it OBO"),
        (b"name,code\npneumothorax,J93.9\n", r"holds no \[Term\]: is it OBO"),
        (HEADER + "\n[Term]\nid: T:1\n", "holds no term with a name"),
        (HEADER + "\n[Term]\nid: T:1\nname: a\nsynonym: unquoted\n", "is not valid OBO"),
    ],
)
def test_the_error_for_a_file_that_is_not_obo_is_one_line(write, content, message):
    with pytest.raises(ValueError, match=message) as error:
        ontology.read(write(content))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        ontology.read(tmp_path / "none.obo")


def test_the_disease_ontology(shared):
    result = ontology.read(shared / "knowledge" / "disease_ontology.obo")
    assert len(result) == 6061
    assert result["DOID:1686"].name == "glaucoma"
    assert result["DOID:1686"].icd10cm == ("H40",)
    assert sum(bool(term.icd10cm) for term in result) > 1900
    assert all("is not in ICD-10-CM" in reason for _, reason in result.skipped)


def test_terms_come_in_the_order_of_their_ids_in_every_process(write):
    terms = "".join(f"\n[Term]\nid: T:{number}\nname: {number}\n" for number in (30, 4, 21, 15, 9, 2))
    assert [term.id for term in ontology.read(write(HEADER + ANEURYSM + terms))] == sorted(
        f"T:{number}" for number in (1, 2, 4, 9, 15, 21, 30)
    )
