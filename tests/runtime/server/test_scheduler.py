"""The queue with models that do as they are told: turns, limits, deadlines, failures, memory."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeship_runtime.errors import ArtifactError, EngineError, UsageError
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


def test_clients_take_turns_whoever_asked_first() -> None:
    bench = Bench()

    async def scene() -> None:
        held = bench.scheduler.submit("x", "a", bench.hold())
        await until(lambda: bool(bench.scheduler.running))
        jobs = [bench.scheduler.submit("greedy", "a", bench.work(f"greedy{i}")) for i in range(3)]
        jobs += [bench.scheduler.submit("small", "a", bench.work(f"small{i}")) for i in range(2)]
        bench.gate.set()
        assert await read(held) == [0, 1]
        assert [await read(job) for job in jobs] == [[0, 1, 2]] * 5

    play(bench, scene)
    assert bench.done == ["greedy0", "small0", "greedy1", "small1", "greedy2"]


def test_a_full_queue_refuses_the_greediest() -> None:
    bench = Bench(queue_limit=2)

    async def scene() -> None:
        bench.scheduler.submit("x", "a", bench.hold())
        await until(lambda: bool(bench.scheduler.running))
        first, second = (bench.scheduler.submit("greedy", "a", bench.work(str(i))) for i in range(2))
        with pytest.raises(RequestError) as caught:
            bench.scheduler.submit("greedy", "a", bench.work())
        assert (caught.value.status, caught.value.retry_after_s is not None) == (429, True)
        other = bench.scheduler.submit("small", "a", bench.work("small"))
        assert (await refusal(second)).status == 429
        with pytest.raises(RequestError):
            bench.scheduler.submit("third", "a", bench.work())
        assert bench.scheduler.waiting == 2
        bench.gate.set()
        assert await read(first) == await read(other) == [0, 1, 2]

    play(bench, scene)


def test_a_cancelled_request_never_runs_or_ends_at_its_next_item() -> None:
    bench = Bench()

    async def scene() -> None:
        held = bench.scheduler.submit("x", "a", bench.hold())
        await until(lambda: bool(bench.scheduler.running))
        waiting = bench.scheduler.submit("x", "a", bench.work("never"))
        waiting.cancel()
        held.cancel()
        bench.gate.set()
        assert (await refusal(held)).code == "cancelled"
        assert await read(bench.scheduler.submit("x", "a", bench.work("after"))) == [0, 1, 2]

    play(bench, scene)
    assert bench.done == ["after"]
    assert bench.opened == ["a"]  # cancelling is no failure of the engine


def test_a_request_that_shows_nothing_yet_ends_at_the_engines_next_run() -> None:
    bench = Bench(stuck_s=0.3)
    runs = [0]

    def silent(model: Any) -> Generator[int, None, None]:
        yield 0
        while True:
            model.engine.evaluate([1])
            runs[0] += 1

    async def scene() -> None:
        job = bench.scheduler.submit("x", "a", silent)
        await until(lambda: runs[0] > 50)
        assert not bench.scheduler.stuck
        job.cancel()
        assert (await refusal(job)).code == "cancelled"
        done = runs[0]
        assert await read(bench.scheduler.submit("x", "a", bench.work())) == [0, 1, 2]
        assert runs[0] == done

    play(bench, scene)
    assert bench.opened == ["a"]


def test_a_late_request_is_refused_and_the_next_is_answered() -> None:
    bench = Bench(timeout_s=0.2)

    async def scene() -> None:
        held = bench.scheduler.submit("x", "a", bench.hold())
        behind = bench.scheduler.submit("x", "a", bench.work())
        assert [error.code for error in await asyncio.gather(refusal(held), refusal(behind))] == ["timeout"] * 2
        bench.gate.set()
        assert await read(bench.scheduler.submit("x", "a", bench.work())) == [0, 1, 2]

    play(bench, scene)


@pytest.mark.parametrize("error", [EngineError("/secret/path broke"), RuntimeError("/secret/path"), MemoryError()])
def test_after_a_failure_of_the_engine_the_model_is_loaded_anew(error: Exception) -> None:
    bench = Bench()

    async def scene() -> None:
        found = await refusal(bench.scheduler.submit("x", "a", bench.work(error=error)))
        assert (found.status, "secret" in str(found)) == (503, False)
        assert await read(bench.scheduler.submit("x", "a", bench.work())) == [0, 1, 2]

    play(bench, scene)
    assert bench.opened == ["a", "a"]


def test_a_wrong_request_is_no_failure_of_the_engine() -> None:
    bench = Bench()

    async def scene() -> None:
        found = await refusal(bench.scheduler.submit("x", "a", bench.work(error=UsageError("no such thing"))))
        assert (found.status, found.message) == (400, "no such thing")
        with pytest.raises(RequestError, match="there are: a, b, c"):
            bench.scheduler.submit("x", "nothing", bench.work())

    play(bench, scene)
    assert bench.opened == ["a"]


def test_an_artifact_that_does_not_load_is_a_503_without_its_path() -> None:
    bench = Bench()
    bench.fails = "the file is gone"

    async def scene() -> None:
        found = await refusal(bench.scheduler.submit("x", "a", bench.work()))
        assert (found.status, "nowhere" in str(found)) == (503, False)
        bench.fails = ""
        assert await read(bench.scheduler.submit("x", "a", bench.work())) == [0, 1, 2]

    play(bench, scene)
    (failed,) = [members for event, members in bench.events if event == "load_failed"]
    assert "the file is gone" in failed["error"]
    assert "nowhere" not in failed["error"]


def test_the_longest_unused_model_leaves_when_memory_is_short() -> None:
    bench: Bench = Bench(memory_mb=250, rss_mb=lambda: 100.0 * len(bench.shelf.loaded) + 51)

    async def scene() -> None:
        for name in ("a", "b", "a", "c", "a"):
            await read(bench.scheduler.submit("x", name, bench.work()))
            assert len(bench.shelf.loaded) <= 2

    play(bench, scene)
    assert bench.opened == ["a", "b", "c"]
    assert next(members["model"] for event, members in bench.events if event == "unloaded") == "b"


def test_a_stuck_engine_fails_what_waits_and_recovers_when_it_comes_back() -> None:
    bench = Bench(stuck_s=0.1)

    async def scene() -> None:
        held = bench.scheduler.submit("x", "a", bench.hold())
        await until(lambda: bool(bench.scheduler.running))
        behind = bench.scheduler.submit("x", "a", bench.work())
        await until(lambda: bench.scheduler.stuck)
        bench.scheduler.look_after()
        assert [error.code for error in await asyncio.gather(refusal(held), refusal(behind))] == ["stuck"] * 2
        with pytest.raises(RequestError) as caught:
            bench.scheduler.submit("x", "a", bench.work())
        assert caught.value.status == 503
        bench.gate.set()
        await until(lambda: not bench.scheduler.stuck)
        assert await read(bench.scheduler.submit("x", "a", bench.work())) == [0, 1, 2]

    play(bench, scene)


def test_the_end_lets_the_running_request_finish_and_refuses_the_rest() -> None:
    bench = Bench()

    async def scene() -> None:
        held = bench.scheduler.submit("x", "a", bench.hold())
        await until(lambda: bool(bench.scheduler.running))
        behind = bench.scheduler.submit("x", "a", bench.work())
        bench.scheduler.drain(5)
        assert (await refusal(behind)).code == "ending"
        with pytest.raises(RequestError):
            bench.scheduler.submit("x", "a", bench.work())
        bench.gate.set()
        assert await read(held) == [0, 1]

    play(bench, scene)
    assert bench.shelf.loaded == {}


def test_the_end_does_not_wait_longer_than_its_grace() -> None:
    bench = Bench()

    def endless(model: Any) -> Generator[int, None, None]:
        while True:
            time.sleep(0.01)
            yield 0

    async def scene() -> None:
        job = bench.scheduler.submit("x", "a", endless)
        await until(lambda: bool(bench.scheduler.running))
        bench.scheduler.drain(0.1)
        assert (await refusal(job)).code == "ending"

    play(bench, scene)


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


def test_what_nobody_waits_for_takes_no_place_in_the_queue() -> None:
    bench = Bench(queue_limit=1)

    async def scene() -> None:
        bench.scheduler.submit("x", "a", bench.hold())
        await until(lambda: bool(bench.scheduler.running))
        bench.scheduler.submit("y", "a", bench.work("left")).cancel()
        stays = bench.scheduler.submit("z", "a", bench.work("stays"))
        bench.gate.set()
        assert await read(stays) == [0, 1, 2]

    play(bench, scene)
    assert bench.done == ["stays"]
