"""ONNX Runtime on CPU: io-binding with one KV buffer, inputs and logits in memory that is allocated once.

Every input and output is bound by address, so a token costs no allocation: the ids are written in place, the
attention mask is a prefix of a row of ones, positions are a slice of a row of numbers, and `past` and `present`
are the same memory (GroupQueryAttention then appends in place).
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

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
from edgeship_runtime.errors import (
    ArtifactError,
    EdgeshipRuntimeError,
    EngineError,
    ResourceError,
    missing_package,
)
from edgeship_runtime.manifest import Manifest, ModelFacts, artifact_file
from edgeship_runtime.strict import Fields, read_json

if TYPE_CHECKING:
    from edgeship_runtime.engines.batch import Lane

CHUNK = 128
"""Tokens of a prompt per run: 256 and 512 gain nothing (1.5B, two threads) and take up to 75 MB more, and up to 233 MB
more of logits where the graph gives them for all positions."""

_MAX_CONFIG = 1 << 20
_ERROR_LINES = 400  # characters of an engine's message that fit one screen


@dataclass(frozen=True)
class Names:
    """Names of the graph's inputs and outputs; %d is the layer."""

    input_ids: str = "input_ids"
    attention_mask: str = "attention_mask"
    position_ids: str = "position_ids"
    past_key: str = "past_key_values.%d.key"
    past_value: str = "past_key_values.%d.value"
    present_key: str = "present.%d.key"
    present_value: str = "present.%d.value"
    logits: str = "logits"


def open_engine(
    directory: Path, manifest: Manifest, *, context: int, threads: int | None, sequences: int = 1
) -> OrtEngine | Lane:
    """Load the ONNX artifact in `directory` (see `engines.EngineModule`).

    `sequences`: how many are run together, each with a KV cache of its own; the first of them is returned, and its
    `lanes` are all.

    Raises DependencyError without onnxruntime or with too old a one, UsageError for a context or thread number that
    cannot be, ArtifactError for a graph that does not load or is not the manifest's, ResourceError without memory.
    """
    ort = import_onnxruntime()
    check_version("onnxruntime", ort.__version__, manifest)
    check_context(context, manifest)
    check_sequences(sequences)
    threads = choose_threads(threads, manifest)
    facts = manifest.model
    model = artifact_file(directory, manifest, manifest.model_file)
    for name in manifest.files:
        if name.startswith(f"{manifest.model_file}."):  # the weights: a cut file would fault while it is mapped
            artifact_file(directory, manifest, name)
    names = Names() if manifest.sealed else _genai_names(directory)
    session = open_session(ort, model, threads)
    if sequences > 1:
        from edgeship_runtime.engines.batch import Batch
        from edgeship_runtime.engines.ort_batch import OrtRunner

        runner = OrtRunner(ort, session, names, facts, sequences, context=context, threads=threads)
        return Batch(runner, sequences).lanes[0]
    return OrtEngine(ort, session, names, facts, context=context, threads=threads)


