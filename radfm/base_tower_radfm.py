"""The protocol of towers, networks that turn slices or volumes into features, and their fast form for inference.

Decisions:
- A tower is any subclass of [`Tower`]. Its registry is `radfm.towers_radfm.TOWERS`.
- The base class fits every timm network that pools by itself.
- What explains a logit is found in the network itself: its last feature map that is fine enough, else its input.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_radfm import RadFMVisionConfig

LEAST_GRID = 6  # patches a side of a feature map that is fine enough to explain a logit with
_INPUT_PATCH = 16  # pixels a side that are pooled where only the input can explain a logit


class Tower(nn.Module):
    """Slices -> one vector of features each. The base class fits every timm network that pools by itself.

    Args:
        config: of the vision.
        hidden_size: of the model.
        network: the network; its weights are saved as `tower.network.*`.

    Attributes:
        num_features: f, the length of the vector.
        in_channels: of a slice, of which the tower reads the first ones.
        reads_volumes: whether it reads (n, in_channels, D, H, W), all slices of a slab at once.
        patch_disorders: on the masks of how many disorders the tower was trained; 0: of none.
        features_can_be_cached: whether the features of a slice, or of a volume, depend on it and on the network alone.
    """

    reads_volumes = False
    patch_disorders = 0

    def __init__(self, config: RadFMVisionConfig, hidden_size: int, network: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.network = keep_initialization(self.build(config) if network is None else network)
        self._fast: FastTower | None = None

    @classmethod
    def build(cls, config: RadFMVisionConfig) -> nn.Module:
        """The network, with random weights."""
        return timm_network(config, config.tower_args or {})

    @property
    def in_channels(self) -> int:
        return 3

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
        patches = single_patches(feature_map)
        return self.pool(patches.flatten(0, 2)).unflatten(0, patches.shape[:3])

    def optimize_for_inference(self, dtype: torch.dtype, compile: bool) -> None:
        """Replaces the network in `forward` by a [`FastTower`]; the weights stay."""
        chunk = 1 if self.reads_volumes else self.config.slices_per_chunk
        self._fast = FastTower(self.network, dtype, chunk if compile else None, self.reads_volumes)

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
        return replace_feature_map(self.network, self.config.image_size, replace)

    def sum_channels(self, activations: Tensor) -> Tensor:
        """Activations as `replace_activations` shows them -> (n, h, w), the sum over their channels."""
        return sum_over_channels(self.network, activations)


class FastTower:
    """A tower in eval mode: channels-last, batch norms folded where possible, compiled if requested.

    What is compiled is compared once with what is not, on the first slices: torch.compile has returned NaN on some
    processors (torch 2.14 with AVX2). Where it differs, a warning says so, and the tower is used as it is.

    Args:
        tower: is not changed.
        dtype: of the computation; batch norms are folded before, in the tower's own.
        chunk: number of slices that `torch.compile` compiles for; fewer slices are padded to it. None: not compiled.
        volumes: whether it reads volumes.
    """

    def __init__(self, tower: nn.Module, dtype: torch.dtype, chunk: int | None = None, volumes: bool = False):
        from torch.fx.experimental.optimization import fuse
        from torch.fx.proxy import TraceError

        has_batch_norm = any(isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d) for module in tower.modules())
        try:
            tower = fuse(tower) if has_batch_norm else copy.deepcopy(tower)
        except TraceError:  # its control flow depends on tensors, as the padding of TensorFlow's networks does
            tower = copy.deepcopy(tower)
        self.memory_format = channels_last(volumes)
        self.tower = tower.to(dtype=dtype, memory_format=self.memory_format)
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
            slices = torch.cat([slices, slices.new_zeros(self.chunk - n, *slices.shape[1:])])
        slices = slices.contiguous(memory_format=self.memory_format)
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


def channels_last(volumes: bool) -> torch.memory_format:
    """The memory format in which convolutions of slices, or of volumes, are fastest."""
    return torch.channels_last_3d if volumes else torch.channels_last


def timm_network(config: RadFMVisionConfig, arguments: dict[str, Any]) -> nn.Module:
    import timm  # here, since the import takes seconds

    arguments = arguments | {"in_chans": 3 * config.slice_depth}
    return timm.create_model(config.tower, pretrained=False, num_classes=0, **arguments)


def keep_initialization(network: nn.Module) -> nn.Module:
    """Marks a network that its own constructor has initialised, and lets a checkpoint hold all of its buffers.

    `from_pretrained` builds models without memory and fills them from the checkpoint, which has to hold everything:
    also the tables (attention masks, relative positions) that timm and open_clip do not save.
    """
    for module in network.modules():
        module.is_part_of_a_tower = True
        module._non_persistent_buffers_set.clear()
    return network


def single_patches(feature_map: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, h, w, c, 1, 1), each patch as a feature map of its own."""
    return feature_map.permute(0, 2, 3, 1)[..., None, None]


def has_channels_last(network: nn.Module) -> bool:
    """Whether feature maps are (n, h, w, c), as in timm's hierarchical transformers."""
    return str(getattr(network, "output_fmt", "NCHW")) == "NHWC"


def replace_feature_map(network: nn.Module, image_size: int, replace: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """At the deepest stage that is fine enough, or at the input of a network that has no stages."""
    if stage := fine_stage(network, image_size):
        return network.get_submodule(stage).register_forward_hook(lambda module, args, output: replace(output)).remove
    if hasattr(network, "forward_features"):  # every timm network
        features = network.forward_features
        network.forward_features = lambda *args, **kwargs: replace(features(*args, **kwargs))
        return lambda: delattr(network, "forward_features")
    if hasattr(network, "layer4"):  # open_clip's ResNet
        return network.layer4.register_forward_hook(lambda module, args, output: replace(output)).remove
    return network.register_forward_pre_hook(lambda module, args: (replace(args[0]), *args[1:])).remove


def replace_tokens(network: nn.Module, replace: Callable[[Tensor], Tensor]) -> Callable[[], None] | None:
    """At the last block of a transformer; None where there are no blocks."""
    blocks = getattr(network, "blocks", None) or getattr(getattr(network, "transformer", None), "resblocks", None)
    if blocks is None:
        return None
    return blocks[-1].register_forward_pre_hook(lambda module, args: (replace(args[0]), *args[1:])).remove


def sum_over_channels(network: nn.Module, activations: Tensor) -> Tensor:
    if activations.ndim == 3:  # (n, class and register tokens + patches, channels)
        tokens = activations.sum(-1)
        side = isqrt(tokens.shape[1])
        return tokens[:, -side * side :].unflatten(1, (side, side))
    maps = activations.sum(-1 if has_channels_last(network) else 1)
    return F.avg_pool2d(maps[:, None], _INPUT_PATCH)[:, 0] if min(maps.shape[1:]) > 8 * _INPUT_PATCH else maps


def fine_stage(network: nn.Module, image_size: int) -> str | None:
    """The deepest stage of a timm CNN with at least 6 patches a side, where the last has fewer; else None."""
    stages = list(getattr(network, "feature_info", ()))
    if not stages or image_size / stages[-1]["reduction"] >= LEAST_GRID:
        return None
    fine = [stage["module"] for stage in stages if image_size / stage["reduction"] >= LEAST_GRID]
    return fine[-1] if fine and fine[-1] in dict(network.named_modules()) else None
