"""What a decoder's graph of Optimum's lost, on the text and windows of `edgeship evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgeship import archs
from edgeship.checkpoint.checkpoint import account, open_checkpoint
from edgeship.evaluate.evaluate import WINDOW
from edgeship.evaluate.sources import PassLogits, compare
from edgeship.evaluate.windows import Windows, read_windows
from edgeship.reference.weights import CheckpointWeights
from edgeship.tokenizer import TOKENIZER, open_tokenizer


class GraphLogits:
    """Logits of a graph with an empty cache, a window at a time."""

    def __init__(self, path: Path, windows: Windows, kv_heads: int, head_dim: int) -> None:
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._windows, self._empty = windows, np.zeros((1, kv_heads, 0, head_dim), np.float32)
        self._window, self._logits = -1, np.empty(0, np.float32)

    def rows(self, a: int, b: int) -> NDArray[np.float32]:
        """Logits `[b - a, V]` at positions [a, b); asked for in order."""
        out = []
        for position in range(a, b):
            window, index = self._windows.place(position)
            if window != self._window:
                self._window, self._logits = window, self._run(self._windows.ids[window])
            out.append(self._logits[index])
        return np.stack(out)

    def _run(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        given: dict[str, Any] = {
            "input_ids": ids[None],
            "attention_mask": np.ones_like(ids)[None],
            "position_ids": np.arange(len(ids))[None],
        }
        feeds = {each.name: given.get(each.name, self._empty) for each in self._session.get_inputs()}
        return np.asarray(self._session.run(["logits"], feeds)[0][0], np.float32)


def graph_loss(graph: Path, checkpoint: Path, text: Path | None, tokens: int) -> dict[str, float]:
    """`kl_mean` and `top1` against the checkpoint in float32."""
    source = open_checkpoint(checkpoint)
    decoder = archs.read(source.config)
    windows = read_windows(
        open_tokenizer(checkpoint / TOKENIZER, decoder.vocab_size), text, tokens,
        min(WINDOW, decoder.max_positions), checkpoint,
    )  # fmt: skip
    floats = CheckpointWeights(account(source, decoder.roles()))
    with PassLogits(decoder, floats, windows) as reference:
        found = GraphLogits(graph, windows, decoder.kv_heads, decoder.head_dim)
        return compare(reference, found, windows, decoder.vocab_size).to_json()
