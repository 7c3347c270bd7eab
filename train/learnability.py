"""The learnability gap of autoencoders: one classifier, trained on images, on reconstructions and on latents.

    radfm evaluate learnability datasets/mine --autoencoder runs/autoencoder --out learnability

After Dombrowski et al. 2026, The Learnability Gap in Medical Latent Diffusion, arXiv:2605.17087, with the controls of
`SPACES` that it lacks.

Decisions:
- One recipe for all spaces, `learnability.yaml`: the same ConvNeXt with random weights, cases, steps and seeds. What
  differs is a row of `SPACES`.
- The images have the size of the autoencoder's: reconstructions differ from them in nothing but the autoencoder.
- The control of equal compute has the stem of stride 1 and more channels, as many as make a latent cost what an image
  costs the image classifier. It is left out where the stem of stride 1 alone costs that.
- The teacher of the distilled classifier is the image classifier of the same seed. It scores reconstructions, which can
  be made of latents.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import log2
from pathlib import Path
from typing import Any, Literal

from radfm.data_prep.joined_cases import is_synthetic
from radfm.data_prep.latents import prepare_latents, prepare_reconstructions
from radfm.data_prep.stored_cases import load
from radfm.eval.learnability import AutoencoderStudy, SpaceStudy, write_learnability
from radfm.eval.scores import Scores
from radfm.latents.autoencoders import Autoencoder
from radfm.progress import Progress, no_progress
from radfm.train.diagnosis_config import DiagnosisTraining
from radfm.train.studies import Run, begin_study, finish_runs, prepare_once
from radfm.train.tower_cost import tower_cost, widened_to

# Arguments that only the tower of latents has: see `radfm.latent_tower_radfm`.
_OF_LATENT_TOWERS = ("in_chans", "patch_size", "noise_conditioned", "mask_share", "max_sigma")
_LARGEST_STRIDE = 32  # of a ConvNeXt
_DISTILLATION = {"diagnosis": 0.5, "distillation": 0.5}  # weights of the objectives


@dataclass(frozen=True)
class Space:
    """What a classifier is trained on, and how it differs from the others.

    Attributes:
        name, meaning: for tables and pages.
        reads: the data.
        stem: stride of the ConvNeXt's first convolution.
        costs_as_images: whether it has so many channels that a latent costs what an image does.
        distilled: whether it is conditioned on noise, and distilled from the image classifier.
        is_control: whether it explains the gap, and is not part of the method.
    """

    name: str
    meaning: str
    reads: Literal["images", "reconstructions", "latents"]
    stem: int = 4
    costs_as_images: bool = False
    distilled: bool = False
    is_control: bool = False


SPACES = (
    Space("images", "the pictures, at the size of the autoencoder's", "images"),
    Space("reconstructions", "the pictures after encoding and decoding", "reconstructions"),
    Space("latents", "with a stem of stride 4, as published", "latents"),
    Space("latents, stem 1", "with a stem of stride 1: no position is lost", "latents", stem=1, is_control=True),
    Space(
        "latents, equal compute",
        "with a stem of stride 1, and as wide as makes it cost what the image classifier costs",
        "latents",
        stem=1,
        costs_as_images=True,
        is_control=True,
    ),
    Space(
        "latents, distilled",
        "with a stem of stride 4, conditioned on noise, and distilled from the image classifier",
        "latents",
        distilled=True,
    ),
)


def learnability(
    data: str | Path,
    autoencoders: Mapping[str, str | Path],
    out: Path,
    config: DiagnosisTraining,
    seeds: int = 3,
    controls: bool = True,
    bootstraps: int = 1000,
    within: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Trains and measures all classifiers, or continues a study that was killed; writes the page and the figures.

    Args:
        data: folder that `radfm prepare` made, with a training and a test split.
        autoencoders: name -> folder or Hub name.
        out: folder of the study.
        config: the recipe of all classifiers; data, seed and what the tower reads are set here.
        seeds: number of seeds, from 0.
        controls: whether the controls of `SPACES` are trained, too.
        bootstraps: number of resamples of the test patients.
        within: a disorder is compared only with cases of the same group, such as "body part"; None: with all.
        progress: called with the number of finished trainings, and of all.
    Returns:
        The content of learnability.json, see `radfm.eval.learnability.write_learnability`.
    Raises:
        ValueError: the recipe does not start from random weights or has no ConvNeXt, an autoencoder is of volumes, or
            the folder holds another study.
        FileNotFoundError: there is no such data set or autoencoder.
    """
    _refuse_recipe(config)
    cases, out = load(data), Path(out)
    fingerprint = cases.record["fingerprint"]
    begin_study(out, config, data=fingerprint)
    spaces = [space for space in SPACES if controls or not space.is_control]
    sets = {name: _DerivedSets.prepare(Path(data), out, name, folder) for name, folder in autoencoders.items()}
    towers = {
        (name, space): _vision(config, of_name, space)
        for name, of_name in sets.items()
        for space in spaces
        if not (space.costs_as_images and _costs_as_images(config, of_name))
    }
    runs = {
        (name, space): [_run(out, config, sets[name], towers, name, space, seed) for seed in range(seeds)]
        for name, space in towers
    }
    distinct = {run.name: run for of_space in runs.values() for run in of_space}
    tables = finish_runs(out, list(distinct.values()), progress)

    def measured(name: str, space: Space) -> SpaceStudy:
        of_seeds = [_as_of(tables[run.name], fingerprint) for run in runs[name, space]]
        return SpaceStudy(space.meaning, of_seeds, tower_cost(towers[name, space]))

    studies = {
        name: AutoencoderStudy(
            of_name.facts, {space.name: measured(name, space) for space in spaces if (name, space) in towers}
        )
        for name, of_name in sets.items()
    }
    about = {"data": fingerprint, "dataset": cases.folder.name, "synthetic": is_synthetic(cases.record)}
    return write_learnability(out, studies, about | {"seeds": seeds}, bootstraps, within)


