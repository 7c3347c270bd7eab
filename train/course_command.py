"""The command `radfm evaluate course`, which trains the recurrent model that it compares with."""

import json
from pathlib import Path
from typing import Annotated

import typer

from radfm.cli.console import A_CHECKPOINT, DISCLAIMER, NO_PATIENTS, Json, needs, quiet_transformers, show, step, table
from radfm.eval.command_inputs import Bootstraps, Data, Device
from radfm.presentation import interval_cell


@needs("train")
def course(
    data: Data,
    model: Annotated[Path, typer.Option(metavar="MODEL", help=f"{A_CHECKPOINT}.")],
    out: Annotated[Path, typer.Option(help="Folder of results and scores; a killed run goes on there.")],
    seeds: Annotated[int, typer.Option(min=1, help="Of the recurrent model.")] = 3,
    bootstraps: Bootstraps = 1000,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure whether changes of scores between dates agree with true changes.

    Beside each date alone, and a recurrent model over the embeddings of the dates.

    Example: radfm evaluate course datasets/follow_up --model radfm-phantom-mini --out studies/course
    """
    from radfm.train.course_study import course_study

    quiet_transformers()
    with step("Scoring each date") as progress:
        result = course_study(data, model, out, seeds, bootstraps, device, progress)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    marked = f" {NO_PATIENTS}" if result["synthetic"] else ""
    show(
        f"{result['steps']:,} steps from a date to the next, of {result['patients']:,} test patients; 95% intervals "
        f"from {result['bootstraps']:,} bootstrap resamples of the patients.{marked}",
        highlight=False,
    )
    rows = table("AUC", *(f">{name}" for name in result["pairs"]), f">direction, less\n{result['reference']}")
    for name, of_method in result["methods"].items():
        aucs = [interval_cell(figures["auc"]) for figures in of_method.values()]
        rows.add_row(name, *aucs, interval_cell(of_method["direction"]["less_reference"], "+.3f"))
    show(rows)
    rows = table("the disorder", ">steps", *(f">{word}" for word in next(iter(result["words"].values()))))
    for change, words in result["words"].items():
        count = result["counts"][change]
        rows.add_row(change, f"{count:,}", *(f"{n / count:.0%}" if count else "-" for n in words.values()))
    show(rows)
    show(f"Results: {out / 'course.html'}, {out / 'course.json'}", highlight=False, markup=False)
    show(f"[dim]{DISCLAIMER}[/]")
