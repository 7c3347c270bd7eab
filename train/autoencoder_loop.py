"""The loop that trains an autoencoder: the terms of its loss, its optimizers, one step.

Decisions:
- The discriminator takes part from a certain step on; its learning rate warms up from there.
- What is random in a step follows from the seed and the number of the step; see `radfm.train.step_checkpoints`.
"""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from radfm.configuration_radfm import RadFMVisionConfig
from radfm.latents.autoencoders import Autoencoder
from radfm.towers_radfm import build_tower
from radfm.train.autoencoder_config import AutoencoderTraining
from radfm.train.config import without_folders
from radfm.train.step_checkpoints import load_checkpoint, save_checkpoint
from radfm.train.tower_weights import IMAGENET, load_tower
from radfm.train.trainer_arguments import start_accelerator

_AVERAGED = 50  # steps over which the shown terms are averaged
_LEAST_SIDE = 16  # pixels, for a discriminator of two layers


class PerceptualDistance(nn.Module):
    """Mean absolute difference of the normalised features of an ImageNet network, over its stages.

    As LPIPS (Zhang et al., CVPR 2018) without its fitted weights.
    """

    def __init__(self):
        super().__init__()
        tower = build_tower(RadFMVisionConfig(family="resnet", tower="tf_efficientnet_lite0"), 8)
        load_tower(tower, IMAGENET)
        self.network = tower.network.eval().requires_grad_(False)
        for name, value in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1))

    def forward(self, pictures: Tensor, others: Tensor) -> Tensor:
        """(n, 1 or 3, [D,] H, W) in [-1, 1] each -> ()."""
        with torch.no_grad():
            targets = self._features(others)
        return sum((a - b).abs().mean() for a, b in zip(self._features(pictures), targets, strict=True)) / len(targets)

    def _features(self, pictures: Tensor) -> list[Tensor]:
        if pictures.ndim == 5:
            pictures = pictures.transpose(1, 2).flatten(0, 1)
        values = ((pictures / 2 + 0.5).expand(-1, 3, -1, -1) - self.mean) / self.std
        stages = self.network.forward_intermediates(values, intermediates_only=True)
        return [stage * (stage.square().mean(1, keepdim=True) + 1e-6).rsqrt() for stage in stages]


class SampledReconstruction(nn.Module):
    """The reconstruction of a sample of the posterior, as one module, so that processes share its gradients."""

    def __init__(self, autoencoder: Autoencoder):
        super().__init__()
        self.network = autoencoder.network

    def forward(self, inputs: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """(n, c, H, W) in [-1, 1] -> the same, and the divergence for each number of the latent.

        Args:
            seed: of the sample.
        """
        encoded = self.network.encode(inputs)
        if hasattr(encoded, "latents"):  # a tiny autoencoder has no posterior
            return self.network.decode(encoded.latents).sample, inputs.new_zeros(())
        if isinstance(encoded, tuple):
            mean, std = encoded
        else:
            mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed)).to(mean)
        kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.clamp(min=1e-6).log()).mean()
        decoded = self.network.decode(mean + std * noise)
        return (decoded if isinstance(decoded, Tensor) else decoded.sample), kl


