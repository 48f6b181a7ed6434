"""Logits of llama.cpp at many positions of a window at once, where its engine answers for one at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeship.evaluate.windows import Windows
from edgeship_runtime.engines.llama_library import failure, library, listen
from edgeship_runtime.engines.llamacpp import CHUNK, LlamaEngine
from edgeship_runtime.errors import EngineError

Floats = NDArray[np.float32]


class LlamaLogits:
    """Logits of the model that an engine holds, in a context of its own."""

    def __init__(self, engine: LlamaEngine, windows: Windows, most: int) -> None:
        """`most` rows are asked for at once; raises EngineError or ResourceError where there is no room for them."""
        lib, self._engine, self._windows = library(), engine, windows
        params = lib.llama_context_default_params()
        params.n_ctx = windows.length
        params.n_batch = params.n_ubatch = min(CHUNK, windows.length)
        params.n_outputs_max = self._most = min(most, windows.judged, params.n_ubatch)
        params.n_threads = params.n_threads_batch = engine.threads
        params.offload_kqv = params.op_offload = False
        listen()
        with engine.loaded:
            self._context = lib.llama_init_from_model(engine.loaded.pointer, params)
        if not self._context:
            hint = "a shorter --window needs less memory"
            raise failure(f"llama.cpp cannot open a context of {windows.length} tokens", EngineError, hint)
        self._batch = lib.llama_batch_init(params.n_batch, 0, 1)

    def rows(self, a: int, b: int) -> Floats:
        windows = self._windows
        out = np.empty((b - a, self._engine.vocab_size), np.float32)
        at = a
        while at < b:
            window, index = windows.place(at)
            count = min(b - at, self._most, windows.length - 1 - index)  # to the window's end at most
            ids = windows.ids[window]
            if index == windows.first:
                self._begin(ids[:index])
            out[at - a : at - a + count] = self._decode(ids[index : index + count], index, answer=True)
            at += count
        return out

    def _begin(self, ids: NDArray[np.int64]) -> None:
        lib, size = library(), min(CHUNK, self._windows.length)
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        for start in range(0, len(ids), size):
            self._decode(ids[start : start + size], start, answer=False)

    def _decode(self, ids: NDArray[np.int64], start: int, *, answer: bool) -> Floats:
        """Append tokens to the cache; the logits `[tokens, V]` behind each if `answer`."""
        lib, batch = library(), self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids.tolist()):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, start + i, 1, answer
            batch.seq_id[i][0] = 0
        with self._engine.loaded:
            code = lib.llama_decode(self._context, batch)
        if code:
            raise failure(
                f"llama.cpp could not run the model (code {code})", EngineError, "a shorter --window may help"
            )
        if not answer:
            return np.empty((0, 0), np.float32)
        found = lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, shape=(len(ids), self._engine.vocab_size))

    def close(self) -> None:
        """Free the context, while the engine still holds the model."""
        library().llama_batch_free(self._batch)
        library().llama_free(self._context)
