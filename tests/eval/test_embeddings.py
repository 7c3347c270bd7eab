"""Tables of embeddings: what is in them, what is not, and that a killed run ends as one that was not."""

import csv
import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset

from radfm import RadFMConfig, RadFMForDiagnosis, RadFMProcessor, examples, read_case
from radfm.data_prep import load
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.eval import embedding_tables
from radfm.eval.embedding_sources import DataSetCases, FileCases
from radfm.eval.embedding_tables import read_about
from radfm.eval.embeddings import CASES_PER_PART, write_embeddings
from radfm.reference_radfm import weights_sha256
from radfm.starting_points import processor_for
from tests.waiting import TIMEOUT

MODEL = "radfm-phantom-mini"
CASES = 2 * CASES_PER_PART + 4


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    prepare(Phantoms(CASES, size=48), folder, Settings(size=48, max_slices=2, cases_per_shard=20))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """An untrained model that is fast."""
    torch.manual_seed(0)
    layer = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {"tower": "test_resnet", "image_size": 48}
    model = RadFMForDiagnosis(
        RadFMConfig(vision_config=vision, scan_config=layer, case_config=layer, hidden_size=32, projection_dim=32)
    )
    folder = tmp_path_factory.mktemp("models") / "small"
    model.save_pretrained(folder)
    processor_for(model.config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, phantoms, small) -> Path:
    """The table of a run that nothing has interrupted."""
    out = tmp_path_factory.mktemp("tables") / "whole.parquet"
    write_embeddings(DataSetCases(phantoms), small, out)
    return out


@pytest.fixture
def archive(tmp_path) -> Path:
    """Two real studies in folders with the name of a patient, and a file that is no image."""
    folder = tmp_path / "hospital" / "archive"
    for name in ("knees", "gallbladder"):
        shutil.copytree(examples.folder(name), folder / f"Doe^Jane {name}")
    (folder / "Doe^Jane.txt").write_text("Seen on Monday.")
    return folder


@pytest.mark.parametrize("level", ["case", "scan", "slice"])
def test_a_row_is_what_the_model_says_of_a_case_a_scan_or_a_slice(radfm, phantoms, tmp_path, level):
    out = tmp_path / "table.parquet"
    status, printed, _ = radfm(
        "embed", phantoms, "--split", "test", "--model", MODEL, "--level", level, "--out", out, "--json"
    )
    assert status == 0
    table, cases = pd.read_parquet(out), load(phantoms, "test")
    model, processor = RadFMForDiagnosis.from_pretrained(MODEL).eval(), RadFMProcessor.from_pretrained(MODEL)
    embed = {"case": model.get_case_features, "scan": model.get_scan_features, "slice": model.get_slice_features}[level]
    with torch.inference_mode():
        expected = torch.cat([embed(**processor(cases=[case])) for case in cases]).numpy()
    embeddings = np.stack(table["embedding"])
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, expected)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    about = json.loads(printed)
    assert about == read_about(out)
    assert (about["cases"], about["rows"], about["size"]) == (len(cases), *expected.shape)

    scans = [(case, i) for case in cases for i in range(len(case.scans))]
    if level == "case":
        assert table["case_id"].tolist() == [row["case_id"] for row in cases.rows]
        assert [list(names) for names in table["disorders"]] == [row["disorders"] for row in cases.rows]
        assert table["slices"].tolist() == [cases.slices(i) for i in range(len(cases))]
    elif level == "scan":
        assert list(zip(table["case_id"], table["scan"], strict=True)) == [(case.case_id, i) for case, i in scans]
        assert table["modality"].tolist() == [case.scans[i].modality for case, i in scans]
    else:
        expected_rows = [(case.case_id, i, k) for case, i in scans for k in range(len(case.scans[i].pixels))]
        assert list(zip(table["case_id"], table["scan"], table["slice"], strict=True)) == expected_rows
    assert set(table["split"]) == {"test"}


def test_slices_that_the_processor_leaves_out_have_no_row(small, tmp_path):
    case = tmp_path / "case"
    case.mkdir()
    np.save(case / "ct.npy", np.random.default_rng(0).normal(size=(40, 16, 16)))
    chosen = [0, 13, 26]
    model = shutil.copytree(small, tmp_path / "model")
    processor = RadFMProcessor.from_pretrained(model)
    processor.image_processor.max_slices = 3
    assert processor.image_processor.choose_slices(40) == chosen
    processor.save_pretrained(model)
    out = tmp_path / "table.parquet"
    write_embeddings(FileCases.of([case], modality="CT"), model, out, "slice")
    assert pd.read_parquet(out)["slice"].tolist() == chosen


def test_the_table_says_what_made_it_and_other_libraries_read_it(whole, phantoms, small, tmp_path):
    about = read_about(whole)
    assert about["checkpoint"] == weights_sha256(small)
    assert about["data"] == load(phantoms).record["fingerprint"]
    assert (about["model"], about["dataset"], about["split"], about["level"]) == ("small", "data", "all", "case")
    rows = load_dataset("parquet", data_files=str(whole), split="train", cache_dir=str(tmp_path))
    assert rows.features["embedding"].length == about["size"] == 32
    assert len(rows) == CASES


