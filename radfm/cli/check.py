"""The command `radfm check`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from radfm.cli.console import MODEL_HELP, Device, Json, quiet_transformers, show, step, table


def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    write: Annotated[
        bool, typer.Option("--write", help="Write the expected outputs, computed on this machine's CPU.")
    ] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Check whether this machine reproduces what a checkpoint answers.

    A small synthetic case goes through the model, and its outputs are compared with those that the checkpoint carries.
    The status is 0 if all agree.

    Example: radfm check radfm-open-mini
    """
    from radfm.checkpoints.reproduction import TOLERANCE, write_expected
    from radfm.checkpoints.reproduction import check as run

    quiet_transformers()
    if write:
        if device or as_json:
            raise ValueError("--write computes on the CPU and prints no result: leave out --device and --json")
        with step(f"Computing with {model}"):
            file = write_expected(model)
        print(f"Written: {file}")
        return
    with step(f"Checking {model}"):
        result = run(model, device)
    differing = [comparison.output for comparison in result.comparisons if not comparison.reproduced]
    if as_json:
        comparisons = [asdict(one) | {"reproduced": one.reproduced} for one in result.comparisons]
        print(json.dumps(asdict(result) | {"comparisons": comparisons, "reproduced": result.reproduced}, indent=2))
    else:
        rows = table("output", ">values", ">difference", ">allowed", "reproduced")
        for one in result.comparisons:
            difference = "-" if one.difference is None else f"{one.difference:.1e}"
            rows.add_row(one.output, str(one.values), difference, f"{TOLERANCE:.0e}", "yes" if one.reproduced else "no")
        show(rows)
        origins = table("", "here", "where the outputs were expected")
        for name in result.here:
            origins.add_row(name, result.here[name], result.expected_from.get(name, "?"))
        show(origins)
    if differing:
        raise ValueError(f"this machine does not reproduce {model}: {', '.join(differing)} differ")
