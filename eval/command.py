"""The command `radfm evaluate`.

Decisions:
- Nothing heavy is imported before a command needs it.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from radfm.console import Json, needs, quiet_transformers, step

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Measure what was trained.")


@app.command("text")
def text(
    ontology: Annotated[Path, typer.Option(help="An OBO file with cross references to ICD-10-CM.")],
    models: Annotated[
        list[str] | None, typer.Argument(help="Folders of text encoders; none: the baselines and link() alone.")
    ] = None,
    fold: Annotated[
        int | None,
        typer.Option(min=0, max=4, help="The terms to ask about; unset, those that the first model left out."),
    ] = None,
    unseen_by: Annotated[
        Path | None, typer.Option(help="Ask about the terms that this OBO file, trained on, does not have.")
    ] = None,
    link: Annotated[bool, typer.Option(help="Also measure link(), alone and with the first model.")] = True,
    prompts: Annotated[bool, typer.Option(help="Also compare the styles of prompts, by the first model.")] = False,
    as_json: Json = False,
) -> None:
    """Measure what a text encoder's space is worth, beside TF-IDF and all-MiniLM-L6-v2, on terms it never saw.

    Example: radfm evaluate text runs/text --ontology disease_ontology.obo
    """
    with needs("train"):
        from radfm.eval.text import as_markdown, evaluate
    quiet_transformers()
    with step(f"Measuring {', '.join(models or ['the baselines'])}") as progress:
        result = evaluate(models or [], ontology, fold, unseen_by, link, prompts, progress)
    print(json.dumps(result, indent=2) if as_json else as_markdown(result))
