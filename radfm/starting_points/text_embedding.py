"""Texts as embeddings, by the text encoder of a model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from radfm.knowledge.embedding import batches_of_one_length
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.starting_points.new_model import untrained


def embed_texts(model: RadFMForDiagnosis, processor: RadFMProcessor, texts: Sequence[str]) -> Tensor:
    """(texts, d), of unit length."""
    plain: dict[str, Any] = {"padding": False, "return_tensors": None, "return_attention_mask": False}
    tokens = processor(text=texts, **plain)["input_ids"] if len(texts) else []
    embeds = torch.empty(len(texts), model.config.projection_dim, device=model.device, dtype=model.dtype)
    with torch.inference_mode():
        for rows in batches_of_one_length([len(ids) for ids in tokens]):
            embeds[rows] = model.get_text_features(torch.tensor([tokens[i] for i in rows], device=model.device))
    return embeds


def text_embedder(text_encoder: str | Path) -> Callable[[Sequence[str]], np.ndarray]:
    """A function of texts that returns (texts, d), of unit length. Arguments and errors are those of `untrained`."""
    model, processor = untrained(text_encoder=text_encoder)
    model.bfloat16()
    encoder = model.radfm.text_encoder
    assert encoder is not None
    encoder.encoder.set_attn_implementation("eager")  # for short texts faster on CPUs than the fused one

    def embed(texts: Sequence[str]) -> np.ndarray:
        return embed_texts(model, processor, texts).float().numpy()

    return embed
