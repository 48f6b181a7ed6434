"""llama.cpp on CPU, through llama-cpp-python's low-level API: one sequence, logits of the last token only.

`llama_batch` has several sequences in one context.

Defaults are llama.cpp's own where it has a good one: weights mapped from the file (those it repacks for this processor
are copied), flash attention where the model allows it, keys and values in float16.
"""

from __future__ import annotations

import ctypes
import math
import os
import weakref
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.engines.checks import (
    check_context,
    check_ids,
    check_length,
    check_room,
    check_sequences,
    check_version,
    choose_threads,
    foreign_id,
)
from edgeship_runtime.engines.llama_library import LoadedModel, failure, library, listen
from edgeship_runtime.errors import ArtifactError, EngineError, UsageError
from edgeship_runtime.gguf import read_header
from edgeship_runtime.gguf_model import read_model
from edgeship_runtime.manifest import Manifest, model_path

if TYPE_CHECKING:
    from edgeship_runtime.engines.batch import Lane

_PACKAGE = "llama-cpp-python"

CHUNK = 512
"""Tokens of a prompt per call: llama.cpp's own default; more gains nothing and needs more memory."""

KV_TYPES = {"f16": 1, "q8_0": 8}
"""Types of keys and values by name (ggml_type): q8_0 takes 53 % of the memory of f16."""

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}

_BYTES_PER_THREAD = 4 << 20
"""Of weights: threads that have less to do spend the time on waiting for each other."""
_MAX_THREADS = 4096
_MAX_SCALE = 1e6


