"""What the figures of an evaluation are drawn from, as CSV: a row for each figure with its interval."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from radfm.data_prep.tables import replacing
from radfm.eval.curves import RATES, Curves
from radfm.eval.distributions import GROUPS
from radfm.eval.errors import Wrong


def write_tables(
    folder: Path,
    result: dict,
    curves: Mapping[str, Curves],
    spread: Mapping[str, Sequence[dict]],
    calibrated: Mapping[str, dict | None],
    errors: Mapping[str, tuple[list[Wrong], list[Wrong]]],
) -> None:
    """Writes a CSV for each table that has rows.

    Args:
        result: of `radfm.eval.diagnosis.compare`.
        curves, spread, calibrated, errors: by model, see `radfm.eval.report.write_report`.
    """
    models = result["models"].items()
    tables = {
        "summary": [
            {"model": name, "less": "", "band": band, "metric": metric} | (figure or {})
            for name, model in models
            for metric, of_bands in model["macro"].items() for band, figure in of_bands.items()
        ] + [
            {"model": name, "less": next(iter(result["models"])), "band": band, "metric": metric} | (figure or {})
            for name, found in result["differences"].items()
            for metric, of_bands in found["macro"].items() for band, figure in of_bands.items()
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
            for name, model in models for attribute, found in model["subgroups"].items()
            for group, row in found["groups"].items()
        ],
        "roc": [
            {"model": name, "band": band, "false_positive_rate": rate, "value": value, "low": low, "high": high}
            for name, found in curves.items() for band, macro in found.macro.items()
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
            for name, found in spread.items() for one in found for group in GROUPS
        ],
        "errors": [_error(name, kind, one) for name, both in errors.items()
                   for kind, found in zip(("confused", "normal"), both, strict=True) for one in found],
        "differences": [
            {"model": name, "disorder": row["disorder"]} | (row["auc"] or {})
            | {p: row.get(p) for p in ("p", "p_holm", "p_bh")}
            for name, found in result["differences"].items() for row in found["disorders"]
        ],
    }  # fmt: skip
    for name, rows in tables.items():
        if rows:
            _write_csv(folder / f"{name}.csv", rows)


def _error(model: str, kind: str, one: Wrong) -> dict:
    names, scores, ranks = zip(*one.disorders, strict=True) if one.disorders else ((), (), ())
    own = {"disorders": "; ".join(names), "scores": "; ".join(f"{s:.6g}" for s in scores),
           "ranks": "; ".join(map(str, ranks))}  # fmt: skip
    return {"model": model, "kind": kind, "case_id": one.case_id, "named": one.named, "score": one.score} | own


def _write_csv(path: Path, rows: Sequence[dict]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as draft, open(draft, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
