"""The server of `edgeship serve-web`: the files that `bundle.json` names and no others, and results that come back."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeship.errors import EdgeshipError
from edgeship.ship.report import Report
from edgeship.ship.web_results import MAX_RESULT, read_result
from edgeship.ship.web_site import NAME, SITE, Site

INDEX = "index.html"
RESULTS = "results"
CERTIFICATE = "certificate.crt"

_BODY_S = 30.0  # for a body to come whole
_FRESH = (INDEX, SITE, "sw.js", "manifest.webmanifest", "README.md")

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
}

ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
"""What browsers ask for before a page gets shared memory, and so threads."""

Keep = Callable[[Report], str]
"""Keeps a report, and returns what is said of it; may raise EdgeshipError."""


def policy(form: str) -> str:
    """The content security policy for an artifact of a format: nothing from anywhere else."""
    workers = "'self' blob:" if form == "gguf" else "'self'"  # wllama makes its workers from text
    return (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self'; "
        f"connect-src 'self'; worker-src {workers}; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def web_app(site: Site, keep: Keep, *, isolated: bool = True, certificate: bytes | None = None) -> ASGIApp:
    """The ASGI application; `isolated` False leaves out ISOLATION, `certificate` is served for phones to trust."""
    results = _Results(site, keep)
    routes = [Route(f"/{RESULTS}", results, methods=["POST"])]
    if certificate is not None:
        routes.append(Route(f"/{CERTIFICATE}", _certificate(certificate), methods=["GET", "HEAD"]))
    routes.append(Route("/{name:path}", _files(site), methods=["GET", "HEAD"]))
    handlers: dict[Any, Any] = {HTTPException: _refused}
    return _Headers(Starlette(routes=routes, exception_handlers=handlers), site, isolated=isolated)


class _Headers:
    """Adds to every answer, errors included, what keeps the page to itself."""

    def __init__(self, app: ASGIApp, site: Site, *, isolated: bool) -> None:
        self._app = app
        self._headers = {
            "Content-Security-Policy": policy(site.manifest.format),
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        } | (ISOLATION if isolated else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, headed)


def _files(site: Site) -> Callable[[Request], Response]:
    told = json.loads((site.path / SITE).read_bytes())
    site_json = json.dumps(told | {"results": RESULTS}, ensure_ascii=False).encode()

    def route(request: Request) -> Response:
        name = request.path_params["name"] or INDEX
        if name == SITE:
            return Response(site_json, media_type=TYPES[".json"], headers={"Cache-Control": "no-cache"})
        entry = site.files.get(name)
        if entry is None or name == NAME:
            raise HTTPException(404)
        etag = f'"{entry.sha256}"'
        headers = {"Cache-Control": _kept(name), "ETag": etag}
        if etag in [each.strip() for each in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        path = site.path / name
        stat = path.stat() if path.is_file() else None
        if stat is None or stat.st_size != entry.size:
            raise HTTPException(503, "the bundle was changed; make it again, and start the server again")
        media_type = TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")
        return FileResponse(path, headers=headers, media_type=media_type, stat_result=stat)

    return route


def _kept(name: str) -> str:
    """For how long a browser's own cache keeps a file."""
    if name.startswith("assets/"):
        return "public, max-age=31536000, immutable"  # their names carry a hash
    # The app keeps the model in files of its own: a second copy would take the phone's storage.
    return "no-store" if name.startswith("model/") else "no-cache"


def _certificate(raw: bytes) -> Callable[[Request], Response]:
    return lambda request: Response(raw, media_type="application/x-x509-ca-cert")


class _Results:
    """Takes a page's results: of this origin, bounded, and so many a minute."""

    def __init__(self, site: Site, keep: Keep) -> None:
        self._site, self._keep = site, keep
        self._limit = Limit()
        self._one = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except EdgeshipError as error:
            response = _error(422, error.message, error.hint)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        origin, host = request.headers.get("origin"), request.headers.get("host", "")
        if origin is not None and origin.split("://")[-1] != host:
            return _error(403, "results are taken from the page of this site only")
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            return _error(415, "expected application/json")
        client = request.client.host if request.client else "unknown"
        wait = self._limit.wait(client, time.monotonic())
        if wait > 0:
            response = _error(429, f"too many results; try again in {wait:.0f} s")
            response.headers["Retry-After"] = f"{wait:.0f}"
            return response
        raw = await _body(request)
        report = read_result(raw, self._site, client)
        async with self._one:  # reports are read and written together
            said = await asyncio.to_thread(self._keep, report)
        return JSONResponse({"report": said, "verdict": report.verdict}, status_code=201)


async def _body(request: Request) -> bytes:
    raw = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > MAX_RESULT:
                    raise HTTPException(413, f"expected at most {MAX_RESULT} bytes")
    except TimeoutError:
        raise HTTPException(408, f"the result did not come within {_BODY_S:.0f} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the client left") from None
    return bytes(raw)


class Limit:
    """At most so many results: `each` a minute from one address, and `total` from all."""

    def __init__(self, each: int = 6, total: int = 60) -> None:
        self._each, self._total = each, total
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)

    def wait(self, client: str, now: float) -> float:
        """Seconds to wait, 0 where the result may come now; it is counted then."""
        for name in [name for name, times in self._times.items() if not times or times[-1] < now - 60]:
            del self._times[name]
        for times in self._times.values():
            while times and times[0] < now - 60:
                times.popleft()
        mine = self._times[client]
        if len(mine) >= self._each:
            return mine[0] + 60 - now
        if sum(map(len, self._times.values())) >= self._total:
            return min(times[0] for times in self._times.values() if times) + 60 - now
        mine.append(now)
        return 0.0


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    texts = {404: "there is no such file here", 405: "this address does not take that method"}
    response = _error(error.status_code, texts.get(error.status_code, error.detail))
    response.headers.update(error.headers or {})
    return response


def _error(status: int, message: str, hint: str = "") -> JSONResponse:
    body = {"message": message} | ({"hint": hint} if hint else {})
    return JSONResponse({"error": body}, status_code=status, headers={"Cache-Control": "no-store"})
