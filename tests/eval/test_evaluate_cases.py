"""From a checkpoint and a data set to figures, by function and by command."""

import csv
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from radfm import RadFMConfig, RadFMForDiagnosis, RadFMProcessor
from radfm.data_prep import load
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.data_prep.tables import write_rows
from radfm.eval.diagnosis import compare
from radfm.eval.localisation import localise
from radfm.eval.predict import Evaluation, score
from radfm.eval.score_tables import recipe_of
from radfm.eval.scores import Scores
from radfm.starting_points import embed_texts, processor_for


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    prepare(Phantoms(40, size=48), folder, Settings(size=48, cases_per_shard=20, fractions=(0.5, 0.0, 0.5)))
    return folder


def save_model(folder: Path, disorders=(), seed: int = 0, **changes) -> Path:
    torch.manual_seed(seed)
    layer = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"model_type": "bert", "hidden_size": 32, **layer}
    config = {
        "vision_config": {"tower": "test_resnet", "image_size": 48},
        "scan_config": layer,
        "case_config": layer,
        "text_config": text,
        "hidden_size": 32,
        "projection_dim": 32,
        "disorders": list(disorders),
    }
    model = RadFMForDiagnosis(RadFMConfig(**config | changes)).eval()
    processor = processor_for(model.config)
    processor.image_processor.max_slices = 3
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "first")


@pytest.fixture(scope="session")
def table(checkpoint, phantoms) -> Scores:
    return score(checkpoint, Evaluation(phantoms))


def toy(**changes) -> Scores:
    """Four cases, three disorders; Pneumothorax and Tension pneumothorax are one category."""
    given = {
        "scores": np.array([[2, 0, 1], [0, 3, 1], [1, 1, 2], [0, 0, 0]], np.float32),
        "names": ["Pneumothorax", "Tension pneumothorax", "Gout"],
        "icd10cm": [["J93.9"], ["J93.0"], []],
        "case_ids": ["a", "b", "c", "d"],
        "patients": ["p", "q", "r", "r"],
        "disorders": [["Pneumothorax"], ["Tension pneumothorax", "Pneumothorax"], ["Gout", "Rickets"], []],
        "training": [[0], [0, 1], [1], [2]],
        "attributes": {"sex": [["F"], ["M"], [], []]},
        "about": {"model": "toy", "data": "0", "split": "test"},
    }
    return Scores(**given | changes)


def test_a_data_set_is_scored_case_by_case_by_the_names_of_its_disorders(table, checkpoint, phantoms):
    cases = load(phantoms, "test")
    model, processor = RadFMForDiagnosis.from_pretrained(checkpoint), RadFMProcessor.from_pretrained(checkpoint)
    model.set_disorders(cases.vocabulary.names, embed_texts(model, processor, cases.vocabulary.names).clone())
    with torch.no_grad():
        logits = model(**processor(cases=[cases[3]])).logits
    np.testing.assert_allclose(table.scores[3], logits[0].numpy(), atol=1e-4)
    assert table.names == cases.vocabulary.names
    assert table.case_ids == [row["case_id"] for row in cases.rows]
    assert np.array_equal(table.labels, np.stack([cases.labels(i) for i in range(len(cases))]))
    assert (
        table.training_counts.tolist()
        == np.sum([load(phantoms, "train").labels(i) for i in range(len(load(phantoms, "train")))], axis=0).tolist()
    )
    assert table.about["checkpoint"] == hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert table.about["data"] == cases.record["fingerprint"]
    assert table.attributes["modality"][3] == sorted({scan.modality for scan in cases[3].scans})
    known = {"modality", "body part", "scans", "folder", "collection", "age", "sex", "site", "scanner", "year"}
    assert set(table.attributes) == known


def test_names_that_the_data_does_not_have_can_be_scored_beside(checkpoint, phantoms):
    vocabulary = load(phantoms).vocabulary
    table = score(checkpoint, Evaluation(phantoms, names=["Gaucher disease", vocabulary.names[0].upper()], bf16=True))
    assert table.names == ["Gaucher disease", vocabulary.names[0]]
    assert table.icd10cm[1] == vocabulary[0].icd10cm
    assert not table.labels[:, 0].any()
    assert any(len(names) for names in table.disorders)