def open_engine(
    directory: Path,
    manifest: Manifest,
    *,
    context: int,
    threads: int | None,
    batch_threads: int | None = None,
    kv_type: Literal["f16", "q8_0"] = "f16",
    flash_attention: Literal["auto", "on", "off"] = "auto",
    lora: Mapping[str, float] | Sequence[str] = (),
    mmap: bool = True,
    sequences: int = 1,
) -> LlamaEngine | Lane:
    """Load the GGUF artifact (see `engines.EngineModule`), after a check of the whole header.

    `threads` None: the manifest's hint, or the physical cores, fewer for a model of less than 4 MB for each.
    `batch_threads`: for prompts, `threads` when None. `kv_type`: q8_0 nearly halves the KV cache and needs flash
    attention. `lora`: files of adapters, with their scales or all with 1. `mmap` False reads the weights into memory.
    `sequences`: how many are run together, each with a KV cache of its own; the first of them is returned, and its
    `lanes` are all.

    Raises DependencyError without llama-cpp-python, UsageError for options that cannot be, ArtifactError for a file
    that is damaged, does not load or is not the manifest's, ResourceError without memory.
    """
    library()
    check_version(_PACKAGE, _version(), manifest)
    check_context(context, manifest)
    path = model_path(directory, manifest)
    headers = read_model(path)
    chosen = threads is not None or manifest.hints.threads is not None
    threads = choose_threads(threads, manifest)
    if not chosen:
        threads = min(threads, 1 + sum(header.size for header in headers) // _BYTES_PER_THREAD)
    batch_threads = threads if batch_threads is None else choose_threads(batch_threads, manifest)
    if max(threads, batch_threads) > _MAX_THREADS:
        raise UsageError(f"at most {_MAX_THREADS} threads can be asked for")
    check_sequences(sequences)
    _check_choice("kv_type", kv_type, KV_TYPES)
    _check_choice("flash_attention", flash_attention, FLASH_ATTENTION)
    if kv_type != "f16" and flash_attention == "off":
        raise UsageError(f"kv_type {kv_type} needs flash attention, which is off")
    adapters = _check_adapters(lora)
    loaded = LoadedModel(path, mmap=mmap)
    try:
        _check_model(loaded, manifest)
        kind, flash = KV_TYPES[kv_type], FLASH_ATTENTION[flash_attention]
        opened = _open_context(loaded, context, threads, batch_threads, kind, flash, sequences)
    except BaseException:
        loaded.close()
        raise
    _adapt(opened, adapters)
    layout = f"kv {kv_type}, flash attention {flash_attention}, lora {[*map(str, adapters.items())]}"
    if sequences == 1:
        return LlamaEngine(opened, context=context, threads=threads, batch_threads=batch_threads, layout=layout)
    from edgeship_runtime.engines.batch import Batch
    from edgeship_runtime.engines.llama_batch import LlamaRunner

    name = f"{_PACKAGE} {_version()}"
    runner = LlamaRunner(opened, sequences, context=context, threads=threads, name=name, layout=layout)
    return Batch(runner, sequences).lanes[0]


def _check_choice(name: str, value: object, choices: Mapping[str, int]) -> None:
    if value not in choices:
        raise UsageError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")


def _check_adapters(lora: Mapping[str, float] | Sequence[str]) -> dict[Path, float]:
    """Files and scales; each file's header is checked, as that of the model is."""
    pairs = (
        lora.items()
        if isinstance(lora, Mapping)
        else [(name, 1.0) for name in ([lora] if isinstance(lora, str) else lora)]
    )
    adapters: dict[Path, float] = {}
    for name, scale in pairs:
        if not isinstance(scale, int | float) or not math.isfinite(scale) or abs(scale) > _MAX_SCALE:
            raise UsageError(f"lora: expected a number for the scale of {name}, found {scale!r}")
        path = Path(name)
        header = read_header(path)
        if header.metadata.get("general.type") != "adapter" or header.metadata.get("adapter.type") != "lora":
            hint = "llama.cpp's convert_lora_to_gguf.py makes one from a PEFT adapter"
            raise ArtifactError(f"{path}: not a LoRA adapter in GGUF form", hint=hint)
        adapters[path] = float(scale)
    return adapters


def _check_model(loaded: LoadedModel, manifest: Manifest) -> None:
    """Compare what was loaded with the facts, and refuse what does not generate text token by token."""
    lib, facts = library(), manifest.model
    with loaded:
        model = loaded.pointer
        if lib.llama_model_has_encoder(model) or not lib.llama_model_has_decoder(model):
            raise ArtifactError(f"{loaded.path}: a {facts.type} model is no decoder; it cannot continue text")
        if lib.llama_model_is_diffusion(model):
            raise ArtifactError(f"{loaded.path}: a diffusion model does not generate token by token")
        found = {
            "vocabulary": (loaded.vocab_size, facts.vocab_size),
            "layers": (lib.llama_model_n_layer(model), facts.layers),
            "hidden size": (lib.llama_model_n_embd(model), facts.hidden_size),
        }
    wrong = [f"{name} {there}, expected {said}" for name, (there, said) in found.items() if there != said]
    if wrong and manifest.sealed:
        raise ArtifactError(
            f"{loaded.path}: the file is not the one that the artifact describes: {'; '.join(wrong)}",
            hint="export the artifact again",
        )


class Opened:
    """A llama.cpp context; freed, and its model after it, once the engine and every array of logits let go of it."""

    def __init__(self, pointer: Any, loaded: LoadedModel) -> None:
        self.pointer = pointer
        self.loaded = loaded
        weakref.finalize(self, _free, pointer, loaded).atexit = False  # the system frees it faster

    def array(self, address: int, size: int) -> NDArray[np.float32]:
        """Its memory as float32 [size], not copied: that would cost as much as choosing a token."""
        return np.asarray(_Memory(self, address, size))


class _Memory:
    """What numpy makes an array of, without copying; the array keeps it, and it keeps the context."""

    def __init__(self, owner: Opened, address: int, size: int) -> None:
        self.owner = owner
        self.__array_interface__ = {"version": 3, "typestr": "=f4", "shape": (size,), "data": (address, False)}


def _free(pointer: Any, loaded: LoadedModel) -> None:
    library().llama_free(pointer)
    loaded.close()


def _open_context(
    loaded: LoadedModel,
    context: int,
    threads: int,
    batch_threads: int,
    kv_type: int,
    flash_attention: int,
    sequences: int = 1,
) -> Opened:
    """Make room for `context` tokens of each sequence; raises EngineError or ResourceError."""
    lib = library()
    params = lib.llama_context_default_params()
    params.n_ctx = context * sequences
    params.n_batch = params.n_ubatch = min(CHUNK, context * sequences)
    params.n_seq_max = params.n_outputs_max = sequences  # no memory for logits of a whole prompt
    params.kv_unified = True  # then a state fits whatever the number of sequences, and a common prefix is stored once
    params.n_threads, params.n_threads_batch = threads, batch_threads
    params.type_k = params.type_v = kv_type
    params.flash_attn_type = flash_attention
    params.offload_kqv = params.op_offload = False
    listen()
    with loaded:
        pointer = lib.llama_init_from_model(loaded.pointer, params)
    if not pointer:
        hint = "a smaller context needs less memory; kv_type f16 and flash_attention auto suit every model"
        raise failure(f"{loaded.path}: llama.cpp cannot open it for {context * sequences} tokens", EngineError, hint)
    return Opened(pointer, loaded)


def _adapt(opened: Opened, adapters: Mapping[Path, float]) -> None:
    """Add LoRA adapters, each with its scale; raises ArtifactError for one of another model."""
    lib, pointers = library(), []
    listen()
    with opened.loaded as loaded:
        for path in adapters:
            pointers.append(lib.llama_adapter_lora_init(loaded.pointer, os.fsencode(path)))
            if not pointers[-1]:
                hint = "it was made for another model, or from another file of it"
                raise failure(f"{path}: llama.cpp cannot use the adapter", ArtifactError, hint)
    count = len(pointers)
    array = (lib.llama_adapter_lora_p_ctypes * count)(*pointers)
    scales = (ctypes.c_float * count)(*adapters.values())
    if count and lib.llama_set_adapters_lora(opened.pointer, array, count, scales):
        raise failure("llama.cpp cannot use the adapters", ArtifactError, "try them one by one")


class LlamaEngine:
    """One sequence in a llama.cpp context; see `engines.Engine`."""

    def __init__(self, opened: Opened, *, context: int, threads: int, batch_threads: int, layout: str = "") -> None:
        lib = self._lib = library()
        self._layout = layout
        self.loaded = opened.loaded
        """The model, whose vocabulary a tokenizer may share."""
        self.name = f"{_PACKAGE} {_version()}"
        self.threads = threads
        self.batch_threads = batch_threads
        self.vocab_size = opened.loaded.vocab_size
        self.context = context
        self.length = 0
        self.chunk = min(CHUNK, context)
        self._opened: Opened | None = opened
        self._context = opened.pointer
        self._memory = lib.llama_get_memory(self._context)
        self._held: list[int] = []
        self._settled = True  # the KV cache holds `length` tokens and no more
        self._ids = (lib.llama_token * self.chunk)()
        self._id_array = np.frombuffer(self._ids, np.int32)
        self._one = lib.llama_batch_get_one(self._ids, 1)
        self._address = 0
        self._logits: NDArray[np.float32] | None = None

    def evaluate(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens to the KV cache, `chunk` at a time; return the logits after the last: [vocab_size]."""
        if self._opened is None:
            raise EngineError("the engine is closed; it cannot evaluate tokens", hint="load the artifact again")
        count = len(tokens)
        if count == 1:  # the path of every generated token
            if not 0 <= tokens[0] < self.vocab_size:
                raise foreign_id(tokens[0], self.vocab_size)
            check_room(1, self.length, self.context)
            self._settle()
            self._ids[0] = tokens[0]
            self._run(self._one, 1)
        else:
            ids = check_ids(tokens, self.vocab_size)
            check_room(count, self.length, self.context)
            self._settle()
            self._run_all(ids)
        return self._last()

    def _last(self) -> NDArray[np.float32]:
        found = self._lib.llama_get_logits_ith(self._context, -1)
        if not found or self._opened is None:
            raise EngineError("llama.cpp gave no logits: the model does not predict tokens")
        address = ctypes.addressof(found.contents)
        if self._logits is None or address != self._address:
            self._logits, self._address = self._opened.array(address, self.vocab_size), address
        return self._logits

    def _run_all(self, ids: NDArray[np.int64]) -> None:
        for start in range(0, len(ids), self.chunk):
            size = min(self.chunk, len(ids) - start)
            self._id_array[:size] = ids[start : start + size]
            self._run(self._lib.llama_batch_get_one(self._ids, size), size)

    def _run(self, batch: Any, count: int) -> None:
        """Run the model over the first `count` ids and let `length` grow by them."""
        self._settled = False  # until `length` says what the cache holds: an interrupt may come in between
        code = self._lib.llama_decode(self._context, batch)
        if code:
            raise failure(f"llama.cpp could not run the model (code {code})", EngineError, "a smaller context may help")
        self._held += self._ids[:count]
        self.length += count
        self._settled = True

    def _settle(self) -> None:
        """Bring the KV cache to the first `length` tokens that were held."""
        if self._settled:
            return
        keep, lib = self.length, self._lib
        del self._held[keep:]
        if keep and not lib.llama_memory_seq_rm(self._memory, 0, keep, -1):
            # The state of a recurrent model cannot be wound back: it is built anew.
            ids, self._held, self.length = np.array(self._held, np.int64), [], 0
            lib.llama_memory_clear(self._memory, False)
            self._run_all(ids)
        elif not keep:
            lib.llama_memory_clear(self._memory, False)
        self._settled = True

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens of the KV cache."""
        check_length(length, self.length)
        if length < self.length:
            self.length = length
            self._settled = False  # done when it is needed

    @property
    def state_layout(self) -> str:
        """What the bytes of `save` depend on beside model and version."""
        return self._layout

    def save(self) -> bytes:
        """The state of all tokens held, as llama.cpp writes it; raises EngineError for none, or when closed."""
        if self._opened is None or not self.length:
            raise EngineError("the engine holds no tokens, or is closed; it has no state to save")
        self._settle()
        lib, size = self._lib, self._lib.llama_state_seq_get_size(self._context, 0)
        state = bytearray(size)
        written = lib.llama_state_seq_get_data(self._context, (ctypes.c_uint8 * size).from_buffer(state), size, 0)
        if not 0 < written <= size:
            raise EngineError("llama.cpp could not save the state of the tokens it holds")
        return bytes(state[:written])

    def restore(self, state: bytes, tokens: Sequence[int]) -> None:
        """Hold `tokens` by the state that `save` gave of them; raises EngineError when llama.cpp refuses it.

        llama.cpp checks that a state has the form of this model's and no more: whoever kept it checks its digest.
        """
        if self._opened is None:
            raise EngineError("the engine is closed; it cannot take a state", hint="load the artifact again")
        ids = check_ids(tokens, self.vocab_size)
        check_room(len(ids), 0, self.context)
        lib = self._lib
        self.length, self._held, self._settled = 0, [], False
        self._settle()
        self._settled = False  # an interrupt may come before `length` says what there is
        listen()
        taken = lib.llama_state_seq_set_data(
            self._context, (ctypes.c_uint8 * len(state)).from_buffer_copy(state), len(state), 0
        )
        if taken != len(state) or lib.llama_memory_seq_pos_max(self._memory, 0) != len(ids) - 1:
            raise failure("llama.cpp refused the state", EngineError, "it is another model's, or of other tokens")
        self._held, self.length = ids.tolist(), len(ids)
        self._settled = True

    def close(self) -> None:
        """Free context and model, once no array of logits is in use; a second call does nothing."""
        self._opened = self._context = self._logits = None
        self.length = 0


def _version() -> str:
    try:
        return metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError:
        return "unknown"
