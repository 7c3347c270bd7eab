"""Warnings of what a scan holds: each is raised by its fault, and by nothing that is right."""

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw, ImageFont
from pydicom.uid import EnhancedMRImageStorage, SecondaryCaptureImageStorage
from test_read_dicom import AXIAL, CORONAL, SAGITTAL, dicom, item, series

from radfm import Scan, read_case
from radfm.modalities import MODALITIES, UNKNOWN_MODALITY
from radfm.readers.content_checks import content_warnings
from radfm.readers.drawn_marks import drawn_marks

Y, X = np.mgrid[-1:1:256j, -1:1:256j]


def noise(seed=0):
    return np.random.default_rng(seed).normal(size=(256, 256))


def ct(slices=1) -> np.ndarray:
    """(slices, 256, 256) int16: a chest in Hounsfield units, on a table in air."""
    hounsfield = np.full(X.shape, -1000.0)
    hounsfield[np.hypot(X / 0.85, Y / 0.65) < 1] = -90
    hounsfield[np.hypot(X / 0.78, Y / 0.58) < 1] = 50
    for side in (-1, 1):
        hounsfield[np.hypot((X - 0.38 * side) / 0.28, Y / 0.42) < 1] = -850
    hounsfield[np.hypot(X / 0.09, (Y - 0.42) / 0.09) < 1] = 500
    hounsfield[(np.abs(Y - 0.8) < 0.02) & (np.abs(X) < 0.7)] = 200
    return np.stack([hounsfield + 15 * noise(i) for i in range(slices)]).astype(np.int16)


def radiograph() -> np.ndarray:
    """(256, 256) uint8: a frontal chest, dark beside the neck and in the lungs."""
    body = 150 * (np.abs(X) < 0.35 + 0.5 * np.clip(Y + 1, 0, 0.7) / 0.7) + 40 * (Y > 0.45)
    lungs = sum(np.hypot((X - 0.4 * side) / 0.25, (Y + 0.1) / 0.5) < 1 for side in (-1, 1))
    return np.clip(body - 90 * lungs + 50 * (np.abs(X) < 0.1) * (body > 0) + 30 + 4 * noise(), 0, 255).astype(np.uint8)


def mammogram() -> np.ndarray:
    """(256, 256) uint8: a breast at the left, and air."""
    breast = np.hypot((X + 1) / 1.1, Y / 0.75) < 1
    return np.clip(breast * (110 + 60 * noise().clip(-1, 1) * (X < -0.3)) + 8, 0, 255).astype(np.uint8)


def saved(path, pixels, **options):
    Image.fromarray(pixels).save(path)
    (scan,) = read_case(path, **options).scans
    return scan


def window(hounsfield, low, high, top):
    return np.clip((hounsfield - low) / (high - low), 0, 1) * top


def with_text(picture, line="Doe, Jane 1970-01-01", ink=255):
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((8, 4), line, fill=ink, font=ImageFont.load_default(14))
    return np.asarray(image)


def with_ruler(picture):
    drawn = picture.copy()
    for tick in range(16):
        drawn[20 + 12 * tick, 240 - (8 if tick % 5 == 0 else 4) : 240] = 255
    drawn[20:201, 240] = 255
    return drawn


def in_window(picture, colour=200):
    """With a bar that has a title, and thin borders."""
    framed = np.full((256 + 24, 256 + 6), colour, np.uint8)
    framed[22:-2, 3:-3] = picture
    return with_text(framed, "Image 3 of 20", ink=10)


RIGHT = {
    "a CT": Scan(ct(5), "CT", "axial", (5.0, 1.0, 1.0)),
    "a CT as floats": Scan(ct().astype(np.float32) + 0.25, "CT"),
    "a CT outside of whose round field is padding": Scan(np.where(np.hypot(X, Y) < 1, ct(), -2048), "CT"),
    "a radiograph": Scan(radiograph()[None], "X-ray", "PA"),
    "a radiograph of 12 bits": Scan(radiograph()[None].astype(np.uint16) * 16, "X-ray", "PA"),
    "a radiograph with a letterbox": Scan(np.pad(radiograph(), ((30, 30), (0, 0)))[None], "X-ray"),
    "a radiograph with a white border": Scan(np.pad(radiograph(), 12, constant_values=255)[None], "X-ray"),
    "a radiograph with a lead marker": Scan(with_text(radiograph(), "R")[None], "X-ray"),
    "a mammogram": Scan(mammogram()[None], "mammography", "MLO"),
    "an MRI": Scan((ct(30) + 1000).astype(np.uint16), "MRI", "sagittal", (3.0, 1.0, 1.0)),
    "an ultrasound clip": Scan(np.repeat(radiograph()[None], 4, axis=0), "ultrasound"),
    "an MRI picture": Scan(radiograph()[None], "MRI"),
    "a photograph with writing": Scan(with_text(radiograph())[None], "dermoscopy"),
}


@pytest.mark.parametrize("scan", RIGHT.values(), ids=RIGHT)
def test_a_right_scan_has_no_warning(scan):
    assert content_warnings(scan) == []


