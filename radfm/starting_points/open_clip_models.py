"""open_clip models as radfm models.

Decisions:
- The model has open_clip's own towers, and averages slices and scans: it answers as open_clip does. Encoders with
  layers can be put on top.
"""

import torch
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from radfm.configuration_radfm import RadFMConfig, RadFMOpenCLIPTextConfig
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.starting_points.new_model import processor_for


def from_open_clip(name: str, pretrained: str | None = None, **config) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    """An open_clip model as a radfm model of its own towers, with slices and scans averaged, and its processor.

    It ranks disorder names as open_clip does. A model that open_clip trained with a softmax has no bias, and its scores
    are not probabilities.

    Args:
        name: an architecture of open_clip ("ViT-B-32"), or "hf-hub:..." or "local-dir:..." with its weights.
        pretrained: a file of weights, or a tag that open_clip downloads; unset, with a plain name, random weights.
        config: of [`RadFMConfig`]; `scan_config={...}` and the like put encoders with layers on top.
    Raises:
        ValueError: open_clip has no such architecture.
    """
    import open_clip

    clip_config = open_clip.get_model_config(name)
    if clip_config is None:
        raise ValueError(f"open_clip has no architecture {name!r}: open_clip.list_models() lists them")
    clip = open_clip.create_model(name, pretrained=pretrained, force_custom_text=True, weights_only=True).eval()
    vision = clip_config["vision_cfg"] | {"timm_model_pretrained": False}
    args = {"embed_dim": clip_config["embed_dim"], "quick_gelu": clip_config.get("quick_gelu", False)}
    averaging = {"num_hidden_layers": 0}
    image_size = clip.visual.image_size
    arguments = {
        "vision_config": {
            "family": "open_clip",
            "tower": "open_clip",
            "tower_args": args | {"vision_cfg": vision},
            "image_size": image_size if isinstance(image_size, int) else image_size[0],
        },
        "scan_config": averaging,
        "case_config": averaging,
        "fusion": "class_token",
        "hidden_size": clip_config["embed_dim"],
        "projection_dim": clip_config["embed_dim"],
        **_open_clip_text_config(clip_config["text_cfg"], args, clip.text),
    }
    model = RadFMForDiagnosis(RadFMConfig(**arguments | config)).eval()
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
    """Parameters and all buffers: radfm's towers also hold those that open_clip does not save."""
    return dict(tower.named_parameters()) | dict(tower.named_buffers())


def _open_clip_text_config(text_cfg: dict, args: dict, tower: torch.nn.Module) -> dict:
    if not text_cfg.get("hf_model_name"):
        return {"text_config": RadFMOpenCLIPTextConfig(text_cfg=text_cfg, **args)}
    pooler = text_cfg.get("hf_pooler_type") or "mean_pooler"
    if pooler not in (poolings := {"mean_pooler": "mean", "cls_last_hidden_state_pooler": "cls"}):
        raise ValueError(f"open_clip's {pooler!r} has no counterpart in radfm, which has {list(poolings)}")
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
