"""Differential privacy of a site's patients: DP-SGD (Abadi et al. 2016, https://arxiv.org/abs/1607.00133) by Opacus.

Decisions:
- The unit is a patient, with all cases. Each step draws patients at random (Poisson sampling), clips the gradient of
  each, and adds noise to their sum: Opacus' optimiser does both, and its accountant (Renyi) states epsilon.
- The gradient of a patient is computed by itself, because layers over packed batches have no rules for gradients per
  sample. This costs a pass for each patient of a step.
- What is random comes from the operating system. With a seed that the server knows, it could subtract the noise.
- Epsilon covers the weights that a site sends. The number of cases and the names of the disorders are sent as they are,
  and a loss is not sent.
- What was spent is kept between rounds and runs.
"""

import secrets
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from opacus.accountants import RDPAccountant
from opacus.optimizers import DPOptimizer

from radfm.data_prep.batches.case_dataset import CaseDataset
from radfm.data_prep.batches.sampling import Sample
from radfm.data_prep.stored_cases import patient_of
from radfm.train.federation.config import PrivacySection


class PrivacyBudget:
    """
    Args:
        spent: (noise multiplier, share of the patients in a step, steps) of the trainings before.
    """

    def __init__(self, settings: PrivacySection, spent: list):
        self.settings = settings
        self.accountant = RDPAccountant()
        self.accountant.history = [tuple(entry) for entry in spent]

    @property
    def spent(self) -> list:
        return [list(entry) for entry in self.accountant.history]

    @property
    def epsilon(self) -> float:
        return float(self.accountant.get_epsilon(self.settings.delta))


def train_privately(trainer: Any, data: CaseDataset, budget: PrivacyBudget, learning_rate: float, steps: int) -> None:
    """Trains the model of a trainer.

    Args:
        trainer: its `compute_loss` gives the loss of a batch.
        budget: to which the steps are added.
    Raises:
        ValueError: there are fewer patients than a step should have.
    """
    settings, model = budget.settings, trainer.model
    cases_of: dict[str, list[int]] = defaultdict(list)
    for case, row in enumerate(data.rows):
        cases_of[patient_of(data.cases.rows[row])].append(case)
    patients = list(cases_of.values())
    if len(patients) < settings.patients_per_step:
        raise ValueError(
            f"{len(patients)} patients are fewer than federation.privacy.patients_per_step="
            f"{settings.patients_per_step}: lower it"
        )
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = DPOptimizer(
        torch.optim.AdamW(weights, learning_rate, weight_decay=0.0),
        noise_multiplier=settings.noise_multiplier,
        max_grad_norm=settings.max_norm,
        expected_batch_size=settings.patients_per_step,
        generator=torch.Generator(weights[0].device).manual_seed(secrets.randbits(63)),
    )
    rng, share = np.random.default_rng(secrets.randbits(128)), settings.patients_per_step / len(patients)
    model.train()
    for step in range(steps):
        drawn = [patient for patient in patients if rng.random() < share]
        gradients = [_gradients(trainer, data, patient, step, weights) for patient in drawn]
        for number, weight in enumerate(weights):
            of_patients = [of_patient[number] for of_patient in gradients]
            weight.grad_sample = torch.stack(of_patients) if drawn else weight.new_zeros(0, *weight.shape)
        optimizer.step()
        optimizer.zero_grad()
        budget.accountant.step(noise_multiplier=settings.noise_multiplier, sample_rate=share)
    for weight in weights:
        weight.grad = weight.grad_sample = None


def _gradients(trainer: Any, data: CaseDataset, cases: list[int], step: int, weights: list) -> list[torch.Tensor]:
    batch = trainer._prepare_inputs(data.__getitems__([Sample(case, step) for case in cases]))
    loss = trainer.compute_loss(trainer.model, batch)
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]
