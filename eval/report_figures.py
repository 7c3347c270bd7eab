"""Which figures a report has, and what each is drawn from. How they are drawn is in `radfm.eval.figures`.

A new figure is one entry of `draw_figures`, and its place in `templates/report.html`.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from radfm.data_prep.plots import svg_file
from radfm.eval import figures
from radfm.eval.bands import bands
from radfm.eval.curves import Curves
from radfm.eval.distributions import Distribution
from radfm.presentation import BANDS

_EXAMPLES = 4  # disorders of each band whose scores are drawn
_LEAST_POSITIVES = 5  # cases of such a disorder


def draw_figures(
    result: dict, curves: Mapping[str, Curves], scores: Mapping[str, Sequence[Distribution]], calibrated: Mapping
) -> dict[str, str]:
    """Name of the file -> SVG; figures that would be empty are left out.

    Args:
        result: of `radfm.eval.diagnosis.compare`.
        curves, scores, calibrated: of each model.
    """
    return {name: svg_file(figure) for name, figure in _figures(result, curves, scores, calibrated)}


def compared_attributes(result: dict) -> list[str]:
    """The attributes of which at least two groups can be measured."""
    model = next(iter(result["models"].values()))
    return [
        attribute
        for attribute, by in model["subgroups"].items()
        if sum(row["auc"] is not None for row in by["groups"].values()) > 1
    ]


def _figures(result: dict, curves, scores, calibrated) -> Iterator[tuple[str, Figure]]:
    first = next(iter(curves))
    yield "macro_auc", figures.macro_auc(result)
    for band in curves[first].macro:
        yield f"roc_{'overall' if band == 'all' else band}", figures.roc(curves, band)
    yield "auc_by_training", figures.auc_by_training(result["models"][first]["disorders"], result["least"])
    for number, (name, difference) in enumerate(result["differences"].items(), 1):
        yield f"differences_{number}", figures.differences(difference["disorders"], name, first)
    if scores[first]:
        yield "scores_pooled", figures.pooled_scores(scores[first])
        if examples := _examples(scores[first], result["least"]):
            yield "scores", figures.scores_of_disorders(examples)
    if measured := {name: both for name, both in calibrated.items() if both}:
        yield "reliability", figures.reliability(measured)
        yield "reliability_first", figures.reliability_of_first(measured)
    for attribute in compared_attributes(result):
        by_model = {name: model["subgroups"][attribute] for name, model in result["models"].items()}
        yield f"subgroups_{attribute.replace(' ', '_')}", figures.subgroups(by_model)


def _examples(scores: Sequence[Distribution], minima: tuple[int, int]) -> list[Distribution]:
    """The disorders of each band with the most positive cases here."""
    inside = bands(np.array([one.training_cases for one in scores]), minima)
    examples = []
    for band in BANDS:
        of_band = [one for one, is_in in zip(scores, inside[band], strict=True) if is_in and len(one.same)]
        of_band = [one for one in of_band if len(one.positive) >= _LEAST_POSITIVES]
        examples += sorted(of_band, key=lambda one: -len(one.positive))[:_EXAMPLES]
    return examples
