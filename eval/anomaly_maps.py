"""Anomaly maps: where a scan differs from what an autoencoder, or a generator of normal slices, makes of it.

    >>> maps = MapMaker(Autoencoder.from_pretrained("runs/autoencoder"))
    >>> normal = fit_normal([maps(scan) for scan in normal_scans])
    >>> normal.standardised(maps(scan))["reconstruction"].shape  # (slices, 16, 16)

Decisions:
- Reconstruction: the mean absolute difference of a slice and its reconstruction. Diffusion: noise is added to the
  latents, the generator removes it under the prompt "no finding", and the difference is that of the latents (as in
  AnoDDPM, Wyatt et al., CVPR Workshops 2022, with one step of denoising).
- A raw error follows contrast and edges: bone, or the outline of the body, has a larger error than a lesion in soft
  tissue (Meissen et al., "On the pitfalls of using the residual error as anomaly score", MIDL 2022). So an error is
  standardised: the logarithm of the error at a place, less what normal training cases have at that place with that
  contrast, in standard deviations. A place is one of 16 x 16 in the square, in one of four parts of a stack of slices.
- Either direction counts: a consolidation hides the texture of the lung, and its error is smaller than normal.
- Normal training cases are grouped by modality, plane and body part. A group with fewer than 10 scans is joined to its
  modality and body part, then its modality, then all.
- "contrast" is a control without any network: the contrast itself, standardised in the same way. A score that is not
  above it has learnt nothing of what is normal.
- All slices of all cases get the same noise, so that scores differ by the slices alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from radfm.cases import Scan
from radfm.latents import Autoencoder
from radfm.latents.denoisers import noise_of
from radfm.latents.generator import Generator, Prompt

GRID = 16  # places along a side of the square
SIGMAS = (0.3, 0.6, 1.0)  # of the noise; latents have a standard deviation of 0.5
LEAST_SCANS = 10  # of a group of normal scans

_DEPTHS = 4  # parts of a stack of slices
_SLICES = 8  # at once
_OFFSET = 0.02  # of errors and contrasts before their logarithm, five grey levels: noise in air is no anomaly
_PRIOR = 4  # scans that the mean of neighbours counts as, at each place
_LEAST_DEVIATION = 0.15  # of a logarithm: 15% of an error
_HIGHEST = 0.05  # share of the places of a scan that its score is the mean of

Group = tuple[str | None, ...]


@dataclass(frozen=True)
class ScanMaps:
    """The maps of one scan, before they are standardised.

    Attributes:
        group: modality, plane, body part.
        errors: "reconstruction", "diffusion" -> (slices, 16, 16) float32, mean absolute error at each place.
        contrast: (slices, 16, 16) float32, mean absolute difference of neighbouring pixels.
        inside: (16, 16) bool, the places that are at least half within the picture.
        taken: indices of the slices.
    """

    group: Group
    errors: dict[str, np.ndarray]
    contrast: np.ndarray
    inside: np.ndarray
    taken: list[int]

    @property
    def depths(self) -> np.ndarray:
        """(slices,) the part of the stack that each is in."""
        return np.arange(len(self.taken)) * _DEPTHS // len(self.taken)

    def mean_error(self, kind: str) -> float:
        """The raw error of the scan's brightest slice: the mean over the picture."""
        return float(self.errors[kind][:, self.inside].mean(1).max())


