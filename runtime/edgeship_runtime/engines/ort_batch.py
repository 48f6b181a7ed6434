"""Several sequences on one onnxruntime session; see `batch`.

A step is a run over a token of each lane, rows of different lengths in one batch, and a run over a part of a prompt in
its lane's row alone. The KV cache is one block, [layers, 2, lanes, kv_heads, context, head_dim]: a row's slice of a
layer is contiguous, so that any range of rows can be bound.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.engines.batch import BESIDE, Lane, Tokens
from edgeship_runtime.engines.ort import CHUNK, DTYPES, Names, check_graph, memory, translated
from edgeship_runtime.errors import EngineError
from edgeship_runtime.facts import ModelFacts


class OrtRunner:
    """A `batch.Runner`."""

    loaded = None
    divisible = True

    def __init__(
        self, ort: ModuleType, session: Any, names: Names, facts: ModelFacts, count: int, *, context: int, threads: int
    ) -> None:
        """`context` is that of each of the `count` lanes."""
        self.name = f"onnxruntime {ort.__version__}"
        self.threads = threads
        self.vocab_size = facts.vocab_size
        self.context = context
        self._session = session
        self._names = names
        self._all_positions = check_graph(session, names, facts)
        self._chunk = min(CHUNK, context)
        inputs = {each.name: each.type for each in session.get_inputs()}
        outputs = {each.name: each.type for each in session.get_outputs()}
        dtype = DTYPES[inputs[names.past_key % 0]]
        shape = (facts.layers, 2, count, facts.kv_heads, context, facts.head_dim)
        _, self._cache = memory(shape, dtype)
        self.layout = f"kv {self._cache.dtype} {facts.layers} {facts.kv_heads} {facts.head_dim}"
        rows = max(count, self._chunk if self._all_positions else 1)
        self._pages, self._logits = memory((rows, facts.vocab_size), DTYPES[outputs[names.logits]])
        self._ids = np.zeros(max(count, self._chunk), np.int64)
        self._has_positions = names.position_ids in inputs
        self._bindings: dict[tuple[int, int], Any] = {}  # by the first row and how many
        self._one, self._many = ort.RunOptions(), ort.RunOptions()
        self._one.log_severity_level = self._many.log_severity_level = 4
        self._many.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._lanes: dict[int, int] = dict.fromkeys(range(count), 0)  # tokens of each row, also of those at rest

    def run(self, asks: Sequence[Tokens]) -> list[Tokens]:
        """One step; see `batch.Runner`."""
        for ask in asks:
            del ask.lane.held[ask.lane.length :]
            ask.lane.settled = True
            self._lanes[ask.lane.number] = ask.lane.length
        singles = [ask for ask in asks if ask.left == 1]
        prompt = next((ask for ask in asks if ask.left > 1), None)
        done = []
        for group in self._groups(singles):
            self._run_singles(group)
            done += group
        if prompt is not None and self._run_part(prompt, min(prompt.left, BESIDE if singles else self._chunk)):
            done.append(prompt)
        return done

    def _groups(self, asks: list[Tokens]) -> list[list[Tokens]]:
        """Asks by lane, in groups between which there is a full row: one that fills a gap gets a token it must have
        room for, behind its last."""
        groups: list[list[Tokens]] = []
        for ask in sorted(asks, key=lambda ask: ask.lane.number):
            before = groups[-1][-1].lane.number if groups else None
            gap = range(0 if before is None else before + 1, ask.lane.number)
            if before is None or any(self._lanes[row] >= self.context for row in gap):
                groups.append([])
            groups[-1].append(ask)
        return groups

    def _run_singles(self, asks: list[Tokens]) -> None:
        """A token of each in one batch of rows, from the first lane to the last; rows between them run for nothing."""
        tokens = {ask.lane.number: int(ask.ids[ask.place]) for ask in asks}
        first, count = min(tokens), max(tokens) - min(tokens) + 1
        rows = range(first, first + count)
        self._ids[:count] = [tokens.get(row, 0) for row in rows]
        lengths = np.array([self._lanes[row] for row in rows], np.int64)
        logits = self._logits[:count].reshape(count, 1, self.vocab_size)
        self._run(first, self._ids[:count].reshape(count, 1), lengths, logits, self._one)
        for ask in asks:
            self._advance(ask, 1)
            ask.lane.logits[:] = self._logits[ask.lane.number - first]

    def _run_part(self, ask: Tokens, count: int) -> bool:
        """A part of a prompt; whether it was the last."""
        lane = ask.lane
        self._ids[:count] = ask.ids[ask.place : ask.place + count]
        places = count if self._all_positions else 1
        logits = self._logits[:places].reshape(1, places, self.vocab_size)
        self._run(lane.number, self._ids[:count].reshape(1, count), np.array([lane.length]), logits, self._many)
        self._advance(ask, count)
        if not ask.left:
            lane.logits[:] = logits[0, -1]
        return not ask.left

    def _advance(self, ask: Tokens, count: int) -> None:
        lane = ask.lane
        lane.held += ask.ids[ask.place : ask.place + count].tolist()
        lane.length += count
        ask.place += count
        self._lanes[lane.number] = lane.length

    def _run(
        self, first: int, ids: NDArray[np.int64], lengths: NDArray[np.int64], logits: NDArray[Any], options: Any
    ) -> None:
        """Run ids [rows, tokens] behind the first `lengths` [rows] tokens of the rows from `first` on."""
        names, (rows, tokens) = self._names, ids.shape
        binding = self._binding(first, rows)
        ends = lengths + tokens
        mask = np.ascontiguousarray(np.arange(ends.max()) < ends[:, None], np.int64)
        places = np.ascontiguousarray(lengths[:, None] + np.arange(tokens), np.int64)
        binding.bind_input(names.input_ids, "cpu", 0, np.int64, ids.shape, ids.ctypes.data)
        binding.bind_input(names.attention_mask, "cpu", 0, np.int64, mask.shape, mask.ctypes.data)
        if self._has_positions:
            binding.bind_input(names.position_ids, "cpu", 0, np.int64, places.shape, places.ctypes.data)
        binding.bind_output(names.logits, "cpu", 0, logits.dtype, logits.shape, logits.ctypes.data)
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # onnxruntime raises its own types, and RuntimeError
            raise translated(error, "onnxruntime could not run the model", EngineError) from None

    def _binding(self, first: int, rows: int) -> Any:
        """A binding of those rows of the KV cache; made once for each range."""
        found = self._bindings.get((first, rows))
        if found is not None:
            return found
        names, binding = self._names, self._session.io_binding()
        pairs = ((names.past_key, names.present_key), (names.past_value, names.present_value))
        for layer in range(len(self._cache)):
            for kind, (past, present) in enumerate(pairs):
                part = self._cache[layer, kind, first : first + rows]
                binding.bind_input(past % layer, "cpu", 0, part.dtype.type, part.shape, part.ctypes.data)
                binding.bind_output(present % layer, "cpu", 0, part.dtype.type, part.shape, part.ctypes.data)
        self._bindings[first, rows] = binding
        return binding

    def copy(self, source: Lane, target: Lane, count: int) -> None:
        """Copy keys and values of the first tokens."""
        self._cache[:, :, target.number, :, :count] = self._cache[:, :, source.number, :, :count]
        self._lanes[target.number] = count

    def clear(self, lane: Lane) -> None:
        """Forget a lane's tokens."""
        self._lanes[lane.number] = 0

    def save(self, lane: Lane) -> bytes:
        """Keys and values up to `length`, as `OrtEngine.save` gives them."""
        return self._cache[:, :, lane.number : lane.number + 1, :, : lane.length].tobytes()

    def restore(self, lane: Lane, state: bytes | bytearray, tokens: list[int]) -> None:
        """Fill an empty lane."""
        part = self._cache[:, :, lane.number : lane.number + 1, :, : len(tokens)]
        if len(state) != part.nbytes:
            raise EngineError(
                f"the state has {len(state)} bytes and {len(tokens)} tokens of this model have {part.nbytes}",
                hint="it is another model's, or of other tokens",
            )
        part[:] = np.frombuffer(state, part.dtype).reshape(part.shape)
        self._lanes[lane.number] = len(tokens)

    def close(self) -> None:
        """Free session and buffers."""
        self._session = None
        self._bindings = {}
        self._cache = self._logits = np.empty((0, 0), np.float32)
        self._pages = mmap.mmap(-1, 1)
