"""DICOM: the display pipeline of PS3.3, from stored values to the values of a slice, worked out by hand."""

import io

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    EnhancedXAImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    XRayAngiographicImageStorage,
    XRayRadiofluoroscopicImageStorage,
)
from test_read_dicom import AXIAL, dicom, item, series

from radfm import read_case

LITTLE_AND_BIG = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


def only(path):
    case = read_case(path)
    assert case.skipped == []
    (scan,) = case.scans
    return scan


def row(path) -> list[float]:
    """The first row of the only scan, whose slices are all the same."""
    pixels = only(path).pixels
    assert (pixels == pixels[0]).all()
    return pixels[0, 0].tolist()


def picture(values, dtype=np.uint16) -> np.ndarray:
    """Two equal rows."""
    return np.array([values] * 2, dtype)


def radiograph(path, values, dtype=np.uint16, syntax=ExplicitVRLittleEndian, **elements):
    """A DX of 12 bits, if nothing else is stated."""
    stored = picture(values, dtype)
    if syntax == ExplicitVRBigEndian:
        stored = stored.astype(stored.dtype.newbyteorder(">"))
    bits = {"BitsStored": min(12, 8 * stored.dtype.itemsize)}
    elements = {"Modality": "DX", **bits, **elements}
    return dicom(path, stored, syntax, **{"HighBit": elements["BitsStored"] - 1, **elements})


def table(entries, first=0, bits=16, *, packed=False) -> Dataset:
    """An item with a lookup table, one entry a word, or two if packed."""
    data = np.array(entries, np.uint8 if packed else "<u2").tobytes()
    (lut,) = item(LUTDescriptor=[len(entries), first, bits], LUTData=data + bytes(len(data) % 2), ModalityLUTType="US")
    lut["LUTData"].VR = "OW"
    return lut


# Modality transformation


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 1725, "WindowWidth": 2550}])
def test_a_negative_slope_makes_large_stored_values_dark(tmp_path, window, dtype):
    path = radiograph(tmp_path / "f", range(0, 250, 5), dtype, RescaleSlope=-10, RescaleIntercept=3000, **window)
    values = row(path)
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 50
    if not window:
        assert values[:3] == [3000, 2950, 2900]


def test_a_negative_slope_and_monochrome1_cancel_each_other(tmp_path):
    values = row(
        radiograph(
            tmp_path / "f", range(50), RescaleSlope=-1, RescaleIntercept=4095, PhotometricInterpretation="MONOCHROME1"
        )
    )
    assert values == sorted(values)
    assert len(set(values)) == 50


def test_a_slope_that_is_a_fraction_and_a_missing_slope_or_intercept(tmp_path):
    ct = {"Modality": "CT", "BitsStored": 12}
    assert row(radiograph(tmp_path / "a", [0, 1, 3], RescaleSlope="-0.5", RescaleIntercept=10, **ct)) == [10, 9.5, 8.5]
    assert row(radiograph(tmp_path / "b", [0, 1, 3], RescaleIntercept=-1024, **ct)) == [-1024, -1023, -1021]
    assert row(radiograph(tmp_path / "c", [0, 1, 3], RescaleSlope=2, **ct)) == [0, 2, 6]


def test_a_slope_of_0_is_ignored_and_said(tmp_path):
    scan = only(radiograph(tmp_path / "f", [0, 1, 3], Modality="CT", RescaleSlope=0, RescaleIntercept=-1024))
    assert scan.pixels[0, 0].tolist() == [0, 1, 3]
    assert scan.warnings == ["its rescale slope is 0, and was not applied"]


def test_each_frame_has_its_own_slope_and_intercept(tmp_path):
    def transform(slope, intercept):
        return item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")

    def frame(z, **groups):
        return item(PlanePositionSequence=item(ImagePositionPatient=[0, 0, z]), **groups)[0]

    frames = [frame(0), frame(5, PixelValueTransformationSequence=transform(-2, 100))]
    shared = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=AXIAL),
        PixelMeasuresSequence=item(PixelSpacing=[1, 1], SliceThickness=5),
        PixelValueTransformationSequence=transform(3, 1),
    )
    groups = {"SharedFunctionalGroupsSequence": shared, "PerFrameFunctionalGroupsSequence": frames}
    dicom(tmp_path / "f", np.stack([picture([10, 20])] * 2), Modality="MR", **groups)
    assert only(tmp_path).pixels[:, 0].tolist() == [[31, 61], [80, 60]]