class AutoencoderLoop:
    """The networks, their optimizers and one step.

    Args:
        config: see there.
        autoencoder: to be trained.
        data: fingerprint of the data set. The checkpoint of another one is refused.
    """

    def __init__(self, config: AutoencoderTraining, autoencoder: Autoencoder, data: str):
        from monai.losses import PatchAdversarialLoss
        from monai.networks.nets import PatchDiscriminator

        self.config, self.data, self.step = config, data, 0
        loop = config.training
        self.accelerator = start_accelerator(loop.bf16)
        self.autoencoder = autoencoder
        self.network = autoencoder.network.requires_grad_(True).train()
        dims, channels = autoencoder.spatial_dims, autoencoder.in_channels
        sides = (autoencoder.settings.volume or {}).get("size", [autoencoder.size])
        layers = 2 if min(sides) >= _LEAST_SIDE else 1
        self.discriminator = PatchDiscriminator(dims, channels=32, in_channels=channels, num_layers_d=layers)
        self.adversarial = PatchAdversarialLoss(criterion="least_squares")
        self.perceptual = PerceptualDistance().to(self.accelerator.device) if config.objectives.perceptual else None
        parts = [(self.network, loop.learning_rate), (self.discriminator, loop.learning_rate)]
        optimizers = [torch.optim.AdamW(part.parameters(), rate, betas=(0.9, 0.95)) for part, rate in parts]
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(one, self._rate) for one in optimizers]
        self.reconstruction, self.discriminator_, *self.optimizers = self.accelerator.prepare(
            SampledReconstruction(autoencoder), self.discriminator, *optimizers
        )
        self.history: list[dict[str, float]] = []
        self.recent: dict[str, list[float]] = {}  # of the steps since the last entry of the history

    @property
    def adversarial_starts(self) -> int:
        return round(self.config.objectives.adversarial_from * self.config.training.max_steps)

    def resume(self, output: Path) -> bool:
        state = load_checkpoint(output)
        if state is None:
            return False
        if state["config"] != self._identity():
            raise ValueError(
                f"{output} holds a run with another configuration or data set: choose another folder, or delete it"
            )
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.discriminator.load_state_dict(state["discriminator"])
        for part, saved in zip([*self.optimizers, *self.schedules], state["optimizers"], strict=True):
            part.load_state_dict(saved)
        self.history, self.recent = state["history"], state["recent"]
        return True

    def run(self, pictures: Dataset, output: Path) -> list[dict[str, float]]:
        """Trains to the last step; returns the terms of the loss, means over every `eval_steps` steps.

        Args:
            pictures: see `radfm.train.autoencoder.Pictures`.
        """
        loop = self.config.training
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        share = range(rank, loop.batch_size, processes)
        steps = [[(step, number) for number in share] for step in range(self.step, loop.max_steps)]
        loader = DataLoader(pictures, batch_sampler=steps, num_workers=loop.workers)
        shown = tqdm(
            loader, "Training the autoencoder", loop.max_steps, initial=self.step, disable=not self._shows, unit="step"
        )
        for batch in shown:
            terms = self._train_step(batch.to(self.accelerator.device))
            self.step += 1
            for name, value in terms.items():
                self.recent.setdefault(name, []).append(value)
            if self.step % _AVERAGED == 0:
                shown.set_postfix({name: f"{np.mean(values[-_AVERAGED:]):.4f}" for name, values in self.recent.items()})
            if self.step % loop.eval_steps == 0 or self.step == loop.max_steps:
                self.history.append({"step": self.step} | {k: float(np.mean(v)) for k, v in self.recent.items()})
                self.recent = {}
            if self.step % loop.save_steps == 0 or self.step == loop.max_steps:
                self._save(output)
        return self.history

    @property
    def _shows(self) -> bool:
        return self.accelerator.is_main_process and sys.stderr.isatty()

    def _train_step(self, pictures: Tensor) -> dict[str, float]:
        objectives = self.config.objectives
        inputs = self.autoencoder.network_input(pictures)
        seed = self.config.seed * 1_000_003 + self.step * 1009 + self.accelerator.process_index
        with_adversary = objectives.adversarial > 0 and self.step >= self.adversarial_starts
        with self.accelerator.autocast():
            outputs, kl = self.reconstruction(inputs, seed)
            terms = {"reconstruction": (outputs - inputs).abs().mean(), "kl": kl}
            if self.perceptual is not None:
                terms["perceptual"] = self.perceptual(outputs, inputs)
            if with_adversary:
                self.discriminator_.requires_grad_(False)
                judged = self.discriminator_(outputs)[-1]
                terms["adversarial"] = self.adversarial(judged, target_is_real=True, for_discriminator=False)
                self.discriminator_.requires_grad_(True)
            loss = sum(getattr(objectives, name) * term for name, term in terms.items())
        self._update(0, loss)
        if with_adversary:
            with self.accelerator.autocast():
                fake = self.discriminator_(outputs.detach().contiguous())[-1]
                real = self.discriminator_(inputs)[-1]
                terms["discriminator"] = 0.5 * (
                    self.adversarial(fake, target_is_real=False, for_discriminator=True)
                    + self.adversarial(real, target_is_real=True, for_discriminator=True)
                )
            self._update(1, terms["discriminator"])
        return {name: float(term.detach()) for name, term in terms.items()}

    def _update(self, part: int, loss: Tensor) -> None:
        if not math.isfinite(float(loss.detach())):
            raise ValueError(f"the loss is not finite at step {self.step}: lower training.learning_rate")
        self.accelerator.backward(loss)
        parameters = (self.reconstruction, self.discriminator_)[part].parameters()
        self.accelerator.clip_grad_norm_(parameters, 1.0)
        self.optimizers[part].step()
        self.schedules[part].step()
        self.optimizers[part].zero_grad()

    def _rate(self, step: int) -> float:
        warmup, last = self.config.training.warmup_steps, self.config.training.max_steps
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, last - warmup))))

    def _identity(self) -> str:
        return json.dumps([without_folders(asdict(self.config)), self.data], sort_keys=True)

    def _save(self, output: Path) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "config": self._identity(),
            "network": self.network.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizers": [part.state_dict() for part in (*self.optimizers, *self.schedules)],
            "history": self.history,
            "recent": self.recent,
        }
        save_checkpoint(output, self.step, state)
