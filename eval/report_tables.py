"""The data of the figures of a report as CSV: one row for each figure with its interval."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from radfm.data_prep.tables import replacing
from radfm.eval.curves import RATES, Curves
from radfm.eval.distributions import GROUPS
from radfm.eval.errors import Error


def write_tables(
    folder: Path,
    result: dict,
    curves: Mapping[str, Curves],
    scores: Mapping[str, Sequence[dict]],
    calibrated: Mapping[str, dict | None],
    errors: Mapping[str, tuple[list[Error], list[Error]]],
) -> None:
    """Writes a CSV for each table that has rows.

    Args:
        result: of `radfm.eval.diagnosis.compare`.
        curves: model -> its curves.
        scores: model -> the `Distribution.summary` of its disorders.
        calibrated: model -> `radfm.eval.calibration.before_and_after`, or None.
        errors: model -> confused cases, and false alarms.
    """
    models = result["models"].items()
    tables = {
        "summary": [
            {"model": name, "less": "", "band": band, "metric": metric} | (figure or {})
            for name, model in models
            for metric, of_bands in model["macro"].items() for band, figure in of_bands.items()
        ] + [
            {"model": name, "less": next(iter(result["models"])), "band": band, "metric": metric} | (figure or {})
            for name, difference in result["differences"].items()
            for metric, of_bands in difference["macro"].items() for band, figure in of_bands.items()
        ],
        "ranking": [
            {"model": name, "of": what, "cases": model[key]["cases"], "measure": measure} | (figure or {})
            for name, model in models
            for key, what in (("ranking", "cases with one diagnosis"), ("ranking_unseen", "of them, never in training"))
            for measure, figure in model[key].items() if measure != "cases"
        ],
        "subgroups": [
            {"model": name, "attribute": attribute, "group": group, "cases": row["cases"],
             "disorders": row["disorders"]} | (row["auc"] or {})
            for name, model in models for attribute, by in model["subgroups"].items()
            for group, row in by["groups"].items()
        ],
        "roc": [
            {"model": name, "band": band, "false_positive_rate": rate, "value": value, "low": low, "high": high}
            for name, of_model in curves.items() for band, macro in of_model.macro.items()
            for rate, (value, low, high) in zip(RATES.tolist(), macro.tolist(), strict=True)
        ],
        "reliability": [
            {"model": name, "when": when, "of": part, "pairs": one["pairs"], "probability": one["probability"]}
            | (one["share"] or {})
            for name, both in calibrated.items() if both for when in ("before", "after") if both[when]
            for part in ("reliability", "reliability_first") for one in both[when][part]
        ],
        "distributions": [
            {"model": name, "disorder": one["disorder"], "group": group} | (one[group] or {"cases": 0})
            for name, of_model in scores.items() for one in of_model for group in GROUPS
        ],
        "errors": [_error(name, kind, one) for name, both in errors.items()
                   for kind, of_kind in zip(("confused", "normal"), both, strict=True) for one in of_kind],
        "differences": [
            {"model": name, "disorder": row["disorder"]} | (row["auc"] or {})
            | {p: row.get(p) for p in ("p", "p_holm", "p_bh")}
            for name, difference in result["differences"].items() for row in difference["disorders"]
        ],
    }  # fmt: skip
    for name, rows in tables.items():
        if rows:
            _write_csv(folder / f"{name}.csv", rows)


def _error(model: str, kind: str, error: Error) -> dict:
    names, scores, ranks = zip(*error.disorders, strict=True) if error.disorders else ((), (), ())
    own = {"disorders": "; ".join(names), "scores": "; ".join(f"{s:.6g}" for s in scores),
           "ranks": "; ".join(map(str, ranks))}  # fmt: skip
    return {"model": model, "kind": kind, "case_id": error.case_id, "named": error.named, "score": error.score} | own


def _write_csv(path: Path, rows: Sequence[dict]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as draft, open(draft, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
