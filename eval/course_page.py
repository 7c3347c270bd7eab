"""What `radfm evaluate course` writes: course.json, course.html with its figure, and example patients.

Decisions:
- An example of each change is the first test case with the most dates that has it. It is not chosen by its scores.
- On every date the same acquisition is shown, at the position of the slice with the largest outline of any date.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from radfm.cli.console import DISCLAIMER
from radfm.course import FALLS, RISES, STAYS, direction
from radfm.data_prep.dated_cases import DatedCases
from radfm.data_prep.pages import environment
from radfm.data_prep.phantoms.follow_up import APPEARED, GREW, RESOLVED, SHRANK
from radfm.data_prep.pictures import ct_window, data_uri, slice_image
from radfm.data_prep.plots import svg_file, within_page
from radfm.data_prep.report_pictures import SIDE, fit, outline
from radfm.data_prep.tables import write_text
from radfm.eval.course import RIGHT, Steps
from radfm.eval.course_figure import auc_figure, score_line
from radfm.eval.figures import CSS
from radfm.presentation import interval, value

RESULTS, PAGE, FIGURE = "course.json", "course.html", "figures/course.svg"


def write_course(out: Path, result: Mapping[str, Any], dates: DatedCases, steps: Steps, log_odds: np.ndarray) -> None:
    """
    Args:
        result: of `radfm.train.course_study.course_study`.
        dates, steps: of the test split.
        log_odds: (dates, disorders).
    """
    figure = auc_figure(result)
    svg = svg_file(figure)
    write_text(out / RESULTS, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_text(out / FIGURE, svg)
    jinja = environment("radfm.eval")
    jinja.filters |= {"value": value, "ends": interval}
    page = jinja.get_template("course.html").render(
        result=result,
        right=RIGHT,
        words=(RISES, STAYS, FALLS),
        figure=within_page(svg, CSS),
        inches=figure.get_figwidth(),
        examples=_examples(dates, steps, log_odds),
        disclaimer=DISCLAIMER,
        version=version("radfm"),
    )
    write_text(out / PAGE, page.rstrip() + "\n")


def _examples(dates: DatedCases, steps: Steps, log_odds: np.ndarray) -> list[dict[str, Any]]:
    count: dict[str, int] = {}
    for row in dates.rows:
        count[row["case_id"]] = count.get(row["case_id"], 0) + 1
    examples: list[dict[str, Any]] = []
    for change in (GREW, SHRANK, APPEARED, RESOLVED):
        found = np.flatnonzero(steps.changes == change)
        for step in sorted(found, key=lambda one: -count[dates.rows[steps.before[one]]["case_id"]]):
            example = _example(dates, steps, int(step), log_odds)
            if example is not None and example["case_id"] not in {one["case_id"] for one in examples}:
                examples.append(example | {"change": change})
                break
    return examples


def _example(dates: DatedCases, steps: Steps, step: int, log_odds: np.ndarray) -> dict[str, Any] | None:
    """A disorder of a case on all dates; None if no acquisition shows it."""
    case_id, label = dates.rows[steps.before[step]]["case_id"], int(steps.disorders[step])
    name = dates.vocabulary[label].name
    of_case = [row for row, date in enumerate(dates.rows) if date["case_id"] == case_id]
    of_disorder = (steps.disorders == label) & np.isin(steps.before, of_case)
    pairs = steps.volumes_ml[of_disorder]
    volumes = [float(pairs[0, 0]), *map(float, pairs[:, 1])]
    scans = _scans_that_show(dates, of_case, name)
    if scans is None:
        return None
    scores = (1 / (1 + np.exp(-log_odds[of_case, label]))).tolist()
    shares = {row: _largest(dates.masks(row).get(name)) for row in scans}
    position = max((share for share in shares.values() if share is not None), key=lambda share: share[0])[1]
    odds = log_odds[of_case, label]
    return {
        "case_id": case_id,
        "disorder": name,
        "acquisition": dates.scan_header(scans[0])["modality"],
        "direction": direction(float(odds[-1] - odds[0])),
        "line": score_line([dates.rows[row]["days"] for row in of_case], scores),
        "dates": [
            {
                "days": dates.rows[row]["days"],
                "picture": _picture(dates, scan, name, position),
                "volume_ml": volume,
                "score": score,
            }
            for row, scan, volume, score in zip(of_case, scans, volumes, scores, strict=True)
        ],
    }


def _scans_that_show(dates: DatedCases, of_case: list[int], name: str) -> list[int] | None:
    """The scan of each date by the acquisition with the most masks of a disorder; None if none has a mask."""
    by_source: dict[str, list[int]] = {}
    for row in of_case:
        for scan in dates.rows[row]["scan_rows"]:
            by_source.setdefault(dates.scan_header(scan)["source"], []).append(scan)
    masks = {source: sum(name in dates.masks(scan) for scan in scans) for source, scans in by_source.items()}
    complete = [source for source, scans in by_source.items() if len(scans) == len(of_case) and masks[source]]
    return by_source[max(complete, key=lambda source: masks[source])] if complete else None


def _largest(mask: np.ndarray | None) -> tuple[int, float] | None:
    """The largest area of a mask in a slice, in pixels, and where the slice is in the scan, from 0 to 1."""
    if mask is None:
        return None
    areas = mask.sum((1, 2))
    return int(areas.max()), float(areas.argmax() / max(len(areas) - 1, 1))


def _picture(dates: DatedCases, row: int, name: str, position: float) -> str:
    scan, mask = dates.scan(row), dates.masks(row).get(name)
    index = round(position * (len(scan.pixels) - 1))
    image = fit(slice_image(scan, index, ct_window(scan)), SIDE, enlarge=True)
    return data_uri(image if mask is None or not mask[index].any() else outline(image, mask[index]))
