"""Towers from timm and open_clip, and the registry of all towers.

A new tower is a subclass of `radfm.base_tower_radfm.Tower` and a line in [`TOWERS`]; `vision_config.family` is its name
there.

Decisions:
- 3D patches are a 2D patch embedding that reads the channels of `slice_depth` neighbouring slices: the same numbers as
  a 3D convolution of that depth and stride, and every timm network can have them.
- Global pooling loses small lesions. So a tower that was trained on segmentation masks can append to the pooled
  features of a slice, for each disorder of those masks, the largest logit over the patches ([`PatchTower`]).
- open_clip's networks are built by open_clip from its configuration, so its weights fit without renaming.
"""

from collections.abc import Callable
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base_tower_radfm import (
    FastTower,
    Tower,
    has_channels_last,
    keep_initialization,
    replace_feature_map,
    replace_tokens,
    single_patches,
    sum_over_channels,
    timm_network,
)
from .configuration_radfm import RadFMEncoderConfig, RadFMOpenCLIPTextConfig, RadFMVisionConfig
from .encoder_radfm import RadFMEncoder
from .latent_tower_radfm import LatentTower
from .layers_radfm import projection_layer
from .transformers_tower_radfm import TransformersTower
from .volume_tower_radfm import MONAITower, ResNet3dTower, ViT3dTower


class CNNTower(Tower):
    """A CNN of timm: its pooled features. `family="resnet"`."""

    @property
    def shows_patches(self) -> bool:
        return self.config.slice_depth == 1 and not has_channels_last(self.network)


class PatchTower(CNNTower):
    """A CNN that was trained on masks: pooled features, then the largest patch logit of each disorder.

    `family="resnet-patch"`, with `patch_disorders` and `patch_dim`.
    """

    def __init__(self, config: RadFMVisionConfig, hidden_size: int, network: nn.Module | None = None):
        super().__init__(config, hidden_size, network)
        if not config.patch_disorders or not config.patch_dim:
            raise ValueError('the family "resnet-patch" needs patch_disorders and patch_dim in vision_config')
        self.patch_disorders = config.patch_disorders
        self.projection = nn.Linear(super().num_features, config.patch_dim, bias=False)
        self.register_buffer("embeds", torch.zeros(config.patch_disorders, config.patch_dim))
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        keep_initialization(self)

    @property
    def num_features(self) -> int:
        return super().num_features + self.patch_disorders

    def forward(self, slices: Tensor) -> Tensor:
        return self.pool(self.feature_map(slices)) if self._fast is None else self._fast(slices)

    def patch_logits(self, features: Tensor) -> Tensor:
        return features[..., -self.patch_disorders :]

    def pool(self, feature_map: Tensor) -> Tensor:
        patch_logits = self.logits_of_patches(feature_map).amax((1, 2))
        return torch.cat([self.network.forward_head(feature_map), patch_logits], dim=1)

    def logits_of_patches(self, feature_map: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, h, w, patch_disorders), scaled cosines."""
        patches = single_patches(feature_map)
        embeds = F.normalize(self.projection(self.network.forward_head(patches.flatten(0, 2))), dim=-1)
        return (self.scale * embeds @ self.embeds.T + self.bias).unflatten(0, patches.shape[:3])

    def optimize_for_inference(self, dtype: torch.dtype, compile: bool) -> None:
        with self.unoptimized():
            fast = FastTower(self, dtype, self.config.slices_per_chunk if compile else None)
        self._fast = fast


class ViTTower(Tower):
    """A vision transformer of timm: its class token or pooled tokens. `family="vit"`."""

    @classmethod
    def build(cls, config: RadFMVisionConfig) -> nn.Module:
        return timm_network(config, {"img_size": config.image_size} | (config.tower_args or {}))

    def replace_activations(self, replace: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        """As [`Tower.replace_activations`]: the tokens that enter the last block.

        Those that leave it will not do: where only the class token is read, patches have no gradient there.
        """
        return replace_tokens(self.network, replace) or super().replace_activations(replace)


class TokenTower(Tower):
    """A CNN whose feature map are the tokens of a transformer; its class token. `family="resnet-vit"`."""

    def __init__(self, config: RadFMVisionConfig, hidden_size: int, network: nn.Module | None = None):
        super().__init__(config, hidden_size, network)
        self.hidden_size = hidden_size
        self.projection = projection_layer(self.network.num_features, hidden_size)
        tokens = RadFMEncoderConfig(
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            num_positions=(-(-config.image_size // self.network.feature_info[-1]["reduction"])) ** 2,
        )
        self.token_encoder = RadFMEncoder(tokens, hidden_size)

    @property
    def num_features(self) -> int:
        return self.hidden_size

    @property
    def features_can_be_cached(self) -> bool:
        return False  # the transformer learns

    def forward(self, slices: Tensor) -> Tensor:
        feature_map = super().forward(slices)
        tokens = self.projection(feature_map.flatten(2).transpose(1, 2))  # (n, h * w, hidden_size)
        return self.token_encoder(tokens.flatten(0, 1), [tokens.shape[1]] * len(tokens)).embeds

    @classmethod
    def build(cls, config: RadFMVisionConfig) -> nn.Module:
        return timm_network(config, (config.tower_args or {}) | {"global_pool": ""})


class OpenCLIPTower(Tower):
    """The visual tower of an open_clip model. `family="open_clip"`; `tower_args` as in `RadFMVisionConfig`."""

    @classmethod
    def build(cls, config: RadFMVisionConfig) -> nn.Module:
        return _open_clip_network("_build_vision_tower", **(config.tower_args or {}))

    @property
    def num_features(self) -> int:
        return (self.config.tower_args or {})["embed_dim"]

    def replace_activations(self, replace: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        return replace_tokens(self._trunk, replace) or replace_feature_map(self._trunk, self.config.image_size, replace)

    def sum_channels(self, activations: Tensor) -> Tensor:
        return sum_over_channels(self._trunk, activations)

    @property
    def _trunk(self) -> nn.Module:
        return getattr(self.network, "trunk", self.network)  # open_clip wraps a timm network as its trunk


TOWERS: dict[str, type[Tower]] = {
    "resnet": CNNTower,
    "resnet-patch": PatchTower,
    "vit": ViTTower,
    "resnet-vit": TokenTower,
    "open_clip": OpenCLIPTower,
    "transformers": TransformersTower,
    "latent": LatentTower,
    "resnet3d": ResNet3dTower,
    "vit3d": ViT3dTower,
    "monai": MONAITower,
}


def build_tower(config: RadFMVisionConfig, hidden_size: int) -> Tower:
    """The tower of `config.family`, with random weights. Raises: ValueError where there is no such family."""
    if config.family not in TOWERS:
        raise ValueError(f"there is no tower of the family {config.family!r}: there are {', '.join(TOWERS)}")
    return TOWERS[config.family](config, hidden_size)


def open_clip_text_tower(config: RadFMOpenCLIPTextConfig) -> nn.Module:
    """(texts, tokens) int64 -> (texts, embed_dim)."""
    args = {"embed_dim": config.embed_dim, "text_cfg": config.text_cfg, "quick_gelu": config.quick_gelu}
    return keep_initialization(_open_clip_network("_build_text_tower", **args))


def _open_clip_network(build: str, **config) -> nn.Module:
    try:
        module = import_module("open_clip.model")
    except ImportError as error:
        raise ImportError("this checkpoint has an open_clip tower: pip install open_clip_torch") from error
    return getattr(module, build)(**config)
