"""The example studies that come with radfm: what they show, their licences, and that they are read as any study."""

import csv
import json
from pathlib import Path

import pydicom
import pytest

from radfm import examples, read_case
from radfm.examples.make import make
from radfm.knowledge import icd10cm

every = pytest.mark.parametrize("name", examples.names())
LICENCES = {"CC BY 4.0", "CC BY 3.0", "MIT", "NIH: no restrictions on use, attribution"}


def files(name: str) -> list[Path]:
    return sorted(examples.folder(name).iterdir())


@every
def test_a_study_is_a_case_with_its_disorders(name):
    case, example = examples.load(name), examples.about(name)
    assert case.case_id == name
    assert case.disorders == list(example.disorders)
    assert not case.skipped
    assert {scan.source: (scan.modality, scan.plane, scan.body_part) for scan in case.scans} == {
        scan["file"]: (scan["modality"], scan.get("plane"), scan["body_part"]) for scan in example.scans
    }
    days = [scan["day"] for scan in example.scans if "day" in scan]
    assert sorted(scan.days for scan in case.scans if scan.days is not None) == sorted(max(days) - day for day in days)
    assert all(scan.pixels.std() > 10 for scan in case.scans)


@every
def test_a_study_says_whom_to_credit(name):
    example = examples.about(name)
    assert example.licence in LICENCES
    assert example.url.startswith("https://")
    assert len(example.attribution) > 20
    for part in (example.attribution, example.licence, example.url):
        assert part in example.credit


@every
def test_the_codes_are_of_icd10cm(name):
    for code in examples.about(name).disorders.values():
        assert icd10cm.get(code).code == code


@every
def test_the_files_hold_no_patient(name):
    for file in files(name):
        content = file.read_bytes()
        assert b"Exif" not in content
        header = pydicom.dcmread(file)
        assert header.PatientID == header.PatientName == f"example {name}"
        assert header.PatientIdentityRemoved == "YES"
        assert "PatientBirthDate" not in header


def test_the_studies_are_small_and_several():
    assert 6 <= len(examples.names()) <= 8
    assert sum(file.stat().st_size for name in examples.names() for file in files(name)) < 300_000
    modalities = {modality for name in examples.names() for modality in examples.about(name).modalities}
    assert modalities >= {"X-ray", "CT", "MRI", "ultrasound"}


def test_there_are_no_files_that_no_study_names():
    named = {examples.folder(name) / scan["file"] for name in examples.names() for scan in examples.about(name).scans}
    assert named == set(examples.HOME.rglob("*.dcm"))


def test_a_name_that_is_none_lists_those_that_are():
    with pytest.raises(ValueError, match=r"no example study 'elbow': there are .*knees"):
        examples.load("elbow")


def test_the_command_lists_the_studies_with_whom_to_credit(radfm):
    status, out, _ = radfm("examples", "--json")
    listed = json.loads(out)
    assert status == 0
    assert [example["name"] for example in listed] == examples.names()
    assert all(example["credit"] == examples.about(example["name"]).credit for example in listed)
    assert "CC BY 4.0" in radfm("examples")[1]


def test_the_command_writes_folders_that_radfm_reads(radfm, tmp_path):
    status, out, _ = radfm("examples", tmp_path / "studies")
    readme = (tmp_path / "studies" / "README.md").read_text(encoding="utf-8")
    assert status == 0
    assert "README.md" in out
    for name in examples.names():
        assert examples.about(name).credit in readme
        assert len(read_case(tmp_path / "studies" / name).scans) == len(examples.about(name).scans)
    status, _, err = radfm("examples", tmp_path / "studies")
    assert status == 1
    assert "already holds cardiomegaly" in err


def test_the_files_are_made_from_the_pictures(shared, tmp_path):
    make(shared / "open", tmp_path)
    for file in tmp_path.rglob("*.dcm"):
        assert file.read_bytes() == (examples.HOME / file.relative_to(tmp_path)).read_bytes()


def test_the_pictures_are_not_of_the_training_part_and_may_be_published(shared):
    with open(shared / "open" / "cases.csv", encoding="utf-8", newline="") as table:
        rows = {row["path"]: row for row in csv.DictReader(table)}
    for example in map(examples.about, examples.names()):
        for scan in example.scans:
            row = rows[scan["picture"]]
            assert (row["split"], row["publish"], row["licence"]) == ("validation", "1", example.licence)
            assert {row["disorders"]: row["icd10cm"]} == example.disorders
