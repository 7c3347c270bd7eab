"""The command `radfm select`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from radfm.checkpoints import DEFAULT
from radfm.cli.console import A_CHECKPOINT, DISCLAIMER, Device, Json, needs, quiet_transformers, show, step
from radfm.eval.command_inputs import Data, names_of_option
from radfm.presentation import plural

Strategy = Annotated[
    str | None,
    typer.Option(
        help="random, typical, diverse, cover, uncertain, badge or rare; by default rare with --names, else cover "
        "where no case has a label, and badge where some have."
    ),
]


@needs("train")
def select(
    data: Data,
    out: Annotated[
        Path, typer.Option(metavar="TABLE", help="CSV to fill in, such as next.csv; its page is next.html.")
    ],
    budget: Annotated[int, typer.Option(min=1, help="Number of cases to label.")] = 50,
    model: Annotated[str, typer.Option(help=f"{A_CHECKPOINT}.")] = DEFAULT,
    strategy: Strategy = None,
    names: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Disorders that rare asks for: a file, or names separated by commas; by default those of the data.",
        ),
    ] = None,
    labelled: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Table that was filled in before; several times.")
    ] = None,
    split: Annotated[str, typer.Option(help="The pool: train, validation, test or all.")] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Of what is random.")] = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Choose the cases to label next, and write a page to label them.

    Cases with a label are known. Whole patients are chosen, and no two whose pictures are copies.

    Example: radfm select datasets/mine --model runs/mine --budget 50 --out next.csv
    """
    from radfm.eval.selection_page import write_selection
    from radfm.eval.selection_pool import select as run

    if out.suffix != ".csv" or out.is_dir():
        raise ValueError(f"{out}: --out writes a CSV, give it a name such as next.csv")
    quiet_transformers()
    asked = None if names is None else names_of_option(names)
    with step(f"Scoring with {model}") as progress:
        selection = run(data, model, budget, strategy, split, labelled or (), asked, seed, device, progress)
    page = write_selection(selection, out)
    facts = selection.facts
    if as_json:
        print(json.dumps(facts | {"table": str(out), "page": str(page)}, indent=2, ensure_ascii=False))
        return
    counts = f"{plural(facts['cases'], 'case')} of {plural(facts['patients'], 'patient')}"
    pool = f"{facts['pool']:,} without a label, {facts['known']:,} with one"
    show(f"{out}: {counts}, by the strategy {facts['strategy']} ({pool})", markup=False, highlight=False)
    if facts["cases"] < budget:
        left = f"{budget - facts['cases']:,} of the budget are left: the other patients have more cases"
        show(left, markup=False, highlight=False)
    show(f"Fill in {page}, then: radfm prepare labelled {data} NEW --labels labels.csv", markup=False, highlight=False)
    show(f"[dim]{DISCLAIMER}[/]")
