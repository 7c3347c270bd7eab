"""The commands `radfm federate`.

Decisions:
- torch and transformers are imported when a command runs.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from radfm.cli.console import DISCLAIMER, NO_PATIENTS, Json, needs, quiet_transformers, show, step, table
from radfm.presentation import interval_cell

Config = Annotated[Path, typer.Option(help="A YAML file, or the name of one that is part of radfm.")]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to it, such as federation.rounds=30 or federation.rank=8."),
]
KitFolder = Annotated[Path, typer.Argument(metavar="KIT", help="Folder that radfm federate kits wrote.")]


@needs("federate")
def simulate(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of a data set that radfm prepare made.")],
    out: Annotated[Path, typer.Option(help="Folder of the study; a killed one is continued there.")],
    changes: Changes = None,
    by: Annotated[str, typer.Option(help="What makes the sites: collection, body part or modality.")] = "collection",
    config: Config = Path("federated.yaml"),
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD", help="FedAvg (default) or FedProx; several times to compare them."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split that all models are measured on.")] = "test",
    least_cases: Annotated[int, typer.Option(min=2, help="Training cases that a site has to have.")] = 50,
    bootstraps: Annotated[int, typer.Option(min=1, help="Number of resamples of the patients.")] = 1000,
    as_json: Json = False,
) -> None:
    """Train the parts of a data set as sites, and compare with each alone and with all in one place.

    Example: radfm federate simulate datasets/mine --by collection --out study
    """
    from radfm.train.federation.config import read_federated_config
    from radfm.train.federation.simulation import FEDAVG, POOLED
    from radfm.train.federation.simulation import simulate as run

    quiet_transformers()
    recipe, methods = read_federated_config(config, changes or ()), tuple(method or (FEDAVG,))
    with step("Training sites") as progress:
        found = run(data, by, out, recipe, methods, split, least_cases, bootstraps, progress)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for name, reason in found["left_out"].items():
        show(f"{name} is left out: {reason}", highlight=False, markup=False)
    marked = f" {NO_PATIENTS}" if found["synthetic"] else ""
    show(
        f"Macro AUC within sites, {found['cases']['all']:,} {split} cases, with 95% intervals.{marked}", highlight=False
    )
    rows = table("on the cases of", "sites", *(f">{arm}" for arm in (*methods, POOLED)), ">that site alone")
    for group in ("all", *found["sites"]):
        alone = "-" if group == "all" else interval_cell(found["arms"][f"alone: {group}"][group], between="-")
        cells = [interval_cell(found["arms"][arm][group], between="-") for arm in (*methods, POOLED)]
        rows.add_row("all" if group == "all" else "", "" if group == "all" else group, *cells, alone)
    show(rows)
    rows = table("on the cases of all sites but", ">alone", *(f">{one}: gain" for one in methods))
    for site, one in found["others"].items():
        gains = [interval_cell(one[name]["gain"], "+.3f", ".3f", ", ") for name in methods]
        rows.add_row(site, interval_cell(one["alone"], between="-"), *gains)
    show(rows)
    show(f"Results: {out / 'federation.html'}", highlight=False, markup=False)
    show(f"[dim]{DISCLAIMER}[/]")


@needs("federate")
def kits(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder, with a kit for the server and each site.")],
    site: Annotated[list[str], typer.Option(metavar="NAME", help="Name of a site, such as clinic-a; several times.")],
    host: Annotated[str, typer.Option(help="Name of the server's machine, as the sites reach it.")] = "localhost",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the server.")] = 8002,
) -> None:
    """Write the certificates of a server and its sites. Hand each kit over safely: it holds a private key.

    Example: radfm federate kits kits --site clinic-a --site clinic-b --host server.example.org
    """
    from radfm.train.federation.certificates import write_kits

    for folder in write_kits(out, host, port, site):
        print(folder)


@needs("federate")
def server(kit: KitFolder, changes: Changes = None, config: Config = Path("federated.yaml")) -> None:
    """Train one model with the sites that connect. The same command resumes a killed run.

    Example: radfm federate server kits/server output=runs/together
    """
    from radfm.train.federation.certificates import Kit
    from radfm.train.federation.config import read_federated_config
    from radfm.train.federation.server import serve

    quiet_transformers()
    recipe, own = read_federated_config(config, changes or ()), Kit.load(kit)
    with step("Rounds") as progress:
        print(serve(own, recipe, progress))


@needs("federate")
def site(
    kit: KitFolder,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of a data set that radfm prepare made.")],
    out: Annotated[Path, typer.Option(help="Folder for the result, and for what was spent of privacy.")],
    patience: Annotated[float, typer.Option(min=1, help="Seconds without a word of the server to give up.")] = 86400.0,
) -> None:
    """Train with others without sending cases: weights, counts and names of disorders leave this machine.

    Example: radfm federate site kits/clinic-a datasets/mine --out runs/together
    """
    from radfm.data_prep.stored_cases import load
    from radfm.train.federation.certificates import Kit
    from radfm.train.federation.client import RemoteSite

    quiet_transformers()
    cases = load(data, "train", labelled=True, publishable=True)
    print(RemoteSite(Kit.load(kit), cases, out, patience).run())
