"""Engines: what turns token ids into logits. A module each, imported on use, satisfying `EngineModule`.

To add an engine: write its module, add its line to `ENGINES`, `FORMAT_OF` and `_PACKAGES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgeship_runtime.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgeship_runtime.manifest import Manifest


class Engine(Protocol):
    """One sequence and its KV cache. Not thread-safe.

    An engine that was opened with the option `sequences` is one of several: `lanes` has all of them, for a thread each,
    and `batch.Lane` says what more they can do.
    """

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

    def open_engine(
        self, directory: Path, manifest: Manifest, *, context: int, threads: int | None, **options: Any
    ) -> Engine:
        """Load the artifact in `directory` with room for `context` tokens; `threads` None: choose.

        `directory` is a GGUF file where one was given. Options of its own an engine declares as keyword arguments.
        """


ENGINES: dict[str, str] = {"ort": "edgeship_runtime.engines.ort", "llamacpp": "edgeship_runtime.engines.llamacpp"}

FORMAT_OF: dict[str, str] = {"ort": "onnx", "llamacpp": "gguf"}
"""Name of an engine to the artifact format it runs."""

_PACKAGES = {"ort": "onnxruntime", "llamacpp": "llama_cpp"}


def formats(engine: str | None = None) -> tuple[str, ...]:
    """Artifact formats in the order to look for them: the engine's, or all, those with an installed engine first.

    Raises UsageError when there is no such engine.
    """
    if engine is not None:
        _check_name(engine)
        return (FORMAT_OF[engine],)
    names = sorted(ENGINES, key=lambda name: find_spec(_PACKAGES[name]) is None)
    return tuple(FORMAT_OF[name] for name in names)


def engine_module(artifact_format: str, name: str | None = None) -> EngineModule:
    """Import the engine called `name`, or the one of the format; raise UsageError or ArtifactError."""
    if name is None:
        name = next((each for each, form in FORMAT_OF.items() if form == artifact_format), None)
    if name is None:
        raise ArtifactError(
            f"the artifact has the format {artifact_format!r}; this version runs {', '.join(FORMAT_OF.values())}",
            hint="a newer edgeship-runtime may run it",
        )
    _check_name(name)
    if FORMAT_OF[name] != artifact_format:
        raise UsageError(
            f"the engine {name} runs artifacts of the format {FORMAT_OF[name]}, and this one is {artifact_format}",
            hint=f"give the {FORMAT_OF[name]} directory, or leave out the engine",
        )
    return cast(EngineModule, import_module(ENGINES[name]))


def open_engine(
    directory: Path,
    manifest: Manifest,
    *,
    engine: str | None = None,
    context: int,
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Engine:
    """Open an artifact in the engine called `engine` (None: that of its format) with `options` of its own.

    Raises UsageError for an option the engine does not have, and what its `open_engine` raises.
    """
    module = engine_module(manifest.format, engine)
    known = [name for name in signature(module.open_engine).parameters if name not in _COMMON]
    for name in options or ():
        if name not in known:
            hint = f"it has {', '.join(known)}" if known else "it has none of its own"
            raise UsageError(f"the engine of {manifest.format} artifacts has no option {name!r}", hint=hint)
    return module.open_engine(directory, manifest, context=context, threads=threads, **(options or {}))


_COMMON = ("directory", "manifest", "context", "threads")


def _check_name(name: str) -> None:
    if name not in ENGINES:
        raise UsageError(f"there is no engine {name!r}; there are: {', '.join(ENGINES)}")
