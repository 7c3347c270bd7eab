"""The tower of latents: a CNN of timm that knows how noisy its latents are.

It follows Dombrowski et al. 2026, The Learnability Gap in Medical Latent Diffusion, arXiv:2605.17087: in training each
latent gets noise of one of the 32 levels of EDM (Karras et al. 2022, arXiv:2206.00364), and each of the last four
stages is scaled and shifted (FiLM) by an embedding of that level.

Decisions:
- Noise and masks are added within the tower and in training mode only, like dropout: data sets, caches and evaluation
  hold clean latents.
- A noisy latent is divided by its standard deviation, as EDM does, so that all levels enter the network on one scale.
- FiLM starts at zero, so a new tower is the network without it. All of its weights are trained.
- A latent is 8 times smaller than its picture, and the usual stem of stride 4 makes it smaller still. `patch_size` 1 in
  `tower_args` gives a ConvNeXt a stem of stride 1. A latent that is smaller than the strides of all stages need, such
  as 28 x 28 for a stride of 32, gets a border of zeros.
- For inference the noise level is one number, so FiLM becomes a constant scale and shift of each channel.
"""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base_tower_radfm import FastTower, Tower, has_channels_last
from .configuration_radfm import RadFMVisionConfig

SIGMA_DATA = 0.5  # standard deviation of latents
LEAST_SIGMA, MOST_SIGMA = 0.002, 80.0
_LEVELS, _RHO = 32, 7
_EMBEDDING = 256
_OCTAVES = (-2.0, 4.0)  # of the embedding's frequencies, periods in a unit of log(sigma) / 4
_STAGES = 4
_OWN_ARGUMENTS = {"noise_conditioned": True, "mask_share": 0.2, "max_sigma": MOST_SIGMA}


