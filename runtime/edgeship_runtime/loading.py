"""An artifact becomes a model: engine, tokenizer, template, and the prefix that is shipped with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgeship_runtime.chat import ChatTemplate, load_template
from edgeship_runtime.cpu import return_free_memory
from edgeship_runtime.engines import Engine, formats, open_engine
from edgeship_runtime.errors import DependencyError, EdgeshipRuntimeError, TemplateError, UsageError
from edgeship_runtime.facts import GENERATE
from edgeship_runtime.manifest import locate, read_manifest
from edgeship_runtime.model import Model
from edgeship_runtime.prefix import resume
from edgeship_runtime.tokens import TextTokens, find_tokenizer

if TYPE_CHECKING:
    from edgeship_runtime.engines.llamacpp import LlamaEngine


def load(
    path: str | Path,
    *,
    context: int | None = None,
    threads: int | None = None,
    engine: str | None = None,
    prefix: str | Path | None = None,
    **options: Any,
) -> Model:
    """Load an artifact: `artifacts/<name>`, its format directory, one made by onnxruntime-genai, or a GGUF file.

    `context`: tokens the KV cache has room for, the artifact's default when None (not the model's maximum, which
    can cost gigabytes); `threads`: the manifest's hint or the physical cores when None; `engine`: its name in
    `engines.ENGINES`, which also chooses between formats; `prefix`: a file that `prefix.save_model_prefix` wrote, the
    one shipped beside the artifact when None; `options`: the engine's own, such as `kv_type` of
    `engines.llamacpp.open_engine`. Raises ArtifactError (also for a prefix that is stale or damaged), DependencyError,
    UsageError, ResourceError, ContextError (a prefix longer than the context).
    """
    start = time.perf_counter()
    directory = locate(Path(path), formats(engine))
    manifest = read_manifest(directory)
    size = manifest.model.default_context if context is None else context
    if manifest.model.task != GENERATE:
        from edgeship_runtime.encoder import open_encoder

        if options or prefix is not None:
            raise UsageError(f"an encoder has no option {next(iter(options), 'prefix')!r}")
        return open_encoder(directory, manifest, size, threads)
    # The engine works outside Python's lock for most of its loading, the tokenizer inside it: together they take
    # as long as the longer.
    opening = _Opening(
        lambda: open_engine(directory, manifest, engine=engine, context=size, threads=threads, options=options)
    )
    try:
        tokenizer: TextTokens | None = find_tokenizer(directory, manifest)
        template = _template(lambda: load_template(directory, manifest)) if directory.is_dir() else None
        return_free_memory()  # now, before the engine's own peak
    except BaseException:
        opening.discard()
        raise
    opened = opening.result()
    if tokenizer is None:
        from edgeship_runtime.llama_tokens import LlamaTokenizer
        from edgeship_runtime.unsealed import read_template

        vocabulary = LlamaTokenizer(cast("LlamaEngine", opened).loaded)
        tokenizer = vocabulary
        if not manifest.sealed:
            manifest = replace(manifest, model=replace(manifest.model, eos_token_ids=vocabulary.end_ids()))
            template = _template(lambda: read_template(directory, vocabulary.special_tokens()))
    return_free_memory()
    model = Model(opened, tokenizer, manifest, template, directory=directory)
    try:
        resume(model, None if prefix is None else Path(prefix))
    except BaseException:
        model.close()
        raise
    model.load_s = time.perf_counter() - start
    return model


def _template(read: Callable[[], ChatTemplate | None]) -> ChatTemplate | EdgeshipRuntimeError | None:
    """The chat template, or why there is none to be had: raw text can be answered without it."""
    try:
        return read()
    except (TemplateError, DependencyError) as error:
        return error


class _Opening:
    """An engine on its way."""

    def __init__(self, work: Callable[[], Engine]) -> None:
        """Begin `work`, which opens it."""
        self._engine: Engine | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="edgeship-open", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], Engine]) -> None:
        try:
            self._engine = work()
        except BaseException as error:
            self._error = error

    def result(self) -> Engine:
        """Wait for the engine; raise what opening it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._engine is not None
        return self._engine

    def discard(self) -> None:
        """Wait, and close what was opened."""
        self._thread.join()
        if self._engine is not None:
            self._engine.close()
