"""The server: rounds in which sites train its weights, and their updates are averaged.

Decisions:
- Where sites are, in this process or elsewhere, is known to `Sites` alone.
- The weights are saved after each round, with the number of the round and what happened in it: a killed server
  continues with the next one.
- A round with too few valid updates is repeated. After `MOST_FAILED` such rounds the training ends with the reasons.
- The learning rate falls over the rounds along a cosine; it is constant within a round, and the optimiser starts anew.
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open
from safetensors.numpy import save_file

from radfm.data_prep.tables import replacing
from radfm.progress import Progress, no_progress
from radfm.train.diagnosis_config import TRAINING
from radfm.train.federation.config import FederatedTraining
from radfm.train.federation.updates import Update, Weights, average, sort_out

STATE = "state.safetensors"
MOST_FAILED = 3


@dataclass(frozen=True)
class Order:
    """What a server asks of the sites in a round: to train these weights with this learning rate."""

    round: int
    learning_rate: float
    weights: Weights


class Sites(Protocol):
    def wait(self, least: int) -> None:
        """Waits until so many sites are there. Raises: ValueError: they do not come."""

    def train(self, order: Order) -> Mapping[str, Update | str]:
        """Site -> its update, or the reason why there is none."""


@dataclass
class State:
    """
    Attributes:
        weights: the averaged ones.
        rounds: JSON-able, of each finished round: `sites` (name -> cases and facts), and `left_out` (name -> reason).
    """

    weights: Weights
    rounds: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> "State | None":
        file = folder / STATE
        if not file.is_file():
            return None
        try:
            with safe_open(file, "numpy") as stored:
                weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  no iterator
                return cls(weights, json.loads(stored.metadata()["rounds"]))
        except Exception as error:
            raise ValueError(f"{file} is damaged: delete it to begin again ({type(error).__name__})") from error

    def save(self, folder: Path) -> None:
        with replacing(folder / STATE) as draft:
            save_file(self.weights, draft, {"rounds": json.dumps(self.rounds)})


def federate(
    weights: Weights, sites: Sites, config: FederatedTraining, folder: Path, progress: Progress = no_progress
) -> State:
    """Trains, from the last finished round in `folder` if there is one.

    Args:
        weights: to start from.
        progress: called with the number of finished rounds, and of all.
    Raises:
        ValueError: too few sites send a valid update, several times in a row.
    """
    settings = config.federation
    state = State.load(folder) or State(weights)
    failed = 0
    while len(state.rounds) < settings.rounds:
        progress(len(state.rounds), settings.rounds)
        sites.wait(settings.least_sites)
        number = len(state.rounds) + 1
        replies = sites.train(Order(number, _learning_rate(config, number), state.weights))
        accepted, left_out = sort_out(replies, state.weights, settings.most_times_norm)
        for name, reason in left_out.items():
            print(f"Round {number}: {name} is left out: {reason}", file=sys.stderr)
        if len(accepted) < settings.least_sites:
            failed += 1
            if failed == MOST_FAILED:
                reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
                raise ValueError(
                    f"round {number} has {len(accepted)} valid updates and needs {settings.least_sites}: mend the "
                    f"sites and start the server again ({reasons or 'no site answered'})"
                )
            continue
        failed = 0
        of_sites = {name: {"cases": update.cases} | update.facts for name, update in accepted.items()}
        state = State(average(state.weights, accepted), [*state.rounds, {"sites": of_sites, "left_out": left_out}])
        state.save(folder)
    progress(settings.rounds, settings.rounds)
    return state


def _learning_rate(config: FederatedTraining, number: int) -> float:
    settings: dict[str, Any] = TRAINING | config.training
    return settings["learning_rate"] * (1 + math.cos(math.pi * (number - 1) / config.federation.rounds)) / 2
