"""Whether changes of scores agree with true changes: steps from a date to the next, and their measures.

A step is a disorder of a case from one of its dates to the next. It goes up where the disorder grew or appeared, down
where it shrank or resolved.

| measure | steps up | steps down |
|---|---|---|
| direction | all | all |
| size | grew | shrank |
| presence | appeared | resolved |

Decisions:
- The AUC of a measure is the share of pairs of a step up and a step down of the same disorder in which the step up has
  the higher score; a tie counts half. Scores of different disorders are not compared: a score of one date is higher for
  a frequent disorder, and the comparison would hold that against it.
- Truth is the table of sizes. Two volumes differ if one is a quarter larger, see `phantoms.follow_up`.
- Intervals resample patients; differences are measured in the same resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from radfm.course import FALLS, RISES, STAYS, direction
from radfm.data_prep.dated_cases import DatedCases
from radfm.data_prep.phantoms.follow_up import APPEARED, CHANGES, GREW, RESOLVED, SHRANK, STAYED, change_of
from radfm.data_prep.stored_cases import patient_of
from radfm.data_prep.tables import has_table, read_rows
from radfm.eval.bootstrap import interval, patient_weights

MEASURES = {"direction": ((GREW, APPEARED), (SHRANK, RESOLVED)), "size": ((GREW,), (SHRANK,))}
MEASURES |= {"presence": ((APPEARED,), (RESOLVED,))}
RIGHT = {GREW: RISES, APPEARED: RISES, STAYED: STAYS, SHRANK: FALLS, RESOLVED: FALLS}


@dataclass(frozen=True)
class Steps:
    """The steps of a data set.

    Attributes:
        before, after: (steps,) int64, the date before and after each, as rows of `DatedCases`.
        disorders: (steps,) int64, rows of the vocabulary.
        changes: (steps,) of `CHANGES`.
        patients: (steps,) the patient of each.
        volumes_ml: (steps, 2) before and after.
    """

    before: np.ndarray
    after: np.ndarray
    disorders: np.ndarray
    changes: np.ndarray
    patients: np.ndarray
    volumes_ml: np.ndarray

    def __len__(self) -> int:
        return len(self.before)


def steps_of(dates: DatedCases) -> Steps:
    """All steps of the labelled disorders. Raises: ValueError: the data set does not tell how disorders changed."""
    if not has_table(dates.folder, "sizes"):
        raise ValueError(
            f"{dates.folder} does not tell how disorders changed: it has no table of sizes, which "
            "radfm prepare phantoms --follow-up writes"
        )
    volumes: dict[tuple[str, str, float], float] = {
        (row["case_id"], row["disorder"], row["days"]): row["volume_ml"] for row in read_rows(dates.folder, "sizes")
    }
    rows = []
    for before, after in pairwise(range(len(dates))):
        one, other = dates.rows[before], dates.rows[after]
        if one["case_id"] != other["case_id"]:
            continue
        for label in one["labels"]:
            name = dates.vocabulary[label].name
            pair = [volumes.get((row["case_id"], name, row["days"])) for row in (one, other)]
            if None not in pair:
                rows.append((before, after, label, change_of(*pair), patient_of(one), pair))  # type: ignore[arg-type]
    columns: list[tuple] = list(zip(*rows, strict=True)) if rows else [()] * 6
    before_rows, after_rows, labels = (np.array(column, np.int64) for column in columns[:3])
    changes, patients = (np.array(column, object) for column in columns[3:5])
    return Steps(before_rows, after_rows, labels, changes, patients, np.array(columns[5]).reshape(-1, 2))


def measure_steps(
    steps: Steps, scores: Mapping[str, np.ndarray], reference: Sequence[str], bootstraps: int = 1000
) -> dict[str, Any]:
    """
    Args:
        scores: name of a method -> (steps,), the higher the more a disorder went up.
        reference: the methods that the others are compared with; the one with the highest AUC of `direction` counts.
    Returns:
        JSON-able: `steps`, `patients`, `counts` (change -> steps), `pairs` (measure -> pairs of steps), `reference` (a
        method), and `methods`: name -> measure -> `auc` and `less_reference`, figures, None where there is no pair.
    Raises:
        ValueError: there is no pair of a step up and a step down.
    """
    weights = patient_weights(list(steps.patients), bootstraps) if len(steps) else np.zeros((0, bootstraps))
    pairs, values, resamples = {}, {}, {}
    for measure, (up, down) in MEASURES.items():
        rows = np.isin(steps.changes, up), np.isin(steps.changes, down)
        for method, of_steps in scores.items():
            key = method, measure
            values[key], pairs[measure] = _auc(of_steps, *rows, steps.disorders, np.ones((len(steps), 1)))
            resamples[key] = _auc(of_steps, *rows, steps.disorders, weights)[0]
    if not pairs.get("direction"):
        raise ValueError("no disorder went up in one case and down in another: there is nothing to compare")
    best = max(reference, key=lambda method: values[method, "direction"][0])

    def figures(method: str, measure: str) -> dict[str, Any]:
        key, other = (method, measure), (best, measure)
        if not pairs[measure]:
            return {"auc": None, "less_reference": None}
        less = None if method == best else (values[key] - values[other], resamples[key] - resamples[other])
        return {"auc": _figure(values[key], resamples[key], (0, 1)), "less_reference": less and _figure(*less, (-1, 1))}

    return {
        "steps": len(steps),
        "patients": len(set(steps.patients)),
        "counts": {change: int((steps.changes == change).sum()) for change in CHANGES},
        "pairs": pairs,
        "reference": best,
        "methods": {method: {measure: figures(method, measure) for measure in MEASURES} for method in scores},
    }


def words_of(steps: Steps, differences: np.ndarray) -> dict[str, dict[str, int]]:
    """Change -> word of `radfm.course` -> number of steps. differences: (steps,) of log odds."""
    words = np.array([direction(difference) for difference in differences], object)
    return {
        change: {word: int(((steps.changes == change) & (words == word)).sum()) for word in (RISES, STAYS, FALLS)}
        for change in CHANGES
    }


def _auc(
    scores: np.ndarray, up: np.ndarray, down: np.ndarray, groups: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, int]:
    """(resamples,) the share of pairs within a group that are in the right order, and the number of pairs."""
    right, total, pairs = np.zeros(weights.shape[1]), np.zeros(weights.shape[1]), 0
    for group in np.unique(groups[up | down]):
        of_up, of_down = (np.flatnonzero(rows & (groups == group)) for rows in (up, down))
        difference = scores[of_up][:, None] - scores[of_down]
        wins = (difference > 0) + 0.5 * (difference == 0)
        right += (weights[of_up] * (wins @ weights[of_down])).sum(0)
        total += weights[of_up].sum(0) * weights[of_down].sum(0)
        pairs += wins.size
    with np.errstate(invalid="ignore"):
        return right / total, pairs


def _figure(value: np.ndarray, resamples: np.ndarray, within: tuple[float, float]) -> dict[str, float]:
    low, high = interval(resamples, float(value[0]), within)
    return {"value": float(value[0]), "low": float(low), "high": float(high)}
