"""What `radfm evaluate sharing` writes: a page with its figures, and a grid of samples beside training slices.

Decisions:
- The grid starts with the samples that are closest to a training slice for their modality and body part, which are the
  ones to look at; the others are evenly spaced up to the farthest.
- It shows training cases, so the folder stays where these may be, and the grid says so.
"""

import base64
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from radfm.cli.console import DISCLAIMER
from radfm.data_prep import plots
from radfm.data_prep.pages import environment
from radfm.data_prep.pictures import grey_slice
from radfm.data_prep.plots import FAINT, STYLE, axes_of
from radfm.data_prep.tables import write_text
from radfm.eval.figures import MODEL_COLOURS
from radfm.eval.neighbours import MODEL, PIXELS, Slices
from radfm.eval.sharing import COPIES, SPACES, FoundNeighbours
from radfm.presentation import interval, percent, value

GRID_NOTE = "Contains slices of training cases: share it no further than these."

_CLOSEST, _ROWS, _BLOCKS = 6, 6, 2  # rows of the grid with the closest samples; rows and blocks of columns
_CELL = 1.25  # inches


def write_page(out: Path, found: FoundNeighbours, result: dict) -> None:
    """Writes sharing.html, samples.png and distances.svg."""
    grid, distances = plots.png(draw_grid(found)), draw_distances(found)
    (out / "samples.png").write_bytes(grid)
    write_text(out / "distances.svg", plots.svg_file(distances))
    jinja = environment("radfm.eval")
    jinja.filters |= {"value": value, "ends": interval, "percent": percent}
    page = jinja.get_template("sharing.html").render(
        result=result,
        spaces=SPACES,
        copies=COPIES[result["autoencoder"] is not None],
        grid=base64.b64encode(grid).decode("ascii"),
        distances=plots.svg(distances),
        disclaimer=DISCLAIMER,
        version=version("radfm"),
    )
    write_text(out / "sharing.html", page)


def draw_grid(found: FoundNeighbours) -> Figure:
    """Samples beside their nearest training slice in pixels and in the model's space."""
    order = np.argsort(np.minimum(*(found.shares(space) for space in SPACES)), kind="stable")
    rest = order[_CLOSEST:]
    spaced = np.linspace(0, len(rest) - 1, min(_ROWS * _BLOCKS - _CLOSEST, len(rest))).round().astype(int)
    chosen = [*order[:_CLOSEST].tolist(), *rest[spaced].tolist()]
    rows = min(_ROWS, len(chosen))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_CELL * 3 * _BLOCKS, (_CELL + 0.22) * rows + 0.5), layout="constrained")
        figure.suptitle(GRID_NOTE, fontsize=7)
        axes = figure.subplots(rows, 3 * _BLOCKS, squeeze=False)
        for one in axes.flat:
            one.axis("off")
        for number, sample in enumerate(chosen):
            block, row = divmod(number, _ROWS)
            _draw_row(axes[row, 3 * block : 3 * block + 3], found, sample)
    return figure


def draw_distances(found: FoundNeighbours) -> Figure:
    """Cumulative distribution of the distances to the nearest training slice, of samples and of held-out slices."""
    with matplotlib.rc_context(STYLE):
        figure, first = axes_of(2.6)
        first.remove()
        for axes, (space, name) in zip(figure.subplots(1, len(SPACES), sharey=True), SPACES.items(), strict=True):
            pairs = ((found.of_held_out, f"real, {found.held_out_split}"), (found.of_samples, "samples"))
            for (of_space, label), (colour, _) in zip(pairs, MODEL_COLOURS, strict=False):
                distances = np.sort(of_space[space].distances)
                shares = np.arange(1, len(distances) + 1) / len(distances)
                axes.plot(distances, shares, color=colour, linewidth=1.5, drawstyle="steps-post", label=label)
            axes.set(xlabel=f"distance in {name}", ylim=(0, 1.005))
            axes.set_xlim(left=0)
            axes.grid(color=FAINT, linewidth=0.3)
        figure.axes[0].set_ylabel("share that is at most as far")
        figure.axes[0].legend(loc="lower right", handlelength=1.3)
    return figure


def _draw_row(axes, found: FoundNeighbours, sample: int) -> None:
    place = found.samples[sample]
    name = ", ".join(place.disorders) or "no disorder"
    titles = [name if len(name) < 26 else f"{name[:24]}…"]
    pictures = [_picture(found.samples, sample)]
    for space in (PIXELS, MODEL):
        neighbours = found.of_samples[space]
        titles.append(f"{SPACES[space]}: {neighbours.distances[sample]:.3f}")
        pictures.append(_picture(found.training, int(neighbours.indices[sample])))
    for one, title, picture in zip(axes, titles, pictures, strict=True):
        one.imshow(picture, cmap="gray")
        one.set_title(title, fontsize=6, pad=2)


def _picture(slices: Slices, index: int) -> np.ndarray:
    return grey_slice(slices.scan(index), 0)