class LatentTower(Tower):
    """Latents -> one vector each. `family="latent"`; any CNN of timm with stages.

    `tower_args` are arguments of `timm.create_model`, and:

    | argument | default | |
    |---|---|---|
    | `in_chans` | 4 | channels of a latent |
    | `noise_conditioned` | True | whether noise is added in training, and stages are conditioned on its level |
    | `max_sigma` | 80 | standard deviation of the strongest noise in training |
    | `mask_share` | 0.2 | share of the positions of a latent that are set to zero in training |

    Attributes:
        noise_level: in evaluation mode, the standard deviation of the noise that the latents have; None: no noise.

    Raises:
        ValueError: `slice_depth` is not 1, or the network has no feature maps of stages (n, c, h, w).
    """

    def __init__(self, config: RadFMVisionConfig, hidden_size: int, network: nn.Module | None = None):
        if config.slice_depth != 1:
            raise ValueError('the family "latent" reads slices one by one: slice_depth has to be 1')
        super().__init__(config, hidden_size, network)
        own = _OWN_ARGUMENTS | (config.tower_args or {})
        self.conditioned, self.mask_share = own["noise_conditioned"], own["mask_share"]
        self.max_sigma = own["max_sigma"]
        self._noise_level: float | None = None
        self._optimized_for: tuple[torch.dtype, bool] | None = None

    @classmethod
    def build(cls, config: RadFMVisionConfig) -> nn.Module:
        import timm  # here, since the import takes seconds

        own = _OWN_ARGUMENTS | (config.tower_args or {})
        arguments: dict[str, Any] = {"in_chans": 4} | {k: v for k, v in own.items() if k not in _OWN_ARGUMENTS}
        network = timm.create_model(config.tower, pretrained=False, num_classes=0, **arguments)
        stages = list(getattr(network, "feature_info", ()))[-_STAGES:]
        if not stages or has_channels_last(network):
            raise ValueError(f'the family "latent" needs a CNN with stages, which {config.tower} is not')
        if own["noise_conditioned"]:
            for stage in stages:
                conditioned = ConditionedStage(network.get_submodule(stage["module"]), stage["num_chs"])
                network.set_submodule(stage["module"], conditioned)
        return network

    @property
    def in_channels(self) -> int:
        return (self.config.tower_args or {}).get("in_chans", 4)

    @property
    def noise_level(self) -> float | None:
        return self._noise_level

    @noise_level.setter
    def noise_level(self, sigma: float | None) -> None:
        if sigma is not None and not (self.conditioned and sigma > 0):
            raise ValueError(f"a noise level is above 0, and of a tower that is conditioned on it, not {sigma}")
        self._noise_level = sigma
        if self._fast is not None and self._optimized_for is not None:
            self.optimize_for_inference(*self._optimized_for)

    @property
    def shows_patches(self) -> bool:
        return True

    def forward(self, latents: Tensor) -> Tensor:
        """(n, in_channels, h, w) -> (n, f).

        ```python
        tower = model.radfm.slice_encoder.tower.eval()
        tower(latents)  # (n, f), of clean latents
        tower.noise_level = 1.0
        tower(latents + torch.randn_like(latents))
        ```
        """
        if self._fast is not None:
            return self._fast(self._padded(latents) * _input_scale(self._sigma))
        return self.network(self._prepared(latents))

    def feature_map(self, latents: Tensor) -> Tensor:
        """(n, in_channels, h, w) -> (n, c, h', w'), the last feature map."""
        return self.network.forward_features(self._prepared(latents))

    def optimize_for_inference(self, dtype: torch.dtype, compile: bool) -> None:
        """As [`Tower.optimize_for_inference`], for one noise level: another one optimizes the tower anew."""
        network = copy.deepcopy(self.network)
        for name, stage in list(network.named_modules()):
            if isinstance(stage, ConditionedStage):
                embedding = noise_embedding(torch.full((1,), self._sigma, device=stage.film.weight.device))
                network.set_submodule(name, nn.Sequential(stage.stage, _Affine(*stage.scale_and_shift(embedding))))
        self._fast = FastTower(network, dtype, self.config.slices_per_chunk if compile else None)
        self._optimized_for = dtype, compile

    @property
    def _sigma(self) -> float:
        """In evaluation mode."""
        return LEAST_SIGMA if self._noise_level is None else self._noise_level

    def _prepared(self, latents: Tensor) -> Tensor:
        """Latents as the network reads them, which also tells its stages their noise level."""
        latents = self._padded(latents)
        if not self.training:
            self._condition(torch.full((1,), self._sigma, device=latents.device))
            return latents * _input_scale(self._sigma)
        if self.conditioned:
            levels = edm_sigmas(_LEVELS, self.max_sigma).to(latents.device)
            sigma = levels[torch.randint(_LEVELS, (len(latents),), device=latents.device)]
            self._condition(sigma)
            sigma = sigma.to(latents.dtype).view(-1, 1, 1, 1)
            latents = (latents + sigma * torch.randn_like(latents)) / (sigma**2 + SIGMA_DATA**2).sqrt()
        else:
            latents = latents * _input_scale(LEAST_SIGMA)
        if self.mask_share:
            latents = latents * (torch.rand_like(latents[:, :1]) >= self.mask_share)
        return latents

    def _padded(self, latents: Tensor) -> Tensor:
        missing = [max(0, self.network.feature_info[-1]["reduction"] - side) for side in latents.shape[2:]]
        before = [pixels // 2 for pixels in missing]
        (top, left), (bottom, right) = before, (m - b for m, b in zip(missing, before, strict=True))
        return F.pad(latents, (left, right, top, bottom)) if any(missing) else latents

    def _condition(self, sigma: Tensor) -> None:
        for stage in self.network.modules():
            if isinstance(stage, ConditionedStage):
                stage.embedding = noise_embedding(sigma)


class ConditionedStage(nn.Module):
    """A stage of a CNN whose output is scaled and shifted by the noise level (FiLM, Perez et al. 2018).

    Args:
        stage: (n, ., h, w) -> (n, channels, h', w').

    Attributes:
        embedding: (n, 256) of the noise levels, or (1, 256); has to be set before each `forward`.
    """

    def __init__(self, stage: nn.Module, channels: int):
        super().__init__()
        self.stage = stage
        self.film = nn.Linear(_EMBEDDING, 2 * channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        self.embedding: Tensor | None = None

    def forward(self, feature_map: Tensor) -> Tensor:
        """
        ```python
        stage.embedding = noise_embedding(sigma)  # (n,)
        stage(feature_map)  # (n, channels, h', w')
        ```
        """
        assert self.embedding is not None
        scale, shift = self.scale_and_shift(self.embedding)
        return torch.addcmul(shift, self.stage(feature_map), scale)

    def scale_and_shift(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 256) -> two of (n, channels, 1, 1); 1 and 0 at the start."""
        scale, shift = self.film(embedding.to(self.film.weight.dtype))[..., None, None].chunk(2, dim=1)
        return 1 + scale, shift


def edm_sigmas(levels: int = _LEVELS, most: float = MOST_SIGMA) -> Tensor:
    """(levels,) float32, EDM's schedule from `most` to 0.002 (Karras et al. 2022, equation 5, rho 7)."""
    roots = torch.linspace(most ** (1 / _RHO), LEAST_SIGMA ** (1 / _RHO), levels, dtype=torch.float64)
    return (roots**_RHO).float()


def noise_embedding(sigma: Tensor) -> Tensor:
    """(n,) standard deviations -> (n, 256): sines and cosines of log(sigma) / 4."""
    frequencies = torch.logspace(*_OCTAVES, _EMBEDDING // 2, base=2.0, device=sigma.device) * 2 * math.pi
    phases = sigma.float().log()[:, None] / 4 * frequencies
    return torch.cat([phases.sin(), phases.cos()], dim=1)


class _Affine(nn.Module):
    """A constant scale and shift of each channel."""

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale.detach()), nn.Parameter(shift.detach())

    def forward(self, feature_map: Tensor) -> Tensor:
        return torch.addcmul(self.shift, feature_map, self.scale)


def _input_scale(sigma: float) -> float:
    """EDM's c_in: what noisy latents are multiplied by to have a standard deviation of 1."""
    return 1 / math.sqrt(sigma**2 + SIGMA_DATA**2)
