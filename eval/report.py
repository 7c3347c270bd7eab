"""report.html: what models are worth on the cases of a data set, to be read by a person.

    >>> write_report(Path("evaluation"), "datasets/mine", {"KE": [table]}, compare({"KE": [table]}))

Decisions:
- One page that loads nothing: figures, pictures and all disorders are in it. It can be read on a phone and printed.
- Beside it stand the figures as SVG and what they are drawn from as CSV, so that anything can be made again.
- Everything is traced: the command, the versions, and the fingerprints of data, checkpoints and tables of scores. No
  path of the machine is told, and no time: the same scores give the same bytes.
- Cases are named by the pseudonyms of the data set; pictures come from it.
- No figure is without its interval but what is said of single cases. Several seeds of a recipe are averaged;
  where only one model can be shown (distributions, calibration, errors), it is the first.
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from radfm.cli.console import DISCLAIMER
from radfm.data_prep.pages import environment
from radfm.data_prep.pictures import LARGE, Picture, Pictures
from radfm.data_prep.plots import svg_file, within_page
from radfm.data_prep.stored_cases import StoredCases, load
from radfm.data_prep.tables import write_text
from radfm.eval import figures
from radfm.eval.bootstrap import measure_again, patient_weights
from radfm.eval.calibration import before_and_after, measure_calibration
from radfm.eval.comparisons import figure
from radfm.eval.conformal import SetRule, measure_sets
from radfm.eval.curves import Curves, roc_curves
from radfm.eval.distributions import GROUPS, Distribution, distributions
from radfm.eval.errors import alarming, confused, ranks_of
from radfm.eval.metrics import BANDS, band_words, bands, macro
from radfm.eval.notes import table_notes
from radfm.eval.report_rows import METRIC_NAMES, page_rows
from radfm.eval.report_tables import write_tables
from radfm.eval.scores import Scores
from radfm.knowledge import icd10cm
from radfm.progress import Progress, no_progress

REPORT = "report.html"
CALIBRATION = "calibration.json"  # of each model, before and after: the errors that the page shows
_DRAWS = 200  # of curves
_PAIRS = 3_000_000  # of cases and disorders, up to which calibrating is tried
_PICTURED = 8  # errors
_ALARMS = 4
_EXAMPLES = 4  # disorders of each band whose scores are drawn
_FEW_CASES = 10
_MOSTLY_ANATOMY = 0.1  # of AUC
_PACKAGES = ("radfm", "torch", "transformers", "numpy", "scipy", "scikit-learn")
_LEAST_KNOWN = 5  # positive cases of a disorder whose scores are drawn


def write_report(
    out: Path,
    data: str | Path,
    recipes: Mapping[str, Sequence[Scores]],
    result: dict[str, Any],
    command: str | None = None,
    files: Mapping[str, Sequence[Path]] | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Writes report.html, figures/*.svg, tables/*.csv and calibration.json into a folder; returns the page's path.

    Args:
        data: the data set that was scored, for the pictures of errors.
        recipes: as `radfm.eval.diagnosis.compare` got them.
        result: what it returned.
        command: that made it all, for the page.
        files: name -> the tables of scores as written, for their SHA-256.
        progress: told how much is done, of how much.
    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: it does not have the cases that were scored.
    """
    cases = load(data)
    level, only = result["level"], result["only"]
    recipes = {name: [_chosen(table.at_level(level), only) for table in tables] for name, tables in recipes.items()}
    firsts = {name: tables[0] for name, tables in recipes.items()}
    curves = roc_curves(
        recipes, min(_DRAWS, result["bootstraps"]), result["seed"], result["within"], result["least"], progress
    )
    spread = {name: _distributions(table) for name, table in firsts.items()}
    summaries = {name: [one.summary() for one in found] for name, found in spread.items()}
    calibrated = {name: _calibration(table, result) for name, table in firsts.items()}
    write_text(
        out / CALIBRATION, json.dumps({name: _summary(found) for name, found in calibrated.items()}, indent=1) + "\n"
    )
    errors = {name: (confused(table, _PICTURED), alarming(table, _ALARMS)) for name, table in firsts.items()}
    anatomy = {name: _anatomy(tables, result) for name, tables in recipes.items()}
    drawn = _drawn(result, curves, spread, calibrated)
    for name, text in drawn.items():
        write_text(out / "figures" / f"{name}.svg", text)
    write_tables(out / "tables", result, curves, summaries, calibrated, errors)
    jinja = environment("radfm.eval")
    jinja.filters |= {"value": _value, "ends": _ends, "percent": _percent, "rank": lambda rank: f"{rank:,.0f}"}
    page = jinja.get_template("report.html").render(
        disclaimer=DISCLAIMER,
        result=result,
        first=next(iter(recipes)),
        dataset=_dataset(cases, result, firsts),
        metrics=METRIC_NAMES,
        bands=_bands(result),
        words=band_words(result["least"]),
        colours=len(figures.COLOURS),
        figures={name: within_page(text, figures.CSS) for name, text in drawn.items()},
        notes=_notes(result),
        anatomy=anatomy,
        shortcut=result["within"] is None
        and any(one and one["other"]["value"] - one["same"]["value"] > _MOSTLY_ANATOMY for one in anatomy.values()),
        groups=GROUPS,
        calibrated=calibrated,
        sets={name: _sets(table, result) for name, table in firsts.items()},
        errors=_pictured(errors, firsts, cases),
        attributes=_attributes(result),
        sources={name: _sources(tables, (files or {}).get(name, ())) for name, tables in recipes.items()},
        versions={name: version(name) for name in _PACKAGES} | {"Python": platform.python_version()},
        edition=icd10cm.edition(),
        command=command,
        draws=min(_DRAWS, result["bootstraps"]),
        few=_FEW_CASES,
        rows=page_rows(result, curves, summaries),
    )
    write_text(out / REPORT, page.rstrip() + "\n")
    return out / REPORT


