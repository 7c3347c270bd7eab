"""`radfm federate server` and `site`: processes that find each other on loopback over mutual TLS."""

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

pytest.importorskip("nvflare")

from radfm.data_prep import load
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.train.federation import client, server
from radfm.train.federation.certificates import Kit, write_kits
from radfm.train.federation.client import RemoteSite
from radfm.train.federation.config import read_federated_config
from radfm.train.federation.server import serve
from tests.tiny_federation import SIZE, write_config
from tests.waiting import TIMEOUT, free_port, wait_until


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for name, part in (("north", "knee"), ("south", "chest")):
        folders[name] = tmp_path_factory.mktemp(name) / "cases"
        settings = Settings(size=SIZE, fractions=(0.9, 0.0, 0.1), max_slices=1)
        prepare(Phantoms(100, 0, SIZE, part), folders[name], settings)
    return folders


@pytest.fixture(scope="module")
def config_file(tmp_path_factory, text_encoder) -> Path:
    return write_config(tmp_path_factory.mktemp("config"), text_encoder, rounds=4, steps=1)


def start(python: str, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [python, "-m", "radfm.cli", "federate", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
    )


def test_hospitals_train_together_and_a_killed_server_goes_on(tmp_path, hospitals, config_file, python):
    kits = write_kits(tmp_path / "kits", "localhost", free_port(), list(hospitals))
    out = tmp_path / "together"
    command = ("server", kits[0], "--config", config_file, f"output={out}")
    sites = [start(python, "site", kit, hospitals[kit.name], "--out", tmp_path / kit.name) for kit in kits[1:]]
    first = start(python, *command)
    try:
        wait_until(lambda: (out / "state.safetensors").exists() or first.poll() is not None)
        assert first.poll() is None, first.communicate()
        first.kill()
        first.communicate()
        second = start(python, *command)
        printed, told = second.communicate(timeout=TIMEOUT)
        assert second.returncode == 0, told
        assert printed.strip() == str(out)
        for site in sites:
            _, errors = site.communicate(timeout=TIMEOUT)
            assert site.returncode == 0, errors
    finally:
        for process in (first, *sites):
            process.kill()
    recipe = json.loads((out / "radfm_diagnosis.json").read_text())
    assert len(recipe["rounds"]) == 4
    assert all(one["sites"].keys() == hospitals.keys() for one in recipe["rounds"])
    vocabularies = {name: load(folder, "train", labelled=True).vocabulary.names for name, folder in hospitals.items()}
    disorders = set(json.loads((out / "config.json").read_text())["disorders"])
    assert disorders == {name for names in vocabularies.values() for name in names}
    for name, names in vocabularies.items():
        assert set(json.loads((tmp_path / name / "config.json").read_text())["disorders"]) == set(names)
    texts = "".join(file.read_text() for file in out.glob("*.json") if file.name != "tokenizer.json")
    patients = {row["patient_id"] for folder in hospitals.values() for row in load(folder).rows}
    assert not any(patient in texts for patient in patients)


def test_a_site_of_another_version_is_refused_by_name(tmp_path, hospitals, config_file, monkeypatch, capsys):
    kits = write_kits(tmp_path / "kits", "localhost", free_port(), ["north"])
    changes = [f"output={tmp_path / 'out'}", "federation.least_sites=1", "federation.timeout_s=10"]
    monkeypatch.setattr(client, "version", lambda package: "9.9")
    cases = load(hospitals["north"], "train", labelled=True)
    site = RemoteSite(Kit.load(kits[1]), cases, tmp_path / "site", patience_s=TIMEOUT)
    errors = []

    def take_part():
        try:
            site.run()
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=take_part)
    thread.start()
    with pytest.raises(ValueError, match="0 of 1 sites came"):
        serve(Kit.load(kits[0]), read_federated_config(config_file, changes))
    thread.join(TIMEOUT)
    assert "north is refused: the server has radfm" in capsys.readouterr().err
    assert errors
    assert "install the same version" in errors[0]


def test_a_site_under_the_name_of_another_one_does_not_get_in(tmp_path, hospitals, config_file, python):
    kits = write_kits(tmp_path / "kits", "localhost", free_port(), ["north", "south"])
    shutil.copy(kits[2] / "kit.json", kits[1] / "kit.json")  # north's certificate, south's name
    site = start(python, "site", kits[1], hospitals["north"], "--out", tmp_path / "site", "--patience", 20)
    changes = [f"output={tmp_path / 'out'}", "federation.least_sites=1", "federation.timeout_s=25"]
    server = start(python, "server", kits[0], "--config", config_file, *changes)
    try:
        _, of_server = server.communicate(timeout=TIMEOUT)
        _, of_site = site.communicate(timeout=TIMEOUT)
    finally:
        site.kill()
        server.kill()
    assert site.returncode != 0
    assert "check that it runs, the address, and that both kits were made together" in of_site
    assert "0 of 1 sites came" in of_server
    assert "has joined" not in of_server


def test_kits_of_the_other_side_and_names_that_cannot_be_used_are_refused(tmp_path, hospitals, config_file):
    kits = write_kits(tmp_path / "kits", "localhost", free_port(), ["north"])
    with pytest.raises(ValueError, match="is the kit of north: the server has one of its own"):
        serve(Kit.load(kits[1]), read_federated_config(config_file))
    cases = load(hospitals["north"], "train", labelled=True)
    with pytest.raises(ValueError, match="is the kit of the server"):
        RemoteSite(Kit.load(kits[0]), cases, tmp_path / "site", 1.0)
    with pytest.raises(ValueError, match="is no kit"):
        Kit.load(tmp_path)
    with pytest.raises(ValueError, match="exists"):
        write_kits(tmp_path / "kits", "localhost", 8002, ["south"])
    for names in (["North Clinic"], ["server"], ["north", "north"]):
        with pytest.raises(ValueError, match="cannot be the name of a site"):
            write_kits(tmp_path / "more", "localhost", 8002, names)
    assert (kits[1] / "key.pem").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "message",
    [
        {"facts": "no JSON", "weights": b"", "files": {}},
        {"facts": '"text"', "weights": b"", "files": {}},
        {"facts": '{"cases": Infinity}', "weights": b"", "files": {}},
        {"facts": '{"cases": 1000000}', "weights": b"", "files": {}},
        {"facts": '{"version": "0"}', "weights": b"", "files": {}},
    ],
)
def test_nonsense_of_a_site_is_an_error_of_that_site_alone(message):
    assert isinstance(server._update(message, most_cases=100), str)
    assert server._joined(message)[server.ERROR]


def test_what_fails_at_a_site_is_told_to_the_server_without_names_of_cases_and_folders():
    assert "c-7" not in client._sent_reason(ValueError("the loss is not a number, of cases c-7"))
