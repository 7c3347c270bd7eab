"""DICOM series that hold several volumes, or lie oddly: what becomes one scan, and where its slices are.

The first pixel of a slice is 100 * volume + place, so that it says where the slice belongs.
"""

import numpy as np
import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian, NuclearMedicineImageStorage
from pydicom.uid import generate_uid as uid
from test_read_dicom import AXIAL, dicom, enhanced, item, ramp, series

from radfm import read_case


def mr(folder, slices, **same):
    """One file for each (volume, place, elements); the position is 5 mm * place unless the elements say otherwise."""
    for n, (volume, i, elements) in enumerate(slices):
        position = {"ImagePositionPatient": [0, 0, 5.0 * i], "ImageOrientationPatient": AXIAL}
        kind = {"Modality": "MR", "SeriesInstanceUID": "1.2", "PixelSpacing": [1, 1], "SliceThickness": 5}
        pixels = np.full((8, 8), 100 * volume + i, np.int16)
        dicom(folder / f"{n}.dcm", pixels, **{**kind, **position, "InstanceNumber": n + 1, **same, **elements})
    return folder


def first_pixels(case):
    return sorted(scan.pixels[:, 0, 0].tolist() for scan in case.scans)


def volumes(n, places):
    return [[100 * volume + i for i in range(places)] for volume in range(1, n + 1)]


def positions(scan):
    return np.array([(scan.affine @ [i, 0, 0, 1])[:3] for i in range(len(scan.pixels))])


TOLD_BY = {
    "temporal position": lambda volume, i: {"TemporalPositionIdentifier": volume, "InstanceNumber": 1},
    "acquisition": lambda volume, i: {"AcquisitionNumber": volume, "InstanceNumber": 1},
    "a time for each volume": lambda volume, i: {"AcquisitionTime": f"10000{volume}", "InstanceNumber": 1},
    "a time for each slice": lambda volume, i: {"AcquisitionTime": f"10000{volume}.{2 * i}", "InstanceNumber": 1},
    "trigger times that jitter": lambda volume, i: {"TriggerTime": 50 * volume + i % 3, "InstanceNumber": 1},
    "echo": lambda volume, i: {"EchoTime": 2.3 * volume, "InstanceNumber": 1},
    "frame reference time": lambda volume, i: {"FrameReferenceTime": 1000 * volume, "InstanceNumber": 1},
    "number, volume by volume": lambda volume, i: {"InstanceNumber": 5 * (volume - 1) + i + 1},
    "number, place by place": lambda volume, i: {"InstanceNumber": 3 * i + volume},
    "clock that ticks within a volume": lambda volume, i: {
        "AcquisitionTime": f"10000{i // 3}", "InstanceNumber": 5 * (volume - 1) + i + 1
    },
    "rhythm": lambda volume, i: {"AcquisitionTime": f"1000{5 * volume + [0, 2, 4, 1, 3][i]:02}", "InstanceNumber": 1},
}  # fmt: skip


