"""`radfm serve`: the model as a page in the browser.

    >>> from radfm.serve import serve
    >>> serve("radfm-open-mini")  # http://127.0.0.1:7860

Decisions:
- The server is FastAPI with uvicorn, and the page is our own HTML and JavaScript. The page communicates with this
  server only.
- The files of a study are opened by a process of their own, with limits on memory and time: a file that crashes a
  decoder ends that process, and no other study is affected. See `radfm.serve.reading`.
- Files are on disk only until their study is answered, with numbers as names. The answer is kept in memory for the
  page that has its token, until the page is closed or idle.
- Slices are sent as sheets of sixteen, those near the shown slice first. Saliency maps are sent at the coarse
  resolution at which they are computed and are coloured in the browser, so that showing another disorder or hiding the
  map loads nothing.
- One study is answered at a time. Waiting studies take disk space, not memory.
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
        model: Folder of a checkpoint, the name of one that comes with radfm, or its name on the Hub.
        host: Address to listen on; "0.0.0.0" for every address of the machine.
        limits: What visitors may request.
        device: "cpu", "cuda", ...; by default a GPU if there is one.
    Raises:
        ValueError: The checkpoint does not exist or has no vocabulary, or a library of the extra `serve` is missing.
        OSError: The port is in use.
    """
    from radfm.cli.console import needs

    with needs("serve"):
        from radfm.serve.server import run
    run(model, host, port, limits or Limits(), device)
