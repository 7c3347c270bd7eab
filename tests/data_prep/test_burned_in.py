"""Text in the pixels is detected where scanners and teaching files put it, and anatomy is not taken for text."""

import numpy as np
import pytest
from making import smooth
from PIL import Image, ImageDraw, ImageFont

from radfm.cases import Scan
from radfm.data_prep.burned_in import text_in_borders
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.readers.read_case import read_case

FOOTER = "c0ffee42-1f2a Uploader: J Doe, Source: Ward 3, taken 31-12-2006"


def with_footer(grey: int, noise: float) -> np.ndarray:
    """(256, 256) uint8: a picture above a black strip with small letters, as a reduced teaching file has them."""
    large = Image.new("L", (512, 512))
    large.paste(Image.fromarray(smooth(3, 470)), (21, 0))
    ImageDraw.Draw(large).text((60, 495), FOOTER, fill=grey, font=ImageFont.load_default(10))
    small = np.asarray(large.resize((256, 256), Image.Resampling.BILINEAR), np.float32)
    return np.uint8(np.clip(small + np.random.default_rng(0).normal(0, noise, small.shape), 0, 255))


@pytest.mark.parametrize(("grey", "noise"), [(255, 0.0), (255, 1.0), (120, 0.5), (50, 0.0)])
def test_a_faint_footer_is_detected(grey, noise):
    assert text_in_borders(Scan(with_footer(grey, noise)[None], "CT"))


@pytest.mark.parametrize("noise", [0.0, 1.0, 5.0, 20.0])
def test_noise_is_not_detected_as_a_footer(noise):
    assert not text_in_borders(Scan(with_footer(0, noise)[None], "CT"))


def test_phantoms_have_no_text():
    source = Phantoms(12)
    scans = [scan for result in source.read(source.listing().plans) for scan in result.case.scans]
    assert [text_in_borders(scan) for scan in scans] == [False] * len(scans)


def test_most_footers_of_real_teaching_files_are_detected(shared):
    """Each of these pictures has one, of three rows in many."""
    files = sorted((shared / "cases" / "medpix").rglob("*.jpg"))[::12]
    has_text = [text_in_borders(scan) for file in files for scan in read_case(file, modality="CT").scans]
    assert len(has_text) > 100
    assert np.mean(has_text) > 0.75
