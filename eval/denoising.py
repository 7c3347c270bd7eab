"""How well known noise is removed from slices, by an autoencoder, by a generator, and by methods without learning.

    >>> study = measure_denoising(Evaluation("datasets/mine"), "runs/autoencoder", "runs/generator")
    >>> study.result["kinds"]["Rician"]["strengths"]["0.1"]["best"]["psnr"]

Decisions:
- Noise is added to the prepared slice, in [0, 1], and only where there is a picture: Rician to MRI, multiplicative
  Gaussian (speckle) to ultrasound, Gaussian to X-rays, CT and all else. The strength is its standard deviation as a
  share of the range of the picture; of CT, of 400 HU, the same noise in all windows. Noise of scanners is neither white
  nor the same everywhere, so these figures do not say how real noise is removed.
- Non-local means (Buades 2005), total variation (Chambolle 2004) and wavelets (BayesShrink, Chang 2000) are those of
  scikit-image. All methods know the kind and the strength. Each has one parameter, which is chosen on training slices
  by PSNR, for each kind and strength; the autoencoder has none. The mean of Rician noise is not zero: it is taken off
  what each method returns (the inverse of the mean, as in Koay and Basser 2006).
- An autoencoder removes what it cannot encode. It learned from pictures as they are, not to remove noise, and can be no
  better than its reconstruction of the picture without noise, which is measured, too.
- A generator removes noise from the latents in one step, as one that was added to these; disorders are unknown to it.
- One slice of each scan is measured, the middle one. PSNR and SSIM (Wang 2004) are within the picture, without its
  padding; methods are compared on the same noise, in the same resamples of patients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import ive
from torch import Tensor

from radfm.data_prep.latents import refuse_latents
from radfm.data_prep.stored_cases import StoredCases, load, patient_of
from radfm.eval.anomaly_maps import its_autoencoder
from radfm.eval.bootstrap import patient_weights
from radfm.eval.comparisons import figure
from radfm.eval.predict import ALL, Evaluation, require_unshared_patients
from radfm.latents import Autoencoder
from radfm.latents.denoisers import noise_of
from radfm.latents.generator import Generator, Prompt

STRENGTHS = (0.05, 0.1, 0.2)
KINDS = {"MRI": "Rician", "ultrasound": "speckle"}  # modality -> noise
OTHER_KIND = "Gaussian"
MEASURES = {"psnr": "PSNR, dB", "ssim": "SSIM"}
NOISY, AUTOENCODER, GENERATOR = "noisy", "autoencoder", "generator"

_CT_RANGE = 400  # Hounsfield units that a strength is a share of
_TUNING_SLICES = 24  # of each kind
_AT_ONCE = 32
_UNBOUNDED = (-np.inf, np.inf)


@dataclass(frozen=True)
class Slice:
    """A slice without noise.

    Attributes:
        picture: (3, H, W) in [0, 1].
        inside: (H, W) bool, where there is a picture.
        channels: how many of the picture's channels differ, 1 or 3.
        scale: (3,) standard deviation of the noise of each channel for a strength of 1.
        prompt: what a generator is told of it.
        patient: its patient.
        number: its row in the table of scans, which determines its noise.
    """

    picture: Tensor
    inside: Tensor
    channels: int
    scale: Tensor
    prompt: Prompt
    patient: str
    number: int

    @property
    def kind(self) -> str:
        """The kind of noise that it gets."""
        return KINDS.get(self.prompt.modality or "", OTHER_KIND)

    def noisy(self, strength: float, seed: int = 0) -> Tensor:
        """(3, H, W). Colours get noise of their own, the windows of CT the same."""
        deviation = strength * self.scale[:, None, None]
        colours = 3 if self.channels == 3 and self.prompt.modality != "CT" else 1
        real, imaginary = noise_of(seed * 1_000_003 + self.number, (2, colours, *self.inside.shape)) * self.inside
        if self.kind == "Rician":
            return torch.hypot(self.picture + deviation * real, deviation * imaginary)
        if self.kind == "speckle":
            return self.picture * (1 + deviation * real)
        return self.picture + deviation * real

    def deviations(self, noisy: Tensor, strength: float) -> list[float]:
        """The standard deviation of the noise of each channel that differs; of speckle, over the whole picture."""
        brightness = (noisy[:, self.inside].square().mean().sqrt()) if self.kind == "speckle" else 1.0
        return (strength * self.scale * brightness)[: self.channels].tolist()


@dataclass(frozen=True)
class Method:
    """A way to remove noise.

    Attributes:
        factors: values that its parameter is chosen from, in units of the strength of the noise.
        estimate: (slices, their noisy pictures (n, 3, H, W), strength, factor) -> (n, 3, H, W), the mean of the noisy
            pictures; None: they are left as they are.
    """

    factors: Sequence[float]
    estimate: Callable[[Sequence[Slice], Tensor, float, float], Tensor] | None = None

    def denoise(self, slices: Sequence[Slice], noisy: Tensor, strength: float, factor: float) -> Tensor:
        """Noisy pictures (n, 3, H, W) -> (n, 3, H, W) in [0, 1]."""
        if self.estimate is None:
            return noisy
        means = self.estimate(slices, noisy, strength, factor)
        pairs = zip(slices, means, strict=True)
        clean = [without_rician_bias(mean, strength) if one.kind == "Rician" else mean for one, mean in pairs]
        return torch.stack(clean).clamp(0, 1)


@dataclass
class Denoising:
    """A study.

    Attributes:
        result: see `measure_denoising`.
        slices: the measured ones.
        methods: name -> method.
        seed: of the noise.
    """

    result: dict[str, Any]
    slices: list[Slice]
    methods: dict[str, Method]
    seed: int

    def estimates(self, one: Slice, strength: float) -> dict[str, Tensor]:
        """Method -> (3, H, W), what it makes of a noisy slice."""
        of_strength = self.result["kinds"][one.kind]["strengths"][str(strength)]["methods"]
        noisy = one.noisy(strength, self.seed)[None]
        return {
            name: method.denoise([one], noisy, strength, of_strength[name]["factor"])[0]
            for name, method in self.methods.items()
        }


def measure_denoising(
    evaluation: Evaluation,
    autoencoder: str | Path,
    generator: str | Path | None = None,
    limit: int | None = None,
    strengths: Sequence[float] = STRENGTHS,
    bootstraps: int = 1000,
    seed: int = 0,
) -> Denoising:
    """Adds noise to the slices of a split, removes it, and compares the methods.

    Args:
        limit: at most so many cases, evenly spaced.
        strengths: see the module.
        seed: of the noise and the bootstrap.
    Returns:
        With a JSON-able `result`: `data`, `split`, `cases`, `patients`, `slices`, `size` (pixels), `bootstraps`,
        `autoencoder`, `generator` (fingerprints), and `kinds`: kind of noise -> `modalities` (name -> slices),
        `slices`, `patients`, `reconstruction` (of the pictures without noise: measure -> figure), and `strengths`:
        strength -> `methods`: name -> `psnr`, `ssim` {value, low, high}, and `factor` of its parameter; `best`:
        measure -> name; `best_less`: measure -> name of another -> by how much the best is higher {value, low, high}.
    Raises:
        FileNotFoundError: there is no such data set, autoencoder or generator.
        ValueError: the data set holds latents, it has no scan in the split or none to tune on, a patient is in several
            splits, or the autoencoder is of volumes or not that of the generator.
    """
    if evaluation.split in ("train", ALL):
        raise ValueError(f"the methods are tuned on the training split: measure another split than {evaluation.split}")
    everything = load(evaluation.data)
    refuse_latents(everything)
    require_unshared_patients(everything, evaluation.split)
    network = Autoencoder.from_pretrained(autoencoder, device=evaluation.device)
    of_generator = None if generator is None else Generator.from_pretrained(generator, device=evaluation.device)
    network = its_autoencoder(network, of_generator)
    network.ensure_statistics()
    split = None if evaluation.split == ALL else evaluation.split
    cases = load(evaluation.data, split)
    slices = _slices(network, cases, limit)
    tuning = _slices(network, load(evaluation.data, "train"), None, _TUNING_SLICES)
    for name, some in ((evaluation.split, slices), ("train", tuning)):
        if not some:
            raise ValueError(f"{evaluation.data} has no scan in its split {name!r}: prepare it with one")
    methods = _methods(network, of_generator)
    kinds = sorted({one.kind for one in slices})
    steps = [(kind, strength) for kind in kinds for strength in strengths]
    result: dict[str, Any] = {"kinds": {}}
    for done, (kind, strength) in enumerate(steps, 1):
        of_kind = [one for one in slices if one.kind == kind]
        to_tune = [one for one in tuning if one.kind == kind][:_TUNING_SLICES] or tuning[:_TUNING_SLICES]
        entry = result["kinds"].setdefault(kind, _about(network, of_kind, bootstraps, seed))
        factors = {name: _best_factor(method, to_tune, strength, seed) for name, method in methods.items()}
        entry["strengths"][str(strength)] = _compared(methods, factors, of_kind, strength, bootstraps, seed)
        evaluation.progress(done, len(steps))
    result = {
        "data": everything.record["fingerprint"],
        "split": evaluation.split,
        "cases": min(limit or len(cases), len(cases)),
        "patients": len({one.patient for one in slices}),
        "slices": len(slices),
        "size": network.size,
        "bootstraps": bootstraps,
        "autoencoder": network.fingerprint,
        "generator": None if of_generator is None else of_generator.fingerprint,
        **result,
    }
    return Denoising(result, slices, methods, seed)


def psnr_within(pictures: Tensor, slices: Sequence[Slice]) -> np.ndarray:
    """(n, 3, H, W) -> (n,) peak signal-to-noise ratio in dB within each picture, at most 100."""
    clean, inside = _stacked(slices)
    error = ((pictures - clean).square().mean(1) * inside).sum((1, 2)) / inside.sum((1, 2))
    return (-10 * error.clamp(min=1e-10).log10()).double().numpy()


def ssim_within(pictures: Tensor, slices: Sequence[Slice]) -> np.ndarray:
    """(n, 3, H, W) -> (n,) structural similarity within each picture, windows of 7 pixels."""
    from skimage.metrics import structural_similarity

    values = []
    for one, picture in zip(slices, pictures.numpy(), strict=True):
        pair = (one.picture[: one.channels].numpy(), picture[: one.channels])
        similar = structural_similarity(*pair, data_range=1, channel_axis=0, full=True)[1].mean(0)
        values.append(float(similar[one.inside.numpy()].mean()))
    return np.array(values)


def _methods(autoencoder: Autoencoder, generator: Generator | None) -> dict[str, Method]:
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet

    def non_local_means(picture: np.ndarray, deviation: float, factor: float) -> np.ndarray:
        return denoise_nl_means(picture, 5, 6, h=factor * deviation, sigma=deviation)

    def total_variation(picture: np.ndarray, deviation: float, factor: float) -> np.ndarray:
        return denoise_tv_chambolle(picture, weight=factor * deviation)

    def wavelet(picture: np.ndarray, deviation: float, factor: float) -> np.ndarray:
        return denoise_wavelet(picture, sigma=factor * deviation, wavelet="db2")

    def reconstructed(slices: Sequence[Slice], noisy: Tensor, strength: float, factor: float) -> Tensor:
        return torch.cat([autoencoder.reconstruct(some).cpu() for some in noisy.split(_AT_ONCE)])

    def generated(slices: Sequence[Slice], noisy: Tensor, strength: float, factor: float) -> Tensor:
        assert generator is not None
        latents = torch.cat([autoencoder.encode(some) for some in noisy.split(_AT_ONCE)])
        prompts = [one.prompt for one in slices]
        parts = [slice(start, start + _AT_ONCE) for start in range(0, len(latents), _AT_ONCE)]
        clean = [generator.denoise(latents[some], factor * strength, prompts[some]) for some in parts]
        return torch.cat([autoencoder.decode(some).cpu() for some in clean])

    methods = {
        NOISY: Method((1.0,)),
        "non-local means": _by_channel(non_local_means, (0.3, 0.5, 0.7, 1.0, 1.4)),
        "total variation": _by_channel(total_variation, (0.3, 0.5, 0.8, 1.2, 1.8)),
        "wavelets": _by_channel(wavelet, (0.4, 0.7, 1.0, 1.4, 2.0)),
        AUTOENCODER: Method((1.0,), reconstructed),
    }
    return methods if generator is None else methods | {GENERATOR: Method((0.25, 0.5, 1.0, 2.0, 4.0), generated)}


def _by_channel(denoise: Callable[[np.ndarray, float, float], np.ndarray], factors: Sequence[float]) -> Method:
    """A method of scikit-image, for each channel of its own: (H, W), standard deviation of the noise, factor."""

    def of_slices(slices: Sequence[Slice], noisy: Tensor, strength: float, factor: float) -> Tensor:
        estimates = noisy.clone()
        for one, picture in zip(slices, estimates, strict=True):
            for channel, deviation in enumerate(one.deviations(picture, strength)):
                picture[channel] = torch.from_numpy(denoise(picture[channel].numpy(), deviation, factor))
            picture[one.channels :] = picture[:1]
        return estimates

    return Method(factors, of_slices)


def without_rician_bias(means: Tensor, deviation: float) -> Tensor:
    """The mean of Rician noise, which is never below 1.25 standard deviations -> the value that it was added to."""
    values = np.linspace(0, 30, 3001)  # in standard deviations
    half = values**2 / 4
    of_values = np.sqrt(np.pi / 2) * ((1 + 2 * half) * ive(0, half) + 2 * half * ive(1, half))
    inverse = np.interp(means.numpy() / deviation, of_values, values)
    far = np.sqrt(np.maximum(means.numpy() ** 2 - deviation**2, 0))  # where the noise is nearly Gaussian
    return torch.from_numpy(np.where(means.numpy() > 25 * deviation, far, inverse * deviation).astype(np.float32))


def _slices(autoencoder: Autoencoder, cases: StoredCases, limit: int | None, of_kind: int | None = None) -> list[Slice]:
    """The middle slice of each scan.

    Args:
        limit: at most so many cases, evenly spaced.
        of_kind: at most so many slices of a kind of noise, evenly spaced.
    """
    count = min(limit or len(cases), len(cases))
    rows = np.unique(np.linspace(0, len(cases) - 1, count).round().astype(int)).tolist() if count else []
    found: dict[str, list[tuple[int, str]]] = {}
    for row in rows:
        for scan in cases.rows[row]["scan_rows"]:
            kind = KINDS.get(cases.scan_header(scan)["modality"] or "", OTHER_KIND)
            found.setdefault(kind, []).append((scan, patient_of(cases.rows[row])))
    chosen = [one for of_one in found.values() for one in of_one[:: max(1, len(of_one) // (of_kind or len(of_one)))]]
    return [_slice(autoencoder, cases, scan, patient) for scan, patient in chosen]


def _slice(autoencoder: Autoencoder, cases: StoredCases, row: int, patient: str) -> Slice:
    scan, images = cases.scan(row), autoencoder.image_processor
    picture = autoencoder.prepare(scan, [len(scan.pixels) // 2])[0].clone()
    inside = images.fit(torch.ones(1, 1, *scan.pixels.shape[1:3]), scan.spacing_mm)[0, 0] > 0.99
    channels = images.channels(scan)
    scale = torch.ones(3)
    if scan.modality == "CT" and scan.pixels.ndim == 3:
        scale = _CT_RANGE / torch.tensor([width for _, width in images.ct_windows or ()]).expand(3)
    prompt = Prompt(None, scan.modality, scan.plane, scan.body_part)
    return Slice(picture, inside, channels, scale, prompt, patient, row)


def _about(autoencoder: Autoencoder, slices: Sequence[Slice], bootstraps: int, seed: int) -> dict[str, Any]:
    """What is known of a kind of noise before any is added."""
    clean = torch.stack([one.picture for one in slices])
    estimates = torch.cat([autoencoder.reconstruct(some).cpu() for some in clean.split(_AT_ONCE)])
    weights = patient_weights([one.patient for one in slices], bootstraps, seed)
    modalities = [one.prompt.modality or "unknown" for one in slices]
    return {
        "modalities": {name: modalities.count(name) for name in sorted({*modalities})},
        "slices": len(slices),
        "patients": len({one.patient for one in slices}),
        "reconstruction": {name: _mean(of_one, weights) for name, of_one in _measured(estimates, slices).items()},
        "strengths": {},
    }


def _best_factor(method: Method, slices: Sequence[Slice], strength: float, seed: int) -> float:
    if len(method.factors) == 1:
        return method.factors[0]
    noisy = torch.stack([one.noisy(strength, seed) for one in slices])
    return max(
        method.factors,
        key=lambda factor: psnr_within(method.denoise(slices, noisy, strength, factor), slices).mean(),
    )


def _compared(
    methods: dict[str, Method],
    factors: dict[str, float],
    slices: Sequence[Slice],
    strength: float,
    bootstraps: int,
    seed: int,
) -> dict[str, Any]:
    """An entry of `strengths`."""
    noisy = torch.stack([one.noisy(strength, seed) for one in slices])
    weights = patient_weights([one.patient for one in slices], bootstraps, seed)
    values = {
        name: _measured(method.denoise(slices, noisy, strength, factors[name]), slices)
        for name, method in methods.items()
    }
    best = {one: max(values, key=lambda name: values[name][one].mean()) for one in MEASURES}
    return {
        "methods": {
            name: {one: _mean(of_method[one], weights) for one in MEASURES} | {"factor": factors[name]}
            for name, of_method in values.items()
        },
        "best": best,
        "best_less": {
            one: {
                name: _mean(values[best[one]][one] - of_method[one], weights)
                for name, of_method in values.items()
                if name != best[one]
            }
            for one in MEASURES
        },
    }


def _measured(estimates: Tensor, slices: Sequence[Slice]) -> dict[str, np.ndarray]:
    return {"psnr": psnr_within(estimates, slices), "ssim": ssim_within(estimates, slices)}


def _mean(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    return figure(values.mean(), values @ weights / weights.sum(0), _UNBOUNDED)


def _stacked(slices: Sequence[Slice]) -> tuple[Tensor, Tensor]:
    return torch.stack([one.picture for one in slices]), torch.stack([one.inside for one in slices])
