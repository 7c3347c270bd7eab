"""A recurrent model that reads the embeddings of a patient's dates and says of each disorder whether it went up.

    case embeddings of the dates, days between them -> GRU -> W h, compared with the embedding of each disorder

Decisions:
- The embeddings are those of a frozen model, one for each date. The recurrent model learns from the steps of the
  training split: 1 where a disorder went up, 0 where it went down, 0.5 where it stayed.
- A disorder is addressed by its text embedding where the head reads text, else by its number.
- Few patients have dates, so it is small, and the average of several seeds is used.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from radfm.eval.course import RIGHT, Steps

HIDDEN, EPOCHS, LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 64, 120, 3e-3, 1e-2, 0.3
_TARGETS = {"rises": 1.0, "stays": 0.5, "falls": 0.0}


class RecurrentCourse(nn.Module):
    """
    Args:
        disorders: (disorders, addresses) what each is addressed by.
        mean, std: (d,) of the embeddings of training dates.
    """

    def __init__(self, disorders: Tensor, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("disorders", disorders)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.dropout = nn.Dropout(DROPOUT)
        self.gru = nn.GRU(len(mean) + 1, HIDDEN, batch_first=True)
        self.query = nn.Linear(HIDDEN, disorders.shape[1])

    def forward(self, embeds: Tensor, days_since: Tensor) -> Tensor:
        """The logit of "went up since the date before" for each disorder: (cases, dates, disorders).

        Args:
            embeds: (cases, dates, d), padded at the end.
            days_since: (cases, dates) days since the date before, 0 for the first.
        """
        inputs = self.dropout((embeds - self.mean) / self.std)
        hidden, _ = self.gru(torch.cat([inputs, torch.log1p(days_since)[..., None]], -1))
        return self.query(self.dropout(hidden)) @ self.disorders.T


def recurrent_scores(
    training: tuple[np.ndarray, Sequence[dict], Steps],
    test: tuple[np.ndarray, Sequence[dict], Steps],
    disorders: np.ndarray,
    seeds: int = 3,
) -> np.ndarray:
    """(steps of the test,) logits, the mean over models of several seeds.

    Args:
        training, test: embeddings (dates, d), rows of `DatedCases`, and steps.
        disorders: (disorders, addresses) what each disorder of the steps is addressed by.
    Raises:
        ValueError: no disorder of the training split changed.
    """
    embeds, rows, steps = training
    targets = torch.tensor([_TARGETS[RIGHT[change]] for change in steps.changes])
    if not len(steps) or bool((targets == 0.5).all()):
        raise ValueError("the training split has no step in which a disorder changed: prepare more cases")
    known = torch.from_numpy(embeds)
    batches = _padded(embeds, rows), _padded(test[0], test[1])
    loss, logits = nn.BCEWithLogitsLoss(), []
    for seed in range(seeds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = RecurrentCourse(torch.from_numpy(disorders), known.mean(0), known.std(0) + 1e-6)
            optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            for _ in range(EPOCHS):
                optimizer.zero_grad()
                loss(_of_steps(model, batches[0], steps), targets).backward()
                optimizer.step()
            with torch.inference_mode():
                logits.append(_of_steps(model.eval(), batches[1], test[2]).numpy())
    return np.mean(logits, 0)


def _padded(embeds: np.ndarray, rows: Sequence[dict]) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (cases, dates, d), days since the date before (cases, dates), and where each date is (dates, 2)."""
    cases: dict[str, list[int]] = {}
    for date, row in enumerate(rows):
        cases.setdefault(row["case_id"], []).append(date)
    places = torch.tensor([(case, date) for case, dates in enumerate(cases.values()) for date in range(len(dates))])
    days = [torch.tensor([rows[date]["days"] for date in dates]) for dates in cases.values()]
    since = pad_sequence([torch.cat([one.new_zeros(1), one[:-1] - one[1:]]) for one in days], batch_first=True)
    return pad_sequence([torch.from_numpy(embeds[dates]) for dates in cases.values()], batch_first=True), since, places


def _of_steps(model: RecurrentCourse, batch: tuple[Tensor, Tensor, Tensor], steps: Steps) -> Tensor:
    """(steps,) logits."""
    embeds, since, places = batch
    after = places[torch.from_numpy(steps.after)]
    return model(embeds, since)[after[:, 0], after[:, 1], torch.from_numpy(steps.disorders)]
