"""`radfm serve`: the model as a page in the browser.

    >>> from radfm.serve import serve
    >>> serve("radfm-phantom-mini")  # http://127.0.0.1:7860

Decisions:
- Gradio gives the server, its queue and the way onto a Hugging Face Space (`gradio.Server`); the page is our own, since
  a viewer that scrolls through hundreds of slices is no form. The page talks to this server and to nobody else.
- What a visitor drops is opened by a process of its own, with limits on memory and time: a file that breaks a decoder
  breaks that process, and no other visitor notices. See `radfm.serve.reading`.
- Files are on disk until their study is answered, under numbers for names, and in no place that Gradio knows. The
  answer is kept in memory, for the page that holds its token alone, until that page is closed or idle.
- Slices go out as sheets of sixteen, those around the shown one first. Maps go out as coarse as they are, a few numbers
  a slice, and are coloured in the browser: changing the disorder or hiding the map loads nothing.
- One study is answered at a time. Those that wait cost disk, not memory.
"""

from radfm.serve.limits import Limits

__all__ = ["Limits", "serve"]


def serve(
    model: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    limits: Limits | None = None,
    device: str | None = None,
) -> None:
    """Serves the page until interrupted.

    Args:
        model: folder of a checkpoint, the name of one that comes with radfm, or its name on the Hub.
        host: the address to listen on; "0.0.0.0" for every one that the machine has.
        limits: what a visitor may ask for.
        device: "cpu", "cuda", ...; unset, a GPU where there is one.
    Raises:
        ValueError: the checkpoint is not there, or has no vocabulary of its own; or gradio is missing.
        OSError: the port is taken.
    """
    from radfm.cli.console import needs

    with needs("serve"):
        from radfm.serve.server import run
    run(model, host, port, limits or Limits(), device)
