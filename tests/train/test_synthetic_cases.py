"""Synthetic cases are added to the training split, and the recipe and the card say how many."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from radfm.data_prep import load
from radfm.data_prep.batches.case_dataset import CaseDataset
from radfm.data_prep.batches.sampling import Sample
from radfm.data_prep.joined_cases import JoinedCases
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.processing_radfm import RadFMProcessor
from radfm.publishing.publish import Request, publish
from radfm.train.config import configured
from radfm.train.diagnosis import train
from radfm.train.diagnosis_config import DataSection, DiagnosisTraining

SIZE = 32


def knees(folder: Path, cases: int, seed: int, fractions: tuple[float, float, float]) -> Path:
    prepare(Phantoms(cases, seed, SIZE, "knee"), folder, Settings(size=SIZE, cases_per_shard=5, fractions=fractions))
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    return knees(tmp_path_factory.mktemp("real") / "data", 300, 0, (0.6, 0.4, 0.0))


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory) -> list[Path]:
    """Two synthetic data sets; a few of the cases of the second are in its validation split."""
    folder = tmp_path_factory.mktemp("synthetic")
    return [knees(folder / "first", 40, 1, (1.0, 0.0, 0.0)), knees(folder / "second", 60, 2, (0.5, 0.5, 0.0))]


@pytest.fixture(scope="module")
def joined(real, synthetic) -> JoinedCases:
    cases = DataSection(path=str(real), synthetic=[str(folder) for folder in synthetic]).load("train")
    assert isinstance(cases, JoinedCases)
    return cases


def test_joined_cases_are_those_of_their_data_sets_with_one_vocabulary(real, synthetic, joined):
    parts = [load(folder, "train") for folder in (real, *synthetic)]
    assert len(joined) == sum(map(len, parts)) > len(parts[0])
    assert joined.vocabulary.names == parts[0].vocabulary.names
    row = 0
    for part in parts:
        for i, case in enumerate(part):
            same = joined[row]
            assert (same.case_id, same.disorders) == (case.case_id, case.disorders)
            names = {joined.vocabulary.names[label] for label in np.flatnonzero(joined.labels(row))}
            assert names == set(case.disorders)
            assert joined.slices(row) == part.slices(i)
            for ours, theirs in zip(same.scans, case.scans, strict=True):
                assert np.array_equal(ours.pixels, theirs.pixels)
            scan_rows = joined.rows[row]["scan_rows"]
            assert {d for scan in scan_rows for d in joined.masks(scan)} == {
                d for scan in part.rows[i]["scan_rows"] for d in part.masks(scan)
            }
            shown = [set(np.array(of.vocabulary.names)[of.located(at)]) for of, at in ((joined, row), (part, i))]
            assert shown[0] == shown[1]
            row += 1
    again = pickle.loads(pickle.dumps(joined))
    assert again.rows == joined.rows
    assert np.array_equal(again[-1].scans[0].pixels, joined[-1].scans[0].pixels)


def test_a_batch_of_joined_cases_is_that_of_the_same_cases_alone(synthetic, joined):
    processor = RadFMProcessor()
    processor.image_processor.size = SIZE
    last = load(synthetic[1], "train", labelled=True)
    batches = [CaseDataset(cases, processor).__getitems__([Sample(len(cases) - 1)]) for cases in (joined, last)]
    assert np.array_equal(*(batch["pixel_values"] for batch in batches))
    names = [
        {cases.vocabulary.names[row] for row in batch["labels"][0].nonzero().flatten().tolist()}
        for cases, batch in zip((joined, last), batches, strict=True)
    ]
    assert names[0] == names[1]


def test_synthetic_cases_are_in_the_training_split_alone(real, synthetic):
    section = DataSection(path=str(real), synthetic=[str(synthetic[0])])
    assert [row["case_id"] for row in section.load("validation").rows] == [
        row["case_id"] for row in load(real, "validation").rows
    ]


def test_a_generator_of_other_data_is_said_in_one_line_and_few_shots_are_refused(real, synthetic, tmp_path, capsys):
    section = DataSection(path=str(real), synthetic=[str(synthetic[0])])
    section.load("train")
    assert capsys.readouterr().err == ""  # phantoms are of no generator
    for derived_from in (load(real).record["fingerprint"], "another"):
        marked = tmp_path / derived_from
        shutil.copytree(synthetic[0], marked)
        record = json.loads((marked / "dataset.json").read_text())
        record["synthetic"] = {"trained_on": {"fingerprint": "latents", "derived_from": derived_from}}
        (marked / "dataset.json").write_text(json.dumps(record))
        DataSection(path=str(real), synthetic=[str(marked)]).load("train")
        error = capsys.readouterr().err
        assert error.count("\n") == (derived_from == "another")
        assert ("did not learn from" in error) == (derived_from == "another")
    with pytest.raises(ValueError, match=r"data\.shots chooses a few training cases"):
        configured(DiagnosisTraining, {"data": {"path": str(real), "synthetic": [str(synthetic[0])], "shots": 1}})


def test_withheld_disorders_are_withheld_from_the_synthetic_cases_too(real, synthetic, joined):
    name = load(synthetic[0]).vocabulary.names[0]
    section = DataSection(path=str(real), synthetic=[str(synthetic[0])], withheld=[name])
    rows = section.load("train").rows
    assert rows
    assert not any(name in row["disorders"] for row in rows)
    assert len(rows) < len(joined)


def test_what_cannot_be_joined_is_refused(real, synthetic, tmp_path):
    knee, breast = load(synthetic[0]), tmp_path / "breast"
    prepare(Phantoms(40, 0, SIZE, "breast"), breast, Settings(size=SIZE, fractions=(1.0, 0.0, 0.0)))
    first = load(breast).vocabulary.names[0]
    with pytest.raises(ValueError, match=f"breast has cases of '{first}', which is no disorder of"):
        JoinedCases(load(real, "train"), load(breast, "train"))
    knee.record["latents"] = {"autoencoder": "0" * 16}
    with pytest.raises(ValueError, match="do not hold latents of the same autoencoder"):
        JoinedCases(load(real, "train"), knee)
    knee.record["source"] = "manifest"
    with pytest.raises(ValueError, match="is not marked as synthetic"):
        JoinedCases(load(real, "train"), knee)
    with pytest.raises(ValueError, match="leave out one of the two"):
        configured(DiagnosisTraining, {"data": {"path": str(real), "synthetic": [str(synthetic[0])], "fold": 0}})


def test_recipe_and_card_say_how_many_synthetic_cases_a_model_learned_from(real, synthetic, tmp_path):
    """With a frozen tower, whose features of each scan have to be those of its own data set."""
    layer = {"num_hidden_layers": 0}
    tower = {"family": "resnet", "tower": "test_resnet", "image_size": SIZE}
    sections = {
        "output": str(tmp_path / "run"),
        "data": {"path": str(real), "synthetic": [str(folder) for folder in synthetic]},
        "model": {
            "head": "mlp",
            "frozen": "tower",
            "architecture": {"vision_config": tower, "scan_config": layer, "case_config": layer, "hidden_size": 32},
        },
        "objectives": {"weights": {"key_slice": 0}, "label_smoothing": 0},
        "augmentation": {},
        "training": {"max_steps": 2, "save_steps": 2, "eval_steps": 2, "report_to": [], "disable_tqdm": True},
    }
    run = train(configured(DiagnosisTraining, sections))
    recipe = json.loads((run / "radfm_diagnosis.json").read_text())
    alone, added = load(real, "train"), [load(folder, "train") for folder in synthetic]
    assert recipe["cases"]["train"] == len(alone) + sum(map(len, added))
    assert (recipe["data"]["cases"], recipe["data"]["fingerprint"]) == (len(alone), alone.record["fingerprint"])
    assert [(one["cases"], one["fingerprint"]) for one in recipe["data"]["added_synthetic"]] == [
        (len(part), part.record["fingerprint"]) for part in added
    ]
    assert recipe["config"]["data"]["synthetic"] == ["first", "second"]

    publish(Request(run, "me/knees"), tmp_path / "published", upload=False)
    card = (tmp_path / "published" / "README.md").read_text()
    assert f"| synthetic cases added | {len(added[1])} of radfm phantoms, `{added[1].fingerprint}` |" in card
