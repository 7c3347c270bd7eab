"""Vision models of transformers as radfm models: SigLIP, CLIP, DINO, ViT, ConvNeXt, Swin and others.

Decisions:
- Slices and scans are averaged, so that the model gives transformers' own answers. Encoders with layers can be put on
  top.
- The head of a model with two towers is theirs: SigLIP's scale and bias; CLIP's scale, and a softmax over the names.
- A model of images alone reads names with all-MiniLM-L6-v2 and an untrained projection: a start for training, whose
  case embeddings are the averaged features of its own network.
- Its image processor is read as settings of [`RadFMImageProcessor`]. Code that comes with a model is never run; the one
  image processor of radiology that is such code is known by its name.
- Weights come from safetensors, else from a pickle that is opened with `weights_only=True`.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from radfm.configuration_radfm import RadFMConfig
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.starting_points.minilm import minilm_weights
from radfm.starting_points.new_model import processor_for
from radfm.starting_points.tokenizers import first_line, load_tokenizer
from radfm.starting_points.transformers_images import image_settings

# Models with a vision and a text tower -> how the text model's vector is pooled.
TWO_TOWERS = {
    "clip": "pooler",
    "metaclip_2": "pooler",
    "siglip": "padded_pooler",
    "vision-text-dual-encoder": "pooler",
}
# Settings of a configuration that say nothing of the network.
_NOT_OF_THE_NETWORK = (
    *("_name_or_path", "architectures", "dtype", "id2label", "label2id", "problem_type"),
    *("return_dict", "output_hidden_states", "output_attentions", "transformers_version"),
)
_MOST_OTHER_TOKENS = 16  # class and register tokens of a transformer


def from_transformers(name_or_folder: str | Path, **config) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    """A vision model of transformers as a radfm model, with slices and scans averaged, and its processor.

    ```python
    model, processor = starting_points.from_transformers("google/medsiglip-448")
    ```

    A model with two towers (SigLIP, MedSigLIP, CLIP) answers by text as it does in transformers. The others (RAD-DINO,
    Curia, DINOv3, ViT, ConvNeXt, Swin) have to be fine-tuned before they answer.

    Args:
        name_or_folder: on the Hugging Face Hub, or a folder with config.json, weights and preprocessor_config.json.
        config: of [`RadFMConfig`]; `scan_config={...}` and the like put encoders with layers on top.
    Raises:
        ValueError: there is no such model, it reads no images, its image processor is missing or does something that
            radfm's cannot, weights are missing, or its architecture is not supported.
    """
    name = str(name_or_folder)
    has_text = _model_type(name) in TWO_TOWERS
    images = image_settings(name)
    theirs, missing = _load(name)
    vision = theirs.vision_model if has_text else theirs
    projection = getattr(theirs, "visual_projection", None)
    tower_args = _tower_args(name, vision, projection, images["size"], missing)
    averaging = {"num_hidden_layers": 0}
    arguments: dict[str, Any] = {
        "vision_config": {
            "family": "transformers",
            "tower": vision.config.model_type,
            "tower_args": tower_args,
            "image_size": images["size"],
        },
        "scan_config": averaging,
        "case_config": averaging,
        "fusion": "class_token",
        "hidden_size": tower_args["num_features"],
        "projection_dim": tower_args["num_features"],
    }
    tokenizer = None
    if has_text:
        tokenizer = load_tokenizer(name, theirs.text_model.config)
        arguments |= _text_arguments(theirs, tokenizer)
        arguments["trained"] = config.keys().isdisjoint(("scan_config", "case_config"))  # else not all of it is
    model = RadFMForDiagnosis(RadFMConfig(**arguments | config)).eval()
    network = model.radfm.slice_encoder.tower.network
    network.model.load_state_dict(_state(vision))
    if projection is not None:
        network.projection.load_state_dict(projection.state_dict())
    if has_text:
        _load_text_tower(model, theirs)
    elif "text_config" not in config:
        model.radfm.text_encoder.encoder.load_state_dict(minilm_weights())
    processor = processor_for(model.config, tokenizer)
    for setting, value in images.items():
        setattr(processor.image_processor, setting, value)
    return model, processor


def _model_type(name: str) -> str:
    """Raises: ValueError where it is not the type of a model that reads images, or not of one that radfm knows."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is no model of transformers: {first_line(error)}") from error
    kind = config.model_type
    if kind in TWO_TOWERS:
        return kind
    if hasattr(config, "vision_config"):
        raise ValueError(f"{name}: {kind} is not supported; models with a text tower are {', '.join(TWO_TOWERS)}")
    model_class = MODEL_MAPPING.get(type(config), None)
    if getattr(model_class, "main_input_name", None) != "pixel_values":
        raise ValueError(
            f"{name} is a {kind}, which reads no images: a text encoder is for starting_points.untrained(text_encoder=)"
        )
    return kind


