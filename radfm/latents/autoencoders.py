"""Autoencoders behind one interface: slices or volumes <-> normalised latents.

    >>> autoencoder = Autoencoder.from_pretrained("runs/autoencoder")
    >>> latents = autoencoder.encode(autoencoder.prepare(scan))  # (slices, 8, 12, 12)
    >>> autoencoder.scan_pixels(autoencoder.decode(latents), scan.modality)  # as the pixels of a scan

Decisions:
- The networks are those of others: `AutoencoderKL` and `AutoencoderTiny` of diffusers, by folder or Hub name, and
  MONAI's `AutoencoderKL`, in 2D and 3D. `radfm_autoencoder.json` beside them holds what radfm adds: the size of the
  pictures, and mean and standard deviation of each channel of the latents.
- A latent is the mode of the posterior, and each channel is normalised to a mean of 0 and a standard deviation of 0.5
  (Karras et al., arXiv:2206.00364): what reads latents is then the same for all autoencoders.
- Pictures are in [0, 1], prepared by radfm's image processor: three windows of CT as three channels, other modalities
  between two percentiles of the scan. A network of one channel sees one wide window of CT.
- The fingerprint is of all that a latent depends on: the network, the size of the pictures, mean and standard deviation
  of the channels. Whatever holds latents states it, so that other latents are refused. A network without mean and
  standard deviation is measured for each data set, and its latents of two data sets have two fingerprints.
- What is measured is rounded to five digits of the standard deviation, so that no order of sums changes it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from radfm.cases import Scan
from radfm.image_processing_radfm import CT_WINDOWS, RadFMImageProcessor
from radfm.latents.ldm_layout import ldm_files, load_ldm

SETTINGS = "radfm_autoencoder.json"
LATENT_STD = 0.5
WIDE_WINDOW = ((0, 2000),)  # (level, width) in Hounsfield units, for a network of one channel
IN_COLOUR = (
    "fundus photography",
    "dermoscopy",
    "microscopy",
    "endoscopy",
    "other",
)  # modalities with pictures in colour

_MONAI_WEIGHTS = "model.safetensors"
_GREY = 4 / 255  # mean difference between channels up to which a decoded picture is grey


@dataclass
class AutoencoderSettings:
    """What radfm needs to know of an autoencoder beside its network.

    Attributes:
        size: height and width of a picture, pixels.
        spatial_dims: 2, or 3 for volumes.
        mean, std: (channels,) of its latents before they are normalised; empty: not measured yet.
        volume: of a 3D autoencoder, how a scan becomes a volume, see `radfm.volume_processing_radfm.VolumeSettings`.
        monai: arguments of MONAI's `AutoencoderKL`; None: the network is one of diffusers.
    """

    size: int
    spatial_dims: int = 2
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    volume: dict[str, Any] | None = None
    monai: dict[str, Any] | None = None


class Autoencoder:
    """A frozen autoencoder.

    Args:
        network: diffusers' `AutoencoderKL` or `AutoencoderTiny`, or MONAI's `AutoencoderKL`.
        settings: see there.

    Attributes:
        channels: of a latent.
        factor: pixels a side that one position of a latent stands for.
        in_channels: of a picture, 1 or 3.
        device: of the network.
    """

    def __init__(self, network: nn.Module, settings: AutoencoderSettings):
        self.network, self.settings = network.eval().requires_grad_(False), settings
        self._is_kl = not type(network).__name__.endswith("Tiny")

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str | torch.device | None = None,
        size: int | None = None,
        statistics: Mapping[str, Any] | None = None,
    ) -> "Autoencoder":
        """
        Args:
            name: a folder that `radfm train autoencoder` wrote, a folder or Hub name of diffusers, or a folder in the
                layout of latent-diffusion and MedVAE (a YAML file with `ddconfig`, and a `.ckpt` or `.safetensors`).
            device: unset: a GPU if there is one.
            size: of the pictures, pixels; unset, as the checkpoint states it.
            statistics: `mean` and `std` of the latents' channels, such as a latent data set states them.
        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: the folder holds no autoencoder that radfm can read.
        """
        folder = Path(name)
        settings = _read_settings(folder)
        if settings is not None and settings.monai is not None:
            network = _monai_network(settings.monai)
            network.load_state_dict(load_file(folder / _MONAI_WEIGHTS))
        elif files := ldm_files(folder):
            network = load_ldm(*files)
        else:
            network = _diffusers_network(name)
        settings = settings or AutoencoderSettings(size=int(getattr(network.config, "sample_size", None) or 256))
        if size is not None:
            settings.size = size
        if statistics is not None:
            settings.mean, settings.std = list(statistics["mean"]), list(statistics["std"])
        default = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(network.to(device or default), settings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the network as its library does, in safetensors, and radfm's settings beside it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.settings.monai is None:
            self.network.save_pretrained(folder)
        else:
            weights = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
            save_file(weights, folder / _MONAI_WEIGHTS, {"format": "pt"})
        text = json.dumps(asdict(self.settings), indent=1) + "\n"
        (folder / SETTINGS).write_text(text, encoding="utf-8")

    @property
    def size(self) -> int:
        return self.settings.size

    @property
    def spatial_dims(self) -> int:
        return self.settings.spatial_dims

    @property
    def channels(self) -> int:
        return self._argument("latent_channels")

    @property
    def in_channels(self) -> int:
        return self._argument("in_channels")

    @property
    def factor(self) -> int:
        if self.settings.monai is not None:
            return 2 ** (len(self.settings.monai["channels"]) - 1)
        blocks = getattr(self.network.config, "block_out_channels", None)
        return 2 ** ((len(blocks) if blocks else len(self.network.config.encoder_block_out_channels)) - 1)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def fingerprint(self) -> str:
        """20 hexadecimal digits of the network and of radfm's settings."""
        content = json.dumps([self.network_fingerprint, asdict(self.settings)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:20]

    @cached_property
    def network_fingerprint(self) -> str:
        """20 hexadecimal digits of the network's configuration and weights."""
        config = self.settings.monai or {k: v for k, v in self.network.config.items() if not k.startswith("_")}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=list).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:20]

    @property
    def image_processor(self) -> RadFMImageProcessor:
        """How a scan becomes pictures in [0, 1]."""
        windows = CT_WINDOWS if self.in_channels == 3 else WIDE_WINDOW
        return RadFMImageProcessor(
            self.size, image_mean=None, image_std=None, ct_windows=windows, volume=self.settings.volume
        )

    def prepare(self, scan: Scan, slices: Sequence[int] | None = None) -> Tensor:
        """A scan -> (slices, 3, H, W) in [0, 1]; for a 3D autoencoder (windows, 3, D, H, W).

        Args:
            slices: indices of the slices that are taken; None: all.
        """
        images = self.image_processor
        count = images.slices_of(scan) if slices is None else len(slices)
        values = torch.empty(count, images.channels(scan), self.size, self.size)
        images.fill(values, scan, slices)
        values = values.expand(-1, 3, -1, -1)
        if self.spatial_dims == 2:
            return values
        depth = (self.settings.volume or {})["size"][0]
        return values.unflatten(0, (-1, depth)).transpose(1, 2)

    def prepare_some(self, scan: Scan, most: int = 4) -> Tensor:
        """As `prepare`, of at most so many evenly spaced slices; of a 3D autoencoder the whole scan."""
        count = len(scan.pixels)
        if self.spatial_dims == 3 or count <= most:
            return self.prepare(scan)
        return self.prepare(scan, [int((i + 0.5) * count / most) for i in range(most)])

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """(n, 3, H, W) in [0, 1] -> (n, channels, h, w) float32, normalised; in 3D with a depth before height."""
        return self.normalize(self.raw_latents(self.network_input(pixels)))

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, 3, H, W) in [0, 1]; in 3D with a depth before height."""
        raw = self.denormalize(latents.to(self.device).float())
        return self.pictures(self.network.decode(raw) if self.settings.monai else self.network.decode(raw).sample)

    def reconstruct(self, pixels: Tensor) -> Tensor:
        """(n, 3, H, W) in [0, 1] -> the same after encoding and decoding."""
        return self.decode(self.encode(pixels))

    def network_input(self, pixels: Tensor) -> Tensor:
        """Pictures in [0, 1] -> what the network reads, in [-1, 1], with its number of channels."""
        pixels = pixels.to(self.device).float()
        if self.in_channels == 1:
            pixels = pixels.mean(1, keepdim=True)
        return pixels * 2 - 1

    def pictures(self, output: Tensor) -> Tensor:
        """The output of the network -> pictures of three channels in [0, 1]."""
        pictures = (output / 2 + 0.5).clamp(0, 1)
        return pictures.expand(-1, 3, *pictures.shape[2:]) if self.in_channels == 1 else pictures

    def raw_latents(self, inputs: Tensor) -> Tensor:
        """The mode of the posterior, before it is normalised."""
        if self.settings.monai is not None:
            return self.network.encode(inputs)[0]
        encoded = self.network.encode(inputs)
        return encoded.latent_dist.mode() if self._is_kl else encoded.latents

    def normalize(self, raw: Tensor) -> Tensor:
        mean, std = self._statistics(raw)
        return (raw - mean) / std * LATENT_STD

    def denormalize(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents)
        return latents / LATENT_STD * std + mean

    @property
    def is_measured(self) -> bool:
        """Whether mean and standard deviation of its latents are known."""
        return bool(self.settings.mean)

    @torch.inference_mode()
    def measure(self, pictures: Iterable[Tensor]) -> None:
        """Sets mean and standard deviation of each channel of the latents of some pictures, each (n, 3, H, W)."""
        count, total, squares = 0, 0.0, 0.0
        for some in pictures:
            raw = self.raw_latents(self.network_input(some)).double().transpose(0, 1).flatten(1)
            count, total, squares = count + raw.shape[1], total + raw.sum(1), squares + raw.square().sum(1)
        if not count:
            raise ValueError("there is no picture to measure the latents of")
        mean = torch.as_tensor(total) / count
        std = (torch.as_tensor(squares) / count - mean.square()).clamp(min=1e-12).sqrt()
        digits = (4 - std.log10().floor()).int().tolist()
        self.settings.mean, self.settings.std = (
            [round(value, places) for value, places in zip(values.tolist(), digits, strict=True)]
            for values in (mean, std)
        )

    def ensure_statistics(self) -> None:
        """Takes latents that were not measured as normalised. What is decoded does not depend on their scale."""
        if not self.is_measured:
            self.settings.mean, self.settings.std = [0.0] * self.channels, [1.0] * self.channels

    def scan_pixels(self, pixels: Tensor, modality: str | None) -> np.ndarray:
        """Pictures -> pixels as a data set stores them, the inverse of `prepare` up to the scaling of intensities.

        Args:
            pixels: (slices, 3, H, W) in [0, 1]; of a 3D autoencoder (windows, 3, D, H, W).
        Returns:
            (slices, H, W) float16 in Hounsfield units for CT, (slices, H, W, 3) uint8 for pictures in colour of
            modalities that have any, else (slices, H, W) uint8.
        """
        if pixels.ndim == 5:
            pixels = pixels.transpose(1, 2).flatten(0, 1)
        pixels = pixels.float().cpu()
        if modality == "CT":
            if self.settings.volume is not None:
                low, high = self.settings.volume.get("intensity_range", (-1000, 1000))
                return (pixels.mean(1) * (high - low) + low).numpy().astype(np.float16)
            return hounsfield_units(pixels, CT_WINDOWS if self.in_channels == 3 else WIDE_WINDOW).astype(np.float16)
        if modality in IN_COLOUR and (pixels.amax(1) - pixels.amin(1)).mean() > _GREY:
            return (pixels.permute(0, 2, 3, 1) * 255).round().numpy().astype(np.uint8)
        return (pixels.mean(1) * 255).round().numpy().astype(np.uint8)

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        if not self.is_measured:
            raise ValueError("the latents of this autoencoder were not measured: radfm prepare latents measures them")
        shape = (-1, *[1] * self.spatial_dims)
        mean, std = (latents.new_tensor(values).view(shape) for values in (self.settings.mean, self.settings.std))
        return mean, std

    def _argument(self, name: str) -> int:
        config = self.settings.monai if self.settings.monai is not None else self.network.config
        return int(config[name])


def hounsfield_units(pictures: Tensor, windows: Sequence[tuple[float, float]] = CT_WINDOWS) -> np.ndarray:
    """Windowed CT -> Hounsfield units, by the narrowest window in which a pixel is neither black nor white.

    Args:
        pictures: (slices, 3, H, W) in [0, 1], a channel for each window; or one window for all channels.
        windows: (level, width) of each.
    Returns:
        (slices, H, W) float32.
    """
    channels = [pictures.mean(1)] if len(windows) == 1 else list(pictures.unbind(1))
    values = [level - width / 2 + width * channel for channel, (level, width) in zip(channels, windows, strict=True)]
    ends = [(level - width / 2, level + width / 2) for level, width in windows]
    low = min(range(len(ends)), key=lambda i: ends[i][0])
    high = max(range(len(ends)), key=lambda i: ends[i][1])
    by_width = sorted(range(len(windows)), key=lambda i: -windows[i][1])
    units = torch.where(channels[by_width[0]] < 0.5, values[low], values[high])  # of pixels at the end of all windows
    margin = 0.02  # of the window: values near its ends may be cut off
    for i in by_width:
        level, width = windows[i]
        inside = (channels[i] > margin) & (channels[i] < 1 - margin)
        covered = (units > level - 0.75 * width) & (units < level + 0.75 * width)  # a noisy channel decides nothing
        covered |= torch.tensor(i == by_width[0])
        units = torch.where(inside & covered, values[i], units)
    return units.numpy()


def _read_settings(folder: Path) -> AutoencoderSettings | None:
    file = folder / SETTINGS
    if not file.is_file():
        return None
    try:
        return AutoencoderSettings(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} holds no settings of an autoencoder: {error}") from error


def _diffusers_network(name: str | Path) -> nn.Module:
    import diffusers

    classes = {"AutoencoderKL": diffusers.AutoencoderKL, "AutoencoderTiny": diffusers.AutoencoderTiny}
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        inner = [sub for sub in ("vae", "autoencoder") if (Path(name) / sub / "config.json").is_file()]
        if not inner:
            raise ValueError(f"{name} holds no autoencoder: it has no config.json of diffusers, and no {SETTINGS}")
        name = Path(name) / inner[0]  # of a whole pipeline
    try:
        config = diffusers.AutoencoderKL.load_config(str(name))
    except OSError as error:
        raise FileNotFoundError(
            f"{name}: there is no such folder, and no such model on the Hub can be reached"
        ) from error
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind not in classes:
        raise ValueError(f"{name} holds a {kind}; radfm reads {' and '.join(classes)} of diffusers")
    network = classes[kind].from_pretrained(str(name), use_safetensors=True)
    network.register_to_config(_name_or_path="")  # a path of this machine
    return network


def _monai_network(arguments: dict[str, Any]) -> nn.Module:
    from monai.networks.nets import AutoencoderKL

    return AutoencoderKL(**arguments)
