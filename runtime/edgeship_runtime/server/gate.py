"""What every request passes before a route sees it: host, origin, key, rate, size; and what is noted of it after."""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgeship_runtime.server.keys import holder
from edgeship_runtime.server.problems import RequestError, busy, ollama_body, openai_body
from edgeship_runtime.server.settings import Settings, is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OPEN = ("/", "/health")
"""Answered without a key; so is what lies under /page/."""
_HOST = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(:[0-9]*)?")
_CLIENTS = 10_000  # whose rate is remembered
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
Note = Callable[["Scope", int, float], None]
"""Takes the scope, the status and the seconds of a finished request."""


class RateLimit:
    """A bucket of tokens for each client: a minute's requests may come at once, then they come evenly."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when

    def take(self, client: str) -> None:
        """Count a request; raises RequestError (429) when there were too many."""
        if not self._per_minute:
            return
        now = self._clock()
        left, then = self._buckets.pop(client, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - then) * self._per_minute / 60)
        self._buckets[client] = (max(left - 1, 0.0) if left >= 1 else left, now)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        if left < 1:
            wait = int((1 - left) * 60 / self._per_minute) + 1
            raise busy(f"more than {self._per_minute} requests in a minute", wait)


class Gate:
    """The outermost application: refuses before anything is read, and answers for what inner ones let fall."""

    def __init__(self, app: ASGIApp, settings: Settings, note: Note) -> None:
        self._app = app
        self._settings = settings
        self._note = note
        self._rate = RateLimit(settings.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (or run the lifespan)."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        body = _Limited(receive, self._settings.max_body, scope)

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *self._extra(message, body)]}
            await send(message)

        try:
            scope["app"] = self  # inside of an application Starlette raises what it does not find, so that we answer
            self._admit(scope)
            await self._app(scope, body, noting)
        except RequestError as error:
            if not status:
                await _refuse(scope, error, noting)
        except Exception as error:
            scope["edgeship.failure"] = type(error).__name__
            # In the middle of an answer the connection just ends: raised, it would have uvicorn log a traceback.
            if not status:
                await _refuse(scope, RequestError("the server failed", status=503, code="internal"), noting)
        finally:
            self._note(scope, status or 499, time.perf_counter() - start)

    def _extra(self, message: Message, body: _Limited) -> list[tuple[bytes, bytes]]:
        present = {name.lower() for name, _ in message.get("headers", ())}
        # What is still to come of a refused body may have no end, and nobody is going to read it.
        close = [] if body.whole else [(b"connection", b"close")]
        return [(name, value) for name, value in _HEADERS if name not in present] + close

    def _admit(self, scope: Scope) -> None:
        """Raise RequestError for what may not pass; put the client's name into the scope."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        address = scope["client"][0] if scope.get("client") else "local"
        scope["edgeship.client"] = address
        self._check_names(headers)
        if self._settings.keys:
            given = headers.get("authorization", "")
            name = holder(self._settings.keys, given[7:].strip()) if given[:7].lower() == "bearer " else None
            if name is not None:
                scope["edgeship.client"] = scope["edgeship.holder"] = name
            elif scope["path"] not in _OPEN and not scope["path"].startswith("/page/"):
                self._rate.take(address)
                raise RequestError("an API key is needed", status=401, code="invalid_api_key")
        if scope["path"] not in _OPEN:
            self._rate.take(scope["edgeship.client"])
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self._settings.max_body:
            raise _too_large(self._settings.max_body)

    def _check_names(self, headers: dict[str, str]) -> None:
        """Without a key, a page of another origin (or one whose name resolves to us) must not drive the engine."""
        host = headers.get("host", "")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise RequestError("requests from pages of another origin are refused", status=403, code="origin")
        if self._settings.loopback and not self._settings.keys and host and not is_loopback(_without_port(host)):
            raise RequestError("this server answers to localhost alone", status=403, code="host")


def _without_port(host: str) -> str:
    """The name in a Host header; all of it where it is not of a name's form."""
    match = _HOST.fullmatch(host)
    return match[1] if match else host


class _Limited:
    """A request's body on its way, which ends with RequestError (413) when it is too large."""

    def __init__(self, receive: Receive, limit: int, scope: Scope) -> None:
        self._receive = receive
        self._limit = limit
        self._taken = 0
        lengths = {name: value for name, value in scope["headers"] if name in (b"content-length", b"transfer-encoding")}
        self.whole = b"transfer-encoding" not in lengths and lengths.get(b"content-length", b"0") == b"0"
        """Whether all of it has come."""

    async def __call__(self) -> Message:
        """The next message, as ASGI has it."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.whole = not message.get("more_body", False)
            self._taken += len(message.get("body", b""))
            if self._taken > self._limit:
                raise _too_large(self._limit)
        return message


def _too_large(limit: int) -> RequestError:
    return RequestError(f"the body is larger than {limit} bytes", status=413, code="body_too_large")


async def _refuse(scope: Scope, error: RequestError, send: Any) -> None:
    await error_response(scope["path"], error)(scope, _nothing, send)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def error_response(path: str, error: RequestError) -> Any:
    """The Starlette response for an error, in the shape of the protocol that `path` belongs to."""
    from starlette.responses import JSONResponse

    body = ollama_body(error) if path.startswith("/api/") else openai_body(error)
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status_code=error.status, headers=headers)
