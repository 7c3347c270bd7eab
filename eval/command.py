"""The command `radfm evaluate`.

Decisions:
- `radfm evaluate DATA ...` is short for `radfm evaluate cases DATA ...`: a word that is no command is the folder of a
  data set. A folder that has the name of a command is given as `./text`.
- The commands are listed in `radfm.cli.registry`.
- Nothing heavy is imported before a command needs it.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radfm.cli.console import A_CHECKPOINT, DISCLAIMER, Json, needs, quiet_transformers, show, step, table
from radfm.cli.name_files import read_names
from radfm.eval.command_inputs import (
    NAMED_MODEL,
    Bfloat16,
    Bootstraps,
    Data,
    Device,
    Folds,
    Least,
    Level,
    Limit,
    MinCases,
    Names,
    Only,
    Split,
    Where,
    Within,
    load_or_compute_folds,
    load_or_compute_scores,
    named_models,
    names_of_option,
)
from radfm.eval.comparison_tables import show_comparison
from radfm.eval.results_folder import write_results
from radfm.presentation import interval_cell

if TYPE_CHECKING:
    from radfm.eval.scores import Scores


@needs("train")
def cases(
    data: Data,
    model: Annotated[
        list[str],
        typer.Option(metavar="[NAME=]MODEL", help=f"{NAMED_MODEL}; several times. The same NAME again: seeds."),
    ],
    split: Split = "test",
    folds: Folds = None,
    names: Names = None,
    only: Only = None,
    min_cases: MinCases = 0,
    where: Where = None,
    level: Level = "disorder",
    within: Within = None,
    least: Least = (100, 30),
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html, its figures, and tables: of scores, metrics.csv, ...")
    ] = None,
    bootstraps: Bootstraps = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    bf16: Bfloat16 = False,
    device: Device = None,
    one_scan: Annotated[
        bool, typer.Option("--one-scan", help="Give the model one scan of each case, sampled by case, instead of all.")
    ] = False,
    history: Annotated[
        bool, typer.Option("--history/--no-history", help="Give models that read histories those of the cases.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Measure and compare models on the cases of a data set.

    Example: radfm evaluate datasets/mine --model KE=runs/ke0 --model KE=runs/ke1 --model baseline=runs/base
    """
    from radfm.eval.diagnosis import compare
    from radfm.eval.predict import Evaluation

    quiet_transformers()
    vocabulary = None if names is None else read_names(names)
    evaluation = Evaluation(data, split, names=vocabulary, one_scan=one_scan, history=history, bf16=bf16, device=device)
    tables: dict[str, list[Scores]] = {}
    for name, path in named_models(model):
        one = load_or_compute_folds(path, evaluation, folds) if folds else load_or_compute_scores(path, evaluation)
        tables.setdefault(name, []).append(one)
    measured = None if only is None else names_of_option(only)
    with step("Measuring") as progress:
        result = compare(tables, measured, level, within, least, bootstraps, seed, progress, where or (), min_cases)
    if out is not None:
        write_results(out, data, tables, result)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        show_comparison(result, out)


@needs("train")
def text(
    ontology: Annotated[Path, typer.Option(help="An OBO file with cross references to ICD-10-CM.")],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ENCODER",
            help="Folders of text encoders, or radfm-text-mini; none: the baselines and link() alone.",
        ),
    ] = None,
    fold: Annotated[
        int | None,
        typer.Option(min=0, max=4, help="The fold of terms to test on; unset, the one held out by the first model."),
    ] = None,
    unseen_by: Annotated[
        Path | None, typer.Option(help="Test on the terms that this OBO file, which was trained on, does not have.")
    ] = None,
    link: Annotated[bool, typer.Option(help="Also measure link(), alone and with the first model.")] = True,
    prompts: Annotated[bool, typer.Option(help="Also compare the styles of prompts, by the first model.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a text encoder on terms that it was not trained on.

    Beside TF-IDF and all-MiniLM-L6-v2.

    Example: radfm evaluate text runs/text --ontology disease_ontology.obo
    """
    from radfm.eval.text import as_markdown, evaluate

    quiet_transformers()
    with step(f"Measuring {', '.join(models or ['the baselines'])}") as progress:
        result = evaluate(models or [], ontology, fold, unseen_by, link, prompts, progress)
    print(json.dumps(result, indent=2) if as_json else as_markdown(result))


@needs("train")
def saliency(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of a data set with masks, such as phantoms.")],
    model: Annotated[Path, typer.Option(metavar="MODEL", help=f"{A_CHECKPOINT}.")],
    split: Split = "test",
    limit: Limit = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random weights and of the bootstrap.")] = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure whether saliency maps point to the lesion.

    Beside the centre of the scan, and the same network with random weights.

    Example: radfm evaluate saliency datasets/phantoms --model runs/mine --limit 100
    """
    from radfm.eval.localisation import localise
    from radfm.eval.predict import Evaluation

    quiet_transformers()
    with step(f"Computing saliency maps with {model}") as progress:
        evaluation = Evaluation(data, split, device=device, progress=progress)
        result = localise(model, evaluation, limit, seed)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        _show_localisation(result)


def _show_localisation(result: dict) -> None:
    from radfm.eval.localisation import MEASURES, NEAR, ROWS

    show(
        f"{result['tries']:,} lesions (a disorder on a scan that shows it) in {result['cases']:,} cases, "
        f"split {result['split']}; 95% intervals from bootstrap resamples of the patients",
        highlight=False,
    )
    rows = table("", *(">" + name.replace(" ", "\n", 1) for name in MEASURES.values()))  # to fit into 80 columns
    for row, name in ROWS.items():
        rows.add_row(name, *_cells(result["rows"][row]))
    for band, of_band in result["bands"].items():
        for row in ("model", "centre") if of_band["tries"] else ():
            rows.add_row(f"{row}, {band}\n{of_band['tries']:,} lesions", *_cells(of_band["rows"][row]))
    show(rows)
    show(f"Slices: within {NEAR} of one with the lesion, {result['key_slice_tries']:,} lesions", highlight=False)
    if result["left_out"]:
        show(f"Not in the checkpoint's list, and left out: {', '.join(result['left_out'])}", markup=False)
    show(f"[dim]{DISCLAIMER}[/]")


def _cells(measures: dict[str, dict | None]) -> list[str]:
    return [interval_cell(figure, between="–") for figure in measures.values()]
