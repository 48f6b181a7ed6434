"""This machine as a board: commands run in a home directory of their own choosing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeship.ship.transports.command import CommandTransport

# What belongs to the environment this command runs in, and would leak into the bundle's own.
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


class LocalTransport(CommandTransport):
    """Runs commands with `home` as the home directory."""

    def __init__(self, home: Path) -> None:
        super().__init__("local")
        self._home = home

    def _command(self, argv: Sequence[str]) -> tuple[list[str], Path | None, Mapping[str, str] | None]:
        environment = {k: v for k, v in os.environ.items() if k not in _OURS} | {"HOME": str(self._home)}
        return list(argv), self._home, environment
