"""The figures of an evaluation.

Decisions:
- They have the style and the width of `radfm.data_prep.plots`. A model has the same colour in all of them, and the same
  marker, so that models can be discriminated without colours, too.
- Of many disorders a figure shows a selection or a summary; the page's table has each of them.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from radfm.data_prep.plots import FAINT, INK, STYLE, VARIABLES, axes_of
from radfm.eval.curves import RATES, Curves
from radfm.eval.distributions import GROUPS, Distribution
from radfm.eval.metrics import METRICS
from radfm.presentation import BANDS

MODEL_COLOURS = (  # on light and on dark pages; with more models they repeat
    ("#2b6a99", "#74b3de"),
    ("#c2571a", "#ef9560"),
    ("#4a8a3f", "#8fc985"),
    ("#85569c", "#c39ad9"),
    ("#8a6d1f", "#d8b85a"),
    ("#64707a", "#aab6c0"),
)
GROUP_COLOURS = dict(zip(GROUPS, (("#b2452c", "#ec8069"), ("#3c7d8c", "#6cb7c8"), ("#9aa7b1", "#76848f")), strict=True))
CSS = (
    VARIABLES
    | {light: f"model{i}" for i, (light, _) in enumerate(MODEL_COLOURS)}
    | {light: f"group-{group}" for group, (light, _) in GROUP_COLOURS.items()}
)
_COLOURS = tuple(light for light, _ in MODEL_COLOURS)
_OF_GROUP = {group: light for group, (light, _) in GROUP_COLOURS.items()}
_MARKERS = "osD^vP"
_LONGEST = 30
_ENDS = (
    lambda one: one["probability"],
    lambda one: one["share"]["value"],
    lambda one: one["share"]["high"],
)  # of a bin
_PERCENT = FuncFormatter(lambda value, _: f"{value:.0%}")


def macro_auc(result: dict) -> Figure:
    """Macro AUC of each model over all disorders, head, body and tail."""
    names = [band for band in ("all", *BANDS) if result["bands"][band]["measured"]]
    models = result["models"]
    rows = {
        ("overall" if band == "all" else band): [model["macro"]["auc"][band] for model in models.values()]
        for band in names
    }
    return _forest(rows, list(models), "auc")


def roc(curves: Mapping[str, Curves], band: str) -> Figure:
    """The macro ROC curve of each model over a band, with its 95% interval at each rate."""
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(4.0)
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)))
        for colour, (name, curve) in zip(_cycle(_COLOURS, len(curves)), curves.items(), strict=True):
            value, low, high = curve.macro[band].T
            axes.fill_between(RATES, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(RATES, value, color=colour, linewidth=1.5, label=_short(name))
        axes.set(xlim=(0, 1), ylim=(0, 1.005), xlabel="false positive rate", ylabel="recall", aspect="equal")
        axes.xaxis.set_major_formatter(_PERCENT)
        axes.yaxis.set_major_formatter(_PERCENT)
        if len(curves) > 1:
            axes.legend(loc="lower right", handlelength=1.3)
    return figure


def ood_detection(kinds: Mapping[str, dict]) -> Figure:
    """The ROC curve for each kind of out-of-distribution cases, see `radfm.eval.ood_detection.measure_ood`."""
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(4.0)
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)))
        for colour, (kind, measured) in zip(_cycle(_COLOURS, len(kinds)), kinds.items(), strict=True):
            false_alarms, recall = np.transpose(measured["roc"])
            label = f"{_short(kind)} (AUC {measured['auc']['value']:.3f})"
            axes.plot(
                false_alarms, recall, color=colour, linewidth=1.5, drawstyle="steps-post", label=label, clip_on=False
            )
        axes.set(xlim=(0, 1), ylim=(0, 1.005), xlabel="false positive rate", ylabel="OOD cases detected")
        axes.set_aspect("equal")
        axes.xaxis.set_major_formatter(_PERCENT)
        axes.yaxis.set_major_formatter(_PERCENT)
        axes.legend(loc="lower right", handlelength=1.3)
    return figure


def auc_by_training(rows: Sequence[dict], minima: Sequence[int]) -> Figure:
    """AUC of each disorder against its training cases, and the median AUC in intervals of training cases."""
    known = [row for row in rows if row["auc"]]
    cases = np.array([row["training_cases"] for row in known])
    areas = np.array([row["auc"]["value"] for row in known])
    few = np.array([row["cases"] < 10 for row in known])
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(3.2)
        positions = np.maximum(cases, 0.5)  # on the logarithmic axis, 0 is left of 1
        size = 14 if len(known) < 600 else 5
        for chosen, alpha, label in ((few, 0.35, "fewer than 10 cases here"), (~few, 0.9, "10 or more")):
            if chosen.any():
                axes.scatter(
                    positions[chosen],
                    areas[chosen],
                    size,
                    _COLOURS[0],
                    alpha=alpha,
                    linewidths=0,
                    label=label,
                    rasterized=False,
                )
        edges = np.array([0, 1, 2, 4, 8, 16, 30, 60, 100, 200, 400, 800, 1600, 3200, 10**9])
        middle = [
            (np.exp(np.log(positions[inside]).mean()), np.median(areas[inside]))
            for low, high in pairwise(edges)
            if (inside := (cases >= low) & (cases < high)).sum() >= 5
        ]
        if len(middle) > 1:
            axes.plot(*zip(*middle, strict=True), color=_COLOURS[1], linewidth=1.6, label="median")
        axes.axhline(0.5, color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
        for minimum in minima:
            axes.axvline(minimum, color=FAINT, linewidth=0.7, zorder=0)
        axes.set_xscale("log")
        axes.set_xlim(0.4, max(150, positions.max() * 1.3))
        axes.set_ylim(min(0.45, areas.min() - 0.03), 1.02)
        ticks = [t for t in (0.5, 1, 10, 30, 100, 1000, 10_000) if t <= axes.get_xlim()[1]]
        axes.set_xticks(ticks, ["0" if t < 1 else f"{t:,}" for t in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="training cases of a disorder", ylabel="AUC")
        figure.legend(loc="outside upper left", ncols=3, fontsize=8, handlelength=1, columnspacing=1.2)
    return figure


def differences(rows: Sequence[dict], name: str, first: str) -> Figure:
    """Each disorder's difference in AUC with its interval, in rising order; significant differences are marked."""
    known = sorted((row for row in rows if row["auc"]), key=lambda row: row["auc"]["value"])
    values, lows, highs = (np.array([row["auc"][end] for row in known]) for end in ("value", "low", "high"))
    significant = np.array([(row.get("p_bh") or 1) < 0.05 for row in known])
    kept = np.unique(np.linspace(0, len(known) - 1, min(len(known), 400)).round().astype(int))
    ranks = np.arange(1, len(known) + 1)
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(2.8)
        axes.vlines(ranks[kept], lows[kept], highs[kept], color=FAINT, linewidth=0.8, alpha=0.6)
        axes.axhline(0, color=INK, linewidth=0.7)
        shown = kept[~significant[kept]]
        axes.scatter(ranks[shown], values[shown], 5, _COLOURS[0], linewidths=0, zorder=3)
        marked = np.flatnonzero(significant)
        axes.scatter(ranks[marked], values[marked], 16, _COLOURS[1], marker="D", linewidths=0, zorder=4)
        axes.set_xlim(0, len(known) + 1)
        axes.set_xlabel("disorders, by their difference")
        axes.set_ylabel(f"AUC of {_short(name, 16)}\nless {_short(first, 16)}")
    return figure


