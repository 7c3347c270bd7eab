"""The command `radfm`: its tables, its JSON, its one-line errors."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import typer
from untrained import STUDY, build

from radfm import RadFMConfig, RadFMForDiagnosis, cli
from radfm.checkpoints import DEFAULT
from radfm.cli.registry import COMMANDS
from radfm.examples import folder
from radfm.starting_points import processor_for


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    build(folder)
    return str(folder)


def test_a_real_study_is_diagnosed_in_a_table(radfm, checkpoint):
    status, out, _ = radfm("diagnose", STUDY, "--model", checkpoint, "--labels", "Pneumothorax; Rib fracture")
    assert status == 0
    assert "17 scans, 17 slices" in out
    assert "J93.9" in out
    assert "S22.3" in out
    assert "untrained" in out
    assert "not a medical device" in out


def test_without_a_model_the_default_one_diagnoses(radfm):
    status, out, _ = radfm("diagnose", folder("knees"), "--json")
    assert status == 0
    assert (
        json.loads(out)["training_data"]
        == json.loads(radfm("diagnose", folder("knees"), "--json", "--model", DEFAULT)[1])["training_data"]
    )
    assert json.loads(out)["trained"]


def test_json_feeds_a_program(radfm, checkpoint, tmp_path):
    (tmp_path / "labels.txt").write_text("# disorders to score\nMeningioma\n\nGlioma\n")
    arguments = ("--model", checkpoint, "--labels-file", tmp_path / "labels.txt", "--json")
    status, out, _ = radfm("diagnose", STUDY, *arguments)
    answer = json.loads(out)
    assert status == 0
    assert {d["label"] for d in answer["diagnoses"]} == {"Meningioma", "Glioma"}
    assert len(answer["scans"]) == 17
    assert answer["trained"] is False
    assert "Doe" not in out  # the study's patient


def test_no_key_slice_is_named_where_slices_are_averaged(radfm, tiny_config, tmp_path):
    """As in models of other projects and in those that read volumes, where all slices weigh the same."""
    averaging = {"num_hidden_layers": 0}
    arguments = {"scan_config": averaging, "case_config": averaging, "fusion": "class_token", "head": "mlp"}
    model = RadFMForDiagnosis(RadFMConfig(**tiny_config | arguments | {"disorders": ["Gout"], "text_config": None}))
    model.save_pretrained(tmp_path / "model")
    processor_for(model.config).save_pretrained(tmp_path / "model")
    np.save(tmp_path / "volume.npy", np.arange(3 * 32 * 32, dtype=np.uint16).reshape(3, 32, 32))
    status, out, _ = radfm("diagnose", tmp_path / "volume.npy", "--model", tmp_path / "model")
    assert status == 0
    assert "Most weight: scan 1 (100%)." in out


def test_each_path_is_a_case_of_its_own_and_a_bad_one_does_not_stop_the_rest(radfm, checkpoint, tmp_path):
    np.save(tmp_path / "good.npy", np.arange(3 * 32 * 32, dtype=np.uint16).reshape(3, 32, 32))
    (tmp_path / "bad.nii").write_bytes(b"\0" * 400)
    paths = (tmp_path / "bad.nii", tmp_path / "good.npy")
    status, out, err = radfm("diagnose", *paths, "--each", "--model", checkpoint, "--top", 2, "--json")
    assert status == 1
    assert len(json.loads(out)["diagnoses"]) == 2
    assert "bad.nii" in err
    assert "1 of 2 cases" in err


def test_files_of_one_case_are_read_together(radfm, checkpoint, tmp_path):
    for shift, name in enumerate(("a", "b")):
        np.save(tmp_path / f"{name}.npy", np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) + shift)
    paths = (tmp_path / "a.npy", tmp_path / "b.npy")
    _, out, _ = radfm("diagnose", *paths, "--model", checkpoint, "--modality", "xray", "--json")
    assert [scan["modality"] for scan in json.loads(out)["scans"]] == ["X-ray", "X-ray"]


def test_warnings_of_scans_are_printed_once_each_and_are_in_the_json(radfm, checkpoint, tmp_path):
    for step, name in enumerate(("a", "b"), 1):
        np.save(tmp_path / f"{name}.npy", (step * np.arange(64 * 64)).astype(np.uint8).reshape(64, 64))
    paths = (tmp_path / "a.npy", tmp_path / "b.npy")
    _, out, _ = radfm("diagnose", *paths, "--model", checkpoint, "--modality", "CT")
    text = " ".join(out.split())
    assert "Check the scans: the answer may mean nothing. All 2 scans: CT values are 8-bit grey levels" in text
    assert text.count("8-bit grey levels") == 1
    _, out, _ = radfm("diagnose", *paths, "--model", checkpoint, "--modality", "CT", "--json")
    assert all("8-bit grey levels" in scan["warnings"][0] for scan in json.loads(out)["scans"])
    _, out, _ = radfm("diagnose", *paths, "--model", checkpoint, "--modality", "MRI")
    assert "Check the scans" not in out


def test_icd_prints_codes_or_that_there_are_none(radfm):
    status, out, _ = radfm("icd", "ACL tear")
    assert status == 0
    assert "S83.51" in out
    status, out, _ = radfm("icd", "Pneumothorax", "--json")
    assert json.loads(out)["candidates"][0]["code"] == "J93.9"
    _, out, _ = radfm("icd", "qwertz uiop")
    assert "unlinked" in out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["diagnose", "nowhere", "--model", "CHECKPOINT"], 1, "nowhere"),
        (["diagnose", STUDY, "--model", "./nowhere"], 1, "./nowhere: no such folder"),
        (["diagnose", STUDY, "--model", STUDY], 1, "no config.json"),
        (["diagnose", STUDY, "--model", "CHECKPOINT", "--labels", " ; "], 1, "no disorder name"),
        (["diagnose", STUDY, "--model", "CHECKPOINT", "--labels-file", "nowhere.txt"], 1, "nowhere.txt"),
        (["diagnose", STUDY, "--model", "CHECKPOINT", "--modality", "xylophone"], 1, "xylophone"),
        (["diagnose"], 2, "PATH"),
        (["calibrate", STUDY], 2, "--model"),
        (["diagnose", STUDY, "--model", "CHECKPOINT", "--top", "0"], 2, "--top"),
        (["convert", "raddiag", "nowhere.bin", "out"], 1, "disorder_label_dict.json: no such file"),
        (["convert", "transformers", STUDY, "out"], 1, f"{STUDY} is no model of transformers"),
        (["convert", "merlin", "nowhere.pt", "out"], 1, "nowhere.pt: no such file"),
        (["convert", "merlin", "a.pt", "out", "--phenotypes", "a.csv", "--disorders", "b.txt"], 1, "not both"),
        (["icd", " "], 1, "empty"),
        (["train", "text", "nowhere.yaml"], 1, "nowhere.yaml: no such file; radfm comes with "),
        (["train", "text", "elsewhere/text.yaml"], 1, "elsewhere/text.yaml: no such file"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_bad_input_is_one_line_and_a_status(radfm, checkpoint, arguments, status, message):
    got, out, err = radfm(*[checkpoint if a == "CHECKPOINT" else a for a in arguments])
    assert got == status
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("radfm: ")
    assert message in lines[0]


def test_icd_reports_on_a_list_of_names(radfm, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps({"Pneumothorax": 0, "qwertz uiop": 1, "肺炎": 2, "ACL tear": 3}))
    status, out, err = radfm("icd", "--names", tmp_path / "names.json")
    lines = {row["name"]: row for row in csv.DictReader(out.splitlines())}
    assert status == 0
    assert (lines["Pneumothorax"]["verdict"], lines["Pneumothorax"]["codes"]) == ("confident", "J93.9")
    assert (lines["qwertz uiop"]["verdict"], lines["qwertz uiop"]["best_code"]) == ("unlinked", "")
    assert len(lines) == 4
    assert "4 names: 2 confident, 2 unlinked" in err
    (tmp_path / "names.txt").write_text("Pneumothorax\n\nACL tear\n")
    assert len(radfm("icd", "--names", tmp_path / "names.txt")[1].splitlines()) == 3
    status, _, err = radfm("icd")
    assert (status, err.count("\n")) == (1, 1)


def names_below(group, *names: str) -> Iterator[tuple[str, ...]]:
    yield names
    for name, command in getattr(group, "commands", {}).items():
        yield from names_below(command, *names, name)


NAMES = [" ".join(names) for names in names_below(typer.main.get_command(cli.app))]
GROUPS = ["", "convert", "evaluate", "federate", "prepare", "train"]


@pytest.mark.parametrize("command", NAMES)
def test_every_command_has_help_in_plain_words_with_an_example(radfm, command):
    status, out, _ = radfm(*command.split(), "--help")
    assert status == 0
    assert "list[" not in out
    assert "Example: radfm " in out or command in GROUPS


@pytest.mark.parametrize("group", GROUPS)
def test_the_summary_of_every_command_fits_on_a_screen(radfm, group):
    _, out, _ = radfm(*group.split(), "--help")
    assert not [line for line in out.splitlines() if line.startswith("  ") and line.endswith("...")]


def test_help_lists_commands_in_the_order_of_the_registry(radfm):
    _, out, _ = radfm("--help")
    listed = re.findall(r"^  (\w+) ", out[out.index("Commands:") :], re.MULTILINE)
    assert listed == [command.name for command in COMMANDS if " " not in command.name]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_help_of_a_group_and_of_the_command_itself_agree(radfm, command):
    _, out, _ = radfm(*command.name.split(), "--help")
    assert command.summary.split() == " ".join(out.split("\n\n")[1].split()).split()[: len(command.summary.split())]


def modules_of_commands(*arguments: str) -> set[str]:
    """The modules of commands that `radfm ARGUMENTS` imports, in a process of its own."""
    program = "import sys; from radfm.cli import main; sys.argv[0] = 'radfm'\ntry: main()\nexcept SystemExit: pass\n"
    program += "print('\\n' + '\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return set(run.stdout.split()) & {command.source.partition(":")[0] for command in COMMANDS if command.source}


@pytest.mark.parametrize("group", [[], ["train"], ["evaluate"], ["convert"]], ids=" ".join)
def test_the_help_of_a_group_imports_no_command(group):
    assert modules_of_commands(*group, "--help") == set()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.source], ids=lambda command: command.name)
def test_the_help_of_a_command_imports_no_other(command):
    assert modules_of_commands(*command.name.split(), "--help") == {command.source.partition(":")[0]}


def test_a_command_that_runs_imports_no_other():
    assert modules_of_commands("icd", "Pneumothorax") == {"radfm.cli.icd"}


def test_a_config_that_comes_with_radfm_is_found_by_name(radfm, tmp_path, monkeypatch):
    """Outside a clone of the repository; a file of that name takes precedence."""
    monkeypatch.chdir(tmp_path)
    for name in ("text.yaml", "train/configs/text.yaml"):
        assert "nonsense: no such key" in radfm("train", "text", name, "nonsense=1")[2]
    (tmp_path / "text.yaml").write_text("- mine")
    assert "text.yaml is not a YAML mapping" in radfm("train", "text", "text.yaml")[2]


def test_radfm_without_arguments_lists_its_commands(radfm):
    status, out, _ = radfm()
    assert status == 2
    assert "diagnose" in out
    assert radfm("--version")[0] == 0
