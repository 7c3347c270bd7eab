"""Nothing that tells who a patient is reaches a data set, its report, a log, or the screen."""

import copy
import os
import subprocess
from pathlib import Path

import pytest
from making import dicom, series, table
from pydicom import dcmread
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from radfm.data_prep.deidentify import altered_by_profile, deidentify, keyed_uid
from radfm.data_prep.pseudonyms import Pseudonyms, read_key
from tests.waiting import TIMEOUT

PLANTED = "Zyx^Qwerty"  # in every text a header can hold
TEXTS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "UR"}
NEEDED = {"SpecificCharacterSet", "Modality", "PhotometricInterpretation", "ImageType", "DirectoryRecordType"}
KEY = b"a key of the test, long enough"


def planted() -> dict:
    """Keyword -> the planted name, for every element of DICOM's dictionary that holds text; and a few numbers."""
    elements = {}
    for tag, (representation, _, _, retired, keyword) in DicomDictionary.items():
        group = Tag(tag).group
        if keyword and not retired and representation in TEXTS and group >= 0x8 and keyword not in NEEDED:
            elements[keyword] = PLANTED
    elements |= {"PatientID": "ID-776655", "AccessionNumber": "ACC-998877", "PatientBirthDate": "19610304"}
    return elements | {"StudyDate": "20240517", "StudyInstanceUID": "1.2.776655.998877", "PatientAge": "095Y"}


@pytest.fixture
def archive(tmp_path) -> Path:
    """A study whose headers name the patient wherever they can: in every text, nested, private, in names of files."""
    nested = Dataset()
    nested.PatientName = nested.PersonName = PLANTED
    elements = planted() | {"RequestAttributesSequence": Sequence([nested])}
    folder = series(tmp_path / "archive" / PLANTED, **elements)
    for file in folder.glob("*.dcm"):
        dataset = dcmread(file)
        block = dataset.private_block(0x0011, PLANTED, create=True)
        block.add_new(1, "LO", PLANTED)
        dataset.save_as(file)
    (folder / "broken.dcm").write_bytes((folder / "0.dcm").read_bytes()[:3000])
    (folder / f"{PLANTED}.txt").write_text(PLANTED)
    return tmp_path / "archive"


def test_planted_names_reach_neither_data_set_nor_log_nor_report(python, archive, tmp_path):
    labels = table(tmp_path / "labels.csv", [{"accession": "ACC-998877", "disorders": "Asthma"}])
    (tmp_path / "key").write_bytes(KEY)
    command = ["prepare", "dicom", str(archive), str(tmp_path / "out"), "--labels", str(labels), "--size", "64"]
    command += ["--key", str(tmp_path / "key"), "--links", str(tmp_path / "links")]
    done = subprocess.run(
        [
            python,
            "-m",
            "radfm.cli",
            *command,
            "--key",
            str(tmp_path / "key"),
            "--links",
            str(tmp_path / "links"),
        ],
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    secrets = [PLANTED, "Zyx", "Qwerty", "ID-776655", "ACC-998877", "19610304", "20240517", "1.2.776655", str(tmp_path)]
    written = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert len(written) > 8
    written |= {Path("stdout"): done.stdout.replace(str(tmp_path).encode(), b""), Path("stderr"): done.stderr}
    for file, content in written.items():
        for secret in secrets:
            assert secret.encode() not in content, f"{secret} is in {file.name}"
            assert secret.encode("utf-16-le") not in content
    rejected = (tmp_path / "out" / "rejected.csv").read_text()
    assert rejected.count("file,d-") == 2
    links = (tmp_path / "links").read_text()
    assert "ID-776655" in links
    assert (tmp_path / "links").stat().st_mode & 0o077 == 0


def test_the_reader_keeps_nothing_that_the_profile_alters():
    """What becomes part of a scan, by element; dates become distances, the patient a pseudonym."""
    kept = "Modality ImageOrientationPatient ImagePositionPatient PixelSpacing ImagerPixelSpacing SliceThickness "
    kept += "SpacingBetweenSlices ViewPosition BodyPartExamined Rows Columns RescaleSlope RescaleIntercept ImageType"
    assert not [keyword for keyword in kept.split() if altered_by_profile(keyword)]
    assert altered_by_profile("PatientName")
    assert altered_by_profile("StudyDate")


def test_a_whole_file_is_deidentified_at_every_depth(archive):
    dataset = dcmread(next(archive.rglob("0.dcm")))
    before = copy.deepcopy(dataset)
    names = Pseudonyms(KEY)
    deidentify(dataset, names)
    assert dataset.PixelData == before.PixelData
    assert dataset.PatientIdentityRemoved == "YES"
    assert (dataset.PatientAge, dataset.PatientID) == ("090Y", names.of("patient", "ID-776655"))
    assert dataset.StudyInstanceUID == keyed_uid("1.2.776655.998877", names) != before.StudyInstanceUID
    assert dataset.SOPClassUID == before.SOPClassUID
    assert not [element for element in dataset if element.tag.is_private]
    left = {
        keyword_for_tag(element.tag)
        for element in dataset.iterall()
        if element.VR in TEXTS and PLANTED in str(element.value)
    }
    assert not {keyword for keyword in left if altered_by_profile(keyword)}
    assert "PatientName" not in left
    assert "PersonName" not in left


def test_the_same_patient_has_one_pseudonym_under_one_key_only(tmp_path):
    one, same, other = Pseudonyms(KEY), Pseudonyms(KEY), Pseudonyms(KEY + b"!")
    assert one.of("patient", "P1") == same.of("patient", "P1") != other.of("patient", "P1")
    assert one.of("patient", "P1") != one.of("case", "P1").removeprefix("c-")
    (tmp_path / "key").write_text("short")
    with pytest.raises(ValueError, match="a key needs at least 16"):
        read_key(tmp_path / "key")


def test_a_header_that_warns_of_burned_in_text_is_listed(tmp_path):
    from radfm.data_prep import load
    from radfm.data_prep.prepare import Settings, prepare
    from radfm.data_prep.sources.dicom import Dicom

    for i, annotation in enumerate(("YES", "NO")):
        dicom(tmp_path / "in" / f"{i}.dcm", i, StudyInstanceUID=f"1.2.{i}", BurnedInAnnotation=annotation)
    prepare(Dicom(tmp_path / "in", Pseudonyms(KEY)), tmp_path / "out", Settings(size=64))
    cases = load(tmp_path / "out")
    assert sorted(str(cases.scan_header(i)["text_in_pixels"]) for i in range(2)) == ["None", "header says so"]
