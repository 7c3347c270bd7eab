"""The tower of a vision model of transformers, and the text model that was trained with it.

Decisions:
- transformers builds the networks from their configurations, so published weights fit without renaming.
- A model of images alone gives its own pooled vector (`pooler_output`); its class token or the mean of its tokens where
  it has no pooler, or one that was never trained. `tower_args` says which.
- Transformers and hierarchical networks need no table for their maps: the layers are the largest list of modules, and
  one slice that goes through it shows whether patches stay as many as they were.
"""

from collections.abc import Callable
from math import isqrt
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .base_tower_radfm import LEAST_GRID, Tower
from .configuration_radfm import RadFMVisionConfig

# Parts of models with two towers that `AutoModel` does not know by themselves: model type -> class.
_CLASSES = {
    "metaclip_2_text_model": "MetaClip2TextModel",
    "metaclip_2_vision_model": "MetaClip2VisionModel",
    "siglip_text_model": "SiglipTextModel",
}


def build_transformers_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration of transformers, with random weights."""
    if config.model_type in _CLASSES:
        return getattr(transformers, _CLASSES[config.model_type])._from_config(config)
    return AutoModel.from_config(config)


class PooledVisionModel(nn.Module):
    """A vision model of transformers, its pooling and its projection: slices -> one vector each.

    Args:
        config: of the vision model, as its `to_dict` returns it.
        pooling: "pooler", the model's own; "class_token"; or "mean", over the tokens.
        num_features: f, the length of the vector.
        projection: whether a linear map follows, as in CLIP.
    """

    def __init__(self, config: dict[str, Any], pooling: str, num_features: int, projection: bool = False):
        super().__init__()
        settings = CONFIG_MAPPING[config["model_type"]](**config)
        self.model = build_transformers_model(settings)
        if pooling != "pooler" and getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # not used
        for name, parameter in self.model.named_parameters():
            if name.endswith("mask_token"):  # of masked training alone: DDP waits for the gradients of all others
                parameter.requires_grad_(False)
        self.pooling, self.num_features = pooling, num_features
        self.num_channels = getattr(settings, "num_channels", 3)
        self.projection = nn.Linear(settings.hidden_size, num_features, bias=False) if projection else nn.Identity()

    def forward(self, slices: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, f)."""
        if self.num_channels == 1:
            slices = slices.mean(1, keepdim=True)
        output = self.model(slices)
        if self.pooling == "pooler":
            return self.projection(output.pooler_output.flatten(1))
        tokens = output.last_hidden_state  # (n, tokens, width)
        return self.projection(tokens[:, 0] if self.pooling == "class_token" else tokens.mean(1))


class TransformersTower(Tower):
    """A vision model of transformers. `family="transformers"`; `tower_args` as in [`PooledVisionModel`]."""

    network: PooledVisionModel

    def __init__(self, config: RadFMVisionConfig, hidden_size: int, network: nn.Module | None = None):
        if config.slice_depth != 1:
            raise ValueError('the family "transformers" reads slices one by one: slice_depth has to be 1')
        super().__init__(config, hidden_size, network)

    @classmethod
    def build(cls, config: RadFMVisionConfig) -> nn.Module:
        return PooledVisionModel(**(config.tower_args or {}))

    @property
    def num_features(self) -> int:
        return self.network.num_features

    def replace_activations(self, replace: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        """As [`Tower.replace_activations`]: the tokens that enter the last layer of a transformer, or the output of the
        deepest stage of a hierarchical network that is fine enough.

        The tokens that leave a transformer will not do: where only the class token is read, patches have no gradient.
        """
        layers = self._layers_with_shapes()
        if not layers:
            return super().replace_activations(replace)
        last, shape, _ = layers[-1]
        if len(shape) == 3 and all(before == after == shape for _, before, after in layers):
            return last.register_forward_pre_hook(lambda _, args: (replace(args[0]), *args[1:])).remove
        fine = [layer for layer, _, after in layers if _patches_a_side(after) >= LEAST_GRID]
        stage = fine[-1] if fine else last
        return stage.register_forward_hook(lambda _, args, output: _replace_first(output, replace)).remove

    @torch.no_grad()
    def _layers_with_shapes(self) -> list[tuple[nn.Module, torch.Size, torch.Size]]:
        """Each layer with the shape of its input and of its output, for one slice; empty for an unknown structure."""
        found: list[tuple[nn.Module, torch.Size, torch.Size]] = []

        def record(layer: nn.Module, args: tuple, output: Tensor | tuple) -> None:
            after = output if isinstance(output, Tensor) else output[0]
            if args:
                found.append((layer, args[0].shape, after.shape))

        hooks = [layer.register_forward_hook(record) for layer in _largest_list(self.network.model)]
        weight = next(self.network.parameters())
        size = self.config.image_size
        try:
            self.network(weight.new_zeros(1, 3, size, size))
        finally:
            for hook in hooks:
                hook.remove()
        return found


def _largest_list(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformer, or the stages of a hierarchical network: the list with the most parameters."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    sizes = [sum(parameter.numel() for parameter in layers.parameters()) for layers in lists]
    return list(lists[sizes.index(max(sizes))]) if lists else []  # of equal ones the outermost


def _patches_a_side(shape: torch.Size) -> int:
    """Of (n, c, h, w), or of (n, tokens, c)."""
    return shape[-1] if len(shape) == 4 else isqrt(shape[1])


def _replace_first(output: Tensor | tuple, replace: Callable[[Tensor], Tensor]) -> Tensor | tuple:
    return replace(output) if isinstance(output, Tensor) else (replace(output[0]), *output[1:])
