"""The web server: its addresses, what each accepts and what it returns.

| address | accepts | returns |
|---|---|---|
| `GET /`, `/page.css`, `/page.js`, `/icon.svg` | | the page |
| `POST /study` | the files of a study, see `radfm.serve.intake` | its token, JSON |
| `POST /example` | the name of an example study, see `radfm.examples` | its token, JSON |
| `GET /progress` | | its position in the queue, its progress and how it ended: server-sent events |
| `GET /answer` | | what the page shows, JSON |
| `GET /sheet/SCAN/WINDOW/SHEET` | | sixteen slices, JPEG |
| `GET /maps/DISORDER` | | coarse maps of all scans, one byte per patch |
| `POST /names` | names that the visitor typed, or one to remove | their scores, JSON |
| `GET /report` | | the report, HTML |
| `POST /forget` | the token | |

All but the first three and the last need the token in the header `X-Study`. Every error is JSON, {"reason": ...}, with
the HTTP status of its kind: 404 for an unknown address, 408 and 413 for what exceeds a limit, 410 for a study that was
deleted, 422 for what is not a study or a name, 503 while too many studies wait.
"""

import asyncio
import json
import logging
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from html import escape
from importlib.resources import files
from pathlib import Path

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from radfm import examples
from radfm.checkpoints import find
from radfm.cli.console import DISCLAIMER, one_line, quiet_transformers, show, step
from radfm.modalities import MODALITIES
from radfm.serve.answers import Answer
from radfm.serve.connections import JSONErrorsProtocol, Outermost, error_response
from radfm.serve.intake import write_example, write_files
from radfm.serve.limits import TIMED_OUT, TOO_LARGE, Limits, Refused
from radfm.serve.studies import ANSWERED, REFUSED, Studies

_FILES_OF_PAGE = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_LARGEST_BODY = 64_000  # bytes, of every request but a study
_POLL_SECONDS, _HEARTBEAT_SECONDS = 0.1, 15.0  # of the progress of a study
_CLOSING_SECONDS = 3  # that open connections have when the server ends


def run(model: str, host: str, port: int, limits: Limits, device: str | None) -> None:
    """See `radfm.serve.serve`."""
    with step(f"Loading {model}"):
        studies = open_studies(model, limits, device)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        server = launch(studies, host, port)
        show(f"[bold]{server.url}[/] serves {Path(model).name}. Ctrl+C ends it.", highlight=False)
        for alert in studies.pipe.model_alerts:
            show(f"[bold red]{alert}[/]")
        show(f"[dim]{studies.pipe.training_data.summary} {DISCLAIMER}[/]", highlight=False)
        if host not in ("127.0.0.1", "localhost", "::1"):
            show("[yellow]The page has no password: everyone who can reach this machine can use it.[/]")
        stop.wait()
        server.close()
    finally:
        studies.close()


def open_studies(model: str, limits: Limits, device: str | None = None) -> Studies:
    """Loads the checkpoint. Raises: ValueError: it does not exist, or has no vocabulary."""
    from transformers import pipeline

    from radfm.knowledge.definitions import define
    from radfm.knowledge.disorders import codes

    model = find(model)
    quiet_transformers()
    pipe = pipeline("zero-shot-diagnosis", model=model, device=device)
    if not pipe.model.config.disorders:
        raise ValueError(f"{model} has no vocabulary, which the page shows: give it one with set_disorders")
    define("Pneumothorax", codes("Pneumothorax"))  # loads the tables of names before the first visitor waits for them
    return Studies(pipe, model, limits)


class RunningServer:
    """A server in a thread of its own. `url` is the address of the page."""

    def __init__(self, app, host: str, port: int):
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family)
        except OSError as error:
            raise OSError(
                f"cannot listen on {host}, port {port}: {error.strerror}; choose another with --port"
            ) from error
        shown = "127.0.0.1" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{port}/"
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            http=JSONErrorsProtocol,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_CLOSING_SECONDS,
        )
        for name in ("uvicorn.error", "uvicorn.access", "uvicorn.asgi"):  # their messages may quote requests
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()


def launch(studies: Studies, host: str, port: int) -> RunningServer:
    """Starts the server in a thread. Raises: OSError: the port is in use."""
    return RunningServer(Outermost(make_app(studies)), host, port)


