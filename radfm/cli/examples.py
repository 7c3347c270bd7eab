"""The command `radfm examples`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from radfm.cli.console import Json, show
from radfm.presentation import plural


def examples(
    target: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Where to write the studies; by default they are listed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the example studies that come with radfm, or write them into a folder.

    Example: radfm examples studies/
    """
    from radfm.examples import about, names, write

    found = [about(name) for name in names()]
    if target is not None:
        write(target)
    if as_json:
        print(json.dumps([asdict(example) | {"credit": example.credit} for example in found], indent=2))
    elif target is None:
        for example in found:
            show(f"[bold]{example.name}[/]  {example.title}", highlight=False)
            show(f"[dim]{example.credit}[/]\n", highlight=False)
    else:
        show(
            f"{plural(len(found), 'study', 'studies')} in {target}, and whom to credit in README.md. Try:",
            highlight=False,
        )
        show(f"  radfm diagnose {target / found[0].name}", highlight=False)
