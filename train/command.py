"""The commands `radfm train` and `radfm finetune`.

Decisions:
- Nothing heavy is imported before a command needs it.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from radfm.cli.console import MODEL_HELP, Json, needs, quiet_transformers, show, table


@needs("train")
def text(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of one that comes with radfm.")
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to it, such as held_out=0 or training.max_steps=100."),
    ] = None,
) -> None:
    """Teach a text encoder ICD-10-CM and ontologies. A killed run goes on.

    Example: radfm train text text.yaml "ontologies=[disease_ontology.obo]" output=runs/text
    """
    from radfm.train.text import read_config, train

    print(train(read_config(config, changes or ())))


@needs("train")
def diagnosis(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of one that comes with radfm.")
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to it, such as head=mlp or training.max_steps=100."),
    ] = None,
) -> None:
    """Teach a model to name the disorders of a case. A killed run goes on.

    Example: radfm train diagnosis diagnosis.yaml data=datasets/phantoms output=runs/phantoms
    """
    from radfm.train.diagnosis import read_config, train

    print(train(read_config(config, changes or ())))


@needs("train")
def finetune(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of a data set that radfm prepare made.")],
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    output: Annotated[Path, typer.Option(help="Folder for the new checkpoint; a killed run goes on there.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Other keys, such as patience=5 or training.max_steps=100."),
    ] = None,
    method: Annotated[str, typer.Option(help="auto (by the number of cases), linear, lora or full.")] = "auto",
    shots: Annotated[int | None, typer.Option(help="Learn from so many cases of each class only.")] = None,
    task: Annotated[
        str, typer.Option(help="multiclass (a case has at most one disorder), multilabel, or auto: what the data is.")
    ] = "auto",
    interpolate: Annotated[
        str, typer.Option(help="Share of the new weights, 0 to 1, the rest being the old ones; auto: by validation.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of the shots and of everything else.")] = 0,
    as_json: Json = False,
) -> None:
    """Fit a checkpoint to your own cases, and keep what it knew.

    Example: radfm finetune datasets/mine --model checkpoint/ --output runs/mine
    """
    from radfm.train.finetune import finetune as run
    from radfm.train.finetune import settings

    quiet_transformers()
    given = {"data": str(data), "model": model, "output": str(output), "method": method, "shots": shots}
    given |= {"task": task, "interpolate": interpolate, "seed": seed}
    recipe = run(settings(given, changes or ()))
    if not recipe:  # of several processes, not the first
        return
    if as_json:
        print(json.dumps(recipe, indent=2))
    else:
        _print(data, output, recipe)


def _print(data: Path, output: Path, recipe: dict) -> None:
    cases, disorders, share = recipe["cases"], recipe["disorders"], recipe["interpolation"]["share"]
    learned = f"{disorders['data']:,} disorders from {cases['train']:,} cases, of {disorders['vocabulary']:,} it names"
    print(f"{output}: {recipe['method']}, {recipe['task']}; {learned}; share of the new weights {share:g}")
    before, after = recipe["before"], recipe["after"]
    figures = table(f"{cases['validation']:,} validation cases", ">before", ">after")
    for name in after:
        if name != "disorders":
            figures.add_row(name.replace("_", " "), f"{before[name]:.3f}", f"{after[name]:.3f}")
    show(figures)
    own, all_of_them = recipe["thresholds_of_their_own"], disorders["data"]
    print(f"Thresholds: {own:,} of {all_of_them:,} disorders have their own, by the best F1; the others share one.")
    print("The validation cases also chose how to learn: measure on the test split, or on other data. Next:")
    print(f"  radfm evaluate {data} --model {output}")
    print(f"  radfm diagnose YOUR_STUDY --model {output}")
