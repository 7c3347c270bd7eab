"""Names of files that are no UTF-8, or hold control characters, do not end the preparation of a data set."""

import csv
import os

import numpy as np
import pytest
from making import picture, series, smooth
from PIL import Image

from radfm.data_prep import load
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.pseudonyms import Pseudonyms
from radfm.data_prep.sources.dicom import Dicom
from radfm.data_prep.sources.folder import FolderPerClass

NAMES = [b"R\xf6ntgen", b"R\xe4ntgen", b"two\nlines", b"\x1b[31m", "‮gnp".encode()]
HIDDEN = Pseudonyms(b"a key of more than sixteen bytes")


def below(folder, name: bytes) -> str:
    return os.fsdecode(os.path.join(os.fsencode(folder), name))


@pytest.fixture
def archive(tmp_path):
    """A folder of a class with pictures, DICOM files and texts with such names."""
    folder = tmp_path / "archive" / "pneumonia"
    folder.mkdir(parents=True)
    for i, name in enumerate(NAMES):
        try:
            with open(below(folder, name + b".png"), "wb") as file:
                Image.fromarray(smooth(i)).save(file, "PNG")
        except OSError:
            pytest.skip("the file system takes UTF-8 only")
        with open(below(folder, name + b".txt"), "wb") as file:
            file.write(b"text")
        series(tmp_path / str(i), seed=10 * i)
        os.rename(tmp_path / str(i), below(folder, name))
    return folder.parent


@pytest.mark.parametrize("names", [Pseudonyms(None), HIDDEN])
def test_dicom_files_with_such_names_are_prepared_and_the_others_listed(archive, tmp_path, names):
    record = prepare(Dicom(archive, names), tmp_path / "out", Settings(size=48))
    assert record["counts"]["scans"]["out"] == len(NAMES)
    rejected = list(csv.DictReader((tmp_path / "out" / "rejected.csv").read_text(encoding="utf-8").splitlines()))
    assert len({one["name"] for one in rejected}) == 2 * len(NAMES)
    names.write_links(tmp_path / "links.csv")
    assert (tmp_path / "links.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("names", [Pseudonyms(None), HIDDEN])
def test_a_folder_of_such_names_is_prepared(archive, tmp_path, names):
    os.rename(archive / "pneumonia", below(archive, b"pleurit\xe4s"))
    picture(archive / "normal" / "1.png", 77)
    record = prepare(FolderPerClass(archive, "X-ray", names), tmp_path / "out", Settings(size=48))
    assert record["counts"]["scans"]["out"] == 2 * len(NAMES) + 1
    data = load(tmp_path / "out")
    disorders = {name for row in range(len(data)) for name in data[row].disorders}
    assert disorders == {"Pleurit�s"}


def test_an_archive_of_which_every_scan_is_refused_ends_in_one_line(tmp_path):
    flat = np.zeros((64, 64), np.int16)
    for i in range(3):
        file = series(tmp_path / "archive" / str(i), slices=1, seed=i) / "0.dcm"
        file.write_bytes(file.read_bytes()[: -flat.nbytes] + flat.tobytes())
    with pytest.raises(ValueError, match="no case has a usable scan, most often because a scan") as error:
        prepare(Dicom(tmp_path / "archive", HIDDEN), tmp_path / "out", Settings(size=48))
    assert "\n" not in str(error.value)
    rejected = list(csv.DictReader((tmp_path / "out" / "rejected.csv").read_text(encoding="utf-8").splitlines()))
    assert [one["what"] for one in rejected].count("case") == 3


def test_a_data_set_in_a_folder_whose_name_cannot_be_written_is_refused_in_one_line(archive, tmp_path):
    with pytest.raises(ValueError, match="the name of the folder is not UTF-8"):
        prepare(Dicom(archive, HIDDEN), below(tmp_path, b"out\xf6"), Settings(size=48))