@pytest.mark.parametrize("level", ["case", "slice"])
def test_a_killed_run_continues_and_ends_with_the_same_bytes(python, phantoms, small, tmp_path, level):
    expected, out = tmp_path / "expected.parquet", tmp_path / "killed.parquet"
    write = partial(write_embeddings, DataSetCases(phantoms), small, level=level)
    write(expected)
    code = (
        "import os; from pathlib import Path; from signal import SIGKILL\n"
        "from radfm.eval.embeddings import write_embeddings\n"
        "from radfm.eval.embedding_sources import DataSetCases\n"
        f"write_embeddings(DataSetCases(Path({str(phantoms)!r})), {str(small)!r}, Path({str(out)!r}), {level!r}, "
        "progress=lambda done, of: os.kill(os.getpid(), SIGKILL))"
    )
    for parts in (1, 2):  # each time it is killed when it has written one part more
        assert subprocess.run([python, "-c", code], timeout=TIMEOUT).returncode != 0
        assert len(list(tmp_path.glob(".killed.parquet.parts/part-*.parquet"))) == parts
        assert not out.exists()
    steps = []
    write(out, progress=lambda done, of: steps.append((done, of)))
    assert steps == [(CASES, CASES)]  # the last part alone was computed
    assert out.read_bytes() == expected.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_several_processes_write_the_same_table(whole, phantoms, small, tmp_path):
    out = tmp_path / "table.parquet"
    write_embeddings(DataSetCases(phantoms), small, out, processes=2)
    table, expected = pd.read_parquet(out), pd.read_parquet(whole)
    np.testing.assert_allclose(np.stack(table["embedding"]), np.stack(expected["embedding"]), atol=1e-6)
    pd.testing.assert_frame_equal(table.drop(columns="embedding"), expected.drop(columns="embedding"))


def test_embeddings_in_bfloat16_are_of_unit_length_and_about_the_same(whole, phantoms, small, tmp_path):
    out = tmp_path / "table.parquet"
    assert write_embeddings(DataSetCases(phantoms), small, out, bf16=True)["dtype"] == "bfloat16"
    embeddings, expected = (np.stack(pd.read_parquet(file)["embedding"]) for file in (out, whole))
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert (embeddings * expected).sum(1).min() > 0.99


def test_groups_of_rows_do_not_follow_the_parts(monkeypatch, whole, phantoms, small, tmp_path):
    monkeypatch.setattr(embedding_tables, "_ROWS_PER_GROUP", 10)
    out = tmp_path / "table.parquet"
    write_embeddings(DataSetCases(phantoms), small, out)
    groups = pq.ParquetFile(out).metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [10, 10, 10, CASES - 30]
    pd.testing.assert_frame_equal(pd.read_parquet(out), pd.read_parquet(whole))


def test_a_finished_table_is_kept_and_another_one_is_refused(whole, phantoms, small, tmp_path):
    before = whole.read_bytes()
    assert write_embeddings(DataSetCases(phantoms), small, whole) == read_about(whole)
    with pytest.raises(ValueError, match=r"holds another table \(level differ\): give another name"):
        write_embeddings(DataSetCases(phantoms), small, whole, "scan")
    with pytest.raises(ValueError, match=r"\(model, checkpoint, image_processor differ\)"):
        write_embeddings(DataSetCases(phantoms), MODEL, whole)
    assert whole.read_bytes() == before
    other = tmp_path / "scores.parquet"
    pd.DataFrame({"case_id": ["a"]}).to_parquet(other)
    with pytest.raises(ValueError, match="is no table of embeddings"):
        write_embeddings(DataSetCases(phantoms), small, other)


def test_what_a_run_with_other_settings_has_begun_is_not_continued(phantoms, small, tmp_path):
    out = tmp_path / "table.parquet"

    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_embeddings(DataSetCases(phantoms), small, out, progress=interrupt)
    with pytest.raises(ValueError, match=r"of another table \(split differ\).*delete that folder"):
        write_embeddings(DataSetCases(phantoms, "test"), small, out)


