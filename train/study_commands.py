"""The commands `radfm evaluate learnability`, `augmentation`, `selection` and `transfer`: they train what they measure.

Decisions:
- They stand in the group `evaluate`, because their result is a comparison; the trained models are a means.
- torch and transformers are imported when a command runs.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from radfm.cli.console import A_CHECKPOINT, DISCLAIMER, NO_PATIENTS, Json, needs, quiet_transformers, show, step, table
from radfm.eval.command_inputs import Bootstraps, Data, Level, Within, named_models
from radfm.presentation import BANDS, interval_cell, percent_interval

_BANDS = {"all": "overall"} | {band: band for band in BANDS}

Out = Annotated[Path, typer.Option(help="Folder of the study; a killed one is continued there.")]
Seeds = Annotated[int, typer.Option(min=1, help="Number of seeds of each model, from 0. More can be added later.")]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe of all models, such as training.max_steps=100."),
]


@needs("train")
def learnability(
    data: Data,
    autoencoder: Annotated[
        list[str],
        typer.Option(metavar="[NAME=]DIR", help="Folder or Hub name of an autoencoder of slices; several times."),
    ],
    out: Out,
    changes: Changes = None,
    config: Annotated[
        Path, typer.Option(help="Recipe of the classifiers: a YAML file, or the name of one that is part of radfm.")
    ] = Path("learnability.yaml"),
    seeds: Seeds = 3,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls/--no-controls",
            help="Also train latents with a stem of stride 1, and with the compute of the image classifier.",
        ),
    ] = True,
    within: Within = None,
    bootstraps: Bootstraps = 1000,
    as_json: Json = False,
) -> None:
    """Measure what a classifier loses on the latents of an autoencoder.

    The same classifier is trained on images, on reconstructions and on latents. Several processes can share a study:
    each takes the next training that no other has.

    Example: radfm evaluate learnability datasets/mine --autoencoder runs/autoencoder --out learnability
    """
    from radfm.train.diagnosis_config import read_diagnosis_config
    from radfm.train.learnability import learnability as run

    quiet_transformers()
    recipe, autoencoders = read_diagnosis_config(config, changes or ()), dict(named_models(autoencoder))
    with step("Training classifiers") as progress:
        result = run(data, autoencoders, out, recipe, seeds, controls, bootstraps, within, progress)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    _show_head(result)
    for name, one in result["autoencoders"].items():
        closes = any((of_space["closed"] or {}).get("all") for of_space in one["spaces"].values())
        rows = table(name, *(f">{title}" for title in _BANDS.values()), *([">gap closed"] if closes else []))
        for space, of_space in one["spaces"].items():
            closed = (of_space["closed"] or {}).get("all")
            share = percent_interval(closed).replace(" (", "\n").removesuffix(")") if closed else "-"
            rows.add_row(space, *(_cell(of_space["auc"][band]) for band in _BANDS), *([share] if closes else []))
        rows.add_row("gap", *(_difference_cell(one["gap"][band]) for band in _BANDS), style="dim")
        show(rows)
    _show_tail(out / "learnability.html")


@needs("train")
def augmentation(
    data: Data,
    out: Out,
    changes: Changes = None,
    synthetic: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Synthetic data set, unfiltered; several times.")
    ] = None,
    filtered: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Synthetic data set that a classifier filtered.")
    ] = None,
    config: Annotated[
        Path, typer.Option(help="Recipe of the models: a YAML file, or the name of one that is part of radfm.")
    ] = Path("augmentation.yaml"),
    seeds: Seeds = 3,
    within: Within = None,
    bootstraps: Bootstraps = 1000,
    as_json: Json = False,
) -> None:
    """Measure whether synthetic training cases help, above all for rare disorders.

    Models are trained on real cases, on real cases with augmentation and resampling, and on synthetic cases beside
    these. Several processes can share a study: each takes the next training that no other has.

    Example: radfm evaluate augmentation datasets/mine --synthetic datasets/raw --filtered datasets/kept --out study
    """
    from radfm.train.augmentation_study import FILTERED, SYNTHETIC, augmentation_study
    from radfm.train.diagnosis_config import read_diagnosis_config

    quiet_transformers()
    recipe = read_diagnosis_config(config, changes or ())
    arms = {SYNTHETIC: synthetic or (), FILTERED: filtered or ()}
    with step("Training models") as progress:
        result = augmentation_study(data, arms, out, recipe, seeds, bootstraps, within, progress)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    _show_head(result)
    rows = table("arm", ">samples", *(f">{title}" for title in _BANDS.values()))
    for arm, one in result["arms"].items():
        rows.add_row(arm, f"{one['synthetic_cases']:,}", *(_cell(one["auc"][band]) for band in _BANDS))
    show(rows)
    best = result["best_without"]
    show(f"Difference to {best}, the best without synthetic cases by its tail", highlight=False, markup=False)
    rows = table("arm", *(f">{title}" for title in _BANDS.values()))
    for arm, one in result["arms"].items():
        if one["less_best_without"]:
            differences = [one["less_best_without"][band] for band in _BANDS]
            rows.add_row(arm, *map(_difference_cell, differences))
    show(rows)
    _show_tail(out / "augmentation.md")


@needs("train")
def selection(
    data: Data,
    model: Annotated[str, typer.Option(help=f"{A_CHECKPOINT}; it must not have been trained on the data.")],
    out: Out,
    strategies: Annotated[
        str, typer.Option(help="Names with commas between them; random is always among them.")
    ] = "random,typical,diverse,cover,uncertain,badge,rare",
    labels: Annotated[
        str, typer.Option(help="Numbers of labelled cases, with commas between them.")
    ] = "25,50,100,200,400",
    seeds: Annotated[int, typer.Option(min=2, help="Number of seeds, from 0. More can be added later.")] = 5,
    split: Annotated[str, typer.Option(help="Split of the test cases: test or validation.")] = "test",
    within: Within = None,
    strength: Annotated[float, typer.Option(min=0, help="Of the penalty of the linear probe.")] = 10.0,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many cases of the pool, evenly spaced.")] = None,
    as_json: Json = False,
) -> None:
    """Measure how many labels each strategy of radfm select needs.

    Annotation is simulated: the training split is the pool, whose labels are uncovered as they are chosen.

    Example: radfm evaluate selection datasets/mine --model radfm-open-mini --out selection
    """
    from radfm.train.selection_study import selection_study

    quiet_transformers()
    counts = _counts(labels)
    names = [name.strip() for name in strategies.split(",") if name.strip()]
    with step("Simulating annotation") as progress:
        result = selection_study(data, model, out, names, counts, seeds, split, within, strength, limit, progress)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    marked = f" {NO_PATIENTS}" if result["synthetic"] else ""
    show(
        f"Macro AUC on {result['test']:,} cases over the number of labels, {seeds} seeds, 95% intervals over seeds; "
        f"{result['without_labels']:.3f} without labels.{marked}",
        highlight=False,
    )
    rows = table("strategy", *(f">{count:,}" for count in result["labels"]))
    for name, one in result["strategies"].items():
        rows.add_row(name, *map(_cell, one["auc"]))
    show(rows)
    show("Difference to random with twice as many labels", highlight=False)
    compared = [i for i, figure in enumerate(result["strategies"]["random"]["less_random_doubled"]) if figure]
    rows = table("strategy", *(f">{result['labels'][i]:,}" for i in compared))
    for name, one in result["strategies"].items():
        if compared:
            rows.add_row(name, *(_difference_cell(one["less_random_doubled"][i]) for i in compared))
    show(rows)
    _show_tail(out / "selection.html")


@needs("train")
def transfer(
    data: Data,
    by: Annotated[str, typer.Option(help="What is left out in turn: source, site, scanner, or date.")],
    model: Annotated[str, typer.Option(help=f"{A_CHECKPOINT} that all trainings start from.")],
    out: Out,
    changes: Changes = None,
    method: Annotated[str, typer.Option(help="auto (by the number of cases), linear, lora or full.")] = "auto",
    level: Level = "disorder",
    least: Annotated[int, typer.Option(min=2, help="Least test cases of a part, and of a subgroup.")] = 20,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds of each model, from 0.")] = 1,
    bootstraps: Bootstraps = 1000,
    as_json: Json = False,
) -> None:
    """Measure what a model loses on a site that it was not trained on.

    Each source, site or scanner, or the newest years, is left out of a fine-tuning once, and measured. Several
    processes can share a study: each takes the next training that no other has.

    Example: radfm evaluate transfer datasets/mine --by site --model radfm-phantom-mini --out transfer
    """
    from radfm.eval.transfer import PAGE
    from radfm.train.finetune_config import finetune_config
    from radfm.train.transfer_study import transfer_study

    quiet_transformers()
    recipe = finetune_config({"method": method}, changes or ())
    with step("Training models") as progress:
        result = transfer_study(data, by, model, out, recipe, seeds, least, level, bootstraps, progress)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    marked = f" {NO_PATIENTS}" if result["synthetic"] else ""
    show(f"Macro AUC on the test cases of each part, with 95% intervals.{marked}", highlight=False)
    rows = table(f"left out, by {by}", ">cases", ">before", ">without it", ">with it, too", ">drop")
    for part in result["parts"]:
        aucs = [_cell(part["auc"][one]) for one in ("start", "without", "with")]
        rows.add_row(part["name"], f"{part['cases']:,}", *aucs, _difference_cell(part["drop"]))
    show(rows)
    for name, reason in result["skipped"].items():
        show(f"Not left out: {name}: {reason}", highlight=False, markup=False)
    _show_tail(out / PAGE)


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ValueError(f"--labels takes numbers such as 25,50,100, not {text!r}")
    return counts


def _cell(figure: dict | None) -> str:
    """A macro AUC; its interval has a hyphen, so that all bands fit into 80 characters beside the names."""
    return interval_cell(figure, between="-")


def _difference_cell(figure: dict | None) -> str:
    return interval_cell(figure, "+.3f", ".3f", ", ")


def _show_head(result: dict) -> None:
    marked = f" {NO_PATIENTS}" if result["synthetic"] else ""
    show(
        f"Macro AUC on {result['cases']:,} test cases of {result['patients']:,} patients, {result['seeds']} seeds; 95% "
        f"intervals from {result['bootstraps']:,} bootstrap resamples of patients and seeds.{marked}",
        highlight=False,
    )


def _show_tail(page: Path) -> None:
    show(f"Results: {page}, {page.with_suffix('.json')}", highlight=False, markup=False)
    show(f"[dim]{DISCLAIMER}[/]")