@dataclass(frozen=True)
class _DerivedSets:
    """What an autoencoder makes of a data set: the folder of each space, and what is known of it."""

    slug: str
    folders: dict[str, Path]
    size: int
    latents: dict[str, Any]
    facts: dict[str, Any]

    @classmethod
    def prepare(cls, data: Path, out: Path, name: str, autoencoder: str | Path) -> "_DerivedSets":
        network = Autoencoder.from_pretrained(autoencoder)
        if network.spatial_dims != 2:
            raise ValueError(f"{autoencoder} reads volumes: give an autoencoder of slices")
        slug = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        folders = {kind: out / "data" / f"{slug}-{kind}" for kind in ("reconstructions", "latents")}
        decoded = prepare_once(
            folders["reconstructions"], lambda folder: prepare_reconstructions(data, folder, autoencoder)
        )
        latents = prepare_once(folders["latents"], lambda folder: prepare_latents(data, folder, autoencoder))["latents"]
        facts = {
            "fingerprint": latents["autoencoder"],
            "size": network.size,
            "factor": network.factor,
            "channels": network.channels,
            "psnr": decoded["reconstructions"]["psnr"],
            "ms_ssim": decoded["reconstructions"]["ms_ssim"],
        }
        return cls(slug, {"images": data, **folders}, network.size, latents, facts)


def _run(
    out: Path,
    config: DiagnosisTraining,
    sets: _DerivedSets,
    towers: Mapping[tuple[str, Space], dict[str, Any]],
    autoencoder: str,
    space: Space,
    seed: int,
) -> Run:
    """The training of one classifier. All autoencoders of one size share the training on images."""
    of = sets.size if space.reads == "images" else sets.slug
    name = f"{space.name.replace(', ', '-').replace(' ', '-')}-{of}-{seed}"
    model, data, objectives, needs = config.model, config.data, config.objectives, None
    model = replace(model, architecture=model.architecture | {"vision_config": towers[autoencoder, space]})
    data = replace(data, path=str(sets.folders[space.reads]))
    if space.distilled:
        needs = _run(out, config, sets, towers, autoencoder, SPACES[0], seed)
        model = replace(model, teacher=needs.config.output)
        data = replace(data, reconstructions=str(sets.folders["reconstructions"]))
        objectives = replace(objectives, weights=objectives.weights | _DISTILLATION)
    output = str(out / "runs" / name)
    trained = replace(config, output=output, seed=seed, data=data, model=model, objectives=objectives)
    return Run(name, trained, sets.folders[space.reads], needs)


def _vision(config: DiagnosisTraining, sets: _DerivedSets, space: Space) -> dict[str, Any]:
    """Arguments of `RadFMVisionConfig` for the classifier of a space."""
    given = dict(config.model.architecture["vision_config"])
    arguments = dict(given.get("tower_args") or {})
    of_images = {key: value for key, value in arguments.items() if key not in _OF_LATENT_TOWERS}
    on_images = given | {"family": "resnet", "image_size": sets.size, "tower_args": of_images}
    if space.reads != "latents":
        return on_images
    side = sets.latents["size"][-1]
    arguments |= {
        "in_chans": sets.latents["channels"],
        "patch_size": space.stem,
        "output_stride": min(_LARGEST_STRIDE, max(8, 2 ** int(log2(side)))),  # a small latent is not padded
        "noise_conditioned": space.distilled,
        "mask_share": arguments.get("mask_share", 0.2) if space.distilled else 0.0,  # pictures are not masked either
    }
    on_latents = given | {"family": "latent", "image_size": side, "tower_args": arguments}
    return widened_to(on_latents, tower_cost(on_images)["flops"]) if space.costs_as_images else on_latents


def _costs_as_images(config: DiagnosisTraining, sets: _DerivedSets) -> bool:
    """Whether the control with a stem of stride 1 costs what the image classifier costs already, up to a tenth."""
    stem_1 = next(space for space in SPACES if space.stem == 1 and not space.costs_as_images)
    latents, images = (tower_cost(_vision(config, sets, space))["flops"] for space in (stem_1, SPACES[0]))
    return abs(latents / images - 1) < 0.1


def _as_of(table: Scores, fingerprint: str) -> Scores:
    """The table of scores under the fingerprint of the data set that its own was derived from."""
    return replace(table, about=table.about | {"data": fingerprint})


def _refuse_recipe(config: DiagnosisTraining) -> None:
    tower = (config.model.architecture.get("vision_config") or {}).get("tower", "")
    for wrong, reason in _wrong_in(config, tower):
        if wrong:
            raise ValueError(reason)


def _wrong_in(config: DiagnosisTraining, tower: str) -> Iterator[tuple[Any, str]]:
    model = config.model
    yield (
        model.checkpoint or model.tower_weights or model.frozen,
        "spaces are compared by classifiers with random weights: leave out model.checkpoint, tower_weights and frozen",
    )
    yield (
        "convnext" not in tower,
        f"model.architecture.vision_config.tower={tower}: the controls need the stem of a ConvNeXt of timm",
    )
    yield (
        config.augmentation.changes_pixels,
        "latents have no pixels to augment: leave affine, elastic, noise, contrast and mirror out of augmentation",
    )
