"""report.html: the results of models on the cases of a data set, as a page for readers.

    >>> write_report(Path("evaluation"), "datasets/mine", {"KE": [table]}, compare({"KE": [table]}))

Decisions:
- One page that loads nothing: figures, pictures and all disorders are in it. It can be read on a phone and printed.
- Beside it are the figures as SVG and the data of each figure as CSV, so that they can be drawn again.
- Everything can be traced: the command, the versions, and the fingerprints of data, checkpoints and tables of scores.
  The page has no absolute path and no time: the same scores give the same bytes.
- Cases are named by the pseudonyms of the data set; pictures come from it.
- Every figure has its interval, except those of single cases. Several seeds of a model are averaged; where only one
  table can be shown (distributions, calibration, errors), it is the first.
"""

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
from radfm.data_prep.plots import within_page
from radfm.data_prep.stored_cases import StoredCases, load
from radfm.data_prep.tables import write_text
from radfm.eval import figures
from radfm.eval.calibration import before_and_after, measure_calibration
from radfm.eval.conformal import SetRule, measure_sets
from radfm.eval.curves import roc_curves
from radfm.eval.distributions import GROUPS, Distribution, auc_by_anatomy, distributions
from radfm.eval.errors import confused, false_alarms
from radfm.eval.metrics import METRICS
from radfm.eval.notes import comparison_notes
from radfm.eval.report_errors import errors_with_pictures
from radfm.eval.report_figures import compared_attributes, draw_figures
from radfm.eval.report_rows import page_rows
from radfm.eval.report_sources import table_sources
from radfm.eval.report_tables import write_tables
from radfm.eval.scores import Scores
from radfm.knowledge import icd10cm
from radfm.presentation import band_limits, interval, percent, value
from radfm.progress import Progress, no_progress

REPORT = "report.html"
CALIBRATION = "calibration.json"  # of each model, before and after: the errors that the page shows
_RESAMPLES = 200  # of curves
_MOST_PAIRS = 3_000_000  # of cases and disorders, up to which the effect of calibrating is computed
_CONFUSED, _FALSE_ALARMS = 8, 4  # cases with pictures
_LARGE_GAP = 0.1  # in AUC, between negatives of other and of the same anatomy
_PACKAGES = ("radfm", "torch", "transformers", "numpy", "scipy", "scikit-learn")


