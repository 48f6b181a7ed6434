"""What all routes share: reading a request, putting its work to the engine, and sending what comes of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from edgeship_runtime.answer import Stats
from edgeship_runtime.server.fields import Body, parse_object
from edgeship_runtime.server.gate import error_response
from edgeship_runtime.server.problems import RequestError
from edgeship_runtime.server.scheduler import Job, Scheduler, Work
from edgeship_runtime.server.schemas import requests
from edgeship_runtime.server.settings import Settings
from edgeship_runtime.server.shelf import Shelf
from edgeship_runtime.server.telemetry import Log, Sample, Telemetry

_BODY_S = 60  # for a body to come whole
_LOOK_S = 0.2  # between looks whether the client is still there
Lines = Callable[[AsyncIterator[Any]], AsyncGenerator[str, None]]
"""Dresses the items of an answer as the text that is sent; may raise RequestError."""


class Service:
    """The parts of a running server."""

    def __init__(self, settings: Settings, shelf: Shelf, scheduler: Scheduler, telemetry: Telemetry, log: Log) -> None:
        self.settings = settings
        self.shelf = shelf
        self.scheduler = scheduler
        self.telemetry = telemetry
        self.log = log
        self.requests = requests(settings)

    async def body(self, request: Request) -> Body:
        """The request's JSON object, as the schema of its route has it; raises RequestError."""
        try:
            async with asyncio.timeout(_BODY_S):
                raw = await request.body()
        except TimeoutError:
            raise RequestError(f"the body did not come within {_BODY_S} s", status=408, code="timeout") from None
        except ClientDisconnect:
            raise _gone() from None
        return parse_object(raw).check(self.requests[request.scope["edgeship.route"]])

    def submit(self, request: Request, model: str, work: Work) -> Job:
        """Queue work for the request's client; raises RequestError."""
        job = self.scheduler.submit(request.scope["edgeship.client"], model, work)
        request.scope["edgeship.log"] = {"model": job.model}
        return job

    def note_prompt(self, request: Request, text: str) -> None:
        """Have the log tell length and hash of a prompt."""
        request.scope["edgeship.log"] |= {"characters": len(text), "prompt_hash": self.log.fingerprint(text)}

    def note_answer(self, request: Request, job: Job, stats: Stats) -> None:
        """Count an answer."""
        queued = (job.started or job.made) - job.made
        self.telemetry.answer(job.model, Sample(queued, (job.first or time.monotonic()) - job.made, stats))
        request.scope["edgeship.log"] |= {
            "prompt_tokens": stats.prompt_tokens,
            "tokens": stats.tokens,
            "queued_s": round(queued, 3),
        }

    async def whole(self, request: Request, job: Job) -> list[Any]:
        """All items of the work; raises RequestError, also when the client left meanwhile."""
        async with _watched(request, job):
            return [item async for item in job.items()]

    async def stream(self, request: Request, job: Job, lines: Lines, media_type: str) -> Response:
        """A response that sends items as they come; its headers wait for the first, so that errors have a status."""
        items = job.items()
        async with _watched(request, job):
            try:
                first = await anext(items)
            except StopAsyncIteration:
                first = None
        rest = lines(_chained(first, items))
        return _Streaming(_ended(request, rest), job, media_type)


class _Streaming(StreamingResponse):
    """Cancels its job however it ends."""

    def __init__(self, content: AsyncIterator[str], job: Job, media_type: str) -> None:
        super().__init__(content, media_type=media_type, headers={"X-Accel-Buffering": "no"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


async def _chained(first: Any, rest: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    if first is not None:
        yield first
    async for item in rest:
        yield item


async def _ended(request: Request, lines: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The lines; an error in their middle becomes the last of them, in the protocol's shape."""
    try:
        async for line in lines:
            yield line
    except RequestError as error:
        request.scope["edgeship.failure"] = error.code
        text = error_response(request.url.path, error).body.decode()
        yield f"{text}\n" if request.url.path.startswith("/api/") else f"data: {text}\n\n"


@asynccontextmanager
async def _watched(request: Request, job: Job) -> AsyncGenerator[None, None]:
    """Fails the job when the client leaves."""

    async def watch() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(_LOOK_S)
        job.fail(_gone())

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        job.cancel()
        raise
    finally:
        watcher.cancel()


def _gone() -> RequestError:
    return RequestError("the client left", status=499, code="cancelled")


def event(value: object) -> str:
    """A server-sent event of one JSON value."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