class OrtEngine:
    """One sequence on an onnxruntime session; see `engines.Engine`."""

    def __init__(
        self, ort: ModuleType, session: Any, names: Names, facts: ModelFacts, *, context: int, threads: int
    ) -> None:
        self.name = f"onnxruntime {ort.__version__}"
        self.threads = threads
        self.vocab_size = facts.vocab_size
        self.context = context
        self.length = 0
        self._session = session
        self._names = names
        self._all_positions = check_graph(session, names, facts)
        self.chunk = min(CHUNK, context)
        self._ids = np.zeros(self.chunk, np.int64)
        self._ones = np.ones(context, np.int64)
        self._positions = np.arange(context, dtype=np.int64)
        self._has_positions = names.position_ids in {each.name for each in session.get_inputs()}
        logits = session.get_outputs()[[each.name for each in session.get_outputs()].index(names.logits)]
        rows = self.chunk if self._all_positions else 1
        self._pages, self._logits = memory((rows, facts.vocab_size), DTYPES[logits.type])
        self._result = np.empty(self.vocab_size, np.float32)
        self._binding = session.io_binding()
        self._one, self._many = ort.RunOptions(), ort.RunOptions()
        self._one.log_severity_level = self._many.log_severity_level = 4
        # What a prompt's activations took is given back: hundreds of MB that single tokens do not need.
        self._many.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._bound = 0
        self._cache = self._bind_cache(facts)

    def _bind_cache(self, facts: ModelFacts) -> NDArray[Any]:
        names, shape = self._names, (1, facts.kv_heads, self.context, facts.head_dim)
        kinds = {each.name: each.type for each in self._session.get_inputs()}
        dtype = DTYPES[kinds[names.past_key % 0]]
        _, cache = memory((facts.layers, 2, *shape), dtype)  # [layers, key and value, 1, kv_heads, context, head_dim]
        pairs = ((names.past_key, names.present_key), (names.past_value, names.present_value))
        for layer in range(facts.layers):
            for kind, (past, present) in enumerate(pairs):
                address = cache[layer, kind].ctypes.data
                self._binding.bind_input(past % layer, "cpu", 0, dtype, shape, address)
                self._binding.bind_output(present % layer, "cpu", 0, dtype, shape, address)
        return cache

    def evaluate(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens to the KV cache, `chunk` at a time; return the logits after the last: [vocab_size]."""
        if self._session is None:
            raise EngineError("the engine is closed; it cannot evaluate tokens", hint="load the artifact again")
        count = len(tokens)
        if count == 1:  # the path of every generated token
            if not 0 <= tokens[0] < self.vocab_size:
                raise foreign_id(tokens[0], self.vocab_size)
            self._ids[0] = tokens[0]
            check_room(1, self.length, self.context)
            self._run(1)
            return self._last(1)
        # The graph's GatherBlockQuantized would read past its table without a word.
        ids = check_ids(tokens, self.vocab_size)
        check_room(count, self.length, self.context)
        size = 0
        for start in range(0, count, self.chunk):
            size = min(self.chunk, count - start)
            self._ids[:size] = ids[start : start + size]
            self._run(size)
        last = self._last(size)
        if self._all_positions:  # what the other positions took is given back
            self._result[:] = last
            forget(self._pages)
            last = self._result
        return last

    def _run(self, count: int) -> None:
        """Run the graph over the first `count` ids and let `length` grow by them."""
        names, binding, total = self._names, self._binding, self.length + count
        if count != self._bound:  # shapes of the last run still hold otherwise
            binding.bind_input(names.input_ids, "cpu", 0, np.int64, (1, count), self._ids.ctypes.data)
            shape = (1, count if self._all_positions else 1, self.vocab_size)
            binding.bind_output(names.logits, "cpu", 0, self._logits.dtype, shape, self._logits.ctypes.data)
            self._bound = count
        binding.bind_input(names.attention_mask, "cpu", 0, np.int64, (1, total), self._ones.ctypes.data)
        if self._has_positions:
            address = self._positions.ctypes.data + self._positions.itemsize * self.length
            binding.bind_input(names.position_ids, "cpu", 0, np.int64, (1, count), address)
        try:
            self._session.run_with_iobinding(binding, self._one if count == 1 else self._many)
        except Exception as error:  # onnxruntime raises its own types, and RuntimeError
            raise translated(error, "onnxruntime could not run the model", EngineError) from None
        self.length = total

    def _last(self, count: int) -> NDArray[np.float32]:
        row: NDArray[Any] = self._logits[count - 1 if self._all_positions else 0]
        if row.dtype == np.float32:
            return row
        self._result[:] = row
        return self._result

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens of the KV cache."""
        check_length(length, self.length)
        self.length = length

    @property
    def state_layout(self) -> str:
        """What the bytes of `save` depend on beside model and version."""
        layers, _, _, heads, _, size = self._cache.shape
        return f"kv {self._cache.dtype} {layers} {heads} {size}"

    def save(self) -> bytes:
        """Keys and values up to `length`: [layers, 2, 1, kv_heads, length, head_dim]; raises EngineError for none."""
        if self._session is None or not self.length:
            raise EngineError("the engine holds no tokens, or is closed; it has no state to save")
        return self._cache[:, :, :, :, : self.length].tobytes()

    def restore(self, state: bytes, tokens: Sequence[int]) -> None:
        """Hold `tokens` by the state that `save` gave of them; raises EngineError for a state of another size."""
        if self._session is None:
            raise EngineError("the engine is closed; it cannot take a state", hint="load the artifact again")
        count = len(check_ids(tokens, self.vocab_size))
        check_room(count, 0, self.context)
        self.length = 0
        part = self._cache[:, :, :, :, :count]
        if len(state) != part.nbytes:
            raise EngineError(
                f"the state has {len(state)} bytes and {count} tokens of this model have {part.nbytes}",
                hint="it is another model's, or of other tokens",
            )
        part[:] = np.frombuffer(state, part.dtype).reshape(part.shape)
        self.length = count

    def close(self) -> None:
        """Free session and buffers; a second call does nothing."""
        self._session = self._binding = None
        self._cache = self._logits = np.empty((0, 0), np.float32)
        self._pages = mmap.mmap(-1, 1)
        self.length = 0


DTYPES: dict[str, type[np.float32] | type[np.float16]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def memory(shape: tuple[int, ...], dtype: type[np.float32] | type[np.float16]) -> tuple[mmap.mmap, NDArray[Any]]:
    """Zeros in pages that become resident as they are written, and the pages.

    numpy asks for huge pages, and a KV cache strided by its context would be resident as a whole after one token.
    """
    count = int(np.prod(shape))
    size = count * np.dtype(dtype).itemsize
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        pages = mmap.mmap(-1, max(size, 1), **private)
    except (OSError, ValueError, OverflowError) as error:
        raise ResourceError(
            f"{size / 1e6:.0f} MB for the KV cache or the logits could not be had ({error})",
            hint="load the artifact with a smaller context",
        ) from None
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages refuses the advice it does not need
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return pages, np.frombuffer(pages, dtype, count=count).reshape(shape)


def forget(pages: mmap.mmap) -> None:
    """Give the memory behind pages back where the system takes it; they stay usable and hold anything."""
    if hasattr(mmap, "MADV_DONTNEED"):
        with suppress(OSError):
            pages.madvise(mmap.MADV_DONTNEED)


def import_onnxruntime() -> ModuleType:
    """The package, silent; raises DependencyError without it."""
    try:
        import onnxruntime
    except ImportError:
        raise missing_package("onnxruntime", "ort", "running an ONNX artifact") from None
    onnxruntime.disable_telemetry_events()
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime  # type: ignore[no-any-return]


def open_session(ort: ModuleType, model: Path, threads: int) -> Any:
    """A session on the CPU; raises ArtifactError for a graph that does not load, ResourceError without memory."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    # Patterns are kept per shape, and every token has another: they are made and never used.
    options.enable_mem_pattern = False
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own types, and RuntimeError
        raise translated(error, f"{model}: onnxruntime {ort.__version__} cannot load it", ArtifactError) from None


def translated(error: Exception, what: str, kind: type[EdgeshipRuntimeError]) -> EdgeshipRuntimeError:
    """An error of onnxruntime as one of ours: `kind`, or ResourceError where memory ran out."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _ERROR_LINES else f"{text[:_ERROR_LINES]}…"
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return ResourceError(
            f"{what}: not enough memory ({text})", hint="a smaller context or a smaller model needs less"
        )
    hint = "check it with `edgeship-runtime verify`; a newer onnxruntime may know what this one does not"
    return kind(f"{what}: {text}", hint=hint)


def _genai_names(directory: Path) -> Names:
    """Names as the `genai_config.json` of onnxruntime-genai's builder gives them."""
    path = directory / "genai_config.json"
    decoder = Fields(read_json(path, _MAX_CONFIG), str(path), "", ("model",), open=True)
    decoder = decoder.object("model", ("decoder",), open=True).object("decoder", ("inputs", "outputs"), open=True)
    given = decoder.text_mapping("inputs") | decoder.text_mapping("outputs")
    usual = Names()
    patterns = {
        key: given.get(f"{key}_names", getattr(usual, key))
        for key in ("past_key", "past_value", "present_key", "present_value")
    }
    for key, pattern in patterns.items():
        if pattern.count("%") != 1 or "%d" not in pattern:
            raise ArtifactError(f"{path}: {key}_names: expected one %d for the layer, found {pattern!r}")
    plain = ("input_ids", "attention_mask", "position_ids", "logits")
    return Names(**patterns, **{key: given.get(key, getattr(usual, key)) for key in plain})


def check_graph(session: Any, names: Names, facts: ModelFacts) -> bool:
    """Compare the graph's inputs and outputs with the facts; return whether it gives logits for all positions."""
    inputs = {each.name: each for each in session.get_inputs()}
    outputs = {each.name: each for each in session.get_outputs()}
    layers = range(facts.layers)
    past = [pattern % layer for layer in layers for pattern in (names.past_key, names.past_value)]
    present = [pattern % layer for layer in layers for pattern in (names.present_key, names.present_value)]
    wanted_inputs = {names.input_ids, names.attention_mask, *past}
    problems = [f"input {name!r} is missing" for name in sorted(wanted_inputs - set(inputs))]
    problems += [f"output {name!r} is missing" for name in sorted({names.logits, *present} - set(outputs))]
    unknown = set(inputs) - wanted_inputs - {names.position_ids}
    problems += [f"input {name!r} is not known" for name in sorted(unknown)]
    if not problems:
        integers = (names.input_ids, names.attention_mask, names.position_ids)
        for name, each in inputs.items():
            expected = ("tensor(int64)",) if name in integers else tuple(DTYPES)
            if each.type not in expected:
                problems.append(f"input {name!r} is {each.type}, expected {' or '.join(expected)}")
        fixed = {1: facts.kv_heads, 3: facts.head_dim}
        problems += [p for name in past for p in _shape_problems(name, inputs[name].shape, 4, fixed)]
        shape = outputs[names.logits].shape
        problems += _shape_problems(names.logits, shape, 3, {2: facts.vocab_size})
        if outputs[names.logits].type not in DTYPES:
            problems.append(f"output {names.logits!r} is {outputs[names.logits].type}, expected float or float16")
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ArtifactError(
            f"the graph is not the one that the artifact describes: {'; '.join(problems[:5])}{more}",
            hint="export the artifact again",
        )
    return bool(outputs[names.logits].shape[1] != 1)


def _shape_problems(name: str, shape: Sequence[object], rank: int, fixed: dict[int, int]) -> list[str]:
    if len(shape) != rank:
        return [f"{name!r} has {len(shape)} axes, expected {rank}"]
    return [
        f"axis {axis} of {name!r} is {shape[axis]}, expected {size}"
        for axis, size in fixed.items()
        if isinstance(shape[axis], int) and shape[axis] != size
    ]
