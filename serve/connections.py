"""What holds for every connection: headers of all responses, refusals of other sites, errors as JSON.

Decisions:
- A request may be refused while its body still arrives. Its response is sent at once, and the rest of the body is read
  and discarded for a while before the connection is closed: a browser that is sending would see a broken connection and
  no response.
- What is no HTTP is refused as JSON too, and so is a header that does not arrive in time. uvicorn has no settings for
  these, so its protocol is extended.
- Errors are logged by their kind only. A traceback may quote the request.
"""

import asyncio
import json
import logging
from contextlib import suppress
from http import HTTPStatus

import h11
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

_DRAINING_SECONDS = 10
_HEADER_SECONDS = 30.0  # in which the header of a request has to arrive
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self' https://huggingface.co",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def error_response(status: int, reason: str) -> Response:
    return JSONResponse({"reason": reason}, status)


class Outermost:
    """The application with what holds for every connection.

    A browser tells in Sec-Fetch-Site whether a page of another site sends a request. Such a page may not send studies.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        body, headers = _Body(scope, receive), dict(scope["headers"])
        site = headers.get(b"sec-fetch-site", b"same-origin")
        refused = scope["method"] == "POST" and site not in (b"same-origin", b"none")
        app = error_response(403, "requests of other sites are refused") if refused else self.app
        try:
            await app(scope, body.receive, _Answer(body, send).send)
        except ClientDisconnect:
            return
        except Exception as error:  # the application has answered
            logging.getLogger("radfm").error("a request ended in %s", type(error).__name__)


class _Body:
    """The body of a request; `unread` while parts of it may still arrive."""

    def __init__(self, scope, receive):
        headers = dict(scope["headers"])
        self.unread = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        self._waits = headers.get(b"expect", b"").lower() == b"100-continue"  # for leave to send the body
        self._receive = receive

    async def receive(self):
        self._waits = False
        message = await self._receive()
        self.unread = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Reads and discards the rest."""
        if self._waits:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAINING_SECONDS):
                while self.unread:
                    await self.receive()


class _Answer:
    """A response with the headers of all responses. It ends once the body of the request has been read."""

    def __init__(self, body: _Body, send):
        self._body, self._send = body, send

    async def send(self, message) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower().encode(): value.encode() for name, value in _HEADERS.items()}
            if self._body.unread:
                own[b"connection"] = b"close"
            message["headers"] = [pair for pair in message["headers"] if pair[0] not in own] + list(own.items())
        elif self._body.unread and not message.get("more_body", False):
            await self._send(message | {"more_body": True})
            await self._body.drain()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)


class JSONErrorsProtocol(H11Protocol):
    """uvicorn's HTTP protocol, with JSON for what is no HTTP, and a time for the header of a request to arrive in."""

    _timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        in_header = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if in_header and self._timer is None:
            self._timer = self.loop.call_later(_HEADER_SECONDS, self._end_waiting)
        elif not in_header:
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "the request is not valid HTTP")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_waiting(self) -> None:
        self._refuse(408, f"the header of the request took longer than {_HEADER_SECONDS} s")

    def _refuse(self, status: int, reason: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            content = json.dumps({"reason": reason}).encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), "Connection": "close"}
            response = h11.Response(
                status_code=status, headers=list((_HEADERS | headers).items()), reason=HTTPStatus(status).phrase
            )
            for event in (response, h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()
