"""read_case: what it takes, refuses and passes over, and real cases where they lie beside the repository."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_read_dicom import dicom, ramp, series

import radfm
from radfm import read_case

SHARED = Path(__file__).parents[2].parent / "shared"
CASES, DEMO = SHARED / "cases", SHARED / "rp3d_demo"
with_shared_cases = pytest.mark.skipif(not CASES.is_dir(), reason="no real cases beside the repository")


def study(folder):
    series(folder / "ct", ramp(), AcquisitionDate="20200101")
    Image.fromarray(ramp(dtype=np.uint8)[0]).save(folder / "photo.png")
    np.save(folder / "array.npy", ramp())
    return folder


def test_a_folder_a_file_and_a_list_are_read(tmp_path):
    study(tmp_path)
    sources = ["ct", "array.npy", "photo.png"]
    assert [scan.source for scan in read_case(tmp_path).scans] == sources
    assert [scan.source for scan in read_case(str(tmp_path)).scans] == sources
    assert [scan.source for scan in read_case(tmp_path / "photo.png").scans] == ["photo.png"]
    both = read_case([str(tmp_path / "ct"), tmp_path / "photo.png"])
    assert [scan.source for scan in both.scans] == ["ct", "photo.png"]
    same_names = read_case([tmp_path / "ct" / "0.dcm", study(tmp_path / "other") / "ct" / "1.dcm"], modality="CT")
    assert [scan.source for scan in same_names.scans] == ["ct/0.dcm", "other/ct/1.dcm"]
    files = read_case(sorted((tmp_path / "ct").iterdir()))
    assert [len(scan.pixels) for scan in files.scans] == [5]


def test_the_arguments_of_the_caller_are_stored_in_the_case(tmp_path):
    options = {"history": "cough", "disorders": ("Pneumonia",), "case_id": "7"}
    case = read_case(study(tmp_path), modality="MR", **options)
    assert (case.history, case.disorders, case.case_id, case.patient_id) == ("cough", ["Pneumonia"], "7", None)
    assert [scan.modality for scan in case.scans] == ["CT", "MRI", "MRI"]
    assert radfm.Case is type(case)


def test_progress_counts_every_file_once(tmp_path):
    seen = []
    read_case(study(tmp_path), progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (7, 7)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_error_for_a_missing_path_names_it(tmp_path):
    for path in (tmp_path / "nowhere", [tmp_path, tmp_path / "nowhere"]):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            read_case(path)


@pytest.mark.parametrize("files", [[], [".DS_Store", "Thumbs.db", "sub/._scan.dcm", "desktop.ini"]])
def test_a_folder_without_files_is_an_error_with_a_remedy(tmp_path, files):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no files: give the folder"):
        read_case(tmp_path)


def test_an_empty_list_is_an_error_with_a_remedy():
    with pytest.raises(ValueError, match="empty list of paths: give at least one"):
        read_case([])


@pytest.mark.parametrize("path", [None, 7, b"bytes", [None], {"a": 1}])
def test_a_path_of_another_type_is_a_type_error(path):
    with pytest.raises(TypeError):
        read_case(path)


@pytest.mark.parametrize("options", [{"disorders": "Pneumonia"}, {"history": 7}, {"patient_key": 7}, {"modality": 7}])
def test_arguments_of_another_type_are_type_errors(tmp_path, options):
    with pytest.raises(TypeError):
        read_case(study(tmp_path), **options)


def test_nothing_readable_is_a_case_without_scans(tmp_path):
    (tmp_path / "notes.txt").write_text("seen by Dr. X")
    (tmp_path / "bad.dcm").write_bytes(b"\0" * 128 + b"DICM")
    case = read_case(tmp_path)
    assert case.scans == []
    assert [name for name, _ in case.skipped] == ["notes.txt", "bad.dcm"]
    assert case.skipped[0][1].startswith("is not an image format radfm reads")


def test_a_damaged_file_is_listed_and_the_others_are_read(tmp_path):
    study(tmp_path)
    (tmp_path / "ct" / "broken.dcm").write_bytes((tmp_path / "ct" / "0.dcm").read_bytes()[:300])
    (tmp_path / "zero.png").write_bytes(b"")
    case = read_case(tmp_path)
    assert [len(scan.pixels) for scan in case.scans] == [5, 5, 1]
    assert dict(case.skipped).keys() == {"ct/broken.dcm", "zero.png"}
    assert dict(case.skipped)["zero.png"] == "is empty, zero bytes: copy it again from where it came from"


def test_a_dicom_file_is_recognised_by_its_bytes_and_not_its_name(tmp_path):
    dicom(tmp_path / "scan.png", ramp()[0])
    Image.fromarray(ramp(dtype=np.uint8)[0]).save(tmp_path / "photo.dcm", format="png")
    case = read_case(tmp_path)
    assert [scan.modality for scan in case.scans] == ["CT", None]
    assert case.skipped == []


def test_reading_imports_no_torch_and_only_the_library_it_needs(tmp_path):
    script = "import sys; from radfm import read_case; read_case(sys.argv[1]); print(*sys.modules)"
    heavy = {"torch", "transformers", "pydicom", "nibabel", "SimpleITK", "PIL"}
    np.save(tmp_path / "a.npy", ramp())
    dicom(tmp_path / "f", ramp()[0])
    for name, needed in {"a.npy": set(), "f": {"pydicom", "PIL"}}.items():
        command = [sys.executable, "-c", script, str(tmp_path / name)]
        loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        assert heavy & loaded == needed


@with_shared_cases
def test_a_liver_ct_is_in_hounsfield_units():
    case = read_case(CASES / "dicom" / "CRLM-CT-1004")
    (scan,) = case.scans
    assert (scan.modality, scan.plane, scan.spacing_mm) == ("CT", "axial", (5.0, 0.7969, 0.7969))
    assert scan.pixels.dtype == np.int16
    inside = scan.pixels[:, 200:300, 200:300]
    assert -100 < np.median(inside) < 150
    assert scan.pixels[:, :60, 200:300].max() < -900  # air above the patient
    lungs = ((scan.pixels > -950) & (scan.pixels < -700)).mean(axis=(1, 2))
    assert lungs[-1] > 2 * lungs[0]  # feet first, head last
    assert case.skipped == []


@with_shared_cases
def test_scans_of_two_dates_and_three_modalities_are_separated():
    case = read_case(CASES / "dicom" / "CMB-CRC-MSB-06489")
    assert [scan.modality for scan in case.scans] == ["MRI"] * 4
    assert sorted(scan.days for scan in case.scans) == [0.0, 0.0, 126.0, 126.0]
    case = read_case(CASES / "dicom" / "STS_002")
    assert {scan.modality: len(scan.pixels) for scan in case.scans} == {"MRI": 35, "CT": 48, "nuclear medicine": 48}
    ct = next(scan for scan in case.scans if scan.modality == "CT")
    assert ct.pixels.min() == -1000


@with_shared_cases
def test_volumes_clips_and_mammograms_are_read():
    for folder in sorted((CASES / "glioma").iterdir()):
        for scan in read_case(folder, modality="MR").scans:
            assert (scan.pixels.shape, scan.plane, scan.modality) == ((155, 240, 240), "axial", "MRI")
    case = read_case(CASES / "multiple_sclerosis", modality="MR")
    assert [scan.plane for scan in case.scans] == ["axial"] * 6
    assert [round(scan.spacing_mm[0], 1) for scan in case.scans] == [4.0, 3.0, 4.0, 3.0, 3.0, 3.3]
    films = read_case(sorted((CASES / "mammography").iterdir())[:20], modality="MG")
    assert {scan.modality for scan in films.scans} == {"mammography"}


@pytest.mark.skipif(not DEMO.is_dir(), reason="no RP3D-DiagDS demo beside the repository")
def test_the_arrays_of_rp3d_are_single_grey_slices():
    case = read_case(DEMO / "data")
    assert [scan.pixels.shape for scan in case.scans] == [(1, 256, 256)] * 4
    assert case.skipped == []
