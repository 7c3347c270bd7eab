"""Linking names of disorders to ICD-10-CM, and vocabularies of disorders."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radfm.eval.linker import measure_linker
from radfm.eval.text_tasks import questions
from radfm.knowledge import icd10cm, ontology, wording
from radfm.knowledge.disorders import Coding, Disorder, Linker, Vocabulary, codes, link


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("Pneumothorax", "J93.9"),
        ("ACL tear", "S83.51"),
        ("acl tear", "S83.51"),
        ("Anterior cruciate ligament tear", "S83.51"),
        ("AAA", "I71.4"),
        ("Abdominal aortic aneurysm", "I71.4"),
        ("Abdominal aortic aneurysm rupture", "I71.3"),
        ("Rib fracture", "S22.3"),
        ("Fractured rib", "S22.3"),
        ("Gallstones", "K80"),
        ("Hip dislocation", "S73.0"),
        ("PE", "I26"),
        ("COPD", "J44.9"),
        ("Crohn's disease", "K50"),
        ("Crohn disease", "K50"),
        ("Oesophageal carcinoma", "C15"),
        ("Esophageal cancer", "C15"),
        ("Hepatic abscess", "K75.0"),
        ("Abscess of the liver", "K75.0"),
        ("Pulmonary metastases", "C78.0"),
        ("Subdural haemorrhage", "I62.0"),
        ("Meniscal tear", "S83.2"),
        ("Sacroiliitis (differential)", "M46.1"),
        ("Pneumothorax (summary)", "J93.9"),
        ("Neurofibromatosis type 2", "Q85.02"),
    ],
)
def test_a_clinical_name_is_linked_to_its_code_confidently(name, code):
    linked = link(name)
    assert linked.verdict == "confident"
    assert linked.candidates[0].code == code
    assert codes(name) == linked.codes == [code]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ACL tear, right", "S83.511"),
        ("Sprain of anterior cruciate ligament of right knee, initial encounter", "S83.511A"),
        ("Left pneumothorax", "J93.9"),
        ("Pneumothorax, unspecified", "J93.9"),
        ("Pneumothorax NOS", "J93.9"),
    ],
)
def test_side_and_encounter_select_a_more_specific_code_where_there_is_one(name, code):
    assert codes(name) == [code]


def test_the_description_of_a_category_is_linked_to_that_category():
    sample = list(icd10cm.entries("category"))[::40]
    linked = [link(entry.description[:300], top=1).candidates[0].code[:3] for entry in sample]
    wrong = [(entry.code, code) for entry, code in zip(sample, linked, strict=True) if entry.code != code]
    assert len(wrong) <= 1, wrong


@pytest.mark.parametrize("name", ["Pneumothrax", "Breast neoplasms", "Diabetic foot", "Cyst"])
def test_misspelt_and_ambiguous_names_are_doubtful_and_have_no_code(name):
    linked = link(name)
    assert linked.verdict == "doubtful"
    assert linked.candidates
    assert linked.codes == codes(name) == []


@pytest.mark.parametrize("name", ["Normal", "qwertyuiop", "🙂🙂", "肺炎", "Пневмоторакс", "!!!", "12345"])
def test_text_that_names_no_disorder_is_unlinked(name):
    linked = link(name)
    assert (linked.verdict, linked.candidates, linked.codes) == ("unlinked", (), [])


def test_another_disease_is_not_a_misspelling():
    assert codes("Pharyngocele") == []


@pytest.mark.parametrize(("name", "message"), [("", "empty"), ("  \n", "empty"), ("a" * 10_000, "10,000 characters")])
def test_an_empty_or_too_long_name_is_an_error(name, message):
    with pytest.raises(ValueError, match=message):
        link(name)
    with pytest.raises(ValueError, match=message):
        codes(["Pneumothorax", name])


def test_a_name_of_another_type_and_top_below_one_are_errors():
    with pytest.raises(TypeError, match="not NoneType"):
        link(None)
    with pytest.raises(ValueError, match="top is 0"):
        link("Pneumothorax", top=0)


@given(st.text(min_size=1, max_size=300).filter(str.strip))
def test_any_text_can_be_linked(text):
    linked = link(text, top=3)
    assert len(linked.candidates) <= 3
    assert all(0.3 <= candidate.confidence <= 1 for candidate in linked.candidates)


@pytest.mark.parametrize(
    ("name", "above"),
    [
        ("long QT syndrome 3", "I45.8"),  # above the best, I45.81, though the name says all that I45.81 does
        ("methylmalonic acidemia", "E71.1"),  # two steps above E71.120
        ("gout of knee or elbow", "M10"),  # what the first three have in common
    ],
)
def test_codes_above_the_best_ones_are_candidates(name, above):
    assert above in [candidate.code for candidate in link(name).candidates]


def test_candidates_are_ranked_distinct_and_ready_for_json():
    linked = link("Pulmonary embolism", top=5)
    assert len(linked.candidates) == 5
    confidences = [candidate.confidence for candidate in linked.candidates]
    assert confidences == sorted(confidences, reverse=True)
    assert len({candidate.code for candidate in linked.candidates}) == 5
    answer = json.loads(json.dumps(linked.to_dict()))
    assert answer["verdict"] == "confident"
    assert answer["codes"] == ["I26"]
    assert answer["candidates"][0]["path"][0] == "Diseases of the circulatory system"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Crohn's disease", "Crohn disease"),
        ("Oesophageal tumour", "esophageal neoplasms"),
        ("Haemorrhages of the pancreas", "Pancreatic haemorrhage"),
        ("Ménétrier disease", "Menetrier's Disease"),
        ("non-traumatic haematoma", "nontraumatic hematoma"),
        ("Fibre calibre", "fiber caliber"),
        ("renal calculi", "kidney stone"),
        ("vertebral metastases", "metastasis of vertebra"),
    ],
)
def test_spelling_number_and_word_order_make_no_difference(one, other):
    assert wording.key(one) == wording.key(other) != ""


def test_abbreviations_that_are_words_need_capitals():
    assert wording.expand("ALL") == "acute lymphoblastic leukemia"
    assert wording.expand("all ribs") == "all ribs"


def test_every_common_name_is_linked_to_its_code():
    rows = wording.read_table("common_names.csv")
    assert len(rows) > 500
    for row in rows[::10]:
        assert codes(row["name"]) == [icd10cm.normalise(row["code"])], row


def test_a_new_process_links_a_name_without_importing_torch_or_scipy():
    link("Pneumothorax")  # fills the cache
    code = "import sys; from radfm.knowledge.disorders import codes; print(codes('Pneumothorax'), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("['J93.9']")
    assert not {"torch", "pronto", "sklearn", "scipy", "simple_icd_10_cm"} & set(done.stdout.split())


def test_an_encoder_adds_to_the_similarity():
    """The vector of a text is its counts of letters."""
    encoded = []

    def letters(texts):
        encoded.extend(texts)
        return np.array([[text.lower().count(chr(97 + i)) + 0.01 for i in range(26)] for text in texts])

    linker = Linker(encoder=letters)
    assert len(encoded) > 40_000
    linked = linker.link("Klebsiella pneumonia")
    assert linked.candidates[0].evidence == "lexical and embedding"
    assert linked.candidates[0].code == "J15.0"
    assert linker.codes(["Pneumothorax"]) == [["J93.9"]]


def test_an_encoder_that_returns_no_matrix_is_an_error():
    with pytest.raises(ValueError, match=r"\(3,\) for \d+ texts: expected \(n, d\)"):
        Linker(encoder=lambda texts: np.zeros(3))


def test_vectors_are_cached_by_the_fingerprint_of_the_encoder(tmp_path, monkeypatch):
    from radfm.knowledge.embedding import NameVectors

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sizes = []

    def encode(texts):
        sizes.append(len(texts))
        return np.array([[len(text), 1.0] for text in texts])

    for fingerprint in ("a", "a", "b", None, None):
        vectors = NameVectors(["one", "three", "one"], encode, fingerprint)
    assert sizes == [2, 2, 2, 2]
    assert vectors.cosines("three").argmax() == 1


def test_an_ontology_adds_its_names(tmp_path):
    file = tmp_path / "test.obo"
    file.write_text(
        'format-version: 1.2\n\n[Term]\nid: T:1\nname: foobaritis\nsynonym: "bazosis" EXACT []\nxref: ICD10CM:J93.9\n'
        "\n[Term]\nid: T:2\nname: little foobaritis\nis_a: T:1\n"
    )
    linker = Linker(ontology=ontology.read(file))
    assert link("foobaritis").verdict == "unlinked"
    assert linker.codes(["foobaritis", "Bazoses"]) == [["J93.9"], ["J93.9"]]
    assert linker.link("bazosis").candidates[0].evidence == "synonym in T"
    child = linker.link("little foobaritis")
    assert (child.verdict, child.candidates[0].code) == ("doubtful", "J93.9")


def test_a_saved_vocabulary_loads_unchanged(tmp_path):
    vocabulary = Vocabulary.from_names(["Pneumothorax", "Ménétrier disease", "Normal"])
    assert vocabulary.save(tmp_path / "checkpoint").name == "disorders.json"
    loaded = Vocabulary.load(tmp_path / "checkpoint")
    assert list(loaded) == list(vocabulary)
    assert loaded.names == ["Pneumothorax", "Ménétrier disease", "Normal"]
    assert [disorder.icd10cm for disorder in loaded] == [["J93.9"], ["K29.6"], []]
    assert loaded.find(" pneumothorax ").codings[0].source.startswith("description")
    assert loaded.find("Asthma") is None


def test_names_that_cannot_be_used_are_listed():
    vocabulary = Vocabulary.from_names(["Asthma", "", "asthma ", "b" * 400])
    assert vocabulary.names == ["Asthma"]
    assert [reason for _, reason in vocabulary.skipped] == [
        "the name is empty",
        "the name came before",
        "400 characters are no name: at most 300",
    ]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "disorders": [{"name": 1}]}'])
def test_loading_a_file_of_another_format_is_an_error(tmp_path, content):
    (tmp_path / "disorders.json").write_text(content)
    with pytest.raises(ValueError, match="is no vocabulary of format 1"):
        Vocabulary.load(tmp_path)


def test_a_folder_without_vocabulary_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Vocabulary.load(tmp_path)


def test_prompts_contain_what_the_disorder_has():
    disorder = Disorder("Pneumothorax", ("collapsed lung",), "Air in the pleura.", (Coding("J93.9", 0.97, "given"),))
    assert disorder.prompts("name") == ["Pneumothorax"]
    assert disorder.prompts("description") == ["Pneumothorax", "Pneumothorax: Air in the pleura."]
    assert disorder.prompts("synonyms") == ["Pneumothorax", "collapsed lung"]
    (path,) = disorder.prompts("path")
    assert path.startswith("Diseases of the respiratory system > ")
    assert path.endswith(" > Pneumothorax")
    bare = Disorder("Shadow")
    assert [bare.prompts(style) for style in ("description", "synonyms", "path")] == [["Shadow"]] * 3
    with pytest.raises(ValueError, match="no such style of prompt: 'poem'"):
        bare.prompts("poem")


def test_names_of_an_ontology_are_linked_to_its_codes_without_it(shared):
    doid = ontology.read(shared / "knowledge" / "disease_ontology.obo")
    figures = measure_linker(Linker(), questions(doid, held_out=4))
    assert figures["A@1"] > 0.70
    assert figures["A@5"] > 0.79
    assert figures["A category"] > 0.82
    assert figures["category of the confident"] > 0.96


def test_the_rp3d_records_are_linked_to_their_own_categories(shared):
    cases = json.loads((shared / "rp3d_demo" / "demoData.json").read_text(encoding="utf-8"))
    for case in cases.values():
        sample = case["Samples"][0]
        assert {code[:3] for name in sample["articles"] for code in codes(name)} == set(sample["icd10s"])


def test_most_rp3d_names_are_linked(shared):
    names = list(json.loads((shared / "rp3d_demo" / "disorder_label_dict.json").read_text(encoding="utf-8")))
    assert sum(map(bool, codes(names))) > 1700
