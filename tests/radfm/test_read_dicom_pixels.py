"""DICOM: from stored values to a scan's pixels, in every way of storing them."""

import hashlib
import hmac
import logging
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import RawDataElement
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)
from test_read_dicom import dicom, item, ramp, series

from radfm import read_case

PYDICOM = Path(pydicom.__file__).parent / "data"
FILES = PYDICOM / "test_files"


def only(path, **options):
    case = read_case(path, **options)
    assert case.skipped == []
    (scan,) = case.scans
    return scan


def test_a_slope_that_is_not_an_integer_gives_float32(tmp_path):
    scan = only(dicom(tmp_path / "f", ramp()[0], Modality="PT", RescaleSlope=0.5, RescaleIntercept=1))
    assert scan.pixels.dtype == np.float32
    assert np.array_equal(scan.pixels[0], ramp()[0] * 0.5 + 1)
    assert scan.modality == "nuclear medicine"


def test_each_slice_of_a_pet_has_its_own_slope(tmp_path):
    for i in range(3):
        place = {"ImagePositionPatient": [0, 0, i], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        dicom(tmp_path / f"{i}", ramp()[0], Modality="PT", SeriesInstanceUID="1.2", RescaleSlope=i + 0.5, **place)
    scan = only(tmp_path)
    assert np.array_equal(scan.pixels, [ramp()[0] * (i + 0.5) for i in range(3)])


def test_values_that_do_not_fit_16_bits_are_kept_in_float32(tmp_path):
    series(tmp_path, ramp(dtype=np.uint16) + np.uint16(40000), RescaleSlope=2, RescaleIntercept=0)
    scan = only(tmp_path)
    assert scan.pixels.dtype == np.float32
    assert np.array_equal(scan.pixels, (ramp().astype(int) + 40000) * 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_stored_types_are_kept(tmp_path, dtype):
    scan = only(dicom(tmp_path / "f", ramp(4, dtype=dtype), Modality="US"))
    assert scan.pixels.dtype == dtype
    assert np.array_equal(scan.pixels, ramp(4, dtype=dtype))


def test_monochrome1_is_inverted_for_radiographs_but_not_for_quantities(tmp_path):
    stored = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    picture = ramp(dtype=np.uint16)[0]
    assert np.array_equal(only(dicom(tmp_path / "x", picture, Modality="DX", **stored)).pixels[0], 4095 - picture)
    assert np.array_equal(only(dicom(tmp_path / "c", picture, Modality="CT", **stored)).pixels[0], picture)
    assert np.array_equal(only(dicom(tmp_path / "p", picture, Modality="PT", **stored)).pixels[0], picture)


def test_the_window_is_applied_to_radiographs_and_never_to_ct(tmp_path):
    picture = np.linspace(0, 4095, 48).astype(np.uint16).reshape(8, 6)
    window = {"WindowCenter": 2048, "WindowWidth": 1000, "BitsStored": 12, "HighBit": 11}
    seen = only(dicom(tmp_path / "x", picture, Modality="CR", **window)).pixels[0]
    assert (seen[picture < 1540] == 0).all()
    assert (seen[picture > 2560] == 4095).all()
    assert np.array_equal(only(dicom(tmp_path / "c", picture, **window)).pixels[0], picture)
    useless = dict(window, WindowCenter=60000)
    assert np.array_equal(only(dicom(tmp_path / "u", picture, Modality="CR", **useless)).pixels[0], picture)


def test_a_modality_lut_is_applied(tmp_path):
    table = item(
        LUTDescriptor=[48, 0, 16], LUTData=np.arange(1000, 1480, 10, dtype=np.uint16).tobytes(), ModalityLUTType="US"
    )
    scan = only(dicom(tmp_path / "f", ramp(dtype=np.uint16)[0], Modality="OT", ModalityLUTSequence=table))
    assert np.array_equal(scan.pixels.ravel(), range(1000, 1480, 10))


def test_colour_stays_and_grey_in_three_channels_becomes_grey(tmp_path):
    grey = np.repeat(ramp(2, dtype=np.uint8)[..., None], 3, axis=-1)
    colour = grey.copy()
    colour[..., 0] += 1
    kind = {"Modality": "US", "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
    assert np.array_equal(only(dicom(tmp_path / "c", colour, **kind)).pixels, colour)
    assert np.array_equal(only(dicom(tmp_path / "g", grey, **kind)).pixels, grey[..., 0])


def test_ybr_becomes_rgb(tmp_path):
    red = np.full((1, 4, 4, 3), (76, 85, 255), np.uint8)  # Y, Cb, Cr of pure red
    kind = {"Modality": "US", "SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL"}
    assert np.abs(only(dicom(tmp_path / "f", red, **kind)).pixels.astype(int) - (255, 0, 0)).max() <= 2


def test_a_palette_is_applied():
    scan = only(FILES / "examples_palette.dcm")
    assert scan.pixels.shape == (1, 350, 800, 3)
    assert scan.pixels.dtype == np.uint8
    assert scan.pixels.max() > 200


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless]
)
def test_lossless_transfer_syntaxes_give_the_same_pixels(tmp_path, syntax):
    path = dicom(tmp_path / "f", ramp(3, 64, 48, dtype=np.uint16) * 7, Modality="MR")
    dataset = pydicom.dcmread(path)
    if syntax.is_encapsulated:
        dataset.compress(syntax)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path)
    assert np.array_equal(only(path).pixels, ramp(3, 64, 48, dtype=np.uint16) * 7)


