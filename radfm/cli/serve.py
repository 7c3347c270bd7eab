"""The command `radfm serve`."""

from typing import Annotated

import typer

from radfm.checkpoints import DEFAULT
from radfm.cli.console import MODEL_HELP, Device


def serve(
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = DEFAULT,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every address of this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Size of one study, as sent and as unpacked.")] = 512,
    max_files: Annotated[int, typer.Option(min=1, help="Files of one study, including those in zip files.")] = 2000,
    max_slices: Annotated[int, typer.Option(min=1, help="Slices of one study.")] = 1000,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds to send a study, and again to answer it.")] = 120,
    device: Device = None,
) -> None:
    """Serve the model as a page in the browser.

    The page takes a study, shows its slices with saliency maps, scores any disease name and makes a report.

    Example: radfm serve --model runs/mine
    """
    from radfm.serve import Limits
    from radfm.serve import serve as run

    run(model, host, port, Limits(max_megabytes, max_files, max_slices, timeout), device)
