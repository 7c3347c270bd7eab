"""Formats of figures and counts, and the bands of disorders."""

import pytest

from radfm import presentation

FIGURE = {"value": 0.52149, "low": 0.5, "high": 0.54}
DIFFERENCE = {"value": -0.0104, "low": -0.02, "high": 0.01}


@pytest.mark.parametrize(
    ("training_cases", "band"), [(100, "head"), (99, "body"), (30, "body"), (29, "tail"), (0, "tail")]
)
def test_bands_begin_at_100_and_30_training_cases(training_cases, band):
    assert presentation.band_of(training_cases) == band


def test_the_limits_of_bands_are_written_in_words():
    assert presentation.band_limits() == {"head": "at least 100", "body": "30 to 99", "tail": "fewer than 30"}
    assert presentation.band_of(15, (15, 5)) == "head"


def test_counts_agree_with_their_nouns():
    assert [presentation.plural(n, "case") for n in (0, 1, 2000)] == ["0 cases", "1 case", "2,000 cases"]
    assert presentation.plural(2, "case has", "cases have") == "2 cases have"


def test_each_warning_is_written_once_with_its_scans():
    dark, small = "the picture is dark", "the picture is small"
    scans = [[dark], [dark], [dark, dark], [], [small], [dark, small]]
    assert presentation.scan_warnings(scans) == [("Scans 1 to 3 and 6", dark), ("Scans 5 and 6", small)]
    assert presentation.scan_warnings([[dark], []]) == [("Scan 1", dark)]
    assert presentation.scan_warnings([[dark], [dark]]) == [("All 2 scans", dark)]
    assert presentation.scan_warnings([[dark]]) == [("The scan", dark)]
    assert presentation.scan_warnings([[], []]) == []


def test_a_figure_is_written_with_its_interval():
    assert presentation.with_interval(FIGURE) == "0.521 (0.500–0.540)"
    assert presentation.with_interval(DIFFERENCE, 2, signed=True) == "−0.01 (−0.02 to +0.01)"
    assert presentation.percent_interval(FIGURE) == "52% (50% to 54%)"
    assert presentation.interval_cell(FIGURE, ".2f") == "0.52\n0.50 to 0.54"


def test_a_figure_that_could_not_be_computed_is_a_dash():
    assert [presentation.with_interval(None), presentation.interval(None), presentation.interval_cell(None)] == [
        "–",
        "",
        "-",
    ]


def test_text_in_a_markdown_table_cannot_break_it():
    assert presentation.markdown_cell("a|b\n<i>`c`") == r"a\|b \<i\>\`c\`"
