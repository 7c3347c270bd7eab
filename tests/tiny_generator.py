"""A tiny autoencoder and generators of random weights, for tests."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from radfm.latents import Autoencoder
from radfm.latents.autoencoders import AutoencoderSettings
from radfm.latents.denoisers import Denoiser
from radfm.latents.generator import Generator

TINY_UNET = {"block_out_channels": [16, 16]}
TINY_DIT = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
WIDTH = 384  # of radfm-text-mini


def tiny_autoencoder(size: int = 16) -> Autoencoder:
    """Pictures of 16 pixels a side <-> latents (4, 8, 8)."""
    torch.manual_seed(0)
    network = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=size,
    )
    return Autoencoder(network, AutoencoderSettings(size, mean=[0.0] * 4, std=[0.5] * 4))


def tiny_generator(kind: str = "unet", facts: dict | None = None) -> Generator:
    torch.manual_seed(0)
    denoiser = Denoiser(kind, (4, 8, 8), WIDTH, TINY_UNET if kind == "unet" else TINY_DIT)
    return Generator(tiny_autoencoder(), denoiser, facts=facts)


def save(generator: Generator, folder: Path) -> Path:
    generator.save_pretrained(folder)
    return folder