def test_an_mlp_head_is_matched_by_name_and_missing_disorders_are_reported(phantoms, tmp_path):
    names = load(phantoms).vocabulary.names
    mlp = save_model(tmp_path / "mlp", names[::-1], head="mlp", text_config=None)
    table = score(mlp, Evaluation(phantoms))
    model, processor = RadFMForDiagnosis.from_pretrained(mlp), RadFMProcessor.from_pretrained(mlp)
    with torch.no_grad():
        logits = model(**processor(cases=[load(phantoms, "test")[0]])).logits[0]
    np.testing.assert_allclose(table.scores[0], logits.numpy()[::-1], atol=1e-4)
    fewer = save_model(tmp_path / "fewer", names[1:], head="mlp", text_config=None)
    with pytest.raises(ValueError, match=f"was not trained on {names[0]}"):
        score(fewer, Evaluation(phantoms))


def test_patients_of_several_splits_are_refused_with_the_list(checkpoint, phantoms, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    rows = load(data).rows
    train, test = (next(row for row in rows if row["split"] == split) for split in ("train", "test"))
    test["patient_id"] = train["patient_id"]
    write_rows(data, "cases", rows)
    with pytest.raises(ValueError, match=f"1 patients of the split 'test' are in other splits.*{train['patient_id']}"):
        score(checkpoint, Evaluation(data))
    with pytest.raises(ValueError, match="1 patients of the split 'test' are in other splits"):
        localise(checkpoint, Evaluation(data))


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("radfm_diagnosis.json", {"data": {"fingerprint": "f1"}, "config": {"data": {"withheld": ["Gout"]}}}),
        (
            "radfm_finetune.json",
            {"key": {"data": "f1", "config": {"data": {"withheld": ["Gout"]}}}, "cases": {"train": 3}},
        ),
    ],
)
def test_a_checkpoint_records_the_data_set_it_was_trained_on_last(name, recipe, tmp_path):
    assert recipe_of(tmp_path) == {}
    (tmp_path / name).write_text(json.dumps(recipe))
    assert recipe_of(tmp_path).items() >= {"trained_on": "f1", "withheld": ["Gout"]}.items()


def test_splits_without_cases_and_folders_without_models_are_refused(checkpoint, phantoms, tmp_path):
    with pytest.raises(ValueError, match="no labelled case in its split 'validation'"):
        score(checkpoint, Evaluation(phantoms, "validation"))
    with pytest.raises(ValueError, match="is no checkpoint"):
        score(tmp_path, Evaluation(phantoms))


def test_a_table_is_read_as_it_was_written(table, tmp_path):
    loaded = Scores.load(table.save(tmp_path / "table.parquet"))
    assert np.array_equal(loaded.scores, table.scores)
    for field in dataclasses.fields(Scores):
        if field.name != "scores":
            assert getattr(loaded, field.name) == getattr(table, field.name)
    (tmp_path / "other.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match="is no table of scores"):
        Scores.load(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["Gout"]}, "for 4 cases and 1 disorders"),
        ({"names": ["Gout", "Gout", "Flu"]}, "the disorder 'Gout' comes twice"),
        ({"patients": ["p"]}, "patients of 1 cases"),
        ({"icd10cm": [[]]}, "1 lists of codes for 3 disorders"),
        ({"scores": np.array([[0, 0, 0]] * 3 + [[0, np.nan, 0]])}, "1 cases have scores that are nan: d"),
    ],
)
def test_tables_that_do_not_match_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        toy(**changes)


def test_codes_have_the_highest_score_and_any_label_of_their_disorders():
    table = toy().at_level("category")
    assert table.names == ["J93 Pneumothorax and air leak"]
    assert table.scores.ravel().tolist() == [2, 3, 1, 0]
    assert table.labels.ravel().tolist() == [True, True, False, False]
    assert table.training_counts.tolist() == [3]  # a case with both counts once
    assert table.about["disorders_without_code"] == 1
    assert toy().at_level("4").names == ["J93.0 Spontaneous tension pneumothorax", "J93.9 Pneumothorax, unspecified"]
    assert toy().at_level("chapter").icd10cm == [["10"]]
    assert toy().at_level("block").icd10cm == [["J90-J94"]]
    with pytest.raises(ValueError, match="no level 'organ'"):
        toy().at_level("organ")
    with pytest.raises(ValueError, match="no disorder has an ICD-10-CM code"):
        toy(icd10cm=[[], [], []]).at_level("category")