@pytest.mark.parametrize("trait", TOLD_BY)
@pytest.mark.parametrize("lost", [(), ((1, 2),), ((2, 0),), ((2, 4), (3, 1)), ((1, 1), (2, 2), (3, 3))], ids=str)
def test_no_volume_holds_slices_of_two_and_a_lost_slice_is_said(tmp_path, trait, lost):
    there = [(volume, i) for volume in (1, 2, 3) for i in range(5) if (volume, i) not in lost]
    case = read_case(mr(tmp_path, [(volume, i, TOLD_BY[trait](volume, i)) for volume, i in there]))
    assert first_pixels(case) == [[v for v in whole if (v // 100, v % 100) not in lost] for whole in volumes(3, 5)]
    assert case.skipped == []
    for scan in case.scans:
        missing = 5 - len(scan.pixels)
        assert sum(f"{missing} of 5 slice" in warning for warning in scan.warnings) == (missing > 0)


def test_where_nothing_tells_volumes_apart_it_is_said(tmp_path):
    same = {"InstanceNumber": 1}
    case = read_case(mr(tmp_path, [(volume, i, same) for volume in (1, 2) for i in range(4)]))
    assert all("nothing in the headers tells the 2 volumes" in scan.warnings[0] for scan in case.scans)


def test_a_slice_of_which_nothing_tells_the_volume_is_listed(tmp_path):
    same = {"InstanceNumber": 1}
    slices = [(volume, i, same) for volume in (1, 2) for i in range(4) if (volume, i) != (1, 2)]
    case = read_case(mr(tmp_path, slices))
    assert sum(len(scan.pixels) for scan in case.scans) == 6
    assert [name for name, _ in case.skipped] == ["5.dcm"]


def test_a_few_slices_at_the_place_of_others_are_listed(tmp_path):
    slices = [(1, i, {"InstanceNumber": 1}) for i in range(6)] + [(2, i, {"InstanceNumber": 2}) for i in range(2)]
    case = read_case(mr(tmp_path, slices))
    assert first_pixels(case) == volumes(1, 6)
    assert [name for name, _ in case.skipped] == ["6.dcm", "7.dcm"]
    assert "of which the first was taken" in case.scans[0].warnings[0]


def test_echoes_are_separate_even_where_their_positions_differ_by_a_hair(tmp_path):
    slices = [
        (echo, i, {"EchoTime": 2.3 * echo, "ImagePositionPatient": [0, 0, 5 * i + 0.02 * (echo - 1)]})
        for echo in (1, 2)
        for i in range(5)
    ]
    case = read_case(mr(tmp_path, slices))
    assert first_pixels(case) == volumes(2, 5)
    assert [scan.spacing_mm for scan in case.scans] == [(5.0, 1.0, 1.0)] * 2


@pytest.mark.parametrize(("shift_mm", "scans"), [(0.4, 2), (2.5, 2), (10, 2), (25, 1)])
def test_acquisitions_are_one_scan_only_if_one_begins_where_the_other_ends(tmp_path, shift_mm, scans):
    slices = [
        (v, i, {"AcquisitionNumber": v, "ImagePositionPatient": [0, 0, 5.0 * i + shift_mm * (v - 1)]})
        for v in (1, 2)
        for i in range(5)
    ]
    case = read_case(mr(tmp_path, slices, Modality="CT"))
    assert first_pixels(case) == (volumes(2, 5) if scans == 2 else [[*volumes(2, 5)[0], *volumes(2, 5)[1]]])
    assert all(scan.spacing_mm == (5.0, 1.0, 1.0) for scan in case.scans)


def test_a_volume_of_two_acquisitions_with_a_pause_between_says_so(tmp_path):
    for seconds, said in ((5, 0), (600, 1)):
        start = {1: "100000", 2: f"10{seconds // 60:02}{seconds % 60:02}"}
        slices = [
            (v, i + 3 * (v - 1), {"AcquisitionNumber": v, "AcquisitionTime": start[v]})
            for v in (1, 2)
            for i in range(3)
        ]
        (scan,) = read_case(mr(tmp_path / str(seconds), slices, Modality="CT")).scans
        assert len(scan.pixels) == 6
        assert sum("2 parts, up to 600 s apart" in warning for warning in scan.warnings) == said


def test_slices_acquired_in_two_passes_are_one_volume(tmp_path):
    case = read_case(mr(tmp_path, [(1, i, {"AcquisitionNumber": 1 + i % 2}) for i in range(6)]))
    assert first_pixels(case) == volumes(1, 6)


def test_a_counter_of_slices_splits_nothing(tmp_path):
    counted = [(1, i, {"TemporalPositionIdentifier": i + 1, "AcquisitionNumber": i + 1}) for i in range(6)]
    assert first_pixels(read_case(mr(tmp_path, counted))) == volumes(1, 6)


def test_series_of_one_slice_each_that_share_a_number_are_one_scan(tmp_path):
    slices = [(1, i, {"SeriesInstanceUID": f"1.2.{i}"}) for i in range(6)]
    assert first_pixels(read_case(mr(tmp_path, slices, SeriesNumber=7, FrameOfReferenceUID="1.9"))) == volumes(1, 6)


def test_stacks_side_by_side_are_separate_scans(tmp_path):
    slices = [
        (side, i, {"ImagePositionPatient": [100 * side, 0, 5.0 * i], "AcquisitionNumber": 1})
        for side in (1, 2)
        for i in range(5)
    ]
    case = read_case(mr(tmp_path, slices))
    assert first_pixels(case) == volumes(2, 5)
    assert sorted(scan.affine[0, 3] for scan in case.scans) == [100, 200]


def test_an_enhanced_file_is_split_by_its_dimensions(tmp_path):
    path = enhanced(tmp_path / "file", ramp(4))
    dataset = pydicom.dcmread(path)
    groups = [*dataset.PerFrameFunctionalGroupsSequence] * 2
    groups = [pydicom.Dataset(group) for group in groups]
    for n, group in enumerate(groups):
        group.FrameContentSequence = item(DimensionIndexValues=[1 + n // 4, 1 + n % 4])
    dataset.PerFrameFunctionalGroupsSequence = groups
    pointers = [0x00209164, 0x00209057]  # a dimension without a name for times, InStackPositionNumber
    dataset.DimensionIndexSequence = [item(DimensionIndexPointer=pointer)[0] for pointer in pointers]
    pixels = np.concatenate([dataset.pixel_array, dataset.pixel_array + 1000])
    dataset.PixelData, dataset.NumberOfFrames = pixels.astype(np.int16).tobytes(), 8
    dataset.save_as(path)
    first, second = read_case(path).scans
    assert len(first.pixels) == 4
    assert np.array_equal(first.pixels + 1000, second.pixels)


# Geometry


def test_slices_of_a_tilted_gantry_lie_where_the_headers_say(tmp_path):
    tilt = np.deg2rad(20)
    orientation = [1, 0, 0, 0, float(np.cos(tilt)), float(-np.sin(tilt))]
    series(tmp_path, ramp(8), orientation)
    (scan,) = read_case(tmp_path).scans
    assert positions(scan) == pytest.approx(np.array([[0, 0, 5 * i] for i in range(8)]), abs=1e-3)
    assert scan.warnings == []


def test_a_ct_whose_slices_are_all_at_one_position_says_so(tmp_path):
    place = {"ImagePositionPatient": [0, 0, 7]}
    (scan,) = read_case(mr(tmp_path, [(1, i, place) for i in range(4)], Modality="CT")).scans
    assert scan.pixels[:, 0, 0].tolist() == [100, 101, 102, 103]
    assert "all its 4 slices are at one position" in scan.warnings[0]


@pytest.mark.parametrize(
    ("heights", "warning"),
    [
        ([0, 5, 10, 15, 20, 40, 45], "varies, 5 to 20 mm"),
        ([0, 5, 10.2, 15, 20], "varies, 4.8 to 5.2 mm"),
        ([0, 5.01, 9.99, 15, 20.02], None),
    ],
)
def test_uneven_slices_have_no_affine_and_a_warning(tmp_path, heights, warning):
    place = [(1, i, {"ImagePositionPatient": [0, 0, z]}) for i, z in enumerate(heights)]
    (scan,) = read_case(mr(tmp_path, place)).scans
    if warning:
        assert scan.affine is None
        assert warning in scan.warnings[0]
    else:
        assert positions(scan)[:, 2] == pytest.approx(heights, abs=0.05)
        assert scan.warnings == []


def test_a_slice_that_cannot_be_decoded_leaves_a_gap_and_no_affine(tmp_path):
    series(tmp_path, ramp())
    whole = (tmp_path / "2.dcm").read_bytes()
    (tmp_path / "2.dcm").write_bytes(whole[:-20])
    (scan,) = read_case(tmp_path).scans
    assert scan.affine is None
    assert any("1 of its 5 slices could not be decoded" in warning for warning in scan.warnings)


@pytest.mark.parametrize("vector", [True, False])
@pytest.mark.parametrize("spacing_mm", [4.0, -4.0])
def test_the_sign_of_a_nuclear_tomograms_spacing_gives_its_direction(tmp_path, spacing_mm, vector):
    pixels = np.stack([np.full((8, 8), i, np.uint16) for i in range(5)])
    detector = item(ImagePositionPatient=[0, 0, 100], ImageOrientationPatient=AXIAL)
    kind = {"SOPClassUID": NuclearMedicineImageStorage, "Modality": "NM"}
    kind |= {"SliceVector": [1, 2, 3, 4, 5]} if vector else {"ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO"]}
    where = {"PixelSpacing": [4, 4], "SpacingBetweenSlices": spacing_mm, "DetectorInformationSequence": detector}
    dicom(tmp_path / "nm.dcm", pixels, **kind, **where)
    (scan,) = read_case(tmp_path).scans
    order = range(5) if spacing_mm > 0 else range(4, -1, -1)
    assert scan.pixels[:, 0, 0].tolist() == list(order)
    assert positions(scan)[:, 2] == pytest.approx([100 + spacing_mm * i for i in order])


def test_gates_of_a_nuclear_tomogram_are_scans_and_its_views_too(tmp_path):
    kind = {"SOPClassUID": NuclearMedicineImageStorage, "Modality": "NM", "PixelSpacing": [4, 4]}
    detector = item(ImagePositionPatient=[0, 0, 100], ImageOrientationPatient=AXIAL)
    vectors = {"TimeSlotVector": [1, 1, 1, 2, 2, 2], "SliceVector": [1, 2, 3] * 2}
    dicom(
        tmp_path / "gated",
        ramp(6, dtype=np.uint16),
        DetectorInformationSequence=detector,
        SliceThickness=4,
        **kind,
        **vectors,
    )
    dicom(tmp_path / "planar", ramp(2, dtype=np.uint16), DetectorVector=[1, 2], **kind)
    case = read_case(tmp_path)
    assert sorted((scan.source, len(scan.pixels)) for scan in case.scans) == [
        *[("gated", 3)] * 2,
        *[("planar", 1)] * 2,
    ]


def mosaic(path, n, **elements):
    """A sheet of 2 x 2 tiles of 16 x 16 pixels, of which three are slices."""
    tiles = [np.full((16, 16), value, np.uint16) for value in (n, 100 + n, 200 + n, 0)]
    kind = {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"], "Modality": "MR", "SeriesInstanceUID": "1.2"}
    place = {"ImagePositionPatient": [-48, -48, -30], "ImageOrientationPatient": AXIAL, "PixelSpacing": [3, 3]}
    numbers = {"InstanceNumber": n, "AcquisitionNumber": n, "SpacingBetweenSlices": 4}
    dicom(path, np.block([tiles[:2], tiles[2:]]), **kind, **place, **numbers, **elements)
    return path


def test_a_mosaic_is_its_slices_at_their_places(tmp_path):
    for n in (1, 2, 3):
        dataset = pydicom.dcmread(mosaic(tmp_path / f"{n}.dcm", n))
        dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 3)
        dataset.save_as(tmp_path / f"{n}.dcm")
    case = read_case(tmp_path)
    assert first_pixels(case) == [[n, 100 + n, 200 + n] for n in (1, 2, 3)]
    for scan in case.scans:
        assert scan.pixels.shape == (3, 16, 16)
        assert positions(scan) == pytest.approx(np.array([[-24, -24, -30 + 4 * i] for i in range(3)]))


def test_a_mosaic_whose_tiles_are_not_stated_is_listed_and_never_read_as_one_slice(tmp_path):
    case = read_case(mosaic(tmp_path / "a.dcm", 1))
    assert case.scans == []
    assert "is a MOSAIC, one sheet of many slices" in case.skipped[0][1]


def test_a_mosaic_that_does_not_fit_its_number_of_slices_is_listed(tmp_path):
    dataset = pydicom.dcmread(mosaic(tmp_path / "a.dcm", 1))
    dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 48)
    dataset.save_as(tmp_path / "a.dcm")
    assert "does not fit the 48 slices" in read_case(tmp_path).skipped[0][1]


def test_mosaics_without_a_place_stay_apart(tmp_path):
    for n in (1, 2):
        dataset = pydicom.dcmread(mosaic(tmp_path / f"{n}.dcm", n))
        dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 3)
        del dataset.ImagePositionPatient
        dataset.save_as(tmp_path / f"{n}.dcm")
    assert first_pixels(read_case(tmp_path)) == [[n, 100 + n, 200 + n] for n in (1, 2)]


@pytest.mark.parametrize(("aspect", "shape"), [([2, 1], (1, 16, 6)), ([1, 2], (1, 8, 12)), ([1, 1], (1, 8, 6))])
def test_pixels_that_are_not_square_are_made_square(tmp_path, aspect, shape):
    dicom(tmp_path / "us", ramp()[0], Modality="US", PixelAspectRatio=aspect)
    (scan,) = read_case(tmp_path).scans
    assert scan.pixels.shape == shape
    assert (scan.pixels.min(), scan.pixels.max()) == (ramp()[0].min(), ramp()[0].max())


def test_the_spacing_of_an_ultrasound_is_that_of_its_largest_region_of_tissue(tmp_path):
    regions = [
        item(PhysicalUnitsXDirection=3, PhysicalUnitsYDirection=3, RegionSpatialFormat=kind, PhysicalDeltaX=delta,
             PhysicalDeltaY=delta, RegionLocationMinX0=0, RegionLocationMinY0=0, RegionLocationMaxX1=width,
             RegionLocationMaxY1=4)[0]
        for kind, delta, width in [(1, 0.01, 2), (1, 0.02, 4), (3, 0.04, 6)]
    ]  # fmt: skip
    dicom(tmp_path / "us", ramp()[0], Modality="US", SequenceOfUltrasoundRegions=regions)
    assert read_case(tmp_path).scans[0].spacing_mm == pytest.approx((0.0, 0.2, 0.2))


def test_a_distance_at_the_detector_is_divided_by_the_magnification(tmp_path):
    magnified = {"ImagerPixelSpacing": [0.2, 0.2], "EstimatedRadiographicMagnificationFactor": 1.25}
    dicom(tmp_path / "dx", ramp()[0], Modality="DX", **magnified)
    assert read_case(tmp_path).scans[0].spacing_mm == pytest.approx((0.0, 0.16, 0.16))


# Identity by content


@pytest.mark.parametrize("number", [1, None])
def test_radiographs_that_share_an_identifier_are_all_read(tmp_path, number):
    for i in range(4):
        same = {"SOPInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2", "Modality": "DX"}
        dicom(tmp_path / f"{i}", ramp()[i], **same, **({} if number is None else {"InstanceNumber": number}))
    case = read_case(tmp_path)
    assert len(case.scans) == 4
    assert case.skipped == []


def test_pictures_that_were_sent_twice_are_read_once_whatever_their_identifiers(tmp_path):
    for sent, slices in enumerate((6, 3)):
        names = [f"{sent}-{i}" for i in range(slices)]
        series(tmp_path, ramp(6)[:slices], names=names, SeriesInstanceUID=uid(), StudyInstanceUID=uid())
    case = read_case(tmp_path)
    assert [len(scan.pixels) for scan in case.scans] == [6]
    assert case.skipped == [(f"1-{i}", f"is a copy of 0-{i}: read once") for i in range(3)]


def test_pictures_that_were_sent_again_in_another_encoding_are_read_once(tmp_path):
    series(tmp_path, ramp(), names=[f"a{i}" for i in range(5)])
    series(tmp_path, ramp(), names=[f"b{i}" for i in range(5)], syntax=ImplicitVRLittleEndian)
    case = read_case(tmp_path)
    assert [len(scan.pixels) for scan in case.scans] == [5]
    assert case.skipped == [(f"b{i}", f"is a copy of a{i}: read once") for i in range(5)]


@pytest.mark.parametrize(
    "change",
    [{"AcquisitionDate": "20200102"}, {"EchoTime": 9}, {"AcquisitionNumber": 2}, {"PixelSpacing": [1, 2]}],
    ids=lambda change: next(iter(change)),
)
def test_the_same_pixels_of_another_time_or_contrast_are_no_copy(tmp_path, change):
    series(tmp_path / "a", ramp())
    series(tmp_path / "b", ramp(), **change)
    case = read_case(tmp_path)
    assert [len(scan.pixels) for scan in case.scans] == [5, 5]
    assert case.skipped == []


def test_empty_slices_at_one_place_are_no_copies(tmp_path):
    series(tmp_path / "a", np.zeros((3, 8, 6), np.int16))
    series(tmp_path / "b", np.zeros((3, 8, 6), np.int16))
    case = read_case(tmp_path)
    assert [len(scan.pixels) for scan in case.scans] == [3, 3]
