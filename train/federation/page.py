"""What `radfm federate simulate` writes: a page with a figure and tables.

Decisions:
- The figure has a row for each site's cases, and a dot for each model, so that one sees at once where training alone
  fails, and how far the federation is from all data in one place.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from radfm.cli.console import DISCLAIMER
from radfm.data_prep import plots
from radfm.data_prep.pages import environment
from radfm.data_prep.plots import FAINT, STYLE, within_page
from radfm.data_prep.tables import write_text
from radfm.eval.figures import CSS, MODEL_COLOURS
from radfm.presentation import interval, value

POOLED, ALONE = "pooled", "alone: "
PAGE = "federation.html"
_OWN = "that site alone"
_ROW, _WIDTH = 0.23, 7.0  # inches: of a dot, of the figure


def write_page(out: Path, found: dict[str, Any]) -> None:
    """Writes federation.html and auc.svg."""
    drawn = plots.svg_file(auc_figure(found))
    write_text(out / "auc.svg", drawn)
    jinja = environment("radfm.eval")
    jinja.filters |= {"value": value, "ends": interval}
    page = jinja.get_template("federation.html").render(
        found=found,
        methods=methods_of(found),
        alone=ALONE,
        pooled=POOLED,
        figure=within_page(drawn, CSS),
        colours=MODEL_COLOURS,
        disclaimer=DISCLAIMER,
        version=version("radfm"),
    )
    write_text(out / PAGE, page)


def methods_of(found: dict[str, Any]) -> list[str]:
    return [arm for arm in found["arms"] if arm != POOLED and not arm.startswith(ALONE)]


def auc_figure(found: dict[str, Any]) -> Figure:
    """Macro AUC on the cases of each site: by the site alone, by each method, and by all data in one place."""
    kinds = [_OWN, *methods_of(found), POOLED]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 0.9 + _ROW * (len(kinds) + 1) * len(found["sites"])), layout="constrained")
        axes = figure.add_subplot()
        ticks = {}
        for number, site in enumerate(found["sites"]):
            first = number * (len(kinds) + 1)
            ticks[f"{site}\n{found['cases'][site]:,} cases"] = first + (len(kinds) - 1) / 2
            for position, kind in enumerate(kinds):
                drawn = found["arms"][ALONE + site if kind == _OWN else kind][site]
                if drawn is None:
                    continue
                ends = [[max(drawn["value"] - drawn["low"], 0)], [max(drawn["high"] - drawn["value"], 0)]]
                axes.errorbar(
                    drawn["value"], first + position, xerr=ends, fmt="o", color=MODEL_COLOURS[position][0],
                    markersize=4.6, elinewidth=1.4, label=None if number else kind,
                )  # fmt: skip
        axes.axvline(0.5, color=FAINT, linewidth=0.7, linestyle=":")
        axes.set_yticks(list(ticks.values()), list(ticks))
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=FAINT, linewidth=0.3, alpha=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("macro AUC on the cases of a site")
        figure.legend(loc="outside upper left", ncols=len(kinds), handlelength=1.2)
    return figure
