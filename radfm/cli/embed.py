"""The command `radfm embed`."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radfm.checkpoints import DEFAULT
from radfm.cli.console import A_CHECKPOINT, DISCLAIMER, Device, Json, quiet_transformers, show, step
from radfm.presentation import plural, shown

if TYPE_CHECKING:
    from radfm.eval.embedding_sources import CaseSource

MOST_ROWS = 12  # cases that were left out


def embed(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="The folder of a data set that radfm prepare made; or cases, each a PATH."),
    ],
    out: Annotated[Path, typer.Option(metavar="TABLE", help="The table, a Parquet file such as embeddings.parquet.")],
    model: Annotated[str, typer.Option(help=f"{A_CHECKPOINT}.")] = DEFAULT,
    level: Annotated[str, typer.Option(help="What has an embedding: case, scan or slice.")] = "case",
    split: Annotated[str | None, typer.Option(help="Of a data set: train, validation, test or all.")] = None,
    archive: Annotated[
        bool, typer.Option("--archive", help="Each file and folder directly within a PATH is a case.")
    ] = False,
    modality: Annotated[
        str | None, typer.Option(help="Modality of the scans whose header does not say it: CT, MRI, ...")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="File with a secret key: a case has the same pseudonym in all tables made with it."),
    ] = None,
    links: Annotated[
        Path | None, typer.Option(help="Write a CSV that reverses the pseudonyms of cases; store it safely.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that read and compute, each with the model.")] = 1,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16, where that is faster.")] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Write the embeddings of cases, scans or slices into a table.

    A run that was killed continues with the same command. A case that cannot be read is listed, and left out.

    Example: radfm embed datasets/mine --model runs/mine --out embeddings.parquet
    """
    from radfm.eval.embeddings import write_embeddings

    if out.suffix != ".parquet" or out.is_dir():
        raise ValueError(f"{out}: --out writes a Parquet file, give it a name such as embeddings.parquet")
    quiet_transformers()
    cases, names = _cases(paths, out, split, archive, modality, key, links)
    with step(f"Embedding {plural(len(cases), 'case')}") as progress:
        about = write_embeddings(
            cases, model, out, level, bf16=bf16, device=device, processes=processes, progress=progress
        )
    for sentence, listed in (("could not be embedded", about["left_out"]), ("with files not read", about["not_read"])):
        if listed:
            print(f"radfm: {plural(len(listed), 'case')} {sentence}:", file=sys.stderr)
        for case_id in list(listed)[:MOST_ROWS]:
            print(f"  {shown(names.get(case_id, case_id))}: {listed[case_id]}", file=sys.stderr)
        if len(listed) > MOST_ROWS:
            print(f"  and {len(listed) - MOST_ROWS:,} more: --json lists all", file=sys.stderr)
    if as_json:
        print(json.dumps(about, indent=2, ensure_ascii=False))
        return
    counts = f"{plural(about['cases'], 'case')}, {plural(about['rows'], 'row')} of {about['size']} numbers"
    show(f"{out}: {counts}", markup=False, highlight=False)
    show(f"[dim]{DISCLAIMER}[/]", highlight=False)


def _cases(
    paths: list[Path],
    out: Path,
    split: str | None,
    archive: bool,
    modality: str | None,
    key: Path | None,
    links: Path | None,
) -> tuple["CaseSource", dict[str, str]]:
    """The cases, and the name of each pseudonym."""
    from radfm.data_prep.pseudonyms import kept_key, read_key
    from radfm.eval.embedding_sources import ALL, DataSetCases, FileCases, is_data_set
    from radfm.eval.embeddings import work_folder

    if is_data_set(paths[0]):
        if len(paths) > 1:
            raise ValueError(f"{paths[0]} is a data set: give it alone")
        if archive or modality or key or links:
            raise ValueError(f"{paths[0]} is a data set: leave out --archive, --modality, --key and --links")
        return DataSetCases(paths[0], split or ALL), {}
    if split:
        raise ValueError(f"{paths[0]} is no data set that radfm prepare made: leave out --split")
    files = FileCases.of(paths, read_key(key) if key else None, archive, modality)
    if key is None and not out.exists():  # a killed run continues with the key that it began with
        files = replace(files, key=kept_key(work_folder(out) / "key"))
    elif key is None and links:
        raise ValueError(f"the pseudonyms of {out} cannot be linked again: their key was deleted with the run")
    names = {files.case_id(position): name for position, name in enumerate(files.names)}
    if links:
        files.pseudonyms.write_links(links)
    return files, names
