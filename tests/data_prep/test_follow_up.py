"""Phantoms with follow-up: what stays, what changes, and what the table of sizes says of it."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from radfm.data_prep import load
from radfm.data_prep.dated_cases import DatedCases
from radfm.data_prep.phantoms import disorders
from radfm.data_prep.phantoms.follow_up import CHANGES, change_of, changes_of, draw_sizes, make_follow_up
from radfm.data_prep.phantoms.phantom import Generators, PhantomPlan, make_phantom
from radfm.data_prep.phantoms.protocols import protocols
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.data_prep.tables import has_table, read_rows

SIZE = 48
BY_NAME = {d.name: d for d in disorders()}
TUMOUR = "Malignant neoplasm of frontal lobe"


def phantom_of(size: float, name: str = TUMOUR):
    protocol = next(p for p in protocols().values() if p.name in BY_NAME[name].shows and p.modality in ("CT", "MRI"))
    return make_phantom(PhantomPlan("test", [BY_NAME[name]], [protocol], SIZE), Generators([7, 1], 1), {name: size})


@pytest.fixture(scope="module")
def courses():
    return [make_follow_up(3, index, 60, SIZE) for index in range(12)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("follow_up") / "knees"
    source = Phantoms(30, 0, 32, "knee", follow_up=True)
    prepare(source, folder, Settings(size=32, fractions=(0.6, 0.0, 0.4), max_slices=2))
    return folder


def test_a_larger_lesion_of_the_same_patient_lies_around_the_same_place():
    masks = [phantom_of(size).masks[0][TUMOUR] for size in (0.5, 0.8, 1.2)]
    middles = [np.argwhere(mask).mean(0) for mask in masks]
    assert masks[0].sum() < masks[1].sum() < masks[2].sum()
    assert all(np.abs(middle - middles[0]).max() < 4 for middle in middles), middles


def test_an_absent_lesion_has_no_mask_and_leaves_the_rest_of_the_body_as_it_is():
    present, absent = (phantom_of(size, "Lobar pneumonia") for size in (1.0, 0.0))
    assert absent.masks == [{}]
    assert absent.sizes[0].volume_ml == 0
    difference = np.abs(present.case.scans[0].pixels - absent.case.scans[0].pixels)  # Hounsfield units
    changed, lesion = difference > 150, present.masks[0]["Lobar pneumonia"]
    assert (changed & lesion).sum() > 0.5 * lesion.sum()
    assert (changed & ~binary_dilation(lesion, iterations=2)).sum() < 0.05 * lesion.sum()


def test_an_absent_disorder_of_an_organ_has_no_volume_and_another_picture():
    size = {s: phantom_of(s, "Cardiomegaly").case.scans[0].pixels.astype(float) for s in (0.0, 1.0)}
    assert (size[0.0] != size[1.0]).any()
    assert phantom_of(0.0, "Cardiomegaly").sizes[0].volume_ml == 0 < phantom_of(1.0, "Cardiomegaly").sizes[0].volume_ml


def test_every_date_has_the_same_acquisitions_and_the_newest_has_no_days(courses):
    for phantom in courses:
        by_day: dict[float, list[str]] = {}
        for scan in phantom.case.scans:
            by_day.setdefault(scan.days, []).append(scan.source)
        assert 2 <= len(by_day) <= 4
        assert list(by_day) == sorted(by_day, reverse=True)
        assert min(by_day) == 0
        assert len(set(map(tuple, by_day.values()))) == 1


def test_the_sizes_of_a_patient_are_on_the_days_of_the_scans_and_agree_with_the_masks(courses):
    for phantom in courses:
        days = {scan.days for scan in phantom.case.scans}
        sizes = {(one.disorder, one.days): one.volume_ml for one in phantom.sizes}
        assert set(sizes) == {(name, day) for name in phantom.case.disorders for day in days}
        for scan, masks in zip(phantom.case.scans, phantom.masks, strict=True):
            assert all(sizes[name, scan.days] > 0 for name in masks)


def test_a_patient_is_the_same_whenever_made_and_no_patient_of_the_set_without_follow_up():
    one, same = make_follow_up(3, 0, 60, SIZE), make_follow_up(3, 0, 60, SIZE)
    assert all((a.pixels == b.pixels).all() for a, b in zip(one.case.scans, same.case.scans, strict=True))
    assert one.sizes == same.sizes
    assert one.patient_id == "S3F000000"


def test_lesions_take_all_kinds_of_courses():
    rng, counts = np.random.default_rng(0), Counter()
    for _ in range(200):
        sizes = draw_sizes(rng, BY_NAME[TUMOUR], 3)
        counts[change_of(sizes[0] ** 3, sizes[-1] ** 3)] += 1
    assert set(counts) == set(CHANGES)
    assert min(counts.values()) > 15


def test_a_disorder_without_a_size_neither_grows_nor_shrinks():
    rng = np.random.default_rng(0)
    of_organ = next(d for d in disorders() if d.shape == "organ")
    sizes = [draw_sizes(rng, of_organ, 4) for _ in range(60)]
    assert all(len(set(course) - {0.0}) == 1 for course in sizes)
    assert any(0.0 in course for course in sizes)
    assert len(set(draw_sizes(rng, of_organ, 4, may_change=False))) == 1


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (4.0, 5.0, "grew"),
        (4.0, 4.9, "stayed"),
        (5.0, 4.0, "shrank"),
        (0.0, 1.0, "appeared"),
        (1.0, 0.0, "resolved"),
        (0.0, 0.0, "stayed"),
    ],
)
def test_volumes_differ_from_a_quarter_on(before, after, change):
    assert change_of(before, after) == change


def test_changes_are_between_successive_dates(courses):
    phantom = next(one for one in courses if one.case.disorders)
    name = phantom.case.disorders[0]
    volumes = [one.volume_ml for one in sorted(phantom.sizes, key=lambda one: -one.days) if one.disorder == name]
    pairs = itertools.pairwise(volumes)
    assert changes_of(phantom.sizes)[name] == [change_of(*pair) for pair in pairs]


def test_a_size_below_32_is_refused():
    with pytest.raises(ValueError, match="use 32 or more"):
        make_follow_up(0, 0, 10, 31)


def test_a_prepared_set_has_the_table_of_sizes_and_one_without_follow_up_has_none(prepared, tmp_path):
    sizes = read_rows(prepared, "sizes")
    cases = {row["case_id"]: row for row in load(prepared).rows}
    assert {row["case_id"] for row in sizes} == {name for name, row in cases.items() if row["disorders"]}
    assert all(row["disorder"] in cases[row["case_id"]]["disorders"] for row in sizes)
    prepare(Phantoms(4, 0, 32), tmp_path / "plain", Settings(size=32, max_slices=1))
    assert not has_table(tmp_path / "plain", "sizes")


def test_each_date_of_a_stored_case_becomes_a_case_of_its_own(prepared):
    cases = load(prepared)
    dates = DatedCases(cases)
    assert sum(len(row["scan_rows"]) for row in dates.rows) == sum(len(row["scan_rows"]) for row in cases.rows)
    first = [row for row in dates.rows if row["case_id"] == dates.rows[0]["case_id"]]
    assert [row["days"] for row in first] == sorted((row["days"] for row in first), reverse=True)
    assert all(scan.days == 0 for date in dates[:5] for scan in date.scans)


def test_a_set_without_dates_has_no_course(tmp_path):
    folder = tmp_path / "one"
    prepare(Phantoms(6, 1, 32), folder, Settings(size=32, max_slices=1))
    cases = load(folder)
    cases.rows = [row | {"scan_rows": row["scan_rows"][:1]} for row in cases.rows]
    with pytest.raises(ValueError, match=r"no case of .* has scans of two dates"):
        DatedCases(cases)
