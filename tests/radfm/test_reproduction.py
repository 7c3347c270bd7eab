"""`radfm check`: whether a machine reproduces what a checkpoint answers."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from untrained import build

from radfm import RadFMProcessor, checkpoints
from radfm.checkpoints.reproduction import FILE, check, write_expected
from radfm.reference_radfm import weights_sha256


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    build(folder)
    write_expected(folder)
    return folder


@pytest.fixture
def checkpoint(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "checkpoint")


def differing(folder: Path) -> list[str]:
    return [comparison.output for comparison in check(folder, "cpu").comparisons if not comparison.reproduced]


def change_weight(folder: Path, name: str) -> None:
    """Another value in the weights, and their new SHA-256 in the file of the expected outputs."""
    weights = load_file(folder / "model.safetensors")
    weights[name] = weights[name] * 1.5 + 0.1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    record = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps(record | {"weights": weights_sha256(folder)}))


def test_this_machine_reproduces_the_model_that_comes_with_radfm(radfm):
    status, out, _ = radfm("check", "radfm-phantom-mini", "--device", "cpu", "--json")
    assert status == 0
    result = json.loads(out)
    assert result["reproduced"]
    assert [one["output"] for one in result["comparisons"]] == ["pixels", "text", "case", "logits"]
    assert {one["output"]: one["values"] for one in result["comparisons"]}["case"] == 384
    assert (Path(checkpoints.__file__).parent / "radfm-phantom-mini" / FILE).is_file()


def test_what_was_written_here_is_reproduced_here(radfm, checkpoint):
    (checkpoint / FILE).unlink()
    assert radfm("check", checkpoint, "--write")[0] == 0
    status, out, _ = radfm("check", checkpoint, "--device", "cpu")
    assert status == 0
    assert out.count("yes") == 4
    assert "torch" in out


@pytest.mark.parametrize(
    ("weight", "outputs"),
    [
        ("radfm.scan_encoder.class_token", ["case", "logits"]),
        ("radfm.text_encoder.encoder.embeddings.word_embeddings.weight", ["text"]),
        ("head.disorder_embeds", ["logits"]),
    ],
)
def test_the_outputs_that_differ_say_where_the_fault_is(checkpoint, weight, outputs):
    assert differing(checkpoint) == []
    change_weight(checkpoint, weight)
    assert differing(checkpoint) == outputs


def test_another_preparation_of_pixels_is_noticed_first(radfm, checkpoint):
    processor = RadFMProcessor.from_pretrained(checkpoint)
    processor.image_processor.ct_windows = [[40, 80]]
    processor.save_pretrained(checkpoint)
    status, out, error = radfm("check", checkpoint, "--device", "cpu")
    assert status == 1
    assert "no" in out
    assert "does not reproduce" in error
    assert "pixels, case, logits differ" in error


def test_weights_that_were_cut_short_are_told_from_a_difference(radfm, checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    status, _, error = radfm("check", checkpoint)
    assert status == 1
    assert "the weights are not those that radfm_check.json was written for: download them again" in error


def test_without_expected_outputs_the_message_says_how_to_write_them(radfm, checkpoint):
    (checkpoint / FILE).unlink()
    status, _, error = radfm("check", checkpoint)
    assert status == 1
    assert "has no radfm_check.json: write it with radfm check --write" in error


def test_a_damaged_file_of_expected_outputs_is_named(checkpoint):
    (checkpoint / FILE).write_text('{"format": 1')
    with pytest.raises(ValueError, match=r"radfm_check\.json is damaged"):
        check(checkpoint)


def test_outputs_that_are_not_finite_are_not_expected(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    weights["radfm.scan_encoder.class_token"] *= float("nan")
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="case, logits of the synthetic case are not finite"):
        write_expected(checkpoint)
