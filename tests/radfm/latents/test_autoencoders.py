"""Autoencoders: networks of several libraries behind one interface, with normalised latents."""

import json

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, AutoencoderTiny

from radfm import Scan
from radfm.latents import Autoencoder
from radfm.latents.autoencoders import AutoencoderSettings, hounsfield_units
from radfm.latents.fidelity import ms_ssim, psnr

KL = {"latent_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}


def kl_network(**changes) -> AutoencoderKL:
    return AutoencoderKL(**KL | BLOCKS | {"sample_size": 32} | changes)


def tiny_network() -> AutoencoderTiny:
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    return AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))


def monai_autoencoder() -> Autoencoder:
    from monai.networks.nets import AutoencoderKL as Network

    arguments = {"spatial_dims": 3, "channels": [8, 8], "num_res_blocks": 1, "norm_num_groups": 4}
    arguments |= {"attention_levels": [False, False], "latent_channels": 2, "in_channels": 1, "out_channels": 1}
    arguments |= {"with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
    volume = {"size": [8, 32, 32], "spacing_mm": [4.0, 2.0, 2.0]}
    return Autoencoder(Network(**arguments), AutoencoderSettings(32, 3, volume=volume, monai=arguments))


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(6, 3, 32, 32)


@pytest.mark.parametrize("network", [kl_network, tiny_network], ids=["KL", "tiny"])
def test_networks_of_diffusers_are_read_and_their_latents_normalised(network, pictures, tmp_path):
    network().save_pretrained(tmp_path / "published")
    autoencoder = Autoencoder.from_pretrained(tmp_path / "published", size=32)
    with pytest.raises(ValueError, match="were not measured"):
        autoencoder.encode(pictures)
    autoencoder.measure(pictures.split(4))
    latents = autoencoder.encode(pictures)
    assert latents.shape == (6, 4, 16, 16)
    channels = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(channels.std(1), torch.full((4,), 0.5), atol=1e-3, rtol=0)
    decoded = autoencoder.decode(latents)
    assert decoded.shape == pictures.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1


def test_latents_are_those_of_the_network_itself(pictures):
    network = kl_network().eval()
    autoencoder = Autoencoder(network, AutoencoderSettings(32, mean=[1, 2, 3, 4], std=[0.5, 1, 2, 4]))
    with torch.no_grad():
        raw = network.encode(pictures * 2 - 1).latent_dist.mode()
        expected = (network.decode(raw).sample / 2 + 0.5).clamp(0, 1)
    mean, std = torch.tensor([1.0, 2, 3, 4]).view(-1, 1, 1), torch.tensor([0.5, 1, 2, 4]).view(-1, 1, 1)
    torch.testing.assert_close(autoencoder.encode(pictures), (raw - mean) / std / 2)
    torch.testing.assert_close(autoencoder.reconstruct(pictures), expected, atol=1e-5, rtol=1e-4)


def test_what_is_saved_is_the_same_autoencoder(pictures, tmp_path):
    autoencoder = Autoencoder(kl_network(), AutoencoderSettings(32))
    autoencoder.measure([pictures])
    autoencoder.save_pretrained(tmp_path)
    loaded = Autoencoder.from_pretrained(tmp_path, device="cpu")
    assert loaded.fingerprint == autoencoder.fingerprint
    assert Autoencoder(kl_network(), AutoencoderSettings(32)).fingerprint != autoencoder.fingerprint
    torch.testing.assert_close(loaded.encode(pictures), autoencoder.encode(pictures))


def test_the_fingerprint_is_of_all_that_latents_depend_on(pictures):
    network = kl_network()
    settings = {"size": 32, "mean": [0.0] * 4, "std": [1.0] * 4}
    others = ({}, {"size": 64}, {"mean": [0.5] * 4}, {"std": [2.0] * 4}, {"mean": [], "std": []})
    found = {Autoencoder(network, AutoencoderSettings(**settings | one)).fingerprint for one in others}
    assert len(found) == len(others)
    unmeasured = Autoencoder(network, AutoencoderSettings(32))
    before = unmeasured.fingerprint
    unmeasured.measure([pictures])
    assert unmeasured.fingerprint != before
    assert unmeasured.network_fingerprint == Autoencoder(network, AutoencoderSettings(64)).network_fingerprint


def test_what_is_measured_does_not_depend_on_the_order_of_the_pictures(pictures):
    autoencoder, fingerprints = Autoencoder(kl_network(), AutoencoderSettings(32)), set()
    for some in (pictures, pictures.flip(0)):
        autoencoder.measure(some.split(2))
        fingerprints.add(autoencoder.fingerprint)
    assert len(fingerprints) == 1


def test_volumes_have_latents_of_three_dimensions(tmp_path):
    autoencoder = monai_autoencoder()
    pixels = np.random.default_rng(0).integers(-1000, 1000, (10, 40, 40)).astype(np.int16)
    volume = autoencoder.prepare(Scan(pixels, modality="CT", plane="axial", spacing_mm=(3.0, 1.5, 1.5)))
    assert volume.shape == (1, 3, 8, 32, 32)
    autoencoder.measure([volume])
    assert autoencoder.encode(volume).shape == (1, 2, 4, 16, 16)
    autoencoder.save_pretrained(tmp_path)
    loaded = Autoencoder.from_pretrained(tmp_path, device="cpu")
    assert loaded.fingerprint == autoencoder.fingerprint
    torch.testing.assert_close(loaded.reconstruct(volume), autoencoder.reconstruct(volume))
    assert loaded.scan_pixels(loaded.reconstruct(volume), "CT").shape == (8, 32, 32)


def test_hounsfield_units_come_back_from_their_windows():
    autoencoder = Autoencoder(kl_network(), AutoencoderSettings(32))
    pixels = np.linspace(-1340, 1290, 32 * 32).reshape(1, 32, 32).astype(np.float32)
    prepared = autoencoder.prepare(Scan(pixels, modality="CT"))
    np.testing.assert_allclose(hounsfield_units(prepared), pixels, atol=0.1)
    noisy = (prepared + 0.01 * torch.randn(prepared.shape)).clamp(0, 1)
    assert np.abs(hounsfield_units(noisy) - pixels).mean() < 20
    assert autoencoder.scan_pixels(prepared, "CT").dtype == np.float16


def test_grey_and_coloured_pictures_keep_what_they_are():
    autoencoder = Autoencoder(kl_network(), AutoencoderSettings(32))
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 255, (2, 32, 32, 3)).astype(np.uint8)
    for pixels, modality in ((colour, "dermoscopy"), (colour[..., 0], "MRI")):
        back = autoencoder.scan_pixels(autoencoder.prepare(Scan(pixels, modality=modality)), modality)
        assert back.shape == pixels.shape
        assert back.dtype == np.uint8
    assert autoencoder.scan_pixels(autoencoder.prepare(Scan(colour, modality="MRI")), "MRI").ndim == 3


