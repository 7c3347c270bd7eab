"""Damaged files of every format: read or listed, without the end of a process, a pause or a large allocation."""

import subprocess

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import JPEGExtended12Bit

from benchmarks.fuzz import fuzz
from benchmarks.fuzz_seeds import by_gdcm, dicom, seed_files, smooth
from radfm import read_case
from tests.waiting import TIMEOUT

READ = "import sys; from radfm import read_case; print(read_case(sys.argv[1]).skipped)"


def test_the_good_files_are_read(tmp_path):
    """Else their damaged versions would show nothing. SimpleITK has no bzip2."""
    for number, (format, files) in enumerate(seed_files().items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, contents in files.items():
            (folder / name).write_bytes(contents)
        case = read_case(folder)
        assert len(case.skipped) == (format == "volume NRRD bzipped"), format
        assert case.scans or case.skipped, format


def test_damaged_files_of_every_format_are_read_or_listed():
    results = fuzz(range(6 * len(seed_files())), seed=1)
    assert [result for result in results if result.fault] == []
    assert {result.format for result in results} == set(seed_files())


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (b"Adobe\0\x64\0\0\0\0", b"\x10"),  # a transform of colours that does not exist
        (b"\xff\xd8\xff", b"\0"),  # no marker, but a 0
        (b"\xff\xd8\xff", b"\xd4"),  # a marker that has no place before the scan
        (b"\x28\0\x01\x01US\x02\0", b"\x07"),  # BitsStored
    ],
)
def test_lossless_jpeg_that_would_end_the_process_in_gdcm_does_not(tmp_path, python, where, value):
    contents = seed_files()["DICOM JPEG lossless colour"]["a.dcm"]
    at = contents.index(where) + len(where)
    (tmp_path / "a.dcm").write_bytes(contents[:at] + value + contents[at + 1 :])
    command = [python, "-c", READ, str(tmp_path / "a.dcm")]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert answer.returncode == 0
    assert answer.stdout.startswith("[")


def test_an_empty_element_of_an_unknown_type_counts_as_absent(tmp_path):
    contents = seed_files()["DICOM explicit"]["a.dcm"]
    at = contents.index(b"\x20\0\x13\0IS\x02\0")
    (tmp_path / "a.dcm").write_bytes(contents[: at + 4] + b"IR\0\0" + contents[at + 10 :])
    case = read_case(tmp_path)
    assert len(case.scans) == 1
    assert case.skipped == []


def test_a_jpeg_of_12_bits_is_read(tmp_path):
    pixels = smooth(32, 32, dtype=np.uint16) + np.uint16(100)
    (tmp_path / "a.dcm").write_bytes(by_gdcm(pixels, JPEGExtended12Bit, BitsStored=12, HighBit=11))
    (scan,) = read_case(tmp_path).scans
    assert np.abs(scan.pixels[0].astype(int) - pixels).max() <= 5  # of 2,000: the compression is lossy


def test_a_picture_of_two_long_rows_is_read(tmp_path):
    Image.fromarray(smooth(2, 5000, dtype=np.uint16)).save(tmp_path / "a.png")
    (scan,) = read_case(tmp_path).scans
    assert scan.pixels.shape == (1, 2, 5000)


def test_a_modality_of_an_unknown_type_counts_as_absent(tmp_path):
    for i in range(3):
        elements = {"ImagePositionPatient": [0, 0, 5 * i], "SOPInstanceUID": f"1.2.3.{i}"}
        contents = dicom(smooth(8, 8, dtype=np.uint16) + np.uint16(i), **elements)
        (tmp_path / f"{i}.dcm").write_bytes(contents.replace(b"\x08\0\x60\0CS", b"\x08\0\x60\0CQ"))
    (scan,) = read_case(tmp_path).scans
    assert scan.modality is None
    assert len(scan.pixels) == 3
