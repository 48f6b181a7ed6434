"""A server on a free port of this machine, run in a thread of the test."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from edgeship_runtime.model import Model
from edgeship_runtime.server.serve import build, listen, uvicorn_server
from edgeship_runtime.server.settings import Settings
from edgeship_runtime.server.telemetry import Log

HOT = [{"role": "user", "content": "What is the opposite of hot?"}]
COLD = "The opposite of hot is cold."
"""What the embedded tiny model answers to it."""


@dataclass
class Served:
    """A running server."""

    url: str
    server: Any
    lines: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """What it logged."""

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        with self.client() as client:
            return client.get(path, **options)

    def ask(self, **members: Any) -> httpx.Response:
        """A small chat completion."""
        return self.post("/v1/chat/completions", {"model": "tiny", "messages": HOT, "temperature": 0, **members})

    def events(self, event: str) -> list[dict[str, Any]]:
        """Its lines so far; a request's comes after the answer, so wait for it."""
        return [line for line in list(self.lines) if line["event"] == event]

    def wait(self, true: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "it never came to be"
            time.sleep(0.01)


@contextmanager
def serving(
    artifacts: dict[str, Path], *, open_model: Callable[[Path], Model] | None = None, **settings: Any
) -> Generator[Served, None, None]:
    """Serve within the block."""
    lines: list[dict[str, Any]] = []
    made = Settings(artifacts=artifacts, threads=1, **({"grace_s": 3.0} | settings))
    server = build(made, log=Log(lambda line: lines.append(json.loads(line))), open_model=open_model)
    listener = listen(made.host, 0)
    running = uvicorn_server(server)
    thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
    thread.start()
    served = Served(f"http://127.0.0.1:{listener.getsockname()[1]}", server, lines)
    try:
        served.wait(lambda: running.started)
        yield served
    finally:
        running.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not end"
