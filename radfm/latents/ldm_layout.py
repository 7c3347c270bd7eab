"""Autoencoders in the layout of latent-diffusion (CompVis), which MedVAE's published 2D weights have, too.

A folder holds a YAML file with `ddconfig`, at its top or under `model.params`, and one file of weights, `.ckpt` or
`.safetensors`. Published: https://huggingface.co/stanfordmimi/MedVAE, with `medvae_4x1.yaml` and `vae_4x_1c_2D.ckpt`.

Decisions:
- The weights are renamed by diffusers, into its `AutoencoderKL`. Layers that it does not have are refused by name.
- Weights are read with `weights_only=True`: a file that needs more than tensors is refused.
"""

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import nn

_WEIGHTS = (".ckpt", ".safetensors")


def ldm_files(folder: Path) -> tuple[Path, Path] | None:
    """The YAML file and the file of weights in a folder; None where it is not of this layout."""
    if not folder.is_dir() or (folder / "config.json").is_file():
        return None
    settings = [file for file in sorted(folder.glob("*.y*ml")) if _ddconfig(file) is not None]
    weights = [file for file in sorted(folder.iterdir()) if file.suffix in _WEIGHTS]
    return (settings[0], weights[0]) if len(settings) == 1 and len(weights) == 1 else None


def load_ldm(settings: Path, weights: Path) -> nn.Module:
    """diffusers' `AutoencoderKL` with these weights.

    Raises:
        ValueError: it has attention outside its middle, LoRA layers or other tensors that `AutoencoderKL` has not.
    """
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    found = _ddconfig(settings)
    assert found is not None
    config, embed_dim = found
    if config.get("attn_resolutions"):
        raise ValueError(f"{settings}: attn_resolutions {config['attn_resolutions']} are not supported, only []")
    channels = [config["ch"] * factor for factor in config["ch_mult"]]
    network = AutoencoderKL(
        in_channels=config["in_channels"],
        out_channels=config["out_ch"],
        latent_channels=embed_dim,
        block_out_channels=channels,
        layers_per_block=config["num_res_blocks"],
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        sample_size=config["resolution"],
    )
    tensors = _tensors(weights)
    if lora := [name for name in tensors if "lora" in name]:
        raise ValueError(f"{weights} holds LoRA layers ({lora[0]}): merge them first")
    network.load_state_dict(convert_ldm_vae_checkpoint(tensors, network.config), strict=True)
    return network


def _tensors(weights: Path) -> dict[str, torch.Tensor]:
    if weights.suffix == ".safetensors":
        tensors = load_file(weights)
    else:
        content = torch.load(weights, map_location="cpu", weights_only=True)
        tensors = content.get("state_dict", content)
    kept = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")  # and not the losses of its training
    return {name: tensor for name, tensor in tensors.items() if name.startswith(kept)}


def _ddconfig(file: Path) -> tuple[dict[str, Any], int] | None:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    content = content if isinstance(content, dict) else {}
    inner = (content.get("model") or {}).get("params", content)
    return (inner["ddconfig"], inner["embed_dim"]) if {"ddconfig", "embed_dim"} <= inner.keys() else None
