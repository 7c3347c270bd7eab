"""A generator of latents by diffusion, conditioned on the names of disorders, modality, plane and body part.

    >>> generator = Generator.from_pretrained("runs/diffusion")
    >>> prompt = Prompt(["Pneumothorax"], modality="X-ray", plane="frontal", body_part="chest")
    >>> latents = generator.sample([prompt, prompt], seeds=[0, 1])  # (2, channels, h, w)
    >>> pictures = generator.autoencoder.decode(latents)

Its folder: autoencoder/, denoiser/model.safetensors, generator.json, text_encoder/ (or its name in generator.json), and
beside these the card and the recipe of its training.

Decisions:
- A sample depends on its prompt and its seed, not on the others of its batch.
- Guidance compares with a prompt of the same modality, plane and body part whose disorders are unknown.
- The sampler is diffusers' DPM-Solver++ for EDM's noise levels.
- `generator.json` has what is known of the training data: counts of training slices, and no case.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from radfm.checkpoints import NAMES
from radfm.latents.autoencoders import LATENT_STD, Autoencoder
from radfm.latents.conditions import NO_FINDING, Conditions, Prompt, TextConditions
from radfm.latents.denoisers import SIGMA_MAX, SIGMA_MIN, Denoiser, denoised, noise_of, perfect_output
from radfm.progress import Progress, no_progress

SETTINGS = "generator.json"
WEIGHTS = "denoiser/model.safetensors"

_AT_ONCE = 64
_TEXT_FILES = (".json", ".safetensors", ".txt")


class Generator:
    """
    Args:
        autoencoder: of the latents.
        denoiser: see there.
        text_encoder: folder of a SentenceTransformer, or the name of one that comes with radfm.
        facts: what is known of its training, JSON-able: `known` and `contexts` below, `data` (see
            `radfm.data_prep.data_summary`), `derived_from` (fingerprint of the data set that the latents were made
            of), `chosen` (`withheld`, `publishable`, `masks`: which cases, see `radfm.train.diffusion_config`),
            `autoencoder_data` (as `data`), `licence`, `attribution`, `publish` of its samples.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        denoiser: Denoiser,
        text_encoder: str | Path = "radfm-text-mini",
        facts: dict[str, Any] | None = None,
    ):
        self.autoencoder, self.text_encoder, self.facts = autoencoder, str(text_encoder), facts or {}
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.conditions = TextConditions(text_encoder)
        if self.conditions.width != denoiser.width:
            raise ValueError(
                f"{text_encoder} embeds texts in {self.conditions.width} dimensions, and the generator reads "
                f"{denoiser.width}: give the text encoder that it was trained with"
            )

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device | None = None) -> "Generator":
        """
        Args:
            folder: that `radfm train diffusion` wrote.
            device: unset: a GPU if there is one.
        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it holds no generator, or a damaged one.
        """
        folder = Path(folder)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: there is no such folder")
        try:
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            autoencoder = Autoencoder.from_pretrained(folder / "autoencoder", device)
            denoiser = Denoiser(**settings["denoiser"])
            denoiser.load_state_dict(load_file(folder / WEIGHTS))
            text_encoder = settings["text_encoder"]
            text_encoder = text_encoder if text_encoder in NAMES else folder / "text_encoder"
            generator = cls(autoencoder, denoiser.to(device), text_encoder, settings["facts"])
        except FileNotFoundError as error:
            raise ValueError(f"{folder} holds no generator: {error.filename or error} is missing") from error
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder} holds a damaged generator: {' '.join(str(error).split())[:300]}") from error
        return generator

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes all that `from_pretrained` reads. Raises: OSError: it cannot be written."""
        folder = Path(folder)
        (folder / WEIGHTS).parent.mkdir(parents=True, exist_ok=True)
        self.autoencoder.save_pretrained(folder / "autoencoder")
        try:
            save_file(self._weights, folder / WEIGHTS, {"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{folder / WEIGHTS} could not be written: {error}") from error
        if self.text_encoder not in NAMES and Path(self.text_encoder) != folder / "text_encoder":
            _copy_text_encoder(Path(self.text_encoder), folder / "text_encoder")
        denoiser = {key: getattr(self.denoiser, key) for key in ("kind", "shape", "width", "arguments")}
        text_encoder = self.text_encoder if self.text_encoder in NAMES else "text_encoder"
        settings = {"denoiser": denoiser, "text_encoder": text_encoder, "facts": self.facts}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @property
    def device(self) -> torch.device:
        return self.autoencoder.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a latent, (channels, h, w)."""
        return self.denoiser.shape

    @property
    def known(self) -> dict[str, int]:
        """Disorder -> number of training slices that show it."""
        return self.facts.get("known", {})

    @property
    def contexts(self) -> dict[str, list[tuple[str | None, str | None, str | None, int]]]:
        """Disorder -> (modality, plane, body part, slices) that it was seen with, most frequent first; "" for none."""
        return {name: [tuple(one) for one in seen] for name, seen in self.facts.get("contexts", {}).items()}

    @property
    def trained_on(self) -> dict[str, str | None]:
        """Fingerprints of the data set that it learned from, and of that which its latents were made of."""
        data = self.facts.get("data") or {}
        return {"fingerprint": data.get("fingerprint"), "derived_from": self.facts.get("derived_from")}

    @cached_property
    def fingerprint(self) -> str:
        """20 hexadecimal digits of the weights and the autoencoder."""
        digest = hashlib.sha256(self.autoencoder.fingerprint.encode())
        for name, tensor in sorted(self._weights.items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()[:20]

    def nearest_known(self, disorder: str) -> str | None:
        """The disorder of the training data whose name is closest to this one's, by the text encoder."""
        return self.conditions.nearest(disorder, self.known)

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        steps: int = 18,
        guidance: float = 2.0,
        progress: Progress = no_progress,
    ) -> Tensor:
        """
        Args:
            prompts: n, one for each sample.
            seeds: n, which with the prompts determine the samples.
            steps: of the sampler, at least 2.
            guidance: how much the disorders are stressed; 1: as in the training data.
            progress: called with the number of samples done, and of all.
        Returns:
            (n, channels, h, w) float32, normalised latents.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed for each prompt")
        samples = torch.empty(len(prompts), *self.shape, device=self.device)
        for start in range(0, len(prompts), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            samples[part] = self._sample(prompts[part], seeds[part], steps, guidance)
            progress(min(start + _AT_ONCE, len(prompts)), len(prompts))
        return samples

    @torch.no_grad()
    def denoise(
        self, latents: Tensor, sigma: float | Tensor, prompts: Sequence[Prompt], guidance: float = 1.0
    ) -> Tensor:
        """The estimate of the latents without noise, in one step.

        Args:
            latents: (n, channels, h, w) with noise of the standard deviation sigma.
            sigma: one for all, or (n,).
        Returns:
            (n, channels, h, w)
        """
        latents = latents.to(self.device).float()
        levels = torch.as_tensor(sigma, device=self.device, dtype=torch.float32).expand(len(latents))
        conditions = self._guided(prompts, guidance)
        return denoised(latents, levels, self._output(latents, levels, conditions, guidance))

    @torch.no_grad()
    def loss(self, latents: Tensor, prompts: Sequence[Prompt], sigma: float | Tensor, seeds: Sequence[int]) -> Tensor:
        """(n,) EDM's weighted denoising loss of each latent, with the noise of its seed.

        Args:
            latents: (n, channels, h, w)
            sigma: one for all, or (n,).
        """
        latents = latents.to(self.device).float()
        levels = torch.as_tensor(sigma, device=self.device, dtype=torch.float32).expand(len(latents))
        noise = torch.stack([noise_of(seed, self.shape) for seed in seeds]).to(self.device)
        noisy = latents + noise * levels.view(-1, *[1] * len(self.shape))
        output = self._output(noisy, levels, self._guided(prompts, 1.0), 1.0)
        return (output - perfect_output(latents, levels, noisy)).square().flatten(1).mean(1)

    def _sample(self, prompts: Sequence[Prompt], seeds: Sequence[int], steps: int, guidance: float) -> Tensor:
        from diffusers import EDMDPMSolverMultistepScheduler

        scheduler = EDMDPMSolverMultistepScheduler(SIGMA_MIN, SIGMA_MAX, LATENT_STD)
        scheduler.set_timesteps(steps, device=self.device)
        conditions = self._guided(prompts, guidance)
        latents = torch.stack([noise_of(seed, self.shape) for seed in seeds]).to(self.device)
        latents = latents * scheduler.init_noise_sigma
        for step, time in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[step].to(self.device).expand(len(latents))
            output = self._output(latents, sigma, conditions, guidance)
            latents = scheduler.step(output, time, latents).prev_sample
        return latents

    def _guided(self, prompts: Sequence[Prompt], guidance: float) -> Conditions:
        """The conditions of the prompts, followed by those without their disorders if there is guidance."""
        without = [prompt.without_disorders() for prompt in prompts] if guidance != 1 else []
        return self.conditions([*prompts, *without]).to(self.device)

    def _output(self, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        inputs = (conditions.tokens, conditions.mask, conditions.pooled)
        if guidance == 1:
            return self.denoiser(latents, sigma, *inputs)
        given, without = self.denoiser(torch.cat([latents] * 2), torch.cat([sigma] * 2), *inputs).chunk(2)
        return torch.lerp(without, given, guidance)

    @property
    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.denoiser.state_dict().items()}


def _copy_text_encoder(source: Path, target: Path) -> None:
    """The files of a SentenceTransformer, and no other."""
    for file in sorted(source.rglob("*")):
        inner = file.relative_to(source)
        is_part = len(inner.parts) == 1 or inner.parts[0][:1].isdigit()  # 1_Pooling
        if file.is_file() and file.suffix in _TEXT_FILES and is_part:
            (target / inner).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / inner)


__all__ = ["NO_FINDING", "Generator", "Prompt"]
