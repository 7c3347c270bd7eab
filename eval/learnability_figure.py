"""The figure of the learnability gap: a row for each autoencoder, a column for each band, a dot for each classifier.

Decisions:
- The gap between latents and reconstructions is shaded, so that one sees at once whether there is one, and how much of
  it each classifier closes.
- Columns have an axis each, which all autoencoders share: bands differ more than classifiers.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from radfm.data_prep.plots import FAINT, STYLE
from radfm.eval.figures import MODEL_COLOURS
from radfm.presentation import BANDS, interval, plural, value

# Kind of classifier -> its colour on light and on dark pages, as the models of other figures have.
COLOURS = {"images": MODEL_COLOURS[5], "reconstructions": MODEL_COLOURS[0], "latents": MODEL_COLOURS[1]} | {
    "distilled": MODEL_COLOURS[2]
}
_MARKERS = {"images": "s", "reconstructions": "s", "latents": "o", "distilled": "D"}
_ROW, _COLUMN, _LABELS = 0.25, 2.05, 1.75  # inches: of a classifier, of a band, of the names
_LEAST_RANGE = 0.02  # of an axis, in AUC


def kind_of(space: str) -> str:
    """The kind of a space by its name, a key of `COLOURS`."""
    return "distilled" if "distilled" in space else next(kind for kind in COLOURS if space.startswith(kind))


def gap_figure(result: Mapping[str, Any]) -> Figure:
    """
    Args:
        result: of `radfm.eval.learnability.write_learnability`.
    """
    bands = [band for band in ("all", *BANDS) if result["bands"][band]["measured"]]
    autoencoders = result["autoencoders"]
    spaces = max(len(one["spaces"]) for one in autoencoders.values())
    named = 0.25 * (len(autoencoders) > 1)
    size = (_LABELS + _COLUMN * len(bands), (0.8 + named + _ROW * spaces) * len(autoencoders))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        figure.get_layout_engine().set(wspace=0.05)  # type: ignore[union-attr,call-arg]
        rows = figure.subfigures(len(autoencoders), 1, squeeze=False)[:, 0]
        for row, (name, one) in zip(rows, autoencoders.items(), strict=True):
            of_row = row.subplots(1, len(bands), squeeze=False)[0]
            if named:
                row.suptitle(name, x=0.005, ha="left", fontweight="bold", fontsize=10)
            for axes, band in zip(of_row, bands, strict=True):
                _draw(axes, one, band)
                axes.set_xlim(_range(autoencoders.values(), band))
                _write_above(axes, "overall" if band == "all" else band, (0, 18), weight="bold")
                count = plural(result["bands"][band]["measured"], "disorder")
                _write_above(axes, count, (0, 18), at=1, color=FAINT, fontsize=8)
                text = f"gap {value(one['gap'][band])} ({interval(one['gap'][band])})"
                _write_above(axes, text, (0, 6), color=MODEL_COLOURS[1][0], fontsize=8)
            of_row[0].set_yticks(range(len(one["spaces"])), one["spaces"])
        for axes in of_row:
            axes.set_xlabel("macro AUC")
    return figure


def _draw(axes: Axes, autoencoder: Mapping[str, Any], band: str) -> None:
    spaces = autoencoder["spaces"]
    low, high = (spaces[space]["auc"][band]["value"] for space in ("latents", "reconstructions"))
    axes.axvspan(low, high, color=MODEL_COLOURS[1][0], alpha=0.13, linewidth=0, zorder=0)
    for position, (name, space) in enumerate(spaces.items()):
        drawn, kind = space["auc"][band], kind_of(name)
        ends = [[max(drawn["value"] - drawn["low"], 0)], [max(drawn["high"] - drawn["value"], 0)]]
        colour = COLOURS[kind][0]
        axes.errorbar(
            drawn["value"], position, xerr=ends, fmt=_MARKERS[kind], color=colour, markersize=4.6, elinewidth=1.4,
            markerfacecolor="#ffffff" if _is_control(name) else colour,
        )  # fmt: skip
    axes.set_ylim(len(spaces) - 0.45, -0.55)
    axes.set_yticks([])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="x", color=FAINT, linewidth=0.3, alpha=0.6)
    axes.set_axisbelow(True)


def _range(autoencoders: Iterable[Mapping[str, Any]], band: str) -> tuple[float, float]:
    """Of the axis of a band, which all autoencoders share."""
    drawn = [space["auc"][band] for one in autoencoders for space in one["spaces"].values()]
    low, high = min(one["low"] for one in drawn), max(one["high"] for one in drawn)
    half = max(high - low, _LEAST_RANGE) * 0.56
    return (low + high) / 2 - half, (low + high) / 2 + half


def _write_above(axes: Axes, text: str, offset: tuple[int, int], at: int = 0, **style: Any) -> None:
    """Text above the axes, at its left (0) or right (1) end; the offset is in points."""
    axes.annotate(text, (at, 1), offset, "axes fraction", "offset points", ha="right" if at else "left", **style)


def _is_control(space: str) -> bool:
    return kind_of(space) == "latents" and space != "latents"
