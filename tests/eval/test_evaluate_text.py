"""The measure of a text encoder's space, with TF-IDF as the space, since it needs no training."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from radfm.eval import linker, text, text_encoders, text_tasks
from radfm.knowledge import icd10cm, ontology
from radfm.knowledge.linking import Candidate, Linker
from radfm.knowledge.wording import read_table

TERMS = {  # id -> name, exact synonym, definition, code
    "T:1": ("cholera", "Vibrio cholerae infection", "An infection of the small intestine.", "A00"),
    "T:2": ("sarcoidosis", "Besnier-Boeck disease", "A granulomatous disease of the lung.", "D86"),
    "T:3": ("pneumothorax", "air in the pleural space", "Air in the pleural space.", "J93"),
    "T:4": ("anthrax", "Bacillus anthracis infection", "An infection by Bacillus anthracis.", "A22"),
}


@pytest.fixture(scope="module")
def obo(tmp_path_factory) -> Path:
    lines = ["format-version: 1.2"]
    for term_id, (name, synonym, definition, code) in TERMS.items():
        lines += ["", "[Term]", f"id: {term_id}", f"name: {name}", f'def: "{definition}" []']
        lines += [f'synonym: "{synonym}" EXACT []', f"xref: ICD10CM:{code}"]
    path = tmp_path_factory.mktemp("obo") / "toy.obo"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def all_terms(obo) -> text_tasks.Questions:
    known = ontology.read(obo)
    return text_tasks.Questions(list(known), list(known), fold=0)


@pytest.fixture(scope="module")
def space() -> text_encoders.Encode:
    return text_encoders.tfidf()


def vectors(texts, meaning: dict[str, str]) -> np.ndarray:
    """A random direction for each meaning; texts that are not in the dictionary mean themselves."""
    seeds = [zlib.crc32(meaning.get(text, text).encode()) for text in texts]
    rows = np.stack([np.random.default_rng(seed).normal(size=64) for seed in seeds]).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_space_that_knows_the_answers_has_all_of_them_right(all_terms):
    meaning = {}
    for name, synonym, _, code in TERMS.values():
        meaning |= dict.fromkeys((name, synonym), icd10cm.get(code).description)
    figures, _ = text_tasks.measure(lambda texts: vectors(texts, meaning), all_terms)
    assert set(figures) == set(text_tasks.METRICS)
    right = ["A@1", "A@5", "A category", "A category all names", "B@1", "B@10"]
    assert {figure: figures[figure] for figure in right} == dict.fromkeys(right, 1)
    assert abs(figures["C Spearman"]) < 0.05  # of the hierarchy it knows nothing
    assert abs(figures["C triplets"] - 0.5) < 0.05


def test_a_space_that_knows_half_of_the_answers_has_half_of_them_right(all_terms):
    meaning = {TERMS[i][0]: icd10cm.get(TERMS[i][3]).description for i in ("T:1", "T:2")}
    figures, intervals = text_tasks.measure(lambda texts: vectors(texts, meaning), all_terms)
    assert [figures[metric] for metric in text_tasks.LINKING] == [0.5, 0.5, 0.5]
    assert intervals["A@1"] == [0, 1]  # of four terms, a draw may have only right ones, or none
    assert "C Spearman" not in intervals


def test_an_interval_resamples_terms_with_all_their_synonyms():
    right = np.repeat([True, False] * 50, 8)  # 100 terms, 8 synonyms of each alike
    low, high = text_tasks.bootstrap_interval(np.repeat(np.arange(100), 8), right)
    assert 0.38 < low < 0.43 < 0.57 < high < 0.62  # 0.5 +- 1.96 * 0.05; by single synonyms +- 0.035


def test_prompts_with_more_than_the_name_find_more(space, all_terms):
    figures = text_tasks.compare_prompts(space, all_terms)
    assert figures["description"]["R@1"] > figures["name"]["R@1"] - 1e-9
    assert set(figures) == {"name", "description", "synonyms", "path"}


def test_the_synonym_of_a_question_is_not_among_the_averaged_ones(space, all_terms):
    # Were it there, TF-IDF would find each synonym by itself.
    assert text_tasks.compare_prompts(space, all_terms)["synonyms"]["R@1"] < 1


def test_a_linker_is_measured_by_the_same_questions(all_terms):
    figures = linker.measure_linker(Linker(), all_terms)
    assert figures["A category"] == 1.0
    assert 0 < figures["confident"] <= 1
    assert len(figures["misses"]) == round(4 * (1 - figures["A@1"]))


def test_what_the_linker_misses_is_listed_with_what_has_been_judged_of_it(obo, tmp_path):
    judged = read_table("judged.csv", "radfm.eval")
    one = next(row for row in judged if row["accepted"] == "yes")
    odd = obo.read_text().split("\n[Term]")[0] + f"\n[Term]\nid: T:9\nname: {one['name']}\nxref: ICD10CM:Z99\n"
    (tmp_path / "odd.obo").write_text(odd)
    known = ontology.read(tmp_path / "odd.obo")

    class Answering(Linker):
        def rank(self, name, top=5):
            entry = icd10cm.get(one["code"])
            return [Candidate(entry.code, entry.description, entry.path, 0.5, "given", name)]

    (miss,) = linker.measure_linker(Answering(), text_tasks.questions(known, ontology.fold("T:9")))["misses"]
    assert (miss["curators"], miss["answer"], miss["accepted"]) == (["Z99"], one["code"], True)
    assert len({(row["name"], row["code"]) for row in judged}) == len(judged)
    assert {row["accepted"] for row in judged} == {"yes", "no"}
    assert all(icd10cm.get(row["code"]) for row in judged)


def test_an_encoder_that_was_trained_on_the_terms_is_refused(obo, tmp_path):
    (tmp_path / "radfm_text.json").write_text('{"held_out": null}')
    with pytest.raises(ValueError, match="was trained on terms"):
        text.evaluate([str(tmp_path)], obo, 0)


def test_terms_of_another_file_are_not_tested(obo, tmp_path):
    known = ontology.read(obo)
    (tmp_path / "seen.obo").write_text(obo.read_text().split("\n[Term]\nid: T:3")[0] + "\n")
    questions = text_tasks.questions(known, trained_on=ontology.read(tmp_path / "seen.obo"))
    assert [term.id for term in questions.terms] == ["T:3", "T:4"]
    assert len(questions.candidates) == 4
    with pytest.raises(ValueError, match="of the 0 terms that were not trained on none refers to ICD-10-CM"):
        text_tasks.questions(known, trained_on=known)


def test_a_fold_without_codes_is_answered_with_those_that_have_some(tmp_path):
    (tmp_path / "one.obo").write_text("format-version: 1.2\n\n[Term]\nid: T:3\nname: gout\nxref: ICD10CM:M10\n")
    known = ontology.read(tmp_path / "one.obo")
    own = ontology.fold("T:3")
    other = (own + 1) % 5
    with pytest.raises(ValueError, match=f"of the 0 terms of fold {other} none .*; folds {own} have some"):
        text_tasks.questions(known, other)
