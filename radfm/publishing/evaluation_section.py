"""The section of a diagnosis card about evaluations, and the results for the model-index of the Hub.

Decisions:
- Names of metrics, which of them the card shows, and what the Hub calls them are read from each evaluation, which
  carries the registry `METRICS` of radfm.eval. This file has no list of metrics.
- Each band of each evaluation is a result of the model-index, with its interval.
- Subgroups by folder are left out, because a folder may have a patient's name.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

from radfm.presentation import BANDS, interval, markdown_cell, percent_interval, plural, value, with_interval

_ATTRIBUTES = ("modality", "body part", "age", "sex", "scans")
_MIN_CASES, _LOWEST = 10, 8  # least cases of a disorder in the list of the lowest AUCs, and length of this list
_RANKINGS = {
    "ranking": "with one diagnosis",
    "ranking_unseen": "with one diagnosis that no training case has",
}


def evaluation_contexts(evaluations: Sequence[dict]) -> Iterator[dict[str, Any]]:
    """What the template shows of each evaluation. Equal subgroups are shown once."""
    shown_subgroups = []
    for evaluation in evaluations:
        context = _context(evaluation)
        if evaluation["subgroups"] in shown_subgroups:
            context |= {"subgroups": [], "gaps": [], "unknown": []}
        shown_subgroups.append(evaluation["subgroups"])
        yield context


def transfer_rows(transfer: Mapping) -> Iterator[dict[str, Any]]:
    """The parts of a transfer study, as cells of the template's table."""
    for part in transfer.get("parts", ()):
        calibration = part["calibration"]
        errors = (
            [with_interval(calibration[when]["ece"]) for when in ("before", "after")] if calibration else ["–", "–"]
        )
        aucs = [with_interval(part["auc"][model]) for model in ("without", "with")]
        cells = [f"{part['cases']:,}", *aucs, with_interval(part["drop"], signed=True), *errors]
        yield {"part": part["name"], "cells": cells}


def model_index_results(evaluation: dict, training_data: Mapping) -> list[EvalResult]:
    """The results of all bands, for each metric that the Hub knows."""
    about = evaluation["about"]
    own_data = about.get("trained_on") == evaluation["data"] and bool(training_data.get("title"))
    within = f", within {evaluation['within']}" if evaluation["within"] else ""
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Diagnosis of cases",
            dataset_type=training_data["source"] if own_data else "other",
            dataset_name=training_data["title"] if own_data else about.get("dataset") or "unknown",
            dataset_split=evaluation["split"],
            dataset_args={"fingerprint": evaluation["data"]},
            metric_type=hub_name,
            metric_name=f"{name}, {'all disorders' if band == 'all' else band}{within}",
            metric_value=round(figure["value"], 4),
            metric_args={"low": round(figure["low"], 4), "high": round(figure["high"], 4), "interval": 0.95},
        )
        for metric, (hub_name, name) in hub_metrics(evaluation).items()
        for band, figure in evaluation["macro"].get(metric, {}).items()
        if figure is not None
    ]


def hub_metrics(evaluation: dict) -> dict[str, tuple[str, str]]:
    """Key of a metric -> its name on the Hub, and in the model-index; only metrics that the Hub knows."""
    return {
        key: (metric["hub_name"], f"Macro {metric['name']}")
        for key, metric in _metrics(evaluation).items()
        if metric["hub_name"]
    }


def auc_within_body_parts(evaluations: Sequence[dict]) -> str:
    """A sentence that compares the AUC within body parts with that over all cases; "" without an evaluation of all."""
    by_group = {evaluation["within"]: evaluation for evaluation in reversed(evaluations)}
    if None not in by_group:
        return ""
    overall = with_interval(by_group[None]["macro"]["auc"]["all"])
    if "body part" in by_group:
        within = with_interval(by_group["body part"]["macro"]["auc"]["all"])
        return f"Over all cases it is {overall}, and among cases of the same body part {within}."
    groups = by_group[None]["subgroups"].get("body part", {}).get("groups", {})
    aucs = sorted((row["auc"]["value"], part) for part, row in groups.items() if row["auc"])
    if not aucs:
        return "The AUC within body parts was not measured."
    (low, lowest), (high, highest) = aucs[0], aucs[-1]
    return (
        f"Over all cases it is {overall}, and within body parts {low:.3f} ({markdown_cell(lowest)}) to {high:.3f} "
        f"({markdown_cell(highest)})."
    )