NO_HOUNSFIELD = {
    "8-bit grey levels": (window(ct(), -160, 240, 255).astype(np.uint8), "8-bit grey levels"),
    "8-bit grey levels in 16 bits": (window(ct(), -1350, 150, 255).astype(np.int16), "8-bit grey levels"),
    "without the intercept": ((ct() + 1024).clip(0).astype(np.uint16), "1,024 above Hounsfield units"),
    "in a PNG of 16 bits": ((ct().astype(int) + 32768).astype(np.uint16), "32,768 above Hounsfield units"),
    "a windowed copy of 12 bits": (window(ct(), -160, 240, 4095).astype(np.uint16), "grey levels of a windowed copy"),
    "scaled": (window(ct(), -1000, 1000, 1).astype(np.float32), "scaled to 0 to"),
    "normalised": (((ct() - ct().mean()) / ct().std()).astype(np.float32), "scaled to -"),
    "cut": (ct().clip(-160, 240), "cut off below -160 and above 240"),
    "cut above": (ct().clip(-1000, 300), "cut off above 300"),
    "intercept twice": (ct() - np.int16(1024), "hardly any CT value is near 0"),
    "in colour": (np.repeat(window(ct(), -160, 240, 255).astype(np.uint8)[..., None], 3, axis=-1), "in colour"),
}


@pytest.mark.parametrize(("pixels", "found"), NO_HOUNSFIELD.values(), ids=NO_HOUNSFIELD)
def test_ct_values_that_are_not_hounsfield_units_are_named(pixels, found):
    (sentence,) = content_warnings(Scan(pixels, "CT"))
    assert found in sentence


def test_a_ct_saved_as_a_picture_says_so_when_it_is_read(tmp_path):
    scan = saved(tmp_path / "ct.png", window(ct()[0], -160, 240, 255).astype(np.uint8), modality="CT")
    assert scan.warnings == [
        "CT values are 8-bit grey levels, not Hounsfield units: export the series as DICOM or NIfTI"
    ]


@pytest.mark.parametrize(("picture", "modality"), [(radiograph(), "X-ray"), (mammogram(), "mammography")])
@pytest.mark.parametrize("letterbox", [0, 20])
def test_an_inverted_radiograph_is_found(picture, modality, letterbox):
    inverted = np.pad(255 - picture, ((0, 0), (letterbox, letterbox)))
    assert "inverted" in " ".join(content_warnings(Scan(inverted[None], modality)))
    deep = (4095 - picture.astype(np.uint16) * 16)[None]
    assert "inverted" in " ".join(content_warnings(Scan(deep, modality)))


@pytest.mark.parametrize("turn", [0, 1])
def test_text_a_ruler_and_a_window_frame_are_found_each_alone(turn):
    picture = radiograph()
    assert drawn_marks(picture) == []
    assert drawn_marks(with_text(picture)) == ["text"]
    assert drawn_marks(with_text(255 - picture, ink=0)) == ["text"]
    assert drawn_marks(np.rot90(with_ruler(picture), turn)) == ["a ruler"]
    assert "a window frame" in drawn_marks(in_window(picture))
    framed = picture.copy()
    framed[:2] = framed[-2:] = framed[:, :2] = framed[:, -2:] = 200
    assert drawn_marks(framed) == ["a window frame"]


def test_marks_are_found_in_large_pictures_and_in_colour(tmp_path):
    large = np.kron(with_text(radiograph()), np.ones((8, 8))).astype(np.uint16) * 16
    assert drawn_marks(large) == ["text"]
    colour = np.repeat(radiograph()[..., None], 3, axis=-1)
    colour[..., 0] = with_text(radiograph())  # letters in red
    sentence = "the picture has text drawn into it: export it without, or cut it to the image"
    assert sentence in saved(tmp_path / "a.png", colour, modality="CT").warnings


def test_a_stack_without_geometry_says_what_is_unknown():
    def said(**known):
        return content_warnings(Scan((ct(6) + 1000).astype(np.uint16), "MRI", **known))

    assert said() == ["the orientation and spacing of the 6 slices are unknown: export the series as DICOM or NIfTI"]
    assert said(plane="axial") == ["the spacing of the 6 slices is unknown: export the series as DICOM or NIfTI"]
    assert said(plane="axial", spacing_mm=(5.0, 1.0, 1.0)) == []


def test_a_nifti_without_orientation_says_so_and_one_with_it_does_not(tmp_path):
    volume = np.moveaxis(ct(6), 0, 2)
    for name, code in (("with", 1), ("without", 0)):
        image = nibabel.Nifti1Image(volume, np.eye(4))
        image.set_qform(np.eye(4), code)
        image.set_sform(np.eye(4), code)
        image.to_filename(tmp_path / f"{name}.nii.gz")
    assert read_case(tmp_path / "with.nii.gz", modality="CT").scans[0].warnings == []
    (sentence,) = read_case(tmp_path / "without.nii.gz", modality="CT").scans[0].warnings
    assert "left and right may be swapped" in sentence


