"""How the commands speak: tables on standard output, progress on standard error, errors in one line.

Decisions:
- Nothing is imported before it is needed, so that `radfm --help` stays quick.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

DISCLAIMER = "Research use only, not a medical device."

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program instead of a table.")]


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """What is imported in its block comes with an extra of radfm. Raises: ValueError, which names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
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
def step(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, gone when done; what it yields is told how much of how much is done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
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
