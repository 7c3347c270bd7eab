"""How a function that makes a `Source` becomes a command `radfm prepare SOURCE IN OUT`.

Decisions:
- The options of a source are the parameters of its function. The options of all sources, and the privacy options of
  hospital sources, are added to its signature, so that each is defined once.
"""

import inspect
import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radfm.cli.console import needs

if TYPE_CHECKING:
    from radfm.data_prep.plan import Source
    from radfm.data_prep.pseudonyms import Pseudonyms

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Prepare a data set of cases from files: radfm prepare SOURCE IN OUT. Each source has its own --help.",
)


def _common_options(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the data set; a run that was killed continues there.")
    ],
    size: Annotated[int, typer.Option(min=16, help="Longer side of a stored slice, in pixels.")] = 256,
    precision: Annotated[str, typer.Option(help="auto: uint8, and float16 for CT; float16: all grey scans.")] = "auto",
    max_slices: Annotated[
        int | None, typer.Option(min=1, help="Largest number of slices of a scan, evenly spaced.")
    ] = None,
    cases_per_shard: Annotated[
        int, typer.Option(min=1, help="Cases in a shard, the unit in which a killed run continues.")
    ] = 100,
    fractions: Annotated[
        str, typer.Option(help="Shares of train, validation, test without an official split.")
    ] = "0.7,0.1,0.2",
    seed: Annotated[int, typer.Option(help="Seed of the splits.")] = 0,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: one for each core.")] = None,
    part: Annotated[str, typer.Option(help="Part of the shards, for machines that share OUT: 0/4 ... 3/4.")] = "0/1",
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
): ...


def _privacy_options(
    key: Annotated[
        Path | None,
        typer.Option(help="File with a secret key: a patient has the same pseudonym in all data sets made with it."),
    ] = None,
    keep_names: Annotated[bool, typer.Option("--keep-names", help="Use no pseudonyms, for public data.")] = False,
    links: Annotated[
        Path | None, typer.Option(help="Write a CSV that reverses the pseudonyms; store it safely.")
    ] = None,
): ...


def source_command(name: str | None = None, hospital: bool = False):
    """Makes a command of a function that takes `names` (Pseudonyms) and its own options, and returns a `Source`."""

    def command_of(function):
        own = inspect.signature(function).parameters
        shared = {n: p for n, p in inspect.signature(_common_options).parameters.items() if n not in own}
        private = inspect.signature(_privacy_options).parameters if hospital else {}
        source_options = [parameter for parameter in own.values() if parameter.name != "names"]
        arguments = [parameter for parameter in source_options if parameter.default is inspect.Parameter.empty]
        options = [parameter for parameter in source_options if parameter.default is not inspect.Parameter.empty]

        def command(**values) -> None:
            _run(lambda names: function(names, **{p.name: values[p.name] for p in source_options}), values)

        parameters = [*arguments, shared.pop("out"), *options, *private.values(), *shared.values()]
        command.__signature__ = inspect.Signature(
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        )
        command.__doc__ = function.__doc__
        return app.command(name or function.__name__)(command)

    return command_of


@needs("data")
def _run(source_of: Callable[["Pseudonyms"], "Source"], values: dict) -> None:
    from radfm.data_prep.prepare import Settings, prepare
    from radfm.data_prep.pseudonyms import Pseudonyms, read_key

    out, key, links = values["out"], values.get("key"), values.get("links")
    keep_names = values.get("keep_names", True)
    if keep_names and (key or links):
        raise ValueError("--keep-names uses no pseudonyms: omit --key and --links, or omit --keep-names")
    names = Pseudonyms(None if keep_names else read_key(key) if key else _key_of(out))
    options = {
        name: values[name] for name in ("size", "precision", "max_slices", "cases_per_shard", "seed") if name in values
    }
    settings = Settings(**options, fractions=_fractions(values["fractions"]))
    with progress_bar(f"Preparing {out}") as progress:
        record = prepare(
            source_of(names),
            out,
            settings,
            processes=values["processes"] or os.cpu_count() or 1,
            part=_part(values["part"]),
            progress=progress,
        )
    if links:
        names.write_links(links)
    if values["as_json"]:
        print(json.dumps(record or {"finished": False}, indent=2, ensure_ascii=False))
    elif record is None:
        print(f"{out}: part {values['part']} is finished; the last part to finish writes the report")
    else:
        print_summary(out, record)


def _key_of(out: Path) -> bytes:
    """The key of a run without --key, see `kept_key`."""
    from radfm.data_prep.pseudonyms import kept_key
    from radfm.data_prep.shard import WORK
    from radfm.data_prep.tables import RECORD

    if (out / RECORD).exists():
        raise ValueError(f"{out} holds a finished data set: choose another folder, or delete this one")
    return kept_key(out / WORK / "key")


def _fractions(text: str) -> tuple[float, float, float]:
    try:
        train, validation, test = (float(part) for part in text.split(","))
        return train, validation, test
    except ValueError:
        raise ValueError(f"--fractions takes three numbers such as 0.7,0.1,0.2, not {text!r}") from None


def _part(text: str) -> tuple[int, int]:
    try:
        i, n = text.split("/")
        return int(i), int(n)
    except ValueError:
        raise ValueError(f"--part takes a value such as 0/4, the first of four parts, not {text!r}") from None


@contextmanager
def progress_bar(what: str):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("shards"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _how_to_accept_more(synthetic: dict) -> str:
    """What to change, by what refused the samples."""
    refused = synthetic["disorders"].values()
    ways = ["a lower --threshold or a higher --rank"] * any(one["not_seen"] for one in refused)
    ways += ["a generator that copies less"] * any(one["too_close"] for one in refused)
    return f"{' and '.join(ways or ['another --seed'])} would give more"


def print_summary(out: Path, record: dict) -> None:
    from radfm.presentation import plural

    counts, splits = record["counts"], record["splits"]
    if synthetic := record.get("synthetic"):
        print("SYNTHETIC: no case is a patient. Accepted samples:")
        for name, one in synthetic["disorders"].items():
            print(f"  {name}: {one['accepted']:,} of {one['samples']:,} ({one['share']:.0%})")
        short = [
            f"{name} ({one['accepted']:,} of {one['asked']:,})"
            for name, one in synthetic["disorders"].items()
            if one["accepted"] < one["asked"]
        ]
        if short:
            print(f"Warning: fewer cases than asked for: {', '.join(short)}; {_how_to_accept_more(synthetic)}")
    totals = (counts["cases"]["out"], "case"), (counts["scans"]["out"], "scan"), (record["disorders"], "disorder")
    summary = ", ".join(plural(count, what) for count, what in totals)
    print(f"{out}: {summary}; " + ", ".join(f"{n:,} {split}" for split, n in splits.items()))
    units = {"listed": counts["listed"]["unit"], "cases": "case", "files": "file", "scans": "scan"}
    if rejected := [plural(count["rejected"], units[what]) for what, count in counts.items() if count["rejected"]]:
        print(f"Rejected: {', '.join(rejected)}; see rejected.csv for the reasons")
    if n := record["text_in_pixels"]:
        print(f"Warning: {plural(n, 'scan')} may carry text in the pixels, such as names: see report.html")
    if n := record["scans_with_warnings"]:
        print(f"Warning: a model may read {plural(n, 'scan')} as nonsense: see warnings.csv")
    if n := record["groups_of_duplicates_across_splits"]:
        print(f"Warning: {plural(n, 'picture is', 'pictures are')} in several splits: see duplicates.csv")
    print(f"Look at {out / 'report.html'}")
