"""The commands about calibration and confidence: `radfm calibrate`, `radfm evaluate uncertainty | ood | zero-shot`.

Decisions:
- Nothing heavy is imported before a command needs it.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from radfm.cli.console import A_CHECKPOINT, DISCLAIMER, Json, needs, quiet_transformers, show, step, table
from radfm.cli.name_files import read_names
from radfm.eval.command_inputs import (
    NAMED_MODEL,
    Bfloat16,
    Bootstraps,
    Data,
    Device,
    Limit,
    Names,
    Split,
    Where,
    load_or_compute_scores,
    named_models,
    names_of_option,
)
from radfm.eval.comparison_tables import show_comparison
from radfm.eval.results_folder import save_tables
from radfm.presentation import interval_cell, percent_interval

if TYPE_CHECKING:
    from radfm.eval.conformal import Guarantee

_HUBS = 3  # names that are shown, with the lowest and the highest shifts
_ERRORS = {
    "ece": "calibration error",
    "ece_first": "of first ranks",
    "brier": "Brier score",
    "log_loss": "log loss",
}


@needs("train")
def calibrate(
    data: Data,
    model: Annotated[Path, typer.Option(help=f"{A_CHECKPOINT}; unless --output is given, it is changed.")],
    output: Annotated[Path | None, typer.Option(help="Folder for a calibrated copy.")] = None,
    coverage: Annotated[float, typer.Option(help="Of the prediction sets.")] = 0.9,
    guarantee: Annotated[
        str, typer.Option(help="share (of a case's disorders, on average) or all (disorders of a case).")
    ] = "share",
    hubness: Annotated[
        bool,
        typer.Option(
            "--hubness",
            help="Only lower the names that are similar to every case, by training cases without labels; before any "
            "other calibration.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample of training cases for OOD detection.")] = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Fit probabilities, thresholds, prediction sets and OOD detection.

    They are saved with the checkpoint.

    Example: radfm calibrate datasets/mine --model runs/mine
    """
    from radfm.eval.confidence import fit_confidence
    from radfm.eval.hubness import lower_hubs

    quiet_transformers()
    if hubness:
        with step(f"Measuring the hubness of {model}") as progress:
            shifts = lower_hubs(model, data, output, device, progress)
    else:
        with step(f"Calibrating {model}") as progress:
            record = fit_confidence(
                model, data, output, coverage, cast("Guarantee", guarantee), seed=seed, device=device, progress=progress
            )
    if as_json:
        print(json.dumps(shifts if hubness else record, indent=2, ensure_ascii=False))
        return
    if hubness:
        _show_hubs(shifts)
    else:
        _show_confidence(record)
    saved = output or model
    show(f"Saved with {saved}. Next: radfm evaluate {data} --model {saved}", markup=False)
    show(f"[dim]{DISCLAIMER}[/]")


