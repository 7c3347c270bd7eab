"""From a source to a data set: what is in it, what is left out, and that a killed run ends as one that was not."""

import hashlib
import os
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from making import picture, series, smooth, table
from PIL import Image, ImageDraw, ImageFont

from radfm import RadFMConfig, RadFMForDiagnosis, starting_points
from radfm.data_prep import load
from radfm.data_prep.batches.case_dataset import CaseDataset, step_loader
from radfm.data_prep.batches.sampling import StepSampler
from radfm.data_prep.finish import vocabulary_of
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.pseudonyms import Pseudonyms
from radfm.data_prep.sources.manifest import Manifest
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.data_prep.splits import assign_folds, assign_splits
from radfm.data_prep.tables import count_rows
from radfm.knowledge.disorders import link
from radfm.train.diagnosis_config import DataSection
from tests.waiting import TIMEOUT, wait_until

OPEN = Pseudonyms(None)


def manifest(folder: Path, rows: list[dict]) -> Manifest:
    return Manifest(table(folder / "cases.csv", rows), OPEN)


def contents(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("phantoms") / "set"
    prepare(Phantoms(24, seed=3, size=48), out, Settings(size=48, cases_per_shard=5))
    return out


# what is in it


def test_a_data_set_gives_back_the_cases_that_went_in(tmp_path):
    picture(tmp_path / "1.png", 1, side=100)
    series(tmp_path / "ct", slices=4, seed=5)
    about = {"case": "7", "patient": "P", "disorders": "Pneumonia", "history": "cough", "age": "40", "sex": "F"}
    rows = [about | {"path": "1.png", "modality": "X-ray", "plane": "PA"}, about | {"path": "ct", "modality": ""}]
    record = prepare(manifest(tmp_path, rows), tmp_path / "out", Settings(size=64))
    assert record["counts"]["files"] == {"in": 5, "out": 5, "rejected": 0}
    (case,) = load(tmp_path / "out")
    assert (case.case_id, case.patient_id, case.history, case.disorders) == ("7", "P", "cough", ["Pneumonia"])
    xray, ct = case.scans
    assert (xray.pixels.shape, xray.pixels.dtype, xray.modality, xray.plane) == ((1, 64, 64), np.uint8, "X-ray", "PA")
    assert (ct.pixels.shape, ct.pixels.dtype, ct.spacing_mm) == ((4, 64, 64), np.float16, (5.0, 1.0, 1.0))
    hounsfield = smooth(5).astype(np.int16) * 8 - 1024
    assert np.abs(ct.pixels[0].astype(np.float32) - hounsfield).max() <= 1
    assert load(tmp_path / "out").vocabulary[0].icd10cm == link("Pneumonia").codes


def test_labelled_cases_do_not_say_what_they_have(tmp_path):
    histories = {
        "Pulmonary embolism (PE)": (
            "Known emboli of both lungs, PE; pe teacher, 40",
            "Known of both lungs, ; pe teacher, 40",
        ),
        "SARCOIDOSIS, abdomen": ("Sarcoidosis", None),
        "Fibrous Dysplasia": ("Pain since a fall.", "Pain since a fall."),
    }
    rows = [
        {"path": picture(tmp_path / f"{i}.png", i).name, "case": f"c{i}", "patient": f"p{i}", "modality": "X-ray"}
        | {"disorders": disorder, "history": history}
        for i, (disorder, (history, _)) in enumerate(histories.items())
    ]
    prepare(manifest(tmp_path, rows), tmp_path / "out", Settings(size=64))
    whole = {case.disorders[0]: case.history for case in load(tmp_path / "out")}
    hidden = {case.disorders[0]: case.history for case in load(tmp_path / "out", labelled=True)}
    assert whole == {disorder: history for disorder, (history, _) in histories.items()}
    assert hidden == {disorder: history for disorder, (_, history) in histories.items()}


def test_pixels_are_views_of_the_file_and_cannot_be_written(phantoms):
    scan = load(phantoms)[0].scans[0]
    assert not scan.pixels.flags.owndata
    assert not scan.pixels.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        scan.pixels[0] = 0


def test_datasets_loads_the_tables(phantoms):
    tables = load_from_disk(str(phantoms))
    cases = load(phantoms)
    assert set(tables) == {"cases", "scans", "truth"}
    assert tables["cases"]["case_id"][:] == [row["case_id"] for row in cases.rows]
    row = tables["scans"][3]
    pixels = np.frombuffer(row["pixels"], row["dtype"]).reshape(row["shape"])
    assert np.array_equal(pixels, cases.scan(3).pixels)
    assert len(tables["scans"]) == sum(len(row["scan_rows"]) for row in cases.rows)


def test_masks_of_phantoms_fit_their_scans(phantoms):
    cases = load(phantoms)
    seen = 0
    for index, row in enumerate(cases.rows):
        for scan, number in zip(cases[index].scans, row["scan_rows"], strict=True):
            for disorder, mask in cases.masks(number).items():
                assert disorder in row["disorders"]
                assert mask.shape == scan.pixels.shape[:3]
                assert mask.any()
                seen += 1
    assert seen > 10


def test_packed_batches_train_a_model(phantoms, tiny_config):
    cases = load(phantoms, "train", labelled=True)
    model = RadFMForDiagnosis(RadFMConfig(**tiny_config, head="mlp", disorders=cases.vocabulary.names))
    data = CaseDataset(cases, starting_points.processor_for(model.config))
    rows = []
    for batch in step_loader(data, StepSampler(data.slice_counts, data.labels, slices=300, seed=1), workers=1):
        assert int(batch["slices_per_scan"].sum()) <= 300
        rows += batch.pop("case_rows").tolist()
    assert sorted(rows) == list(range(len(cases)))
    out = model(**batch)
    assert out.logits.shape == batch["labels"].shape
    assert torch.isfinite(out.loss)


def test_a_data_set_of_another_folder_or_split_is_refused(tmp_path, phantoms):
    with pytest.raises(FileNotFoundError, match="run radfm prepare"):
        load(tmp_path)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        load(phantoms, "dev")
    with pytest.raises(ValueError, match="another data set"):
        prepare(Phantoms(25, seed=3, size=48), phantoms, Settings(size=48, cases_per_shard=5))


# what is left out


def test_files_that_are_not_scans_are_rejected_each_with_its_reason(tmp_path):
    picture(tmp_path / "good.png", 1)
    flat = np.full((64, 64), 7, np.uint8)
    black = np.zeros((64, 64), np.uint8)
    black[30, 30:33] = 200
    for name, pixels in {"flat": flat, "black": black, "tiny": smooth(1, 8)}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    (tmp_path / "text.png").write_text("not a picture")
    names = ("good", "flat", "black", "tiny", "cut", "text")
    rows = [{"case": name, "path": f"{name}.png", "modality": "X-ray", "disorders": "Asthma"} for name in names]
    record = prepare(manifest(tmp_path, rows), tmp_path / "out", Settings(size=64))
    assert record["counts"]["cases"] == {"in": 6, "out": 1, "rejected": 5}
    rejected = (tmp_path / "out" / "rejected.csv").read_text()
    for name, reason in {"flat": "is constant", "black": "is mostly black", "tiny": "too small"}.items():
        assert f"scan,{name}.png,{name}," in rejected
        assert reason in rejected
    assert rejected.count("file,") == 2
    assert [case.case_id for case in load(tmp_path / "out")] == ["good"]


def test_codes_with_typos_are_listed_and_the_rest_is_kept(tmp_path):
    picture(tmp_path / "1.png")
    rows = [{"case": "1", "path": "1.png", "modality": "CT", "disorders": "Gout; Asthma", "icd10cm": "X99.77; j45"}]
    record = prepare(manifest(tmp_path, rows), tmp_path / "out", Settings(size=64))
    assert record["codes_not_in_icd10cm"] == ["X99.77"]
    vocabulary = load(tmp_path / "out").vocabulary
    assert [vocabulary.find(name).icd10cm for name in ("Asthma", "Gout")] == [["J45"], link("Gout").codes]


def test_modality_and_plane_are_guessed_only_where_they_are_not_stated_and_are_marked(tmp_path):
    picture(tmp_path / "knee_MRI_sagittal.png", 1)
    picture(tmp_path / "other.png", 2)
    rows = [
        {"case": "1", "path": "knee_MRI_sagittal.png", "modality": "", "disorders": "Gout"},
        {"case": "2", "path": "knee_MRI_sagittal.png", "modality": "CT", "disorders": "Gout"},
        {"case": "3", "path": "other.png", "modality": "", "disorders": "Gout"},
    ]
    prepare(manifest(tmp_path, rows), tmp_path / "out", Settings(size=64))
    cases = load(tmp_path / "out")
    origins = [
        (a["modality"], a["modality_from"], a["plane"], a["plane_from"]) for a in map(cases.scan_header, range(3))
    ]
    assert origins == [
        ("MRI", "guess", "sagittal", "guess"),
        ("CT", "source", "sagittal", "guess"),
        (None, "unknown", None, "unknown"),
    ]


def test_scans_with_warnings_are_kept_listed_and_counted_by_kind(tmp_path):
    picture(tmp_path / "brain_CT.png", 1)
    picture(tmp_path / "b.png", 2)
    rows = [
        {"case": "1", "path": "brain_CT.png", "modality": "", "disorders": "Gout"},  # its name says CT
        {"case": "2", "path": "b.png", "modality": "CT", "disorders": "Gout"},
        {"case": "3", "path": "b.png", "modality": "MRI", "disorders": "Gout"},
        {"case": "4", "path": "b.png", "modality": "", "disorders": "Gout"},
    ]
    record = prepare(manifest(tmp_path, rows), tmp_path / "out", Settings(size=64))
    lines = (tmp_path / "out/warnings.csv").read_text().splitlines()
    assert lines[0] == "case_id,scan,source,warning"
    warnings = [line.split(",", 3)[1:] for line in lines[1:]]
    assert [(row, source) for row, source, _ in warnings] == [("0", "brain_CT.png"), ("1", "b.png"), ("3", "b.png")]
    assert ["8-bit" in text for *_, text in warnings] == [True, True, False]
    assert "the modality is unknown" in warnings[2][2]
    assert record["scans_with_warnings"] == 3
    report = (tmp_path / "out/report.html").read_text()
    assert '<td class="n">2</td><td>CT values are 8-bit grey levels' in report
    assert "3 scans have a warning" in report


def test_text_at_the_borders_is_warned_of(tmp_path):
    clean = Image.fromarray(smooth(3, 256))
    clean.save(tmp_path / "clean.png")
    marked = clean.copy()
    draw = ImageDraw.Draw(marked)
    draw.rectangle((0, 0, 255, 20), fill=0)
    draw.text((4, 4), "DOE JOHN 1961-03-04 ID 4711", fill=255, font=ImageFont.load_default(12))
    marked.save(tmp_path / "marked.png")
    rows = [{"case": n, "path": f"{n}.png", "modality": "X-ray", "disorders": "Gout"} for n in ("clean", "marked")]
    record = prepare(manifest(tmp_path, rows), tmp_path / "out", Settings())
    cases = load(tmp_path / "out")
    assert [cases.scan_header(i)["text_in_pixels"] for i in range(2)] == [None, "writing at its borders"]
    assert record["text_in_pixels"] == 1


# splits and duplicates


def test_the_same_picture_in_two_splits_is_reported(tmp_path):
    rows = []
    for i in range(6):
        picture(tmp_path / f"{i}.png", i, side=200)
        rows.append({"case": str(i), "path": f"{i}.png", "modality": "CT", "disorders": "Gout", "split": "train"})
    copy = Image.open(tmp_path / "4.png").resize((150, 150))
    copy.save(tmp_path / "copy.jpg", quality=60)
    rows.append({"case": "copy", "path": "copy.jpg", "modality": "CT", "disorders": "Gout", "split": "test"})
    record = prepare(manifest(tmp_path, rows), tmp_path / "out", Settings())
    assert record["groups_of_duplicates_across_splits"] == 1
    lines = (tmp_path / "out" / "duplicates.csv").read_text().splitlines()[1:]
    assert [line.split(",")[1:3] for line in lines] == [["1", "4"], ["1", "copy"]]


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.integers(0, 400).map(str), st.lists(st.sampled_from("abcdefgh"), max_size=3), min_size=30),
    st.integers(0, 5),
)
def test_splits_keep_patients_whole_and_disorders_in_proportion(labels, seed):
    official = dict.fromkeys(sorted(labels)[:3], "test")
    splits = assign_splits(labels, official, (0.6, 0.2, 0.2), seed)
    assert splits.keys() == labels.keys()
    assert all(splits[patient] == "test" for patient in official)
    assert splits == assign_splits(dict(reversed(labels.items())), official, (0.6, 0.2, 0.2), seed)
    for label in "abcdefgh":
        bearers = [splits[patient] for patient, names in labels.items() if label in names and patient not in official]
        if len(bearers) >= 15:
            assert 0.3 < bearers.count("train") / len(bearers) < 0.9
        if len(bearers) == 1 and not any(label in labels[patient] for patient in official):
            assert len([p for p, names in labels.items() if label in names]) == 1


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.integers(0, 400).map(str), st.lists(st.sampled_from("abcdefgh"), max_size=1), min_size=30),
    st.integers(2, 6),
)
def test_folds_have_equal_parts_of_each_disorder(labels, count):
    folds = assign_folds(labels, count)
    assert folds == assign_folds(dict(reversed(labels.items())), count)
    assert folds.keys() == labels.keys()
    for label in "abcdefgh":
        bearers = [folds[patient] for patient, names in labels.items() if label in names]
        sizes = [bearers.count(number) for number in range(count)]
        assert max(sizes) - min(sizes) <= 1


