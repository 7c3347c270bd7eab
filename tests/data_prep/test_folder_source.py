"""One folder for each class: what is a class, a case, a split, and what is put aside."""

import numpy as np
import pytest
from PIL import Image

from radfm.data_prep.pseudonyms import Pseudonyms
from radfm.data_prep.sources.folder import FolderPerClass


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24), dtype=np.uint8)).save(path)


def listed(folder, **options):
    listing = FolderPerClass(folder, **options).listing()
    assert listing.listed == listing.planned + len(listing.rejected)
    return {plan.case_id: plan for plan in listing.plans}, listing.rejected


def test_classes_are_disorders_and_normal_classes_have_no_disorder(tmp_path):
    for name in ("Lobar_pneumonia", "COVID-19", "no_finding", "NORMAL", "notumor", "No-Finding"):
        picture(tmp_path / name / "a.png")
    plans, rejected = listed(tmp_path, modality="xr")
    disorders = {plan.items[0].names[0].split("/")[0]: plan.disorders for plan in plans.values()}
    assert disorders == {
        "COVID-19": ["COVID-19"], "Lobar_pneumonia": ["Lobar pneumonia"],
        "NORMAL": [], "No-Finding": [], "no_finding": [], "notumor": [],
    }  # fmt: skip
    assert all(plan.labelled and plan.items[0].modality == "X-ray" for plan in plans.values())
    assert all(len(plan.icd10cm) == len(plan.disorders) for plan in plans.values())
    assert not rejected


def test_each_file_is_a_case_and_a_folder_in_a_class_is_one_case(tmp_path):
    for file in ("mass/a2.png", "mass/a10.png", "mass/patient7/1.png", "mass/patient7/more/2.png"):
        picture(tmp_path / file)
    plans, _ = listed(tmp_path)
    assert list(plans) == ["mass/a2.png", "mass/a10.png", "mass/patient7"]
    assert plans["mass/patient7"].items[0].names == ["mass/patient7/1.png", "mass/patient7/more/2.png"]
    assert len({plan.patient_id for plan in plans.values()}) == 3


def test_a_folder_that_is_the_only_content_of_a_class_is_not_a_case(tmp_path):
    for file in ("COVID/images/a.png", "COVID/images/b.png", "Normal/png/8bit/a.png", "Normal/png/8bit/b.png"):
        picture(tmp_path / file)
    plans, _ = listed(tmp_path)
    assert list(plans) == ["COVID/images/a.png", "COVID/images/b.png", "Normal/png/8bit/a.png", "Normal/png/8bit/b.png"]


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "valid", "Testing"), ("TRAIN", "dev", "Test")]
)
def test_folders_at_the_top_are_official_splits(tmp_path, names):
    for name in names:
        picture(tmp_path / name / "glioma" / "a.jpg")
    plans, _ = listed(tmp_path)
    assert sorted(plan.split for plan in plans.values()) == ["test", "train", "validation"]
    assert all(plan.disorders == ["Glioma"] for plan in plans.values())


def test_a_class_beside_the_splits_has_no_split(tmp_path):
    picture(tmp_path / "train" / "glioma" / "a.jpg")
    picture(tmp_path / "meningioma" / "b.jpg")
    plans, _ = listed(tmp_path)
    assert {plan.disorders[0]: plan.split for plan in plans.values()} == {"Glioma": "train", "Meningioma": None}


def test_stray_files_and_empty_classes_are_rejected_and_files_of_operating_systems_are_ignored(tmp_path):
    for file in ("glioma/a.jpg", "stray.png", "train/lost.png", "train/glioma/b.jpg", "__MACOSX/glioma/._a.jpg"):
        picture(tmp_path / file)
    (tmp_path / "meningioma").mkdir()
    (tmp_path / "pituitary" / "nothing").mkdir(parents=True)
    (tmp_path / ".DS_Store").write_text("x")
    (tmp_path / "glioma" / "Thumbs.db").write_text("x")
    plans, rejected = listed(tmp_path)
    assert list(plans) == ["glioma/a.jpg", "train/glioma/b.jpg"]
    assert {one.name: one.what for one in rejected} == {
        "meningioma": "folder", "pituitary": "folder", "stray.png": "file", "train/lost.png": "file",
    }  # fmt: skip


def test_a_file_that_is_not_an_image_is_reported_when_it_is_read(tmp_path):
    picture(tmp_path / "glioma" / "a.jpg")
    (tmp_path / "glioma" / "b.jpg").write_text("not a picture")
    (tmp_path / "glioma" / "c.jpg").write_bytes((tmp_path / "glioma" / "a.jpg").read_bytes()[:200])
    source = FolderPerClass(tmp_path, modality="MRI")
    results = list(source.read(source.listing().plans))
    assert [len(one.case.scans) for one in results] == [1, 0, 0]
    assert [one.unread for one in results] == [0, 1, 1]
    assert [[name for name, _ in one.case.skipped] for one in results] == [[], ["glioma/b.jpg"], ["glioma/c.jpg"]]
    assert results[0].case.scans[0].modality == "MRI"
    assert results[0].origins[0].modality_from == "source"


def test_a_header_and_its_pixels_are_one_case(tmp_path):
    (tmp_path / "nodule").mkdir()
    header = "ObjectType = Image\nNDims = 3\nDimSize = 24 24 2\nElementType = MET_SHORT\nElementDataFile = a.raw\n"
    (tmp_path / "nodule" / "a.mhd").write_text(header)
    (tmp_path / "nodule" / "a.raw").write_bytes(np.arange(24 * 24 * 2, dtype=np.int16).tobytes())
    source = FolderPerClass(tmp_path)
    plans = source.listing().plans
    assert [plan.case_id for plan in plans] == ["nodule/a.mhd"]
    result = next(iter(source.read(plans)))
    assert (len(result.case.scans), result.files, result.unread, result.case.skipped) == (1, 2, 0, [])


def test_patients_come_from_names_where_a_pattern_is_given(tmp_path):
    for file in ("mass/00000013_005.png", "normal/00000013_001.png", "mass/other.png"):
        picture(tmp_path / file)
    plans, _ = listed(tmp_path, patient=r"(\d{8})_\d{3}")
    patients = {case: plan.patient_id for case, plan in plans.items()}
    assert patients["mass/00000013_005.png"] == patients["normal/00000013_001.png"] == "00000013"
    assert patients["mass/other.png"] == "case mass/other.png"
    with pytest.raises(ValueError, match="has no group"):
        FolderPerClass(tmp_path, patient=r"\d+")
    with pytest.raises(ValueError, match="not a regular expression"):
        FolderPerClass(tmp_path, patient="(")


def test_with_a_key_no_name_is_left(tmp_path):
    picture(tmp_path / "mass" / "Erika_Mustermann.png")
    picture(tmp_path / "Max_Mustermann.png")
    source = FolderPerClass(tmp_path, pseudonyms=Pseudonyms(b"0123456789abcdef"), patient="mass/(.*)[.]png")
    listing = source.listing()
    records = [plan.to_json().replace(str(tmp_path / "mass" / "Erika_Mustermann.png"), "") for plan in listing.plans]
    assert "Mustermann" not in f"{records} {listing.rejected}"
    assert listing.plans[0].disorders == ["Mass"]


def test_a_missing_folder_and_an_unknown_modality_are_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        FolderPerClass(tmp_path / "nowhere").listing()
    with pytest.raises(ValueError, match="unknown modality"):
        FolderPerClass(tmp_path, modality="smell")
    assert FolderPerClass(tmp_path).listing().plans == []
