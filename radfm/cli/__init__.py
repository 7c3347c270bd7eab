"""The command `radfm`.

Decisions:
- `radfm --help` and the start of a command import no other command: see `radfm.cli.registry`.
- Invalid input ends in one line on standard error and a status other than 0, never in a traceback. Results go to
  standard output and everything else to standard error, so that a program can read the output of `--json`.
- Characters that the terminal does not have, and bytes of file names that are no UTF-8, are printed as question marks.
"""

import io
import sys
from typing import Annotated

import typer

from radfm.cli.console import DISCLAIMER, one_line
from radfm.cli.group import CommandGroup
from radfm.cli.memory import keep_freed_memory

UsageError = typer.BadParameter.__base__  # click's, which some versions of typer carry within themselves

app = typer.Typer(
    name="",  # the group of the registry's top level
    cls=CommandGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=f"Reads every scan of a case and names the disorders, with ICD-10-CM codes. {DISCLAIMER}",
)


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        status = app(standalone_mode=False)
    except UsageError as error:
        message = error.format_message().rstrip(".")
        print(f"radfm: {message}{'' if message.endswith('?') else '.'} Try --help.", file=sys.stderr)
        status = error.exit_code
    except (ValueError, OSError) as error:
        print(f"radfm: {one_line(error)}", file=sys.stderr)
        status = 1
    except (KeyboardInterrupt, typer.Abort):
        print("radfm: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    name = context.invoked_subcommand
    if version:
        from radfm import __version__

        print(__version__)
    elif name is None:
        print(context.get_help())
        raise typer.Exit(2)
    elif context.command.commands.entries[name].computes:
        keep_freed_memory()
