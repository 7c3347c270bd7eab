"""The networks of generators, behind one interface, and the preconditioning of EDM.

Decisions:
- Noise levels, preconditioning, weights of the loss and the distribution of levels in training are those of Karras et
  al., "Elucidating the design space of diffusion-based generative models", NeurIPS 2022, with a standard deviation of
  the data of 0.5, to which autoencoders normalise their latents.
- The networks are those of diffusers (a UNet, and a transformer over patches, PixArt's) and MONAI (a UNet for volumes).
- A denoiser returns the output F of the network before its preconditioning, which is what diffusers' schedulers take.
  The weighted loss of EDM is then the plain mean squared error to the F of a perfect denoiser.
- MONAI's network has no mask for padded tokens: it reads four tokens, one for each part of a prompt.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from radfm.latents.autoencoders import LATENT_STD
from radfm.latents.conditions import PARTS, Conditions

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.2, 1.2  # of training

_TIME_SCALE = 250  # diffusers embeds noise levels as numbers of steps, of which there are about a thousand


class Denoiser(nn.Module):
    """Noisy latents, noise levels and prompts -> F.

    Args:
        kind: name in `DENOISERS`.
        shape: of a latent, (channels, height, width), or (channels, depth, height, width).
        width: of the embeddings of texts.
        arguments: of the network; those that are not given have the defaults of a small one.
    Raises:
        ValueError: the kind is unknown, or the network does not take an argument or reads no latents of this shape.
    """

    def __init__(self, kind: str, shape: Sequence[int], width: int, arguments: dict[str, Any] | None = None):
        super().__init__()
        if kind not in DENOISERS:
            raise ValueError(f"unknown denoiser {kind!r}: use one of {', '.join(DENOISERS)}")
        if len(shape) != (4 if kind.endswith("3d") else 3):
            raise ValueError(f"a denoiser {kind!r} reads no latents of the shape {tuple(shape)}")
        self.kind, self.shape, self.width, self.arguments = kind, tuple(shape), width, dict(arguments or {})
        build, self._call = DENOISERS[kind]
        try:
            self.network = build(self.shape, width, self.arguments)
        except TypeError as error:
            raise ValueError(f"arguments of the denoiser {kind!r}: {' '.join(str(error).split())}") from error

    def forward(self, latents: Tensor, sigma: Tensor, tokens: Tensor, mask: Tensor, pooled: Tensor) -> Tensor:
        """
        ```python
        conditions = conditions_of([Prompt(["Pneumothorax"], "X-ray")])  # TextConditions
        F = denoiser(latents, torch.tensor([1.0]), *vars(conditions).values())  # (1, channels, h, w)
        ```

        Args:
            latents: (n, channels, h, w), with noise of the standard deviation sigma.
            sigma: (n,)
            tokens, mask, pooled: see `Conditions`.
        Returns:
            (n, channels, h, w) float32
        """
        scale = (sigma**2 + LATENT_STD**2) ** -0.5
        inputs, time = latents * _per_latent(scale, latents), sigma.log() * _TIME_SCALE
        return self._call(self.network, inputs, time, Conditions(tokens, mask, pooled)).float()


def denoised(latents: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
    """The estimate of the latents without noise, from noisy ones and the output F of a denoiser."""
    skip, out = _coefficients(latents, sigma)
    return skip * latents + out * output


def perfect_output(latents: Tensor, sigma: Tensor, noisy: Tensor) -> Tensor:
    """The F with which `denoised` returns the latents themselves."""
    skip, out = _coefficients(noisy, sigma)
    return (latents - skip * noisy) / out


def noise_of(seed: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise that depends on a seed alone, on the CPU."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def _coefficients(latents: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    variance = sigma**2 + LATENT_STD**2
    return _per_latent(LATENT_STD**2 / variance, latents), _per_latent(sigma * LATENT_STD * variance**-0.5, latents)


def _per_latent(values: Tensor, latents: Tensor) -> Tensor:
    return values.view(-1, *[1] * (latents.ndim - 1))


def _unet(shape: tuple[int, ...], width: int, arguments: dict[str, Any]) -> nn.Module:
    from diffusers import UNet2DConditionModel

    channels = tuple(arguments.get("block_out_channels", (32, 64, 128)))
    levels = len(channels)
    defaults = {
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * (levels - 1)),
        "up_block_types": (*("CrossAttnUpBlock2D",) * (levels - 1), "UpBlock2D"),
        "attention_head_dim": 4,  # the number of heads, by another name
        "norm_num_groups": 16,
    }
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    return UNet2DConditionModel(
        sample_size=shape[1:],
        in_channels=shape[0],
        out_channels=shape[0],
        cross_attention_dim=width,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=PARTS * width,
        **defaults | given | {"block_out_channels": channels},
    )


def _call_unet(network: nn.Module, latents: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
    mask = conditions.mask.to(latents.dtype)
    return network(latents, time, conditions.tokens, class_labels=conditions.pooled, encoder_attention_mask=mask).sample


def _dit(shape: tuple[int, ...], width: int, arguments: dict[str, Any]) -> nn.Module:
    from diffusers import PixArtTransformer2DModel

    if shape[1] != shape[2]:
        raise ValueError(f"a denoiser 'dit' reads square latents, not {shape[1]} x {shape[2]}")
    defaults = {"num_attention_heads": 6, "attention_head_dim": 32, "num_layers": 6, "patch_size": 2 - shape[1] % 2}
    settings = defaults | arguments
    return PixArtTransformer2DModel(
        sample_size=shape[1],
        in_channels=shape[0],
        out_channels=shape[0],
        caption_channels=width,
        cross_attention_dim=settings["num_attention_heads"] * settings["attention_head_dim"],
        use_additional_conditions=False,
        **settings,
    )


def _call_dit(network: nn.Module, latents: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
    added = {"resolution": None, "aspect_ratio": None}
    mask = conditions.mask.to(latents.dtype)
    return network(latents, conditions.tokens, time, added, encoder_attention_mask=mask).sample


def _unet_3d(shape: tuple[int, ...], width: int, arguments: dict[str, Any]) -> nn.Module:
    from monai.networks.nets import DiffusionModelUNet

    channels = arguments.get("channels", (32, 64, 128))
    defaults = {
        "num_res_blocks": 1,
        "attention_levels": (False, *(True,) * (len(channels) - 1)),
        "num_head_channels": 16,
        "norm_num_groups": 16,
    }
    return DiffusionModelUNet(
        spatial_dims=3,
        in_channels=shape[0],
        out_channels=shape[0],
        with_conditioning=True,
        cross_attention_dim=width,
        **defaults | arguments | {"channels": channels},
    )


def _call_unet_3d(network: nn.Module, latents: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
    return network(latents, time, conditions.pooled.unflatten(1, (PARTS, -1)))


DENOISERS: dict[str, tuple[Callable[..., nn.Module], Callable[..., Tensor]]] = {
    "unet": (_unet, _call_unet),
    "dit": (_dit, _call_dit),
    "unet3d": (_unet_3d, _call_unet_3d),
}