def _chosen(table: Scores, only: Sequence[str] | None) -> Scores:
    """The table of the measured disorders alone; a case keeps the names of all that it has."""
    if only is None:
        return table
    rows = np.flatnonzero(table.rows_of(only))
    new = {old: place for place, old in enumerate(rows.tolist())}
    training = [[new[row] for row in mine if row in new] for mine in table.training]
    return replace(
        table,
        scores=table.scores[:, rows],
        logits=None if table.logits is None else table.logits[:, rows],
        names=[table.names[row] for row in rows],
        icd10cm=[table.icd10cm[row] for row in rows],
        training=[mine for mine in training if mine],
    )


def _distributions(table: Scores) -> list[Distribution]:
    """None where nobody said what the cases show."""
    return distributions(table) if any(table.attributes.get("body part", ())) else []


def _calibration(table: Scores, result: dict) -> dict[str, Any] | None:
    """`before`, `after` and `how`, see `before_and_after`; without trying what is not there if the table is large."""
    small = table.scores.size <= _PAIRS and len(set(table.patients)) > 1
    if not table.labels.any():
        return None
    if table.logits is not None or small:
        return before_and_after(table, result["bootstraps"], result["seed"])
    return {
        "before": measure_calibration(table, result["bootstraps"], result["seed"]),
        "after": None,
        "how": "as given",
    }


def _summary(calibrated: dict[str, Any] | None) -> dict[str, Any] | None:
    """The figures of `_calibration` without curves and disorders."""
    if calibrated is None:
        return None
    figures = ("cases", "pairs", "ece", "ece_first", "brier", "log_loss")
    both = {
        when: calibrated[when] and {name: calibrated[when][name] for name in figures} for when in ("before", "after")
    }
    return {"how": calibrated["how"], **both}


def _sets(table: Scores, result: dict) -> dict | None:
    rule = table.about.get("prediction_sets")
    if rule is None or result["only"] is not None:  # it was fitted to all disorders
        return None
    return measure_sets(table, SetRule(**rule), result["bootstraps"], result["seed"], result["least"])