def test_ranks_are_computed_for_cases_with_one_diagnosis_only():
    result = compare({"toy": [toy()]}, bootstraps=20)
    assert result["models"]["toy"]["ranking"]["cases"] == 1  # Rickets was not scored, and is a diagnosis all the same
    assert result["models"]["toy"]["ranking"]["top1"]["value"] == 1
    assert result["models"]["toy"]["ranking_unseen"]["cases"] == 0
    unseen = compare({"toy": [toy(training=[[1], [2]])]}, bootstraps=20)["models"]["toy"]["ranking_unseen"]
    assert (unseen["cases"], unseen["median_rank"]["value"]) == (1, 1)


def test_measuring_some_disorders_leaves_the_others_as_rivals():
    result = compare({"toy": [toy()]}, only=["pneumothorax"], bootstraps=20)
    assert result["only"] == ["Pneumothorax"]
    assert result["bands"]["all"] == {"disorders": 1, "measured": 1}
    assert result["models"]["toy"]["macro"]["auc"]["all"]["value"] == pytest.approx(0.625)
    with pytest.raises(ValueError, match="no scores of Measles"):
        compare({"toy": [toy()]}, only=["Measles"])


def test_a_small_set_has_a_head_of_fewer_training_cases():
    result = compare({"toy": [toy()], "again": [toy()]}, least=(2, 1), bootstraps=20)
    counts = [row["training_cases"] for row in result["models"]["toy"]["disorders"]]
    expected = {"head": sum(n >= 2 for n in counts), "body": counts.count(1), "tail": counts.count(0)}
    assert {band: result["bands"][band]["disorders"] for band in expected} == expected
    assert expected["head"]
    assert result["models"]["toy"]["macro"]["auc"]["head"]
    assert result["differences"]["again"]["macro"]["auc"]["head"]["value"] == 0
    with pytest.raises(ValueError, match="not 1 and 2"):
        compare({"toy": [toy()]}, least=(1, 2))


def test_within_groups_a_disorder_is_compared_with_cases_of_the_groups_where_it_occurs():
    parts = toy(attributes={"folder": [["x"], ["y"], ["x"], ["z"]]})
    result = compare({"toy": [parts], "again": [parts]}, within="folder", bootstraps=20)
    areas = [row["auc"] and row["auc"]["value"] for row in result["models"]["toy"]["disorders"]]
    assert areas == [0.5, None, 1.0]  # of a, b and c; of b alone; of a and c
    assert result["bands"]["all"]["measured"] == 2
    assert result["differences"]["again"]["macro"]["auc"]["all"]["value"] == 0
    with pytest.raises(ValueError, match="no attribute 'planet': there are folder"):
        compare({"toy": [parts]}, within="planet")
    with pytest.raises(ValueError, match="of 4 cases that have the same folder"):
        compare({"toy": [toy(attributes={"folder": [["x"], ["y"], ["z"], ["w"]]})]}, within="folder")
    with pytest.raises(ValueError, match="the folder of no case is known"):
        compare({"toy": [toy(attributes={"folder": [[], [], [], []]})]}, within="folder")


def test_the_cases_and_disorders_that_are_measured_can_be_restricted():
    given = toy(attributes={"scans": [["1"], ["2"], ["3 or 4"], ["1"]], "sex": [["F"], ["M"], [], []]})
    result = compare({"toy": [given]}, bootstraps=20, where=["scans!=1"])
    assert (result["cases"], result["patients"], result["where"]) == (2, 2, ["scans!=1"])
    assert result["models"]["toy"]["disorders"][0]["training_cases"] == 2  # training cases are not restricted
    assert given.where(["scans!=1", "sex=M"]).case_ids == ["b"]
    assert given.where(["sex = F"]).scores.tolist() == [[2, 0, 1]]
    assert compare({"toy": [given]}, bootstraps=20, min_cases=2)["only"] == [
        "Pneumothorax"
    ]  # the only one twice in both
    for conditions, message in (
        (["sex"], 'write "collection=NAME"'),
        (["sex=X"], "there is no 'X', there are F, M"),
        (["planet=X"], "no attribute 'planet'"),
        (["sex=F", "sex=M"], "no case meets sex=F and sex=M"),
    ):
        with pytest.raises(ValueError, match=message):
            given.where(conditions)
    with pytest.raises(ValueError, match="no disorder has 3 training cases and as many of 4 cases"):
        compare({"toy": [given]}, min_cases=3)


