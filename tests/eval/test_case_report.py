"""The page of one case: complete in itself, and silent about who and where."""

import base64
import hashlib
import json
import re
import sys
from html import unescape
from html.parser import HTMLParser
from io import BytesIO
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from radfm import Case, RadFMConfig, RadFMForDiagnosis, RadFMImageProcessor, RadFMProcessor, Scan
from radfm.cli import main
from radfm.eval.case_report import write_case
from radfm.recipes_radfm import SYNTHETIC_ONLY
from radfm.starting_points import processor_for

HOSTILE = "<script>alert('gout')</script>"


@pytest.fixture
def checkpoint(tiny_config, tmp_path):
    torch.manual_seed(0)
    model = RadFMForDiagnosis(RadFMConfig(**tiny_config))
    names = ["Pneumothorax", "Rib fracture", HOSTILE]
    model.set_disorders(names, torch.randn(3, 32), [["J93.9"], ["S22.3"], ["X99.99"]])
    model.save_pretrained(tmp_path / "checkpoint")
    processor_for(model.config).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def case() -> Case:
    rng = np.random.default_rng(0)
    volume = rng.normal(0, 200, (7, 40, 30)).astype(np.float32)
    return Case(
        scans=[
            Scan(volume, "CT", "axial", (5.0, 2.0, 1.0), body_part="chest", source="CT/1"),
            Scan(rng.integers(0, 255, (1, 30, 40, 3), dtype=np.uint8), source="photo.png"),
        ],
        history="Pain <b>left</b> & fever",
        case_id="case-of-Doe",
        patient_id="Doe-1970",
        skipped=[("notes.txt", "is text: set aside")],
    )


@pytest.fixture
def page(checkpoint, tmp_path):
    """Of a case: writes its report and gives it back."""

    def write(judged: dict | None = None, **config) -> str:
        pipe = pipeline("zero-shot-diagnosis", model=str(checkpoint))
        for name, value in config.items():
            setattr(pipe.model.config, name, value)
        if judged is not None:
            pipe.reference = SimpleNamespace(judge=lambda *_: judged)
        answer = pipe(case(), return_attentions=True)
        write_case(pipe, case(), answer, str(checkpoint), tmp_path / "case.html")
        return (tmp_path / "case.html").read_text(encoding="utf-8")

    return write


