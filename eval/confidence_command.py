"""The commands about how sure a model is: `radfm calibrate`, `radfm evaluate uncertainty | refusal | zero-shot`.

Decisions:
- Nothing heavy is imported before a command needs it.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from radfm.cli.console import A_CHECKPOINT, DISCLAIMER, Json, needs, quiet_transformers, show, step, table
from radfm.eval.command_inputs import (
    NAMED_MODEL,
    Bfloat16,
    Bootstraps,
    Data,
    Device,
    Limit,
    Names,
    Split,
    load_or_compute_scores,
    named_models,
    names_of_option,
    read_names,
)
from radfm.eval.comparison_tables import show_comparison
from radfm.eval.results_folder import save_tables
from radfm.presentation import interval_cell, percent_interval

CHANGED = f"{A_CHECKPOINT}; unless --output is given, it is changed."
_HUBS = 3  # names that are shown, lowered most and least


@needs("train")
def calibrate(
    data: Data,
    model: Annotated[Path, typer.Option(help=CHANGED)],
    output: Annotated[Path | None, typer.Option(help="Folder for a calibrated copy.")] = None,
    coverage: Annotated[float, typer.Option(help="Of the prediction sets.")] = 0.9,
    guarantee: Annotated[
        str, typer.Option(help="share (of a case's disorders, on average) or all (disorders of a case).")
    ] = "share",
    hubness: Annotated[
        bool,
        typer.Option(
            "--hubness",
            help="This alone, and first: lower names that are near to every case, by training cases without labels.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the cases that the reference is made of.")] = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Fit probabilities, thresholds, prediction sets and refusal.

    They are saved with the checkpoint, and so is what a case should be like.

    Example: radfm calibrate datasets/mine --model runs/mine
    """
    from radfm.eval.confidence import fit_confidence
    from radfm.eval.hubness import lower_hubs

    quiet_transformers()
    if hubness:
        with step(f"Looking for hubs of {model}") as progress:
            _show_hubs(lower_hubs(model, data, output, device, progress), output or model, data, as_json)
        return
    with step(f"Calibrating {model}") as progress:
        found = fit_confidence(model, data, output, coverage, guarantee, seed=seed, device=device, progress=progress)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    rows = table(f"{found['cases']:,} validation cases", ">before", ">after")
    for name, what in {
        "ece": "calibration error",
        "ece_first": "of first ranks",
        "brier": "Brier score",
        "log_loss": "log loss",
    }.items():
        rows.add_row(what, *(interval_cell(found[when][name], ".4f") for when in ("before", "after")))
    show(rows)
    disorders, sets, reference = found["disorders"], found["prediction_sets"], found["reference"]
    show(
        f"After: each patient by the fit to the others. Calibrated: {disorders['calibrated']:,} of "
        f"{disorders['vocabulary']:,} names; {found['thresholds_of_their_own']:,} have a threshold of their own\n"
        f"Sets: {_promise(sets)}, fitted to {sets['patients']:,} patients\n"
        f"Reference: {reference['training_scans']:,} scans of {reference['training_cases']:,} training cases, "
        f"{reference['validation_cases']:,} validation cases; {', '.join(reference['modalities'])}",
        highlight=False,
    )
    show(f"Saved with {output or model}. Next: radfm evaluate {data} --model {output or model}", markup=False)
    show(f"[dim]{DISCLAIMER}[/]")


