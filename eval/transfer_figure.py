"""The figure of a transfer study: a row for each part, a dot for each model."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from radfm.data_prep.plots import FAINT, STYLE
from radfm.eval.figures import MODEL_COLOURS

# Model -> its name, its colour on light and on dark pages, and its marker.
MODELS = {
    "with": ("trained with its cases, too", MODEL_COLOURS[0], "s"),
    "without": ("trained without its cases", MODEL_COLOURS[1], "o"),
    "start": ("before training", MODEL_COLOURS[5], "D"),
}
COLOURS = {model: colours for model, (_, colours, _) in MODELS.items()}

_ROW, _WIDTH = 0.62, 6.4  # inches
_APART = 0.22  # of the dots of a part, in rows


def transfer_figure(parts: Sequence[Mapping[str, Any]]) -> Figure:
    """
    Args:
        parts: results of `radfm.eval.transfer.measure_part`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 1.1 + _ROW * len(parts)), layout="constrained")
        axes = figure.subplots()
        for number, (model, (name, colours, marker)) in enumerate(MODELS.items()):
            drawn = [part["auc"][model] for part in parts]
            values = [one["value"] for one in drawn]
            ends = [
                [max(one["value"] - one["low"], 0) for one in drawn],
                [max(one["high"] - one["value"], 0) for one in drawn],
            ]
            rows = [row + _APART * (number - 1) for row in range(len(parts))]
            axes.errorbar(
                values, rows, xerr=ends, fmt=marker, color=colours[0], markersize=4.6, elinewidth=1.4, label=name
            )
        axes.set_yticks(range(len(parts)), [part["name"] for part in parts])
        axes.set_ylim(len(parts) - 0.45, -0.55)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.grid(axis="x", color=FAINT, linewidth=0.3, alpha=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("macro AUC on the test cases of the part")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False, fontsize=8)
    return figure
