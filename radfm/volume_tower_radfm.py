"""Towers that read volumes: inflated ResNets, vision transformers with 3D patches, and MONAI's networks.

Decisions:
- A ResNet of timm is built in 2D and inflated layer by layer, so every depth and width of it is there in 3D, with
  torchvision's names of the weights. Merlin's network is `resnet152` of this kind.
- Grey pixels are one channel. A network that was trained on three copies of it gives the same with the sum of the
  first layer's weights over its channels, at a third of the cost.
- Volumes of any size are read: convolutions need none, and the positions of a transformer are interpolated.
"""

import copy
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from .base_tower_radfm import Tower, fine_stage, replace_tokens
from .configuration_radfm import RadFMVisionConfig

_STEM_DEPTH = 3  # kernel in the depth of inflated convolutions with more than one pixel a side
_DRY_RUN = 32  # voxels a side at most of the volume that shows what a network returns


class VolumeTower(Tower):
    """Volumes -> one vector each. `tower_args` may hold `in_chans`, the number of channels that it reads: 1 or 3."""

    reads_volumes = True

    @property
    def in_channels(self) -> int:
        return (self.config.tower_args or {}).get("in_chans", 1)

    @property
    def features_can_be_cached(self) -> bool:
        return True

    def forward(self, volumes: Tensor) -> Tensor:
        """(n, in_channels, D, H, W) -> (n, f)."""
        return (self._fast or self.network)(volumes)

    def sum_channels(self, activations: Tensor) -> Tensor:
        """Activations as `replace_activations` shows them -> (n, d, h, w), the sum over their channels."""
        return activations.sum(1)


class ResNet3dTower(VolumeTower):
    """A ResNet of timm, inflated to 3D: its pooled features. `family="resnet3d"`."""

    @classmethod
    def build(cls, config: RadFMVisionConfig) -> nn.Module:
        import timm

        arguments = {"in_chans": 1} | (config.tower_args or {})
        return inflated(timm.create_model(config.tower, pretrained=False, num_classes=0, **arguments))

    def replace_activations(self, replace: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        stage = fine_stage(self.network, self.config.image_size) or "layer4"
        layer = self.network.get_submodule(stage)
        return layer.register_forward_hook(lambda module, args, output: replace(output)).remove


class ViT3dTower(VolumeTower):
    """A vision transformer of timm with 3D patches. `family="vit3d"`.

    `tower_args`: `patch_size` (depth, height, width), `grid` (depth, height, width), the number of patches for which it
    has positions, and arguments of `timm.create_model`.
    """

    @classmethod
    def build(cls, config: RadFMVisionConfig) -> nn.Module:
        import timm

        arguments = dict(config.tower_args or {})
        patch, grid = arguments.pop("patch_size", (8, 16, 16)), arguments.pop("grid", (8, 14, 14))
        channels = arguments.pop("in_chans", 1)
        arguments = {"pos_embed": "none"} | arguments
        network = timm.create_model(config.tower, pretrained=False, num_classes=0, **arguments)
        network.patch_embed = PatchEmbed3d(patch, grid, channels, network.embed_dim)
        return network

    def replace_activations(self, replace: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        undo = replace_tokens(self.network, replace)
        assert undo is not None
        return undo

    def sum_channels(self, activations: Tensor) -> Tensor:
        tokens = activations.sum(-1)  # (n, class and register tokens + patches)
        grid = self.network.patch_embed.last_grid
        return tokens[:, tokens.shape[1] - grid.numel() :].unflatten(1, grid)


class MONAITower(VolumeTower):
    """A network of `monai.networks.nets` by its name, such as "DenseNet121" or "ViT". `family="monai"`.

    `tower_args` are its arguments. What it returns is the vector, or the mean of its tokens or of its feature map.
    """

    def __init__(self, config: RadFMVisionConfig, hidden_size: int, network: nn.Module | None = None):
        super().__init__(config, hidden_size, network)
        self._width = self._dry_run()

    @classmethod
    def build(cls, config: RadFMVisionConfig) -> nn.Module:
        try:
            from monai.networks import nets
        except ImportError as error:
            raise ImportError("this checkpoint has a network of MONAI: pip install monai") from error
        if not hasattr(nets, config.tower):
            raise ValueError(f"monai.networks.nets has no {config.tower!r}")
        return _PooledOutput(getattr(nets, config.tower)(**(config.tower_args or {})))

    @property
    def in_channels(self) -> int:
        arguments = self.config.tower_args or {}
        return arguments.get("in_channels", arguments.get("n_input_channels", 1))

    @property
    def num_features(self) -> int:
        return self._width

    def replace_activations(self, replace: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        return self.network.register_forward_pre_hook(lambda module, args: (replace(args[0]), *args[1:])).remove

    @torch.enable_grad()
    def _dry_run(self) -> int:
        """The width of what the network returns. Weights that have no part in it are frozen, as DDP requires."""
        arguments = self.config.tower_args or {}
        size = arguments.get("img_size", _DRY_RUN)
        size = [size] * 3 if isinstance(size, int) else list(size)
        network = copy.deepcopy(self.network).to("meta").eval()
        output = network(torch.zeros(1, self.in_channels, *size, device="meta"))
        output.sum().backward()
        for parameter, tried in zip(self.network.parameters(), network.parameters(), strict=True):
            parameter.requires_grad_(tried.grad is not None)
        return output.shape[1]


class PatchEmbed3d(nn.Module):
    """Volumes -> patches with their positions: (n, channels, D, H, W) -> (n, patches, width).

    Args:
        patch_size: depth, height and width of a patch, voxels; a volume is padded with zeros to a multiple of it.
        grid: patches along depth, height and width of the learned positions, which are interpolated for others.
    """

    def __init__(self, patch_size, grid, channels: int, width: int):
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.proj = nn.Conv3d(channels, width, self.patch_size, self.patch_size)
        self.positions = nn.Parameter(torch.randn(1, width, *grid) * 0.02)
        self.last_grid = torch.Size(grid)  # of the volumes that were read last

    def forward(self, volumes: Tensor) -> Tensor:
        missing = [-size % patch for size, patch in zip(volumes.shape[2:], self.patch_size, strict=True)]
        patches = self.proj(F.pad(volumes, (0, missing[2], 0, missing[1], 0, missing[0])))
        self.last_grid = patches.shape[2:]
        positions = self.positions
        if positions.shape[2:] != self.last_grid:
            positions = F.interpolate(positions.float(), self.last_grid, mode="trilinear").to(positions.dtype)
        return (patches + positions).flatten(2).transpose(1, 2)


class _PlanarAveragePool(nn.Module):
    """An average pool of each slice, for every second slice where its stride is 2: for volumes of one slice, too."""

    def __init__(self, pool: nn.AvgPool2d):
        super().__init__()
        self.pool, self.step = pool, _pair(pool.stride)[0]

    def forward(self, volumes: Tensor) -> Tensor:
        slices = volumes[:, :, :: self.step].transpose(1, 2)  # (n, d, c, h, w)
        return self.pool(slices.flatten(0, 1)).unflatten(0, slices.shape[:2]).transpose(1, 2)


class _PooledOutput(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, volumes: Tensor) -> Tensor:
        output = self.network(volumes)
        output = output if isinstance(output, Tensor) else output[0]
        if output.ndim == 3:  # tokens
            return output.mean(1)
        return output.flatten(2).mean(2) if output.ndim > 3 else output


def inflated(network: nn.Module) -> nn.Module:
    """A 2D network with all of its layers made 3D, in place (Carreira and Zisserman 2017, arXiv:1705.07750).

    Kernels of more than one pixel get a depth of 3, each layer of which has a third of the weights. Strides are the
    same in the depth, but for the first convolution, which keeps all slices.

    Raises:
        ValueError: it has layers that work in 2D only.
    """
    first = True
    for name, module in list(network.named_modules()):
        replacement = None
        if isinstance(module, nn.Conv2d):
            replacement, first = _inflated_convolution(module, first), False
        elif type(module) is nn.BatchNorm2d:
            replacement = nn.BatchNorm3d(module.num_features, module.eps, module.momentum, module.affine)
            replacement.load_state_dict(module.state_dict())
        elif isinstance(module, nn.MaxPool2d):
            replacement = nn.MaxPool3d(module.kernel_size, module.stride, module.padding)
        elif isinstance(module, nn.AvgPool2d):
            replacement = _PlanarAveragePool(module)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(f"{type(module).__name__} of {name!r} reads slices only: take a ResNet as the tower")
        if replacement is not None:
            parent, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent), attribute, replacement)
    if not hasattr(network, "global_pool"):
        raise ValueError(f"{type(network).__name__} cannot be inflated: take a ResNet of timm as the tower")
    network.global_pool = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten())
    return network


