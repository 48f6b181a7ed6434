"""Several sequences of one engine run together: each step takes every sequence that has tokens waiting.

A sequence joins with its prompt, which is run in parts beside the others' tokens, and leaves when its answer ends.
Weights are read once for all of them, which is what a step mostly costs. What a step is, a `Runner` knows.

All runs are made by one thread: OpenMP, which llama.cpp uses, keeps a team of threads for each thread that calls it,
and idle teams that wait awake take the cores from the one at work.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.engines.checks import check_ids, check_length, check_room
from edgeship_runtime.errors import EdgeshipRuntimeError, EngineError

BESIDE = 64
"""Prompt tokens in a step that also decodes: what the others' next tokens wait for, and few lose no speed."""

_PATIENCE = 0.25
"""Of the last step's time: how long a step waits for sequences whose next token is still being chosen."""
_LEAST_PATIENCE_S = 0.0005
_CLOSE_S = 5.0  # for the step at work, so that the memory is free when `close` returns


class Promise:
    """What will come of something that was asked of the thread."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    def finish(self, value: Any = None, error: BaseException | None = None) -> None:
        """Say what came of it."""
        self._value, self._error = value, error
        self._done.set()

    def wait(self) -> Any:
        """The value; raises the error. An interrupt waits for the thread to be done with it, and is raised then."""
        try:
            self._done.wait()
        except BaseException:
            self._done.wait()
            raise
        if self._error is not None:
            raise self._error
        return self._value


@dataclass
class Tokens:
    """Tokens to run for a lane; `place` of them were run."""

    lane: Lane
    ids: NDArray[np.int64]
    place: int = 0
    promise: Promise = field(default_factory=Promise)

    @property
    def left(self) -> int:
        """How many were not."""
        return len(self.ids) - self.place


@dataclass(frozen=True)
class Call:
    """A function to call between two steps."""

    work: Callable[[], Any]
    promise: Promise = field(default_factory=Promise)


class Runner(Protocol):
    """An engine with room for several sequences; all calls come from one thread."""

    name: str
    threads: int
    vocab_size: int
    context: int
    """Of each sequence."""
    layout: str
    """What the bytes of a state depend on beside model and version."""
    loaded: Any
    """The model, where a tokenizer may share it."""
    divisible: bool
    """Whether a part of a lane's tokens can be held; a recurrent model's state is of all of them."""

    def run(self, asks: Sequence[Tokens]) -> list[Tokens]:
        """One step: single tokens all, of prompts as many as a step takes; return those whose `logits` there are.

        Advances `place`, and of the lanes `held` and `length`, which say what the KV cache holds where a lane is
        `settled`; else it is brought to that first. Raises EngineError when the run fails.
        """

    def copy(self, source: Lane, target: Lane, count: int) -> None:
        """Have an empty lane hold the first tokens of another, where the state is `divisible`; raises EngineError."""

    def clear(self, lane: Lane) -> None:
        """Empty a lane's KV cache."""

    def save(self, lane: Lane) -> bytes:
        """The state of the tokens a lane holds; raises EngineError."""

    def restore(self, lane: Lane, state: bytes | bytearray, tokens: list[int]) -> None:
        """Fill an empty lane by the state of tokens; raises EngineError, and leaves it empty, for one that is wrong."""

    def close(self) -> None:
        """Free the model's memory."""


