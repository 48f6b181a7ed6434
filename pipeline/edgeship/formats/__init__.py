"""Formats an artifact can have: a package each, whose `artifact.draw_up` gives a `base.Format`; imported on use."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from edgeship.errors import DependencyError
from edgeship.formats.base import DrawUp, Format
from edgeship.plan import Plan
from edgeship.text import TextSide

FORMATS: dict[str, tuple[str, str]] = {  # module, and the extra that brings what it imports
    "onnx": ("edgeship.formats.onnx.artifact", ""),
    "gguf": ("edgeship.formats.gguf.artifact", "gguf"),
}


def draw_up(name: str, plan: Plan, text: TextSide, revision: str) -> Format:
    """One format's side of an export; raises PlanError or CheckpointError where the format cannot hold it.

    `revision` is the commit of the checkpoint, or "local".
    """
    module, extra = FORMATS[name]
    try:
        draw = cast(DrawUp, import_module(module).draw_up)
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"writing {name} needs the package {error.name!r}, which is not installed.",
            hint=f"pip install 'edgeship[{extra}]'",
        ) from error
    return draw(plan, text, revision)
