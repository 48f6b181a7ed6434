"""Lanes: how many requests run at once, on which of a model's contexts, and what waits for all of them to end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from typing import Any

from edgeship_runtime.errors import EngineError
from scheduling import Bench, play, read, refusal, until


class Held:
    """Work that runs until it is let go, and which lane's model it got."""

    def __init__(self) -> None:
        self.models: list[Any] = []
        self.gates = [threading.Event() for _ in range(8)]

    def work(self, number: int) -> Any:
        def run(model: Any) -> Generator[int, None, None]:
            self.models.append(model)
            yield number
            self.gates[number].wait(10)
            yield number

        return run

    def release(self) -> None:
        for gate in self.gates:
            gate.set()


def test_as_many_run_at_once_as_there_are_lanes() -> None:
    bench, held = Bench(lanes=3), Held()

    async def scene() -> None:
        jobs = [bench.scheduler.submit("x", "a", held.work(i)) for i in range(5)]
        await until(lambda: len(held.models) == 3)
        await asyncio.sleep(0.05)
        assert (bench.scheduler.running, bench.scheduler.waiting) == (3, 2)
        held.gates[1].set()  # one leaves, the next joins
        assert await read(jobs[1]) == [1, 1]
        await until(lambda: len(held.models) == 4)
        assert len({id(model) for model in held.models}) == 3
        held.release()
        assert [await read(job) for job in jobs if job is not jobs[1]] == [[0, 0], [2, 2], [3, 3], [4, 4]]

    play(bench, scene)
    assert bench.opened == ["a"]


def test_no_more_run_at_once_than_allowed() -> None:
    bench, held = Bench(lanes=3, parallel=2), Held()

    async def scene() -> None:
        jobs = [bench.scheduler.submit("x", "a", held.work(i)) for i in range(3)]
        await until(lambda: len(held.models) == 2)
        await asyncio.sleep(0.05)
        assert bench.scheduler.running == 2
        held.release()
        for job in jobs:
            await read(job)

    play(bench, scene)


def test_another_model_waits_for_the_lanes_and_who_comes_later_waits_behind_it() -> None:
    bench, held = Bench(lanes=2), Held()

    async def scene() -> None:
        first = bench.scheduler.submit("x", "a", held.work(0))
        await until(lambda: bench.scheduler.running == 1)
        other = bench.scheduler.submit("y", "b", held.work(1))
        later = bench.scheduler.submit("z", "a", held.work(2))
        await asyncio.sleep(0.05)
        assert (bench.scheduler.running, bench.scheduler.waiting) == (1, 2)
        held.release()
        assert [await read(job) for job in (first, other, later)] == [[0, 0], [1, 1], [2, 2]]

    play(bench, scene)
    assert bench.opened == ["a", "b"]


def test_a_client_gets_the_lane_it_had() -> None:
    bench, held = Bench(lanes=2), Held()
    held.release()

    async def scene() -> None:
        for client in ("x", "y", "y", "x", "x", "y"):
            await read(bench.scheduler.submit(client, "a", held.work(0)))
            await until(lambda: not bench.scheduler.running)

    play(bench, scene)
    one, other = held.models[:2]
    assert one is not other
    assert held.models == [one, other, other, one, one, other]


def test_a_model_that_failed_is_closed_once_its_last_request_has_ended() -> None:
    bench, held = Bench(lanes=2), Held()

    async def scene() -> None:
        whole = bench.scheduler.submit("x", "a", held.work(0))
        await until(lambda: bench.scheduler.running == 1)
        broken = await refusal(bench.scheduler.submit("y", "a", bench.work(error=EngineError("it broke"))))
        assert broken.status == 503
        later = bench.scheduler.submit("y", "a", bench.work("later"))
        await asyncio.sleep(0.05)
        assert (bench.scheduler.running, bench.scheduler.waiting, bench.opened) == (1, 1, ["a"])
        held.release()
        assert await read(whole) == [0, 0]
        assert await read(later) == [0, 1, 2]

    play(bench, scene)
    assert bench.opened == ["a", "a"]
