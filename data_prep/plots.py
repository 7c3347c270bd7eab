"""Figures of the report and the card of a data set.

Decisions:
- Figures are narrow and have large letters, so that two fit side by side on a screen and one is legible on a phone.
- In SVG, text stays text: it can be searched, and names in any script are rendered with the reader's fonts.
- Within a page, colours are CSS variables, so that a figure follows the page into dark mode.
- The same numbers give the same bytes: there is no date, and ids have a fixed salt.
"""

import re
from collections import Counter
from collections.abc import Mapping
from io import BytesIO, StringIO
from math import log10

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from radfm.data_prep.counts import UNKNOWN, Counts
from radfm.data_prep.plan import SPLITS
from radfm.presentation import BAND_MINIMA, BANDS, band_of, plural

INK, FAINT = "#22303c", "#8a97a3"
SPLIT_COLOURS = dict(zip(SPLITS, ("#2f5d7c", "#9dbdd0", "#d39a4a"), strict=True))
BAND_COLOURS = dict(zip(BANDS, ("#1d425c", "#4d86a8", "#a3c3d5"), strict=True))
VARIABLES = {"#ffffff": "page", INK: "ink", FAINT: "faint"} | {
    c: name for name, c in (SPLIT_COLOURS | BAND_COLOURS).items()
}
_ONE = SPLIT_COLOURS["train"]
STYLE = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "radfm",
}
_WIDTH = 4.6  # inches
_LONGEST = 26  # letters of a name beside a bar
_NUMBERS = FuncFormatter(lambda value, _: f"{value:,.0f}")
_SLICE_BINS = (1, 2, 5, 9, 17, 33, 65, 129, 257, 513)  # lower limits
_SCAN_BINS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33)


def modalities(counts: Counts) -> Figure:
    """Scans by modality, divided by split."""
    bars: dict[str, dict[str | None, int]] = {
        name: {split: one.split_scans[split] for split in SPLITS if counts.splits[split].cases}
        for name, one in counts.modalities.items()
    }
    return _bars(bars, "scans")


def body_parts(counts: Counts, most: int = 12) -> Figure:
    """Scans by body part, the most frequent ones."""
    named = {part: n for part, n in counts.body_parts.items() if part != UNKNOWN}
    shown = dict(list(named.items())[:most])
    if rest := len(named) - len(shown):
        shown[f"{rest} more"] = sum(named.values()) - sum(shown.values())
    if unknown := counts.body_parts.get(UNKNOWN):
        shown[UNKNOWN] = unknown
    return _bars({part: {None: n} for part, n in shown.items()}, "scans")


def scans_per_case(counts: Counts) -> Figure:
    return _histogram(counts.scans_per_case, _SCAN_BINS, "scans per case", "cases")


def slices_per_scan(counts: Counts) -> Figure:
    return _histogram(counts.slices_per_scan, _SLICE_BINS, "slices per scan", "scans")


