"""Towers: networks from timm and open_clip that turn slices into features.

A new tower is a subclass of [`Tower`] and a line in [`TOWERS`]; `vision_config.family` is its name there.

Decisions:
- 3D patches are a 2D patch embedding that reads the channels of `slice_depth` neighbouring slices: the same numbers as
  a 3D convolution of that depth and stride, and every timm network can have them.
- Global pooling loses small lesions. So a tower that was trained on segmentation masks can append to the pooled
  features of a slice, for each disorder of those masks, the largest logit over the patches ([`PatchTower`]).
- open_clip's networks are built by open_clip from its configuration, so its weights fit without renaming.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_radfm import RadFMEncoderConfig, RadFMOpenCLIPTextConfig, RadFMVisionConfig
from .encoder_radfm import RadFMEncoder
from .layers_radfm import projection_layer

_LEAST_GRID = 6  # patches a side of a feature map that is fine enough to explain a logit with
_INPUT_PATCH = 16  # pixels a side that are pooled where only the input can explain a logit


class Tower(nn.Module):
    """Slices -> one vector of features each. The base class fits every timm network that pools by itself.

    Args:
        config: of the vision.
        hidden_size: of the model.
        network: the network; its weights are saved as `tower.network.*`.

    Attributes:
        num_features: f, the length of the vector.
        patch_disorders: on the masks of how many disorders the tower was trained; 0: of none.
        features_can_be_cached: whether the features of a slice depend on that slice and on the network alone.
    """

    patch_disorders = 0

    def __init__(self, config: RadFMVisionConfig, hidden_size: int, network: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.network = _fixed(self.build(config) if network is None else network)
        self._fast: FastTower | None = None

    @classmethod
    def build(cls, config: RadFMVisionConfig) -> nn.Module:
        """The network, with random weights."""
        return _timm_network(config, config.tower_args or {})

    @property
    def num_features(self) -> int:
        return getattr(self.network, "head_hidden_size", None) or self.network.num_features

    @property
    def features_can_be_cached(self) -> bool:
        return self.config.slice_depth == 1

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """How the published weights of this network were trained: "input_size", "mean", "std"; empty if unknown."""
        return dict(getattr(self.network, "pretrained_cfg", None) or {})

    def forward(self, slices: Tensor) -> Tensor:
        """(n, 3 * slice_depth, H, W) -> (n, f)."""
        return (self._fast or self.network)(slices)

    def patch_logits(self, features: Tensor) -> Tensor | None:
        """(..., f) features -> (..., patch_disorders), the largest logit of each over the patches; None: has none."""
        return None

    @property
    def shows_patches(self) -> bool:
        """Whether `feature_map`, `pool` and `pool_patches` can be called."""
        return False

    def feature_map(self, slices: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, c, h, w), the last feature map."""
        return self.network.forward_features(slices)

    def pool(self, feature_map: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, f): what `forward` returns of these slices."""
        return self.network.forward_head(feature_map)

    def pool_patches(self, feature_map: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, h, w, f): what `pool` returns of each patch as a feature map of its own."""
        patches = _single_patches(feature_map)
        return self.pool(patches.flatten(0, 2)).unflatten(0, patches.shape[:3])

    def optimize_for_inference(self, dtype: torch.dtype, compile: bool) -> None:
        """Replaces the network in `forward` by a [`FastTower`]; the weights stay."""
        self._fast = FastTower(self.network, dtype, self.config.slices_per_chunk if compile else None)

    @contextmanager
    def unoptimized(self) -> Iterator[None]:
        """Within it `forward` keeps gradients, whether or not the tower was optimized for inference."""
        fast, self._fast = self._fast, None
        try:
            yield
        finally:
            self._fast = fast

    def replace_activations(self, replace: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        """Calls `replace` with the activations that explain a logit best, in every `forward`; its result is used.

        These are the last feature map or, where it is coarser than 6 patches a side, the deepest stage that is not.

        Returns:
            What ends it.
        """
        return _replace_feature_map(self.network, self.config.image_size, replace)

    def sum_channels(self, activations: Tensor) -> Tensor:
        """Activations as `replace_activations` shows them -> (n, h, w), the sum over their channels."""
        return _sum_channels(self.network, activations)


class CNNTower(Tower):
    """A CNN of timm: its pooled features. `family="resnet"`."""

    @property
    def shows_patches(self) -> bool:
        return self.config.slice_depth == 1 and not _channels_last(self.network)


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
        _fixed(self)

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
        patches = _single_patches(feature_map)
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
        return _timm_network(config, {"img_size": config.image_size} | (config.tower_args or {}))

    def replace_activations(self, replace: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        """As [`Tower.replace_activations`]: the tokens that enter the last block.

        Those that leave it will not do: where only the class token is read, patches have no gradient there.
        """
        return _replace_tokens(self.network, replace) or super().replace_activations(replace)


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
        return _timm_network(config, (config.tower_args or {}) | {"global_pool": ""})


class OpenCLIPTower(Tower):
    """The visual tower of an open_clip model. `family="open_clip"`; `tower_args` as in `RadFMVisionConfig`."""

    @classmethod
    def build(cls, config: RadFMVisionConfig) -> nn.Module:
        return _open_clip_network("_build_vision_tower", **(config.tower_args or {}))

    @property
    def num_features(self) -> int:
        return (self.config.tower_args or {})["embed_dim"]

    def replace_activations(self, replace: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        return _replace_tokens(self._trunk, replace) or _replace_feature_map(
            self._trunk, self.config.image_size, replace
        )

    def sum_channels(self, activations: Tensor) -> Tensor:
        return _sum_channels(self._trunk, activations)

    @property
    def _trunk(self) -> nn.Module:
        return getattr(self.network, "trunk", self.network)  # open_clip wraps a timm network as its trunk


TOWERS: dict[str, type[Tower]] = {
    "resnet": CNNTower,
    "resnet-patch": PatchTower,
    "vit": ViTTower,
    "resnet-vit": TokenTower,
    "open_clip": OpenCLIPTower,
}


def build_tower(config: RadFMVisionConfig, hidden_size: int) -> Tower:
    """The tower of `config.family`, with random weights. Raises: ValueError where there is no such family."""
    if config.family not in TOWERS:
        raise ValueError(f"there is no tower of the family {config.family!r}: there are {', '.join(TOWERS)}")
    return TOWERS[config.family](config, hidden_size)


def open_clip_text_tower(config: RadFMOpenCLIPTextConfig) -> nn.Module:
    """(texts, tokens) int64 -> (texts, embed_dim)."""
    args = {"embed_dim": config.embed_dim, "text_cfg": config.text_cfg, "quick_gelu": config.quick_gelu}
    return _fixed(_open_clip_network("_build_text_tower", **args))


class FastTower:
    """A tower in eval mode for many slices: channels-last, batch norms folded where possible, compiled if requested.

    What is compiled is compared once with what is not, on the first slices: torch.compile has returned NaN on some
    processors (torch 2.14 with AVX2). Where it differs, a warning says so, and the tower is used as it is.

    Args:
        tower: is not changed.
        dtype: of the computation; batch norms are folded before, in the tower's own.
        chunk: number of slices that `torch.compile` compiles for; fewer slices are padded to it. None: not compiled.
    """

    def __init__(self, tower: nn.Module, dtype: torch.dtype, chunk: int | None = None):
        from torch.fx.experimental.optimization import fuse
        from torch.fx.proxy import TraceError

        has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in tower.modules())
        try:
            tower = fuse(tower) if has_batch_norm else copy.deepcopy(tower)
        except TraceError:  # its control flow depends on tensors, as the padding of TensorFlow's networks does
            tower = copy.deepcopy(tower)
        self.tower = tower.to(dtype=dtype, memory_format=torch.channels_last)
        self.chunk = chunk
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._unchecked = chunk is not None
        if chunk is not None:
            # Frozen weights let inductor lay them out for the convolutions once, and fold constants.
            self._compiled = torch.compile(self.tower, dynamic=False, options={"freezing": True})

    @torch.no_grad()
    def __call__(self, slices: Tensor) -> Tensor:
        n = len(slices)
        if self.chunk is not None and n < self.chunk:
            slices = F.pad(slices, (0, 0, 0, 0, 0, 0, 0, self.chunk - n))
        slices = slices.contiguous(memory_format=torch.channels_last)
        if self._compiled is None:
            return self.tower(slices)[:n]
        features = self._compiled(slices)
        if self._unchecked:
            self._unchecked, expected = False, self.tower(slices)
            error = (features - expected).float().norm() / expected.float().norm()
            if not error <= (0.05 if expected.dtype in (torch.bfloat16, torch.float16) else 1e-3):
                warnings.warn(
                    f"torch.compile of torch {torch.__version__} gives other values on this processor, relative error "
                    f"{error:.2g}, so the model is used uncompiled",
                    stacklevel=2,
                )
                self._compiled, features = None, expected
        return features[:n]


def _timm_network(config: RadFMVisionConfig, arguments: dict[str, Any]) -> nn.Module:
    import timm  # here, since the import takes seconds

    arguments = arguments | {"in_chans": 3 * config.slice_depth}
    return timm.create_model(config.tower, pretrained=False, num_classes=0, **arguments)


def _open_clip_network(build: str, **config) -> nn.Module:
    try:
        module = import_module("open_clip.model")
    except ImportError as error:
        raise ImportError("this checkpoint has an open_clip tower: pip install open_clip_torch") from error
    return getattr(module, build)(**config)


def _fixed(network: nn.Module) -> nn.Module:
    """Marks a network that its own constructor has initialised, and lets a checkpoint hold all of its buffers.

    `from_pretrained` builds models without memory and fills them from the checkpoint, which has to hold everything:
    also the tables (attention masks, relative positions) that timm and open_clip do not save.
    """
    for module in network.modules():
        module.is_part_of_a_tower = True
        module._non_persistent_buffers_set.clear()
    return network


def _single_patches(feature_map: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, h, w, c, 1, 1), each patch as a feature map of its own."""
    return feature_map.permute(0, 2, 3, 1)[..., None, None]


def _channels_last(network: nn.Module) -> bool:
    """Whether feature maps are (n, h, w, c), as in timm's hierarchical transformers."""
    return str(getattr(network, "output_fmt", "NCHW")) == "NHWC"


def _replace_tokens(network: nn.Module, replace: Callable[[Tensor], Tensor]) -> Callable[[], None] | None:
    """At the last block of a transformer; None where there are no blocks."""
    blocks = getattr(network, "blocks", None) or getattr(getattr(network, "transformer", None), "resblocks", None)
    if blocks is None:
        return None
    return blocks[-1].register_forward_pre_hook(lambda module, args: (replace(args[0]), *args[1:])).remove


def _replace_feature_map(
    network: nn.Module, image_size: int, replace: Callable[[Tensor], Tensor]
) -> Callable[[], None]:
    """At the deepest stage that is fine enough, or at the input of a network that has no stages."""
    if stage := _fine_stage(network, image_size):
        return network.get_submodule(stage).register_forward_hook(lambda module, args, output: replace(output)).remove
    if hasattr(network, "forward_features"):  # every timm network
        features = network.forward_features
        network.forward_features = lambda *args, **kwargs: replace(features(*args, **kwargs))
        return lambda: delattr(network, "forward_features")
    if hasattr(network, "layer4"):  # open_clip's ResNet
        return network.layer4.register_forward_hook(lambda module, args, output: replace(output)).remove
    return network.register_forward_pre_hook(lambda module, args: (replace(args[0]), *args[1:])).remove


def _fine_stage(network: nn.Module, image_size: int) -> str | None:
    """The deepest stage of a timm CNN with at least 6 patches a side, where the last has fewer; else None."""
    stages = list(getattr(network, "feature_info", ()))
    if not stages or image_size / stages[-1]["reduction"] >= _LEAST_GRID:
        return None
    fine = [stage["module"] for stage in stages if image_size / stage["reduction"] >= _LEAST_GRID]
    return fine[-1] if fine and fine[-1] in dict(network.named_modules()) else None


def _sum_channels(network: nn.Module, activations: Tensor) -> Tensor:
    if activations.ndim == 3:  # (n, class and register tokens + patches, channels)
        tokens = activations.sum(-1)
        side = isqrt(tokens.shape[1])
        return tokens[:, -side * side :].unflatten(1, (side, side))
    maps = activations.sum(-1 if _channels_last(network) else 1)
    return F.avg_pool2d(maps[:, None], _INPUT_PATCH)[:, 0] if min(maps.shape[1:]) > 8 * _INPUT_PATCH else maps
