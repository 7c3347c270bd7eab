"""A saved checkpoint loads on a machine that has torch, transformers and timm, but not radfm."""

import json
import os
import subprocess
import sys

import numpy as np
import torch

from radfm import Case, RadFMConfig, RadFMForDiagnosis, RadFMProcessor, Scan

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
pixels = np.arange(2 * 40 * 50, dtype=np.float32).reshape(2, 40, 50)
scan = SimpleNamespace(pixels=pixels, modality="MRI", plane="axial", spacing_mm=None, days=None, key_slice=None)
with torch.no_grad():
    logits = model(**processor(cases=[SimpleNamespace(scans=[scan])])).logits
    texts = model.get_text_features(**processor(text=["Glioma"]))
print(json.dumps([type(model).__module__, logits.tolist(), texts.tolist()]))
"""


def test_a_checkpoint_loads_without_radfm_and_gives_the_same_answer(python_without_radfm, tiny_config, tmp_path):
    torch.manual_seed(0)
    model = RadFMForDiagnosis(RadFMConfig(**tiny_config, disorders=["Glioma", "Meningioma"])).eval()
    model.disorder_embeds = torch.nn.functional.normalize(torch.randn_like(model.disorder_embeds), dim=-1)
    processor = RadFMProcessor()
    processor.image_processor.size = 64
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")

    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [python_without_radfm, "-c", SCRIPT, tmp_path / "checkpoint"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    module, logits, texts = json.loads(run.stdout.splitlines()[-1])

    assert module.startswith("transformers_modules")
    pixels = np.arange(2 * 40 * 50, dtype=np.float32).reshape(2, 40, 50)
    case = Case(scans=[Scan(pixels, modality="MRI", plane="axial")])
    with torch.no_grad():
        expected = model(**processor(cases=[case]))
        expected_texts = model.get_text_features(**processor(text=["Glioma"]))
    torch.testing.assert_close(torch.tensor(logits), expected.logits)
    torch.testing.assert_close(torch.tensor(texts), expected_texts)


def test_a_checkpoint_holds_its_code_and_no_pickle(tiny_config, tmp_path):
    RadFMForDiagnosis(RadFMConfig(**tiny_config)).save_pretrained(tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert {"model.safetensors", "modeling_radfm.py", "encoder_radfm.py", "towers_radfm.py"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert sys.executable not in (tmp_path / "config.json").read_text()
