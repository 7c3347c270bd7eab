"""The commands `radfm train` and `radfm finetune`.

Decisions:
- torch and transformers are imported when a command runs.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from radfm.cli.console import MODEL_HELP, Json, needs, quiet_transformers, show, table


@needs("train")
def text(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of one that is part of radfm.")
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to it, such as data.held_out=0 or training.max_steps=100."),
    ] = None,
) -> None:
    """Train a text encoder on ICD-10-CM and ontologies. The same command resumes a killed run.

    Example: radfm train text text.yaml "data.ontologies=[disease_ontology.obo]" output=runs/text
    """
    from radfm.train.text import read_text_config, train

    print(train(read_text_config(config, changes or ())))


@needs("train")
def diagnosis(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of one that is part of radfm.")
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to it, such as model.head=mlp or training.max_steps=100."),
    ] = None,
) -> None:
    """Train a model to diagnose cases. The same command resumes a killed run.

    Example: radfm train diagnosis diagnosis.yaml data=datasets/phantoms output=runs/phantoms
    """
    from radfm.train.diagnosis import train
    from radfm.train.diagnosis_config import read_diagnosis_config

    print(train(read_diagnosis_config(config, changes or ())))


@needs("train")
def autoencoder(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of one that is part of radfm.")
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to it, such as model.size=256 or training.max_steps=100."),
    ] = None,
) -> None:
    """Train an autoencoder of slices or volumes. The same command resumes a killed run.

    Example: radfm train autoencoder autoencoder.yaml data=datasets/phantoms output=runs/autoencoder
    """
    from radfm.train.autoencoder import train
    from radfm.train.autoencoder_config import read_autoencoder_config

    print(train(read_autoencoder_config(config, changes or ())))


@needs("train")
def latent_classifier(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] KEY=VALUE",
            help="A YAML file, or the name of one that is part of radfm, and changes to it. Default: "
            "latent_classifier.yaml.",
        ),
    ] = None,
) -> None:
    """Train a classifier that reads latents. The same command resumes a killed run.

    Example: radfm train latent-classifier data=datasets/latents model.teacher=runs/diagnosis
    data.reconstructions=datasets/reconstructions output=runs/latent_classifier
    """
    from radfm.train.diagnosis import train
    from radfm.train.diagnosis_config import read_diagnosis_config

    config, *changes = given if given and "=" not in given[0] else ("latent_classifier.yaml", *(given or ()))
    print(train(read_diagnosis_config(config, changes)))


@needs("train")
def diffusion(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of one that is part of radfm.")
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to it, such as data.by_disorder=0 or training.bf16=true."),
    ] = None,
) -> None:
    """Train a generator of latents by diffusion. The same command resumes a killed run.

    Example: radfm train diffusion diffusion.yaml data=datasets/mine-latents model.autoencoder=runs/autoencoder
    """
    from radfm.train.diffusion import train
    from radfm.train.diffusion_config import read_diffusion_config

    print(train(read_diffusion_config(config, changes or ())))


@needs("train")
def finetune(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of a data set that radfm prepare made.")],
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    output: Annotated[Path, typer.Option(help="Folder for the new checkpoint; a killed run is resumed there.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Other keys, such as patience=5 or training.max_steps=100."),
    ] = None,
    method: Annotated[str, typer.Option(help="auto (by the number of cases), linear, lora or full.")] = "auto",
    shots: Annotated[int | None, typer.Option(help="Number of training cases of each class; unset: all.")] = None,
    task: Annotated[
        str, typer.Option(help="multiclass (a case has at most one disorder), multilabel, or auto: as the data.")
    ] = "auto",
    interpolate: Annotated[
        str, typer.Option(help="Share of the new weights, 0 to 1, the rest being the old ones; auto: by validation.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of everything random, such as the choice of cases by --shots.")] = 0,
    as_json: Json = False,
) -> None:
    """Fine-tune a checkpoint on your own cases, and keep what it knows.

    Example: radfm finetune datasets/mine --model checkpoint/ --output runs/mine
    """
    from radfm.train.finetune import finetune as run
    from radfm.train.finetune_config import finetune_config

    quiet_transformers()
    given = {
        "output": str(output),
        "seed": seed,
        "method": method,
        "task": task,
        "data": {"path": str(data), "shots": shots},
        "model": {"checkpoint": model},
    }
    recipe = run(finetune_config(given, [f"interpolate={interpolate}", *(changes or ())]))
    if not recipe:  # all processes but the first one
        return
    if as_json:
        print(json.dumps(recipe, indent=2))
    else:
        _print(data, output, recipe)


def _print(data: Path, output: Path, recipe: dict) -> None:
    cases, disorders, share = recipe["cases"], recipe["disorders"], recipe["interpolation"]["share"]
    trained = f"{disorders['data']:,} of {disorders['vocabulary']:,} disorders, from {cases['train']:,} cases"
    print(f"{output}: {recipe['method']}, {recipe['task']}; {trained}; share of the new weights {share:g}")
    before, after = recipe["before"], recipe["after"]
    figures = table(f"{cases['validation']:,} validation cases", ">before", ">after")
    for name in after:
        if name != "disorders":
            figures.add_row(name.replace("_", " "), f"{before[name]:.3f}", f"{after[name]:.3f}")
    show(figures)
    own, all_of_them = recipe["thresholds_of_their_own"], disorders["data"]
    print(f"Thresholds: {own:,} of {all_of_them:,} disorders have their own, by the best F1; the others share one.")
    print("The validation cases also chose the training: evaluate on the test split, or on other data. Next:")
    print(f"  radfm evaluate {data} --model {output}")
    print(f"  radfm diagnose YOUR_STUDY --model {output}")
