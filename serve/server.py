"""The web server: which addresses there are, and what each takes and gives.

| address | takes | gives |
|---|---|---|
| `GET /`, `/page.css`, `/page.js`, `/icon.svg` | | the page |
| `POST /study` | a study's files, see `radfm.serve.intake` | its token |
| `POST /gradio_api/queue/join`, `GET …/data` | the token | its place in the queue, how far it is, how it ended |
| `GET /answer` | | what the page shows, JSON |
| `GET /sheet/SCAN/WINDOW/SHEET` | | sixteen slices, JPEG |
| `GET /maps/DISORDER` | | coarse maps of all scans, a byte for each place |
| `POST /names` | names that a visitor typed, or one to remove | their scores, JSON |
| `GET /report` | | the report, HTML |
| `POST /forget` | the token | |

All but the first two rows and the last want the token in the header `X-Study`. Any other address is not found, those
that Gradio brings along included: its own uploads, for one, would stay on disk.
"""

import asyncio
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from html import escape
from importlib.resources import files
from pathlib import Path
from urllib.parse import parse_qs

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio
from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from radfm.checkpoints import find
from radfm.cli.console import DISCLAIMER, one_line, quiet_transformers, show, step
from radfm.modalities import MODALITIES
from radfm.pipeline_radfm import SYNTHETIC_ONLY
from radfm.serve.intake import write_files
from radfm.serve.limits import Limits
from radfm.serve.studies import Studies

_JOIN, _LISTEN = "/gradio_api/queue/join", "/gradio_api/queue/data"
_QUEUE = (_JOIN, _LISTEN, "/gradio_api/startup-events")
_PAGE = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_DRAINING_SECONDS = 10
_LARGEST_BODY = 64_000  # bytes, of all requests but a study
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'self' https://huggingface.co",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def run(model: str, host: str, port: int, limits: Limits, device: str | None) -> None:
    """See `radfm.serve.serve`."""
    with step(f"Loading {model}"):
        studies = open_studies(model, limits, device)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        server, url = launch(studies, host, port)
        show(f"[bold]{url}[/] answers with {Path(model).name}. Ctrl+C ends it.", highlight=False)
        show(f"[dim]{DISCLAIMER}[/]")
        if studies.pipe.synthetic_only:
            show(f"[bold yellow]{SYNTHETIC_ONLY}[/]")
        if host not in ("127.0.0.1", "localhost", "::1"):
            show("[yellow]Whoever reaches this machine can use the page: it has no password.[/]")
        stop.wait()
        server.blocks.close(verbose=False)
    finally:
        studies.close()


def open_studies(model: str, limits: Limits, device: str | None = None) -> Studies:
    """Loads the checkpoint. Raises: ValueError where it is not there, or has no vocabulary of its own."""
    from transformers import pipeline

    from radfm.knowledge.definitions import define
    from radfm.knowledge.disorders import codes

    model = find(model)
    quiet_transformers()
    pipe = pipeline("zero-shot-diagnosis", model=model, device=device)
    if not pipe.model.config.disorders:
        raise ValueError(f"{model} has no vocabulary of its own, which the page shows: give it one by set_disorders")
    define("Pneumothorax", codes("Pneumothorax"))  # reads the tables of names now, and not when a visitor waits
    return Studies(pipe, model, limits)


def launch(studies: Studies, host: str, port: int | None) -> tuple[gradio.Server, str]:
    """Starts the server in a thread: it, and the address of the page. Raises: OSError where the port is taken."""
    # Nothing comes there, but Gradio makes folders, one of them where it was told when it was imported.
    os.environ["GRADIO_TEMP_DIR"] = gradio.routes.DEFAULT_TEMP_DIR = str(studies.root / "gradio")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _, url, _ = (server := _server(studies)).launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        max_threads=40,
    )
    return server, url


