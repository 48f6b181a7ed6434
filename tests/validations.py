"""Validations of the toy bundle on this machine as a board, and boards that do not behave."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeship.ship.contents import read_contents
from edgeship.ship.course import Options
from edgeship.ship.steps import Validation
from edgeship.ship.teller import Silent
from edgeship.ship.transports import CutError, OnLine, Result, Source, Transport
from edgeship.ship.transports.local import LocalTransport
from tiny_bundle import QUICK, device

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Bad(LocalTransport):
    """A board that does as its subclass likes with each command, by a word in it."""

    def run(
        self, argv: Sequence[str], *, timeout: float, on_line: OnLine | None = None, source: Source | None = None
    ) -> Result:
        self.meet(" ".join(argv))
        return self.answer(" ".join(argv), super().run(argv, timeout=timeout, on_line=on_line, source=source))

    def meet(self, command: str) -> None: ...

    def answer(self, command: str, result: Result) -> Result:
        return result


class Restarting(Bad):
    """A board that is started anew when it meets `word`, as often as `times` says."""

    def __init__(self, home: Path, word: str, times: int = 1) -> None:
        super().__init__(home)
        self._word, self._times, self._boot = word, times, BOOT

    def meet(self, command: str) -> None:
        if self._word in command and self._times:
            self._times -= 1
            self._boot = f"{self._times:08x}{BOOT[8:]}"
            raise CutError("the connection broke")

    def answer(self, command: str, result: Result) -> Result:
        return Result(result.code, result.stdout.replace(BOOT, self._boot), result.stderr)


def check(transport: Transport, bundle: Path, **options: Any) -> Validation:
    """A validation that has run to its end; raises what it raises."""
    fields = {"device": device(), **QUICK, **options}
    made = Validation(transport, read_contents(bundle), Options(**fields), Silent(), threading.Event())
    made.report = made.run()  # type: ignore[attr-defined]
    return made


def report_of(transport: Transport, bundle: Path, **options: Any) -> Any:
    return check(transport, bundle, **options).report  # type: ignore[attr-defined]


def installed(home: Path) -> str | None:
    """The version that is in use and whole, None where there is none; nothing half beside it."""
    base = home / "edgeship/toy"
    for each in base.glob("*") if base.is_dir() else ():
        assert each.name == "current" or (each / ".edgeship-installed").is_file(), f"half-installed: {each}"
    current = base / "current"
    return (current / ".edgeship-installed").read_text().strip() if current.exists() else None


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)


def working(home: Path, version: str = "aaaaaaaaaaaa") -> None:
    """An older version of the toy, in use."""
    folder = home / "edgeship/toy" / version
    folder.mkdir(parents=True)
    (folder / ".edgeship-installed").write_text(f"{version}\n")
    (home / "edgeship/toy/current").symlink_to(version)
