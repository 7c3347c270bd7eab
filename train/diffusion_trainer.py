"""The steps of the training of a generator: EDM's loss, a moving average of the weights, checkpoints.

Decisions:
- What is random in a step, its latents, noise, dropped disorders and dropout, follows from the seed and the number of
  the step. A resumed run takes the same steps as one that was never killed, to the bit on one process, and several
  processes take the steps of one.
- Processes and accumulation are accelerate's; the moving average is diffusers'.
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from radfm.data_prep.latent_slices import LatentSlices
from radfm.latents.conditions import Prompt, TextConditions
from radfm.latents.denoisers import LOG_SIGMA_MEAN, LOG_SIGMA_STD, Denoiser, perfect_output
from radfm.train.diffusion_config import StepsSection
from radfm.train.step_checkpoints import load_checkpoint, save_checkpoint
from radfm.train.trainer_arguments import start_accelerator

_VALIDATION = 1 << 40  # in place of the number of a step


@dataclass
class Batch:
    """Latents with their noise levels, noise and prompts."""

    latents: Tensor  # (n, channels, h, w)
    sigma: Tensor  # (n,)
    noise: Tensor  # (n, channels, h, w)
    prompts: Sequence[Prompt]
    dropout_seed: int

    def part(self, rows: slice) -> "Batch":
        return Batch(self.latents[rows], self.sigma[rows], self.noise[rows], self.prompts[rows], self.dropout_seed)


class DiffusionTrainer:
    """
    Args:
        denoiser: to be trained.
        conditions: of the prompts.
        data, validation: latents to learn from, and held-out ones.
        steps: see there.
        by_disorder: see `LatentsSection`.
        seed: of everything random.
        output: folder of the checkpoint.
        key: identifies data and settings. The checkpoint of another key is refused.

    Attributes:
        log: for each logged step its `step`, `loss`, `validation` (where it was computed) and `learning_rate`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conditions: TextConditions,
        data: LatentSlices,
        validation: LatentSlices,
        steps: StepsSection,
        by_disorder: float,
        seed: int,
        output: Path,
        key: str,
    ):
        self.conditions, self.data, self.validation = conditions, data, validation
        self.steps, self.seed, self.output, self.key = steps, seed, output, key
        parts_of_step = steps.gradient_accumulation_steps
        self.accelerator = start_accelerator(steps.bf16, gradient_accumulation_steps=parts_of_step)
        parts = self.accelerator.num_processes * parts_of_step
        if steps.batch_size % parts:
            raise ValueError(
                f"training.batch_size={steps.batch_size} cannot be split into {parts} equal parts, of each process and "
                "step of accumulation: change one of them"
            )
        self._part = steps.batch_size // parts
        optimizer = torch.optim.AdamW(
            denoiser.parameters(),
            lr=steps.learning_rate,
            weight_decay=steps.weight_decay,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.denoiser, self.optimizer = self.accelerator.prepare(denoiser, optimizer)
        self.weights = self.accelerator.unwrap_model(self.denoiser)
        self.ema = EMAModel(self.weights.parameters(), decay=steps.ema_decay, foreach=True)
        self._cumulative = np.cumsum(data.weights(by_disorder))
        self.step, self.log, self.resumed = 0, [], False
        self.losses: list[float] = []  # of the steps since the last entry of the log

    def train(self) -> Denoiser:
        """Trains, resuming from the last checkpoint; returns the network with the averaged weights.

        Raises:
            ValueError: the loss is not finite, or the checkpoint is of other data or settings.
            OSError: a checkpoint could not be saved.
        """
        self._resume()
        main, steps = self.accelerator.is_main_process, self.steps
        self.weights.train()
        began, first = time.monotonic(), self.step
        with tqdm(total=steps.max_steps, initial=self.step, disable=not main, file=sys.stderr, mininterval=2) as bar:
            while self.step < steps.max_steps:
                self.losses.append(self._one_step())
                bar.update()
                is_last = self.step == steps.max_steps
                if self.step % steps.logging_steps == 0 or self.step % steps.eval_steps == 0 or is_last:
                    loss = float(np.mean(self.losses))
                    entry = {"step": self.step, "loss": loss, "learning_rate": self._rate(self.step)}
                    if (self.step % steps.eval_steps == 0 or is_last) and len(self.validation):
                        entry["validation"] = self.validation_loss()
                    self.log.append(entry)
                    self.losses = []
                    seconds = max(time.monotonic() - began, 1e-9)
                    bar.set_postfix(
                        {name: f"{entry[name]:.4f}" for name in ("loss", "validation") if name in entry}
                        | {"latents/s": f"{(self.step - first) * steps.batch_size / seconds:.0f}"}
                    )
                if self.step % steps.save_steps == 0 or is_last:
                    self._save()
        self.ema.copy_to(self.weights.parameters())
        return self.weights.eval()

    @torch.no_grad()
    def validation_loss(self) -> float:
        """The mean loss of held-out latents by the averaged weights, with the same noise each time."""
        count = min(len(self.validation), self.steps.validation_latents)
        rows = np.linspace(0, len(self.validation) - 1, count).round().astype(int)
        accelerator, total = self.accelerator, torch.zeros(2, device=self.accelerator.device)
        self.ema.store(self.weights.parameters())
        self.ema.copy_to(self.weights.parameters())
        self.weights.eval()
        whole = self._batch(self.validation, rows, np.random.default_rng([self.seed, _VALIDATION]), drop=0)
        for start in range(accelerator.process_index * self._part, count, accelerator.num_processes * self._part):
            part = whole.part(slice(start, start + self._part))
            total += torch.stack([self._loss(part).sum(), total.new_tensor(float(len(part.sigma)))])
        self.ema.restore(self.weights.parameters())
        self.weights.train()
        loss, latents = accelerator.reduce(total, "sum").tolist()
        return loss / latents

    def _one_step(self) -> float:
        """Takes a step; returns the mean loss of its latents."""
        rng = np.random.default_rng([self.seed, self.step])
        places = np.searchsorted(self._cumulative, rng.random(self.steps.batch_size) * self._cumulative[-1], "right")
        batch = self._batch(self.data, places.clip(max=len(self.data) - 1), rng, self.steps.drop_disorders)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(self.step)
        processes, rank, losses = self.accelerator.num_processes, self.accelerator.process_index, []
        for number in range(self.steps.gradient_accumulation_steps):
            first = (number * processes + rank) * self._part
            torch.manual_seed(batch.dropout_seed + first)
            with self.accelerator.accumulate(self.denoiser):
                loss = self._loss(batch.part(slice(first, first + self._part))).mean()
                losses.append(loss.detach())
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.denoiser.parameters(), self.steps.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        mean = float(self.accelerator.reduce(torch.stack(losses).mean(), "mean"))
        if not math.isfinite(mean):
            raise ValueError(
                f"the loss is not finite in step {self.step + 1}: lower training.learning_rate, or check the latents; "
                "the last checkpoint is kept"
            )
        self.ema.step(self.weights.parameters())
        self.step += 1
        return mean

    def _batch(self, data: LatentSlices, rows: np.ndarray, rng: np.random.Generator, drop: float) -> Batch:
        sigma = np.exp(rng.standard_normal(len(rows), np.float32) * LOG_SIGMA_STD + LOG_SIGMA_MEAN)
        noise = rng.standard_normal((len(rows), *data.shape), np.float32)
        dropped = rng.random(len(rows)) < drop
        prompts = [data[row].without_disorders() if out else data[row] for row, out in zip(rows, dropped, strict=True)]
        seed = int(rng.integers(1 << 62))
        return Batch(data.latents(rows), torch.from_numpy(sigma).float(), torch.from_numpy(noise), prompts, seed)

    def _loss(self, batch: Batch) -> Tensor:
        """(n,)"""
        device = self.accelerator.device
        latents, sigma, noise = (tensor.to(device) for tensor in (batch.latents, batch.sigma, batch.noise))
        noisy = latents + noise * sigma.view(-1, *[1] * (latents.ndim - 1))
        conditions = self.conditions(batch.prompts).to(device)
        output = self.denoiser(noisy, sigma, conditions.tokens, conditions.mask, conditions.pooled)
        return (output - perfect_output(latents, sigma, noisy)).square().flatten(1).mean(1)

    def _rate(self, step: int) -> float:
        """The learning rate of a step: linear warmup, then a cosine to 0."""
        warmup, most = self.steps.warmup_steps, self.steps.max_steps
        if step < warmup:
            return self.steps.learning_rate * (step + 1) / warmup
        return (
            self.steps.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1, (step - warmup) / max(1, most - warmup))))
        )

    def _resume(self) -> None:
        self.accelerator.wait_for_everyone()
        state = load_checkpoint(self.output)
        if state is None:
            return
        if state["key"] != self.key:
            raise ValueError(
                f"{self.output} holds a run with other data or settings: choose another output, or delete this one"
            )
        self.weights.load_state_dict(state["weights"])
        self.ema.shadow_params = [tensor.to(self.accelerator.device) for tensor in state["averaged"]]
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.optimization_step = self.step = state["step"]
        self.log, self.losses, self.resumed = state["log"], state["losses"], True

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            state = {
                "key": self.key,
                "weights": self.weights.state_dict(),
                "averaged": self.ema.shadow_params,
                "optimizer": self.optimizer.state_dict(),
                "log": self.log,
                "losses": self.losses,
            }
            save_checkpoint(self.output, self.step, state)
        self.accelerator.wait_for_everyone()