def test_few_slices_far_apart_are_called_a_localiser_and_a_short_stack_is_not():
    far, near = (Scan(ct(3), "CT", "sagittal", (mm, 1.0, 1.0)) for mm in (40.0, 8.0))
    assert content_warnings(far) == ["3 slices lie 40 mm apart, as in a localiser: leave it out"]
    assert content_warnings(near) == []


@pytest.mark.parametrize(("slices", "said"), [(2, 3), (9, 0)])
def test_a_series_of_few_slices_in_three_planes_is_called_a_localiser(tmp_path, slices, said):
    planes = {"a": AXIAL, "c": CORONAL, "s": SAGITTAL}
    for name, orientation in planes.items():
        step = np.cross(orientation[:3], orientation[3:]) * 8.0
        series(tmp_path / name, ct(slices), orientation, step, SeriesInstanceUID="1.2.9", Modality="MR")
    scans = read_case(tmp_path).scans
    assert sorted(scan.plane for scan in scans) == ["axial", "coronal", "sagittal"]
    assert sum("as a localiser" in sentence for scan in scans for sentence in scan.warnings) == said


def test_a_segmentation_is_not_taken_for_images():
    labels = (ct(12) > -200).astype(np.uint8) + (ct(12) > 300)
    (sentence,) = content_warnings(Scan(labels, "MRI", "axial", (5.0, 1.0, 1.0)))
    assert sentence.startswith("3 different values only, as in a segmentation")


def test_an_unknown_modality_is_said_and_a_stated_one_is_not(tmp_path):
    assert saved(tmp_path / "a.png", radiograph()).warnings == [UNKNOWN_MODALITY]
    assert saved(tmp_path / "a.png", radiograph(), modality="X-ray").warnings == []


@pytest.mark.parametrize(
    ("image_type", "kind"),
    [
        (["DERIVED", "SECONDARY", "MPR", "CSA MPR"], "a reformatted series (MPR)"),
        (["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MPR"], "a reformatted series (MPR)"),
        (["DERIVED", "PRIMARY", "PROJECTION IMAGE", "M"], "a projection through slices (MIP)"),
        (["DERIVED", "PRIMARY", "DIFFUSION", "ADC", "ND"], "a map of diffusion (ADC)"),
        (["DERIVED", "SECONDARY", "M", "SUBTRACTION"], "a subtraction of two images"),
    ],
)
def test_a_derived_series_is_called_what_the_header_calls_it(tmp_path, image_type, kind):
    position = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    dicom(tmp_path / "a.dcm", ct()[0], Modality="MR", ImageType=image_type, **position)
    (scan,) = read_case(tmp_path).scans
    assert scan.warnings == [f"the header calls it {kind}: give the original series as well, or instead"]


def test_frame_types_of_an_enhanced_file_are_looked_at(tmp_path):
    frame_type = item(FrameType=["DERIVED", "PRIMARY", "DIFFUSION", "ADC"])
    shared = item(MRImageFrameTypeSequence=frame_type)
    header = {"SOPClassUID": EnhancedMRImageStorage, "Modality": "MR", "SharedFunctionalGroupsSequence": shared}
    dicom(tmp_path / "a.dcm", ct(2), ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "NONE"], **header)
    assert any("a map of diffusion (ADC)" in sentence for sentence in read_case(tmp_path).scans[0].warnings)


def test_ordinary_headers_and_free_text_are_no_warning(tmp_path):
    for name, image_type in (("a", ["ORIGINAL", "PRIMARY", "AXIAL"]), ("b", ["DERIVED", "SECONDARY", "FOR DR MIPKE"])):
        series(tmp_path / name, ct(3), ImageType=image_type)
    assert [scan.warnings for scan in read_case(tmp_path).scans] == [[], []]


def test_screen_captures_and_raw_radiographs_are_named(tmp_path):
    dicom(tmp_path / "a.dcm", ct()[0], SOPClassUID=SecondaryCaptureImageStorage, Modality="CT")
    assert "a capture of a screen (secondary capture)" in " ".join(read_case(tmp_path / "a.dcm").scans[0].warnings)
    raw = {"Modality": "DX", "PresentationIntentType": "FOR PROCESSING"}
    dicom(tmp_path / "b.dcm", radiograph(), **raw)
    assert "raw (FOR PROCESSING)" in " ".join(read_case(tmp_path / "b.dcm").scans[0].warnings)


@settings(max_examples=60, deadline=None)
@given(
    pixels=st.sampled_from([np.uint8, np.uint16, np.int16, np.float32]).flatmap(
        lambda kind: arrays(
            kind,
            st.one_of(st.tuples(*[st.integers(1, 80)] * 3), st.tuples(*[st.integers(1, 70)] * 3, st.just(3))).filter(
                lambda shape: len(shape) == 3 or kind == np.uint8
            ),
            elements={"allow_nan": False, "allow_infinity": False} if kind == np.float32 else None,
            fill=st.nothing() if kind == np.float32 else st.just(7),
        )
    ),
    modality=st.sampled_from([None, *MODALITIES]),
)
def test_checks_take_any_scan(pixels, modality):
    sentences = content_warnings(Scan(pixels, modality))
    assert all(sentence[-1] != "." and "\n" not in sentence for sentence in sentences)
