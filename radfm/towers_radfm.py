"""Towers by name, from timm and open_clip, and what makes one fast.

Decisions:
- 3D patches are a 2D patch embedding that reads the channels of `slice_depth` neighbouring slices: the same numbers as
  a 3D convolution of that depth and stride, and every timm tower can have them.
- The pooled vector of a slice tells little of a small lesion. So a tower that was taught what single places show can
  end its vector with what they say: of each disorder that it was taught, how much the likeliest place looks like it.
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
        if config.place_disorders:
            tower = PlaceTower(tower, config.place_disorders, config.place_dim)
    return _own(tower)


class PlaceTower(nn.Module):
    """A CNN whose vector of a slice ends with what its likeliest place says of each disorder.

    Args:
        trunk: a timm tower.
        disorders: how many; their embeddings are a buffer, as those of the model's head.
        dim: length of an embedding.
    """

    def __init__(self, trunk: nn.Module, disorders: int, dim: int):
        super().__init__()
        self.trunk = trunk
        self.pooled_features = getattr(trunk, "head_hidden_size", None) or trunk.num_features
        self.head_hidden_size = self.pooled_features + disorders
        self.projection = nn.Linear(self.pooled_features, dim, bias=False)
        self.register_buffer("embeds", torch.zeros(disorders, dim))
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, pooled features + disorders)."""
        return self.forward_head(self.forward_features(pictures))

    def forward_features(self, pictures: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, f, h, w)."""
        return self.trunk.forward_features(pictures)

    def forward_head(self, feature_map: Tensor) -> Tensor:
        """(n, f, h, w) -> (n, pooled features + disorders)."""
        return torch.cat([self.trunk.forward_head(feature_map), self.places(feature_map).amax((1, 2))], dim=1)

    def places(self, feature_map: Tensor) -> Tensor:
        """(n, f, h, w) -> (n, h, w, disorders), scaled cosines."""
        alone = each_place(feature_map)
        embeds = F.normalize(self.projection(self.trunk.forward_head(alone.flatten(0, 2))), dim=-1)
        return (self.scale * embeds @ self.embeds.T + self.bias).unflatten(0, alone.shape[:3])


def each_place(feature_map: Tensor) -> Tensor:
    """A map as maps of one place each: (n, f, h, w) -> (n, h, w, f, 1, 1)."""
    return feature_map.permute(0, 2, 3, 1)[..., None, None]


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