def reliability(calibrated: Mapping[str, dict]) -> Figure:
    """Reliability diagram over bins of all pairs of a case and a disorder; on logarithmic axes, since most are small.

    Args:
        calibrated: model -> its `radfm.eval.calibration.measure_calibration` as "before" and "after" (or None).
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(4.2)
        least = _reliability(figure, axes, calibrated, "reliability", floor=0.1) / 1.5
        axes.plot([least, 1], [least, 1], color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
        axes.set(xscale="log", yscale="log", xlim=(least, 1.15), ylim=(least, 1.15), aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
            axis.set_minor_formatter(NullFormatter())
    return figure


def reliability_of_first(calibrated: Mapping[str, dict]) -> Figure:
    """The same for the first-ranked disorder of each case, whose probabilities are higher: on linear axes."""
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(4.2)
        _reliability(figure, axes, calibrated, "reliability_first")
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.xaxis.set_major_formatter(_PERCENT)
        axes.yaxis.set_major_formatter(_PERCENT)
    return figure


def _reliability(figure: Figure, axes: Axes, calibrated: Mapping[str, dict], part: str, floor: float = 0.0) -> float:
    """Returns the lowest drawn value; an interval ends no lower than `floor` times its value."""
    least = 1.0
    for i, (name, both) in enumerate(calibrated.items()):
        colour, marker = _style(i)
        for when in ("before", "after"):
            if not both[when]:
                continue
            last = when == "after" or not both["after"]
            bins = [one for one in both[when][part] if one["share"] and (not floor or one["share"]["value"] > 0)]
            x, y, high = ([get(one) for one in bins] for get in _ENDS)
            low = [max(one["share"]["low"], floor * one["share"]["value"]) for one in bins]
            axes.plot(
                x, y, color=colour, linestyle="-" if last else (0, (1.5, 1.5)), linewidth=1.2, marker=marker,
                markersize=4, markerfacecolor=colour if last else "none",
                label=f"{_short(name, 18)}{f', {when}' if both['after'] else ''}",
            )  # fmt: skip
            if last:
                axes.vlines(x, low, high, color=colour, linewidth=0.9, alpha=0.7)
            least = min([least, *x, *(low if last else y)])
    axes.set(xlabel="probability, mean of a bin", ylabel="share that came true")
    figure.legend(loc="outside upper left", fontsize=7.5, handlelength=2, ncols=min(3, len(calibrated)))
    return max(least, 1e-7)


def pooled_scores(scores: Sequence[Distribution], bins: int = 60) -> Figure:
    """The scores of all disorders, each with the same weight."""
    every = [getattr(one, group) for one in scores for group in GROUPS]
    low, high = np.quantile(np.concatenate([v[:: max(1, len(v) // 200)] for v in every]), (0.001, 0.999))
    edges = np.linspace(low - 1e-6, high + 1e-6, bins + 1)
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(2.4)
        for group, label in GROUPS.items():
            parts = [getattr(one, group) for one in scores if len(getattr(one, group))]
            if not parts:
                continue
            density = sum(np.histogram(np.clip(v, low, high), edges)[0] / len(v) for v in parts) / len(parts)
            axes.stairs(density, edges, fill=True, color=_OF_GROUP[group], alpha=0.2, linewidth=0)
            axes.stairs(density, edges, color=_OF_GROUP[group], linewidth=1.3, label=label)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("score")
        axes.set_ylim(0, None)
        figure.legend(loc="outside upper left", fontsize=8, handlelength=1.2, ncols=3, columnspacing=1.2)
    return figure


def scores_of_disorders(scores: Sequence[Distribution]) -> Figure:
    """Three rows for each disorder, from its quantiles: 5% to 95%, 25% to 75%, and the median."""
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(0.75 + 0.42 * len(scores))
        for position, one in enumerate(scores):
            for offset, group in zip((-0.25, 0, 0.25), GROUPS, strict=True):
                if not (row := one.summary()[group]):
                    continue
                y, colour = position + offset, _OF_GROUP[group]
                axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=0.9)
                axes.plot([row["lower"], row["upper"]], [y, y], color=colour, linewidth=4.2, solid_capstyle="butt")
                axes.plot(
                    row["median"], y, "o", color="white", markersize=2.6, markeredgecolor=colour, markeredgewidth=0.8
                )
        axes.set_yticks(range(len(scores)), [_short(one.disorder) for one in scores], fontsize=8)
        axes.set_ylim(len(scores) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("score")
        handles = [Patch(color=_OF_GROUP[group], label=label) for group, label in GROUPS.items()]
        figure.legend(handles=handles, loc="outside upper left", fontsize=8, handlelength=1, handleheight=0.8, ncols=3,
                      columnspacing=1.2)  # fmt: skip
    return figure


def subgroups(of_models: Mapping[str, dict]) -> Figure:
    """The macro AUC of each model in each group of one attribute. Args: model -> as `comparisons.subgroups`."""
    groups = [g for g, row in next(iter(of_models.values()))["groups"].items() if row["auc"]]
    counts = next(iter(of_models.values()))["groups"]
    rows = {f"{_short(g, 24)} ({counts[g]['cases']:,})": [one["groups"][g]["auc"] for one in of_models.values()]
            for g in groups}  # fmt: skip
    return _forest(rows, list(of_models), "auc")


def _forest(rows: Mapping[str, Sequence[dict | None]], names: Sequence[str], metric: str) -> Figure:
    """Forest plot: a row for each key, and in it a dot with its interval for each model."""
    height = 0.12 + 0.17 * len(names)
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(0.75 + height * len(rows) + 0.22 * (len(names) > 1) * -(-len(names) // 3))
        for i, name in enumerate(names):
            colour, marker = _style(i)
            offset = (i - (len(names) - 1) / 2) * 0.62 / max(len(names), 2)
            known = [(position + offset, row[i]) for position, row in enumerate(rows.values()) if row[i]]
            if not known:
                continue
            positions, drawn = zip(*known, strict=True)
            values = np.array([one["value"] for one in drawn])
            ends = [values - [one["low"] for one in drawn], [one["high"] for one in drawn] - values]
            axes.errorbar(
                values, positions, xerr=np.maximum(ends, 0), fmt=marker, color=colour, markersize=4.2, elinewidth=1.3,
                label=_short(name),
            )  # fmt: skip
        lowest = min(one["low"] for row in rows.values() for one in row if one)
        chance = METRICS[metric].chance
        if chance is not None and lowest < chance + 0.1:
            axes.axvline(chance, color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        for row in range(1, len(rows)):
            axes.axhline(row - 0.5, color=FAINT, linewidth=0.3, zorder=0)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"macro {METRICS[metric].name}")
        if len(names) > 1:
            figure.legend(loc="outside upper left", ncols=3, fontsize=8, handlelength=1.2, columnspacing=1.2)
    return figure


def _cycle(values: Sequence[str], count: int) -> list[str]:
    return [values[i % len(values)] for i in range(count)]


def _style(model: int) -> tuple[str, str]:
    return _COLOURS[model % len(_COLOURS)], _MARKERS[model % len(_MARKERS)]


def _short(name: str, longest: int = _LONGEST) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"
