"""The configuration of a federated training: that of `radfm train diagnosis`, with a section `federation`.

Decisions:
- The head reads text: the classifier of a disorder is the embedding of its name. So sites with different vocabularies
  train the same weights.
- The tower is frozen, or its batch normalisation keeps its statistics: averages of statistics are no statistics.
- `data` has no path: each site has its own data set.
"""

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from radfm.train.config import NonNegative, NonNegativeInt, Positive, PositiveInt, configured, read_config, section
from radfm.train.diagnosis_config import DiagnosisTraining, ModelSection

Method = Literal["fedavg", "fedprox"]


@section
class PrivacySection:
    """Differential privacy of each patient, see `radfm.train.federation.privacy`.

    Attributes:
        noise_multiplier: Standard deviation of the noise in units of `max_norm`; 0: no privacy.
        max_norm: The gradient of each patient is clipped to this norm.
        delta: Chance that the guarantee does not hold; below 1 / patients.
        patients_per_step: Expected number of patients of a step.
    """

    noise_multiplier: NonNegative = 0.0
    max_norm: Positive = 1.0
    delta: Positive = 1e-5
    patients_per_step: PositiveInt = 32


@section
class FederationSection:
    """What server and sites do.

    Attributes:
        rounds: In each, all sites train the weights of the server, which averages them.
        steps: Training steps of a site in a round.
        method: "fedavg", or "fedprox" for sites that differ: it penalises the distance from the server's weights.
        mu: The weight of this penalty.
        rank: Of low-rank changes (LoRA), which alone are trained and sent, with the head; 0: all trained weights.
        least_sites: A round counts if so many sites send a valid update.
        timeout_s: Seconds that a round waits for the sites.
        most_times_norm: An update whose norm is more than so many times the lower median of all is left out.
        privacy: see its class.
    """

    rounds: PositiveInt = 15
    steps: PositiveInt = 15
    method: Method = "fedavg"
    mu: NonNegative = 0.1
    rank: NonNegativeInt = 0
    least_sites: PositiveInt = 2
    timeout_s: Positive = 3600.0
    most_times_norm: Positive = 10.0
    privacy: PrivacySection = field(default_factory=PrivacySection)


@section
class FederatedTraining(DiagnosisTraining):
    """One federated training: the keys of `DiagnosisTraining`, with a frozen tower by default, and `federation`."""

    model: ModelSection = field(default_factory=lambda: ModelSection(frozen="tower"))
    federation: FederationSection = field(default_factory=FederationSection)

    def __post_init__(self):
        DiagnosisTraining.__post_init__(self)
        model = self.model
        for impossible, reason in (
            (
                model.head != "text",
                "sites have different disorders, which only a text head can train: set model.head=text",
            ),
            (model.text_layers != 0, "the text encoder is not trained by sites: leave out model.text_layers"),
            (model.text_whitening is not None, "the names of all sites are not known: leave out model.text_whitening"),
            (model.history, "histories stay at the sites: leave out model.history"),
            (
                self.data.withheld or self.data.where or self.data.fold or self.data.shots,
                "sites train on all their training cases: leave out data.withheld, where, fold and shots",
            ),
            (model.teacher or self.data.synthetic, "sites have no teacher and no synthetic cases: leave them out"),
            (
                not (model.frozen_tower or model.freeze_batch_norm),
                "statistics of batch normalisation are not averaged: set model.freeze_batch_norm=true or "
                "model.frozen=tower",
            ),
            ("max_steps" in self.training, "federation.steps is the number of steps: leave out training.max_steps"),
        ):
            if impossible:
                raise ValueError(reason)


def read_federated_config(path: str | Path, changes: Sequence[str] = ()) -> FederatedTraining:
    """The configuration of a federated training, see `radfm.train.config.read_config`."""
    return read_config(FederatedTraining, path, changes)


def federated_config(given: dict[str, Any]) -> FederatedTraining:
    """A configuration from nested keys, as a server sends it. Raises: ValueError: a key or value is not allowed."""
    return configured(FederatedTraining, given, source="the configuration of the server")