def test_compressed_examples_equal_their_uncompressed_originals():
    original = only(FILES / "MR_small.dcm").pixels
    for name in ("RLE", "jpeg_ls_lossless", "jp2klossless", "bigendian", "implicit", "expb", "padded"):
        assert np.array_equal(only(FILES / f"MR_small_{name}.dcm").pixels, original), name


def test_variants_of_lossy_jpeg_give_nearly_the_same_pixels():
    original = only(FILES / "SC_rgb_rle.dcm").pixels.astype(int)
    for name in ("dcmtk_+eb+cr", "dcmtk_+eb+cy+n1", "dcmtk_+eb+cy+np", "dcmtk_+eb+cy+s4", "jpeg_dcmtk", "jpeg_gdcm"):
        shown = only(FILES / f"SC_rgb_{name}.dcm").pixels
        assert np.abs(shown - original).mean() < 5, name


def test_the_modality_of_the_caller_is_used_only_where_the_header_has_none(tmp_path):
    for code in ("OT", "SC", "", "PETER"):
        assert only(dicom(tmp_path / "f", ramp()[0], Modality=code), modality="MR").modality == "MRI"
        assert only(tmp_path / "f").modality is None
    assert only(dicom(tmp_path / "f", ramp()[0], Modality="US"), modality="MR").modality == "ultrasound"


def test_a_patient_has_a_pseudonym_only_with_a_key(tmp_path):
    dicom(tmp_path / "f", ramp()[0], PatientID=" 4711 ")
    expected = hmac.new(b"secret", b"4711", hashlib.sha256).hexdigest()[:16]
    assert read_case(tmp_path, patient_key="secret").patient_id == expected
    assert read_case(tmp_path, patient_key=b"other").patient_id not in (None, expected)
    assert read_case(tmp_path).patient_id is None
    with pytest.raises(ValueError, match="patient_key is empty"):
        read_case(tmp_path, patient_key="")
    (tmp_path / "f").unlink()
    dicom(tmp_path / "f", ramp()[0])
    assert read_case(tmp_path, patient_key="secret").patient_id is None


TEXT_VRS = ["AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"]
MARK = "ZQXMARKER1"


@pytest.mark.parametrize("kind", ["image", "report", "cut short", "two patients"])
def test_no_text_of_a_header_reaches_the_case_a_log_a_warning_or_the_screen(tmp_path, kind, capfd, caplog):
    path = dicom(tmp_path / "f", ramp()[0])
    dataset = pydicom.dcmread(path)
    for number, (vr, _, _, _, keyword) in DicomDictionary.items():
        if vr in TEXT_VRS and number >> 16 > 4 and keyword not in ("SOPClassUID", "PhotometricInterpretation"):
            tag = pydicom.tag.Tag(number)
            dataset[tag] = RawDataElement(tag, vr, len(MARK), MARK.encode(), 0, False, True)
    if kind == "report":
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    dataset.save_as(path)
    assert path.read_bytes().count(MARK.encode()) > 1000
    if kind == "cut short":
        path.write_bytes(path.read_bytes()[:-40])
    if kind == "two patients":
        series(tmp_path / "others", ramp(), PatientID="1")
    capfd.readouterr()
    caplog.clear()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        case = read_case(tmp_path, patient_key="k")
    printed = "".join(capfd.readouterr())
    everything = repr(case) + repr(case.skipped) + caplog.text + printed + repr([str(w.message) for w in warned])
    assert MARK.lower() not in everything.lower()
    assert case.scans or case.skipped


SHIPPED = sorted(path for path in PYDICOM.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))


def test_every_file_that_pydicom_ships_is_read_or_skipped_with_a_reason():
    read = 0
    for path in SHIPPED:
        if "TINY_ALPHA" in path.parts:
            continue
        case = read_case(path)
        assert case.scans or case.skipped, path
        read += bool(case.scans)
        for scan in case.scans:
            assert scan.pixels.ndim == 3 or scan.pixels.shape[-1] == 3
            assert scan.pixels.dtype in (np.uint8, np.uint16, np.int16, np.float32)
            assert np.isfinite(scan.pixels).all()
        for _, reason in case.skipped:
            assert "\n" not in reason
            assert len(reason) < 200
    assert read >= 90


def test_a_disc_with_two_patients_is_read_as_the_one_with_more_images():
    case = read_case(FILES / "dicomdirtests" / "DICOMDIR")
    assert {scan.modality for scan in case.scans} == {"CT", "MRI"}
    assert {scan.source.split("/")[0] for scan in case.scans} <= {"98892001", "98892003"}


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_unused_bits_are_ignored(tmp_path, dtype, syntax):
    picture = ramp(dtype=dtype)[0] * dtype(40) - dtype(0 if dtype == np.uint16 else 1000)
    stored = (picture & dtype(0x0FFF)) | (np.arange(48).reshape(8, 6).astype(dtype) << dtype(12))
    file = dicom(tmp_path / "f", stored, syntax, BitsStored=12, HighBit=11)
    pixels = only(file).pixels[0]
    assert np.array_equal(pixels, picture)
    assert np.array_equal(pixels, pydicom.dcmread(file).pixel_array)
