"""The text encoder: any text encoder of transformers, or the text tower of an open_clip model, and a projection.

Decisions:
- SigLIP reads the last token of a text that is padded to its full length, without a mask. So texts are padded here,
  however a processor padded them.
- Longformer pads a text to its window of 512 tokens. In a text of at most half a window each token sees all others, so
  that a window twice as long as the text gives the same: 12 tokens are embedded 29 times as fast on one core.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .configuration_radfm import RadFMConfig, RadFMOpenCLIPTextConfig
from .layers_radfm import projection_layer
from .towers_radfm import open_clip_text_tower
from .transformers_tower_radfm import build_transformers_model

_WINDOW = Lock()  # of a Longformer: held while it is narrower
_LEAST_TOKENS = 2  # before and behind a token that a window of Longformer has


class RadFMTextEncoder(nn.Module):
    """Token ids -> one vector for each text."""

    def __init__(self, config: RadFMConfig):
        super().__init__()
        self.pooling = config.text_pooling
        text = config.text_config
        if isinstance(text, RadFMOpenCLIPTextConfig):
            self.encoder, width = open_clip_text_tower(text), text.embed_dim
        else:
            self.encoder = build_transformers_model(cast(PreTrainedConfig, text))
            width = cast(PreTrainedConfig, text).hidden_size
            if self.pooling == "padded_pooler":
                width = getattr(text, "projection_size", width)
            elif self.pooling != "pooler" and getattr(self.encoder, "pooler", None) is not None:
                self.encoder.pooler = None  # not used
        self.projection = projection_layer(width, config.projection_dim, config.text_projection)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """
        ```python
        tokens = processor(text=["pneumothorax", "rib fracture"])
        embeds = model.radfm.text_encoder(**tokens)  # (2, d), of any length
        ```

        Args:
            input_ids, attention_mask: (texts, tokens) int64.
        Returns:
            (texts, d)
        """
        if not isinstance(self.encoder, PreTrainedModel):
            missing = self.encoder.context_length - input_ids.shape[1]  # open_clip's mask has one length only
            return self.projection(self.encoder(F.pad(input_ids, (0, missing))))
        if self.pooling == "padded_pooler":
            text = self.encoder.config
            missing = text.max_position_embeddings - input_ids.shape[1]
            return self.projection(self.encoder(F.pad(input_ids, (0, missing), value=text.pad_token_id)).pooler_output)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if self.pooling == "pooler":
            return self.projection(self.encoder(input_ids=input_ids, attention_mask=attention_mask).pooler_output)
        hidden_states = _hidden_states(self.encoder, input_ids, attention_mask)
        if self.pooling == "cls":
            return self.projection(hidden_states[:, 0])
        mask = attention_mask.unsqueeze(-1).to(hidden_states.dtype)
        return self.projection((hidden_states * mask).sum(1) / mask.sum(1).clamp(min=1))

    def get_input_embeddings(self) -> nn.Module:
        return getattr(self.encoder, "token_embedding", None) or self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)


def _hidden_states(encoder: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(texts, tokens, width), of the last layer."""
    given, config = input_ids.shape[1], encoder.config
    tokens = max(given, _LEAST_TOKENS)
    if config.model_type != "longformer" or encoder.training or 2 * tokens >= min(config.attention_window):
        return encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    input_ids = F.pad(input_ids, (0, 2 * tokens - given), value=config.pad_token_id)
    attention_mask = F.pad(attention_mask, (0, 2 * tokens - given))
    with _narrow_window(encoder, tokens):
        return encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, :given]


@contextmanager
def _narrow_window(longformer: PreTrainedModel, tokens: int) -> Iterator[None]:
    """Within it each token attends to so many tokens before it, and as many behind it."""
    config, layers = longformer.config, [layer.attention.self for layer in longformer.encoder.layer]
    with _WINDOW:
        windows, config.attention_window = config.attention_window, [2 * tokens] * len(layers)
        for layer in layers:
            layer.one_sided_attn_window_size = tokens
        try:
            yield
        finally:
            config.attention_window = windows
            for layer, window in zip(layers, windows, strict=True):
                layer.one_sided_attn_window_size = window // 2