def inflated_weight(weight: Tensor, depth: int) -> Tensor:
    """(outputs, inputs, h, w) -> (outputs, inputs, depth, h, w), which sums to the same over the depth."""
    return weight.unsqueeze(2).repeat(1, 1, depth, 1, 1) / depth


def inflated_weights(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a 2D network for the same one inflated, by names; all others as they are.

    Args:
        own: weights of the inflated network.
    """
    result = dict(weights)
    for name, weight in weights.items():
        if name in own and own[name].ndim == 5:
            result[name] = weight = inflated_weight(weight, own[name].shape[2]) if weight.ndim == 4 else weight
            if own[name].shape[1] == 1 < weight.shape[1]:  # grey, which was three equal channels
                result[name] = weight.sum(1, keepdim=True)
    return result


def _inflated_convolution(layer: nn.Conv2d, first: bool) -> nn.Conv3d:
    depth = 1 if layer.kernel_size == (1, 1) else _STEM_DEPTH
    (height, width), (row, column) = layer.kernel_size, layer.stride
    rows, columns = layer.padding if not isinstance(layer.padding, str) else (height // 2, width // 2)
    new = nn.Conv3d(
        layer.in_channels,
        layer.out_channels,
        kernel_size=(depth, height, width),
        stride=(1 if first else row, row, column),
        padding=(depth // 2, rows, columns),
        dilation=(1, *layer.dilation),
        groups=layer.groups,
        bias=layer.bias is not None,
        device=layer.weight.device,
    )
    new.weight = nn.Parameter(inflated_weight(layer.weight.detach(), depth))
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.detach())
    return new


__all__ = ["MONAITower", "ResNet3dTower", "ViT3dTower", "VolumeTower", "inflated_weights"]
