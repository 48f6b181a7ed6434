"""Engines: what turns token ids into logits. A module each, imported on use, satisfying `EngineModule`.

To add an engine: write its module, add its line to `ENGINES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from edgeship_runtime.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgeship_runtime.manifest import Manifest


class Engine(Protocol):
    """One sequence and its KV cache. Not thread-safe."""

    name: str
    """Package and version, for reports: "onnxruntime 1.31.1"."""
    threads: int
    vocab_size: int
    context: int
    """Tokens the KV cache can hold."""
    length: int
    """Tokens the KV cache holds now."""

    def evaluate(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens to the KV cache; return the logits after the last one: float32 [vocab_size].

        The array belongs to the engine and is overwritten by the next call; copy what must last.
        Raises EngineError for no tokens or ids outside the vocabulary and ContextError for more tokens than
        the cache has room for (all before anything is run), EngineError when the run fails.
        """

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens of the KV cache; raise EngineError outside 0..self.length."""

    def close(self) -> None:
        """Free the model's memory; a second call does nothing."""


class EngineModule(Protocol):
    """What a module of this package offers."""

    def open_engine(self, directory: Path, manifest: Manifest, *, context: int, threads: int | None) -> Engine:
        """Load the artifact in `directory` with room for `context` tokens; `threads` None: choose."""


ENGINES: dict[str, str] = {"ort": "edgeship_runtime.engines.ort"}

DEFAULT_ENGINE: dict[str, str] = {"onnx": "ort"}
"""Artifact format to the name of the engine that runs it."""


def engine_module(artifact_format: str, name: str | None = None) -> EngineModule:
    """Import the engine called `name`, or the default one of the format; raise UsageError or ArtifactError."""
    if name is None:
        if artifact_format not in DEFAULT_ENGINE:
            raise ArtifactError(
                f"the artifact has the format {artifact_format!r}; this version runs {', '.join(DEFAULT_ENGINE)}",
                hint="a newer edgeship-runtime may run it",
            )
        name = DEFAULT_ENGINE[artifact_format]
    if name not in ENGINES:
        raise UsageError(f"there is no engine {name!r}; there are: {', '.join(ENGINES)}")
    return cast(EngineModule, import_module(ENGINES[name]))
