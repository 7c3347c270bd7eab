"""A site: its cases, its vocabulary, and its part of a round.

Decisions:
- What leaves a site is written down in two places: `facts`, once, and the `Update` of a round.
- The features of a frozen tower are computed once, at the first round.
- A site keeps no state between rounds apart from its privacy budget, so one that was killed joins again.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback

from radfm.data_prep.batches.case_dataset import CaseDataset, Sampling
from radfm.data_prep.batches.slice_features import SliceFeatures, slice_features
from radfm.data_prep.data_summary import data_summary
from radfm.data_prep.stored_cases import StoredCases
from radfm.data_prep.tables import write_text
from radfm.train.diagnosis import trainer_settings
from radfm.train.diagnosis_config import TRAINING
from radfm.train.diagnosis_trainer import DiagnosisTrainer, TrainerSettings
from radfm.train.federation.config import FederatedTraining
from radfm.train.federation.models import load_weights, model_of_site, shared_summary, to_arrays, trained_weights
from radfm.train.federation.privacy import PrivacyBudget, train_privately
from radfm.train.federation.rounds import Order
from radfm.train.federation.updates import Update

BUDGET = "privacy.json"


class Site:
    """
    Args:
        cases: labelled training cases.
        config: of the server.
        start: folder of the checkpoint that all sites start from.
        work: folder of the privacy budget; None: it is not kept.
        features: of the slices of `cases`, where they are known already.

    Raises:
        ValueError: there are no cases, or all have the same labels.
    """

    def __init__(
        self,
        cases: StoredCases,
        config: FederatedTraining,
        start: Path,
        work: Path | None = None,
        features: SliceFeatures | None = None,
    ):
        refuse_one_class(cases)
        self.config, self.cases, self._work = config, cases, work
        self.model, self.processor, _ = model_of_site(config, start, cases.vocabulary)
        sampling = Sampling(config.augmentation, slices_per_scan=config.sampling.slices_per_scan, seed=config.seed)
        self.data = CaseDataset(cases, self.processor, sampling, masks=config.objectives.weight("patch") > 0)
        self.data.features = features

    @property
    def facts(self) -> dict[str, Any]:
        """What the server learns of the site before the first round, JSON-able."""
        return {
            "version": version("radfm"),
            "disorders": {disorder.name: disorder.icd10cm for disorder in self.cases.vocabulary},
            "data": shared_summary(data_summary(self.cases, self.data.rows)),
        }

    def train(self, order: Order) -> Update:
        """Trains the weights of the server for one round.

        Raises:
            ValueError: the weights do not fit, the loss is not finite, or memory ran out.
        """
        if self.config.model.frozen_tower and self.data.features is None:
            self.data.features = slice_features(self.cases, self.data.rows, self.model, self.processor)
        load_weights(self.model, order.weights)
        seed = self.config.seed + 1000 * order.round
        assert self.data.sampling is not None
        self.data.sampling = replace(self.data.sampling, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            trainer = _LocalTrainer(
                self._settings(order, seed, folder), self.model, self.processor, self.data, self.config
            )
            with _denormals_flushed():
                if self.config.federation.privacy.noise_multiplier:
                    facts = self._private_steps(trainer, order)
                else:
                    facts = {"loss": round(trainer.train().training_loss, 4)}
        trained = to_arrays(trained_weights(self.model))
        change = {name: weight - order.weights[name] for name, weight in trained.items()}
        return Update(change, len(self.data), facts)

    def _private_steps(self, trainer: "_LocalTrainer", order: Order) -> dict[str, float]:
        settings = self.config.federation.privacy
        budget = PrivacyBudget(settings, self._spent())
        train_privately(trainer, self.data, budget, order.learning_rate, self.config.federation.steps)
        if self._work is not None:
            write_text(self._work / BUDGET, json.dumps(budget.spent) + "\n")
        self._history = budget.spent
        return {"epsilon": round(budget.epsilon, 3), "delta": settings.delta}

    def _spent(self) -> list:
        if self._work is not None and (self._work / BUDGET).is_file():
            return json.loads((self._work / BUDGET).read_text(encoding="utf-8"))
        return getattr(self, "_history", [])

    def _settings(self, order: Order, seed: int, folder: str) -> TrainerSettings:
        arguments = TRAINING | self.config.training
        arguments |= {"max_steps": self.config.federation.steps, "learning_rate": order.learning_rate}
        arguments |= {"lr_scheduler_type": "constant", "warmup_steps": 0, "save_strategy": "no", "eval_strategy": "no"}
        arguments |= {"report_to": [], "logging_strategy": "no", "disable_tqdm": True}
        return replace(trainer_settings(self.config), output=folder, seed=seed, arguments=arguments)


class _LocalTrainer(DiagnosisTrainer):
    """The trainer of a round, with the proximal term of FedProx (Li et al., MLSys 2020, arXiv:1812.06127)."""

    def __init__(self, settings: TrainerSettings, model, processor, data: CaseDataset, config: FederatedTraining):
        nothing = CaseDataset(data.cases, processor, rows=[])
        super().__init__(settings, model, processor, data, nothing)
        self.remove_callback(PrinterCallback)
        self._mu = config.federation.mu if config.federation.method == "fedprox" else 0.0
        self._anchor = {name: weight.detach().clone() for name, weight in trained_weights(model).items()}

    def compute_loss(self, model, inputs: Mapping[str, Tensor], return_outputs: bool = False, num_items_in_batch=None):
        loss = super().compute_loss(model, dict(inputs))
        if not self._mu:
            return loss
        distances = [(weight - self._anchor[name]).square().sum() for name, weight in trained_weights(model).items()]
        return loss + self._mu / 2 * torch.stack(distances).sum()


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Gradients of a new model underflow: on CPUs a step takes a twelfth of the time without denormal numbers."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def refuse_one_class(cases: StoredCases) -> None:
    """Raises: ValueError: there are no labelled cases, or all have the same labels."""
    if not len(cases):
        raise ValueError(f"{cases.folder} has no labelled training cases: prepare it again, with other --fractions")
    kinds = Counter(tuple(sorted(row["labels"])) for row in cases.rows)
    if len(kinds) == 1:
        raise ValueError(
            f"all {len(cases):,} training cases of {cases.folder} have the same labels: there is one class, which "
            "teaches nothing; add cases without the disorder"
        )