class MapMaker:
    """Scan -> `ScanMaps`.

    Args:
        autoencoder: of slices.
        generator: for "diffusion"; its autoencoder has to be this one. Its own copy is used, with the mean and standard
            deviation of the latents that it was trained on.
        slices: that are taken of a scan with more, evenly spaced.
        seed: of the noise.
    Raises:
        ValueError: the autoencoder is of volumes, or the generator of another autoencoder or without normal slices.
    """

    def __init__(self, autoencoder: Autoencoder, generator: Generator | None = None, slices: int = 16, seed: int = 0):
        self.autoencoder, self.generator, self.seed = its_autoencoder(autoencoder, generator), generator, seed
        if generator is not None and generator.contexts and "" not in generator.contexts:
            raise ValueError(
                "the generator learned from no slice without findings, so it cannot say how a normal one looks: "
                "leave out --generator, or give another one"
            )
        self.images = autoencoder.image_processor
        self.images.max_slices = slices

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("reconstruction",) if self.generator is None else ("reconstruction", "diffusion")

    @torch.inference_mode()
    def __call__(self, scan: Scan) -> ScanMaps:
        taken = self.images.choose_slices(len(scan.pixels))
        pixels = self.autoencoder.prepare(scan, taken)  # (slices, 3, H, W)
        parts = [self._errors(part, scan) for part in pixels.split(_SLICES)]
        errors = {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}
        contrast = _grid(_contrast(pixels))
        shape = scan.pixels.shape[1:3]
        inside = _grid(self.images.fit(torch.ones(1, 1, *shape), scan.spacing_mm))[0] >= 0.5
        group = (scan.modality, scan.plane, scan.body_part)
        return ScanMaps(group, errors, contrast, inside, taken)

    @torch.inference_mode()
    def reconstruction(self, scan: Scan, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A slice, and its reconstruction: (H, W) float32 in [0, 1] each, the mean of the channels."""
        picture = self.autoencoder.prepare(scan, [index])
        decoded = self.autoencoder.reconstruct(picture)
        return picture[0].mean(0).cpu().numpy(), decoded[0].mean(0).cpu().numpy()

    def _errors(self, pixels: Tensor, scan: Scan) -> dict[str, np.ndarray]:
        latents = self.autoencoder.encode(pixels)
        decoded = self.autoencoder.decode(latents)
        errors = {"reconstruction": _grid((decoded.cpu() - pixels.cpu()).abs())}
        if self.generator is not None:
            errors["diffusion"] = _grid(self._noise_residual(latents, scan))
        return errors

    def _noise_residual(self, latents: Tensor, scan: Scan) -> Tensor:
        """(slices, c, h, w): how far the denoised latents of a normal slice are from these, the mean over `SIGMAS`."""
        assert self.generator is not None
        normal = Prompt(disorders=[], modality=scan.modality, plane=scan.plane, body_part=scan.body_part)
        residual = torch.zeros_like(latents)
        for number, sigma in enumerate(SIGMAS):
            noise = noise_of(self.seed + number, tuple(latents.shape[1:])).to(latents)
            denoised = self.generator.denoise(latents + sigma * noise, sigma, [normal] * len(latents))
            residual += (denoised.to(latents) - latents).abs() / len(SIGMAS)
        return residual


def its_autoencoder(autoencoder: Autoencoder, generator: Generator | None) -> Autoencoder:
    """An autoencoder of slices; that of the generator where there is one, with the statistics of its latents.

    Raises:
        ValueError: the autoencoder is of volumes, or the generator of another autoencoder.
    """
    if autoencoder.spatial_dims != 2:
        raise ValueError("the autoencoder reads volumes: give one of slices")
    if generator is None:
        return autoencoder
    if generator.autoencoder.network_fingerprint != autoencoder.network_fingerprint:
        raise ValueError(
            "the generator's latents are of another autoencoder: give --autoencoder the folder autoencoder/ of the "
            "generator"
        )
    return generator.autoencoder


@dataclass(frozen=True)
class _Normal:
    """What normal scans of one group have: logarithms of errors at each place, (4, 16, 16) each.

    Attributes:
        error, contrast: means.
        slope: of the error over the contrast.
        deviation: standard deviation of the error around the line.
    """

    error: np.ndarray
    contrast: np.ndarray
    slope: float
    deviation: np.ndarray


@dataclass
class NormalCases:
    """What normal training cases have, see `fit_normal`.

    Attributes:
        places: group -> kind -> its statistics. Shorter groups have more scans: (modality, body part), (modality,), ().
        scores: group -> kind -> mean and standard deviation of the scores of its normal scans.
        scans: how many it was fitted to.
    """

    places: dict[Group, dict[str, _Normal]]
    scores: dict[Group, dict[str, tuple[float, float]]]
    scans: int

    def standardised(self, maps: ScanMaps) -> dict[str, np.ndarray]:
        """Kind -> (slices, 16, 16) float32, at least 0, in standard deviations; 0 outside the picture.

        Kinds are those of the errors, "contrast" and, where there are two errors, "both", their mean.
        """
        of_group = self.places[_known(maps.group, self.places)]
        return _standardised(maps, of_group)

    def scan_scores(self, maps: ScanMaps) -> dict[str, float]:
        """Kind -> the mean of the highest 5% of the standardised map, in standard deviations of normal scans."""
        group = _known(maps.group, self.scores)
        raw = {kind: _highest(values, maps.inside) for kind, values in self.standardised(maps).items()}
        means = self.scores[group]
        return {kind: (value - means[kind][0]) / means[kind][1] for kind, value in raw.items()}


def fit_normal(scans: Sequence[ScanMaps]) -> NormalCases:
    """Raises: ValueError: there is no scan."""
    if not scans:
        raise ValueError("there is no normal training scan to compare with")
    groups: dict[Group, list[ScanMaps]] = {}
    for maps in scans:
        for group in _wider(maps.group):
            groups.setdefault(group, []).append(maps)
    groups = {group: found for group, found in groups.items() if len(found) >= LEAST_SCANS or not group}
    kinds = [*scans[0].errors, "contrast"]
    normal = NormalCases({g: {k: _fit_places(found, k) for k in kinds} for g, found in groups.items()}, {}, len(scans))
    for group, found in groups.items():
        scores = [
            {k: _highest(v, maps.inside) for k, v in _standardised(maps, normal.places[group]).items()}
            for maps in found
        ]
        normal.scores[group] = {
            kind: (float(np.mean(values)), max(float(np.std(values)), _LEAST_DEVIATION))
            for kind in scores[0]
            for values in [[one[kind] for one in scores]]
        }
    return normal


def _standardised(maps: ScanMaps, places: Mapping[str, _Normal]) -> dict[str, np.ndarray]:
    contrast, result = _log(maps.contrast), {}
    for kind, normal in places.items():
        expected = normal.error[maps.depths] + normal.slope * (contrast - normal.contrast[maps.depths])
        values = (_log(_values(maps, kind)) - expected) / normal.deviation[maps.depths]
        result[kind] = np.abs(values * maps.inside).astype(np.float32)
    if len(maps.errors) > 1:
        result["both"] = np.mean([result[kind] for kind in maps.errors], axis=0)
    return result


def _fit_places(scans: Sequence[ScanMaps], kind: str) -> _Normal:
    depths = np.concatenate([maps.depths for maps in scans])
    inside = np.concatenate([np.repeat(maps.inside[None], len(maps.taken), 0) for maps in scans])
    values = _log(np.concatenate([_values(maps, kind) for maps in scans]))
    contrast = _log(np.concatenate([maps.contrast for maps in scans]))
    mean, mean_contrast = (_mean_of_places(one, inside, depths) for one in (values, contrast))
    from_mean, from_contrast = ((values - mean[depths]) * inside, (contrast - mean_contrast[depths]) * inside)
    slope = (
        0.0 if kind == "contrast" else float((from_mean * from_contrast).sum() / max((from_contrast**2).sum(), 1e-9))
    )
    residual = from_mean - slope * from_contrast
    deviation = np.sqrt(_mean_of_places(residual**2, inside, depths))
    return _Normal(mean, mean_contrast, slope, np.maximum(deviation, _LEAST_DEVIATION))


def _mean_of_places(values: np.ndarray, inside: np.ndarray, depths: np.ndarray) -> np.ndarray:
    """(slices, 16, 16) -> (4, 16, 16): of each part of the stack; drawn to the mean of all parts, and of all places."""
    total, count = np.zeros((_DEPTHS, GRID, GRID)), np.zeros((_DEPTHS, GRID, GRID))
    np.add.at(total, depths, values * inside)
    np.add.at(count, depths, inside)
    everywhere = total.sum() / max(count.sum(), 1)
    of_place = (total.sum(0) + _PRIOR * everywhere) / (count.sum(0) + _PRIOR)
    return (total + _PRIOR * of_place) / (count + _PRIOR)


def _values(maps: ScanMaps, kind: str) -> np.ndarray:
    return maps.contrast if kind == "contrast" else maps.errors[kind]


def _highest(values: np.ndarray, inside: np.ndarray) -> float:
    ordered = np.sort(values[:, inside], axis=None)
    return float(ordered[-max(4, round(_HIGHEST * len(ordered))) :].mean())


def _wider(group: Group) -> list[Group]:
    """The group, and those that it is a part of, from the narrowest."""
    modality, _, body_part = group
    return [group, (modality, body_part), (modality,), ()]


def _known(group: Group, groups: Iterable[Group]) -> Group:
    return next(one for one in _wider(group) if one in groups)


def _contrast(pixels: Tensor) -> Tensor:
    """(slices, C, H, W) -> (slices, C, H, W): differences of neighbours, of rows and of columns, zero at the end."""
    rows = F.pad(pixels.diff(dim=2).abs(), (0, 0, 0, 1))
    return (rows + F.pad(pixels.diff(dim=3).abs(), (0, 1))) / 2


def _grid(values: Tensor) -> np.ndarray:
    """(slices, C, H, W) -> (slices, 16, 16) float32, the mean of each place over all channels."""
    return F.adaptive_avg_pool2d(values.float().cpu().mean(1), GRID).numpy()


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(values + _OFFSET)
