"""How well a model transfers to a hospital, source, scanner or time that it was not trained on, in figures and a page.

Decisions:
- The drop of a part is what a model that was trained without its cases lacks to one that was trained with them too, on
  the same test cases of the part. What differs is the training alone, and not how difficult the cases are.
- Disorders count that the other parts have training cases of. Those that only this part has are listed: a model cannot
  have learned them elsewhere.
- Cases are compared with cases of the same part only, so that no figure is gained by discriminating the parts.
- Calibration is that of the model as it arrives (fitted to the validation cases of the other parts), and after it is
  fitted to this part's cases, each by a fit to the other patients.
- The subgroup that lost most is the largest of several differences, so it is larger than it will be in new cases.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from radfm.cli.console import DISCLAIMER
from radfm.data_prep.case_groups import groups_of
from radfm.data_prep.pages import environment
from radfm.data_prep.plots import svg_file, within_page
from radfm.data_prep.tables import write_text
from radfm.eval.calibration import before_and_after
from radfm.eval.figures import CSS
from radfm.eval.paired_macros import PairedMacros
from radfm.eval.scores import OF_DISORDERS, Scores
from radfm.eval.transfer_figure import COLOURS, transfer_figure
from radfm.presentation import interval, value

START, WITHOUT, WITH = "start", "without", "with"  # models: before, trained without the part, trained with it
RESULTS, PAGE, FIGURE = "transfer.json", "transfer.html", "figures/transfer.svg"

_MEASURES = ("ece", "brier", "log_loss")


@dataclass(frozen=True)
class Part:
    """What one model was not trained on.

    Attributes:
        name: for tables and pages.
        groups: of the attribute that divides the data set.
        elsewhere: for each training case of the other parts, the columns of its disorders, as `Scores.training`.
        training_cases: number of the part's own, which only the model WITH has seen.
    """

    name: str
    groups: frozenset[str]
    elsewhere: list[list[int]]
    training_cases: int


def measurable(part: Part, table: Scores, attribute: str, level: str = "disorder") -> tuple[Scores, np.ndarray]:
    """The part's cases, and (disorders,) bool: occurs in some and not in all of them, and has training cases elsewhere.

    Args:
        table: scores of all test cases.
        level: of ICD-10-CM, see `radfm.eval.scores.Scores.at_level`.
    """
    here = replace(_of_part(table, part, attribute), training=part.elsewhere).at_level(level)
    positives = here.labels.sum(0)
    return here, (positives > 0) & (positives < len(here.case_ids)) & (here.training_counts > 0)


def measure_part(
    part: Part,
    models: Mapping[str, Sequence[Scores]],
    attribute: str,
    least: int,
    level: str = "disorder",
    bootstraps: int = 1000,
) -> dict[str, Any]:
    """All figures of a part, JSON-able; a figure is {value, low, high}.

    Args:
        models: `START`, `WITHOUT`, `WITH` -> tables of all test cases, one for each seed.
        attribute: that divides the data set.
        least: number of cases of a subgroup.
    Returns:
        `name`, `groups`, `cases`, `patients`, `training_cases`; `disorders` that are measured, and `only_here` (those
        without a training case elsewhere); `auc`: model -> figure; `drop`: figure; `elsewhere`: the AUC of the model
        WITHOUT on the other parts' cases, or None; `calibration`: {`before`, `after`} -> `ece`, `brier`, `log_loss`, or
        None; `subgroups`: `compared`, and `most` (`attribute`, `group`, `cases`, `drop`) or None.
    Raises:
        ValueError: no disorder can be measured.
    """
    first, known = measurable(part, models[WITHOUT][0], attribute, level)
    here = {
        model: [_disorders(_of_part(table, part, attribute).at_level(level), known) for table in tables]
        for model, tables in models.items()
    }
    macros = PairedMacros(here, bootstraps)
    only_here = first.labels.any(0) & (first.training_counts == 0)
    return {
        "name": part.name,
        "groups": sorted(part.groups),
        "cases": macros.cases,
        "patients": macros.patients,
        "training_cases": part.training_cases,
        "disorders": here[WITHOUT][0].names,
        "only_here": [name for name, alone in zip(first.names, only_here, strict=True) if alone],
        "auc": {model: macros.auc(model)["all"] for model in here},
        "drop": macros.difference(WITH, WITHOUT)["all"],
        "elsewhere": _auc_elsewhere(part, models[WITHOUT], attribute, level, known, bootstraps),
        "calibration": _calibration(here[WITHOUT][0], bootstraps) if level == "disorder" else None,
        "subgroups": _subgroups(here, attribute, least, bootstraps),
    }


def write_transfer(out: Path, result: dict[str, Any]) -> None:
    """Writes transfer.json, transfer.html and the figure as SVG into a folder.

    Args:
        result: of `radfm.train.transfer_study.transfer_study`.
    """
    write_text(out / RESULTS, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    figure = transfer_figure(result["parts"])
    svg = svg_file(figure)
    write_text(out / FIGURE, svg)
    jinja = environment("radfm.eval")
    jinja.filters |= {"value": value, "ends": interval}
    page = jinja.get_template("transfer.html").render(
        result=result,
        clear=[part for part in result["parts"] if part["drop"]["low"] > 0],
        figure=within_page(svg, CSS),
        inches=figure.get_figwidth(),
        colours=COLOURS,
        disclaimer=DISCLAIMER,
        versions={name: version(name) for name in ("radfm", "torch", "transformers")},
    )
    write_text(out / PAGE, page.rstrip() + "\n")


def _of_part(table: Scores, part: Part, attribute: str, inside: bool = True) -> Scores:
    """The cases of the part; with `inside` False those that are known to be of another part."""
    groups = groups_of(table.attributes, attribute)
    return table.of_cases(
        [case for case, of_case in enumerate(groups) if of_case and part.groups.isdisjoint(of_case) != inside]
    )


def _disorders(table: Scores, chosen: np.ndarray) -> Scores:
    """The table of some disorders, (disorders,) bool. Labels of the others stay in `Scores.disorders`."""
    columns = np.flatnonzero(chosen).tolist()
    new = {old: column for column, old in enumerate(columns)}
    training = ([new[row] for row in rows if row in new] for rows in table.training)
    return replace(
        table,
        scores=table.scores[:, columns],
        logits=None if table.logits is None else table.logits[:, columns],
        names=[table.names[column] for column in columns],
        icd10cm=[table.icd10cm[column] for column in columns],
        training=[rows for rows in training if rows],
        about={key: kept for key, kept in table.about.items() if key not in OF_DISORDERS},
    )


def _auc_elsewhere(
    part: Part, tables: Sequence[Scores], attribute: str, level: str, known: np.ndarray, bootstraps: int
) -> dict | None:
    """Of the same disorders in cases of the other parts, within each; None where none can be measured there."""
    others = [_disorders(_of_part(table, part, attribute, False).at_level(level), known) for table in tables]
    if not others[0].case_ids:
        return None
    labels, counted = others[0].labels, others[0].within(attribute)
    if not ((counted & labels).any(0) & (counted & ~labels).any(0)).any():
        return None
    return PairedMacros({WITHOUT: others}, bootstraps, within=attribute).auc(WITHOUT)["all"]


def _calibration(table: Scores, bootstraps: int) -> dict[str, Any] | None:
    """Before and after the probabilities are fitted to these cases; None for the cases of one patient."""
    if len(set(table.patients)) < 2:
        return None
    measured = before_and_after(replace(table, logits=None), bootstraps)
    return {when: {measure: measured[when][measure] for measure in _MEASURES} for when in ("before", "after")}


def _subgroups(here: Mapping[str, Sequence[Scores]], attribute: str, least: int, bootstraps: int) -> dict[str, Any]:
    """The subgroup with the largest drop, of all that have enough cases and a disorder that can be measured."""
    first = here[WITHOUT][0]
    drops: list[dict[str, Any]] = []
    for name, groups in first.attributes.items():
        known = sorted({group for of_case in groups for group in of_case})
        if name in (attribute, "folder") or len(known) < 2:
            continue
        for group in known:
            chosen = [case for case, of_case in enumerate(groups) if group in of_case]
            labels = first.labels[chosen].sum(0)
            if len(chosen) >= least and ((labels > 0) & (labels < len(chosen))).any():
                of_group = {model: [table.of_cases(chosen) for table in here[model]] for model in (WITHOUT, WITH)}
                drop = PairedMacros(of_group, bootstraps).difference(WITH, WITHOUT)["all"]
                drops.append({"attribute": name, "group": group, "cases": len(chosen), "drop": drop})
    return {"compared": len(drops), "most": max(drops, key=lambda one: one["drop"]["value"], default=None)}
