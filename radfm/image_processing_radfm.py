"""The pixels of a scan -> normalised slices of one size.

Decisions:
- CT is in Hounsfield units, whose meaning must not depend on the rest of the scan: three windows (lung, soft tissue,
  bone) are the three channels. Other modalities have no units: each scan is scaled between two of its percentiles.
- The aspect ratio of the anatomy is kept: slices are resampled to square pixels, and the shorter side is padded with
  black.
- Published models were trained on other squares and other scales of intensity. What they need is a setting each:
  stretching, cropping, bicubic resampling, bytes as they are, slices standardised one by one.
- A scan of a latent data set has latents in the place of pixels, which were normalised when they were made. They are
  neither scaled nor resized, and a model reads those of one autoencoder.
- Towers that read volumes have a section of settings of their own (`volume`). A volume is packed as slices, too.
- A grey slice is stored once; its three channels are views of it (`Tensor.expand`). So mean and standard deviation are
  one number each, the mean of ImageNet's over its channels, unless a tower needs one per channel.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .configuration_radfm import DEFAULT_MODALITIES, PLANES
from .volume_processing_radfm import VolumeGrid, VolumeSettings, volume_grid, volume_warnings

_CHUNK = 16  # slices that are prepared at once: more are not faster, and take more memory
_PLACE = ("spacing_mm", "affine", "plane")  # of a scan
_LEAST_STD = 1e-6  # of a slice, so that an empty one is zero
# (level, width) in Hounsfield units: lung, soft tissue, bone. A list, since the keys of a saved JSON object are sorted.
CT_WINDOWS = ((-600, 1500), (40, 400), (400, 1800))


class RadFMImageProcessor(BaseImageProcessor):
    r"""
    Args:
        size: height and width of a slice, pixels.
        intensity_percentiles: of a scan that is not CT, mapped to 0 and 1; (0, 100): the smallest and largest value.
        ct_windows: (level, width) in Hounsfield units of each channel, or one for all; None: CT is scaled as other
            modalities.
        image_mean, image_std: for normalisation, one number or one per channel; None: slices stay in [0, 1].
        keep_aspect_ratio: False stretches slices to a square.
        shortest_edge: the length of the shorter side, pixels, of which the middle `size` x `size` are taken, as in most
            image processors of transformers; None: nothing is cropped.
        resample: how slices are resized, "bilinear" or "bicubic", both with antialiasing.
        rescale_bytes: whether pixels of 8 bits, CT apart, are divided by 255, and not scaled by their percentiles.
        standardize_slices: whether each slice gets a mean of 0 and a standard deviation of 1 after it was resized;
            `image_mean` and `image_std` are then unused.
        max_slices: number of evenly spaced slices that are taken of a scan with more; None: all are taken.
        volume: [`VolumeSettings`] as a dict, for a model with a tower that reads volumes; None: scans are read slice by
            slice. Height and width of a volume are `size`.
        latents: of a model that reads latents: "autoencoder", the fingerprint of the one that made them, and
            "channels". Height and width of a latent are `size`, and all settings of pixels have no effect.
        modalities, planes: names of the ids in the packed batch; as in the model's configuration.
    """

    model_input_names = ["pixel_values", "slices_per_scan"]  # noqa: RUF012

    def __init__(
        self,
        size: int = 256,
        intensity_percentiles: tuple[float, float] = (0.5, 99.5),
        ct_windows: Sequence[tuple[float, float]] | None = CT_WINDOWS,
        image_mean: float | list[float] | None = 0.449,
        image_std: float | list[float] | None = 0.226,
        keep_aspect_ratio: bool = True,
        shortest_edge: int | None = None,
        resample: Literal["bilinear", "bicubic"] = "bilinear",
        rescale_bytes: bool = False,
        standardize_slices: bool = False,
        max_slices: int | None = None,
        volume: dict[str, Any] | None = None,
        latents: dict[str, Any] | None = None,
        modalities: Sequence[str] = DEFAULT_MODALITIES,
        planes: Sequence[str] = PLANES,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if ct_windows and len(ct_windows) not in (1, 3):
            raise ValueError(f"a slice has three channels: give one CT window or three, not {len(ct_windows)}")
        if shortest_edge is not None and shortest_edge < size:
            raise ValueError(f"shortest_edge is at least size: nothing of {size} pixels is in {shortest_edge}")
        if volume and list(volume["size"][1:]) != [size, size]:
            raise ValueError(f"height and width of a volume are those of a slice, {size}, not {volume['size'][1:]}")
        if volume and latents:
            raise ValueError("latents are read slice by slice: leave out volume")
        self.size = size
        self.intensity_percentiles = list(intensity_percentiles)
        self.ct_windows: Sequence[Sequence[float]] | None = ct_windows and [list(window) for window in ct_windows]
        self.image_mean = image_mean
        self.image_std = image_std
        self.keep_aspect_ratio = keep_aspect_ratio
        self.shortest_edge = shortest_edge
        self.resample = resample
        self.rescale_bytes = rescale_bytes
        self.standardize_slices = standardize_slices
        self.max_slices = max_slices
        self.volume = volume
        self.latents = latents
        self.modalities = list(modalities)
        self.planes = list(planes)

    def preprocess(
        self,
        images: np.ndarray,
        modality: str | None = None,
        spacing_mm: tuple[float, float, float] | None = None,
        return_tensors: str | None = "pt",
        **kwargs,
    ) -> BatchFeature:
        """One scan.

        Args:
            images: (slices, H, W) or (slices, H, W, 3); Hounsfield units for CT. Or latents (slices, c, size, size).
            modality: "CT" and the like; determines how intensities are scaled.
            spacing_mm: distance between slices, rows and columns.
            kwargs: `plane` and `affine` as in `radfm.cases.Scan`, for volumes.
        Returns:
            `pixel_values` (slices, 3, or c of latents, size, size) float32 and `slices_per_scan` (1,) int64.
        Raises:
            ValueError: the pixels have another shape, or there is no slice.
        """
        place = {"plane": kwargs.get("plane"), "affine": kwargs.get("affine")}
        scan = SimpleNamespace(pixels=np.asarray(images), modality=modality, spacing_mm=spacing_mm, **place)
        count = self.slices_of(scan) if scan.pixels.ndim else 0
        values = torch.empty(count, self.channels(scan), self.size, self.size)
        self.fill(values, scan)
        data = {"pixel_values": values.expand(-1, self.num_channels, -1, -1), "slices_per_scan": torch.tensor([count])}
        return BatchFeature(data, tensor_type=return_tensors)

    def fill(self, values: Tensor, scan: Any, slices: Sequence[int] | None = None) -> None:
        """Writes a scan's slices into `values` (slices taken, `channels`, size, size).

        Args:
            scan: has `pixels`, `modality` and `spacing_mm`; for volumes also `affine` and `plane`.
            slices: indices of the slices that are taken, scaled as in the whole scan; None: see `choose_slices`.
        """
        pixels = scan.pixels
        if self.latents is not None:
            values[:] = self._chosen_latents(pixels, slices)
            return
        if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[-1] != 3) or 0 in pixels.shape[1:3]:
            raise ValueError(f"a scan's pixels are (slices, H, W) or (slices, H, W, 3), got {pixels.shape}")
        if self.reads_volume(scan):
            values[:] = self._volume(scan)[:, None]
            return
        if self._is_windowed(pixels, scan.modality):
            windows = [(level - width / 2, level + width / 2) for level, width in self.ct_windows or ()]
        else:
            windows = [self._intensity_range(pixels)]
        chosen = self.choose_slices(len(pixels)) if slices is None else list(slices)
        for start in range(0, len(chosen), _CHUNK):
            some = slice(start, start + _CHUNK)
            values[some] = self._slices(pixels[chosen[some]], windows, scan.spacing_mm)

    def reads_volume(self, scan: Any) -> bool:
        """Whether a scan is prepared as a volume."""
        if self.volume is None or scan.pixels.ndim < 3:  # cached features take the place of pixels
            return False
        least = VolumeSettings(**self.volume).least_slices
        if least <= 1:
            return len(scan.pixels) > 0
        distance = (scan.spacing_mm or (0,))[0]
        return scan.pixels.ndim == 3 and len(scan.pixels) >= least and bool(distance)

    def slices_of(self, scan: Any) -> int:
        """The number of prepared slices of a scan."""
        return len(self.source_slices(scan))

    def source_slices(self, scan: Any) -> list[int]:
        """For each prepared slice of a scan, the index of its own slice that was taken, or that is nearest."""
        return self.grid(scan).source_slices if self.reads_volume(scan) else self.choose_slices(len(scan.pixels))

    def grid(self, scan: Any) -> VolumeGrid:
        """Where the voxels of a scan's volume come from."""
        return volume_grid(scan, VolumeSettings(**self.volume or {}))

    def warnings_of(self, scan: Any) -> list[str]:
        """What is assumed of a scan that is prepared as a volume, or left out of it, one sentence each."""
        return volume_warnings(scan, VolumeSettings(**self.volume or {})) if self.reads_volume(scan) else []

    def fit(self, pictures: Tensor, spacing_mm: tuple[float, float, float] | None) -> Tensor:
        """Resizes to the square that the model takes, with zeros around, or cropped to it.

        (n, channels, H, W) in [0, 1] -> (n, channels, size, size) in [0, 1]
        """
        shape = tuple(pictures.shape[2:])
        (top, height), (left, width) = self.placement(shape, spacing_mm)
        if (height, width) != shape:
            pictures = F.interpolate(pictures, size=(height, width), mode=self.resample, antialias=True)
            pictures = pictures.clamp(0, 1)  # bicubic resampling leaves the range
        return F.pad(pictures, (left, self.size - width - left, top, self.size - height - top))

    def placement(self, shape: tuple[int, int], spacing_mm: tuple | None) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where a slice of (H, W) is in the square after resizing: (top, height), (left, width).

        What is cropped starts before the square and ends behind it.
        """
        height, width = self._resized(shape, spacing_mm)
        # int() and not //, so that an odd number of pixels is cropped as by transformers' image processors
        return (int((self.size - height) / 2), height), (int((self.size - width) / 2), width)

    def choose_slices(self, slices: int) -> list[int]:
        """Indices of the slices that are taken of a scan with so many, evenly spaced and in order."""
        if self.max_slices is None or slices <= self.max_slices:
            return list(range(slices))
        return [int(i * slices / self.max_slices) for i in range(self.max_slices)]

    @property
    def num_channels(self) -> int:
        """Of `pixel_values`: 3, or those of latents."""
        return 3 if self.latents is None else self.latents["channels"]

    def channels(self, scan: Any) -> int:
        """The number of different channels of a prepared scan: 1, 3 or those of latents."""
        if self.latents is not None:
            return self.num_channels
        if self.reads_volume(scan):
            return 1
        windows = len(self.ct_windows or ()) if self._is_windowed(scan.pixels, scan.modality) else 1
        means = 1 if self.image_mean is None or self.standardize_slices else np.size(self.image_mean)
        return max(3 if scan.pixels.ndim == 4 else windows, means)

    def _chosen_latents(self, latents: np.ndarray, slices: Sequence[int] | None) -> Tensor:
        """The latents of the slices that are taken, float32."""
        shape = (self.num_channels, self.size, self.size)
        if latents.shape[1:] != shape:
            raise ValueError(
                f"the model reads latents (slices, {', '.join(map(str, shape))}) of autoencoder "
                f"{(self.latents or {}).get('autoencoder')}, not {latents.shape}: make them by radfm prepare latents"
            )
        _refuse_not_finite(latents)
        chosen = self.choose_slices(len(latents)) if slices is None else list(slices)
        return torch.from_numpy(latents[chosen].astype(np.float32))

    def _is_windowed(self, pixels: np.ndarray, modality: str | None) -> bool:
        return modality == "CT" and bool(self.ct_windows) and pixels.ndim == 3

    def _intensity_range(self, pixels: np.ndarray) -> tuple[float, float]:
        if not pixels.size:
            return 0.0, 1.0
        if self.rescale_bytes and pixels.dtype == np.uint8:
            return 0.0, 255.0
        low, high = self.intensity_percentiles
        if (low, high) == (0, 100):
            return float(pixels.min()), float(pixels.max())
        step = max(1, int((pixels.size / 1e6) ** 0.5))  # a million pixels have nearly the percentiles of all
        sample = pixels[:, ::step, ::step] if pixels[0].size > step * step else pixels
        low, high = np.percentile(sample, (low, high))
        return float(low), float(high)

    def _volume(self, scan: Any) -> Tensor:
        """(windows * depth, size, size), normalised; padding is as dark as air."""
        settings = VolumeSettings(**self.volume or {})
        pixels = scan.pixels.mean(-1) if scan.pixels.ndim == 4 else scan.pixels
        _refuse_not_finite(pixels)
        low, high = settings.intensity_range if scan.modality == "CT" else self._intensity_range(pixels)
        scan = SimpleNamespace(**{name: getattr(scan, name, None) for name in _PLACE}, pixels=pixels)
        scaled = volume_grid(scan, settings).sample(pixels).sub_(low).div_(max(high - low, 1e-6)).clamp_(0, 1)
        return scaled.nan_to_num_(0).sub_(settings.mean).div_(settings.std)

    def _slices(self, pixels: np.ndarray, windows: list[tuple[float, float]], spacing_mm: tuple | None) -> Tensor:
        """(n, H, W) or (n, H, W, 3) -> (n, channels, size, size), one channel for each window or colour."""
        _refuse_not_finite(pixels)
        values = torch.from_numpy(pixels.astype(np.float32))
        channels = values[:, None] if values.ndim == 3 else values.permute(0, 3, 1, 2)
        scaled = torch.cat([((channels - low) / max(high - low, 1e-6)).clamp(0, 1) for low, high in windows], dim=1)
        scaled = self.fit(scaled, spacing_mm)
        if self.standardize_slices:
            std, mean = torch.std_mean(scaled, dim=(2, 3), keepdim=True)
            return (scaled - mean) / std.clamp(min=_LEAST_STD)
        if self.image_mean is None:
            return scaled
        mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (self.image_mean, self.image_std))
        return (scaled - mean) / std

    def _resized(self, shape: tuple[int, int], spacing_mm: tuple | None) -> tuple[int, int]:
        if not self.keep_aspect_ratio:
            return (self.shortest_edge or self.size,) * 2
        row_mm, column_mm = spacing_mm[1:] if spacing_mm is not None else (1.0, 1.0)
        height, width = shape[0] * row_mm, shape[1] * column_mm
        if self.shortest_edge is not None:
            shorter = min(height, width)
            return int(self.shortest_edge * height / shorter), int(self.shortest_edge * width / shorter)
        scale = self.size / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))


def _refuse_not_finite(pixels: np.ndarray) -> None:
    if pixels.dtype.kind not in "biu" and not np.isfinite(pixels).all():
        raise ValueError("a scan's pixels hold NaN or infinite values: replace them first, as read_case does")


RadFMImageProcessor.register_for_auto_class()

__all__ = ["CT_WINDOWS", "RadFMImageProcessor"]
