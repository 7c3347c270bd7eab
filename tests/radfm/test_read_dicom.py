"""DICOM: which pictures become one scan, in which order and layout, and what they tell of themselves."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
)
from pydicom.uid import generate_uid as uid

from radfm import read_case

AXIAL, CORONAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]


def dicom(path, pixels, syntax=ExplicitVRLittleEndian, **elements):
    """Writes one file. pixels: (H, W), (frames, H, W) or, with SamplesPerPixel=3, colour last."""
    elements = {"SOPInstanceUID": uid(), "SOPClassUID": CTImageStorage, "Modality": "CT", **elements}
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = elements["SOPClassUID"]
    dataset.file_meta.MediaStorageSOPInstanceUID = elements["SOPInstanceUID"]
    if pixels is not None:
        pixels = np.asarray(pixels)
        bits = pixels.dtype.itemsize * 8
        colour = elements.get("SamplesPerPixel") == 3
        dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = bits
        dataset.HighBit, dataset.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
        dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        dataset["PixelData"].VR = "OW"
        if pixels.ndim == 3 + colour:
            dataset.NumberOfFrames = len(pixels)
        if colour:
            dataset.PlanarConfiguration = 0
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def series(folder, volume, orientation=AXIAL, step=(0, 0, 5.0), names=None, **elements):
    """Writes a volume (slices, H, W), one file for each slice."""
    elements = {"SeriesInstanceUID": uid(), "StudyInstanceUID": "1.2.3", "PixelSpacing": [0.5, 0.75], **elements}
    names = names or [f"{i}.dcm" for i in range(len(volume))]
    for i, (name, picture) in enumerate(zip(names, volume, strict=True)):
        place = {"ImagePositionPatient": list(np.multiply(step, i)), "ImageOrientationPatient": orientation}
        dicom(folder / name, picture, InstanceNumber=i + 1, **{**place, **elements})


def ramp(slices=5, rows=8, columns=6, dtype=np.int16):
    return np.arange(slices * rows * columns, dtype=dtype).reshape(slices, rows, columns)


def item(**elements):
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return Sequence([dataset])


def test_a_series_is_one_scan_in_hounsfield_units_in_order_of_position_independent_of_names(tmp_path):
    names = ["c", "a.dcm", "sub/e", "b.ima", "d"]
    numbers = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    series(tmp_path, ramp(), names=names, AcquisitionDate="20200131", BodyPartExamined="CHEST", **numbers)
    case = read_case(tmp_path)
    (scan,) = case.scans
    assert np.array_equal(scan.pixels, ramp() - 1024)
    assert scan.pixels.dtype == np.int16
    assert (scan.modality, scan.plane, scan.spacing_mm) == ("CT", "axial", (5.0, 0.5, 0.75))
    assert (scan.days, scan.body_part, scan.source, case.skipped) == (0.0, "chest", ".", [])


def test_slices_are_ordered_by_position_even_against_instance_numbers(tmp_path):
    for i, picture in enumerate(ramp()):
        place = {"ImagePositionPatient": [0, 0, 5.0 * i], "ImageOrientationPatient": AXIAL}
        dicom(tmp_path / f"{i}", picture, SeriesInstanceUID="1.2", InstanceNumber=9 - i, **place)
    assert np.array_equal(read_case(tmp_path).scans[0].pixels, ramp())


def test_slices_without_position_are_ordered_by_instance_number_then_name(tmp_path):
    for i, picture in enumerate(ramp(12)):
        dicom(tmp_path / "numbered" / f"{99 - i}", picture, SeriesInstanceUID="1.2", InstanceNumber=i)
        dicom(tmp_path / "named" / f"im{i}", picture, SeriesInstanceUID="1.3")
    for folder in ("numbered", "named"):
        (scan,) = read_case(tmp_path / folder).scans
        assert np.array_equal(scan.pixels, ramp(12))


@pytest.mark.parametrize(
    ("orientation", "step", "plane"),
    [
        (AXIAL, (0, 0, 3.0), "axial"),
        (CORONAL, (0, 3.0, 0), "coronal"),
        (SAGITTAL, (3.0, 0, 0), "sagittal"),
        ([0.7071, 0.7071, 0, 0, 0, -1], (2.1213, -2.1213, 0), "oblique"),
    ],
)
def test_the_plane_is_that_of_the_orientation(tmp_path, orientation, step, plane):
    series(tmp_path, ramp(), orientation, step)
    (scan,) = read_case(tmp_path).scans
    assert scan.plane == plane
    assert scan.spacing_mm == pytest.approx((3.0, 0.5, 0.75), abs=1e-3)


def test_slices_run_from_feet_to_head_front_to_back_right_to_left(tmp_path):
    for name, orientation, step in [
        ("a", AXIAL, (0, 0, -4.0)),
        ("c", CORONAL, (0, -4.0, 0)),
        ("s", SAGITTAL, (-4.0, 0, 0)),
    ]:
        series(tmp_path / name, ramp(), orientation, step)
        (scan,) = read_case(tmp_path / name).scans
        assert np.array_equal(scan.pixels, ramp()[::-1]), name


def test_a_prone_patient_is_shown_with_the_front_up(tmp_path):
    series(tmp_path, ramp(), orientation=[-1, 0, 0, 0, -1, 0])
    (scan,) = read_case(tmp_path).scans
    assert np.array_equal(scan.pixels, ramp()[:, ::-1, ::-1])


def test_gaps_are_read_with_the_median_spacing(tmp_path):
    for i, z in enumerate([0, 2, 4, 6, 30, 32]):
        place = {"ImagePositionPatient": [0, 0, z], "ImageOrientationPatient": AXIAL, "PixelSpacing": [1, 1]}
        dicom(tmp_path / f"{i}", ramp()[0] + i, SeriesInstanceUID="1.2", **place)
    (scan,) = read_case(tmp_path).scans
    assert len(scan.pixels) == 6
    assert scan.spacing_mm == (2.0, 1.0, 1.0)


def test_one_series_is_split_where_matrix_orientation_or_pixel_spacing_change(tmp_path):
    for name, change in {
        "a": {},
        "b": {"volume": ramp(5, 4, 4)},
        "c": {"orientation": CORONAL, "step": (0, 5.0, 0)},
        "d": {"PixelSpacing": [2, 2]},
    }.items():
        series(tmp_path / name, **{"volume": ramp(), **change}, SeriesInstanceUID="1.2")
    scans = read_case(tmp_path).scans
    assert [len(scan.pixels) for scan in scans] == [5, 5, 5, 5]
    assert [scan.source for scan in scans] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("EchoTime", (10, 80)),
        ("DiffusionBValue", (0.0, 50.0, 800.0)),
        ("TemporalPositionIdentifier", (1, 2, 3, 4)),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"])),
        ("InstanceNumber", tuple(range(0, 50, 10))),
    ],
)
def test_volumes_at_the_same_positions_are_separate_scans(tmp_path, keyword, values):
    for k, value in enumerate(values):
        for i, picture in enumerate(ramp()):
            place = {"ImagePositionPatient": [0, 0, 5.0 * i], "ImageOrientationPatient": AXIAL}
            numbers = {"InstanceNumber": i * 10 + k, keyword: value + i * 100 if keyword == "InstanceNumber" else value}
            dicom(tmp_path / f"{i}-{k}", picture + 1000 * k, Modality="MR", SeriesInstanceUID="1.2", **place, **numbers)
    scans = read_case(tmp_path).scans
    assert len(scans) == len(values)
    for scan in scans:
        assert np.array_equal(scan.pixels - scan.pixels.min(), ramp())


def test_of_a_long_series_of_volumes_sixteen_are_read_and_the_rest_listed(tmp_path):
    for k in range(20):
        series(tmp_path, ramp(2) + k, names=[f"{k}-0", f"{k}-1"], SeriesInstanceUID="1.2", TemporalPositionIdentifier=k)
    case = read_case(tmp_path)
    assert len(case.scans) == 16
    assert [int(scan.pixels.min()) for scan in case.scans][::15] == [0, 19]
    assert "4 of 20 volumes" in case.skipped[0][1]


def test_frames_of_one_position_over_time_are_one_clip(tmp_path):
    for i, picture in enumerate(ramp()):
        place = {"ImagePositionPatient": [0, 0, 7], "ImageOrientationPatient": AXIAL, "TriggerTime": i * 40}
        dicom(tmp_path / f"{9 - i}", picture, Modality="MR", SeriesInstanceUID="1.2", InstanceNumber=i, **place)
    (scan,) = read_case(tmp_path).scans
    assert np.array_equal(scan.pixels, ramp())


def test_each_radiograph_of_a_series_is_a_scan_with_its_view(tmp_path):
    for view in ("PA", "LL", "FANCY"):
        dicom(tmp_path / view, ramp()[0], Modality="DX", SeriesInstanceUID="1.2", ViewPosition=view)
    scans = {scan.source: scan for scan in read_case(tmp_path).scans}
    assert {name: scan.plane for name, scan in scans.items()} == {"PA": "PA", "LL": "lateral", "FANCY": None}
    assert {scan.pixels.shape for scan in scans.values()} == {(1, 8, 6)}


def test_an_ultrasound_clip_is_one_scan_and_its_frames_are_slices(tmp_path):
    dicom(tmp_path / "clip", ramp(9, dtype=np.uint16), Modality="US", SeriesInstanceUID="1.2")
    dicom(tmp_path / "still", ramp()[0], Modality="US", SeriesInstanceUID="1.2")
    clip, still = read_case(tmp_path).scans
    assert np.array_equal(clip.pixels, ramp(9))
    assert (clip.modality, clip.source, len(still.pixels)) == ("ultrasound", "clip", 1)


def enhanced(path, volume, echoes=1, **elements):
    """A multi-frame file, its frames in reverse order, slope and position given for each frame."""
    frames = [(echo, i) for echo in range(echoes) for i in reversed(range(len(volume)))]
    groups = []
    for echo, i in frames:
        group = Dataset()
        group.PlanePositionSequence = item(ImagePositionPatient=[0, 0, 3.0 * i])
        group.PixelValueTransformationSequence = item(RescaleSlope=1, RescaleIntercept=10 * i, RescaleType="US")
        group.MREchoSequence = item(EffectiveEchoTime=10.0 * (echo + 1))
        groups.append(group)
    shared = Dataset()
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=AXIAL)
    shared.PixelMeasuresSequence = item(PixelSpacing=[0.5, 0.75], SliceThickness=9)
    sequences = {
        "PerFrameFunctionalGroupsSequence": Sequence(groups),
        "SharedFunctionalGroupsSequence": Sequence([shared]),
    }
    pixels = np.stack([volume[i] + 1000 * echo for echo, i in frames])
    return dicom(path, pixels, SOPClassUID=EnhancedMRImageStorage, Modality="MR", **sequences, **elements)


def test_an_enhanced_file_is_read_by_the_position_and_slope_of_each_frame(tmp_path):
    (scan,) = read_case(enhanced(tmp_path / "file", ramp())).scans
    assert np.array_equal(scan.pixels, ramp() + 10 * np.arange(5)[:, None, None])
    assert (scan.plane, scan.spacing_mm, scan.source) == ("axial", (3.0, 0.5, 0.75), "file")


def test_an_enhanced_file_with_two_echoes_is_two_scans(tmp_path):
    first, second = read_case(enhanced(tmp_path / "file", ramp(), echoes=2)).scans
    assert np.array_equal(first.pixels + 1000, second.pixels)


def test_days_count_back_from_the_newest_scan(tmp_path):
    for name, date in {"new": "20210301", "old": "20210101", "none": "nonsense"}.items():
        series(tmp_path / name, ramp(), SeriesDate=date)
    assert {scan.source: scan.days for scan in read_case(tmp_path).scans} == {"new": 0.0, "old": 59.0, "none": None}


def test_a_key_object_names_the_key_slice(tmp_path):
    series(tmp_path, ramp(), step=(0, 0, -5.0))
    key = pydicom.dcmread(tmp_path / "1.dcm").SOPInstanceUID
    evidence = item(ReferencedSeriesSequence=item(ReferencedSOPSequence=item(ReferencedSOPInstanceUID=key)))
    kind = {"SOPClassUID": KeyObjectSelectionDocumentStorage, "Modality": "KO", "StudyInstanceUID": "1.2.3"}
    dicom(tmp_path / "key", None, CurrentRequestedProcedureEvidenceSequence=evidence, **kind)
    case = read_case(tmp_path)
    assert case.scans[0].key_slice == 3
    assert case.skipped == [("key", "is a list of key images, not an image of the patient: set aside")]


def test_a_copy_is_read_once_but_slices_with_one_identifier_are_all_read(tmp_path):
    series(tmp_path, ramp(), SOPInstanceUID="1.2.3.4")
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "2.dcm").read_bytes())
    case = read_case(tmp_path)
    assert len(case.scans[0].pixels) == 5
    assert case.skipped == [("copy.dcm", "is a copy of 2.dcm: read once")]


def test_slices_that_differ_in_damaged_numbers_only_are_not_copies(tmp_path):
    for i, name in enumerate((b"1a", b"2b")):
        file = dicom(tmp_path / f"{name.decode()}.dcm", ramp()[i], SOPInstanceUID="1.2.3", SeriesInstanceUID="1.2")
        dataset = pydicom.dcmread(file)
        tag = Tag("InstanceNumber")
        dataset[tag] = RawDataElement(tag, "IS", len(name), name, 0, False, True)
        dataset.save_as(file)
    case = read_case(tmp_path)
    assert sum(len(scan.pixels) for scan in case.scans) == 2
    assert not case.skipped


def test_of_two_patients_the_one_with_more_images_is_read_and_the_other_listed(tmp_path):
    series(tmp_path / "a", ramp(2), PatientID="Smith-1", StudyInstanceUID="1.1")
    series(tmp_path / "b", ramp(4), PatientID="Jones-2", StudyInstanceUID="1.2")
    series(tmp_path / "c", ramp(3) + 2, PatientID="Jones^2", StudyInstanceUID="1.2")  # the same study, another spelling
    series(tmp_path / "d", ramp(1) + 1, StudyInstanceUID="1.4")  # without a patient
    case = read_case(tmp_path)
    assert [len(scan.pixels) for scan in case.scans] == [4, 3, 1]
    reason = "belongs to another patient than the other 8 files: read it as a case of its own"
    assert case.skipped == [("a/0.dcm", reason), ("a/1.dcm", reason)]


def test_a_damaged_file_of_a_series_is_one_missing_slice(tmp_path):
    series(tmp_path, ramp())
    whole = (tmp_path / "2.dcm").read_bytes()
    (tmp_path / "2.dcm").write_bytes(whole[:-20])
    case = read_case(tmp_path)
    assert np.array_equal(case.scans[0].pixels, ramp()[[0, 1, 3, 4]])
    (skipped,) = case.skipped
    assert skipped[0] == "2.dcm"
    assert "copy it again" in skipped[1]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"0.25 \\ 5e-1", (0.25, 0.5)),
        (b"0.25\\0.5\0\0", (0.25, 0.5)),
        (b"0.25\\half", None),
        (b"0.25\\nan ", None),
        (b"0.25", None),
        (b"", None),
    ],
)
def test_valid_numbers_are_read_and_damaged_ones_are_none(tmp_path, syntax, written, read):
    dicom(tmp_path / "a.dcm", ramp()[0], syntax)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    explicit = syntax == ExplicitVRLittleEndian
    spacing = RawDataElement(
        Tag("PixelSpacing"), "DS" if explicit else None, len(written), written, 0, not explicit, True
    )
    dataset[spacing.tag] = spacing
    dataset.save_as(tmp_path / "a.dcm")
    (scan,) = read_case(tmp_path).scans
    assert (scan.spacing_mm and scan.spacing_mm[1:]) == read


@pytest.mark.parametrize(
    ("elements", "what"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localiser"),
        ({"ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"]}, "dose"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "SeriesDescription": "Dose Report"}, "dose"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1", "Modality": "PR"}, "presentation state"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "Modality": "SEG"}, "segmentation"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2", "Modality": "RTDOSE"}, "dose"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "Modality": "DOC"}, "document"),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.6", "Modality": "SM", "TotalPixelMatrixColumns": 5000},
            "whole-slide",
        ),
    ],
)
def test_objects_that_are_not_images_of_the_patient_are_skipped_with_a_reason(tmp_path, elements, what):
    dicom(tmp_path / "image", ramp()[0], SeriesInstanceUID="1.2")
    dicom(tmp_path / "other", ramp()[0], SeriesInstanceUID="1.2", **elements)
    case = read_case(tmp_path)
    assert len(case.scans) == 1
    (skipped,) = case.skipped
    assert skipped[0] == "other"
    assert what in skipped[1]
    assert "set aside" in skipped[1]


def test_files_without_preamble_or_meta_header_are_read(tmp_path):
    path = dicom(tmp_path / "whole", ramp()[0])
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "no_preamble").write_bytes(path.read_bytes()[132:])
    dataset = pydicom.dcmread(path)
    for name, implicit, little in [("implicit", True, True), ("explicit", False, True), ("big", False, False)]:
        buffer = io.BytesIO()
        dataset.SOPInstanceUID = uid()
        dataset.AcquisitionNumber = 1 + len(name)  # else they are copies
        pydicom.dcmwrite(buffer, _without_meta(dataset, little), implicit_vr=implicit, little_endian=little)
        (tmp_path / "bare" / name).write_bytes(buffer.getvalue())
    case = read_case(tmp_path / "bare")
    assert case.skipped == []
    pictures = np.concatenate([scan.pixels for scan in case.scans])
    assert len(pictures) == 4
    assert all(np.array_equal(picture, ramp()[0]) for picture in pictures)


def _without_meta(dataset, little):
    bare = Dataset()
    bare.update(dataset)
    if not little:
        bare.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
    return bare
