"""Several sequences in one llama.cpp context, decoded together: each step runs every sequence that has tokens waiting.

A sequence joins with its prompt, which is run in parts beside the others' tokens, and leaves when its answer ends.
Weights are read once for all of them, which is what a step mostly costs.

All calls to llama.cpp come from one thread: OpenMP keeps a team of threads for each thread that calls it, and idle
teams that wait awake take the cores from the one at work.
"""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.engines.checks import check_ids, check_length, check_room
from edgeship_runtime.engines.llama_library import LoadedModel, failure, library, listen
from edgeship_runtime.engines.llama_rows import Rows
from edgeship_runtime.engines.llamacpp import CHUNK, Opened
from edgeship_runtime.errors import EdgeshipRuntimeError, EngineError

BESIDE = 64
"""Prompt tokens in a step that also decodes: what the others' next tokens wait for, and few lose no speed."""

_PATIENCE = 0.25
"""Of the last step's time: how long a step waits for sequences whose next token is still being chosen."""
_LEAST_PATIENCE_S = 0.0005
_CLOSE_S = 5.0  # for the step at work, so that the memory is free when `close` returns


class _Promise:
    """What will come of something that was asked of the thread."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    def finish(self, value: Any = None, error: BaseException | None = None) -> None:
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
class _Tokens:
    """Tokens to run for a sequence; `place` of them were run."""

    sequence: LlamaSequence
    ids: NDArray[np.int64]
    place: int = 0
    promise: _Promise = field(default_factory=_Promise)

    @property
    def left(self) -> int:
        return len(self.ids) - self.place


@dataclass(frozen=True)
class _Call:
    """A function to call between two steps."""

    work: Callable[[], Any]
    promise: _Promise = field(default_factory=_Promise)


class LlamaBatch:
    """The sequences of a context and the thread that runs them; `sequences` are the engines to use."""

    def __init__(
        self, opened: Opened, count: int, *, context: int, threads: int, batch_threads: int, name: str, layout: str
    ) -> None:
        """`context` is that of each of the `count` sequences."""
        self._lib = library()
        self._opened: Opened | None = opened
        self.loaded = opened.loaded
        self.name = name
        self.threads = threads
        self.batch_threads = batch_threads
        self.context = context
        self.layout = layout
        self.vocab_size = opened.loaded.vocab_size
        self._memory = self._lib.llama_get_memory(opened.pointer)
        model = self.loaded.pointer
        self._divisible = not (self._lib.llama_model_is_recurrent(model) or self._lib.llama_model_is_hybrid(model))
        self._rows = Rows(self._lib, min(CHUNK, context * count))
        self._asked: queue.SimpleQueue[_Tokens | _Call | None] = queue.SimpleQueue()
        self._pending: dict[int, _Tokens] = {}  # by sequence, the longest waiting first
        self._near: set[int] = set()  # sequences whose next token is expected soon
        self._step_s = 0.0
        self._closed = False
        self._door = threading.Lock()  # nothing is asked once the thread has answered the last time
        self.sequences = tuple(LlamaSequence(self, number) for number in range(count))
        self._thread = threading.Thread(target=self._work, name="edgeship-batch", daemon=True)
        self._thread.start()

    def evaluate(self, sequence: LlamaSequence, ids: NDArray[np.int64]) -> None:
        """Run ids for a sequence; its `logits` are those after the last."""
        self._ask(_Tokens(sequence, ids))

    def call(self, work: Callable[[], Any]) -> Any:
        """What a function gives that calls llama.cpp, between two steps."""
        return self._ask(_Call(work))

    def rest(self, number: int) -> None:
        """Expect no token from a sequence for now."""
        with suppress(EngineError):  # closed
            self._put(_Call(lambda: self._near.discard(number)))

    def close(self) -> None:
        """End the thread and free context and model; who waits gets an EngineError."""
        with self._door:
            self._closed = True
            self._asked.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_S)

    def _ask(self, ask: _Tokens | _Call) -> Any:
        self._put(ask)
        return ask.promise.wait()

    def _put(self, ask: _Tokens | _Call) -> None:
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
            if isinstance(ask, _Tokens):
                self._pending[ask.sequence.number] = ask
                self._near.add(ask.sequence.number)
                continue
            try:
                ask.promise.finish(ask.work())
            except BaseException as error:
                ask.promise.finish(error=error)

    def _step(self) -> None:
        """Run one batch of what is pending; whatever goes wrong, who waits hears of it."""
        started = time.perf_counter()
        try:
            parts = self._fill()
            listen()
            code = self._lib.llama_decode(self._pointer, self._rows.batch)
            if code:
                hint = "a smaller context or fewer sequences may help"
                raise failure(f"llama.cpp could not run the model (code {code})", EngineError, hint)
            for ask, count, row in parts:
                self._advance(ask, count, row)
        except BaseException as error:
            for ask in self._pending.values():
                ask.sequence.settled = False
                ask.promise.finish(error=_copy(error))
            self._pending.clear()
        self._step_s = time.perf_counter() - started

    @property
    def _pointer(self) -> Any:
        assert self._opened is not None
        return self._opened.pointer

    def _fill(self) -> list[tuple[_Tokens, int, int]]:
        """Put rows into the batch: every single token, then prompts in their order; return who has how many, and
        the last row of each."""
        for ask in self._pending.values():
            self._settle(ask)
        asks = sorted(self._pending.values(), key=lambda ask: ask.left > 1)
        singles = sum(ask.left == 1 for ask in asks)
        room = self._rows.size if not singles else min(self._rows.size, singles + BESIDE)
        parts, used = [], 0
        for ask in asks:
            count = min(ask.left, room - used)
            if not count:
                break
            ids = ask.ids[ask.place : ask.place + count]
            self._rows.put(used, ids, ask.sequence.length, ask.sequence.number, last=count == ask.left)
            used += count
            parts.append((ask, count, used - 1))
        self._rows.batch.n_tokens = used
        return parts

    def _settle(self, ask: _Tokens) -> None:
        """Bring the KV cache of a sequence to its first `length` tokens, if it holds others."""
        sequence = ask.sequence
        if not sequence.settled and not self._wind_back(sequence):
            # The state of a recurrent model is built anew.
            self.clear(sequence.number)
            ask.ids, ask.place = np.concatenate([np.array(sequence.held, np.int64), ask.ids[ask.place :]]), 0
            sequence.held, sequence.length = [], 0
        sequence.settled = True

    def _wind_back(self, sequence: LlamaSequence) -> bool:
        """Take what a sequence holds beyond `length` out of the KV cache; False where that cannot be done."""
        del sequence.held[sequence.length :]
        return bool(self._lib.llama_memory_seq_rm(self._memory, sequence.number, sequence.length, -1))

    def _advance(self, ask: _Tokens, count: int, row: int) -> None:
        sequence = ask.sequence
        sequence.held += ask.ids[ask.place : ask.place + count].tolist()
        sequence.length += count
        ask.place += count
        if ask.left:
            return
        found = self._lib.llama_get_logits_ith(self._pointer, row)
        if not found:
            raise EngineError("llama.cpp gave no logits: the model does not predict tokens")
        # A copy: while one sequence chooses its token, the next step may overwrite llama.cpp's.
        ctypes.memmove(sequence.logits.ctypes.data, found, sequence.logits.nbytes)
        del self._pending[sequence.number]
        ask.promise.finish()

    def _end(self) -> None:
        self._opened = None
        waiting: list[_Tokens | _Call | None] = list(self._pending.values())
        with self._door:
            self._closed = True
            while not self._asked.empty():
                waiting.append(self._asked.get())
        for ask in waiting:
            if ask is not None:
                ask.promise.finish(error=_closed())

    def clear(self, number: int) -> None:
        """Forget a sequence's tokens; within `call`."""
        self._lib.llama_memory_seq_rm(self._memory, number, -1, -1)

    def share(self, sequence: LlamaSequence, tokens: Sequence[int], least: int) -> int:
        """See `LlamaSequence.share`; within `call`."""
        others = [other for other in self.sequences if other is not sequence] if self._divisible else []
        shared = {other.number: _common(other.held[: other.length], tokens) for other in others}
        best = max(shared, key=shared.__getitem__, default=0)
        count = shared.get(best, 0)
        if not 0 < count >= least:
            return 0
        self._hold(sequence, ())
        self._lib.llama_memory_seq_cp(self._memory, best, sequence.number, 0, count)
        if self._lib.llama_memory_seq_pos_max(self._memory, sequence.number) != count - 1:
            raise EngineError("llama.cpp did not copy the tokens of one sequence to another")
        self._hold(sequence, tokens[:count])
        return count

    def _hold(self, sequence: LlamaSequence, tokens: Sequence[int]) -> None:
        """Note what a sequence holds; none are cleared."""
        if not tokens:
            self.clear(sequence.number)
        sequence.held, sequence.length, sequence.settled = list(tokens), len(tokens), True

    def save(self, sequence: LlamaSequence) -> bytes:
        """The state of a sequence; within `call`."""
        if not sequence.settled and not self._wind_back(sequence):
            raise EngineError("the state of this model cannot be wound back to be saved")
        sequence.settled = True
        size = self._lib.llama_state_seq_get_size(self._pointer, sequence.number)
        state = (ctypes.c_uint8 * size)()
        written = self._lib.llama_state_seq_get_data(self._pointer, state, size, sequence.number)
        if not 0 < written <= size:
            raise EngineError("llama.cpp could not save the state of the tokens it holds")
        return bytes(memoryview(state)[:written])

    def restore(self, sequence: LlamaSequence, state: bytes, tokens: list[int]) -> None:
        """Have a sequence hold tokens by their state; within `call`."""
        self._hold(sequence, ())
        listen()
        view = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        taken = self._lib.llama_state_seq_set_data(self._pointer, view, len(state), sequence.number)
        if taken != len(state) or self._lib.llama_memory_seq_pos_max(self._memory, sequence.number) != len(tokens) - 1:
            self.clear(sequence.number)
            raise failure("llama.cpp refused the state", EngineError, "it is another model's, or of other tokens")
        self._hold(sequence, tokens)


