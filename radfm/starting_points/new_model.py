"""Models with a pretrained text encoder and untrained vision, and the processor of a configuration."""

import json
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from radfm.checkpoints import resolve
from radfm.configuration_radfm import RadFMConfig, RadFMVisionConfig
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.starting_points.minilm import minilm_weights, without_pooler


def untrained(
    config: RadFMConfig | None = None, seed: int = 0, text_encoder: str | Path | None = None
) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    """A model with a pretrained text encoder and untrained vision, and its processor.

    Args:
        config: of the model; with `text_encoder` its text part is replaced.
        text_encoder: folder of an encoder that `radfm train text` or sentence-transformers saved, or
            "radfm-text-mini"; None: the packaged all-MiniLM-L6-v2.

    Raises:
        ValueError: the packaged weights are not the published ones, or the folder holds no such encoder.
    """
    config, tokenizer, weights = config or RadFMConfig(), None, None
    if text_encoder is None:
        weights = minilm_weights()
    else:
        folder = Path(resolve(text_encoder))
        try:
            text_config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
            pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
            weights = without_pooler(load_file(folder / "model.safetensors"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} is no SentenceTransformer: {str(error).splitlines()[0]}") from error
        mean = pooling.get("pooling_mode") == "mean" or pooling.get("pooling_mode_mean_tokens", False)
        text_config.name_or_path = tokenizer.name_or_path = ""  # a checkpoint tells no path of this machine
        changes = {"text_pooling": "mean" if mean else "cls", "projection_dim": text_config.hidden_size}
        config = RadFMConfig(**config.to_dict() | {"text_config": text_config} | changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RadFMForDiagnosis(config).eval()
    model.radfm.text_encoder.encoder.load_state_dict(weights, strict=True)
    return model, processor_for(model.config, tokenizer)


def processor_for(config: RadFMConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> RadFMProcessor:
    """The processor for a model of this configuration; without a tokenizer it has that of all-MiniLM-L6-v2."""
    size = cast(RadFMVisionConfig, config.vision_config).image_size
    images = RadFMImageProcessor(size=size, modalities=config.modalities, planes=config.planes)
    return RadFMProcessor(images, tokenizer, use_history=config.use_history)
