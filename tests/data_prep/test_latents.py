"""Data sets of latents and of reconstructions."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from radfm.data_prep import load
from radfm.data_prep.data_summary import source_of
from radfm.data_prep.latents import prepare_latents, prepare_reconstructions
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.data_prep.tables import read_rows
from radfm.latents import Autoencoder
from radfm.latents.autoencoders import AutoencoderSettings


def save_autoencoder(folder, seed: int = 0):
    torch.manual_seed(seed)
    network = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=32,
    )
    Autoencoder(network, AutoencoderSettings(32)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return save_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    prepare(Phantoms(12, size=32), folder, Settings(size=32, max_slices=2, cases_per_shard=4))
    return folder


@pytest.fixture(scope="module")
def latents(data, autoencoder, tmp_path_factory):
    prepare_latents(data, folder := tmp_path_factory.mktemp("latents") / "out", autoencoder)
    return folder


def test_latents_are_a_data_set_with_the_cases_of_their_source(data, latents, autoencoder):
    source, cases = load(data), load(latents)
    assert [row["case_id"] for row in cases.rows] == [row["case_id"] for row in source.rows]
    assert cases.vocabulary.names == source.vocabulary.names
    assert cases.record["latents"]["channels"] == 4
    assert cases.record["latents"]["size"] == [16, 16]
    facts = cases.record["latents"]
    network = Autoencoder.from_pretrained(autoencoder, device="cpu", statistics=facts)
    assert facts["autoencoder"] == network.fingerprint
    for row in (0, 7, 14):
        scan, of_source = cases.scan(row), source.scan(row)
        assert scan.pixels.dtype == np.float16
        assert (scan.modality, scan.body_part, scan.plane) == (of_source.modality, of_source.body_part, of_source.plane)
        expected = network.encode(network.prepare(of_source))
        torch.testing.assert_close(torch.from_numpy(scan.pixels.copy()).float(), expected, atol=5e-3, rtol=5e-3)


def test_latents_of_two_data_sets_by_an_autoencoder_without_statistics_have_two_identities(
    latents, autoencoder, tmp_path
):
    prepare(Phantoms(6, size=32, seed=1), tmp_path / "other", Settings(size=32, max_slices=2))
    other = prepare_latents(tmp_path / "other", tmp_path / "latents", autoencoder)["latents"]
    facts = load(latents).record["latents"]
    assert facts["mean"] != other["mean"]
    assert facts["autoencoder"] != other["autoencoder"]
    network = Autoencoder.from_pretrained(autoencoder, statistics=facts)
    network.save_pretrained(tmp_path / "measured")
    same = prepare_latents(tmp_path / "other", tmp_path / "comparable", tmp_path / "measured")["latents"]
    assert same["autoencoder"] == facts["autoencoder"]


def test_latents_of_the_training_split_are_normalised(latents):
    values = np.concatenate(
        [scan.pixels.astype(np.float32) for case in load(latents, "train") for scan in case.scans]
    ).swapaxes(0, 1)
    np.testing.assert_allclose(values.reshape(4, -1).mean(1), 0, atol=0.05)
    np.testing.assert_allclose(values.reshape(4, -1).std(1), 0.5, atol=0.05)


def test_a_killed_run_continues_to_the_same_bytes(data, latents, autoencoder, tmp_path):
    class Killed(BaseException):
        pass

    def kill(done: int, of: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        prepare_latents(data, tmp_path / "out", autoencoder, kill)
    with pytest.raises(FileNotFoundError, match="no finished data set"):
        load(tmp_path / "out")
    prepare_latents(data, tmp_path / "out", autoencoder)
    names = sorted(file.relative_to(latents) for file in latents.rglob("*") if file.is_file())
    assert names == sorted(
        file.relative_to(tmp_path / "out") for file in (tmp_path / "out").rglob("*") if file.is_file()
    )
    assert all((latents / name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in names)
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in names}
    prepare_latents(data, tmp_path / "out", autoencoder)  # has ended
    assert before == {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in names}


def test_another_autoencoder_or_folder_is_refused(data, latents, tmp_path):
    other = save_autoencoder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="holds another data set"):
        prepare_latents(data, latents, other)
    with pytest.raises(ValueError, match="holds latents, and an autoencoder reads pictures"):
        prepare_latents(latents, tmp_path / "out", other)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(ValueError, match="is not empty"):
        prepare_latents(data, tmp_path / "full", other)


def test_reconstructions_are_an_ordinary_data_set(data, autoencoder, tmp_path):
    record = prepare_reconstructions(data, tmp_path / "out", autoencoder)
    assert record["reconstructions"]["psnr"] > 0
    assert 0 < record["reconstructions"]["ms_ssim"] < 1
    source, cases = load(data), load(tmp_path / "out")
    assert read_rows(tmp_path / "out", "cases") == read_rows(data, "cases")
    for row in range(len(read_rows(data, "scans"))):
        scan, of_source = cases.scan(row), source.scan(row)
        assert scan.pixels.shape == (len(of_source.pixels), 32, 32)
        assert scan.pixels.dtype == of_source.pixels.dtype


def test_what_is_made_of_reconstructions_of_phantoms_is_no_patients(data, autoencoder, tmp_path):
    for source, out in ((data, "once"), (tmp_path / "once", "twice")):
        prepare_reconstructions(source, tmp_path / out, autoencoder)
    cases = load(tmp_path / "twice")
    assert cases.is_synthetic
    assert source_of(cases.record) == "phantoms"


def test_the_commands_say_what_they_made(data, autoencoder, tmp_path, radfm):
    _, out, _ = radfm("prepare", "latents", data, tmp_path / "latents", "--autoencoder", autoencoder)
    assert "4 x 16 x 16" in out
    _, out, _ = radfm("prepare", "reconstructions", data, tmp_path / "decoded", "--autoencoder", autoencoder)
    assert "PSNR" in out
    status, _, error = radfm("prepare", "latents", data, tmp_path / "no", "--autoencoder", tmp_path / "nothing")
    assert status
    assert "there is no such folder" in error
    assert error.count("\n") <= 2
