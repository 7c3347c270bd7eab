"""The learnability gap in figures: macro AUCs of classifiers of images, reconstructions and latents, and a page.

Decisions:
- The gap is what a classifier of latents lacks to one of reconstructions, which show all that an autoencoder keeps.
  What reconstructions lack to images is what the autoencoder loses.
- A classifier closes the share of the gap by which it is above that of latents. The share is given where the gap is
  clear of zero.
- All classifiers are measured on the same test cases, in the same resamples of patients and seeds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from radfm.cli.console import DISCLAIMER
from radfm.data_prep.pages import environment
from radfm.data_prep.plots import svg_file, within_page
from radfm.data_prep.tables import write_text
from radfm.eval.figures import CSS
from radfm.eval.learnability_figure import COLOURS, gap_figure, kind_of
from radfm.eval.paired_macros import PairedMacros
from radfm.eval.scores import Scores
from radfm.presentation import BANDS, interval, percent_interval, value

IMAGES, RECONSTRUCTIONS, LATENTS = "images", "reconstructions", "latents"  # spaces that every study has
RESULTS, PAGE, FIGURE = "learnability.json", "learnability.html", "figures/learnability.svg"


@dataclass(frozen=True)
class SpaceStudy:
    """The classifiers of one space.

    Attributes:
        meaning: what they read, in words.
        tables: of scores, one for each seed.
        cost: of the tower for a slice, `flops` and `parameters`.
    """

    meaning: str
    tables: Sequence[Scores]
    cost: Mapping[str, int]


@dataclass(frozen=True)
class AutoencoderStudy:
    """All classifiers of one autoencoder.

    Attributes:
        facts: JSON-able: `fingerprint`, `size`, `factor`, `channels`, `psnr`, `ms_ssim`.
        spaces: name -> its classifiers, of `IMAGES`, `RECONSTRUCTIONS`, `LATENTS` and others.
    """

    facts: Mapping[str, Any]
    spaces: Mapping[str, SpaceStudy]


def write_learnability(
    out: Path,
    studies: Mapping[str, AutoencoderStudy],
    about: Mapping[str, Any],
    bootstraps: int = 1000,
    within: str | None = None,
) -> dict[str, Any]:
    """Measures, and writes learnability.json, learnability.html and the figure as SVG into a folder.

    Args:
        studies: name of an autoencoder -> its classifiers.
        about: JSON-able: `data` (fingerprint), `dataset` (name), `synthetic` (whether no case is a patient), `seeds`.
        within: a disorder is compared only with cases of the same group, such as "body part"; None: with all.
    Returns:
        JSON-able: `about`, `split`, `cases`, `patients`, `bands`, `bootstraps`, `within`, and `autoencoders`: name ->
        facts, `gap` (band -> figure), and `spaces`: name -> `meaning`, `cost`, and band -> figure of `auc`,
        `less_images`, `less_reconstructions` and `closed` (the share of the gap).
    """
    tables = {
        (name, space): of_space.tables for name, study in studies.items() for space, of_space in study.spaces.items()
    }
    macros = PairedMacros({_joined(*key): of_key for key, of_key in tables.items()}, bootstraps, within=within)
    result = {
        **about,
        "split": "test",
        "cases": macros.cases,
        "patients": macros.patients,
        "bands": macros.bands,
        "bootstraps": bootstraps,
        "within": within,
        "autoencoders": {name: _autoencoder(name, study, macros) for name, study in studies.items()},
    }
    write_text(out / RESULTS, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    figure = gap_figure(result)
    svg = svg_file(figure)
    write_text(out / FIGURE, svg)
    write_text(out / PAGE, _page(result, svg, figure.get_figwidth()))
    return result


def _autoencoder(name: str, study: AutoencoderStudy, macros: PairedMacros) -> dict[str, Any]:
    images, reconstructions, latents = (_joined(name, space) for space in (IMAGES, RECONSTRUCTIONS, LATENTS))
    spaces = {}
    for space, of_space in study.spaces.items():
        model = _joined(name, space)
        spaces[space] = {
            "meaning": of_space.meaning,
            "cost": dict(of_space.cost),
            "auc": macros.auc(model),
            "less_images": macros.difference(model, images),
            "less_reconstructions": macros.difference(model, reconstructions),
            "closed": macros.share_closed(model, latents, reconstructions) if _may_close(space) else None,
        }
    return {**study.facts, "gap": macros.difference(reconstructions, latents), "spaces": spaces}


def _may_close(space: str) -> bool:
    return space not in (IMAGES, RECONSTRUCTIONS, LATENTS)


def _joined(autoencoder: str, space: str) -> str:
    return f"{space} of {autoencoder}"


def _page(result: Mapping[str, Any], svg: str, inches: float) -> str:
    jinja = environment("radfm.eval")
    jinja.filters |= {
        "value": value,
        "ends": interval,
        "share_of_gap": lambda figure: percent_interval(figure).replace("-", "\N{MINUS SIGN}"),
    }
    page = jinja.get_template("learnability.html").render(
        result=result,
        figure=within_page(svg, CSS),
        inches=inches,
        colours=COLOURS,
        kind_of=kind_of,
        measured=[band for band in ("all", *BANDS) if result["bands"][band]["measured"]],
        disclaimer=DISCLAIMER,
        versions={name: version(name) for name in ("radfm", "torch", "timm", "diffusers")},
    )
    return page.rstrip() + "\n"