def test_the_cases_of_an_archive_have_pseudonyms_and_a_bad_one_stops_nothing(radfm, archive, small, tmp_path):
    out, links = tmp_path / "table.parquet", tmp_path / "links.csv"
    for file in examples.folder("lung").iterdir():  # of another patient
        shutil.copy(file, archive / "Doe^Jane knees" / f"Roe^{file.name}")
    command = ("embed", archive, "--archive", "--model", small, "--out", out, "--links", links)
    status, printed, error = radfm(*command)
    assert status == 0
    assert "2 cases, 2 rows of 32 numbers" in " ".join(printed.split())
    assert "Doe^Jane.txt: has no readable scan: a file is not an image format" in error
    assert "Doe^Jane knees: 1 file: a file belongs to another patient" in error

    table, about = pd.read_parquet(out), read_about(out)
    names = {row["pseudonym"]: row["name"] for row in csv.DictReader(links.open())}
    assert [names[case_id] for case_id in table["case_id"]] == ["Doe^Jane gallbladder", "Doe^Jane knees"]
    assert [names[case_id] for case_id in about["left_out"]] == ["Doe^Jane.txt"]
    assert [names[case_id] for case_id in about["not_read"]] == ["Doe^Jane knees"]
    model, processor = RadFMForDiagnosis.from_pretrained(small).eval(), RadFMProcessor.from_pretrained(small)
    with torch.inference_mode():
        for case_id, embedding in zip(table["case_id"], table["embedding"], strict=True):
            batch = processor(cases=[read_case(archive / names[case_id])])
            np.testing.assert_array_equal(embedding, model.get_case_features(**batch)[0].numpy())

    everything = table.drop(columns="embedding").to_json() + json.dumps(about)
    for private in ("Doe", "Jane", "Roe", "hospital", str(tmp_path)):
        assert private not in everything
    assert not list(tmp_path.glob(".*"))  # the key of the pseudonyms is gone
    status, _, error = radfm(*command)
    assert status == 1
    assert "cannot be linked again" in error


def test_the_pseudonyms_of_one_key_are_the_same_in_all_tables(radfm, archive, small, tmp_path):
    (tmp_path / "key").write_text("a secret that nobody guesses")
    ids = {}
    for level, key in (("case", ["--key", tmp_path / "key"]), ("scan", ["--key", tmp_path / "key"]), ("slice", [])):
        out = tmp_path / f"{level}.parquet"
        assert radfm("embed", archive, "--archive", "--model", small, "--level", level, "--out", out, *key)[0] == 0
        ids[level] = set(pd.read_parquet(out)["case_id"])
    assert ids["case"] == ids["scan"]
    assert not ids["case"] & ids["slice"]


def test_a_damaged_file_of_a_data_set_takes_only_its_own_cases(phantoms, small, tmp_path):
    data, out = shutil.copytree(phantoms, tmp_path / "data"), tmp_path / "table.parquet"
    (data / "scans" / "data-00001.arrow").write_bytes(b"\0" * 1000)
    about = write_embeddings(DataSetCases(data), small, out)
    assert about["cases"] == 20
    assert len(about["left_out"]) == CASES - 20
    assert set(about["left_out"].values()) == {
        "scans/data-00001.arrow is damaged: prepare the data set again, or copy it again"
    }
    assert len(pd.read_parquet(out)) == 20


def test_a_history_that_names_the_disorders_changes_no_embedding(phantoms, tmp_path):
    """A probe on embeddings that had read the answer would find it again."""
    torch.manual_seed(0)
    layer = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = RadFMForDiagnosis(
        RadFMConfig(
            vision_config={"tower": "test_resnet", "image_size": 48},
            scan_config=layer,
            case_config=layer,
            text_config={"model_type": "bert", "hidden_size": 32, **layer},
            hidden_size=32,
            projection_dim=32,
            use_history=True,
        )
    ).eval()
    processor = processor_for(model.config)
    assert processor.use_history
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    write_embeddings(DataSetCases(phantoms, "test"), tmp_path / "model", tmp_path / "table.parquet")
    processor.use_history = False
    with torch.inference_mode():
        expected = torch.cat([model.get_case_features(**processor(cases=[case])) for case in load(phantoms, "test")])
    table = pd.read_parquet(tmp_path / "table.parquet")
    np.testing.assert_array_equal(np.stack(table["embedding"]), expected.numpy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DATA", "--out", "table.csv"], "--out writes a Parquet file"),
        (["DATA", "--out", "t.parquet", "--level", "voxel"], "no level 'voxel': there are case, scan, slice"),
        (["DATA", "--out", "t.parquet", "--archive"], "is a data set: leave out --archive"),
        (["DATA", "ARCHIVE", "--out", "t.parquet"], "is a data set: give it alone"),
        (["DATA", "--out", "t.parquet", "--split", "trian"], "unknown split 'trian'"),
        (["ARCHIVE", "--out", "t.parquet", "--split", "test"], "is no data set that radfm prepare made"),
        (["ARCHIVE", "--out", "t.parquet", "--modality", "telepathy"], "telepathy"),
        (["gone/", "--out", "t.parquet"], "no such file or folder"),
        (["ARCHIVE/Doe^Jane.txt", "--out", "t.parquet"], "none of 1 cases could be embedded: has no readable scan"),
        (["ARCHIVE/Doe^Jane.txt", "--archive", "--out", "t.parquet"], "is no folder: an archive is a folder"),
        (["DATA", "--out", "t.parquet", "--model", "gone"], "no such folder. --model takes"),
    ],
)
def test_invalid_input_ends_in_one_line(radfm, phantoms, small, archive, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    arguments = [part.replace("DATA", str(phantoms)).replace("ARCHIVE", str(archive)) for part in arguments]
    status, _, error = radfm("embed", "--model", small, *arguments)
    assert status == 1
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "t.parquet").exists()