@pytest.fixture
def page_of_volumes(tiny_config, tmp_path):
    """As `page`, of a model with a second tower, for volumes. Settings of the volume and the CT can change."""

    def write(volume: dict | None = None, **facts) -> str:
        torch.manual_seed(0)
        vision = {"family": "resnet", "tower": "test_resnet", "image_size": 32}
        of_volumes = {"family": "resnet3d", "tower": "test_resnet", "slice_depth": 0, "image_size": 32}
        model = RadFMForDiagnosis(RadFMConfig(**tiny_config | {"vision_config": vision, "volume_config": of_volumes}))
        model.set_disorders(["Pneumothorax", "Rib fracture"], torch.randn(2, 32), [["J93.9"], ["S22.3"]])
        settings = {"size": [8, 32, 32], "spacing_mm": [3.0, 2.0, 2.0], "axes": "SRA", "least_slices": 2} | (
            volume or {}
        )
        model.save_pretrained(tmp_path / "volumes")
        RadFMProcessor(RadFMImageProcessor(size=32, volume=settings)).save_pretrained(tmp_path / "volumes")
        rng = np.random.default_rng(0)
        pixels = rng.integers(-1000, 1000, (20, 40, 60)).astype(np.int16)
        affine = np.array([[0, 0, 1.5, 0], [0, 1.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
        place = {"spacing_mm": (3.0, 1.0, 1.5), "affine": affine, "plane": "axial"}
        ct = Scan(pixels, "CT", **place | facts)
        radiograph = Scan(rng.integers(0, 255, (1, 40, 30), dtype=np.uint8), "X-ray", "PA", (0.0, 1.0, 1.0))
        pipe = pipeline("zero-shot-diagnosis", model=str(tmp_path / "volumes"))
        both = Case([ct, radiograph])
        answer = pipe(both, return_attentions=True)
        write_case(pipe, both, answer, str(tmp_path / "volumes"), tmp_path / "volumes.html", tmp_path / "maps")
        return (tmp_path / "volumes.html").read_text(encoding="utf-8")

    return write


class Tags(HTMLParser):
    """What a browser makes of a page: its tags with attributes, and that each is closed."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_report_loads_nothing_names_no_patient_and_escapes_its_input(page, tmp_path, checkpoint):
    html = page()
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", html))
    assert "Doe" not in html
    assert str(tmp_path) not in html
    assert "<script" not in html
    assert "&lt;script&gt;alert(" in html
    assert "Pain &lt;b&gt;left&lt;/b&gt; &amp; fever" in html
    parsed = Tags(html)
    assert not parsed.open
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "link", "iframe", "a"})


def test_a_report_has_the_diagnoses_their_scans_and_the_model(page, checkpoint):
    html = page()
    text = " ".join(re.sub("<[^>]+>", " ", html).split())
    assert "J93.9" in text
    assert "Pneumothorax, unspecified" in text
    assert "Diseases of the respiratory system › " in text
    assert "X99.99 not in this edition" in text
    assert "which lets the lung collapse. (radfm)" in text
    assert "A break of a rib. (radfm)" in text
    assert "Slice" in text
    assert "of 7" in text
    assert "Spacing 5 × 2 × 1 mm" in text
    assert "−1000 to 400 HU" in text
    assert "notes.txt is text: set aside" in text
    assert hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest() in text
    assert text.count("Research use only, not a medical device.") == 2
    assert "This model is untrained." in text


def test_a_report_says_what_is_uncertain_about_the_scans(page):
    html = page()
    text = " ".join(re.sub("<[^>]+>", " ", html).split())
    assert "Check the scans: the answer may mean nothing Scan 2 : the modality is unknown" in text
    assert html.index("Check the scans") < html.index("Disorders, best first")


def test_a_trained_and_calibrated_model_is_called_so(page):
    fit = {"slopes": [1.0] * 3, "shifts": [10.0] * 3, "exclusive": []}
    html = page(trained=True, calibration=fit, thresholds=[0.0, None, 1.0])
    assert "untrained" not in html
    assert "are calibrated: each is a probability" in html
    assert html.count("above threshold") == 1
    assert html.count("<small>threshold ") == 2
    assert "not calibrated" not in html


def test_an_out_of_distribution_case_has_no_probability_threshold_or_set_in_the_report(page):
    fit = {"slopes": [1.0] * 3, "shifts": [10.0] * 3, "exclusive": []}
    sets = {"threshold": 0.0, "coverage": 0.9, "guarantee": "share", "patients": 50}
    config = {"trained": True, "calibration": fit, "thresholds": [0.0, 0.0, 0.0], "prediction_sets": sets}
    marks = ("above threshold", "<small>threshold ", "in the set</span>", "is a probability")
    judged = {"is_ood": False, "p_value": 0.5, "new_modalities": [], "scans": [0.5, 0.5]}
    html = page(judged, **config)
    assert all(mark in html for mark in marks)
    html = page(judged | {"is_ood": True, "p_value": 0.002}, **config)
    assert html.index('role="alert"') < html.index("<h1>")  # the first line
    assert "at most 0.2% of the validation cases are as far from the training scans" in html
    assert "none is a probability" in html
    assert not any(mark in html.replace("none is a probability", "") for mark in marks)


DRAWN, REAL = {"source": "phantoms"}, {"source": "rp3d"}


@pytest.mark.parametrize(
    ("file", "recipe", "synthetic_only"),
    [
        ("radfm_diagnosis.json", {"config": {}, "data": DRAWN}, True),
        ("radfm_diagnosis.json", {"config": {}, "data": REAL}, False),
        ("radfm_diagnosis.json", {"config": {"model": {"tower_weights": "imagenet"}}, "data": DRAWN}, False),
        (
            "radfm_diagnosis.json",
            {
                "config": {"model": {"tower_weights": "a"}},
                "data": DRAWN,
                "started_from": {"tower_weights": {"data": DRAWN}},
            },
            True,
        ),
        (
            "radfm_finetune.json",
            {"key": {"config": {"model": {}}}, "data": DRAWN, "started_from": {"model": {"data": REAL}}},
            False,
        ),
        ("radfm_finetune.json", {"key": {"config": {"model": {}}}, "data": REAL}, False),
    ],
)
def test_the_report_of_a_model_trained_on_synthetic_patients_only_states_it(
    page, checkpoint, file, recipe, synthetic_only
):
    assert SYNTHETIC_ONLY not in page()
    (checkpoint / file).write_text(json.dumps(recipe))
    assert (SYNTHETIC_ONLY in page()) == synthetic_only


def test_the_warning_of_an_out_of_distribution_case_points_at_the_caller(checkpoint):
    pipe = pipeline("zero-shot-diagnosis", model=str(checkpoint))
    judged = {"is_ood": True, "p_value": 0.002, "new_modalities": [], "scans": [0.002, 0.002]}
    pipe.reference = SimpleNamespace(judge=lambda *_: judged)
    with pytest.warns(UserWarning, match="out of distribution") as warned:
        pipe(case())
    assert {one.filename for one in warned} == {__file__}


def test_pictures_have_the_shape_of_the_anatomy_and_differ_by_disorder(page):
    images = [attributes["src"] for tag, attributes in Tags(page()).tags if tag == "img"]
    pictures = [Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in images]
    assert len(pictures) == 2 * (1 + 3)  # of each scan the plain slice, and one for each disorder
    assert {picture.size for picture in pictures[:4]} == {(168, 448)}  # 30 mm by 80 mm
    assert max(len(set(of_scan)) for of_scan in (images[:4], images[4:])) == 4  # one may be dark for several


def text_of(html: str) -> str:
    return " ".join(unescape(re.sub("<[^>]+>", " ", html)).split())


def test_a_volume_is_shown_in_three_planes_beside_scans_that_are_read_by_slices(page_of_volumes):
    html = page_of_volumes()
    parsed = Tags(html)
    assert not parsed.open
    shown = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    assert len(shown) == 2 * 2 * 3  # disorders, without and with the map, planes
    sizes = [tuple(map(int, attributes["viewbox"].split()[2:])) for attributes in shown[:6]]
    assert sizes == [(448, 199), (448, 299), (199, 299)] * 2  # 90 mm by 40 mm by 60 mm
    names = [attributes["aria-label"] for attributes in shown]
    assert [re.match(r"(\w+) slice \d+ of scan 1$", name)[1] for name in names[:3]] == ["Axial", "Coronal", "Sagittal"]
    assert names[3] == "The same slice with the saliency map of " + re.search("map of ([A-Z][a-z ]+)", html)[1]
    images = [attributes["href"] for tag, attributes in parsed.tags if tag == "image"]
    pictures = [Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in images]
    assert [picture.size for picture in pictures[:6]] == sizes
    assert all(a != b for a, b in zip(images[:3], images[3:6], strict=True))
    text = text_of(html)
    assert "Of each scan the key slice or three planes through the maximum, without and with" in text
    assert sum(tag == "img" for tag, _ in parsed.tags) == 1 + 2  # of the radiograph
    assert "key slice: " not in text
    assert "One slice ." in text
    assert 'class="curve"' not in html
    assert "https:" not in html


def test_the_maps_of_a_volume_are_files_over_its_voxels_and_pictures_of_its_slices(page_of_volumes, tmp_path):
    page_of_volumes()
    written = {file.name for file in (tmp_path / "maps").iterdir()}
    names = {f"scan{i}_{name}" for i in (1, 2) for name in ("pneumothorax", "rib_fracture")}
    assert written == {name + suffix for name in names for suffix in (".nii.gz", ".png")}
    for name in ("pneumothorax", "rib_fracture"):
        image = nibabel.load(tmp_path / "maps" / f"scan1_{name}.nii.gz")
        assert image.shape == (60, 40, 20)
        np.testing.assert_allclose(image.affine, np.diag([-1.5, -1.0, 3.0, 1.0]))
        assert Image.open(tmp_path / "maps" / f"scan1_{name}.png").size == (448, 199)


def test_a_report_says_which_volume_the_model_read_and_outlines_it(page_of_volumes):
    html = page_of_volumes()
    text = text_of(html)
    assert (
        "Read as a volume of 24 mm (head to foot) × 64 mm (side to side) × 64 mm (front to back): "
        "8 × 32 × 32 voxels of 3 × 2 × 2 mm. Resampled from 3 × 1.5 × 1 mm. "
        "Cropped: 36 of 60 mm (head to foot) and 26 of 90 mm (side to side). Padded: 24 mm (front to back)." in text
    )
    rectangles = [attributes for tag, attributes in Tags(html).tags if tag == "rect"]
    assert len(rectangles) == 12  # in each picture
    assert float(rectangles[0]["height"]) == pytest.approx(199, abs=3)  # the axial slice was read from front to back
    assert float(rectangles[0]["width"]) == pytest.approx(448 * 64 / 90, abs=6)
    assert float(rectangles[1]["height"]) == pytest.approx(299 * 24 / 60, abs=1)
    assert "Dashed: the edge of what was read." in text


def test_the_windows_of_a_volume_are_counted_and_outlined(page_of_volumes):
    html = page_of_volumes({"overlap": 0.25})
    assert "Read as 3 overlapping windows of 24 mm (head to foot)" in text_of(html)
    pictures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert [picture.count("<rect") for picture in pictures[:3]] == [1, 3, 3]
    whole = page_of_volumes({"size": [None, 32, 32], "spacing_mm": [3.0, 3.0, 3.0]})
    assert "<rect" not in whole
    assert "Dashed" not in whole
    assert "Cropped" not in whole


def test_a_volume_of_unknown_voxel_size_is_shown_as_it_was_read(page_of_volumes):
    html = page_of_volumes(spacing_mm=(3.0, 0.0, 0.0), affine=None)
    text = text_of(html)
    assert "its voxel size is not known in full: the model's (3 x 2 x 2 mm) is taken in its place" in text
    assert "the directions of its axes are not stated" in text
    assert "Not resampled." in text
    assert "<text" not in html  # no letter where left and right are assumed
    assert page_of_volumes().count("<text") == 2 * 12
    sizes = [a["viewbox"] for tag, a in Tags(html).tags if tag == "svg"]
    assert sizes[:3] == ["0 0 448 299", "0 0 448 224", "0 0 299 224"]  # 120 mm by 80 mm by 60 mm


def test_the_same_case_gives_the_same_bytes(page):
    assert page() == page()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--each", "--report", "case.html"], "one case"),
        (["--report", "."], "a web page"),
        (["--report", "a.pdf"], "a.pdf"),
        (["--each", "--maps", "maps"], "one case"),
        (["--maps", __file__], "this is a file"),
    ],
)
def test_a_report_that_cannot_be_made_is_an_error_of_one_line(
    checkpoint, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.setattr(sys, "argv", ["radfm", "diagnose", str(tmp_path), "--model", str(checkpoint), *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    err = capsys.readouterr().err
    assert stop.value.code == 1
    assert message in err
    assert err.count("\n") == 1


def test_the_command_writes_a_report_of_the_files_it_read(checkpoint, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "scan.npy", np.arange(3 * 32 * 32, dtype=np.uint16).reshape(3, 32, 32))
    file = tmp_path / "new" / "case.html"
    arguments = ["--model", str(checkpoint), "--top", "2", "--modality", "MRI", "--report", str(file), "--json"]
    monkeypatch.setattr(sys, "argv", ["radfm", "diagnose", str(tmp_path / "scan.npy"), *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    html = file.read_text(encoding="utf-8")
    assert "scan.npy" in html
    assert str(tmp_path) not in html
    assert '"diagnoses"' in capsys.readouterr().out


def test_the_command_writes_maps_of_every_scan(checkpoint, tmp_path, monkeypatch):
    affine = np.array([[0, 0, 2.0, 5], [0, 3.0, 0, 6], [1.0, 0, 0, 7], [0, 0, 0, 1]])
    volume = np.random.default_rng(0).integers(0, 900, (32, 24, 5)).astype(np.int16)
    for shift, name in enumerate("ab"):
        nibabel.save(nibabel.Nifti1Image(volume + np.int16(shift), affine), tmp_path / f"{name}.nii.gz")
    scans = [str(tmp_path / f"{name}.nii.gz") for name in "ab"]
    arguments = ["diagnose", *scans, "--model", str(checkpoint), "--labels", "Gout; Brain abscess"]
    monkeypatch.setattr(sys, "argv", ["radfm", *arguments, "--modality", "MRI", "--maps", str(tmp_path / "maps")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    names = {f"scan{i}_{name}" for i in (1, 2) for name in ("gout", "brain_abscess")}
    written = sorted((tmp_path / "maps").iterdir())
    assert {file.name for file in written} == {name + suffix for name in names for suffix in (".nii.gz", ".png")}
    for file in written:
        if file.suffix == ".png":
            assert Image.open(file).mode == "RGB"
            continue
        image = nibabel.load(file)
        corners = [nibabel.affines.apply_affine(image.affine, [(0, 0, 0), np.array(image.shape) - 1])]
        theirs = [nibabel.affines.apply_affine(affine, [(0, 0, 0), np.array(volume.shape) - 1])]
        np.testing.assert_allclose(np.sort(corners[0], axis=0), np.sort(theirs[0], axis=0))
        assert 0 <= image.get_fdata().min() <= image.get_fdata().max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("threshold", "text", "marked"),
    [([0.0, 0.0, 0.0], "All 3 below are in it", 3), ([1.0, 0.0, 1.0], "Of the 3 below it holds 1.", 1)],
)
def test_the_disorders_of_the_prediction_set_are_marked_and_counted(page, threshold, text, marked):
    sets = {"threshold": threshold, "coverage": 0.9, "guarantee": "share", "patients": 50}
    html = page(trained=True, prediction_sets=sets)
    assert "on average it has 90% of a case's disorders" in html
    assert text in html
    assert html.count("in the set</span>") == marked
    assert "with 90% prediction sets" in html


def test_a_rare_disease_has_its_orpha_code_on_the_page(page):
    assert "rare disease, by Orphanet" not in page()
    html = page(disorders=["Pneumothorax", "Biliary atresia", "Gout"])
    text = " ".join(re.sub("<[^>]+>", " ", html).split())
    assert "ORPHA:30391 rare disease, by Orphanet" in text