@pytest.mark.parametrize("relationship", ["LOG", "DISP"])
@pytest.mark.parametrize(
    ("modality", "sop_class"), [("XA", XRayAngiographicImageStorage), ("RF", XRayRadiofluoroscopicImageStorage)]
)
def test_the_way_back_to_the_intensity_of_x_rays_is_not_for_display(tmp_path, modality, sop_class, relationship):
    kind = {"Modality": modality, "SOPClassUID": sop_class, "PixelIntensityRelationship": relationship}
    intensity = table(np.linspace(65535, 0, 256).astype(int))  # so that a wrong order shows
    window = {"WindowCenter": 128, "WindowWidth": 256}
    values = [0, 64, 128, 192, 255]
    shown = radiograph(tmp_path / "a", values, np.uint8, ModalityLUTSequence=[intensity], **window, **kind)
    assert row(shown) == values
    assert row(radiograph(tmp_path / "b", values, np.uint8, ModalityLUTSequence=[intensity], **kind)) == values
    rescaled = {"RescaleSlope": -1, "RescaleIntercept": 255}
    assert row(radiograph(tmp_path / "c", values, np.uint8, **rescaled, **kind)) == values


def test_the_table_of_an_enhanced_angiogram_is_not_for_display(tmp_path):
    back = Dataset()
    back.LUTFunction, back.LUTDescriptor, back.LUTData = "TO_LINEAR", [4, 0, 16], bytes([9, 0, 7, 0, 5, 0, 3, 0])
    shared = item(
        PixelIntensityRelationshipLUTSequence=[back],
        FrameVOILUTSequence=item(WindowCenter=2, WindowWidth=4),
    )
    kind = {"Modality": "XA", "SOPClassUID": EnhancedXAImageStorage, "PixelIntensityRelationship": "LOG"}
    groups = {"SharedFunctionalGroupsSequence": shared, "PerFrameFunctionalGroupsSequence": [Dataset(), Dataset()]}
    pixels = np.stack([picture([0, 1, 2, 3], np.uint8)] * 2)
    dicom(tmp_path / "f", pixels, BitsStored=2, HighBit=1, **kind, **groups)
    assert only(tmp_path).pixels[:, 0].tolist() == [[0, 1, 2, 3]] * 2


def test_a_modality_table_counts_for_other_modalities(tmp_path):
    log = {"ModalityLUTSequence": [table([30, 20, 10])], "PixelIntensityRelationship": "LOG"}
    assert row(radiograph(tmp_path / "f", [0, 1, 2, 3], **log)) == [30, 20, 10, 10]


@pytest.mark.parametrize("syntax", LITTLE_AND_BIG)
@pytest.mark.parametrize("packed", [False, True])
def test_entries_of_8_bits_fill_a_word_or_half_of_it(tmp_path, packed, syntax):
    lut = table([50, 40, 30, 20, 10], bits=8, packed=packed)
    if syntax == ExplicitVRBigEndian:
        lut.LUTData = np.frombuffer(lut.LUTData, "<u2").astype(">u2").tobytes()
    path = radiograph(tmp_path / "f", [0, 1, 2, 3, 4, 9], syntax=syntax, ModalityLUTSequence=[lut])
    assert row(path) == [50, 40, 30, 20, 10, 10]


@pytest.mark.parametrize("syntax", LITTLE_AND_BIG)
def test_the_first_mapped_value_is_signed_where_the_stored_values_are(tmp_path, syntax):
    lut = table([5, 6, 7], first=65536 - 10)
    lut["LUTDescriptor"].VR = "US"
    if syntax == ExplicitVRBigEndian:
        lut.LUTData = np.frombuffer(lut.LUTData, "<u2").astype(">u2").tobytes()
    values = [-100, -10, -9, -8, 0]
    path = radiograph(tmp_path / "f", values, np.int16, syntax, ModalityLUTSequence=[lut])
    assert row(path) == [5, 5, 6, 7, 7]


def test_a_damaged_modality_table_is_not_applied_and_said(tmp_path):
    scan = only(radiograph(tmp_path / "f", [1, 2], ModalityLUTSequence=item(LUTExplanation="none")))
    assert scan.pixels[0, 0].tolist() == [1, 2]
    assert scan.warnings == ["its modality lookup table is damaged, and was not applied"]


# Windows and VOI LUTs