def make_app(studies: Studies) -> FastAPI:
    """The application with all its addresses."""
    app = FastAPI(title="radfm", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(StarletteHTTPException)
    async def httperror_response(request: Request, error: StarletteHTTPException) -> Response:
        return error_response(error.status_code, error.detail)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return error_response(error.status, one_line(error))

    @app.exception_handler(Exception)
    async def internalerror_response(request: Request, error: Exception) -> Response:
        return error_response(500, "an internal error")

    _add_page(app, studies)
    _add_study(app, studies)
    _add_answer(app, studies)
    _add_names(app, studies)
    return app


def _add_page(app: FastAPI, studies: Studies) -> None:
    folder = files("radfm.serve") / "page"
    index = (folder / "index.html").read_text(encoding="utf-8")
    for placeholder, text in {
        "{{ disclaimer }}": DISCLAIMER,
        "{{ model }}": escape(Path(studies.model).name),
        "{{ settings }}": json.dumps(_settings(studies)).replace("<", "\\u003c"),
    }.items():
        index = index.replace(placeholder, text)

    @app.api_route("/", methods=["GET", "HEAD"])
    def page() -> Response:
        return Response(index, media_type="text/html")

    def add_file(name: str, media_type: str) -> None:
        app.get(f"/{name}")(lambda: Response((folder / name).read_bytes(), media_type=media_type))

    for name, media_type in _FILES_OF_PAGE.items():
        add_file(name, media_type)


def _settings(studies: Studies) -> dict:
    """What the page knows of the server before a study is sent."""
    return {
        "megabytes": studies.limits.megabytes,
        "files": studies.limits.files,
        "modalities": list(MODALITIES)[1:],
        "history": studies.pipe.model.config.use_history,
        "alerts": studies.pipe.model_alerts,
        "training_data": studies.pipe.training_data.summary,
        "examples": [_example(examples.about(name)) for name in examples.names()],
    }


def _example(example: examples.Example) -> dict:
    disorders = "; ".join(f"{name} ({code})" for name, code in example.disorders.items())
    return {"name": example.name, "title": example.title, "disorders": disorders, "credit": example.credit}


def _add_study(app: FastAPI, studies: Studies) -> None:
    limits = studies.limits

    @app.post("/study")
    async def study(request: Request) -> Response:
        with studies.arriving() as folder:
            try:
                async with asyncio.timeout(limits.seconds):
                    header = await write_files(request.stream(), folder / "in", limits)
            except TimeoutError:
                reason = f"sending took longer than {limits.seconds} s: drop one series, or fewer"
                raise Refused(reason, TIMED_OUT) from None
            return JSONResponse({"study": studies.enqueue(folder, header)})

    @app.post("/example")
    async def example(request: Request) -> Response:
        name = (await _read_body(request, limits)).decode("ascii", "replace")
        with studies.arriving() as folder:
            return JSONResponse({"study": studies.enqueue(folder, write_example(name, folder / "in"))})

    @app.get("/progress")
    async def progress(request: Request) -> Response:
        token = request.headers.get("X-Study", "")
        try:
            studies.progress(token)
        except KeyError:
            raise _gone() from None
        unbuffered = {"X-Accel-Buffering": "no"}  # a proxy that collects events would hold them back
        return StreamingResponse(_events(studies, token, request), media_type="text/event-stream", headers=unbuffered)

    @app.post("/forget")
    async def forget(request: Request) -> Response:
        studies.delete((await _read_body(request, limits)).decode("ascii", "replace"))
        return Response(status_code=204)


def _add_answer(app: FastAPI, studies: Studies) -> None:
    @app.get("/answer")
    def answer(request: Request) -> Response:
        return JSONResponse(_answer_of(studies, request).shown)

    @app.get("/sheet/{scan:int}/{window:int}/{sheet:int}")
    def sheet(scan: int, window: int, sheet: int, request: Request) -> Response:
        sheets = _answer_of(studies, request).sheets
        try:
            picture = list(sheets[scan].pictures.values())[window][sheet]
        except IndexError:
            raise HTTPException(404, "there is no such sheet") from None
        return Response(picture, media_type="image/jpeg")

    @app.get("/maps/{disorder:int}")
    def maps(disorder: int, request: Request) -> Response:
        maps = _answer_of(studies, request).maps
        if disorder >= len(maps):
            raise HTTPException(404, "there is no such map")
        return Response(maps[disorder], media_type="application/octet-stream")

    @app.get("/report")
    def report(request: Request) -> Response:
        content = _answer_of(studies, request).report_page()
        attachment = {"Content-Disposition": 'attachment; filename="case.html"'}
        return Response(content, media_type="text/html", headers=attachment)


def _add_names(app: FastAPI, studies: Studies) -> None:
    @app.post("/names")
    async def names(request: Request) -> Response:
        body = await _read_body(request, studies.limits)
        token = request.headers.get("X-Study", "")
        try:
            content = json.loads(body)
            typed, removed = content.get("names", []), content.get("remove")
        except (ValueError, AttributeError, RecursionError):
            raise Refused("the request is not JSON with names") from None
        if not isinstance(typed, list) or not all(isinstance(name, str) for name in typed):
            raise Refused("names must be a list of text")
        return await asyncio.to_thread(score, token, typed, removed)

    def score(token: str, typed: list[str], removed) -> Response:
        try:
            if isinstance(removed, str):
                studies.remove(token, removed)
            return JSONResponse({"diagnoses": studies.score(token, typed)})
        except KeyError:
            raise _gone() from None
        except ValueError as error:  # a name that is not on the list of a model with a fixed one
            return error_response(422, one_line(error))


async def _events(studies: Studies, token: str, request: Request) -> AsyncIterator[str]:
    """The progress of a study as server-sent events, until it has ended or its visitor has left."""
    last, sent = None, time.monotonic()
    with suppress(KeyError), studies.listening(token):
        while not await request.is_disconnected():
            stage = studies.progress(token)
            if stage != last:
                last, sent = stage, time.monotonic()
                yield f"data: {json.dumps(stage)}\n\n"
            elif time.monotonic() - sent > _HEARTBEAT_SECONDS:
                sent = time.monotonic()
                yield ": still here\n\n"  # a comment, so that proxies keep the connection open
            if stage["stage"] in (ANSWERED, REFUSED):
                return
            await asyncio.sleep(_POLL_SECONDS)


async def _read_body(request: Request, limits: Limits) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for block in request.stream():
                body += block
                if len(body) > _LARGEST_BODY:
                    raise Refused(f"a request has at most {_LARGEST_BODY:,} bytes", TOO_LARGE)
    except TimeoutError:
        raise Refused(f"sending took longer than {limits.seconds} s: try again", TIMED_OUT) from None
    return bytes(body)


def _answer_of(studies: Studies, request: Request) -> Answer:
    try:
        return studies.get(request.headers.get("X-Study", ""))
    except KeyError:
        raise _gone() from None


def _gone() -> HTTPException:
    return HTTPException(410, "this study was deleted: drop it again")


__all__ = ["RunningServer", "launch", "make_app", "open_studies", "run"]