def test_folds_are_measured_together_each_by_the_model_of_its_fold(radfm, checkpoint, phantoms, tmp_path):
    model = save_model(tmp_path / "model1", seed=1)
    shutil.copytree(checkpoint, tmp_path / "model0")
    options = ("--folds", 2, "--bootstraps", 20)
    status, _, err = radfm(
        "evaluate", phantoms, "--model", f"KE={tmp_path}/model{{fold}}", *options, "--out", tmp_path / "out"
    )
    assert status == 0, err
    joined = Scores.load(tmp_path / "out" / "scores" / "KE.parquet")
    parts = [score(tmp_path / f"model{k}", Evaluation(phantoms, "validation", fold=f"{k}/2")) for k in range(2)]
    np.testing.assert_allclose(joined.scores, np.concatenate([part.scores for part in parts]), atol=1e-5)
    assert sorted(joined.case_ids) == sorted(row["case_id"] for row in load(phantoms, "train", labelled=True).rows)
    assert joined.about["split"] == "2 folds"
    assert joined.training_counts.tolist() == score(model, Evaluation(phantoms)).training_counts.tolist()
    saved = tmp_path / "out" / "scores" / "KE.parquet"
    status, out, _ = radfm("evaluate", phantoms, "--model", saved, *options)
    assert status == 0
    assert "split 2 folds" in out
    for path, message in ((model, "write {fold} in"), (checkpoint, "write {fold} in")):
        status, _, err = radfm("evaluate", phantoms, "--model", path, *options)
        assert status == 1
        assert message in err


def test_a_checkpoint_is_not_measured_on_cases_of_its_training(phantoms, tmp_path):
    model, fingerprint = save_model(tmp_path / "model"), load(phantoms).record["fingerprint"]
    recipe = {"data": {"fingerprint": fingerprint}, "config": {"data": {"fold": 0, "folds": 2}}}
    (model / "radfm_diagnosis.json").write_text(json.dumps(recipe))
    assert score(model, Evaluation(phantoms, "validation", fold="0/2")).about["fold"] == "0/2"
    assert score(model, Evaluation(phantoms)).about["split"] == "test"  # no case of the test split is in a fold
    for evaluation, message in (
        (
            Evaluation(phantoms, "validation", fold="1/2"),
            "was trained with fold 0/2, so it has seen .* of fold 1/2",
        ),
        (Evaluation(phantoms, "all"), "was trained on a part of .*: measure another split"),
    ):
        with pytest.raises(ValueError, match=message):
            score(model, evaluation)


def test_all_cases_of_a_data_set_can_be_measured(checkpoint, phantoms):
    table = score(checkpoint, Evaluation(phantoms, "all"))
    assert table.case_ids == [row["case_id"] for row in load(phantoms, labelled=True).rows]
    assert table.about["split"] == "all"


def test_training_cases_that_were_not_published_are_not_counted_for_a_model_that_left_them_out(phantoms, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    rows = load(data).rows
    left_out = next(row for row in rows if row["split"] == "train" and row["labelled"] and row["labels"])
    left_out["publish"] = False
    write_rows(data, "cases", rows)
    counts = {}
    for publishable in (True, False):
        model = save_model(tmp_path / str(publishable))
        recipe = {"data": {"fingerprint": "other"}, "config": {"data": {"publishable": publishable}}}
        (model / "radfm_diagnosis.json").write_text(json.dumps(recipe))
        counts[publishable] = score(model, Evaluation(data)).training_counts
    assert np.flatnonzero(counts[False] - counts[True]).tolist() == sorted(left_out["labels"])


def test_a_model_that_reads_histories_can_be_shown_images_alone(phantoms, tmp_path):
    reads = save_model(tmp_path / "reads", use_history=True)
    with_history, without = (score(reads, Evaluation(phantoms, history=history)) for history in (True, False))
    assert (with_history.about["histories"], without.about["histories"]) == ("read", "not read")
    histories = [case.history for case in load(phantoms, "test", labelled=True)]
    differ = np.abs(with_history.scores - without.scores).max(1) > 1e-6
    assert differ.tolist() == [bool(history) for history in histories]
    assert differ.any()


def test_one_scan_of_a_case_can_be_shown_alone(checkpoint, phantoms):
    one, again = (score(checkpoint, Evaluation(phantoms, one_scan=True)) for _ in range(2))
    assert np.array_equal(one.scores, again.scores)
    assert one.about["scans"] == "one"
    whole, cases = score(checkpoint, Evaluation(phantoms)), load(phantoms, "test")
    same = np.isclose(one.scores, whole.scores, atol=1e-4).all(1)
    slices = [cases.slices(i) for i in range(len(cases))]
    assert all(same[i] for i in range(len(cases)) if slices[i] == 1)
    assert not any(same[i] for i in range(len(cases)) if len(cases[i].scans) > 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"about": {"data": "1", "split": "test"}}, "other data"),
        ({"case_ids": ["a", "b", "c", "e"]}, "other cases"),
        ({"names": ["Pneumothorax", "Tension pneumothorax", "Podagra"]}, "another vocabulary: Gout, Podagra"),
    ],
)
def test_models_that_saw_other_cases_are_not_compared(changes, message):
    with pytest.raises(ValueError, match=message):
        compare({"a": [toy()], "b": [toy(**changes)]})