class Batch:
    """The thread that runs the lanes of a runner; `lanes` are the engines to use."""

    def __init__(self, runner: Runner, count: int) -> None:
        self.runner = runner
        self._asked: queue.SimpleQueue[Tokens | Call | None] = queue.SimpleQueue()
        self._pending: dict[int, Tokens] = {}  # by lane, the longest waiting first
        self._near: set[int] = set()  # lanes whose next token is expected soon
        self._step_s = 0.0
        self._closed = False
        self._door = threading.Lock()  # nothing is asked once the thread has answered the last time
        self.lanes = tuple(Lane(self, number) for number in range(count))
        self._thread = threading.Thread(target=self._work, name="edgeship-batch", daemon=True)
        self._thread.start()

    def evaluate(self, lane: Lane, ids: NDArray[np.int64]) -> None:
        """Run ids for a lane; its `logits` are those after the last."""
        self._ask(Tokens(lane, ids))

    def call(self, work: Callable[[], Any]) -> Any:
        """What a function gives that uses the runner, between two steps."""
        return self._ask(Call(work))

    def rest(self, number: int) -> None:
        """Expect no token from a lane for now."""
        with suppress(EngineError):  # closed
            self._put(Call(lambda: self._near.discard(number)))

    def close(self) -> None:
        """End the thread and free the model; who waits gets an EngineError."""
        with self._door:
            self._closed = True
            self._asked.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_S)

    def _ask(self, ask: Tokens | Call) -> Any:
        self._put(ask)
        return ask.promise.wait()

    def _put(self, ask: Tokens | Call) -> None:
        with self._door:
            if self._closed:
                raise _closed()
            self._asked.put(ask)

    def _work(self) -> None:
        try:
            while self._collect():
                self._step()
        finally:
            self._end()

    def _collect(self) -> bool:
        """Take what was asked until there is a step to run; False when all is over."""
        until = 0.0
        while True:
            wait: float | None = None
            if self._pending:
                until = until or time.monotonic() + max(_LEAST_PATIENCE_S, _PATIENCE * self._step_s)
                missing = self._near.difference(self._pending)
                wait = until - time.monotonic() if missing else 0.0
                if wait <= 0 and self._asked.empty():
                    self._near &= set(self._pending)  # who is late is not waited for again
                    return True
            try:
                ask = self._asked.get(timeout=None if wait is None else max(wait, 0.0))
            except queue.Empty:
                continue
            if ask is None:
                return False
            if isinstance(ask, Tokens):
                self._pending[ask.lane.number] = ask
                self._near.add(ask.lane.number)
                continue
            try:
                ask.promise.finish(ask.work())
            except BaseException as error:
                ask.promise.finish(error=error)

    def _step(self) -> None:
        """Run one step of what is pending; whatever goes wrong, who waits hears of it."""
        started = time.perf_counter()
        try:
            for ask in self.runner.run(list(self._pending.values())):
                del self._pending[ask.lane.number]
                ask.promise.finish()
        except BaseException as error:
            for ask in self._pending.values():
                ask.lane.settled = False
                ask.promise.finish(error=_copy(error))
            self._pending.clear()
        self._step_s = time.perf_counter() - started

    def _end(self) -> None:
        waiting: list[Tokens | Call | None] = list(self._pending.values())
        with self._door:
            self._closed = True
            while not self._asked.empty():
                waiting.append(self._asked.get())
        self.runner.close()
        for ask in waiting:
            if ask is not None:
                ask.promise.finish(error=_closed())

    def share(self, lane: Lane, tokens: Sequence[int], least: int) -> int:
        """See `Lane.share`; within `call`."""
        if not self.runner.divisible:
            return 0
        shared = {other: _common(other.held[: other.length], tokens) for other in self.lanes if other is not lane}
        best = max(shared, key=shared.__getitem__)
        count = shared[best]
        if not 0 < count >= least:
            return 0
        self.hold(lane, ())
        self.runner.copy(best, lane, count)
        self.hold(lane, tokens[:count])
        return count

    def hold(self, lane: Lane, tokens: Sequence[int]) -> None:
        """Note what a lane holds; none are cleared."""
        if not tokens:
            self.runner.clear(lane)
        lane.held, lane.length, lane.settled = list(tokens), len(tokens), True

    def restore(self, lane: Lane, state: bytes | bytearray, tokens: list[int]) -> None:
        """See `Lane.restore`; within `call`."""
        self.hold(lane, ())
        self.runner.restore(lane, state, tokens)
        self.hold(lane, tokens)


class Lane:
    """One sequence of a batch; see `engines.Engine`. For one thread at a time; other lanes have others."""

    def __init__(self, batch: Batch, number: int) -> None:
        self._batch = batch
        runner = batch.runner
        self.number = number
        self.name = runner.name
        self.threads = runner.threads
        self.vocab_size = runner.vocab_size
        self.context = runner.context
        self.length = 0
        self.logits = np.empty(runner.vocab_size, np.float32)
        """After the last token; the next `evaluate` overwrites it."""
        self.held: list[int] = []
        self.settled = True
        """Whether the KV cache holds `length` tokens of the lane and no more."""

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """All lanes of the batch."""
        return self._batch.lanes

    @property
    def loaded(self) -> Any:
        """llama.cpp's model, whose vocabulary a tokenizer may share."""
        return self._batch.runner.loaded

    def evaluate(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens to the KV cache; return the logits after the last: [vocab_size]."""
        ids = check_ids(tokens, self.vocab_size)
        check_room(len(ids), self.length, self.context)
        self._batch.evaluate(self, ids)
        return self.logits

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens of the KV cache."""
        check_length(length, self.length)
        if length < self.length:
            self.length = length
            self.settled = False  # done when it is needed

    def rest(self) -> None:
        """Say that the answer is over: steps wait for no token of this lane."""
        self._batch.rest(self.number)

    def share(self, tokens: Sequence[int], least: int) -> int:
        """Hold the longest beginning of `tokens` that another lane holds, if it has `least` tokens.

        Returns how many they are; 0 when there are none such.
        """
        found: int = self._batch.call(lambda: self._batch.share(self, tokens, least))
        return found

    @property
    def state_layout(self) -> str:
        """What the bytes of `save` depend on beside model and version; the engine of one sequence has the same."""
        return self._batch.runner.layout

    def save(self) -> bytes:
        """The state of all tokens held; raises EngineError for none, or when closed."""
        if not self.length:
            raise EngineError("the engine holds no tokens, or is closed; it has no state to save")
        state: bytes = self._batch.call(lambda: self._batch.runner.save(self))
        return state

    def restore(self, state: bytes | bytearray, tokens: Sequence[int]) -> None:
        """Hold `tokens` by the state that `save` gave of them; raises EngineError for one that is refused."""
        ids = check_ids(tokens, self.vocab_size)
        check_room(len(ids), 0, self.context)
        self._batch.call(lambda: self._batch.restore(self, state, ids.tolist()))

    def close(self) -> None:
        """Free context and model, for all lanes; a second call does nothing."""
        self._batch.close()
        self.length = 0


def _common(held: Sequence[int], tokens: Sequence[int]) -> int:
    count = 0
    for one, other in zip(held, tokens, strict=False):
        if one != other:
            break
        count += 1
    return count


def _closed() -> EngineError:
    return EngineError("the engine is closed; it cannot evaluate tokens", hint="load the artifact again")


def _copy(error: BaseException) -> BaseException:
    """One for each who waits: a raised exception carries the traceback of its thread."""
    if isinstance(error, EdgeshipRuntimeError):
        return type(error)(error.message, hint=error.hint)
    return EngineError(f"the engine failed: {type(error).__name__}")
