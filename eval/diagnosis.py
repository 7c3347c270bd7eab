"""Compares models by their tables of scores: each model with intervals, and beside the first model.

    >>> compare({"KE": [Scores.load("scores/KE.parquet")], "baseline": [Scores.load("scores/baseline.parquet")]})

Decisions:
- A model is one table, or several tables of other seeds, whose figures are averaged. Intervals cover the sampling of
  patients and, where there are several seeds, that of seeds; with two or three seeds they are still too narrow.
- All models are measured on the same cases in the same resamples, and compared with the first in each resample.
- Restricted to some disorders, those alone are measured, among all that were scored: a rank is a rank among all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from radfm.eval.bands import bands, macro
from radfm.eval.bootstrap import interval, measure_with_resamples, patient_weights, seed_weights
from radfm.eval.comparisons import adjusted, delong, figure, macro_differences, subgroups
from radfm.eval.metrics import METRICS
from radfm.eval.ranking import ranking, truth_ranks
from radfm.eval.scores import Scores
from radfm.presentation import BAND_MINIMA, band_limits
from radfm.progress import Progress, no_progress, part_of

Measured = dict[str, tuple[np.ndarray, np.ndarray]]  # metric -> values (disorders,), resamples (disorders, resamples)


def compare(
    models: Mapping[str, Sequence[Scores]],
    only: Sequence[str] | None = None,
    level: str = "disorder",
    within: str | None = None,
    least: tuple[int, int] = BAND_MINIMA,
    bootstraps: int = 1000,
    seed: int = 0,
    progress: Progress = no_progress,
    where: Sequence[str] = (),
    min_cases: int = 0,
) -> dict[str, Any]:
    """All figures as a JSON-able dictionary; a figure is {value, low, high}, None where it cannot be computed.

    Args:
        models: name -> its tables, one for each seed, all of the same cases and disorders.
        only: measure these disorders alone.
        level: of ICD-10-CM, see `radfm.eval.scores.Scores.at_level`.
        within: an attribute, see `radfm.eval.scores.Scores.attributes`: the negatives of a disorder are only the cases
            of the groups in which it occurs. So a model gains nothing by discriminating the groups, such as the sources
            of a data set.
        least: least number of training cases of a disorder of the head, and of the body.
        bootstraps: number of resamples of the patients.
        where: conditions on the cases that are measured, see `radfm.eval.scores.Scores.where`.
        min_cases: measure the disorders alone that have at least so many training cases, and so many measured cases.
    Returns:
        `data`, `split`, `where`, `level`, `only`, `min_cases`, `within`, `least`, `cases`, `patients`;
        `metrics`: key -> name, range and direction;
        `bands`: band -> `disorders`, those `measured`, and how many `training_cases` they have, in words;
        `models`: name -> `tables` (where each comes from), `macro` (metric -> band -> figure), `ranking`,
        `ranking_unseen` (of cases whose diagnosis no training case has), `subgroups` (attribute -> see
        `radfm.eval.comparisons.subgroups`), `disorders` (a list, metrics as figures);
        `differences`: name of a later model -> `macro` (as above, that model less the first), `disorders` (a list: the
        difference in AUC, `p`, `p_holm`, `p_bh`; without p where a model has several seeds).
    Raises:
        ValueError: no table, tables of other cases, labels or disorders, a disorder that was not scored, nothing to
            measure, or a head that is not above the body.
    """
    if not 0 < least[1] < least[0]:
        raise ValueError(
            f"a disorder of the head has more training cases than one of the body, not {least[0]:,} and "
            f"{least[1]:,}: write --least 100 30"
        )
    models = _comparable_tables(models, where, level)
    table = next(iter(models.values()))[0]
    task = _Task.of(table, _chosen(table, only, min_cases), within, least, bootstraps, seed)
    reports, differences, first = {}, {}, None
    for number, (name, tables) in enumerate(models.items()):
        scores = [one.scores[:, task.chosen] for one in tables]
        of_model = part_of(progress, number, len(models))
        measured = measure_with_resamples(scores, task.labels, task.weights, None, of_model, seed, task.counted)
        reports[name] = _report(tables, scores, measured, task)
        if first is None:
            first = scores, measured
        else:
            differences[name] = {
                "macro": {
                    metric: macro_differences(first[1][metric], measured[metric], task.training_counts, least)
                    for metric in METRICS
                },
                "disorders": _differences(first, (scores, measured), task),
            }
    result = {
        "data": table.about.get("data"),
        "split": table.about.get("split"),
        "where": list(where),
        "level": level,
        "only": None if only is None and not min_cases else task.names,
        "min_cases": min_cases,
        "within": within,
        "least": list(least),
        "cases": len(task.labels),
        "patients": len(set(table.patients)),
        "bootstraps": bootstraps,
        "seed": seed,
        "metrics": {key: metric.to_dict() for key, metric in METRICS.items()},
        "bands": _band_counts(task),
        "models": reports,
        "differences": differences,
    }
    return _without_nan(result)


def _comparable_tables(models: Mapping[str, Sequence[Scores]], where: Sequence[str], level: str) -> dict:
    """Name -> tables of these cases at this level. Raises: ValueError if there is none, or as `require_same_cases`."""
    tables_of = {
        name: [one.where(where).at_level(level) for one in tables] for name, tables in models.items() if tables
    }
    if not tables_of:
        raise ValueError("there is no table of scores to measure")
    first = next(iter(tables_of.values()))[0]
    for name, tables in tables_of.items():
        for other in tables:
            require_same_cases(first, other, name)
    return tables_of


def require_same_cases(table: Scores, other: Scores, name: str) -> None:
    """Raises: ValueError where the second table is not of the same cases, labels and disorders."""
    for key in ("data", "split"):
        if table.about.get(key) != other.about.get(key):
            raise ValueError(f"{name} was scored on other data: {key} {other.about.get(key)}")
    if other.case_ids != table.case_ids or other.disorders != table.disorders or other.patients != table.patients:
        raise ValueError(f"{name} was scored on other cases, or with other labels: score all models on one data set")
    if other.names != table.names:
        different = sorted(set(table.names) ^ set(other.names)) or ["their order"]
        raise ValueError(f"{name} was scored with another vocabulary: {', '.join(different[:5])}")


def _chosen(table: Scores, only: Sequence[str] | None, min_cases: int) -> np.ndarray:
    """(disorders,) bool: those that are measured. Raises: ValueError if there is none."""
    chosen = np.full(len(table.names), True) if only is None else table.rows_of(only)
    chosen = chosen & (np.minimum(table.training_counts, table.labels.sum(0)) >= min_cases)
    if not chosen.any():
        raise ValueError(f"no disorder has {min_cases:,} training cases and as many of {len(table.case_ids):,} cases")
    return chosen


@dataclass(frozen=True)
class _Task:
    """What all models are measured on.

    Attributes:
        table: of the first model.
        chosen: (all disorders,) bool: those that are measured; what follows is of these.
        labels: (cases, disorders) bool.
        counted: (cases, disorders) bool, as in `radfm.eval.metrics.measure`; None: all.
        measurable: (disorders,) bool: some counted cases have the disorder, and some do not.
        weights: (cases, resamples).
        minima, seed: as `least` and `seed` of `compare`.
    """

    table: Scores
    chosen: np.ndarray
    labels: np.ndarray
    counted: np.ndarray | None
    measurable: np.ndarray
    weights: np.ndarray
    minima: tuple[int, int]
    seed: int

    @classmethod
    def of(cls, table: Scores, chosen, within: str | None, minima, bootstraps: int, seed: int) -> "_Task":
        labels = table.labels[:, chosen]
        counted = None if within is None else table.within(within)[:, chosen]
        inside = np.ones(labels.shape, bool) if counted is None else counted
        positives = ((labels > 0) & inside).sum(0)
        measurable = (positives > 0) & (positives < inside.sum(0))
        if not measurable.any():
            where = f" that have the same {within}" if within else ""
            raise ValueError(
                f"none of {labels.shape[1]:,} disorders occurs in some and not in all of {len(labels):,} cases{where}"
            )
        weights = patient_weights(table.patients, bootstraps, seed)
        return cls(table, chosen, labels, counted, measurable, weights, minima, seed)

    @property
    def names(self) -> list[str]:
        return [name for name, chosen in zip(self.table.names, self.chosen, strict=True) if chosen]

    @property
    def training_counts(self) -> np.ndarray:
        return self.table.training_counts[self.chosen]


def _report(tables: Sequence[Scores], scores: list[np.ndarray], measured: Measured, task: _Task) -> dict[str, Any]:
    """The figures of one model, see `compare`."""
    unseen = task.chosen & (task.table.training_counts == 0)
    return {
        "tables": [table.about for table in tables],
        "macro": _macros(measured, task),
        "ranking": _ranking(tables, task.chosen, task),
        "ranking_unseen": _ranking(tables, unseen, task),
        "subgroups": {
            attribute: subgroups(scores, task.labels, groups, task.weights, task.seed)
            for attribute, groups in task.table.attributes.items()
        },
        "disorders": _disorders(measured, task),
    }


def _band_counts(task: _Task) -> dict[str, dict]:
    limits = {band: {"training_cases": words} for band, words in band_limits(task.minima).items()}
    return {
        band: {"disorders": int(rows.sum()), "measured": int((rows & task.measurable).sum())} | limits.get(band, {})
        for band, rows in bands(task.training_counts, task.minima).items()
    }


def _macros(measured: Measured, task: _Task) -> dict:
    figures = {}
    for metric, (values, resamples) in measured.items():
        means, of_resamples = (macro(part, task.training_counts, task.minima) for part in (values, resamples))
        figures[metric] = {band: figure(means[band], of_resamples[band], METRICS[metric].range) for band in means}
    return figures


def _disorders(measured: Measured, task: _Task) -> list[dict]:
    codes = [codes for codes, chosen in zip(task.table.icd10cm, task.chosen, strict=True) if chosen]
    rows = [
        {"disorder": name, "icd10cm": of_name, "training_cases": int(training), "cases": int(positives)}
        for name, of_name, training, positives in zip(
            task.names, codes, task.training_counts, task.labels.sum(0), strict=True
        )
    ]
    for metric, (values, resamples) in measured.items():
        lows, highs = interval(resamples, values, METRICS[metric].range)
        for row, value, low, high in zip(rows, values, lows, highs, strict=True):
            row[metric] = {"value": float(value), "low": float(low), "high": float(high)}
    return rows


def _ranking(tables: Sequence[Scores], chosen: np.ndarray, task: _Task) -> dict:
    """Over the cases whose only diagnosis is among the chosen disorders.

    Intervals are not moved to have the measured value as their mean, because a median changes in steps.
    """
    shares = seed_weights(len(tables), task.weights.shape[1], task.seed)
    single = np.array([len(names) == 1 for names in task.table.disorders])
    values, resamples = {}, {}
    for table, share in zip(tables, shares, strict=True):
        ranks = truth_ranks(table.scores, table.labels)
        included = single & (table.labels & chosen).any(1)
        ranks[~included] = np.nan
        for name, of_resamples in ranking(ranks, task.weights).items():
            resamples[name] = resamples.get(name, 0) + share * of_resamples
        for name, value in ranking(ranks).items():
            values[name] = values.get(name, 0) + value / len(tables)
    result: dict[str, Any] = {"cases": int(included.sum())}
    for name, value in values.items():
        low, high = interval(resamples[name])
        result[name] = {"value": float(value), "low": float(low), "high": float(high)}
    return result


def _differences(first: tuple[list, Measured], second: tuple[list, Measured], task: _Task) -> list[dict]:
    """By how much the second model's AUC is higher, for each disorder. A model is given by its scores and figures."""
    (values, resamples), (others, other_resamples) = (measured["auc"] for _, measured in (first, second))
    lows, highs = interval(other_resamples - resamples, others - values, (-1, 1))
    rows: list[dict[str, Any]] = [
        {"disorder": name, "auc": {"value": float(value), "low": float(low), "high": float(high)}}
        for name, value, low, high in zip(task.names, others - values, lows, highs, strict=True)
    ]
    if len(first[0]) == len(second[0]) == 1:
        p = delong(first[0][0], second[0][0], task.labels, task.table.patients, task.counted)[1]
        tests = {"p": p, "p_holm": adjusted(p, "holm"), "p_bh": adjusted(p, "bh")}
        for i, row in enumerate(rows):
            row |= {name: float(of_test[i]) for name, of_test in tests.items()}
    return rows


def _without_nan(value: Any) -> Any:
    """JSON has no nan: a figure without a value is None."""
    if isinstance(value, dict):
        if "value" in value and not math.isfinite(value["value"]):
            return None
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
