"""Several sequences in one llama.cpp context; see `batch`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeship_runtime.engines.batch import BESIDE, Lane, Tokens
from edgeship_runtime.engines.llama_library import failure, library, listen
from edgeship_runtime.engines.llama_rows import Rows
from edgeship_runtime.engines.llamacpp import CHUNK, Opened
from edgeship_runtime.errors import EngineError


class LlamaRunner:
    """A `batch.Runner`; a lane is a sequence of the context."""

    def __init__(self, opened: Opened, count: int, *, context: int, threads: int, name: str, layout: str) -> None:
        """`context` is that of each of the `count` sequences."""
        self._lib = library()
        self._opened: Opened | None = opened
        self.loaded = opened.loaded
        self.name = name
        self.threads = threads
        self.context = context
        self.layout = layout
        self.vocab_size = opened.loaded.vocab_size
        self._memory = self._lib.llama_get_memory(opened.pointer)
        model = self.loaded.pointer
        self.divisible = not (self._lib.llama_model_is_recurrent(model) or self._lib.llama_model_is_hybrid(model))
        self._rows = Rows(self._lib, min(CHUNK, context * count))

    @property
    def _pointer(self) -> Any:
        assert self._opened is not None
        return self._opened.pointer

    def run(self, asks: Sequence[Tokens]) -> list[Tokens]:
        """One step; see `batch.Runner`."""
        parts = self._fill(asks)
        listen()
        code = self._lib.llama_decode(self._pointer, self._rows.batch)
        if code:
            hint = "a smaller context or fewer sequences may help"
            raise failure(f"llama.cpp could not run the model (code {code})", EngineError, hint)
        return [ask for ask, count, row in parts if self._advance(ask, count, row)]

    def _fill(self, asks: Sequence[Tokens]) -> list[tuple[Tokens, int, int]]:
        """Put rows into the batch: every single token, then prompts in their order; return who has how many, and
        the last row of each."""
        for ask in asks:
            self._settle(ask)
        singles = sum(ask.left == 1 for ask in asks)
        room = self._rows.size if not singles else min(self._rows.size, singles + BESIDE)
        parts, used = [], 0
        for ask in sorted(asks, key=lambda ask: ask.left > 1):
            count = min(ask.left, room - used)
            if not count:
                break
            ids = ask.ids[ask.place : ask.place + count]
            self._rows.put(used, ids, ask.lane.length, ask.lane.number, last=count == ask.left)
            used += count
            parts.append((ask, count, used - 1))
        self._rows.batch.n_tokens = used
        return parts

    def _settle(self, ask: Tokens) -> None:
        """Bring the KV cache of a sequence to its first `length` tokens, if it holds others."""
        lane = ask.lane
        if not lane.settled and not self._wind_back(lane):
            # The state of a recurrent model is built anew.
            self.clear(lane)
            ask.ids, ask.place = np.concatenate([np.array(lane.held, np.int64), ask.ids[ask.place :]]), 0
            lane.held, lane.length = [], 0
        lane.settled = True

    def _wind_back(self, lane: Lane) -> bool:
        """Take what a sequence holds beyond `length` out of the KV cache; False where that cannot be done."""
        del lane.held[lane.length :]
        return bool(self._lib.llama_memory_seq_rm(self._memory, lane.number, lane.length, -1))

    def _advance(self, ask: Tokens, count: int, row: int) -> bool:
        """Note what was run; take the logits when it was the last of what was asked, and say so."""
        lane = ask.lane
        lane.held += ask.ids[ask.place : ask.place + count].tolist()
        lane.length += count
        ask.place += count
        if ask.left:
            return False
        found = self._lib.llama_get_logits_ith(self._pointer, row)
        if not found:
            raise EngineError("llama.cpp gave no logits: the model does not predict tokens")
        # A copy: while one sequence chooses its token, the next step may overwrite llama.cpp's.
        ctypes.memmove(lane.logits.ctypes.data, found, lane.logits.nbytes)
        return True

    def copy(self, source: Lane, target: Lane, count: int) -> None:
        """Share the cells of the first tokens."""
        self._lib.llama_memory_seq_cp(self._memory, source.number, target.number, 0, count)
        if self._lib.llama_memory_seq_pos_max(self._memory, target.number) != count - 1:
            self.clear(target)
            raise EngineError("llama.cpp did not copy the tokens of one sequence to another")

    def clear(self, lane: Lane) -> None:
        """Forget a sequence's tokens."""
        self._lib.llama_memory_seq_rm(self._memory, lane.number, -1, -1)

    def save(self, lane: Lane) -> bytes:
        """The state of a sequence, as llama.cpp writes it."""
        if not lane.settled and not self._wind_back(lane):
            raise EngineError("the state of this model cannot be wound back to be saved")
        lane.settled = True
        size = self._lib.llama_state_seq_get_size(self._pointer, lane.number)
        state = (ctypes.c_uint8 * size)()
        written = self._lib.llama_state_seq_get_data(self._pointer, state, size, lane.number)
        if not 0 < written <= size:
            raise EngineError("llama.cpp could not save the state of the tokens it holds")
        return bytes(memoryview(state)[:written])

    def restore(self, lane: Lane, state: bytes | bytearray, tokens: list[int]) -> None:
        """Fill an empty sequence."""
        listen()
        view = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        taken = self._lib.llama_state_seq_set_data(self._pointer, view, len(state), lane.number)
        if taken != len(state) or self._lib.llama_memory_seq_pos_max(self._memory, lane.number) != len(tokens) - 1:
            self.clear(lane)
            raise failure("llama.cpp refused the state", EngineError, "it is another model's, or of other tokens")

    def close(self) -> None:
        """Let go of context and model."""
        self._opened = None
