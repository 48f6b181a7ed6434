"""An engine opened in a thread of its own, so that the tokenizer is read meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edgeship_runtime.engines import Engine


class Opening:
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