def _server(studies: Studies) -> gradio.Server:
    server = gradio.Server(title="radfm", docs_url=None, redoc_url=None, openapi_url=None)
    limits, model = studies.limits, studies.pipe.model
    config = model.config
    page = files("radfm.serve") / "page"
    about = {
        "megabytes": limits.megabytes,
        "files": limits.files,
        "names": limits.names if model.head.reads_text or config.disorders else 0,
        "modalities": list(MODALITIES)[1:],
        "history": config.use_history,
        "synthetic_only": SYNTHETIC_ONLY if studies.pipe.synthetic_only else None,
    }
    words = {
        "{{ disclaimer }}": DISCLAIMER,
        "{{ model }}": escape(Path(studies.model).name),
        "{{ about }}": json.dumps(about).replace("<", "\\u003c"),
    }

    @server.api(name="answer", concurrency_limit=1, api_visibility="private")
    def answer(token: str) -> dict:
        yield from _safely(studies, token)

    @server.api_route("/", methods=["GET", "HEAD"])
    def root() -> Response:
        index = (page / "index.html").read_text(encoding="utf-8")
        for word, said in words.items():
            index = index.replace(word, said)
        return Response(index, media_type="text/html")

    def attach(name: str, kind: str) -> None:
        server.get(f"/{name}")(lambda: Response((page / name).read_bytes(), media_type=kind))

    for name, kind in _PAGE.items():
        attach(name, kind)

    @server.post("/study")
    async def study(request: Request) -> Response:
        try:
            with studies.arriving() as folder:
                async with asyncio.timeout(limits.seconds):
                    header = await write_files(request.stream(), folder / "in", limits)
                return JSONResponse({"study": studies.waits(folder, header)})
        except TimeoutError:
            why = f"sending took longer than {limits.seconds} s: drop one series, or fewer"
        except ValueError as error:
            why = one_line(error)
        await _drained(request, limits)
        return JSONResponse({"why": why}, 413, {"Connection": "close"})

    @server.get("/answer")
    def shown(request: Request) -> Response:
        return JSONResponse(_found(studies, request).shown)

    @server.get("/sheet/{scan:int}/{window:int}/{sheet:int}")
    def sheet(scan: int, window: int, sheet: int, request: Request) -> Response:
        answer = _found(studies, request)
        try:
            pictures = list(answer.sheets[scan].pictures.values())[window][sheet]
        except IndexError:
            raise HTTPException(404) from None
        return Response(pictures, media_type="image/jpeg")

    @server.get("/maps/{disorder:int}")
    def maps(disorder: int, request: Request) -> Response:
        answer = _found(studies, request)
        if disorder >= len(answer.maps):
            raise HTTPException(404)
        return Response(answer.maps[disorder], media_type="application/octet-stream")

    @server.post("/names")
    def names(body: dict, request: Request) -> Response:
        token = _token(studies, request)
        wanted = body.get("names", [])
        if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
            raise HTTPException(400)
        if isinstance(name := body.get("remove"), str):
            studies.remove(token, name)
        try:
            return JSONResponse({"diagnoses": studies.score(token, wanted)})
        except ValueError as error:
            return JSONResponse({"why": one_line(error)}, 422)

    @server.get("/report")
    def report(request: Request) -> Response:
        content = studies.report(_token(studies, request))
        attached = {"Content-Disposition": 'attachment; filename="case.html"'}
        return Response(content, media_type="text/html", headers=attached)

    @server.post("/forget")
    async def forget(request: Request) -> Response:
        studies.forget((await request.body()).decode("ascii", "replace"))
        return Response(status_code=204)

    server.add_middleware(_Doors, studies=studies)
    return server


def _safely(studies: Studies, token: str) -> Iterator[dict]:
    try:
        yield from studies.answer(token)
    except Exception as error:  # one visitor's study must end in a line, whatever it is; which kind of error is logged
        logging.getLogger("radfm").error("a study ended in %s", type(error).__name__)
        yield {"stage": "refused", "done": 0, "of": 0, "why": "something went wrong with this study, and it was let go"}


async def _drained(request: Request, limits: Limits) -> None:
    """Lets what still comes of a refused study pass by, within reason: a browser that is sending hears no answer."""
    read = 0
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(_DRAINING_SECONDS):
            async for block in request.stream():
                if (read := read + len(block)) > limits.megabytes * 10**6:
                    return


def _token(studies: Studies, request: Request) -> str:
    token = request.headers.get("X-Study", "")
    _get(studies, token)
    return token


def _found(studies: Studies, request: Request):
    return _get(studies, request.headers.get("X-Study", ""))


def _get(studies: Studies, token: str):
    try:
        return studies.get(token)
    except KeyError:
        raise HTTPException(410, "this study was let go: drop it again") from None


class _Doors:
    """Lets through what the table above lists, bodies no larger than they need to be, and adds the headers.

    The queue is Gradio's, so that here alone is seen who joins it, and who listens.
    """

    def __init__(self, app, studies: Studies):
        self.app, self.studies = app, studies

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        ours = path in ("/", "/study", "/answer", "/names", "/report", "/forget") or path[1:] in _PAGE
        if not (ours or path in _QUEUE or path.startswith(("/sheet/", "/maps/"))):
            await Response(status_code=404)(scope, receive, send)
            return
        read, joining = 0, bytearray()

        async def counted():
            nonlocal read, joining
            message = await receive()
            read += len(message.get("body", b""))
            if read > _LARGEST_BODY and path != "/study":
                raise HTTPException(413)
            if path == _JOIN and message["type"] == "http.request":
                joining += message.get("body", b"")
                if not message.get("more_body"):
                    self._joined(bytes(joining))
            return message

        async def with_headers(message) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower().encode(): value.encode() for name, value in _HEADERS.items()}
                message["headers"] = [pair for pair in message["headers"] if pair[0] not in own] + list(own.items())
            await send(message)

        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
        with self.studies.attended(session) if path == _LISTEN else nullcontext():
            await self.app(scope, counted, with_headers)

    def _joined(self, body: bytes) -> None:
        with suppress(ValueError, KeyError, TypeError, IndexError):  # what is no study, Gradio refuses
            said = json.loads(body)
            self.studies.joins(said["data"][0], str(said["session_hash"]))


__all__ = ["launch", "open_studies", "run"]
