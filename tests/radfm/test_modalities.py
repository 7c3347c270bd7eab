"""The table of modalities, and the names under which images come."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_read_dicom import dicom, ramp

from radfm import read_case
from radfm.data_prep.guess import guess_modality, guess_plane
from radfm.modalities import DEFAULT_MODALITIES, MODALITIES, dicom_modality, modality_name

ROOT = Path(__file__).parents[2]


def test_modalities_are_recognised_by_their_usual_names():
    names = {"MR": "MRI", "pet": "nuclear medicine", "x ray": "X-ray", "XR": "X-ray", "dsa": "angiography"}
    names |= {"Mammo": "mammography", "US": "ultrasound", "X_RAY": "X-ray", "fluoro": "fluoroscopy", " ct ": "CT"}
    names |= {"Fundus": "fundus photography", "WSI": "microscopy", "orthopantomogram": "dental radiography"}
    assert {name: modality_name(name) for name in names} == names
    assert [modality_name(name) for name in MODALITIES] == list(MODALITIES)
    with pytest.raises(ValueError, match=r"unknown modality 'sonar': use one of other, CT, MRI"):
        modality_name("sonar")
    with pytest.raises(ValueError, match="unknown modality"):
        read_case(".", modality="sonar")


def test_the_default_modalities_of_a_model_keep_their_order():
    """A checkpoint's `modality_ids` are positions in this list."""
    names = "other,CT,MRI,X-ray,ultrasound,fluoroscopy,mammography,angiography,nuclear medicine,barium study"
    assert ",".join(DEFAULT_MODALITIES) == names


def test_no_two_modalities_share_a_name_a_code_or_a_word():
    for column in ("dicom_codes", "synonyms", "file_name_words"):
        values = [value for modality in MODALITIES.values() for value in getattr(modality, column)]
        assert len(values) == len(set(values)), column
    assert {modality.broader for modality in MODALITIES.values()} - {None} <= set(MODALITIES)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("OP", "fundus photography"),
        ("OPT", "OCT"),
        ("DMS", "dermoscopy"),
        ("SM", "microscopy"),
        ("ES", "endoscopy"),
        ("PX", "dental radiography"),
        ("PT", "nuclear medicine"),
        ("XC", "other"),
        ("OT", None),
        ("SC", None),
    ],
)
def test_a_dicom_file_has_the_modality_of_its_code(tmp_path, code, name):
    assert getattr(dicom_modality(code), "name", None) == name
    dicom(tmp_path / "f", ramp()[0], Modality=code)
    (scan,) = read_case(tmp_path).scans
    assert scan.modality == name


@pytest.mark.parametrize(
    ("file", "modality", "plane"),
    [
        ("p1/chest_CT_12_axial.png", "CT", "axial"),
        ("chest_X-Ray/IM-0012 lateral.png", "X-ray", "lateral"),
        ("dental_xray_lat.png", "dental radiography", "lateral"),
        ("ct_and_mr.png", None, None),
        ("fundus/left.png", "fundus photography", None),
        ("2019_oct_12.png", None, None),
        ("direct.png", None, None),
    ],
)
def test_modality_and_plane_are_guessed_from_whole_words_of_a_file_name(file, modality, plane):
    guessed = guess_modality(file)
    assert (guessed, guess_plane(file, guessed)) == (modality, plane)


def test_a_new_modality_is_one_row_of_the_table(tmp_path):
    """In a copy of the package, so that the row is there before anything is imported."""
    package = shutil.copytree(ROOT / "radfm", tmp_path / "radfm", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(ROOT / "data_prep", package / "data_prep")
    with open(package / "modalities.csv", "a", encoding="utf-8") as table:
        table.write("thermography,TG2 TGX,thermogram,thermogram,,,temperature,yes,,yes\n")
    dicom(tmp_path / "thermogram.dcm", ramp()[0], Modality="TGX")
    np.save(tmp_path / "a.npy", ramp())
    script = """
import sys
import radfm
from radfm.data_prep.guess import guess_modality
assert radfm.__file__.startswith(sys.argv[1]), radfm.__file__
(scan,) = radfm.read_case(sys.argv[1] + "/thermogram.dcm").scans
print(scan.modality)
print(radfm.read_case(sys.argv[1] + "/a.npy", modality="Thermogram").scans[0].modality)
print(guess_modality("thermogram_3.png"))
print(radfm.RadFMConfig().modalities[-1])
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == ["thermography"] * 4, run.stderr