def _drawn(
    result: dict, curves: Mapping[str, Curves], spread: Mapping[str, list], calibrated: Mapping
) -> dict[str, str]:
    """Name of the file -> SVG; what there is nothing to draw of is left out."""
    first = next(iter(curves))
    drawn = {"macro_auc": figures.macro_auc(result)}
    for band in curves[first].macro:
        drawn[f"roc_{'overall' if band == 'all' else band}"] = figures.roc(curves, band)
    drawn["auc_by_training"] = figures.auc_by_training(result["models"][first]["disorders"], result["least"])
    for number, (name, found) in enumerate(result["differences"].items(), 1):
        drawn[f"differences_{number}"] = figures.differences(found["disorders"], name, first)
    if spread[first]:
        drawn["scores_pooled"] = figures.pooled_scores(spread[first])
        if chosen := _examples(spread[first], result["least"]):
            drawn["scores"] = figures.scores_of_disorders(chosen)
    known = {name: one for name, one in calibrated.items() if one}
    if known:
        drawn["reliability"] = figures.reliability(known)
        drawn["reliability_first"] = figures.reliability_of_first(known)
    for attribute in _attributes(result):
        by = {name: model["subgroups"][attribute] for name, model in result["models"].items()}
        drawn[f"subgroups_{_plain(attribute)}"] = figures.subgroups(by)
    return {name: svg_file(figure) for name, figure in drawn.items()}


def _examples(found: Sequence[Distribution], least: tuple[int, int]) -> list[Distribution]:
    """Of each band the disorders with the most positive cases here."""
    inside = bands(np.array([one.training_cases for one in found]), least)
    chosen = []
    for band in BANDS:
        mine = [one for one, is_in in zip(found, inside[band], strict=True) if is_in and len(one.same)]
        mine = [one for one in mine if len(one.positive) >= _LEAST_KNOWN]
        chosen += sorted(mine, key=lambda one: -len(one.positive))[:_EXAMPLES]
    return chosen


def _anatomy(tables: Sequence[Scores], result: dict) -> dict[str, Any] | None:
    """Macro AUC against negatives of the same anatomy, and of another, as figures, over disorders that have both."""
    table = tables[0]
    if not any(table.attributes.get("body part", ())):
        return None
    same, labels = table.within("body part"), table.labels
    known = np.array([bool(parts) for parts in table.attributes["body part"]])[:, None]
    weights = patient_weights(table.patients, min(_DRAWS, result["bootstraps"]), result["seed"])
    seeds = [one.scores for one in tables]
    found = [
        measure_again(seeds, labels, weights, ["auc"], seed=result["seed"], counted=labels | negatives)["auc"]
        for negatives in (same, ~same & known)
    ]
    both = ~np.isnan(found[0][0] + found[1][0])
    if not both.any():
        return None
    everywhere = np.zeros(both.sum())
    means = [[macro(part[both], everywhere)["all"] for part in one] for one in found]
    return {"disorders": int(both.sum())} | {
        name: figure(*mean) for name, mean in zip(("same", "other"), means, strict=True)
    }


def _bands(result: dict) -> list[tuple[str, str, dict]]:
    said = {"all": "all"} | band_words(result["least"])
    said["head"] += " training cases"
    return [(b, said[b], result["bands"][b]) for b in said if result["bands"][b]["disorders"]]


def _attributes(result: dict) -> list[str]:
    """Those of which two groups can be measured."""
    model = next(iter(result["models"].values()))
    return [
        attribute
        for attribute, found in model["subgroups"].items()
        if sum(row["auc"] is not None for row in found["groups"].values()) > 1
    ]


def _dataset(cases: StoredCases, result: dict, firsts: Mapping[str, Scores]) -> dict:
    table = next(iter(firsts.values()))
    return {
        "name": table.about.get("dataset") or cases.folder.name,
        "fingerprint": cases.record["fingerprint"],
        "normal": sum(not names for names in table.disorders),
        "labels": int(table.labels.sum()),
    }


