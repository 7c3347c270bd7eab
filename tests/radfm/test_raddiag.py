"""The published RadDiag layouts, filled with pinned weights, answer as RadDiag's own code does."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from radfm import RadFMForDiagnosis, RadFMProcessor, raddiag
from radfm.checkpoints.reproduction import check
from radfm.cli import main


@pytest.fixture(scope="module")
def reference():
    from tests.conftest import SHARED

    if not (SHARED / "raddiag").is_dir():
        pytest.skip("no ../shared here")
    spec = importlib.util.spec_from_file_location("make_state_dict", SHARED / "raddiag" / "make_state_dict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden(reference):
    return np.load(reference.HERE / "forward.npz")


@pytest.fixture(scope="module")
def weights(reference) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(x) for name, x in reference.state_dict().items()}


@pytest.fixture(scope="module")
def batch(reference) -> dict[str, torch.Tensor]:
    scans = [scan for case in reference.cases() for scan in case]
    slices = torch.cat([torch.from_numpy(pixels).permute(2, 0, 1) for _, pixels in scans])
    return {
        "pixel_values": slices[:, None].expand(-1, 3, -1, -1),
        "slices_per_scan": torch.tensor([pixels.shape[-1] for _, pixels in scans]),
        "scans_per_case": torch.tensor([len(case) for case in reference.cases()]),
        "modality_ids": torch.tensor([modality for modality, _ in scans]),
    }


def close(ours: torch.Tensor, theirs: np.ndarray) -> None:
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-3, rtol=0)


@torch.no_grad()
def test_the_case_level_checkpoint_agrees_with_the_reference(weights, batch, golden):
    model = raddiag.from_checkpoint(weights)
    labels, keys = torch.zeros(2, 5569), batch["slices_per_scan"] // 2
    output = model(**batch, labels=labels, key_slices=keys)
    close(output.scan_embeds, golden["scan_embeddings"][[0, 1, 2, 4, 5]])
    close(output.case_embeds, golden["case_embedding"])
    close(output.logits, golden["logits"])
    assert output.losses["diagnosis"].item() == pytest.approx(golden["loss_cls"].item(), abs=1e-4)
    assert output.losses["key_slice"].item() == pytest.approx(golden["loss_attn"].item(), abs=1e-6)
    assert sum(p.numel() for p in model.parameters()) < 217_617_822 - 102_700_000
    assert len(model.config.modalities) == 16


@torch.no_grad()
def test_the_one_scan_checkpoint_agrees_with_the_reference(weights, batch, golden):
    model = raddiag.from_checkpoint({name: x for name, x in weights.items() if not name.startswith("vitFuse.")})
    output = model(**batch | {"scans_per_case": torch.ones(5, dtype=torch.int64)})
    close(output.logits, golden["logits_one_scan"])


@torch.no_grad()
def test_the_command_converts_either_file_into_an_ordinary_checkpoint(
    weights, batch, golden, shared, tmp_path, monkeypatch, capsys
):
    names = shared / "rp3d_demo" / "disorder_label_dict.json"
    torch.save(weights, tmp_path / "pytorch_model.bin")
    arguments = ["radfm", "convert", "raddiag", str(tmp_path), str(tmp_path / "checkpoint"), "--disorders", str(names)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "case level" in capsys.readouterr().out
    model = RadFMForDiagnosis.from_pretrained(tmp_path / "checkpoint").eval()
    assert model.config.disorders[:3] == ["Normal", "Meningioma", "Pneumothorax"]
    assert model.config.icd10cm[2] == ["J93.9"]
    close(model(**batch).logits, golden["logits"])
    processor = RadFMProcessor.from_pretrained(tmp_path / "checkpoint")
    assert processor.image_processor.max_slices == 32
    assert check(tmp_path / "checkpoint", "cpu").reproduced

    save_file(weights, tmp_path / "model.safetensors")
    close(raddiag.from_checkpoint(tmp_path / "model.safetensors")(**batch).logits, golden["logits"])


def test_a_file_that_is_not_a_raddiag_checkpoint_is_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        raddiag.from_checkpoint(tmp_path / "missing.bin")
    (tmp_path / "broken.bin").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="not a file of weights"):
        raddiag.from_checkpoint(tmp_path / "broken.bin")
    (tmp_path / "broken.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="not a file of weights"):
        raddiag.from_checkpoint(tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match="not a RadDiag ResNet checkpoint"):
        raddiag.from_checkpoint({"conv1.weight": torch.zeros(1)})


def test_a_pickle_with_code_in_it_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"resnet2D.conv1.weight": Trap()}, tmp_path / "trap.bin")
    with pytest.raises(ValueError, match="not a file of weights"):
        raddiag.from_checkpoint(tmp_path / "trap.bin")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 0, "b": 2}', '{"a": "x"}'])
def test_a_list_of_disorders_with_gaps_or_of_another_form_is_refused(content, tmp_path):
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(ValueError, match="expected a JSON object"):
        raddiag.read_disorders(tmp_path / "names.json")
    (tmp_path / "names.json").write_text(json.dumps({"b": 1, "a": 0}))
    assert raddiag.read_disorders(tmp_path / "names.json") == ["a", "b"]
