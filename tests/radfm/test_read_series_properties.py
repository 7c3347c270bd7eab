"""Properties of reading that hold for every series that `drawn_series` and `drawn_frames` can draw.

`python -m benchmarks.reading properties` reads thousands of them and prints how many are read wrongly, and why.
"""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, note, settings

from radfm import read_case
from tests.radfm.drawn_frames import enhanced, nuclear
from tests.radfm.drawn_series import Series, series
from tests.radfm.series_faults import faults

DRAWN = settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


def check(made: Series) -> None:
    note(made.describe())
    with tempfile.TemporaryDirectory() as folder:
        made.write(Path(folder))
        assert faults(made, read_case(folder)) == []


@DRAWN
@given(series())
def test_no_volume_of_a_series_mixes_and_no_slice_is_lost_or_misplaced(made):
    check(made)


@DRAWN
@given(enhanced())
def test_no_volume_of_an_enhanced_file_mixes_and_no_frame_is_lost_or_misplaced(made):
    check(made)


@DRAWN
@given(nuclear())
def test_no_volume_of_a_nuclear_file_mixes_and_no_frame_is_lost_or_misplaced(made):
    check(made)
