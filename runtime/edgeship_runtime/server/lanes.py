"""How many requests a model answers at once: both engines run several sequences together, each with a KV cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeship_runtime.board import read_board
from edgeship_runtime.engines import FORMAT_OF, formats
from edgeship_runtime.facts import GENERATE, ModelFacts
from edgeship_runtime.manifest import locate, read_manifest
from edgeship_runtime.server.settings import Settings

MOST_LANES = 4
"""Unless more are asked for. 0.5B in 4 bits on two AVX2 cores, llama.cpp, tokens/s of all clients together: 1 client
69, 2 81, 4 105, 8 140; what each of them gets falls to 69, 40, 26, 17. On ONNX Runtime 4 rows win 2.5 times, 8 3.3."""
_SHARE = 0.25
"""Of the memory: what all KV caches together may take, unless more lanes are asked for."""
_BYTES = {"f16": 2.0, "q8_0": 34 / 32}
_ONNX_BYTES = 4.0


def lane_options(path: Path, settings: Settings) -> dict[str, Any]:
    """Options for the engine of an artifact: `sequences`, where it can run several; raises ArtifactError."""
    directory = locate(path, formats(settings.engine_options.get("engine")))
    manifest = read_manifest(directory)
    if manifest.model.task != GENERATE:
        return {}
    context = settings.context or manifest.model.default_context
    size = _BYTES.get(settings.engine_options.get("kv_type", "f16"), 2.0)
    if manifest.format == FORMAT_OF["ort"]:
        size = _ONNX_BYTES
    return {"sequences": settings.parallel or _fitting(manifest.model, context, size, settings.memory_mb)}


def _fitting(facts: ModelFacts, context: int, size: float, memory_mb: float | None) -> int:
    """As many KV caches, of elements of `size` bytes, as fit into their share of the memory; at least one.

    That is the memory limit, or what is free where there is none.
    """
    each = 2 * facts.layers * facts.kv_heads * facts.head_dim * context * size
    free = read_board().ram_free_bytes if memory_mb is None else memory_mb * 1e6
    return MOST_LANES if free is None else max(1, min(MOST_LANES, int(_SHARE * free / each)))
