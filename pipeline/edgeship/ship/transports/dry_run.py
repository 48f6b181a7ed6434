"""A board that is only talked about: says what would be done, does nothing."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeship.ship.transports import OnLine, Result, Source
from edgeship.sizes import format_size


class DryRunTransport:
    """Tells `say` each command and file instead of running or sending it."""

    pretends = True

    def __init__(self, host: str, say: Callable[[str], None]) -> None:
        self._host, self._say = host, say
        self._scripts: dict[str, int] = {}

    @property
    def host(self) -> str:
        return self._host

    def run(
        self, argv: Sequence[str], *, timeout: float, on_line: OnLine | None = None, source: Source | None = None
    ) -> Result:
        """Say the command; the answer is empty."""
        given = f" < {source.path} ({format_size(source.path.stat().st_size)})" if source else ""
        text = self._script(argv) if list(argv[:2]) == ["sh", "-c"] else shlex.join(argv)
        self._say(f"would run: {text}{given}")
        return Result(0, "", "")

    def _script(self, argv: Sequence[str]) -> str:
        """A script whole the first time, and by its number from then on."""
        script, arguments = argv[2], shlex.join(argv[4:])
        known = self._scripts.get(script)
        number = self._scripts.setdefault(script, len(self._scripts) + 1)
        if known:
            return f"script {number} {arguments}"
        lines = "\n".join(f"    {each}" for each in script.strip().splitlines())
        return f"script {number} {arguments}\n{lines}\n   "

    def put(self, local: Path, remote: str) -> None:
        """Say the file and its size."""
        self._say(f"would send: {local} ({format_size(local.stat().st_size)}) to {remote}")

    def get(self, remote: str, limit: int) -> bytes:
        """Say the file; it is empty."""
        self._say(f"would fetch: {remote}")
        return b""

    def close(self) -> None: ...
