"""A figure of anomaly maps: slices, their reconstructions, raw errors and standardised maps, with masks as outlines.

Decisions:
- Cases are not chosen by how well they look: abnormal ones are evenly spaced from the highest to the lowest score,
  those with masks before others; the normal ones are that with the highest and that with the median score.
- The slice is that with the highest value of the standardised map. All maps have one scale: a map can be dark.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from radfm.data_prep.plots import STYLE
from radfm.data_prep.stored_cases import StoredCases
from radfm.eval.anomaly import MAPS, AnomalyScores, Detector
from radfm.eval.predict import labelled_cases
from radfm.eval.saliency import overlay

_HIGHEST = 6.0  # standard deviations that have the brightest colour
_CELL = 1.5  # inches


def draw_maps(detector: Detector, found: AnomalyScores, data: str | Path, split: str, abnormal: int = 4) -> Figure:
    """A row for each chosen case: slice with the outline of its masks, reconstruction, error, and standardised maps."""
    cases = labelled_cases(data, split)
    row_of = {row["case_id"]: i for i, row in enumerate(cases.rows)}
    chosen = [(i, row_of[found.case_ids[i]]) for i in _chosen(found, cases, row_of, abnormal)]
    kinds = [kind for kind in ("reconstruction", "diffusion") if MAPS[kind] in found.scores]
    titles = ["slice", "reconstruction", "error", *(MAPS[kind] for kind in kinds)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_CELL * len(titles), _CELL * len(chosen) + 0.3), layout="constrained")
        grid = figure.subplots(len(chosen), len(titles), squeeze=False)
        for axes, (i, row) in zip(grid, chosen, strict=True):
            name = ", ".join(cases.rows[row]["disorders"]) or ("abnormal" if found.abnormal[i] else "normal")
            axes[0].set_ylabel(name if len(name) < 26 else f"{name[:24]}…", fontsize=6)
            _draw_case(axes, detector, cases, row, kinds)
        for axes, title in zip(grid[0], titles, strict=True):
            axes.set_title(title, fontsize=7)
        for axes in grid.flat:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    return figure


def _chosen(found: AnomalyScores, cases: StoredCases, row_of: dict[str, int], abnormal: int) -> list[int]:
    """Positions among the scored cases."""
    ranks = np.argsort(-found.scores[MAPS["reconstruction"]], kind="stable")
    ill, normal = (ranks[found.abnormal[ranks] == one] for one in (True, False))
    masked = [i for i in ill if cases.located(row_of[found.case_ids[i]]).any()]
    ill = np.array(masked if len(masked) >= abnormal else ill)
    spaced = ill[np.unique(np.linspace(0, len(ill) - 1, min(abnormal, len(ill))).round().astype(int))]
    return [*spaced.tolist(), *dict.fromkeys([int(normal[0]), int(normal[len(normal) // 2])])]


def _draw_case(axes: Sequence, detector: Detector, cases: StoredCases, row: int, kinds: Sequence[str]) -> None:
    """Draws the scan and the slice of a case that have the highest value of the standardised reconstruction error."""
    scan_rows = cases.rows[row]["scan_rows"]
    case, images = cases[row], detector.maker.images
    maps = [detector.maker(scan) for scan in case.scans]
    standardised = [detector.normal.standardised(one) for one in maps]
    number = int(np.argmax([one["reconstruction"].max() for one in standardised]))
    position = int(standardised[number]["reconstruction"].max((1, 2)).argmax())
    scan, index = case.scans[number], maps[number].taken[position]
    picture, decoded = detector.maker.reconstruction(scan, index)
    axes[0].imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes[1].imshow(decoded, cmap="gray", vmin=0, vmax=1)
    axes[2].imshow(np.abs(decoded - picture), cmap="magma", vmin=0, vmax=0.25)
    grey = (255 * picture).astype(np.uint8)
    for one, kind in zip(axes[3:], kinds, strict=True):
        values = np.clip(standardised[number][kind][position] / _HIGHEST, 0, 1)
        fine = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], picture.shape, mode="bilinear")
        one.imshow(overlay(grey, fine[0, 0].numpy()))
    for mask in cases.masks(scan_rows[number]).values():
        fitted = images.fit(torch.from_numpy(mask[index][None, None].astype(np.float32)), scan.spacing_mm)[0, 0].numpy()
        if fitted.max() > 0.5:
            for one in (axes[0], *axes[3:]):
                one.contour(fitted, [0.5], colors="#31d0c0", linewidths=0.8)
