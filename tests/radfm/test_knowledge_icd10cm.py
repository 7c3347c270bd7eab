import os
import re
import subprocess
import sys

import pytest
import simple_icd_10_cm as source
from hypothesis import given
from hypothesis import strategies as st

from radfm.knowledge import icd10cm

CODES = [entry.code for entry in icd10cm.entries()]


def test_every_entry_of_the_package_has_a_unique_code():
    assert len(CODES) == len(set(CODES)) == len(source.get_all_codes()) == 98_505


def test_entries_agree_with_the_package():
    for code in source.get_all_codes()[::97]:
        entry = icd10cm.get(code)
        assert entry.code == code
        assert " ".join(source.get_description(code).split()).startswith(entry.description)
        children = [re.sub(r"^(\w{3})-\1$", r"\1", child) for child in entry.child_codes]
        assert children == source.get_children(code)
        assert [" ".join(term.split()) for term in source.get_inclusion_term(code)] == list(entry.inclusion_terms)
        assert len(entry.excludes1) == len(source.get_excludes1(code))
        assert len(entry.excludes2) == len(source.get_excludes2(code))
        assert len(entry.includes) == len(source.get_includes(code))


def test_parents_and_children_agree():
    for entry in icd10cm.entries("chapter", "block", "category"):
        assert all(child.parent_code == entry.code for child in entry.children)
        assert (entry.parent is None) == (entry.kind == "chapter")


def test_the_seventh_character_is_spelled_out():
    entry = icd10cm.get("S83.511A")
    assert entry.description == "Sprain of anterior cruciate ligament of right knee, initial encounter"
    assert (entry.kind, entry.parent_code, entry.category, entry.billable) == ("extension", "S83.511", "S83", True)


def test_a_block_of_one_category_and_that_category_are_two_entries():
    block, category = icd10cm.get("C50-C50"), icd10cm.get("C50")
    assert (block.kind, category.kind) == ("block", "category")
    assert category.parent == block
    assert icd10cm.distance("C50", "C50-C50") == 1


def test_path_leads_from_chapter_to_code():
    assert icd10cm.get("I71.3").path == (
        "Diseases of the circulatory system",
        "Diseases of arteries, arterioles and capillaries",
        "Aortic aneurysm and dissection",
        "Abdominal aortic aneurysm, ruptured",
    )


@pytest.mark.parametrize("written", ["i71.3", "I713", "I71.3 ", " i 71.3", "I71.3-"])
def test_a_code_is_recognised_in_any_spelling(written):
    assert icd10cm.normalise(written) == "I71.3"


@given(st.sampled_from(CODES))
def test_normalising_a_code_again_changes_nothing(code):
    assert icd10cm.normalise(code) == icd10cm.normalise(code.replace(".", "").lower()) == code


@given(st.sampled_from(CODES), st.sampled_from(CODES))
def test_distance_is_that_over_the_common_ancestor(a, b):
    shared = icd10cm.common_ancestor(a, b)
    assert icd10cm.distance(a, b) == icd10cm.distance(b, a)
    if shared is None:
        assert icd10cm.distance(a, b) == len(icd10cm.get(a).ancestors) + len(icd10cm.get(b).ancestors) + 2
    else:
        assert icd10cm.distance(a, b) == icd10cm.distance(a, shared.code) + icd10cm.distance(shared.code, b)


def test_common_ancestor_of_a_code_and_one_below_it_is_the_code():
    assert icd10cm.common_ancestor("I71.3", "I71").code == "I71"
    assert icd10cm.common_ancestor("I71.3", "I72").code == "I70-I79"
    assert icd10cm.common_ancestor("I71.3", "J93.9") is None


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("K35.9", "near it: K35, K35.8"),
        ("I71.44", "near it: I71.4, I71.4"),
        ("U9X", "mistyped, retired, or of another edition"),
        ("", "codes have the form I71.3"),
        ("appendicitis", "codes have the form I71.3"),
        ("A" * 10_000, "'AAAAAAAAAAAAAAAAAAAA...' is no ICD-10-CM code"),
        ("🙂", "codes have the form I71.3"),
    ],
)
def test_an_unknown_code_is_one_line_that_names_near_ones(code, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")) as error:
        icd10cm.get(code)
    assert "\n" not in str(error.value)


def test_a_code_of_another_type_is_a_type_error():
    with pytest.raises(TypeError, match="not int"):
        icd10cm.get(71)


def test_an_unknown_kind_of_entry_is_refused():
    with pytest.raises(ValueError, match="no such kind of entry: leaf"):
        icd10cm.entries("leaf")


COUNT = "import sys; from radfm.knowledge import icd10cm; print(sum(1 for _ in icd10cm.entries()), *sys.modules)"


def run(cache: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        env={**os.environ, "XDG_CACHE_HOME": cache},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_the_second_process_reads_the_cache_and_neither_needs_torch(tmp_path):
    first, second = run(str(tmp_path)), run(str(tmp_path))
    assert first[0] == second[0] == "98505"
    assert "simple_icd_10_cm" in first
    assert "simple_icd_10_cm" not in second
    assert not {"torch", "pronto", "sklearn", "scipy"} & {*first, *second}


def test_a_damaged_or_unwritable_cache_does_not_change_the_result(tmp_path):
    run(str(tmp_path))
    (table,) = (tmp_path / "radfm").glob("icd10cm-*.npz")
    table.write_bytes(table.read_bytes()[:1000])
    assert run(str(tmp_path))[0] == "98505"
    no_folder = tmp_path / "file"
    no_folder.write_text("")
    assert run(str(no_folder))[0] == "98505"