def _load(name: str) -> tuple[PreTrainedModel, list[str]]:
    """The model in float32, and the names of its pooler's weights where those are missing.

    Raises:
        ValueError: there are no weights, they are damaged, or others are missing.
    """
    options = {"trust_remote_code": False, "weights_only": True, "dtype": torch.float32}
    try:
        model, info = AutoModel.from_pretrained(name, output_loading_info=True, **options)
    except UnpicklingError as error:
        raise ValueError(f"{name}: its weights are a pickle with more than tensors, which is not opened") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{name}: its weights cannot be read: {first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if others := [key for key in missing if "pooler." not in key]:
        raise ValueError(f"{name}: {len(others)} weights are missing, the first is {others[0]}: download it again")
    return model.eval(), missing


@torch.no_grad()
def _tower_args(
    name: str, vision: PreTrainedModel, projection: nn.Module | None, size: int, missing: list[str]
) -> dict[str, Any]:
    """The arguments of `radfm.transformers_tower_radfm.PooledVisionModel`, by what the model returns for one slice.

    Raises:
        ValueError: the model does not take slices of this size, or has neither a pooler nor one token for each patch.
    """
    config = vision.config
    try:
        output = vision(torch.zeros(1, getattr(config, "num_channels", 3), size, size))
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{config.model_type} cannot read {size} x {size} pixels: {first_line(error)}"
        raise ValueError(f"{name}: {reason}") from error
    pooled = None if missing else getattr(output, "pooler_output", None)
    if pooled is not None:
        pooling, width = "pooler", pooled.flatten(1).shape[1]
    else:
        vision.pooler = None
        tokens, patches = output.last_hidden_state, (size // getattr(config, "patch_size", size)) ** 2
        others = tokens.shape[1] - patches
        if tokens.ndim != 3 or not 0 <= others <= _MOST_OTHER_TOKENS:
            raise ValueError(f"{name}: {config.model_type} is not supported: it gives no vector of a picture")
        pooling, width = "class_token" if others else "mean", tokens.shape[2]
    settings = {key: value for key, value in config.to_dict().items() if key not in _NOT_OF_THE_NETWORK}
    width = width if projection is None else projection.out_features
    return {"config": settings, "pooling": pooling, "num_features": width, "projection": projection is not None}


def _text_arguments(theirs: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    config = theirs.text_model.config
    config.name_or_path, config.dtype, config.pad_token_id = "", None, tokenizer.pad_token_id
    return {
        "text_config": config,
        "text_pooling": TWO_TOWERS[theirs.config.model_type],
        "text_projection": "affine" if hasattr(theirs, "text_projection") else "linear",
        "zero_shot_scores": "sigmoid" if hasattr(theirs, "logit_bias") else "softmax",
    }


@torch.no_grad()
def _load_text_tower(model: RadFMForDiagnosis, theirs: PreTrainedModel) -> None:
    """The text model, its projection, and the scale and bias of the logits."""
    text = model.radfm.text_encoder
    assert text is not None
    text.encoder.load_state_dict(theirs.text_model.state_dict())
    if hasattr(theirs, "text_projection"):  # it has no bias
        text.projection.weight.copy_(theirs.text_projection.weight)
        text.projection.bias.zero_()
    model.head.logit_scale.copy_(theirs.logit_scale.reshape(1))
    bias = getattr(theirs, "logit_bias", None)
    model.head.logit_bias.copy_(torch.zeros(1) if bias is None else bias.reshape(1))


def _state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters and all buffers: radfm's towers also hold those that transformers does not save."""
    return dict(model.named_parameters()) | dict(model.named_buffers())