def test_some_slices_are_scaled_as_in_the_whole_scan():
    autoencoder = Autoencoder(kl_network(), AutoencoderSettings(32))
    pixels = np.random.default_rng(0).normal(0, 1, (5, 32, 32)) * np.arange(1, 6)[:, None, None]
    scan = Scan(pixels.astype(np.float32), modality="MRI")
    torch.testing.assert_close(autoencoder.prepare(scan, [3, 0]), autoencoder.prepare(scan)[[3, 0]])


LDM_NAMES = {
    "down_blocks": "down",
    "resnets": "block",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "mid_block.block.0": "mid.block_1",
    "mid_block.block.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def in_ldm_layout(network: AutoencoderKL) -> dict[str, torch.Tensor]:
    """Its weights with the names of latent-diffusion, whose attention is a convolution of one pixel."""
    weights = {}
    for name, tensor in network.state_dict().items():
        for level in range(2):
            name = name.replace(f"up_blocks.{level}", f"up.{1 - level}")
        for ours, theirs in LDM_NAMES.items():
            name = name.replace(ours, theirs)
        weights[name] = tensor[..., None, None] if "attn_1" in name and tensor.ndim == 2 else tensor
    return weights


@pytest.fixture
def ldm_folder(tmp_path):
    """A folder as MedVAE's, and the network whose weights it has."""
    network = kl_network(in_channels=1, out_channels=1, block_out_channels=(32, 64), norm_num_groups=32).eval()
    config = {"in_channels": 1, "out_ch": 1, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 4}
    config |= {"resolution": 32, "attn_resolutions": [], "double_z": True}
    (tmp_path / "medvae_4x1.yaml").write_text(yaml.safe_dump({"ddconfig": config, "embed_dim": 4}))
    torch.save({"state_dict": in_ldm_layout(network)}, tmp_path / "vae.ckpt")
    return tmp_path, network


def test_the_layout_of_latent_diffusion_and_medvae_is_read(ldm_folder, pictures):
    folder, network = ldm_folder
    autoencoder = Autoencoder.from_pretrained(folder, device="cpu")
    assert (autoencoder.in_channels, autoencoder.size, autoencoder.factor) == (1, 32, 2)
    with torch.no_grad():
        expected = network.encode(pictures.mean(1, keepdim=True) * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(autoencoder.raw_latents(autoencoder.network_input(pictures)), expected)


def test_weights_with_lora_layers_are_refused(ldm_folder):
    folder, network = ldm_folder
    lora = {"encoder.down.0.block.0.lora_up.weight": torch.zeros(1)}
    torch.save(in_ldm_layout(network) | lora, folder / "vae.ckpt")
    with pytest.raises(ValueError, match="holds LoRA layers"):
        Autoencoder.from_pretrained(folder)


def test_other_folders_are_refused_with_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        Autoencoder.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no autoencoder"):
        Autoencoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="holds a UNet2DModel; radfm reads AutoencoderKL and AutoencoderTiny"):
        Autoencoder.from_pretrained(tmp_path)


def test_fidelity_is_perfect_for_the_same_picture_and_falls_with_noise(pictures):
    assert psnr(pictures, pictures).min() == 100
    torch.testing.assert_close(psnr(pictures * 0, pictures * 0 + 0.1), torch.full((6,), 20.0))
    larger = torch.rand(2, 3, 96, 96)
    for shown in (pictures, larger):
        torch.testing.assert_close(ms_ssim(shown, shown), torch.ones(len(shown)), atol=1e-4, rtol=0)
        assert (ms_ssim(shown, (shown + 0.3 * torch.randn(shown.shape)).clamp(0, 1)) < 0.95).all()
