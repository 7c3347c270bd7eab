"""Tables of scores -> what each model is worth, beside the first.

Decisions:
- A row is a recipe: one table, or several of other seeds, of which it is the mean. Intervals cover patients, and where
  there are several seeds those, too; with two or three seeds they are still too narrow.
- All rows are measured on the same cases in the same draws, and compared with the first in them.
- Restricted to some disorders, those alone are measured, among all that were scored: a rank is a rank among all.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from radfm.eval.bootstrap import interval, measure_again, patient_weights, seed_weights
from radfm.eval.comparisons import adjusted, delong, figure, macro_differences, subgroups
from radfm.eval.metrics import LEAST, METRICS, band_words, bands, macro, ranking, truth_ranks
from radfm.eval.scores import Scores
from radfm.progress import Progress, no_progress

Again = dict[str, tuple[np.ndarray, np.ndarray]]  # metric -> values (disorders,), draws (disorders, draws)


def compare(
    recipes: Mapping[str, Sequence[Scores]],
    only: Sequence[str] | None = None,
    level: str = "disorder",
    within: str | None = None,
    least: tuple[int, int] = LEAST,
    bootstraps: int = 1000,
    seed: int = 0,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """All figures as a JSON-able dictionary; a figure is {value, low, high}, None where there is none.

    Args:
        recipes: name -> its tables, one for each seed, all of the same cases and disorders.
        only: measure these disorders alone.
        level: of ICD-10-CM, see `radfm.eval.scores.Scores.at_level`.
        within: an attribute, see `radfm.eval.scores.Scores.attributes`: a disorder is told from cases of the groups in
            which it occurs, and no others. So nobody gains by telling the groups apart, such as the sources of a set.
        least: how many training cases a disorder of the head has at least, and one of the body.
        bootstraps: how many times the patients are drawn.
    Returns:
        `data`, `split`, `level`, `only`, `within`, `least`, `cases`, `patients`; `bands`: band -> `disorders`, those
        `measured`, and how many `training_cases` they have, in words; `models`: name -> `tables` (where each comes
        from), `macro` (metric -> band -> figure), `ranking`, `ranking_unseen` (of cases whose diagnosis no training
        case has), `subgroups` (attribute -> see `radfm.eval.comparisons.subgroups`), `disorders` (a list, metrics as
        figures);
        `differences`: name of a later row -> `macro` (as above, that row less the first), `disorders` (a list: the
        difference in AUC, `p`, `p_holm`, `p_bh`; without p where a row has several seeds).
    Raises:
        ValueError: no table, tables of other cases, labels or disorders, a disorder that was not scored, nothing to
            measure, or a head that is not above the body.
    """
    if not 0 < least[1] < least[0]:
        raise ValueError(
            f"a disorder of the head has more training cases than one of the body, not {least[0]:,} and "
            f"{least[1]:,}: write --least 100 30"
        )
    recipes = {name: [table.at_level(level) for table in tables] for name, tables in recipes.items() if tables}
    if not recipes:
        raise ValueError("there is no table of scores to measure")
    table = next(iter(recipes.values()))[0]
    for name, tables in recipes.items():
        for other in tables:
            refuse_other(table, other, name)
    measured = np.full(len(table.names), True) if only is None else table.rows_of(only)
    labels, counts = table.labels[:, measured], table.training_counts[measured]
    names = [name for name, wanted in zip(table.names, measured, strict=True) if wanted]
    codes = [mine for mine, wanted in zip(table.icd10cm, measured, strict=True) if wanted]
    positives = labels.sum(0)
    counted = None if within is None else table.within(within)[:, measured]
    inside = np.ones(labels.shape, bool) if counted is None else counted
    with_it = ((labels > 0) & inside).sum(0)
    measurable = (with_it > 0) & (with_it < inside.sum(0))
    if not measurable.any():
        where = f" that have the same {within}" if within else ""
        raise ValueError(
            f"none of {len(names):,} disorders occurs in some and not in all of {len(labels):,} cases{where}"
        )
    weights = patient_weights(table.patients, bootstraps, seed)

    models, differences, first = {}, {}, None
    for number, (name, tables) in enumerate(recipes.items()):

        def say(done: int, of: int, before: int = number) -> None:
            progress(before * of + done, len(recipes) * of)

        scores = [other.scores[:, measured] for other in tables]
        again = measure_again(scores, labels, weights, progress=say, seed=seed, counted=counted)
        about = [
            {"disorder": n, "icd10cm": c, "training_cases": int(t), "cases": int(p)}
            for n, c, t, p in zip(names, codes, counts, positives, strict=True)
        ]
        models[name] = {
            "tables": [other.about for other in tables],
            "macro": _macros(again, counts, least),
            "ranking": _ranking(tables, measured, weights, seed),
            "ranking_unseen": _ranking(tables, measured & (table.training_counts == 0), weights, seed),
            "subgroups": {
                attribute: subgroups(scores, labels, groups, weights, seed)
                for attribute, groups in table.attributes.items()
            },
            "disorders": _disorders(again, about),
        }
        if first is None:
            first = (again, scores)
        else:
            differences[name] = {
                "macro": {
                    metric: macro_differences(first[0][metric], again[metric], counts, least) for metric in METRICS
                },
                "disorders": _differences(first, (again, scores), labels, table.patients, names, counted),
            }
    words = {band: {"training_cases": said} for band, said in band_words(least).items()}
    result = {
        "data": table.about.get("data"),
        "split": table.about.get("split"),
        "level": level,
        "only": None if only is None else names,
        "within": within,
        "least": list(least),
        "cases": len(labels),
        "patients": len(set(table.patients)),
        "bootstraps": bootstraps,
        "seed": seed,
        "bands": {
            band: {"disorders": int(rows.sum()), "measured": int((rows & measurable).sum())} | words.get(band, {})
            for band, rows in bands(counts, least).items()
        },
        "models": models,
        "differences": differences,
    }
    return _without_nan(result)


def refuse_other(table: Scores, other: Scores, name: str) -> None:
    """Raises: ValueError where the second table is not of the same cases, labels and disorders."""
    for what in ("data", "split"):
        if table.about.get(what) != other.about.get(what):
            raise ValueError(f"{name} was scored on other data: {what} {other.about.get(what)}")
    if other.case_ids != table.case_ids or other.disorders != table.disorders or other.patients != table.patients:
        raise ValueError(f"{name} was scored on other cases, or with other labels: score all models on one data set")
    if other.names != table.names:
        unlike = sorted(set(table.names) ^ set(other.names)) or ["their order"]
        raise ValueError(f"{name} was scored with another vocabulary: {', '.join(unlike[:5])}")


def _macros(again: Again, counts: np.ndarray, least: tuple[int, int]) -> dict:
    found = {}
    for metric, (values, draws) in again.items():
        means, drawn = macro(values, counts, least), macro(draws, counts, least)
        found[metric] = {band: figure(means[band], drawn[band], _range(metric)) for band in means}
    return found


def _disorders(again: Again, about: list[dict]) -> list[dict]:
    rows = [dict(row) for row in about]
    for metric, (values, draws) in again.items():
        lows, highs = interval(draws, values, _range(metric))
        for row, value, low, high in zip(rows, values, lows, highs, strict=True):
            row[metric] = {"value": float(value), "low": float(low), "high": float(high)}
    return rows


def _ranking(tables: Sequence[Scores], measured: np.ndarray, weights: np.ndarray, seed: int) -> dict:
    """Over cases with one diagnosis, which is among the measured ones. Draws are not moved: a median jumps."""
    share = seed_weights(len(tables), weights.shape[1], seed)
    found, draws = {}, {}
    for table, part in zip(tables, share, strict=True):
        ranks = truth_ranks(table.scores, table.labels)
        asked = np.array([len(names) == 1 for names in table.disorders]) & (table.labels & measured).any(1)
        ranks[~asked] = np.nan
        for name, values in ranking(ranks, weights).items():
            draws[name] = draws.get(name, 0) + part * values
        for name, value in ranking(ranks).items():
            found[name] = found.get(name, 0) + value / len(tables)
    result: dict[str, Any] = {"cases": int(asked.sum())}
    for name, value in found.items():
        low, high = interval(draws[name])
        result[name] = {"value": float(value), "low": float(low), "high": float(high)}
    return result


def _differences(first, second, labels, patients: Sequence[str], names: list[str], counted) -> list[dict]:
    (values, draws), (others, other_draws) = first[0]["auc"], second[0]["auc"]
    lows, highs = interval(other_draws - draws, others - values, (-1, 1))
    rows = [
        {"disorder": name, "auc": {"value": float(value), "low": float(low), "high": float(high)}}
        for name, value, low, high in zip(names, others - values, lows, highs, strict=True)
    ]
    if len(first[1]) == len(second[1]) == 1:
        p = delong(first[1][0], second[1][0], labels, patients, counted)[1]
        tests = {"p": p, "p_holm": adjusted(p, "holm"), "p_bh": adjusted(p, "bh")}
        for i, row in enumerate(rows):
            row |= {name: float(values[i]) for name, values in tests.items()}
    return rows


def _range(metric: str) -> tuple[float, float]:
    return (-1, 1) if metric == "mcc" else (0, 1)


def _without_nan(value: Any) -> Any:
    """JSON has no nan: a figure without a value is None."""
    if isinstance(value, dict):
        if "value" in value and not math.isfinite(value["value"]):
            return None
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
