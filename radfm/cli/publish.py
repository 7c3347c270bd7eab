"""The command `radfm publish`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radfm.cli.console import Json, quiet_transformers, show, step, table

if TYPE_CHECKING:
    from radfm.publishing.publish import Published


def publish(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="Folder of a checkpoint or generator, or the name of a checkpoint that comes with radfm.",
        ),
    ],
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Its name on the Hugging Face Hub.")],
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Folder of radfm evaluate --out or evaluate sharing --out, or JSON of evaluate text; may be repeated.",
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="Licence of the weights, by its Hub name: apache-2.0, cc-by-nc-4.0.")
    ] = None,
    notes: Annotated[
        Path | None, typer.Option(help="Markdown for the card: what the model is for, in your words.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The training data set, where the recipe records no licence and counts.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write and keep.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the folder, or without --out print the card; upload nothing.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="A new repository is visible to you only.")] = False,
    max_shard_size: Annotated[str, typer.Option(help="A larger file of weights is split.")] = "5GB",
    as_json: Json = False,
) -> None:
    """Upload a checkpoint or generator with its card to the Hugging Face Hub.

    Example: radfm publish runs/mine me/mine --evaluation evaluation/ --license apache-2.0 --dry-run --out published/
    """
    from radfm.checkpoints import resolve
    from radfm.publishing.publish import Request
    from radfm.publishing.publish import publish as run

    quiet_transformers()
    training_data = None
    if data is not None:
        from radfm.data_prep.data_summary import data_summary
        from radfm.data_prep.stored_cases import load

        training_data = data_summary(load(data, "train", labelled=True))
    request = Request(Path(resolve(folder)), repo_id, evaluation or (), licence, notes, training_data, max_shard_size)
    with step(f"Publishing {folder}"):
        published = run(request, out, upload=not dry_run, private=private)
    if as_json:
        answer = {
            "files": published.files,
            "left_out": published.left_out,
            "url": published.url,
            "folder": out and str(out),
        }
        print(json.dumps(answer, indent=2))
        return
    if dry_run and out is None:
        print(published.card, end="")
        return
    _print_files(published, out)


def _print_files(published: "Published", out: Path | None) -> None:
    rows = table("file", ">bytes")
    for name, size in published.files.items():
        rows.add_row(name, f"{size:,}")
    show(rows)
    if published.left_out:
        show(f"Left out: {', '.join(published.left_out)}", markup=False, highlight=False)
    end = f"Published: {published.url}" if published.url else f"Written: {out}. Nothing was uploaded."
    show(end, markup=False)