def _show_hubs(found: dict, model: Path, data: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    names = list(found["lowered"].items())
    rows = table(f"{len(names):,} names, {found['cases']:,} training cases", ">logit")
    for name, shift in [*names[:_HUBS], *names[max(_HUBS, len(names) - _HUBS) :]]:
        rows.add_row(name, f"{shift:+.3f}")
    show(rows)
    show(f"Saved with {model}. Next: radfm evaluate {data} --model {model}", markup=False)
    show(f"[dim]{DISCLAIMER}[/]")


@needs("train")
def uncertainty(
    data: Data,
    model: Annotated[
        list[str],
        typer.Option(metavar="MODEL", help=f"{NAMED_MODEL}; several times: an ensemble."),
    ],
    dropout: Annotated[
        int | None, typer.Option(min=2, help="Of one checkpoint, so many passes with dropout left on, in their place.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Of dropout, for a checkpoint that was trained without.")] = None,
    log_odds: Annotated[
        bool,
        typer.Option("--log-odds", help="The mean of log odds, not of probabilities: for members of several kinds."),
    ] = False,
    split: Split = "test",
    out: Annotated[Path | None, typer.Option(help="File for the ensemble's table of scores, .parquet.")] = None,
    bootstraps: Bootstraps = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws, and of what is dropped.")] = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure an ensemble, and what its disagreement tells.

    Example: radfm evaluate uncertainty datasets/mine --model runs/mine0 --model runs/mine1 --model runs/mine2
    """
    from radfm.eval.uncertainty import KINDS, dropout_scores, ensemble, measure_uncertainty

    quiet_transformers()
    if dropout is None and (rate is not None or len(model) < 2):
        raise ValueError("give several models, or one and --dropout PASSES")
    if dropout is not None and len(model) > 1:
        raise ValueError(f"--dropout takes one checkpoint, not {len(model)}")
    if dropout is None:
        members = [load_or_compute_scores(Path(one), data, split, device=device) for one in model]
    else:
        with step(f"Scoring with {model[0]}") as progress:
            members = dropout_scores(model[0], data, split, dropout, rate, seed, progress, device)
    found = measure_uncertainty(members, bootstraps, seed, log_odds)
    if out is not None:
        ensemble(members, log_odds).scores.save(out)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    wrong = percent_interval(found["wrong"], 1)
    show(f"{found['cases']:,} cases with a disorder, split {split}; first rank wrong: {wrong}")
    rows = table(f"{found['members']} members", ">macro AUC", ">log loss", ">calibration error")
    for name, what in {"single": "the first", "mean": "their mean"}.items():
        auc, loss, ece = (found[name][figure] for figure in ("auc", "log_loss", "ece"))
        rows.add_row(what, "-" if auc is None else f"{auc:.3f}", f"{loss:.3f}", f"{ece:.4f}")
    show(rows)
    rows = table("uncertainty", ">AUC for wrong cases", ">mean error over coverages")
    for kind, worth in found["uncertainties"].items():
        rows.add_row(KINDS[kind], interval_cell(worth["error_auc"], ".3f"), f"{worth['aurc']:.3f}")
    show(rows)
    show(f"[dim]{DISCLAIMER}[/]")


@needs("train")
def refusal(
    data: Data,
    model: Annotated[Path, typer.Option(help="Folder of a checkpoint that radfm calibrate has seen.")],
    picture: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A file that no hospital would send, such as a photograph; several times."),
    ] = None,
    split: Split = "test",
    limit: Limit = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw the ROC curves, as roc.svg or roc.png.")] = None,
    bootstraps: Bootstraps = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise, the crops and the draws.")] = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure whether cases unlike the training data are found.

    Noise, pictures, and modalities that no training case has, beside the cases of a split.

    Example: radfm evaluate refusal datasets/mine --model runs/mine --picture cat.jpg
    """
    from radfm.data_prep import plots
    from radfm.eval import figures
    from radfm.eval.refusal import measure_refusal

    if figure is not None and figure.suffix.lower() not in (".svg", ".png"):
        raise ValueError(f"{figure}: --figure draws a picture, give it a name such as roc.svg")
    quiet_transformers()
    with step(f"Looking with {model}") as progress:
        found = measure_refusal(model, data, split, picture or (), limit, bootstraps, seed, device, progress)
    if figure is not None:
        drawn = figures.refusal(found["strangers"])
        figure.write_bytes(plots.png(drawn) if figure.suffix.lower() == ".png" else plots.svg_file(drawn).encode())
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    alarms = percent_interval(found["false_alarms"], 1)
    show(
        f"{found['cases']:,} cases, split {split}: {alarms} refused, meant to be {found['promised']:.1%}",
        highlight=False,
    )
    rows = table("unlike", ">cases", ">AUC", ">refused")
    for kind, told in found["strangers"].items():
        rows.add_row(kind, f"{told['cases']:,}", interval_cell(told["auc"], ".3f"), f"{told['refused']:.0%}")
    show(rows)
    show(f"[dim]{DISCLAIMER}[/]")


@needs("train")
def zero_shot(
    data: Data,
    model: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]MODEL", help=f"{A_CHECKPOINT}; several times.")
    ] = None,
    open_clip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ARCHITECTURE=FILE", help="Architecture and file of weights, or local-dir:FOLDER; several times."
        ),
    ] = None,
    names: Names = None,
    only: Annotated[
        str | None, typer.Option(help="Disorders to measure: a file, or names split by commas, as those withheld.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help='What is said of a name, "{}" standing for it; several are averaged.'),
    ] = None,
    normal: Annotated[
        bool, typer.Option("--normal", help="Measure whether a case is normal, by its likeliest disorder.")
    ] = False,
    within: Annotated[str | None, typer.Option(help="As in radfm evaluate cases.")] = None,
    split: Split = "test",
    out: Annotated[Path | None, typer.Option(help="Folder for the tables of scores, to be compared further.")] = None,
    bootstraps: Bootstraps = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    bf16: Bfloat16 = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Compare models by text alone, open_clip models too.

    Example: radfm evaluate zero-shot datasets/mine --model runs/mine --open-clip ViT-B-32=weights.pt
    """
    from radfm.eval.diagnosis import compare
    from radfm.eval.zero_shot import abnormal, open_clip_scores, zero_shot_scores

    quiet_transformers()
    if not (model or open_clip):
        raise ValueError("give --model or --open-clip, or both")
    if normal and only is not None:
        raise ValueError("--normal asks whether a case has any disorder: leave out --only, or measure in two commands")
    asked = {"names": None if names is None else read_names(names), "templates": template or ["{}"], "bf16": bf16}
    recipes = {}
    for name, path in named_models(model or []):
        with step(f"Asking {path}") as progress:
            table_ = zero_shot_scores(path, data, split, device=device, progress=progress, **asked)
        recipes.setdefault(name, []).append(table_)
    for text in open_clip or []:
        architecture, _, weights = (text, "", None) if text.startswith("local-dir:") else text.partition("=")
        with step(f"Asking {architecture}") as progress:
            table_ = open_clip_scores(
                architecture, weights or None, data, split, device=device, progress=progress, **asked
            )
        recipes[table_.about["model"]] = [table_]
    if out is not None:
        for name, tables in recipes.items():
            save_tables(out, name, tables)
    if normal:
        recipes = {name: [abnormal(one) for one in tables] for name, tables in recipes.items()}
    chosen = None if only is None else names_of_option(only)
    with step("Measuring") as progress:
        result = compare(recipes, chosen, within=within, bootstraps=bootstraps, seed=seed, progress=progress)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        show_comparison(result)


def _promise(sets: dict) -> str:
    if sets["guarantee"] == "all":
        return f"all disorders of a case in {sets['coverage']:.0%} of cases"
    return f"{sets['coverage']:.0%} of a case's disorders on average"
