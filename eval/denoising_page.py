"""What `radfm evaluate denoising` writes: a page with its figures, which says what wins.

Decisions:
- Slices are not chosen by how well they look: of each kind of noise that with the median PSNR of the noisy picture.
"""

import base64
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from radfm.cli.console import DISCLAIMER
from radfm.data_prep import plots
from radfm.data_prep.pages import environment
from radfm.data_prep.plots import FAINT, STYLE
from radfm.data_prep.tables import write_text
from radfm.eval.denoising import MEASURES, NOISY, Denoising, Slice, psnr_within
from radfm.eval.figures import CSS, MODEL_COLOURS
from radfm.presentation import enumeration, interval, value

DIGITS = {"psnr": 2, "ssim": 3}

_CELL = 1.35  # inches


def winner(of_strength: Mapping[str, Any], measure: str) -> str:
    """Such as "autoencoder, by 0.52 (0.41-0.60)", or "wavelets, not clearly above total variation"."""
    best, less = of_strength["best"][measure], of_strength["best_less"][measure]
    near = [name for name, one in less.items() if one["low"] <= 0]
    if near:
        return f"{best}, not clearly above {enumeration(near)}"
    second = min(less, key=lambda name: less[name]["value"])
    digits = DIGITS[measure]
    return f"{best}, by {value(less[second], digits)} ({interval(less[second], digits)}) over {second}"


def wins(result: Mapping[str, Any], measure: str) -> str:
    """How often each method is the best, such as "total variation 5, autoencoder 1"."""
    strengths = [one for of_kind in result["kinds"].values() for one in of_kind["strengths"].values()]
    counts = Counter(one["best"][measure] for one in strengths)
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def write_page(out: Path, study: Denoising) -> None:
    """Writes denoising.html, pictures.png and denoising.svg."""
    pictures, curves = plots.png(draw_pictures(study)), draw_curves(study.result)
    (out / "pictures.png").write_bytes(pictures)
    write_text(out / "denoising.svg", plots.svg_file(curves))
    jinja = environment("radfm.eval")
    jinja.filters |= {"value": value, "ends": interval}
    page = jinja.get_template("denoising.html").render(
        result=study.result,
        measures=MEASURES,
        digits=DIGITS,
        winner=winner,
        wins=wins,
        noisy=NOISY,
        colours=MODEL_COLOURS,
        pictures=base64.b64encode(pictures).decode("ascii"),
        curves=plots.within_page(plots.svg_file(curves), CSS),
        disclaimer=DISCLAIMER,
        version=version("radfm"),
    )
    write_text(out / "denoising.html", page)


def draw_curves(result: Mapping[str, Any]) -> Figure:
    """PSNR and SSIM by the strength of the noise: a column for each kind, a line for each method."""
    kinds = result["kinds"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * len(kinds) + 1.6, 4.4), layout="constrained")
        grid = figure.subplots(len(MEASURES), len(kinds), squeeze=False, sharex=True)
        for column, (kind, of_kind) in enumerate(kinds.items()):
            for axes, (measure, title) in zip(grid[:, column], MEASURES.items(), strict=True):
                _draw_lines(axes, of_kind, measure)
                axes.grid(color=FAINT, linewidth=0.3)
                axes.set_ylabel(title if column == 0 else "")
            grid[0, column].set_title(f"{kind} noise", fontsize=9)
            grid[-1, column].set_xlabel("strength")
        handles, names = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", handlelength=1.5)
    return figure


def _draw_lines(axes, of_kind: Mapping[str, Any], measure: str) -> None:
    strengths = of_kind["strengths"]
    x = np.array([float(strength) for strength in strengths])
    methods = next(iter(strengths.values()))["methods"]
    for number, name in enumerate(methods):
        figures = [one["methods"][name][measure] for one in strengths.values()]
        colour = MODEL_COLOURS[(number - 1) % len(MODEL_COLOURS)][0]  # noisy: the last one, grey
        y = np.array([one["value"] for one in figures])
        ends = np.abs(np.array([[one["low"], one["high"]] for one in figures]).T - y)
        style = "--" if name == NOISY else "-"
        axes.errorbar(x, y, ends, color=colour, linestyle=style, linewidth=1.3, marker="o", markersize=3, label=name)
    axes.axhline(of_kind["reconstruction"][measure]["value"], color=FAINT, linewidth=0.8, linestyle=":")
    axes.set_xticks(x)


def draw_pictures(study: Denoising) -> Figure:
    """A row for each kind of noise, at the middle strength: the slice, with noise, and what each method makes of it."""
    strengths = [float(one) for one in next(iter(study.result["kinds"].values()))["strengths"]]
    strength = strengths[len(strengths) // 2]
    rows = [_example(study, kind, strength) for kind in study.result["kinds"]]
    titles = ["without noise", *study.methods]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_CELL * len(titles), (_CELL + 0.15) * len(rows) + 0.2), layout="constrained")
        grid = figure.subplots(len(rows), len(titles), squeeze=False)
        for axes, one in zip(grid, rows, strict=True):
            estimates = study.estimates(one, strength)
            axes[0].set_ylabel(f"{one.prompt.modality}, {one.kind}", fontsize=7)
            for place, picture in zip(axes, (one.picture, *estimates.values()), strict=True):
                place.imshow(_shown(picture, one), cmap="gray", vmin=0, vmax=1)
                place.set(xticks=[], yticks=[])
                place.spines[:].set_visible(False)
            for place, picture in zip(axes[1:], estimates.values(), strict=True):
                place.set_xlabel(f"{psnr_within(picture[None], [one])[0]:.1f} dB", fontsize=7)
        for axes, title in zip(grid[0], titles, strict=True):
            axes.set_title(title, fontsize=8)
    return figure


def _example(study: Denoising, kind: str, strength: float) -> Slice:
    of_kind = [one for one in study.slices if one.kind == kind]
    noisy = torch.stack([one.noisy(strength, study.seed) for one in of_kind])
    return of_kind[int(np.argsort(psnr_within(noisy, of_kind), kind="stable")[len(of_kind) // 2])]


def _shown(picture: torch.Tensor, one: Slice) -> np.ndarray:
    """(H, W), of CT the window of soft tissue; or (H, W, 3) of a picture in colour."""
    if one.channels == 1 or one.prompt.modality == "CT":
        return picture[1].numpy()
    return picture.permute(1, 2, 0).numpy()
