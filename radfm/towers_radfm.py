"""Towers by name, from timm and open_clip, and what makes one fast.

Decisions:
- 3D patches are a 2D patch embedding that reads the channels of `slice_depth` neighbouring slices: the same numbers as
  a 3D convolution of that depth and stride, and every timm tower can have them.
- open_clip's own towers are built by open_clip from its configuration, so its weights fit without mapping.
"""

import copy
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_radfm import RadFMOpenCLIPTextConfig, RadFMVisionConfig


def visual_tower(config: RadFMVisionConfig) -> nn.Module:
    """(n, 3 * slice_depth, H, W) -> (n, features), or for "resnet-vit" the feature map (n, features, h, w)."""
    import timm  # here, since it takes seconds: only who builds a tower pays

    args = dict(config.tower_args or {})
    if config.tower == "open_clip":
        tower = _open_clip("_build_vision_tower", **args)
    else:
        args["in_chans"] = 3 * config.slice_depth
        if config.family == "vit":
            args.setdefault("img_size", config.image_size)
        if config.family == "resnet-vit":
            args["global_pool"] = ""
        tower = timm.create_model(config.tower, pretrained=False, num_classes=0, **args)
    return _own(tower)


def num_features(tower: nn.Module, config: RadFMVisionConfig) -> int:
    """How many numbers the tower answers with, for a picture or for a place on the feature map."""
    if config.tower == "open_clip":
        return config.tower_args["embed_dim"]
    if config.family == "resnet-vit":
        return tower.num_features
    return getattr(tower, "head_hidden_size", None) or tower.num_features


def feature_map_side(tower: nn.Module, config: RadFMVisionConfig) -> int:
    return -(-config.image_size // tower.feature_info[-1]["reduction"])


def open_clip_text_tower(config: RadFMOpenCLIPTextConfig) -> nn.Module:
    """(texts, tokens) int64 -> (texts, embed_dim)."""
    args = {"embed_dim": config.embed_dim, "text_cfg": config.text_cfg, "quick_gelu": config.quick_gelu}
    return _own(_open_clip("_build_text_tower", **args))


class FastTower:
    """A tower in eval mode for many slices: channels-last, norms folded where it can be, compiled where asked.

    Args:
        tower: left as it is.
        dtype: what the tower computes in; folding comes first, in the tower's own.
        chunk: what `torch.compile` is compiled for; fewer slices are filled up to it. None: not compiled.
    """

    def __init__(self, tower: nn.Module, dtype: torch.dtype, chunk: int | None = None):
        from torch.fx.experimental.optimization import fuse
        from torch.fx.proxy import TraceError

        has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in tower.modules())
        try:
            tower = fuse(tower) if has_batch_norm else copy.deepcopy(tower)
        except TraceError:  # its code asks what it computes, such as the padding of TensorFlow's networks
            tower = copy.deepcopy(tower)
        self.tower = tower.to(dtype=dtype, memory_format=torch.channels_last)
        self.chunk = chunk
        if chunk is not None:
            # Frozen weights let inductor lay them out for the convolutions once, and fold what is constant.
            self.tower = torch.compile(self.tower, dynamic=False, options={"freezing": True})

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        n = len(pictures)
        if self.chunk is not None and n < self.chunk:
            pictures = F.pad(pictures, (0, 0, 0, 0, 0, 0, 0, self.chunk - n))
        return self.tower(pictures.contiguous(memory_format=torch.channels_last))[:n]


def _open_clip(build: str, **config) -> nn.Module:
    try:
        module = import_module("open_clip.model")
    except ImportError as error:
        raise ImportError("this checkpoint has an open_clip tower: pip install open_clip_torch") from error
    return getattr(module, build)(**config)


def _own(tower: nn.Module) -> nn.Module:
    """So that transformers leaves it as its own constructor made it.

    `from_pretrained` builds models without memory and fills them from the checkpoint, so the checkpoint has to hold
    everything: also the tables (attention masks, relative positions) that timm and open_clip do not save.
    """
    for module in tower.modules():
        module.is_part_of_a_tower = True
        module._non_persistent_buffers_set.clear()
    return tower
