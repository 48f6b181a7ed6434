"""The queue with models that do as they are told: turns, limits, deadlines, failures, memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import Any

import pytest

from edgeship_runtime.errors import EngineError, UsageError
from edgeship_runtime.server.problems import RequestError
from scheduling import Bench, play, read, refusal, until


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
