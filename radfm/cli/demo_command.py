"""The command `radfm demo`. Its help needs none of the libraries that `radfm.cli.demo` imports."""

from pathlib import Path
from typing import Annotated

import typer

from radfm.cli.console import step


def demo(out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("runs/demo")) -> None:
    """Diagnose real studies, and fine-tune to a small synthetic hospital, in minutes.

    Example: radfm demo
    """
    with step("Starting"):
        from radfm.cli.demo import run
    run(out)
