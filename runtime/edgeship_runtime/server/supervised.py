"""An engine under supervision: every call is a sign of life, and a request that is to stop does so before the next."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.engines import Engine
from edgeship_runtime.model import Model


class _Supervised:
    """The engine it is put around, with a look before each run."""

    def __init__(self, engine: Engine, look: Callable[[], None]) -> None:
        self._engine = engine
        self._look = look

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def evaluate(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """As `Engine.evaluate`; raises what the look raises, before anything is run."""
        self._look()
        return self._engine.evaluate(tokens)


@contextmanager
def supervised(model: Model, look: Callable[[], None]) -> Generator[None, None, None]:
    """Call `look` before every run of the model's engine within the block; the engine hears when it is over."""
    engine = model.engine
    model.engine = cast(Engine, _Supervised(engine, look))
    try:
        yield
    finally:
        model.engine = engine
        rest = getattr(engine, "rest", None)
        if rest is not None:
            rest()
