"""The routes, and what starts and ends with the application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Scope

from edgeship_runtime.loading import load
from edgeship_runtime.model import Model
from edgeship_runtime.server import chat, monitor, ollama, openapi, page, responses, text
from edgeship_runtime.server.gate import Gate, error_response
from edgeship_runtime.server.lanes import MOST_LANES, lane_options
from edgeship_runtime.server.notify import notify
from edgeship_runtime.server.prefixes import remembering
from edgeship_runtime.server.problems import RequestError
from edgeship_runtime.server.scheduler import Scheduler
from edgeship_runtime.server.service import Service
from edgeship_runtime.server.settings import Settings
from edgeship_runtime.server.shelf import Shelf
from edgeship_runtime.server.telemetry import Log, Telemetry, rss_mb

_WATCH_S = 1.0
Answer = Callable[[Service, Request], Awaitable[Response]]


class Server:
    """An ASGI application and its parts."""

    def __init__(
        self,
        settings: Settings,
        *,
        log: Log | None = None,
        open_model: Callable[[Path], Model] | None = None,
    ) -> None:
        """`open_model` loads an artifact; None: `loading.load` with the settings' options."""
        self.settings = settings
        self.log = log or Log()

        def open_path(path: Path) -> Model:
            options = {**settings.engine_options, **lane_options(path, settings)}
            model = load(path, context=settings.context, threads=settings.threads, **options)
            return remembering(model, settings, self.log)

        shelf = Shelf(
            dict(settings.artifacts),
            open_model or open_path,
            memory_mb=settings.memory_mb,
            rss_mb=rss_mb,
            report=self.log,
        )
        scheduler = Scheduler(
            shelf,
            self.log,
            parallel=settings.parallel or MOST_LANES,
            queue_limit=settings.queue_limit,
            timeout_s=settings.timeout_s,
            stuck_s=settings.stuck_s,
        )
        self.service = Service(settings, shelf, scheduler, Telemetry(), self.log)
        monitor.watch(self.service)
        # Starlette's own application would answer 500 to what nobody expected, before the gate hears of it, and send
        # an address with a slash at its end to a place that the Host header names.
        self.routes = _routes(self.service)
        router = Router(self.routes, lifespan=self._lifespan, redirect_slashes=False)
        self.app = Gate(ExceptionMiddleware(router, handlers=_HANDLERS), settings, self._note)

    @asynccontextmanager
    async def _lifespan(self, app: object) -> AsyncGenerator[None, None]:
        scheduler = self.service.scheduler
        scheduler.start()
        watcher = asyncio.create_task(self._watch())
        notify("READY=1")
        try:
            yield
        finally:
            notify("STOPPING=1")
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
            ended = await asyncio.to_thread(scheduler.close, self.settings.grace_s)
            self.log("ended", engine="closed" if ended else "did not come back")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            self.service.scheduler.look_after()
            if self.service.scheduler.alive and not self.service.scheduler.stuck:
                notify("WATCHDOG=1")  # a service manager that no longer hears it starts the server anew

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        """Log and count a finished request; a path that is no route's may hold anything and is not written."""
        route = scope.get("edgeship.route", "none")
        self.service.telemetry.request(route, status)
        failure = {"failure": scope["edgeship.failure"]} if "edgeship.failure" in scope else {}
        self.log(
            "request",
            client=scope.get("edgeship.client"),
            method=scope["method"] if scope["method"] in _METHODS else "other",
            route=route,
            status=status,
            seconds=round(seconds, 4),
            **scope.get("edgeship.log", {}),
            **failure,
        )


_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")


def _routes(service: Service) -> list[BaseRoute]:
    posts: dict[str, Answer] = {
        "/v1/chat/completions": chat.completions,
        "/v1/completions": text.completions,
        "/v1/embeddings": text.embeddings,
        "/v1/responses": responses.create,
        "/api/chat": ollama.chat,
        "/api/generate": ollama.generate,
        "/api/embed": ollama.embeddings,
    }
    gets: dict[str, Callable[[], Any]] = {
        "/v1/models": lambda: _models(service),
        "/v1/stats": lambda: monitor.stats(service),
        "/api/tags": lambda: ollama.tags(service),
        "/api/version": ollama.version,
        "/openapi.json": lambda: openapi.document(service.settings, service.requests),
    }
    return [
        *(Route(path, _posted(service, path, work), methods=["POST"]) for path, work in posts.items()),
        *(Route(path, _got(path, read), methods=["GET"]) for path, read in gets.items()),
        Route("/v1/models/{name:path}", _model(service), methods=["GET"]),
        Route("/health", _health(service), methods=["GET"]),
        Route("/metrics", _metrics(service), methods=["GET"]),
        *page.routes(),
    ]


def _posted(service: Service, path: str, work: Answer) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        request.scope["edgeship.route"] = path
        return await work(service, request)

    return route


def _got(path: str, read: Callable[[], Any]) -> Callable[[Request], Response]:
    def route(request: Request) -> Response:
        request.scope["edgeship.route"] = path
        return JSONResponse(read())

    return route


def _models(service: Service) -> dict[str, Any]:
    return {"object": "list", "data": [_entry(service, name) for name in service.shelf.names]}


def _entry(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(service.telemetry.started), "owned_by": "edgeship"}


def _model(service: Service) -> Callable[[Request], Response]:
    def route(request: Request) -> Response:
        request.scope["edgeship.route"] = "/v1/models/NAME"
        return JSONResponse(_entry(service, service.shelf.check(request.path_params["name"])))

    return route


def _health(service: Service) -> Callable[[Request], Response]:
    def route(request: Request) -> Response:
        request.scope["edgeship.route"] = "/health"
        found = monitor.health(service)
        if service.settings.keys and "edgeship.holder" not in request.scope:
            found = {"status": found["status"]}  # names and figures are for those who have a key
        return JSONResponse(found, status_code=503 if found["status"] == "unhealthy" else 200)

    return route


def _metrics(service: Service) -> Callable[[Request], Response]:
    def route(request: Request) -> Response:
        request.scope["edgeship.route"] = "/metrics"
        return Response(service.telemetry.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return route


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    if error.code is not None:
        request.scope["edgeship.failure"] = error.code
    response: Response = error_response(request.url.path, error)
    return response


def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {404: "there is no such address here", 405: "this address does not take that method"}
    found = RequestError(message.get(error.status_code, "the request is refused"), status=error.status_code)
    response: Response = error_response(request.url.path, found)
    response.headers.update(error.headers or {})
    return response


_HANDLERS = {RequestError: _refused, HTTPException: _no_route}