def write_report(
    out: Path,
    data: str | Path,
    models: Mapping[str, Sequence[Scores]],
    result: dict[str, Any],
    command: str | None = None,
    files: Mapping[str, Sequence[Path]] | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Writes report.html, figures/*.svg, tables/*.csv and calibration.json into a folder; returns the page's path.

    Args:
        data: the data set that was scored, for the pictures of errors.
        models: as given to `radfm.eval.diagnosis.compare`.
        result: what it returned.
        command: the command line that made the report, for the page.
        files: name -> the tables of scores as written, for their SHA-256.
    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: it does not have the cases that were scored.
    """
    cases = load(data)
    level, only = result["level"], result["only"]
    models = {
        name: [_restricted(table.where(result["where"]).at_level(level), only) for table in tables]
        for name, tables in models.items()
    }
    firsts = {name: tables[0] for name, tables in models.items()}
    resamples = min(_RESAMPLES, result["bootstraps"])
    curves = roc_curves(models, resamples, result["seed"], result["within"], result["least"], progress)
    scores = {name: _distributions(table) for name, table in firsts.items()}
    summaries = {name: [one.summary() for one in of_model] for name, of_model in scores.items()}
    calibrated = {name: _calibration(table, result) for name, table in firsts.items()}
    errors = {name: (confused(table, _CONFUSED), false_alarms(table, _FALSE_ALARMS)) for name, table in firsts.items()}
    drawn = draw_figures(result, curves, scores, calibrated)
    for name, text in drawn.items():
        write_text(out / "figures" / f"{name}.svg", text)
    short = {name: _without_curves(both) for name, both in calibrated.items()}
    write_text(out / CALIBRATION, json.dumps(short, indent=1) + "\n")
    write_tables(out / "tables", result, curves, summaries, calibrated, errors)
    anatomy = {name: auc_by_anatomy(tables, resamples, result["seed"]) for name, tables in models.items()}
    page = _template().render(
        _context(cases, firsts, result),
        figures={name: within_page(text, figures.CSS) for name, text in drawn.items()},
        anatomy=anatomy,
        depends_on_anatomy=result["within"] is None and any(map(_depends_on_anatomy, anatomy.values())),
        calibrated=calibrated,
        sets={name: _sets(table, result) for name, table in firsts.items()},
        errors=errors_with_pictures(errors, firsts, cases),
        sources={name: table_sources(tables, (files or {}).get(name, ())) for name, tables in models.items()},
        command=command,
        resamples=resamples,
        rows=page_rows(result, curves, summaries),
    )
    write_text(out / REPORT, page.rstrip() + "\n")
    return out / REPORT


def _template():
    jinja = environment("radfm.eval")
    jinja.filters |= {"value": value, "ends": interval, "percent": percent, "rank": lambda rank: f"{rank:,.0f}"}
    return jinja.get_template("report.html")


def _context(cases: StoredCases, firsts: Mapping[str, Scores], result: dict) -> dict[str, Any]:
    """What the page says of the evaluation as a whole."""
    return {
        "disclaimer": DISCLAIMER,
        "result": result,
        "first": next(iter(firsts)),
        "dataset": _dataset(cases, firsts),
        "metrics": {key: metric.name for key, metric in METRICS.items()},
        "bands": _bands(result),
        "words": band_limits(result["least"]),
        "model_colours": figures.MODEL_COLOURS,
        "group_colours": figures.GROUP_COLOURS,
        "notes": comparison_notes(result),
        "groups": GROUPS,
        "attributes": compared_attributes(result),
        "versions": {name: version(name) for name in _PACKAGES} | {"Python": platform.python_version()},
        "edition": icd10cm.edition(),
    }


def _restricted(table: Scores, only: Sequence[str] | None) -> Scores:
    """The table of the measured disorders alone; a case keeps the names of all its disorders."""
    if only is None:
        return table
    rows = np.flatnonzero(table.rows_of(only))
    new_row = {old: new for new, old in enumerate(rows.tolist())}
    training = [[new_row[row] for row in of_case if row in new_row] for of_case in table.training]
    return replace(
        table,
        scores=table.scores[:, rows],
        logits=None if table.logits is None else table.logits[:, rows],
        names=[table.names[row] for row in rows],
        icd10cm=[table.icd10cm[row] for row in rows],
        training=[of_case for of_case in training if of_case],
    )


def _distributions(table: Scores) -> list[Distribution]:
    """An empty list where the body part of no case is known."""
    return distributions(table) if any(table.attributes.get("body part", ())) else []


def _calibration(table: Scores, result: dict) -> dict[str, Any] | None:
    """See `before_and_after`; a large table that was not calibrated is measured as it is."""
    if not table.labels.any():
        return None
    if table.logits is not None or (table.scores.size <= _MOST_PAIRS and len(set(table.patients)) > 1):
        return before_and_after(table, result["bootstraps"], result["seed"])
    before = measure_calibration(table, result["bootstraps"], result["seed"])
    return {"before": before, "after": None, "how": "as given"}


def _without_curves(calibrated: dict[str, Any] | None) -> dict[str, Any] | None:
    """The figures of `_calibration` without curves and disorders."""
    if calibrated is None:
        return None
    keys = ("cases", "pairs", "ece", "ece_first", "brier", "log_loss")
    both = {when: calibrated[when] and {key: calibrated[when][key] for key in keys} for when in ("before", "after")}
    return {"how": calibrated["how"], **both}


def _sets(table: Scores, result: dict) -> dict | None:
    rule = table.about.get("prediction_sets")
    if rule is None or result["only"] is not None:  # the rule was fitted to all disorders
        return None
    return measure_sets(table, SetRule(**rule), result["bootstraps"], result["seed"], result["least"])


def _depends_on_anatomy(areas: dict[str, Any] | None) -> bool:
    return areas is not None and areas["other"]["value"] - areas["same"]["value"] > _LARGE_GAP


def _bands(result: dict) -> list[tuple[str, str, dict]]:
    """Of each band that has disorders: its name, its limits in words, and its counts."""
    words = {"all": "all"} | band_limits(result["least"])
    words["head"] += " training cases"
    return [(band, words[band], result["bands"][band]) for band in words if result["bands"][band]["disorders"]]


def _dataset(cases: StoredCases, firsts: Mapping[str, Scores]) -> dict:
    table = next(iter(firsts.values()))
    return {
        "name": table.about.get("dataset") or cases.folder.name,
        "fingerprint": cases.record["fingerprint"],
        "normal": sum(not names for names in table.disorders),
        "labels": int(table.labels.sum()),
    }
