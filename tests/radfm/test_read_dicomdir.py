"""DICOMDIR and DIRFILE: which files they name, and which of those are really missing."""

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from test_read_dicom import dicom, ramp

from radfm import read_case

MISSING = "is named in the DICOMDIR, and no file with its name or identifier is there: copy the whole disc"


def directory(path, *records):
    """Writes a directory. records: (path of the file, its SOPInstanceUID or None)."""
    sequence = []
    for file, uid in records:
        record = Dataset()
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", file.split("/")
        if uid:
            record.ReferencedSOPInstanceUIDInFile = uid
        sequence.append(record)
    kind = {"SOPClassUID": "1.2.840.10008.1.3.10", "DirectoryRecordSequence": Sequence(sequence)}
    return dicom(path, None, Modality="", **kind)


def image(path, number, **elements):
    place = {"ImagePositionPatient": [0, 0, 5 * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    same = {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2", "PixelSpacing": [1, 1]}
    dicom(path, ramp()[number], SOPInstanceUID=f"1.2.3.{number}", InstanceNumber=number, **same, **place, **elements)


def slices(case):
    return sum(len(scan.pixels) for scan in case.scans)


def test_a_dicomdir_is_read_by_its_records_and_missing_files_are_listed(tmp_path):
    dicom(tmp_path / "DISC" / "im1", ramp()[0])
    dicom(tmp_path / "DISC" / "NOTNAMED", ramp()[1])
    file = directory(tmp_path / "DICOMDIR", ("DISC/IM1", None), ("DISC/IM2", None), ("../ESCAPE", None))
    case = read_case(file)
    assert [scan.source for scan in case.scans] == ["DISC/IM1"]
    assert case.skipped == [("DISC/IM2", MISSING)]
    assert read_case(tmp_path).skipped == [("DISC/IM2", MISSING)]
    assert slices(read_case(tmp_path)) == 2


def test_directories_in_the_folders_of_a_disc_name_files_from_its_top(tmp_path):
    for number in range(4):
        image(tmp_path / "backup" / "CD1" / "STUDY" / "SERIES" / f"IM{number}", number)
    files = [(f"STUDY/SERIES/IM{number}", f"1.2.3.{number}") for number in range(4)]
    disc = tmp_path / "backup" / "CD1"
    directory(disc / "STUDY" / "SERIES" / "DIRFILE", *files)
    directory(disc / "STUDY" / "DIRFILE", ("STUDY/SERIES/DIRFILE", None))
    directory(disc / "DICOMDIR", ("STUDY/DIRFILE", None))
    for path in (tmp_path, disc, disc / "DICOMDIR"):
        case = read_case(path)
        assert case.skipped == [], path
        assert slices(case) == 4
    (disc / "STUDY" / "SERIES" / "IM2").unlink()
    for path, name in [
        (tmp_path, "backup/CD1/STUDY/SERIES/"),
        (disc, "STUDY/SERIES/"),
        (disc / "DICOMDIR", "STUDY/SERIES/"),
    ]:
        ((missing, reason),) = read_case(path).skipped
        assert reason == MISSING
        assert missing.startswith(name), (path, missing)
        assert missing.endswith("STUDY/SERIES/IM2")


def test_files_under_other_names_are_found_by_their_identifiers(tmp_path):
    for number in range(3):
        image(tmp_path / "elsewhere" / f"renamed{number}.dcm", number)
    directory(tmp_path / "disc" / "DICOMDIR", *((f"A/IM{number}", f"1.2.3.{number}") for number in range(4)))
    case = read_case(tmp_path)
    assert slices(case) == 3
    assert case.skipped == [("disc/A/IM3", MISSING)]
    assert [name for name, _ in read_case(tmp_path / "disc").skipped] == [f"A/IM{number}" for number in range(4)]


def test_files_with_new_identifiers_are_found_by_their_names(tmp_path):
    for number in range(3):
        image(tmp_path / "A" / f"im{number}", number)
    directory(tmp_path / "DICOMDIR", *((f"A/IM{number}", f"9.9.{number}") for number in range(3)))
    assert read_case(tmp_path).skipped == []


def test_no_file_outside_of_what_is_read_is_read(tmp_path):
    image(tmp_path / "A" / "IM0", 0)
    directory(tmp_path / "disc" / "DICOMDIR", ("A/IM0", "1.2.3.0"))
    for path in (tmp_path / "disc", tmp_path / "disc" / "DICOMDIR"):
        case = read_case(path)
        assert case.scans == []
        assert case.skipped == [("A/IM0", MISSING)]


def test_a_directory_without_files_is_listed(tmp_path):
    case = read_case(directory(tmp_path / "DICOMDIR"))
    assert case.skipped == [("DICOMDIR", "is a DICOMDIR that names no files: give the folder it lies in")]
