"""Output of the commands: tables on standard output, progress on standard error, errors in one line.

Decisions:
- Rich and transformers are imported when they are used, so that `radfm --help` stays fast.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from typer.core import TyperArgument, TyperCommand

from radfm.checkpoints import DEFAULT
from radfm.progress import Progress

DISCLAIMER = "Research use only, not a medical device."
NO_PATIENTS = "SYNTHETIC: no case of this data set is a patient."

A_CHECKPOINT = f"Folder of a checkpoint, the name of one that comes with radfm ({DEFAULT})"
MODEL_HELP = f"{A_CHECKPOINT}, or its name on the Hugging Face Hub."

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program instead of a table.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")]


class PlainCommand(TyperCommand):
    """A command whose help shows `PATH` for an argument that may be repeated, without Python's `<list[Path]>`."""

    def format_options(self, context, formatter) -> None:
        for parameter in self.params:
            if isinstance(parameter, TyperArgument) and parameter.nargs != 1:
                parameter.display_type_rich = lambda ctx: ""
        super().format_options(context, formatter)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Names the extra of the package that brings a missing module. A context manager, and a decorator of functions.

    Raises:
        ValueError: A module is missing; the message names the module and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "radfm").partition(".")[0] == "radfm":  # a fault of ours, which no extra mends
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


def table_without_lines():
    """A table for `show` of a short and a long column, whose lines are wrapped below each other."""
    from rich.table import Table

    rows = Table.grid(padding=(0, 1))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    return rows


def show(content, **options) -> None:
    """Prints text or a table on standard output; `options` are those of rich's `Console.print`.

    Only text has markup. The cells of a table may hold names of files, in which brackets mean nothing.
    """
    from rich.console import Console

    Console(markup=isinstance(content, str)).print(content, **options)


@contextmanager
def step(description: str) -> Iterator[Progress]:
    """A progress bar on a terminal, removed at the end. Yields a function of (done, total) that updates it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress as ProgressBar

    console = Console(stderr=True)
    with ProgressBar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(escape(description), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def quiet_transformers() -> None:
    """Turns off the progress bars and warnings of transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def one_line(error: Exception) -> str:
    """The message of an error without line breaks; of an OSError, file and reason."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
