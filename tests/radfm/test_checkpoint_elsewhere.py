"""A saved checkpoint loads on a machine that has torch, transformers and timm, but not radfm."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from radfm import Case, RadFMConfig, RadFMForDiagnosis, RadFMImageProcessor, RadFMProcessor, Scan, checkpoints
from radfm.publishing.publish import Request, publish

SCRIPT = """
import importlib.util, json, sys
import numpy as np
import torch
from types import SimpleNamespace
from transformers import AutoModel, AutoProcessor

assert importlib.util.find_spec("radfm") is None, "radfm must not be here"
folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
shape = (2, 4, 16, 16) if processor.image_processor.latents else (2, 40, 50)
pixels = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
scan = SimpleNamespace(pixels=pixels, modality="MRI", plane="axial", spacing_mm=(4, 1, 1), days=None, key_slice=None)
with torch.no_grad():
    logits = model(**processor(cases=[SimpleNamespace(scans=[scan])])).logits
    texts = model.get_text_features(**processor(text=["Glioma"]))
print(json.dumps([type(model).__module__, logits.tolist(), texts.tolist()]))
"""


VOLUMES = {"family": "resnet3d", "tower": "test_resnet", "slice_depth": 0, "image_size": 64}


def test_a_checkpoint_of_latents_loads_without_radfm(python_without_radfm, tiny_config, tmp_path):
    torch.manual_seed(0)
    arguments = {"in_chans": 4, "patch_size": 1}
    vision = {"family": "latent", "tower": "test_convnext", "image_size": 16, "tower_args": arguments}
    model = RadFMForDiagnosis(RadFMConfig(**tiny_config | {"vision_config": vision}, disorders=["Glioma"])).eval()
    torch.nn.init.normal_(model.head.disorder_embeds)
    processor = RadFMProcessor(RadFMImageProcessor(size=16, latents={"autoencoder": "0123", "channels": 4}))
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")

    _, logits, _ = elsewhere(python_without_radfm, SCRIPT, tmp_path / "checkpoint")

    scan = Scan(np.arange(2048, dtype=np.float32).reshape(2, 4, 16, 16), "MRI", "axial", (4, 1, 1))
    with torch.no_grad():
        expected = model(**processor(cases=[Case(scans=[scan])])).logits
    torch.testing.assert_close(torch.tensor(logits), expected)


@pytest.mark.parametrize("volume_config", [None, VOLUMES], ids=["one tower", "two towers"])
def test_a_checkpoint_loads_without_radfm_and_gives_the_same_answer(
    python_without_radfm, tiny_config, tmp_path, volume_config
):
    torch.manual_seed(0)
    config = RadFMConfig(**tiny_config, volume_config=volume_config, disorders=["Glioma", "Meningioma"])
    model = RadFMForDiagnosis(config).eval()
    model.head.disorder_embeds = torch.nn.functional.normalize(torch.randn_like(model.head.disorder_embeds), dim=-1)
    volume = volume_config and {"size": [8, 64, 64], "spacing_mm": [2.0, 1.0, 1.0], "least_slices": 2}
    processor = RadFMProcessor(RadFMImageProcessor(size=64, volume=volume))
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")

    module, logits, texts = elsewhere(python_without_radfm, SCRIPT, tmp_path / "checkpoint")

    assert module.startswith("transformers_modules")
    pixels = np.arange(2 * 40 * 50, dtype=np.float32).reshape(2, 40, 50)
    case = Case(scans=[Scan(pixels, modality="MRI", plane="axial", spacing_mm=(4, 1, 1))])
    with torch.no_grad():
        expected = model(**processor(cases=[case]))
        expected_texts = model.get_text_features(**processor(text=["Glioma"]))
    torch.testing.assert_close(torch.tensor(logits), expected.logits)
    torch.testing.assert_close(torch.tensor(texts), expected_texts)


TEXTS = ["Water on the lung", "Pleural effusion"]
TEXT_SCRIPT = """
import importlib.util, json, sys
import torch
from transformers import AutoModel, AutoTokenizer

assert importlib.util.find_spec("radfm") is None, "radfm must not be here"
model = AutoModel.from_pretrained(sys.argv[1], dtype=torch.float32)
texts = AutoTokenizer.from_pretrained(sys.argv[1])(json.loads(sys.argv[2]), padding=True, return_tensors="pt")
with torch.no_grad():
    states, there = model(**texts).last_hidden_state, texts["attention_mask"][..., None]
print(json.dumps(((states * there).sum(1) / there.sum(1)).tolist()))
"""


def elsewhere(python: str, script: str, folder, *arguments) -> list:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder.parent / "modules")}
    command = [python, "-c", script, folder, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder.parent)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["radfm-open-mini", "radfm-phantom-mini"])
def test_a_model_that_comes_with_radfm_loads_elsewhere_as_published(name, python_without_radfm, tmp_path):
    publish(Request(checkpoints.folder(name), f"me/{name}"), tmp_path / "out", upload=False)
    _, logits, texts = elsewhere(python_without_radfm, SCRIPT, tmp_path / "out")
    model, processor = RadFMForDiagnosis.from_pretrained(name).eval(), RadFMProcessor.from_pretrained(name)
    pixels = np.arange(2 * 40 * 50, dtype=np.float32).reshape(2, 40, 50)
    with torch.no_grad():
        expected = model(
            **processor(cases=[Case(scans=[Scan(pixels, modality="MRI", plane="axial", spacing_mm=(4, 1, 1))])])
        ).logits
        expected_texts = model.get_text_features(**processor(text=["Glioma"]))
    torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(torch.tensor(texts), expected_texts, atol=1e-5, rtol=1e-4)


def test_the_text_encoder_that_comes_with_radfm_loads_elsewhere_as_published(python_without_radfm, tmp_path):
    name = "radfm-text-mini"
    publish(Request(checkpoints.folder(name), f"me/{name}"), tmp_path / "out", upload=False)
    embeds = torch.tensor(elsewhere(python_without_radfm, TEXT_SCRIPT, tmp_path / "out", json.dumps(TEXTS)))
    encoder = SentenceTransformer(str(checkpoints.folder(name)), device="cpu").float()
    expected = torch.tensor(encoder.encode(TEXTS))
    torch.testing.assert_close(torch.nn.functional.normalize(embeds, dim=-1), expected, atol=1e-5, rtol=1e-4)


def test_a_checkpoint_holds_its_code_and_no_pickle(tiny_config, tmp_path):
    RadFMForDiagnosis(RadFMConfig(**tiny_config)).save_pretrained(tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert {"model.safetensors", "modeling_radfm.py", "encoder_radfm.py", "towers_radfm.py"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert sys.executable not in (tmp_path / "config.json").read_text()
