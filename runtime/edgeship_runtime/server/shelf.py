"""The artifacts a server offers: loaded when first asked for, the longest unused one closed when memory runs short."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgeship_runtime.console import safe
from edgeship_runtime.cpu import return_free_memory
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.model import Model
from edgeship_runtime.server.problems import RequestError, unavailable

Report = Callable[..., None]
"""Takes the name of an event and its members, for the log."""


class Shelf:
    """Models by name, each with its lanes (see `Model.lanes`). `borrow` and `drop` are the scheduler's to call."""

    def __init__(
        self,
        artifacts: dict[str, Path],
        open_model: Callable[[Path], Model],
        *,
        memory_mb: float | None = None,
        rss_mb: Callable[[], float | None],
        report: Report,
    ) -> None:
        """`open_model` loads a path; `rss_mb` tells the resident memory of this process."""
        self._artifacts = artifacts
        self._open = open_model
        self._memory_mb = memory_mb
        self._rss_mb = rss_mb
        self._report = report
        self._models: dict[str, list[Model]] = {}  # the longest unused first
        self._lock = threading.Lock()
        self._opening = threading.Lock()

    @property
    def names(self) -> list[str]:
        """All artifacts, in the order they were given."""
        return list(self._artifacts)

    @property
    def loaded(self) -> dict[str, Model]:
        """The models in memory, of each the first lane."""
        with self._lock:
            return {name: lanes[0] for name, lanes in self._models.items()}

    def check(self, name: str) -> str:
        """The name itself, with Ollama's `:latest` taken off; raises RequestError (404) when there is none such."""
        for candidate in (name, name.removesuffix(":latest")):
            if candidate in self._artifacts:
                return candidate
        shown = ", ".join(self._artifacts)
        raise RequestError(
            f"there is no model {safe(name)[:100]!r}; there are: {shown}",
            status=404,
            param="model",
            code="model_not_found",
        )

    def borrow(self, name: str) -> list[Model]:
        """The model's lanes, loaded if it is not; raises RequestError (503) when that fails."""
        with self._opening:
            with self._lock:
                lanes = self._models.pop(name, None)
                if lanes is not None:
                    self._models[name] = lanes
                    return lanes
            return self._load(name)

    def _load(self, name: str) -> list[Model]:
        self._make_room(name)
        start = time.perf_counter()
        try:
            model = self._open(self._artifacts[name])
        except (EdgeshipRuntimeError, OSError, MemoryError) as error:
            self._report("load_failed", model=name, error=self._without_path(name, error))
            raise unavailable(f"the model {name} cannot be loaded", "load", hint="the server's log says why") from error
        lanes = model.lanes()
        with self._lock:
            self._models[name] = lanes
        seconds = round(time.perf_counter() - start, 3)
        self._report("loaded", model=name, seconds=seconds, engine=model.engine.name, parallel=len(lanes))
        return lanes

    def drop(self, name: str, *, failed: bool = False) -> None:
        """Close a model; the next request loads it anew. `failed`: what its engine holds is not worth keeping."""
        with self._lock:
            lanes = self._models.pop(name, [])
        for model in lanes:
            if failed:
                model.prefixes = None
        with suppress(Exception):  # an engine that failed may fail to close, and is not used again
            for model in lanes[1:]:
                model.keep()
            for model in lanes[:1]:
                model.close()
        if lanes:
            del model, lanes
            return_free_memory()
            self._report("unloaded", model=name)

    def close(self) -> None:
        """Close all models."""
        for name in list(self.loaded):
            self.drop(name)

    def _make_room(self, name: str) -> None:
        while self._memory_mb is not None and (held := self.loaded):
            rss = self._rss_mb()
            if rss is None or rss + size_mb(self._artifacts[name]) <= self._memory_mb:
                return
            self.drop(next(iter(held)))

    def _without_path(self, name: str, error: BaseException) -> str:
        place = self._artifacts[name]
        text = f"{type(error).__name__}: {error}"
        return text.replace(str(place.resolve()), name).replace(str(place), name)[:500]


def size_mb(path: Path) -> float:
    """Size of an artifact's files (of the larger format, where there are two), MB of 10^6 bytes; 0 if it is gone."""
    with suppress(OSError):
        if path.is_file():
            return path.stat().st_size / 1e6
        folders = [each for each in (path, path / "onnx", path / "gguf") if each.is_dir()]
        return (
            max((sum(file.stat().st_size for file in each.iterdir() if file.is_file()) for each in folders), default=0)
            / 1e6
        )
    return 0.0