def _notes(result: dict) -> list[str]:
    """What a reader should know before believing a figure; plain text."""
    rows = next(iter(result["models"].values()))["disorders"]
    measured, disorders = result["bands"]["all"]["measured"], result["bands"]["all"]["disorders"]
    few = sum(0 < row["cases"] < _FEW_CASES for row in rows)
    notes = []
    if result["split"] == "train":
        notes.append("These are cases of the training split: the figures say what was learned by heart, too.")
    if measured < disorders:
        notes.append(
            f"{disorders - measured:,} of {disorders:,} disorders cannot be measured, because all of these cases have "
            "them or none: they are in no average."
        )
    if few:
        notes.append(
            f"{few:,} of {measured:,} disorders have fewer than {_FEW_CASES} cases here: their own figures are rough, "
            "and their intervals too narrow."
        )
    for name, model in result["models"].items():
        notes += table_notes(name, model["tables"])
    return notes


def _pictured(errors: Mapping, firsts: Mapping[str, Scores], cases: StoredCases) -> dict[str, list[dict]]:
    """The errors of the first model with pictures, and the ranks that the other models gave."""
    first = next(iter(errors))
    pictures, row_of = Pictures(cases.folder), {row["case_id"]: row for row in cases.rows}
    names = dict(zip(("confused", "alarming"), errors[first], strict=True))
    if missing := [one.case_id for found in names.values() for one in found if one.case_id not in row_of]:
        raise ValueError(f"{cases.folder} has no case {missing[0]}: the scores are of other data")
    return {
        kind: [
            {
                "error": one,
                "case": (case := row_of[one.case_id]),
                "scans": len(case["scan_rows"]),
                "picture": _picture(pictures, cases, case["scan_rows"]),
                "others": {
                    name: ranks_of(table, one.row, [one.named] + [own[0] for own in one.disorders])
                    for name, table in firsts.items()
                    if name != first
                },
            }
            for one in found
        ]
        for kind, found in names.items()
    }


def _picture(pictures: Pictures, cases: StoredCases, scans: Sequence[int]) -> Picture:
    """Of the first scan whose key slice is known, or of the first."""
    known = (row for row in scans if cases.scan_header(row)["key_slice"] is not None)
    return pictures.picture(next(known, scans[0]), LARGE)


def _sources(tables: Sequence[Scores], files: Sequence[Path]) -> list[dict]:
    """Where each table of a recipe comes from, without a path."""
    told = []
    for number, table in enumerate(tables):
        about = table.about
        file = files[number] if number < len(files) else None
        facts = {
            "model": about.get("model"),
            "SHA-256 of its weights": about.get("checkpoint"),
            "computed in": about.get("dtype"),
            "scans of a case": about.get("scans"),
            "histories": about.get("histories"),
            "names": about.get("vocabulary"),
            "trained on data": about.get("trained_on"),
            "scored by": f"radfm {about['radfm']}" if about.get("radfm") else None,
        }
        if file is not None:
            facts["table of scores"] = f"scores/{file.name}"
            facts["SHA-256 of the table"] = hashlib.sha256(file.read_bytes()).hexdigest()
        told.append({what: value for what, value in facts.items() if value})
    return told


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def _value(figure: dict | None, digits: int = 3, signed: bool = False) -> str:
    return "–" if figure is None else f"{figure['value']:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def _ends(figure: dict | None, digits: int = 3, signed: bool = False) -> str:
    """The interval of a figure."""
    if figure is None:
        return ""
    sign = "+" if signed else ""
    between = " to " if signed or figure["low"] < 0 else "–"
    return f"{figure['low']:{sign}.{digits}f}{between}{figure['high']:{sign}.{digits}f}".replace("-", "−")


def _percent(share: float, digits: int = 1) -> str:
    return f"{share:.{digits}%}".replace("%", "\N{NO-BREAK SPACE}%")
