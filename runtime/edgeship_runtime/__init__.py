"""Runs and verifies edgeship artifacts: `load(path)` gives a `Model`.

Importing this package imports the standard library only; engines, tokenizers and templates come on use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeship_runtime.answer import Label, Piece, Result, Stream
    from edgeship_runtime.loading import load
    from edgeship_runtime.model import Model
    from edgeship_runtime.sampling import GenerationOptions

__version__ = "0.1.0"

__all__ = ["GenerationOptions", "Label", "Model", "Piece", "Result", "Stream", "__version__", "load"]

_HOMES = {
    "GenerationOptions": "sampling",
    "Label": "answer",
    "Model": "model",
    "Piece": "answer",
    "Result": "answer",
    "Stream": "answer",
    "load": "loading",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
