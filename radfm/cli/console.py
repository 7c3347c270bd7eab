"""How the commands speak: tables on standard output, progress on standard error, errors in one line.

Decisions:
- Nothing is imported before it is needed, so that `radfm --help` stays quick.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from typer.core import TyperArgument, TyperCommand

from radfm.progress import Progress

DISCLAIMER = "Research use only, not a medical device."

A_CHECKPOINT = "Folder of a checkpoint, the name of one that comes with radfm (radfm-phantom-mini)"
ON_THE_HUB = f"{A_CHECKPOINT}, or its name on the Hugging Face Hub."

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program instead of a table.")]


class PlainCommand(TyperCommand):
    """For arguments that are given several times: help shows `PATH`, where typer would add Python's `<list[Path]>`."""

    def format_options(self, context, formatter) -> None:
        for parameter in self.params:
            if isinstance(parameter, TyperArgument) and parameter.nargs != 1:
                parameter.display_type_rich = lambda ctx: ""
        super().format_options(context, formatter)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """What is imported in its block, or in the function that it decorates, comes with an extra of radfm.

    Raises:
        ValueError: A module is missing; the message names the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "radfm").partition(".")[0] == "radfm":  # no extra has it
            raise
        raise ValueError(f"{error.name} is missing: pip install 'radfm[{extra}]'") from error


def table(*columns: str):
    """A plain table for `show`; a column whose name begins with ">" is aligned to the right."""
    from rich import box
    from rich.table import Table

    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        rows.add_column(column.removeprefix(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    return rows


def show(what, **options) -> None:
    from rich.console import Console

    Console().print(what, **options)


@contextmanager
def step(what: str) -> Iterator[Progress]:
    """A progress bar on a terminal, gone when done; what it yields is told how much of how much is done."""
    from rich.console import Console
    from rich.progress import Progress as ProgressBar

    console = Console(stderr=True)
    with ProgressBar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def quiet_transformers() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