def tail(counts: Counts) -> Figure:
    """Training cases of each disorder, from the most frequent to the rarest."""
    cases = sorted((one.split_cases["train"] for one in counts.disorders), reverse=True)
    trained = [n for n in cases if n]
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(3.0)
        for band in BANDS:
            ranks = [i for i, n in enumerate(trained) if band_of(n) == band]
            total = plural(sum(band_of(n) == band for n in cases), "disorder")
            steps, edges = [trained[i] for i in ranks], [0.5 + i for i in [*ranks, ranks[-1] + 1]] if ranks else [0, 0]
            axes.stairs(steps or [0], edges, fill=True, color=BAND_COLOURS[band], linewidth=0, label=f"{band}: {total}")
        axes.set_yscale("log")
        top = max([*trained, 10]) * 1.6
        for least in BAND_MINIMA:
            if least < top:
                axes.axhline(least, color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
        axes.set_ylim(0.7, top)
        axes.set_xlim(0.5, max(len(trained), 5) + 0.5)
        axes.yaxis.set_major_formatter(_NUMBERS)
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(_NUMBERS)
        axes.set_xlabel("disorders, by rank")
        axes.set_ylabel("training cases")
        axes.legend(loc="upper right", handlelength=1, handleheight=1)
    return figure


def stratification(counts: Counts) -> Figure:
    """Share of each disorder's cases in the training split, against its number of cases."""
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(3.0)
        dots = Counter((one.cases, one.split_cases["train"], one.band) for one in counts.disorders if one.cases)
        cases = [cases for cases, _, _ in dots]
        shares = [training / cases for cases, training, _ in dots]
        sizes = [12 * (1 + log10(disorders)) for disorders in dots.values()]
        colours = [BAND_COLOURS[band] for _, _, band in dots]
        expected = counts.splits["train"].cases / counts.cases
        axes.axhline(expected, color=SPLIT_COLOURS["test"], linewidth=1, zorder=0)
        axes.scatter(cases, shares, sizes, colours, linewidths=0)
        axes.set_xscale("log")
        axes.set_xlim(0.8, max([*cases, 10]) * 1.4)
        axes.set_ylim(-0.04, 1.04)
        axes.xaxis.set_major_formatter(_NUMBERS)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.set_xlabel("cases of a disorder")
        axes.set_ylabel("in the training split")
    return figure


def svg(figure: Figure) -> str:
    """A figure as SVG to include in a page."""
    return within_page(svg_file(figure))


def svg_file(figure: Figure) -> str:
    """A figure as an SVG file on a white background."""
    file, metadata = StringIO(), {"Date": None, "Creator": None}
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", facecolor="white", metadata=metadata)
    return file.getvalue()


def within_page(text: str, variables: Mapping[str, str] = VARIABLES) -> str:
    """An SVG file without its header, and without anything that refers to the network.

    Args:
        text: content of the SVG file.
        variables: colour as #rrggbb -> name of the CSS variable that replaces it.
    """
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>| xmlns(:\w+)?=\"[^\"]*\"", "", text, flags=re.S)
    text = re.sub(r" (width|height)=\"[\d.]+pt\"", "", text[text.index("<svg") :], count=2)
    for colour, name in variables.items():
        text = text.replace(f": {colour}", f": var(--{name}, {colour})")
    return re.sub(r"\n\s*", "\n", text.replace("<svg", '<svg aria-hidden="true"', 1)).strip()


def png(figure: Figure) -> bytes:
    file = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def axes_of(height: float) -> tuple[Figure, Axes]:
    """A figure of the common width and its axes, for use in a context of `STYLE`. height: inches."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _bars(bars: Mapping[str, Mapping[str | None, int]], unit: str) -> Figure:
    """Horizontal bars, each of one part or of one part for each split, with the total at the end."""
    names = [name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…" for name in bars]
    totals = [sum(parts.values()) for parts in bars.values()]
    splits = list(next(iter(bars.values())))
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(0.55 + 0.24 * len(names) + (0.25 if len(splits) > 1 else 0))
        left = [0] * len(names)
        for split in splits:
            lengths = [parts[split] for parts in bars.values()]
            axes.barh(
                range(len(names)),
                lengths,
                0.72,
                left,
                color=SPLIT_COLOURS.get(split or "", _ONE),
                label=split,
                linewidth=0,
            )
            left = [start + length for start, length in zip(left, lengths, strict=True)]
        for bar, total in enumerate(totals):
            axes.annotate(f"{total:,}", (total, bar), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, max(totals) * 1.14)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(_NUMBERS)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(unit)
        if len(splits) > 1:
            figure.legend(loc="outside upper right", ncols=3, handlelength=1, handleheight=1, columnspacing=1.2)
    return figure


def _histogram(counts: Mapping[int, int], least: tuple[int, ...], what: str, unit: str) -> Figure:
    """A histogram whose bins are named by the values that they hold."""
    most = max(counts)
    edges = [edge for edge in least if edge <= most]
    ends = [*edges[1:], None]
    heights = [sum(n for value, n in counts.items() if low <= value and (end is None or value < end))
               for low, end in zip(edges, ends, strict=True)]  # fmt: skip
    tops = [(end or max(most + 1, low + 1)) - 1 for low, end in zip(edges, ends, strict=True)]
    names = [f"{low}" if low >= top else f"{low}–{top}" for low, top in zip(edges, tops, strict=True)]
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(2.3)
        axes.bar(range(len(names)), heights, 0.78, color=_ONE, linewidth=0)
        for bar, height in enumerate(heights):
            if height:
                axes.annotate(f"{height:,}", (bar, height), (0, 2), textcoords="offset points", ha="center", fontsize=8)
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set_xlim(-0.6, max(len(names), 5) - 0.4)
        axes.set_ylim(0, max(heights) * 1.14)
        axes.tick_params(axis="x", length=0)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(_NUMBERS)
        axes.set_xlabel(what)
        axes.set_ylabel(unit)
    return figure
