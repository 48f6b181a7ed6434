"""A scheduler over models that do as they are told: work that is held or fails, and what became of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeship_runtime.errors import ArtifactError
from edgeship_runtime.server.problems import RequestError
from edgeship_runtime.server.scheduler import Job, Scheduler
from edgeship_runtime.server.shelf import Shelf


class FakeModel:
    """A model that answers nothing, on an engine that takes a while."""

    def __init__(self, lanes: int) -> None:
        self.engine = SimpleNamespace(name="none", evaluate=lambda tokens: time.sleep(0.01))
        self.more = lanes - 1

    def lanes(self) -> list[FakeModel]:
        return [self, *(FakeModel(1) for _ in range(self.more))]

    def keep(self) -> None:
        pass

    def close(self) -> None:
        pass


class Bench:
    """A scheduler over three models that are nothing but names, and what happened to them."""

    def __init__(
        self,
        *,
        rss_mb: Callable[[], float] = lambda: 0.0,
        memory_mb: float | None = None,
        lanes: int = 1,
        parallel: int = 4,
        **limits: Any,
    ) -> None:
        self.lanes = lanes
        self.opened: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.done: list[str] = []
        self.fails = ""
        self.gate = threading.Event()
        shelf = Shelf(
            {name: Path("/nowhere") / name for name in ("a", "b", "c")},
            self.open,
            memory_mb=memory_mb,
            rss_mb=rss_mb,
            report=lambda event, **members: self.events.append((event, members)),
        )
        self.shelf = shelf
        self.scheduler = Scheduler(
            shelf, lambda event, **more: self.events.append((event, more)), parallel=parallel, **limits
        )

    def open(self, path: Path) -> Any:
        if self.fails:
            raise ArtifactError(f"{path}: {self.fails}")
        self.opened.append(path.name)
        return FakeModel(self.lanes)

    def work(self, name: str = "", items: int = 3, error: Exception | None = None) -> Any:
        def run(model: Any) -> Generator[int, None, None]:
            yield from range(items)
            if error is not None:
                raise error
            self.done.append(name)

        return run

    def hold(self) -> Any:
        """Work that runs until the gate opens."""

        def run(model: Any) -> Generator[int, None, None]:
            yield 0
            self.gate.wait(10)
            yield 1

        return run


def play(bench: Bench, scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    bench.scheduler.start()
    try:
        asyncio.run(scene())
    finally:
        bench.gate.set()
        assert bench.scheduler.close(5)


async def read(job: Job) -> list[Any]:
    return [item async for item in job.items()]


async def refusal(job: Job) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await read(job)
    return caught.value


async def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)
