"""Prefix caches of the models a server loads."""

from __future__ import annotations

from collections.abc import Callable

from edgeship_runtime.errors import ResourceError
from edgeship_runtime.facts import GENERATE
from edgeship_runtime.model import Model
from edgeship_runtime.prefix import remember
from edgeship_runtime.server.settings import Settings


def remembering(model: Model, settings: Settings, report: Callable[..., None]) -> Model:
    """The model, with a prefix cache as the settings have it; what is wrong with its files only costs time."""
    memory = int(settings.prefix_memory_mb * 1e6)
    if model.manifest.model.task != GENERATE or not memory:
        return model

    def tell(problem: str) -> None:
        report("prefix", problem=problem.replace(str(settings.prefix_dir), "prefixes")[:300])

    try:
        disk = int(settings.prefix_disk_mb * 1e6)
        remember(model, memory, settings.prefix_dir, tell, disk_bytes=disk)
    except ResourceError as error:
        tell(str(error))
        remember(model, memory)
    return model
