"""Names of files that are no UTF-8, or hold control characters, HTML or marks of direction: no run ends on them."""

import json
import os

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from test_read_dicom import dicom, ramp
from untrained import build

from radfm import read_case
from radfm.presentation import shown

NAMES = [
    b"R\xf6ntgen",
    b"\xff\xfe",
    b"two\nlines",
    b"tab\tand\x1b[31mred",
    b"<script>alert(1)",
    b"x [/bold]",
    "\u202egnp.exe".encode(),
    "Größe 日本".encode(),
]
LISTED = ["R�ntgen", "��", "two�lines", "tab�and�[31mred", "<script>alert(1)", "x [/bold]", "�gnp.exe", "Größe 日本"]


def at(folder, name: bytes, suffix: str):
    return os.fsdecode(os.path.join(os.fsencode(folder), name + suffix.encode()))


@pytest.fixture
def named(tmp_path):
    """A folder with a picture and a text under each name, and a DICOM series in a folder with such a name."""
    folder = tmp_path / "case"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        try:
            os.makedirs(os.path.dirname(at(folder, name, "")), exist_ok=True)
            with open(at(folder, name, ".png"), "wb") as file:
                Image.fromarray(np.random.default_rng(i).integers(0, 255, (48, 48), dtype=np.uint8)).save(file, "PNG")
        except OSError:
            pytest.skip("the file system takes UTF-8 only")
        with open(at(folder, name, ".txt"), "wb") as file:
            file.write(b"text")
    dicom(folder / "0.dcm", np.random.default_rng(9).integers(0, 2000, (64, 64)).astype(np.int16))
    os.rename(folder / "0.dcm", at(folder, NAMES[0], ".dcm"))
    return folder


def is_shown(text: str) -> bool:
    return text.encode() and shown(text) == text


def test_all_files_are_read_or_listed_under_names_that_can_be_written(named):
    case = read_case(named)
    assert sorted(scan.source for scan in case.scans) == sorted([f"{name}.png" for name in LISTED] + ["R�ntgen.dcm"])
    assert sorted(name for name, _ in case.skipped) == sorted(f"{name}.txt" for name in LISTED)
    assert all(is_shown(name) for name, _ in case.skipped)


def test_a_folder_with_such_a_name_is_read_and_one_that_is_not_there_is_named(tmp_path):
    folder = at(tmp_path, NAMES[0], "")
    os.mkdir(folder)
    Image.fromarray(ramp(dtype=np.uint8)[0]).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.path.join(folder, "a.png"))
    assert [scan.source for scan in read_case(tmp_path).scans] == ["R�ntgen/a.png"]
    assert [scan.source for scan in read_case(folder).scans] == ["a.png"]
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*R�ntgen"):
        read_case(at(tmp_path, NAMES[0], "-gone"))


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd", ".nii.gz"])
def test_volumes_with_such_names_are_read(tmp_path, suffix):
    sitk.WriteImage(sitk.GetImageFromArray(ramp()), tmp_path / f"v{suffix}", useCompression=False)
    folder = at(tmp_path, b"\xe4", "")
    os.mkdir(folder)
    for file in [file for file in os.listdir(tmp_path) if file.startswith("v")]:
        os.rename(tmp_path / file, at(folder, b"\xe4", suffix) if file.endswith(suffix) else f"{folder}/{file}")
    case = read_case(folder)
    assert case.skipped == []
    assert [scan.source for scan in case.scans] == [f"�{suffix}"]
    np.testing.assert_array_equal(np.sort(case.scans[0].pixels, axis=None), ramp().reshape(-1))


def test_a_diagnosis_is_printed_and_written_with_report_and_maps(radfm, named, tmp_path):
    build(tmp_path / "model")
    arguments = ("--model", tmp_path / "model", "--labels", "Pneumothorax; [/red] ∅ pneumonia", "--top", "2")
    outputs = ("--report", tmp_path / "report.html", "--maps", tmp_path / "maps")
    status, out, err = radfm("diagnose", named, *arguments, *outputs)
    assert status == 0, err
    assert "x [/bold].png" in out
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in report
    assert "R�ntgen.png" in report
    status, out, _ = radfm("diagnose", named, *arguments, "--json")
    assert status == 0
    answer = json.loads(out)
    assert all(is_shown(one["file"]) for one in answer["skipped"])
    assert {one["file"] for one in answer["skipped"]} == {f"{name}.txt" for name in LISTED}
    status, out, err = radfm("diagnose", at(named, NAMES[0], ".png"), *arguments)
    assert status == 0, err
