"""The cases on which a model is most confidently wrong.

    >>> [(one.case_id, one.named, one.disorders) for one in confused(table)]

Decisions:
- A case with disorders is confused where the highest score is of a disorder that it does not have, and the more so the
  further that score is above the best of its own disorders. So scores need not be probabilities.
- A normal case has no disorder to compare with: its highest score alone is what raises an alarm.
- One error of a patient is shown: the others are alike.
"""

from dataclasses import dataclass

import numpy as np

from radfm.eval.scores import Scores


@dataclass(frozen=True)
class Wrong:
    """
    Attributes:
        row, case_id: of the case in its table.
        named, score: the disorder with the highest score, which the case does not have.
        disorders: what it has, of those that were scored, with score and rank among all; empty for a normal case.
    """

    row: int
    case_id: str
    named: str
    score: float
    disorders: list[tuple[str, float, int]]


def confused(table: Scores, most: int = 8) -> list[Wrong]:
    """Cases with disorders whose highest score is of another one, by how far it is above their own."""
    own = np.where(table.labels, table.scores, -np.inf).max(1)
    others = np.where(table.labels, -np.inf, table.scores)
    margins = np.where(table.labels.any(1) & np.isfinite(own), others.max(1) - own, -np.inf)
    return [_wrong(table, row, others) for row in _one_of_each_patient(table, margins, most) if margins[row] > 0]


def alarming(table: Scores, most: int = 4) -> list[Wrong]:
    """Normal cases, by their highest score."""
    normal = np.array([not names for names in table.disorders])
    alarms = np.where(normal, table.scores.max(1), -np.inf)
    return [_wrong(table, row, table.scores) for row in _one_of_each_patient(table, alarms, most) if normal[row]]


def ranks_of(table: Scores, row: int, names: list[str]) -> list[int]:
    """The ranks of some disorders in a case among all, from 1; a tie counts against them."""
    at = {name: i for i, name in enumerate(table.names)}
    return [int((table.scores[row] >= table.scores[row, at[name]]).sum()) for name in names]


def _wrong(table: Scores, row: int, others: np.ndarray) -> Wrong:
    named = int(others[row].argmax())
    names = [table.names[i] for i in np.flatnonzero(table.labels[row])]
    ranks = ranks_of(table, row, names)
    scores = table.scores[row, table.labels[row]].tolist()
    own = sorted(zip(names, scores, ranks, strict=True), key=lambda one: one[2])
    return Wrong(row, table.case_ids[row], table.names[named], float(table.scores[row, named]), own)


def _one_of_each_patient(table: Scores, badness: np.ndarray, most: int) -> list[int]:
    chosen, seen = [], set()
    for row in np.argsort(-badness, kind="stable"):
        if len(chosen) == most or badness[row] == -np.inf:
            break
        if table.patients[row] not in seen:
            seen.add(table.patients[row])
            chosen.append(int(row))
    return chosen