@needs("train")
def uncertainty(
    data: Data,
    model: Annotated[list[str], typer.Option(metavar="MODEL", help=f"{NAMED_MODEL}; several times: an ensemble.")],
    dropout: Annotated[
        int | None, typer.Option(min=2, help="The ensemble is so many passes of one checkpoint with dropout left on.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Of dropout, for a checkpoint that was trained without.")] = None,
    log_odds: Annotated[
        bool,
        typer.Option("--log-odds", help="Average log odds, not probabilities: for members of several kinds."),
    ] = False,
    split: Split = "test",
    out: Annotated[Path | None, typer.Option(help="File for the ensemble's table of scores, .parquet.")] = None,
    bootstraps: Bootstraps = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap, and of the dropout.")] = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure an ensemble, and the uncertainty from its disagreement.

    Example: radfm evaluate uncertainty datasets/mine --model runs/mine0 --model runs/mine1 --model runs/mine2
    """
    from radfm.eval.predict import Evaluation
    from radfm.eval.uncertainty import dropout_scores, ensemble, measure_uncertainty

    quiet_transformers()
    if dropout is None and (rate is not None or len(model) < 2):
        raise ValueError("give several models, or one and --dropout PASSES")
    if dropout is not None and len(model) > 1:
        raise ValueError(f"--dropout takes one checkpoint, not {len(model)}")
    if dropout is None:
        members = [load_or_compute_scores(Path(one), Evaluation(data, split, device=device)) for one in model]
    else:
        with step(f"Scoring with {model[0]}") as progress:
            evaluation = Evaluation(data, split, device=device, progress=progress)
            members = dropout_scores(model[0], evaluation, dropout, rate, seed)
    result = measure_uncertainty(members, bootstraps, seed, log_odds)
    if out is not None:
        ensemble(members, log_odds).scores.save(out)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _show_uncertainty(result, split)


@needs("train")
def ood(
    data: Data,
    model: Annotated[Path, typer.Option(help="Folder of a checkpoint that was calibrated by radfm calibrate.")],
    picture: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A file that no hospital would send, such as a photograph; several times."),
    ] = None,
    split: Split = "test",
    limit: Limit = None,
    autoencoder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="An autoencoder of slices, for its reconstruction error.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw the ROC curves, as roc.svg or roc.png.")] = None,
    bootstraps: Bootstraps = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise, the crops and the bootstrap.")] = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure out-of-distribution detection.

    With noise, pictures, and modalities that no training case has, beside the cases of a split.

    Example: radfm evaluate ood datasets/mine --model runs/mine --picture cat.jpg
    """
    from radfm.data_prep import plots
    from radfm.eval import figures
    from radfm.eval.ood_detection import measure_ood
    from radfm.eval.predict import Evaluation

    if figure is not None and figure.suffix.lower() not in (".svg", ".png"):
        raise ValueError(f"{figure}: --figure draws a picture, give it a name such as roc.svg")
    quiet_transformers()
    with step(f"Extracting features with {model}") as progress:
        evaluation = Evaluation(data, split, device=device, progress=progress)
        result = measure_ood(model, evaluation, picture or (), limit, bootstraps, seed, autoencoder)
    if figure is not None:
        drawn = figures.ood_detection(result["kinds"])
        figure.write_bytes(plots.png(drawn) if figure.suffix.lower() == ".png" else plots.svg_file(drawn).encode())
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    rate = percent_interval(result["false_positive_rate"], 1)
    show(
        f"{result['cases']:,} cases, split {split}: {rate} detected as out of distribution, set to "
        f"{result['nominal']:.1%}",
        highlight=False,
    )
    by_error = [] if autoencoder is None else [">AUC by\nreconstruction error"]
    rows = table("out of distribution", ">cases", ">AUC", ">detected", *by_error)
    for kind, of_kind in result["kinds"].items():
        detected, errors = f"{of_kind['detected']:.0%}", of_kind.get("reconstruction_auc")
        cells = [f"{of_kind['cases']:,}", interval_cell(of_kind["auc"], ".3f"), detected]
        rows.add_row(kind, *cells, *([interval_cell(errors, ".3f")] if errors else []))
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
        str | None, typer.Option(help="Disorders to measure, such as those withheld: a file, or names and commas.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help='Text with "{}" in the place of the name; several are averaged.'),
    ] = None,
    normal: Annotated[
        bool, typer.Option("--normal", help="Measure whether a case is normal, by its highest-ranked disorder.")
    ] = False,
    within: Annotated[str | None, typer.Option(help="As in radfm evaluate cases.")] = None,
    where: Where = None,
    split: Split = "test",
    out: Annotated[Path | None, typer.Option(help="Folder for the tables of scores, to be compared further.")] = None,
    bootstraps: Bootstraps = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    bf16: Bfloat16 = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Compare models by text alone, open_clip models too.

    Example: radfm evaluate zero-shot datasets/mine --model runs/mine --open-clip ViT-B-32=weights.pt
    """
    from radfm.eval.diagnosis import compare
    from radfm.eval.predict import Evaluation
    from radfm.eval.zero_shot import abnormal

    quiet_transformers()
    if not (model or open_clip):
        raise ValueError("give --model or --open-clip, or both")
    if normal and only is not None:
        raise ValueError("--normal measures whether a case has any disorder: leave out --only, or use two commands")
    evaluation = Evaluation(data, split, None if names is None else read_names(names), bf16=bf16, device=device)
    tables = _zero_shot_tables(model or [], open_clip or [], evaluation, template or ["{}"])
    if out is not None:
        for name, of_model in tables.items():
            save_tables(out, name, of_model)
    if normal:
        tables = {name: [abnormal(one) for one in of_model] for name, of_model in tables.items()}
    measured = None if only is None else names_of_option(only)
    with step("Measuring") as progress:
        result = compare(
            tables, measured, within=within, bootstraps=bootstraps, seed=seed, progress=progress, where=where or ()
        )
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        show_comparison(result)


def _zero_shot_tables(models: list[str], open_clip: list[str], evaluation, templates: list[str]) -> dict[str, list]:
    """Name of a model -> its tables of scores."""
    from dataclasses import replace

    from radfm.eval.zero_shot import open_clip_scores, zero_shot_scores

    tables: dict[str, list] = {}
    for name, path in named_models(models):
        with step(f"Scoring with {path}") as progress:
            scores = zero_shot_scores(path, replace(evaluation, progress=progress), templates)
        tables.setdefault(name, []).append(scores)
    for text in open_clip:
        architecture, _, weights = (text, "", None) if text.startswith("local-dir:") else text.partition("=")
        with step(f"Scoring with {architecture}") as progress:
            scores = open_clip_scores(architecture, weights or None, replace(evaluation, progress=progress), templates)
        tables[scores.about["model"]] = [scores]
    return tables


def _show_confidence(record: dict) -> None:
    rows = table(f"{record['cases']:,} validation cases", ">before", ">after")
    for key, name in _ERRORS.items():
        rows.add_row(name, *(interval_cell(record[when][key], ".4f") for when in ("before", "after")))
    show(rows)
    disorders, sets, reference = record["disorders"], record["prediction_sets"], record["reference"]
    show(
        f"After: each patient by a fit to the others. Calibrated: {disorders['calibrated']:,} of "
        f"{disorders['vocabulary']:,} names; {record['thresholds_of_their_own']:,} have their own threshold\n"
        f"Prediction sets: {_guarantee(sets)}, fitted to {sets['patients']:,} patients\n"
        f"OOD detection: {reference['training_scans']:,} scans of {reference['training_cases']:,} training cases, "
        f"{reference['validation_cases']:,} validation cases; {', '.join(reference['modalities'])}",
        highlight=False,
    )


def _guarantee(sets: dict) -> str:
    if sets["guarantee"] == "all":
        return f"all disorders of a case in {sets['coverage']:.0%} of cases"
    return f"{sets['coverage']:.0%} of a case's disorders on average"


def _show_hubs(shifts: dict) -> None:
    names = list(shifts["lowered"].items())
    rows = table(f"{len(names):,} names, {shifts['cases']:,} training cases", ">logit")
    for name, shift in [*names[:_HUBS], *names[max(_HUBS, len(names) - _HUBS) :]]:
        rows.add_row(name, f"{shift:+.3f}")
    show(rows)


def _show_uncertainty(result: dict, split: str) -> None:
    from radfm.eval.uncertainty import KINDS

    wrong = percent_interval(result["wrong"], 1)
    show(f"{result['cases']:,} cases with a disorder, split {split}; first rank wrong: {wrong}")
    rows = table(f"{result['members']} members", ">macro AUC", ">log loss", ">calibration error")
    for key, name in {"single": "the first", "mean": "their mean"}.items():
        auc, loss, ece = (result[key][figure] for figure in ("auc", "log_loss", "ece"))
        rows.add_row(name, "-" if auc is None else f"{auc:.3f}", f"{loss:.3f}", f"{ece:.4f}")
    show(rows)
    rows = table("uncertainty", ">AUC for wrong cases", ">mean error over coverages")
    for kind, detection in result["uncertainties"].items():
        rows.add_row(KINDS[kind], interval_cell(detection["error_auc"], ".3f"), f"{detection['aurc']:.3f}")
    show(rows)
    show(f"[dim]{DISCLAIMER}[/]")