def test_the_functions_of_a_window(tmp_path):
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, for an output from 0 to 4095."""

    def window(function, values):
        elements = {"WindowCenter": 100, "WindowWidth": 11, "VOILUTFunction": function}
        return row(radiograph(tmp_path / "f", values, **elements))

    values = [0, 94, 95, 97, 99, 101, 105, 106, 4000]
    ends = [94.5, 104.5]
    linear = [round(4095 * min(max((v - ends[0]) / (ends[1] - ends[0]), 0), 1)) for v in values]
    assert window("LINEAR", values) == window(None, values) == linear
    assert window("LINEAR_EXACT", values) == [round(4095 * min(max((v - 94.5) / 11, 0), 1)) for v in values]
    assert window("SIGMOID", values) == [round(4095 / (1 + np.exp(-4 * (v - 100) / 11))) for v in values]


def test_narrow_and_impossible_windows(tmp_path):
    def window(width, center=2):
        return row(radiograph(tmp_path / "f", [0, 1, 2, 3], WindowCenter=center, WindowWidth=width))

    assert window(1) == [0, 0, 4095, 4095]  # a step at 1.5
    assert window(0.5) == [0, 0, 2048, 4095]  # only LINEAR_EXACT is defined below 1
    assert window(0) == window(-3) == [0, 1, 2, 3]
    assert window(2, center=4000) == [0, 1, 2, 3]  # no contrast is left


def test_the_first_of_several_windows_counts_and_a_table_before_it(tmp_path):
    windows = {"WindowCenter": [2, 2000], "WindowWidth": [3, 9]}
    assert row(radiograph(tmp_path / "a", [0, 1, 2, 3], **windows)) == [0, 1024, 3071, 4095]
    tables = [table([9, 8, 7]), table([1, 2, 3])]
    assert row(radiograph(tmp_path / "b", [0, 1, 2, 3], VOILUTSequence=tables, **windows)) == [9, 8, 7, 7]


def test_a_voi_table_follows_the_modality_transformation(tmp_path):
    rescale = {"RescaleSlope": 2, "RescaleIntercept": -10}
    lut = table([1, 2, 3, 4], first=65536 - 8, bits=8, packed=True)
    assert row(radiograph(tmp_path / "a", [0, 1, 2, 3], VOILUTSequence=[lut], **rescale)) == [1, 1, 3, 4]
    fraction = {"RescaleSlope": 0.5, "RescaleIntercept": 0}
    lut = table([10, 20, 30])
    assert row(radiograph(tmp_path / "b", [0, 2, 4], VOILUTSequence=[lut], **fraction)) == [10, 20, 30]


def test_a_voi_table_of_monochrome1_is_inverted_in_its_own_range(tmp_path):
    inverted = {"PhotometricInterpretation": "MONOCHROME1", "VOILUTSequence": [table([0, 100, 255], bits=8)]}
    assert row(radiograph(tmp_path / "f", [0, 1, 2], **inverted)) == [255, 155, 0]


@pytest.mark.parametrize("where", ["shared", "per frame", "header"])
def test_a_window_counts_wherever_it_stands(tmp_path, where):
    window = {"WindowCenter": 3432, "WindowWidth": 656, "VOILUTFunction": "LINEAR"}
    group = {"FrameVOILUTSequence": item(**window)}
    shared = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=AXIAL),
        PixelMeasuresSequence=item(PixelSpacing=[0.1, 0.1], SliceThickness=1),
        **(group if where == "shared" else {}),
    )
    frames = [
        item(
            PlanePositionSequence=item(ImagePositionPatient=[0, 0, z]),
            **({"FrameVOILUTSequence": item(**window)} if where == "per frame" else {}),
        )[0]
        for z in range(3)
    ]
    groups = {"SharedFunctionalGroupsSequence": shared, "PerFrameFunctionalGroupsSequence": frames}
    elements = {"Modality": "MG", "BitsStored": 12, "HighBit": 11, **(window if where == "header" else {})}
    stored = [0, 3104, 3105, 3400, 3759, 4095]
    dicom(tmp_path / "f", np.stack([picture(stored)] * 3), **groups, **elements)
    low, high = 3432 - 0.5 - 655 / 2, 3432 - 0.5 + 655 / 2
    assert row(tmp_path) == [round(4095 * min(max((v - low) / (high - low), 0), 1)) for v in stored]


def test_each_frame_has_its_own_window(tmp_path):
    frames = [item(FrameVOILUTSequence=item(WindowCenter=center, WindowWidth=1))[0] for center in (1, 3)]
    groups = {"SharedFunctionalGroupsSequence": [Dataset()], "PerFrameFunctionalGroupsSequence": frames}
    elements = {"Modality": "XA", "BitsStored": 2, "HighBit": 1}
    dicom(tmp_path / "f", np.stack([picture([0, 1, 2, 3], np.uint8)] * 2), **elements, **groups)
    assert only(tmp_path).pixels[:, 0].tolist() == [[0, 3, 3, 3], [0, 0, 0, 3]]


# Padding


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2048, "WindowWidth": 4096}])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("padding", [0, 4095, 2500])
def test_padding_is_darkest_and_does_not_widen_the_range(tmp_path, padding, photometric, window):
    elements = {"PhotometricInterpretation": photometric, "PixelPaddingValue": padding, **window}
    shown = row(radiograph(tmp_path / "f", [padding, 2000, 3000, padding, 2400], **elements))
    others = [2000, 3000, 2400] if photometric == "MONOCHROME2" else [2095, 1095, 1695]
    assert shown == [min(others), *others[:2], min(others), others[2]]


def test_a_range_of_padding(tmp_path):
    for limits in ((4000, 4095), (4095, 4000)):
        padding = {"PixelPaddingValue": limits[0], "PixelPaddingRangeLimit": limits[1]}
        inverted = {"PhotometricInterpretation": "MONOCHROME1", **padding}
        shown = row(radiograph(tmp_path / "f", [4095, 4050, 4000, 3999, 1000], **inverted))
        assert shown == [96, 96, 96, 96, 3095]
    unbounded = {"PixelPaddingRangeLimit": 3, "PhotometricInterpretation": "MONOCHROME1"}
    assert row(radiograph(tmp_path / "f", [0, 1000], **unbounded)) == [4095, 3095]


@pytest.mark.parametrize("syntax", LITTLE_AND_BIG)
@pytest.mark.parametrize(("vr", "written"), [("SS", -2000), ("US", 65536 - 2000)])
def test_padding_of_ct_is_air_whichever_sign_it_was_written_with(tmp_path, vr, written, syntax):
    stored = np.array([[-2000, 24, 1064], [-2000, 30, 2000]], np.int16)
    if syntax == ExplicitVRBigEndian:
        stored = stored.astype(">i2")
    path = dicom(tmp_path / "f", stored, syntax, RescaleSlope=1, RescaleIntercept=-1024)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", vr, written)
    dataset.save_as(path)
    assert only(path).pixels[0].tolist() == [[-1000, -1000, 40], [-1000, -994, 976]]


def test_padding_of_ct_is_the_darkest_value_of_its_scan_but_not_brighter_than_air(tmp_path):
    def scan(folder, values):
        volume = np.stack([picture(v, np.int16) for v in values])
        series(folder, volume, PixelPaddingValue=-32768, RescaleSlope=1, RescaleIntercept=-24)
        return only(folder).pixels

    pixels = scan(tmp_path / "a", [[-32768, 0, 50], [-32768, -1050, 50], [-32768, -32768, -32768]])
    assert pixels.dtype == np.int16
    assert pixels[:, 0].tolist() == [[-1074, -24, 26], [-1074, -1074, 26], [-1074] * 3]
    assert scan(tmp_path / "b", [[-32768, -26, 50]])[0, 0].tolist() == [-1000, -50, 26]


def test_a_picture_of_nothing_but_padding_has_no_contrast(tmp_path):
    assert row(radiograph(tmp_path / "f", [7, 7], PixelPaddingValue=7)) == [0, 0]


def test_padding_of_float_pixels(tmp_path):
    path = dicom(tmp_path / "f", None, Modality="MR")
    dataset = pydicom.dcmread(path)
    dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.SamplesPerPixel = 1, 3, 32, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.FloatPixelData = np.array([-1e30, 0.5, 2.5], np.float32).tobytes()
    dataset.FloatPixelPaddingValue = np.float32(-1e30)
    dataset.save_as(path)
    assert only(path).pixels[0, 0].tolist() == [0.5, 0.5, 2.5]


# Colours


def palette(entries, bits, *, packed=False, first=0, segmented=False, count=None):
    elements = {}
    for channel, values in zip(("Red", "Green", "Blue"), entries, strict=True):
        data = np.array(values, np.uint8 if packed else "<u2").tobytes()
        name = f"{channel}PaletteColorLookupTable"
        elements[f"{name}Descriptor"] = [count or len(values), first, bits]
        elements[f"{'Segmented' if segmented else ''}{name}Data"] = data + bytes(len(data) % 2)
    return {"Modality": "US", "PhotometricInterpretation": "PALETTE COLOR", **elements}


COLOURS = [[1, 0, 200], [2, 100, 0], [3, 250, 0]]


@pytest.mark.parametrize(
    ("factor", "bits", "packed"),
    [(1, 8, True), (1, 8, False), (1, 16, False), (256, 16, False), (257, 16, False), (256, 8, False)],
    ids=["8 in bytes", "8 in words", "16 with 8 in use", "16", "16 repeated", "8 in the high byte"],
)
def test_palettes_of_8_and_16_bits(tmp_path, factor, bits, packed):
    entries = [[value * factor for value in channel] for channel in COLOURS]
    path = dicom(tmp_path / "f", picture([0, 1, 2, 9], np.uint8), **palette(entries, bits, packed=packed))
    assert only(path).pixels[0, 0].tolist() == [[1, 2, 3], [0, 100, 250], [200, 0, 0], [200, 0, 0]]


def test_a_palette_of_8_bits_with_more_than_256_entries_and_a_first_value(tmp_path):
    entries = np.zeros((3, 1000), int)
    entries[:, 500] = 10, 20, 30
    path = dicom(tmp_path / "f", picture([0, 599, 600, 601]), **palette(entries, 8, packed=True, first=100))
    assert only(path).pixels[0, 0].tolist() == [[0] * 3, [0] * 3, [10, 20, 30], [0] * 3]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_segmented_palette(tmp_path, bits):
    offset = [0, 0] if bits == 16 else [0, 0, 0, 0]
    # two entries; four on a line to 50; the first segment again
    segments = [[0, 2, 7, start, 1, 4, 50, 2, 1, *offset] for start in (10, 30, 50)]
    entries = palette(segments, bits, packed=bits == 8, segmented=True, count=8)
    path = dicom(tmp_path / "f", picture(range(8), np.uint8), **entries)
    pixels = only(path).pixels[0, 0]
    assert pixels[:, 0].tolist() == [7, 10, 20, 30, 40, 50, 7, 10]
    assert pixels[:, 1].tolist() == [7, 30, 35, 40, 45, 50, 7, 30]
    assert pixels[:, 2].tolist() == [7, 50, 50, 50, 50, 50, 7, 50]


def test_a_supplemental_palette_leaves_a_grey_image_grey(tmp_path):
    elements = {**palette(COLOURS, 8), "PhotometricInterpretation": "MONOCHROME2", "PixelPresentation": "COLOR"}
    assert row(dicom(tmp_path / "f", picture([0, 1, 2]), **elements)) == [0, 1, 2]


def test_a_palette_that_is_missing_is_the_reason(tmp_path):
    dicom(tmp_path / "f", picture([0, 1]), Modality="US", PhotometricInterpretation="PALETTE COLOR")
    case = read_case(tmp_path)
    assert case.skipped == [("f", "has a palette that is damaged or missing: export it again in colour or grey")]


RED, BLUE = (200, 30, 30), (20, 40, 180)


def halves(size=64) -> np.ndarray:
    """(size, size, 3): red on the left, blue on the right."""
    pixels = np.empty((size, size, 3), np.uint8)
    pixels[:, : size // 2], pixels[:, size // 2 :] = RED, BLUE
    return pixels


def jpeg_of(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def jpeg(pixels, *, rgb=False, subsampled=False, markers=True) -> bytes:
    encoded = jpeg_of(Image.fromarray(pixels), keep_rgb=rgb, subsampling=2 if subsampled else 0)
    if markers:
        return encoded
    bare, at = b"\xff\xd8", 2
    while encoded[at + 1] != 0xDA:
        length = 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        bare += b"" if 0xE0 <= encoded[at + 1] <= 0xEF else encoded[at : at + length]
        at += length
    return bare + encoded[at:]


def renamed(stream: bytes, names: bytes) -> bytes:
    """The same JPEG with other names of its components."""
    frame, scan = stream.index(b"\xff\xc0"), stream.index(b"\xff\xda")
    changed = bytearray(stream)
    changed[frame + 10 : frame + 19 : 3] = names
    changed[scan + 5 : scan + 11 : 2] = names
    return bytes(changed)


def adobe(stream: bytes, transform: int) -> bytes:
    return stream[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform]) + stream[2:]


def coloured(path, pixels, photometric, streams=None, syntax=JPEGBaseline8Bit, **elements):
    """A file with a picture in colour, or with these compressed ones."""
    kind = {"Modality": "US", "SamplesPerPixel": 3, "PhotometricInterpretation": photometric, **elements}
    dicom(path, pixels, **kind)
    if streams is not None:
        dataset = pydicom.dcmread(path)
        dataset.PixelData = encapsulate([stream + bytes(len(stream) % 2) for stream in streams])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.NumberOfFrames = len(streams)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)
    return path


def is_right(pixels, size=64) -> bool:
    left, right = pixels[0, 5, 5].astype(int), pixels[0, size - 5, size - 5].astype(int)
    return max(np.abs(left - RED).max(), np.abs(right - BLUE).max()) <= 5


_YCBCR, _RGB = {"rgb": False, "markers": False}, {"rgb": True, "markers": False}
JPEGS = {
    "JFIF": jpeg(halves()),
    "YCbCr, subsampled, no marker": jpeg(halves(), subsampled=True, **_YCBCR),
    "YCbCr, Adobe 1": adobe(jpeg(halves(), **_YCBCR), 1),
    "YCbCr, Adobe 2": adobe(jpeg(halves(), **_YCBCR), 2),
    "YCbCr, Adobe 0, subsampled": adobe(jpeg(halves(), subsampled=True, **_YCBCR), 0),
    "RGB, Adobe 0 and names": jpeg(halves(), rgb=True),
    "RGB, names R, G, B": jpeg(halves(), **_RGB),
    "RGB, names r, g, b": renamed(jpeg(halves(), **_RGB), b"rgb"),
    "RGB, Adobe 0": adobe(renamed(jpeg(halves(), **_RGB), bytes([1, 2, 3])), 0),
}


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_states_its_colours_itself_and_a_contradiction_is_said(tmp_path, kind, photometric):
    scan = only(coloured(tmp_path / "f", halves(), photometric, [JPEGS[kind]] * 2))
    assert scan.pixels.shape == (2, 64, 64, 3)
    assert is_right(scan.pixels)
    contradicted = kind.startswith("RGB") != (photometric == "RGB")
    assert len(scan.warnings) == contradicted
    assert all("compressed pictures hold" in warning for warning in scan.warnings)


@pytest.mark.parametrize("names", [bytes([1, 2, 3]), bytes([0, 1, 2])])
def test_the_header_decides_about_a_jpeg_without_any_evidence(tmp_path, names):
    for photometric, options in (("RGB", _RGB), ("YBR_FULL", _YCBCR), ("YBR_FULL_422", _YCBCR)):
        stream = renamed(jpeg(halves(), **options), names)
        scan = only(coloured(tmp_path / "f", halves(), photometric, [stream]))
        assert is_right(scan.pixels), photometric
        assert scan.warnings == []


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_in_colour_is_read_where_the_header_says_grey_or_nothing(tmp_path, kind):
    path = coloured(tmp_path / "a", halves(), "RGB", [JPEGS[kind]])
    dataset = pydicom.dcmread(path)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.save_as(path)
    scan = only(path)
    assert is_right(scan.pixels)
    assert scan.warnings == ["its compressed pictures are in colour, but its header says grey: read as they are"]
    scan = only(coloured(tmp_path / "b", halves(), "", [JPEGS[kind]]))
    assert is_right(scan.pixels)
    assert scan.warnings == []


def test_a_grey_jpeg_is_read_where_the_header_says_colour(tmp_path):
    grey = halves()[..., 0]
    scan = only(coloured(tmp_path / "f", halves(), "RGB", [jpeg_of(Image.fromarray(grey))]))
    assert np.abs(scan.pixels[0].astype(int) - grey).max() <= 5
    assert scan.warnings == ["its compressed pictures are grey, but its header says colour: read as they are"]


def j2k(path, pixels, photometric, *, transform: bool):
    """A JPEG 2000 file, with or without a colour transform in its codestream, and then another header."""
    coloured(path, pixels, "RGB")
    dataset = pydicom.dcmread(path)
    dataset.PhotometricInterpretation = "YBR_RCT" if transform else "RGB"
    dataset.compress(JPEG2000Lossless)
    dataset.PhotometricInterpretation = photometric
    dataset.save_as(path)
    return path


def test_the_colour_transform_of_jpeg_2000_counts_not_the_header(tmp_path):
    said = {"YBR_RCT": (0, 1), "YBR_ICT": (0, 1), "RGB": (0, 0), "YBR_FULL": (1, None)}
    for photometric, warnings in said.items():
        for transform, expected in zip((True, False), warnings, strict=True):
            if expected is not None:
                scan = only(j2k(tmp_path / "f", halves(), photometric, transform=transform))
                assert is_right(scan.pixels), (photometric, transform)
                assert len(scan.warnings) == expected, (photometric, transform)


def ycbcr(colours) -> np.ndarray:
    """PS3.3 C.7.6.3.1.2, YBR_FULL."""
    matrix = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    return np.rint(colours @ np.array(matrix).T + [0, 128, 128]).astype(np.uint8)


def test_ybr_that_is_not_lossy(tmp_path):
    full = ycbcr(halves())
    assert is_right(only(coloured(tmp_path / "full", full, "YBR_FULL")).pixels)
    planar = np.ascontiguousarray(np.moveaxis(full, -1, 0))
    by_plane = {"PixelData": planar.tobytes(), "PlanarConfiguration": 1}
    assert is_right(only(coloured(tmp_path / "planes", full, "YBR_FULL", **by_plane)).pixels)
    halved = np.concatenate([full[:, ::2, :1], full[:, 1::2, :1], full[:, ::2, 1:]], axis=-1)  # Y Y Cb Cr
    assert is_right(only(coloured(tmp_path / "422", full, "YBR_FULL_422", PixelData=halved.tobytes())).pixels)
    assert is_right(only(coloured(tmp_path / "not 422", full, "YBR_FULL_422")).pixels)
    assert is_right(only(j2k(tmp_path / "j2k", full, "YBR_FULL", transform=False)).pixels)
    path = coloured(tmp_path / "rle", full, "YBR_FULL")
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    assert is_right(only(path).pixels)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("bits", [12, 16])
def test_colours_of_more_than_8_bits_are_reduced_to_8(tmp_path, bits, planar):
    stored = halves().astype(np.uint16) << bits - 8
    planes = np.moveaxis(stored, -1, 0) if planar else stored
    layout = {"BitsStored": bits, "HighBit": bits - 1, "PlanarConfiguration": planar}
    path = coloured(tmp_path / "f", stored, "RGB", PixelData=planes.tobytes(), **layout)
    assert np.array_equal(only(path).pixels[0], halves())


def test_an_icc_profile_is_ignored(tmp_path):
    path = coloured(tmp_path / "f", halves(), "RGB", ICCProfile=b"not a profile ", ColorSpace="ADOBERGB")
    assert np.array_equal(only(path).pixels[0], halves())


def test_four_values_for_a_pixel_are_the_reason(tmp_path):
    stored = {"SamplesPerPixel": 4, "PhotometricInterpretation": "CMYK", "PlanarConfiguration": 0}
    dicom(tmp_path / "f", np.zeros((4, 4), np.uint8), Modality="US", PixelData=bytes(64), **stored)
    ((_, reason),) = read_case(tmp_path).skipped
    assert reason.startswith("has 4 values for each pixel")


# Cells of pixels


def test_unsigned_and_signed_values_of_32_bits(tmp_path):
    unsigned = [0, 2**31, 4_094_000_000]
    ct = {"BitsStored": 32, "Modality": "MR"}
    assert row(radiograph(tmp_path / "a", unsigned, np.uint32, **ct)) == np.float32(unsigned).tolist()
    assert row(radiograph(tmp_path / "b", [-(2**31), 0, 5], np.int32, **ct)) == [-(2**31), 0, 5]
    back = {"RescaleSlope": 1, "RescaleIntercept": -4_000_000_000, **ct}
    scan = only(radiograph(tmp_path / "c", [4_000_000_000, 4_000_001_000], np.uint32, **back))
    assert scan.pixels.dtype == np.int16
    assert scan.pixels[0, 0].tolist() == [0, 1000]
    fraction = {"RescaleSlope": 0.5, "RescaleIntercept": -2_000_000_000, **ct}
    assert row(radiograph(tmp_path / "d", [4_000_000_000, 4_000_000_003], np.uint32, **fraction)) == [0, 1.5]


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")])
def test_float_pixels(tmp_path, keyword, dtype):
    for modality, expected in (("MR", [-1.5, 0.25, 300]), ("DX", [300, 298.25, -1.5])):
        path = dicom(tmp_path / "f", None, Modality=modality)
        dataset = pydicom.dcmread(path)
        dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.SamplesPerPixel = 1, 3, 8 * int(dtype[1]), 1
        dataset.PhotometricInterpretation = "MONOCHROME1" if modality == "DX" else "MONOCHROME2"
        setattr(dataset, keyword, np.array([-1.5, 0.25, 300], f"<{dtype}").tobytes())
        dataset.save_as(path)
        assert row(path) == expected


@pytest.mark.parametrize("syntax", [*LITTLE_AND_BIG, RLELossless])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize("frames", [1, 2])
def test_overlays_and_other_bits_around_the_values_are_ignored(tmp_path, frames, dtype, syntax):
    values = [0, 5, 1000, 2047] if dtype == np.uint16 else [-2048, -5, 0, 2047]
    overlay = np.arange(4, dtype=np.uint16) << 14 | 0x1000
    for high_bit in (11, 15):
        cells = (np.array(values).astype(np.uint16) & 0x0FFF) << high_bit - 11
        cells = cells | (overlay if high_bit == 11 else np.uint16(0xB))
        bits = {"BitsStored": 12, "HighBit": high_bit, "PixelRepresentation": int(dtype == np.int16)}
        stored = np.stack([np.stack([cells] * 2)] * frames).astype(">u2" if syntax == ExplicitVRBigEndian else "<u2")
        plain = ExplicitVRLittleEndian if syntax == RLELossless else syntax
        path = dicom(tmp_path / "f", stored if frames > 1 else stored[0], plain, Modality="US", **bits)
        if syntax == RLELossless:
            dataset = pydicom.dcmread(path)
            dataset.compress(RLELossless)
            dataset.save_as(path)
        scan = only(path)
        assert (scan.pixels[:, 0] == values).all(), high_bit
        assert scan.warnings == []


def test_a_high_bit_that_does_not_fit_the_values_is_ignored_and_said(tmp_path):
    scan = only(radiograph(tmp_path / "f", [1, 900, 4095], Modality="MR", HighBit=15))
    assert scan.pixels[0, 0].tolist() == [1, 900, 4095]
    assert scan.warnings == ["its HighBit does not fit its values, and was ignored"]


def test_the_header_says_whether_values_are_signed_not_jpeg_2000(tmp_path):
    path = dicom(tmp_path / "f", np.tile(picture([0, 1, 2047, 4095]), (32, 16)), BitsStored=12, HighBit=11)
    dataset = pydicom.dcmread(path)
    dataset.compress(JPEG2000Lossless)
    dataset.PixelRepresentation = 1
    dataset.save_as(path)
    assert only(path).pixels[0, 0, :4].tolist() == [0, 1, 2047, -1]


def test_signed_values_of_ct_that_the_header_calls_unsigned_are_signed_and_it_is_said(tmp_path):
    def ct(folder, *slices, **elements):
        series(folder, np.stack([picture(np.array(values) & 0xFFFF) for values in slices]), **elements)
        return only(folder)

    scan = ct(tmp_path / "a", [-1000, -3, 900], [0, 5, 1000], PixelPaddingValue=65536 - 1000)
    assert scan.pixels[:, 0].tolist() == [[-1000, -3, 900], [0, 5, 1000]]
    assert scan.warnings == ["its header says that its values are unsigned, but they are signed: read as such"]
    metal = ct(tmp_path / "b", [0, 1000, 65535], RescaleIntercept=-1024)
    between = ct(tmp_path / "c", [0, 9000, 65000], RescaleIntercept=-1024)
    assert metal.pixels[0, 0].tolist() == [-1024, -24, 64511]
    assert between.pixels[0, 0].tolist() == [-1024, 7976, 63976]
    assert metal.warnings == between.warnings == []


@pytest.mark.parametrize(("photometric", "shape"), [("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")])
def test_a_presentation_lut_that_contradicts_the_photometric_interpretation_is_said(tmp_path, photometric, shape):
    def warnings(photometric):
        elements = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}
        return only(radiograph(tmp_path / "f", [1, 2], **elements)).warnings

    other = {"MONOCHROME1": "MONOCHROME2", "MONOCHROME2": "MONOCHROME1"}[photometric]
    assert warnings(photometric) == [
        "its PresentationLUTShape contradicts its PhotometricInterpretation: it may be inverted"
    ]
    assert warnings(other) == []


@pytest.mark.parametrize("modality", ["CT", "PT", "NM"])
def test_monochrome1_does_not_invert_a_quantity(tmp_path, modality):
    inverted = {"Modality": modality, "PhotometricInterpretation": "MONOCHROME1"}
    assert row(radiograph(tmp_path / "f", [1, 2, 3], **inverted)) == [1, 2, 3]


@pytest.mark.parametrize("syntax", LITTLE_AND_BIG)
def test_an_odd_number_of_bytes(tmp_path, syntax):
    values = np.arange(9, dtype=np.uint8).reshape(3, 3)
    path = dicom(tmp_path / "f", values, syntax, Modality="US")
    dataset = pydicom.dcmread(path)
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)
    assert np.array_equal(only(path).pixels[0], values)
    file, order = path.read_bytes(), "little" if syntax.is_little_endian else "big"
    assert file[-14:-10] == (10).to_bytes(4, order)
    path.write_bytes(file[:-14] + (9).to_bytes(4, order) + file[-10:-1])
    assert np.array_equal(only(path).pixels[0], values)


@pytest.mark.parametrize("colour", [False, True])
def test_bytes_in_words_of_a_big_endian_file_are_swapped(tmp_path, colour):
    values = halves(4) if colour else np.arange(16, dtype=np.uint8).reshape(4, 4)
    kind = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"} if colour else {}
    swapped = np.frombuffer(values.tobytes(), "<u2").astype(">u2").tobytes()
    dicom(tmp_path / "f", values, ExplicitVRBigEndian, Modality="US", PixelData=swapped, **kind)
    assert np.array_equal(only(tmp_path).pixels[0], values)


@pytest.mark.parametrize(
    "missing", ["PhotometricInterpretation", "SamplesPerPixel", "BitsStored", "HighBit", "PixelRepresentation"]
)
def test_an_element_that_is_missing_is_assumed(tmp_path, missing):
    path = dicom(tmp_path / "f", picture([1, 2, 65535]), Modality="MR")
    dataset = pydicom.dcmread(path)
    delattr(dataset, missing)
    dataset.save_as(path)
    assert row(path) == [1, 2, 65535]
