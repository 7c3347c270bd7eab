"""Figures of courses: the AUC of each method, and a line of scores over the dates of a case.

Decisions:
- The line is SVG of a few bytes that the page inlines, because a page has many. Its height is log odds from 1:1000 to
  1000:1, so that a step has the same height wherever it begins.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from radfm.course import log_odds
from radfm.data_prep.plots import FAINT, STYLE
from radfm.eval.figures import MODEL_COLOURS

_ROW, _COLUMN, _LABELS = 0.3, 2.0, 1.3  # inches: of a method, of a measure, of the names
_EDGE = 7.0  # log odds at the top of a line
_WIDTH, _HEIGHT, _MARGIN = 120, 34, 4  # of a line, in pixels


def auc_figure(result: Mapping[str, Any]) -> Figure:
    """
    Args:
        result: of `radfm.eval.course.measure_steps`.
    """
    methods = result["methods"]
    measures = [measure for measure, pairs in result["pairs"].items() if pairs]
    with matplotlib.rc_context(STYLE):
        size = (_LABELS + _COLUMN * len(measures), 0.75 + _ROW * len(methods))
        figure = Figure(figsize=size, layout="constrained")
        row = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
        for axes, measure in zip(row, measures, strict=True):
            for position, of_method in enumerate(methods.values()):
                auc = of_method[measure]["auc"]
                ends = [[max(auc["value"] - auc["low"], 0)], [max(auc["high"] - auc["value"], 0)]]
                colour = MODEL_COLOURS[0 if position == 0 else 5][0]
                axes.errorbar(auc["value"], position, xerr=ends, fmt="o", color=colour, markersize=5, elinewidth=1.4)
            axes.axvline(0.5, color=FAINT, linewidth=0.8, linestyle=":")
            axes.set(xlim=(0.3, 1.02), ylim=(len(methods) - 0.5, -0.5), title=measure, xlabel="AUC")
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.grid(axis="x", color=FAINT, linewidth=0.3, alpha=0.6)
            axes.set_axisbelow(True)
        row[0].set_yticks(range(len(methods)), list(methods))
    return figure


def score_line(days: Sequence[float], scores: Sequence[float]) -> Markup:
    """Scores over dates as SVG. days: before the newest scan, oldest first; scores: probabilities."""
    span = max(days[0] - days[-1], 1)
    heights = [max(min(log_odds(score) / _EDGE, 1), -1) for score in scores]
    points = [
        (
            _MARGIN + (_WIDTH - 2 * _MARGIN) * (days[0] - day) / span,
            _HEIGHT / 2 - (_HEIGHT / 2 - _MARGIN) * height,
        )
        for day, height in zip(days, heights, strict=True)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in points)
    return Markup(  # numbers only
        f'<svg class="line" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" aria-hidden="true">'
        f'<path d="M0 {_HEIGHT / 2}H{_WIDTH}"/><polyline points="{line}"/>{dots}</svg>'
    )
