"""The cases on which a model is most confidently wrong.

    >>> [(error.case_id, error.named, error.disorders) for error in confused(table)]

Decisions:
- A case with disorders is confused if the highest score is that of a disorder that it does not have. Such cases are
  sorted by how far that score is above the best of their own disorders, so scores need not be probabilities.
- A normal case has no disorder to compare with: it is sorted by its highest score.
- One error of each patient is shown, because others of the same patient are similar.
"""

from dataclasses import dataclass

import numpy as np

from radfm.eval.scores import Scores


@dataclass(frozen=True)
class Error:
    """
    Attributes:
        row, case_id: of the case in its table.
        named, score: the disorder with the highest score, which the case does not have.
        disorders: the scored disorders of the case, with score and rank among all; empty for a normal case.
    """

    row: int
    case_id: str
    named: str
    score: float
    disorders: list[tuple[str, float, int]]


def confused(table: Scores, most: int = 8) -> list[Error]:
    """Cases with disorders whose highest score is of another one, by how far it is above their own."""
    own = np.where(table.labels, table.scores, -np.inf).max(1)
    others = np.where(table.labels, -np.inf, table.scores)
    margins = np.where(table.labels.any(1) & np.isfinite(own), others.max(1) - own, -np.inf)
    return [_error(table, row, others) for row in _one_of_each_patient(table, margins, most) if margins[row] > 0]


def false_alarms(table: Scores, most: int = 4) -> list[Error]:
    """Normal cases, by their highest score."""
    normal = np.array([not names for names in table.disorders])
    highest = np.where(normal, table.scores.max(1), -np.inf)
    return [_error(table, row, table.scores) for row in _one_of_each_patient(table, highest, most) if normal[row]]


def ranks_of(table: Scores, row: int, names: list[str]) -> list[int]:
    """The ranks of some disorders in a case among all, from 1; ties count against them."""
    column = {name: i for i, name in enumerate(table.names)}
    return [int((table.scores[row] >= table.scores[row, column[name]]).sum()) for name in names]


def _error(table: Scores, row: int, others: np.ndarray) -> Error:
    named = int(others[row].argmax())
    names = [table.names[i] for i in np.flatnonzero(table.labels[row])]
    ranks = ranks_of(table, row, names)
    scores = table.scores[row, table.labels[row]].tolist()
    own = sorted(zip(names, scores, ranks, strict=True), key=lambda disorder: disorder[2])
    return Error(row, table.case_ids[row], table.names[named], float(table.scores[row, named]), own)


def _one_of_each_patient(table: Scores, badness: np.ndarray, most: int) -> list[int]:
    rows, patients = [], set()
    for row in np.argsort(-badness, kind="stable"):
        if len(rows) == most or badness[row] == -np.inf:
            break
        if table.patients[row] not in patients:
            patients.add(table.patients[row])
            rows.append(int(row))
    return rows
