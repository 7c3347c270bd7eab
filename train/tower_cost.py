"""What a tower costs for one slice, and a tower that costs as much as another.

Decisions:
- Floating point operations are counted by torch's `FlopCounterMode` in one forward pass on the device "meta", which
  computes nothing. A multiplication and an addition are two operations.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from radfm.configuration_radfm import RadFMVisionConfig
from radfm.towers_radfm import build_tower

_ROUNDED_TO = 8  # channels
_NARROWEST, _WIDEST = 1 / 16, 16.0  # times the channels of the tower


def tower_cost(vision: Mapping[str, Any]) -> dict[str, int]:
    """`flops` of one slice, and `parameters`.

    Args:
        vision: arguments of `RadFMVisionConfig`.
    """
    config = RadFMVisionConfig(**vision)
    with torch.device("meta"):
        tower = build_tower(config, hidden_size=64).eval()
        slices = torch.empty(1, tower.in_channels, config.image_size, config.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower(slices)
    return {"flops": counter.get_total_flops(), "parameters": sum(one.numel() for one in tower.parameters())}


def widened_to(vision: Mapping[str, Any], flops: int) -> dict[str, Any]:
    """The same ConvNeXt with channels multiplied so that a slice takes about so many operations.

    Args:
        vision: as of `tower_cost`.
    """
    channels = _channels(vision)
    narrow, wide = _NARROWEST, _WIDEST
    while wide - narrow > 0.01:  # the cost rises with the width
        middle = (narrow + wide) / 2
        if tower_cost(_with_channels(vision, channels, middle))["flops"] < flops:
            narrow = middle
        else:
            wide = middle
    options = [_with_channels(vision, channels, times) for times in (narrow, wide)]
    return min(options, key=lambda option: abs(tower_cost(option)["flops"] - flops))


def _channels(vision: Mapping[str, Any]) -> list[int]:
    """Of the stages."""
    with torch.device("meta"):
        network = build_tower(RadFMVisionConfig(**vision), hidden_size=64).network
    return [stage["num_chs"] for stage in network.feature_info]


def _with_channels(vision: Mapping[str, Any], channels: list[int], times: float) -> dict[str, Any]:
    dims = [max(_ROUNDED_TO, round(times * count / _ROUNDED_TO) * _ROUNDED_TO) for count in channels]
    return dict(vision) | {"tower_args": (vision.get("tower_args") or {}) | {"dims": dims}}
