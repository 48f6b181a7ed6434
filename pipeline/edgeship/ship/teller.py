"""Progress of validations on standard error: a live table on a terminal, plain lines that name the host elsewhere."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol, TextIO

from edgeship.progress import LINE_SECONDS
from edgeship.sizes import format_size

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table


class Teller(Protocol):
    """What a validation reports while it works; calls come from a thread per host."""

    def begin(self, host: str, step: str) -> None:
        """A step begins."""

    def say(self, host: str, text: str) -> None:
        """One line of what is going on."""

    def share(self, host: str, step: str, done: int, total: int, name: str) -> None:
        """Bytes that went out of all there are, and the file."""

    def end(self, host: str, step: str, seconds: float, said: str) -> None:
        """A step is over."""

    def close(self) -> None:
        """All is over."""


class Silent:
    """No output at all, for `--json` and for tests."""

    def begin(self, host: str, step: str) -> None: ...

    def say(self, host: str, text: str) -> None: ...

    def share(self, host: str, step: str, done: int, total: int, name: str) -> None: ...

    def end(self, host: str, step: str, seconds: float, said: str) -> None: ...

    def close(self) -> None: ...


class Lines:
    """A line for everything, but bytes every few seconds only."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()
        self._told: dict[str, float] = {}

    def begin(self, host: str, step: str) -> None:
        self._told[host] = time.monotonic()

    def say(self, host: str, text: str) -> None:
        with self._lock:
            print(f"{host}: {text}", file=self._stream, flush=True)

    def share(self, host: str, step: str, done: int, total: int, name: str) -> None:
        if time.monotonic() - self._told.get(host, 0) >= LINE_SECONDS:
            self._told[host] = time.monotonic()
            self.say(host, _share(step, done, total, name))

    def end(self, host: str, step: str, seconds: float, said: str) -> None:
        self.say(host, f"{step}: {said or 'done'} ({seconds:.1f} s)")

    def close(self) -> None: ...


class LiveTable:
    """A row per host on a terminal: its step and what it does now."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._rows: dict[str, tuple[str, str]] = {}
        self._lock = threading.Lock()
        self._live: Live = Live(console=Console(file=stream, force_terminal=True), get_renderable=self._table)
        self._live.start()

    def _table(self) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for header in ("host", "step", ""):
            table.add_column(Text(header), no_wrap=True, overflow="ellipsis")
        with self._lock:
            rows = list(self._rows.items())
        for host, (step, text) in rows:
            table.add_row(Text(host, style="bold"), Text(step), Text(text))
        return table

    def _set(self, host: str, step: str, text: str) -> None:
        with self._lock:
            self._rows[host] = (step, text)

    def begin(self, host: str, step: str) -> None:
        self._set(host, step, "")

    def say(self, host: str, text: str) -> None:
        self._set(host, self._rows.get(host, ("", ""))[0], text)

    def share(self, host: str, step: str, done: int, total: int, name: str) -> None:
        self._set(host, step, _share("", done, total, name))

    def end(self, host: str, step: str, seconds: float, said: str) -> None:
        self._live.console.print(f"{host}: {step}: {said or 'done'} ({seconds:.1f} s)", markup=False, highlight=False)
        self._set(host, step, said)

    def close(self) -> None:
        self._live.stop()


def _share(step: str, done: int, total: int, name: str) -> str:
    part = f"{100 * done / total:.0f} % of {format_size(total)}" if total else format_size(done)
    return f"{step}: {part}, {name}" if step else f"{part}, {name}"


def teller_for(stream: TextIO, *, quiet: bool) -> Teller:
    """The progress that fits: none where `quiet`, a table on a terminal, plain lines elsewhere."""
    if quiet:
        return Silent()
    return LiveTable(stream) if stream.isatty() else Lines(stream)