def test_the_command_measures_compares_and_writes(radfm, checkpoint, phantoms, table, tmp_path):
    other = save_model(tmp_path / "other", seed=1)
    saved = table.save(tmp_path / "saved.parquet")
    models = ["--model", f"KE={checkpoint}", "--model", f"KE={other}", "--model", saved]
    status, out, _ = radfm("evaluate", phantoms, *models, "--bootstraps", 50, "--out", tmp_path / "out")
    assert status == 0
    for words in ("KE (2 seeds)", "saved", "Difference to KE", "overall", "tail", "not a medical device"):
        assert words in out
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(result["models"]) == {"KE", "saved"}
    assert result["models"]["saved"]["tables"][0]["checkpoint"] == table.about["checkpoint"]
    assert result["models"]["KE"]["macro"]["auc"]["head"] is None
    assert len(result["differences"]["saved"]["disorders"]) == len(table.names)
    with open(tmp_path / "out" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(table.names)
    first = result["models"]["saved"]["disorders"][0]
    assert rows[len(table.names)]["disorder"] == first["disorder"]
    assert rows[len(table.names)]["auc"] == ("" if first["auc"] is None else str(first["auc"]["value"]))
    assert {file.name for file in (tmp_path / "out" / "scores").iterdir()} == {
        "KE-0.parquet",
        "KE-1.parquet",
        "saved.parquet",
    }


def test_the_command_prints_json_and_takes_options_first(radfm, phantoms, table, tmp_path):
    saved = table.save(tmp_path / "saved.parquet")
    positive = next(name for name, n in zip(table.names, table.labels.sum(0), strict=True) if n)
    (tmp_path / "only.txt").write_text(f"# withheld\n{positive}\n")
    options = ("--json", "--model", saved, "--bootstraps", 20, "--only", tmp_path / "only.txt")
    status, out, _ = radfm("evaluate", *options, phantoms)
    assert status == 0
    assert json.loads(out)["only"] == [positive]
    status, out, _ = radfm("evaluate", *options[:-1], ", ".join(100 * [positive]), phantoms)  # no file can be called so
    assert status == 0
    assert json.loads(out)["only"] == [positive]
    status, out, _ = radfm("evaluate", "cases", phantoms, "--model", saved, "--bootstraps", 20, "--level", "chapter")
    assert status == 0
    assert "by ICD-10-CM chapter" in out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["DATA"], 2, "--model"),
        (["nowhere", "--model", "TABLE"], 1, "nowhere holds no finished data set"),
        (["DATA", "--model", "nowhere"], 1, "nowhere: no such folder"),
        (["DATA", "--model", "TABLE", "--split", "validation"], 1, "its split is test, not validation"),
        (["DATA", "--model", "TABLE", "--only", "Nonsense"], 1, "no scores of Nonsense"),
        (["DATA", "--model", "TABLE", "--level", "organ"], 1, "no level 'organ'"),
        (["DATA", "--model", "TABLE", "--where", "sex"], 1, "'sex' is no condition"),
        (["DATA", "--model", "TABLE", "--min-cases", "1000"], 1, "no disorder has 1,000 training cases"),
        (["DATA", "--model", "TABLE", "--folds", "5"], 1, "its split is test, not 5 folds"),
    ],
)
def test_bad_input_is_one_line_and_a_status(radfm, phantoms, table, tmp_path, arguments, status, message):
    files = {"DATA": phantoms, "TABLE": table.save(tmp_path / "table.parquet")}
    got, out, err = radfm("evaluate", *(files.get(argument, argument) for argument in arguments))
    assert got == status
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert message in lines[0]
