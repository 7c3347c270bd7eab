"""What the rows of a manifest say about their origin, about normal cases, and about where a finding lies."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from radfm.data_prep import load
from radfm.data_prep.batches.augmentation import Augmentation
from radfm.data_prep.batches.case_dataset import CaseDataset, Sampling
from radfm.data_prep.batches.sampling import Sample
from radfm.data_prep.data_summary import data_summary
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.pseudonyms import Pseudonyms
from radfm.data_prep.sources.manifest import Manifest
from radfm.processing_radfm import RadFMProcessor
from radfm.train.diagnosis_config import DataSection
from tests.data_prep.making import picture, series, table

OPEN = Pseudonyms(None)


def prepared(folder: Path, rows: list[dict], **settings) -> Path:
    """The data set of these rows, each with a picture of its own unless it names one."""
    for seed, row in enumerate(rows):
        if "path" not in row:
            row |= {"path": picture(folder / f"{seed}.png", seed).name, "modality": "X-ray", "split": "train"}
    prepare(Manifest(table(folder / "cases.csv", rows), OPEN), folder / "out", Settings(size=64, **settings))
    return folder / "out"


def test_every_case_keeps_its_licence_and_whom_to_credit(tmp_path):
    atlas = {"licence": "CC BY 4.0", "attribution": "Doe | Roe, Atlas", "url": "https://example.org/atlas"}
    rows = [
        {"case": "1", "disorders": "Pneumonia", "source": "atlas"} | atlas,
        {"case": "2", "disorders": "Asthma", "source": "atlas"} | atlas,
        {"case": "3", "disorders": "Gout", "licence": "CC BY 3.0"},
        {"case": "3", "disorders": "Gout", "licence": "MIT"},
        {"case": "4", "disorders": "Gout"},
    ]
    out = prepared(tmp_path, rows)
    cases = load(out)
    assert [row["licence"] for row in cases.rows] == ["CC BY 4.0", "CC BY 4.0", "CC BY 3.0; MIT", None]
    assert [row["collection"] for row in cases.rows] == ["atlas", "atlas", None, None]
    summary = data_summary(cases)
    assert summary["attributions"] == [
        atlas | {"cases": 2},
        {"licence": "CC BY 3.0; MIT", "attribution": None, "url": None, "cases": 1},
    ]
    assert summary["licence"] == "CC BY 3.0; MIT; CC BY 4.0"
    assert r"| CC BY 4.0 | Doe \| Roe, Atlas | https://example.org/atlas | 2 |" in (out / "README.md").read_text()


def test_training_leaves_out_what_a_published_model_must_not_learn_from(tmp_path):
    rows = [
        {"case": "1", "disorders": "Pneumonia", "publish": "1"},
        {"case": "2", "disorders": "Gout", "publish": "1"},
        {"case": "2", "disorders": "Gout", "publish": "0"},
        {"case": "3", "disorders": "Asthma", "publish": ""},
    ]
    out = prepared(tmp_path, rows)
    assert [row["publish"] for row in load(out).rows] == [True, False, None]
    assert [case.case_id for case in load(out, publishable=True)] == ["1", "3"]
    assert [case.case_id for case in DataSection(path=str(out)).load("train")] == ["1", "3"]
    assert len(DataSection(path=str(out), publishable=False).load("train")) == 3


def test_a_case_without_a_named_disorder_need_not_be_normal(tmp_path):
    rows = [
        {"case": "1", "disorders": "Pneumonia", "normal": "0"},
        {"case": "2", "disorders": "", "normal": "1"},
        {"case": "3", "disorders": "", "normal": "0"},
        {"case": "4", "disorders": "", "normal": ""},
        {"case": "5", "disorders": "unknown", "normal": ""},
    ]
    out = prepared(tmp_path, rows)
    cases = load(out)
    assert [row["normal"] for row in cases.rows] == [False, True, False, True, False]
    assert [row["labelled"] for row in cases.rows] == [True, True, True, True, False]
    assert data_summary(cases)["normal"] == 2
    assert "| cases without a named disorder, not known to be normal | 1 |" in (out / "README.md").read_text()
    assert "1 with disorders, 2 normal, 1 without a named disorder" in (out / "report.html").read_text()


def test_normal_labels_a_case_of_a_table_without_disorders(tmp_path):
    out = prepared(tmp_path, [{"case": "1", "normal": "1"}, {"case": "2", "normal": ""}])
    assert [(row["labelled"], row["normal"]) for row in load(out).rows] == [(True, True), (False, False)]


def test_boxes_become_masks(tmp_path):
    rows = [
        {"case": "1", "disorders": "Lung mass; Gout", "regions": "lung mass 0.25 0.5 0.5 0.25; Lung mass 0 0 0.1 0.1"},
        {"case": "2", "disorders": "Gout", "regions": ""},
    ]
    cases = load(prepared(tmp_path, rows))
    (mask,) = cases.masks(0).values()
    truth = np.zeros((1, 64, 64), bool)
    truth[0, 32:48, 16:48] = truth[0, :7, :7] = True
    assert list(cases.masks(0)) == ["Lung mass"]
    assert np.array_equal(mask, truth)
    assert not cases.masks(1)


def test_a_box_in_a_volume_lies_in_its_key_slice(tmp_path):
    series(tmp_path / "ct", slices=4)
    same = {"path": "ct", "disorders": "Lung mass", "regions": "Lung mass 0 0 1 0.5"}
    rows = [{"case": "1", "key_slice": "2"} | same, {"case": "2", "key_slice": ""} | same]
    out = prepared(tmp_path, rows)
    cases = load(out)
    assert cases.masks(0)["Lung mass"].sum((1, 2)).tolist() == [0, 0, 64 * 32, 0]
    assert not cases.masks(1)
    assert "in which slice they lie" in (out / "warnings.csv").read_text()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"publish": "perhaps"}, "'perhaps' for publish: write 1 or 0"),
        ({"normal": "1"}, "has disorders and 1 for normal"),
        ({"regions": "Gout 0 0 1 1"}, "'Gout', which is none of its disorders"),
        ({"regions": "Pneumonia 0 0 1"}, "write it as"),
        ({"regions": "Pneumonia 0 0 1 wide"}, "write it as"),
        ({"regions": "Pneumonia 10 20 30 40"}, "not within the picture"),
    ],
)
def test_a_row_with_a_wrong_fact_is_rejected(tmp_path, row, reason):
    good = {"case": "7", "path": picture(tmp_path / "1.png").name, "modality": "X-ray", "disorders": "Pneumonia"}
    good |= {"publish": "", "normal": "", "regions": ""}
    listing = Manifest(table(tmp_path / "cases.csv", [good, good | row]), OPEN).listing()
    assert len(listing.plans) == 1
    (rejected,) = listing.rejected
    assert reason in rejected.reason


@pytest.mark.parametrize(("normal", "scans"), [("1", 2), ("0", 1)])
def test_only_scans_of_normal_cases_are_added_to_another(tmp_path, normal, scans):
    rows = [{"case": "1", "disorders": "Gout", "body_part": "foot", "normal": "0"}]
    rows += [{"case": "2", "disorders": "", "body_part": "chest", "normal": normal}]
    cases = load(prepared(tmp_path, rows), labelled=True)
    data = CaseDataset(cases, RadFMProcessor(), Sampling(Augmentation(add_normal=1.0)))
    assert len(data.__getitems__([Sample(0, 1)])["pixel_values"]) == scans


def test_a_data_set_of_an_older_radfm_is_still_read(tmp_path):
    out = prepared(tmp_path, [{"case": "1", "disorders": "Gout"}, {"case": "2", "disorders": ""}])
    file = out / "cases" / "data-00000.arrow"
    with pa.OSFile(str(file), "rb") as stream:
        cases = pa.ipc.open_stream(stream).read_all()
    older = cases.drop_columns(["normal", "collection", "licence", "attribution", "url", "publish"])
    with pa.OSFile(str(file), "wb") as stream, pa.ipc.new_stream(stream, older.schema) as writer:
        writer.write_table(older)
    cases = load(out, "train", labelled=True, publishable=True)
    summary = data_summary(cases)
    assert (len(cases), summary["normal"], summary["attributions"], summary["licence"]) == (2, 1, [], None)


def test_a_picture_that_a_case_has_twice_is_one_scan_unless_it_is_a_follow_up(tmp_path):
    for seed in (0, 1):
        picture(tmp_path / f"{seed}.png", seed)
    (tmp_path / "again.png").write_bytes((tmp_path / "0.png").read_bytes())
    names = {"1": ("0.png", "1.png", "again.png"), "2": ("0.png", "again.png")}
    days = {"1": ("", "", ""), "2": ("0", "9")}
    rows = [
        {"case": case, "disorders": "Gout", "path": name, "modality": "X-ray", "split": "train", "days": day}
        for case in names
        for name, day in zip(names[case], days[case], strict=True)
    ]
    out = prepared(tmp_path, rows)
    assert [len(row["scan_rows"]) for row in load(out).rows] == [2, 2]
    (rejected,) = (out / "rejected.csv").read_text().splitlines()[1:]
    assert "again.png" in rejected
    assert "is a copy of 0.png: read once" in rejected


def test_cases_are_grouped_by_collection_or_else_by_the_parts_of_the_body(tmp_path):
    rows = [
        {"case": "1", "disorders": "Gout", "collection": "atlas", "body_part": "foot"},
        {"case": "2", "disorders": "Gout", "body_part": "hand"},
        {"case": "2", "disorders": "Gout", "body_part": "foot"},
        {"case": "3", "disorders": "Gout"},
    ]
    data = CaseDataset(load(prepared(tmp_path, rows)), RadFMProcessor())
    assert [data.groups(case) for case in range(3)] == [["atlas"], ["foot", "hand"], []]