def test_a_fold_is_the_same_whatever_is_left_out_and_leaves_the_test_split_alone(tmp_path):
    rows = []
    for i in range(24):
        picture(tmp_path / f"{i}.png", i)
        row = {"case": str(i), "patient": f"P{i // 2}", "path": f"{i}.png", "modality": "CT"}
        row |= {"disorders": ("Gout", "Rickets", "unknown", "")[i % 4], "collection": "ABC"[i // 8]}
        rows.append(
            row | {"publish": str(int(i % 5 > 0)), "split": "test" if i < 4 else ("train", "validation")[i % 4 == 2]}
        )
    prepare(manifest(tmp_path, rows), tmp_path / "out", Settings(size=64))

    def ids(split: str, fold: str, **options) -> set[str]:
        return {row["case_id"] for row in load(tmp_path / "out", split, fold=fold, **options).rows}

    validated = [ids("validation", f"{number}/3") for number in range(3)]
    assert set.union(*validated) == {str(i) for i in range(4, 24)}
    assert sum(map(len, validated)) == 20
    for number, of_fold in enumerate(validated):
        fold = f"{number}/3"
        assert ids("train", fold) == {str(i) for i in range(4, 24)} - of_fold
        assert ids("test", fold) == {"0", "1", "2", "3"}
        section = DataSection(path=str(tmp_path / "out"), fold=number, folds=3)
        assert {row["case_id"] for row in section.load("train").rows} == ids(
            "train", fold, labelled=True, publishable=True
        )
        assert all((str(i) in of_fold) == (str(i ^ 1) in of_fold) for i in range(4, 24))  # two cases of one patient
        for options, left_out in (
            ({"labelled": True}, lambda i: i % 4 == 2),
            ({"publishable": True}, lambda i: i % 5 == 0),
            ({"labelled": True, "without": ["Gout"]}, lambda i: i % 4 in (0, 2)),
        ):
            assert ids("validation", fold, **options) == {case for case in of_fold if not left_out(int(case))}
    for wrong in ("5/5", "0/1", "first", "-1/5"):
        with pytest.raises(ValueError, match=f"there is no fold '{wrong}': write 0/5"):
            load(tmp_path / "out", fold=wrong)


def test_all_cases_of_a_patient_in_two_official_splits_are_test_cases(tmp_path):
    rows = []
    for i, (patient, split) in enumerate([("P", "train"), ("P", "test"), ("Q", "train"), ("R", "")]):
        picture(tmp_path / f"{i}.png", i)
        row = {"case": str(i), "patient": patient, "path": f"{i}.png", "modality": "CT", "disorders": "Gout"}
        rows.append(row | {"split": split})
    record = prepare(manifest(tmp_path, rows), tmp_path / "out", Settings(size=64))
    stored = load(tmp_path / "out").rows
    assert [row["split"] for row in stored[:3]] == ["test", "test", "train"]
    assert [row["split_from"] for row in stored] == ["source"] * 3 + ["drawn"]
    assert record["patients_in_several_official_splits"] == 1


def test_disorders_are_linked_once_and_given_codes_win():
    cases = [
        {"disorders": ["Pneumothorax"], "icd10cm": [[]]},
        {"disorders": ["Pneumothorax", "My finding"], "icd10cm": [[], ["R91.1"]]},
    ]
    vocabulary, bad = vocabulary_of(cases)
    assert [(d.name, d.icd10cm) for d in vocabulary] == [("Pneumothorax", ["J93.9"]), ("My finding", ["R91.1"])]
    assert not bad


# killed, split, repeated


def test_any_number_of_processes_and_machines_write_the_same_bytes(tmp_path, phantoms):
    source, how = Phantoms(24, seed=3, size=48), Settings(size=48, cases_per_shard=5)
    prepare(source, tmp_path / "two", how, processes=2)
    assert prepare(source, tmp_path / "parts", how, part=(1, 2)) is None
    assert prepare(source, tmp_path / "parts", how, part=(0, 2)) is not None
    expected = contents(phantoms)
    assert contents(tmp_path / "two") == expected
    assert contents(tmp_path / "parts") == expected
    assert prepare(source, tmp_path / "parts", how)["counts"]["cases"]["in"] == 24  # done already: nothing is written


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(tmp_path, phantoms):
    out = tmp_path / "killed"
    code = (
        "from radfm.data_prep.prepare import Settings, prepare\n"
        "from radfm.data_prep.sources.phantoms import Phantoms\n"
        f"if __name__ == '__main__': prepare(Phantoms(24, seed=3, size=48), {str(out)!r}, "
        "Settings(size=48, cases_per_shard=5), processes=2)"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    for shards in range(3):  # killed once it has begun, once a shard is written, and once two are
        process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)

        def far_enough(process=process, shards=shards) -> bool:
            written = len(list(out.glob(".work/shard-*.json")))
            return process.poll() is not None or ((out / ".work").is_dir() and written >= shards)

        wait_until(far_enough, TIMEOUT)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run had ended before it was killed"
    subprocess.run([sys.executable, str(script)], check=True)
    assert contents(out) == contents(phantoms)


def test_a_run_that_another_overtakes_ends_as_that_one(tmp_path, phantoms):
    how = Settings(size=48, cases_per_shard=5)

    class Overtaken(Phantoms):
        def read(self, plans):
            if not (tmp_path / "out" / "dataset.json").exists():
                faster = get_context("spawn").Process(
                    target=prepare, args=(Phantoms(24, seed=3, size=48), tmp_path / "out", how)
                )
                faster.start()
                faster.join()
            return super().read(plans)

    assert prepare(Overtaken(24, seed=3, size=48), tmp_path / "out", how)["counts"]["cases"]["in"] == 24
    assert contents(tmp_path / "out") == contents(phantoms)
    assert not (tmp_path / "out" / ".work").exists()


def test_a_count_that_does_not_add_up_stops_the_run(tmp_path, monkeypatch):
    source = Phantoms(4, size=48)
    honest = source.read

    def forgetful(plans):
        for result in honest(plans):
            result.files += 1
            yield result

    monkeypatch.setattr(source, "read", forgetful)
    prepare(source, tmp_path / "out", Settings(size=48))
    assert count_rows(tmp_path / "out", "scans", 0) == sum(len(row["scan_rows"]) for row in load(tmp_path / "out").rows)

    def loses_one(plans):
        return list(honest(plans))[:-1]

    monkeypatch.setattr(source, "read", loses_one)
    with pytest.raises(ValueError, match="shorter"):
        prepare(source, tmp_path / "lost", Settings(size=48))


def test_damage_to_a_finished_shard_is_named(tmp_path, phantoms):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", phantoms, copy], check=True)
    (copy / "scans" / "data-00000.arrow").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"data-00000\.arrow is damaged"):
        load(copy)[0]


def test_withheld_disorders_leave_with_all_their_cases(tmp_path):
    prepare(Phantoms(30, size=32), tmp_path / "data", Settings(size=32))
    whole = load(tmp_path / "data")
    gone = [
        next(row["disorders"][0] for row in whole.rows if len(row["disorders"]) > 1),
        whole.rows[-1]["disorders"][0],
    ]
    rest = load(tmp_path / "data", without=gone)
    assert rest.vocabulary.names == [name for name in whole.vocabulary.names if name not in gone]
    assert [row["case_id"] for row in rest.rows] == [
        row["case_id"] for row in whole.rows if not set(gone) & set(row["disorders"])
    ]
    assert 0 < len(rest) < len(whole)
    for row in rest.rows:
        assert {rest.vocabulary.names[label] for label in row["labels"]} == set(row["disorders"])
    with pytest.raises(ValueError, match="no disorder 'Beetle'"):
        load(tmp_path / "data", without=["Beetle"])