class LlamaSequence:
    """One sequence of a batch; see `engines.Engine`. For one thread at a time; other sequences have others."""

    def __init__(self, batch: LlamaBatch, number: int) -> None:
        self._batch = batch
        self.number = number
        self.name = batch.name
        self.threads = batch.threads
        self.batch_threads = batch.batch_threads
        self.vocab_size = batch.vocab_size
        self.context = batch.context
        self.length = 0
        self.logits = np.empty(batch.vocab_size, np.float32)
        """After the last token; the next `evaluate` overwrites it."""
        self.held: list[int] = []
        self.settled = True
        """Whether the KV cache holds `length` tokens of the sequence and no more."""

    @property
    def lanes(self) -> tuple[LlamaSequence, ...]:
        """All sequences of the batch."""
        return self._batch.sequences

    @property
    def loaded(self) -> LoadedModel:
        """The model, whose vocabulary a tokenizer may share."""
        return self._batch.loaded

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
        """Say that the answer is over: steps wait for no token of this sequence."""
        self._batch.rest(self.number)

    def share(self, tokens: Sequence[int], least: int) -> int:
        """Hold the longest beginning of `tokens` that another sequence holds, if it has `least` tokens.

        Returns how many they are; 0 leaves everything as it was.
        """
        found: int = self._batch.call(lambda: self._batch.share(self, tokens, least))
        return found

    @property
    def state_layout(self) -> str:
        """What the bytes of `save` depend on beside model and version; a single sequence's engine has the same."""
        return self._batch.layout

    def save(self) -> bytes:
        """The state of all tokens held, as llama.cpp writes it; raises EngineError for none, or when closed."""
        if not self.length:
            raise EngineError("the engine holds no tokens, or is closed; it has no state to save")
        state: bytes = self._batch.call(lambda: self._batch.save(self))
        return state

    def restore(self, state: bytes, tokens: Sequence[int]) -> None:
        """Hold `tokens` by the state that `save` gave of them; raises EngineError when llama.cpp refuses it."""
        ids = check_ids(tokens, self.vocab_size)
        check_room(len(ids), 0, self.context)
        self._batch.call(lambda: self._batch.restore(self, state, ids.tolist()))

    def close(self) -> None:
        """Free context and model, for all sequences; a second call does nothing."""
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
