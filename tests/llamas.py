"""llama.cpp through llama-cpp-python's low-level API, as far as tests ask it: token ids, and logits."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make llamacpp)")


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


class Llama:
    """An open GGUF file."""

    def __init__(self, path: Path, *, vocab_only: bool = False) -> None:
        llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self.model, f"llama.cpp does not load {path}"
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def tokens(self, text: str, *, special: bool = False, add: bool = False) -> list[int]:
        """Token ids; `special`: control tokens in the text count as such; `add`: bos and eos as the file says."""
        raw = text.encode()
        out = (llama_cpp.llama_token * (len(raw) + 16))()
        count = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), out, len(out), add, special)
        assert count >= 0
        return list(out[:count])

    def logits(self, tokens: Sequence[int], context: int) -> NDArray[np.float32]:
        """Logits behind every token, float32 [tokens, vocab]."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, len(tokens), len(tokens)
        params.n_threads = params.n_threads_batch = 1
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        made = llama_cpp.llama_init_from_model(self.model, params)
        assert made
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, True
                batch.seq_id[i][0] = 0
            assert llama_cpp.llama_decode(made, batch) == 0
            vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
            found = llama_cpp.llama_get_logits(made)
            return np.ctypeslib.as_array(found, shape=(len(tokens), vocab)).copy()
        finally:
            llama_cpp.llama_batch_free(batch)
            llama_cpp.llama_free(made)

    def close(self) -> None:
        llama_cpp.llama_model_free(self.model)


@contextmanager
def opened(path: Path, *, vocab_only: bool = False) -> Iterator[Llama]:
    llama = Llama(path, vocab_only=vocab_only)
    try:
        yield llama
    finally:
        llama.close()
