"""radfm's scans beside the volumes of dcm2niix and SimpleITK: the same, or different for a known reason.

`python -m benchmarks.reading readers` prints the table of all differences.
"""

import shutil

import pytest
from test_read_dicom import AXIAL, CORONAL, SAGITTAL, ramp, series

from benchmarks.difference_reasons import UNEXPLAINED
from benchmarks.other_readers import READERS
from benchmarks.reader_differences import compared, series_of

pytestmark = pytest.mark.skipif(not shutil.which("dcm2niix"), reason="needs dcm2niix: apt-get install dcm2niix")
NORMALS = {"axial": (AXIAL, (0, 0, 3.0)), "coronal": (CORONAL, (0, 3.0, 0)), "sagittal": (SAGITTAL, (3.0, 0, 0))}
OBLIQUE = [0.8, 0.6, 0, 0, 0, -1], (-1.8, 2.4, 0)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize(("orientation", "step"), [*NORMALS.values(), OBLIQUE], ids=[*NORMALS, "oblique"])
def test_a_plain_series_has_the_same_values_at_the_same_places(tmp_path, orientation, step, modality):
    numbers = {"RescaleSlope": 1, "RescaleIntercept": -1024} if modality == "CT" else {}
    series(tmp_path, ramp(), orientation, step, Modality=modality, SliceThickness=3.0, **numbers)
    results = compared("plain", sorted(tmp_path.iterdir()))
    assert [result.reader for result in results] == list(READERS)
    assert [(result.volumes, result.agree, result.reasons) for result in results] == [(1, 1, [])] * 2


@pytest.mark.parametrize("source", ["pydicom, folders", "pydicom, files", "nibabel"])
def test_every_difference_in_the_test_files_of_libraries_is_explained(source):
    sets = [(name, files) for where, name, files in series_of([]) if where == source]
    results = [result for name, files in sets for result in compared(name, files)]
    wrong = [(result.name, reason) for result in results for reason in result.reasons if UNEXPLAINED in reason]
    assert wrong == []
    agree = {reader: sum(result.agree for result in results if result.reader == reader) for reader in READERS}
    assert min(agree.values()) > 0
