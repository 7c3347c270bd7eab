"""The page of a simulated annotation: the macro AUC of each strategy over the number of labels, and a table.

Decisions:
- The headline is what a strategy saves: its AUC with half of random's labels, less random's with all.
- Lines are means over seeds. Intervals are in the table, because those of seven lines hide each other.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from radfm.cli.console import DISCLAIMER
from radfm.data_prep.pages import environment
from radfm.data_prep.plots import FAINT, STYLE, axes_of, svg_file, within_page
from radfm.data_prep.tables import write_text
from radfm.eval.figures import CSS, MODEL_COLOURS
from radfm.presentation import interval, value

PAGE, FIGURE = "selection.html", "figures/selection.svg"
RANDOM = "random"
_GREY = MODEL_COLOURS[5][0]
_MARKERS = "osD^vP"


def write_page(out: Path, result: Mapping[str, Any]) -> None:
    """Writes the page and its figure as SVG. Args: result: of `radfm.train.selection_study.selection_study`."""
    svg = svg_file(curves(result))
    write_text(out / FIGURE, svg)
    jinja = environment("radfm.eval")
    jinja.filters |= {"value": value, "ends": interval}
    page = jinja.get_template("selection.html").render(
        result=result,
        figure=within_page(svg, CSS),
        others=[name for name in result["strategies"] if name != RANDOM],
        disclaimer=DISCLAIMER,
        versions={name: version(name) for name in ("radfm", "scikit-activeml", "torch")},
    )
    write_text(out / PAGE, page.rstrip() + "\n")


def curves(result: Mapping[str, Any]) -> Figure:
    """A line for each strategy; random is grey, with the band of its interval."""
    labels = result["labels"]
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(3.2)
        others = [name for name in result["strategies"] if name != RANDOM]
        for position, name in enumerate([RANDOM, *others]):
            of_labels = result["strategies"][name]["auc"]
            values = [one["value"] for one in of_labels]
            colour = _GREY if name == RANDOM else MODEL_COLOURS[(position - 1) % (len(MODEL_COLOURS) - 1)][0]
            marker = "x" if name == RANDOM else _MARKERS[(position - 1) % len(_MARKERS)]
            if name == RANDOM:
                low, high = ([one[end] for one in of_labels] for end in ("low", "high"))
                axes.fill_between(labels, low, high, color=colour, alpha=0.2, linewidth=0)
            style = "-" if position < len(MODEL_COLOURS) else "--"  # the colours repeat
            axes.plot(labels, values, style, color=colour, marker=marker, markersize=4, linewidth=1.4, label=name)
        axes.axhline(result["without_labels"], color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate("no label", (1, result["without_labels"]), (0, 3), ("axes fraction", "data"), "offset points",
                      ha="right", color=FAINT, fontsize=8)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(labels, [f"{count:,}" for count in labels])
        axes.set(xlabel="labelled cases", ylabel="macro AUC")
        axes.grid(color=FAINT, linewidth=0.3, alpha=0.6)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1.6)
    return figure