def _context(evaluation: dict) -> dict[str, Any]:
    metrics = {
        key: metric["name"]
        for key, metric in _metrics(evaluation).items()
        if metric["in_card"] and evaluation["macro"].get(key, {}).get("all")
    }
    subgroups = {name: evaluation["subgroups"].get(name, {}) for name in _ATTRIBUTES}
    subgroups |= {name: groups for name, groups in evaluation["subgroups"].items() if name == "collection"}
    return {
        "title": _title(evaluation),
        "cases": evaluation["cases"],
        "patients": evaluation["patients"],
        "bootstraps": evaluation["bootstraps"],
        "origin": _origin(evaluation),
        "setting": " ".join(_setting(evaluation)),
        "metrics": metrics,
        "bands": list(_bands(evaluation, metrics)),
        "notes": list(_notes(evaluation)),
        "min_cases": _MIN_CASES,
        "lowest": _lowest_aucs(evaluation),
        "disorders": len(evaluation["disorders"]),
        "subgroups": [
            {"attribute": name, "group": group, **row, "auc": with_interval(row["auc"])}
            for name, subgroup in subgroups.items()
            for group, row in subgroup.get("groups", {}).items()
        ],
        "gaps": [_gap(name, gap) for name, subgroup in subgroups.items() if (gap := subgroup.get("gap"))],
        "unknown": [name for name, subgroup in subgroups.items() if not subgroup.get("groups")],
    }


def _title(evaluation: dict) -> str:
    within = f", within {evaluation['within']}" if evaluation["within"] else ""
    where = "".join(f", {condition}" for condition in evaluation.get("where", ()))
    return f"{evaluation['about'].get('dataset') or 'A data set'}, split {evaluation['split']}{where}{within}"


def _origin(evaluation: dict) -> str:
    split, trained_on = evaluation["split"], evaluation["about"].get("trained_on")
    if trained_on != evaluation["data"]:
        data = "another data set than the training data" if trained_on else "a data set"
        return (
            f"split {split} of {data} (fingerprint `{evaluation['data']}`); whether patients are in both is not known."
        )
    warnings = {
        "train": "**The model was trained on these cases, so these figures mean little.**",
        "validation": "**Steps, settings and calibration are chosen with them, so these figures are optimistic.**",
    }
    patients = warnings.get(split, "Their patients are in no other split.")
    return f"split {split} of the data set that the model was trained on. {patients}"


def _setting(evaluation: dict) -> Iterator[str]:
    yield "One scan of each case was used." if evaluation["about"].get("scans") == "one" else "Whole cases were used."
    if evaluation["within"]:
        yield f"A disorder is compared only with cases of the same {evaluation['within']}."
    if evaluation["level"] != "disorder":
        yield f"Disorders are grouped by ICD-10-CM {evaluation['level']}."
    if evaluation["only"]:
        yield f"The evaluation is limited to {plural(len(evaluation['only']), 'chosen disorder')}."


def _bands(evaluation: dict, metrics: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The rows of the table: all disorders, then head, body and tail, where they have disorders."""
    for band in ("all", *BANDS):
        counts = evaluation["bands"][band]
        if counts["disorders"]:
            figures = [evaluation["macro"][metric].get(band) for metric in metrics]
            name = band if band == "all" else f"{band}: {counts['training_cases']}"
            yield {"name": name, **counts, "figures": [_cell(figure) for figure in figures]}


def _cell(figure: Mapping | None) -> str:
    return value(figure) if figure is None else f"{value(figure)}<br>{interval(figure)}"


def _notes(evaluation: dict) -> Iterator[str]:
    disorders = evaluation["bands"]["all"]["disorders"]
    for key, cases in _RANKINGS.items():
        ranks = evaluation[key]
        if ranks["cases"]:
            yield (
                f"For {plural(ranks['cases'], 'case')} {cases}, top-1 accuracy is {percent_interval(ranks['top1'])} "
                f"and top-10 accuracy {percent_interval(ranks['top10'])}; the median rank is "
                f"{ranks['median_rank']['value']:.0f} of {disorders:,}."
            )
    if left_out := evaluation["about"].get("left_out"):
        yield f"{plural(left_out, 'case')} could not be read and {'was' if left_out == 1 else 'were'} left out."


def _lowest_aucs(evaluation: dict) -> list[str]:
    measured = [row for row in evaluation["disorders"] if row["cases"] >= _MIN_CASES and row["auc"]]
    lowest = sorted(measured, key=lambda row: row["auc"]["value"])[:_LOWEST]
    return [f"{markdown_cell(row['disorder'])} {with_interval(row['auc'])}" for row in lowest]


def _gap(attribute: str, gap: dict) -> str:
    best, worst = markdown_cell(gap["best"]), markdown_cell(gap["worst"])
    line = f"Gap by {attribute}, {best} minus {worst}: {with_interval(gap['auc'], signed=True)}"
    if gap.get("shared_auc"):
        disorders = plural(gap["shared_disorders"], "disorder")
        line += f"; over the {disorders} of both, {with_interval(gap['shared_auc'], signed=True)}"
    return f"{line}."


def _metrics(evaluation: dict) -> dict[str, dict]:
    """Key -> name and other properties of a metric; evaluations that do not describe their metrics have keys alone."""
    keys_alone = {key: {"name": key, "hub_name": None, "in_card": True} for key in evaluation["macro"]}
    return evaluation.get("metrics") or keys_alone
