"""Progress of a long command on standard error: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TextIO

from edgeship.sizes import format_size

if TYPE_CHECKING:
    from rich import progress as rich_progress

LINE_SECONDS = 5.0  # between two plain lines: a log stays short, and a watcher knows it lives
SMALL_FILE = 1_000_000  # bytes; downloads under this are over before a bar is drawn


class Progress(Protocol):
    """What a long step reports while it works; all calls come from one thread."""

    def start(self, total_bytes: int, label: str) -> None:
        """A step begins that will work through `total_bytes`; 0 where that is not known."""

    def advance(self, n: int, name: str) -> None:
        """`n` more bytes are done, of the tensor or file `name`."""

    def note(self, text: str) -> None:
        """Something the user should know, on a line of its own."""

    def finish(self) -> None:
        """The step is over; harmless where none was started."""


class Silent:
    """No output at all, for `--json` and for tests."""

    def start(self, total_bytes: int, label: str) -> None: ...

    def advance(self, n: int, name: str) -> None: ...

    def note(self, text: str) -> None: ...

    def finish(self) -> None: ...


class Lines:
    """Plain lines for logs and pipes: bytes done, rate and time left, at most one every `LINE_SECONDS`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._label = ""
        self._total = self._done = 0
        self._started = self._told = 0.0

    def start(self, total_bytes: int, label: str) -> None:
        self._label, self._total, self._done = label, total_bytes, 0
        self._started = self._told = time.monotonic()
        self.note(f"{label}: {format_size(total_bytes)}" if total_bytes else label)

    def advance(self, n: int, name: str) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._told >= LINE_SECONDS:
            self._told = now
            self.note(f"{self._label}: {self._amount()}, {self._rate(now)}, {name}")

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def finish(self) -> None:
        if self._label:
            now = time.monotonic()
            amount = f"{format_size(self._done)} " if self._done else ""
            self.note(f"{self._label}: done, {amount}in {now - self._started:.1f} s")
            self._label = ""

    def _amount(self) -> str:
        if not self._total:
            return format_size(self._done)
        return f"{100 * self._done / self._total:.0f} % of {format_size(self._total)}"

    def _rate(self, now: float) -> str:
        rate = self._done / max(now - self._started, 1e-9)
        if not self._total or not rate:
            return f"{format_size(rate)}/s"
        return f"{format_size(rate)}/s, {max(0, self._total - self._done) / rate:.0f} s left"


class Bar:
    """A bar on a terminal: bytes, bytes per second, time left, and the name of the tensor or file."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: rich_progress.Progress | None = None
        self._task: rich_progress.TaskID | None = None

    def start(self, total_bytes: int, label: str) -> None:
        from rich import progress as rich_progress  # not at the top: half of the command line's start-up time
        from rich.console import Console

        self.finish()
        known = (
            rich_progress.DownloadColumn(),
            rich_progress.TransferSpeedColumn(),
            rich_progress.TimeRemainingColumn(),
        )
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(),
            *(known if total_bytes else (rich_progress.TimeElapsedColumn(),)),
            rich_progress.TextColumn("{task.fields[name]}", markup=False),
            console=Console(file=self._stream, force_terminal=True),
        )
        self._task = self._bar.add_task(label, total=total_bytes or None, name="")
        self._bar.start()

    def advance(self, n: int, name: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=n, name=name)

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def finish(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, name="")
            self._bar.stop()
        self._bar = self._task = None


def progress_for(*, quiet: bool, stream: TextIO | None = None) -> Progress:
    """The progress that fits: none where `quiet`, a bar on a terminal, plain lines elsewhere (default: stderr)."""
    stream = stream or sys.stderr
    if quiet:
        return Silent()
    return Bar(stream) if stream.isatty() else Lines(stream)


def downloads(progress: Progress) -> Callable[[str, int, int], None]:
    """The callback of `checkpoint.hub.fetch` (file, bytes done, bytes in all): each larger file becomes a step."""
    at = ("", 0)  # the file under way and its bytes so far

    def tell(file: str, done: int, total: int) -> None:
        nonlocal at
        if total < SMALL_FILE:
            return
        if at[0] != file or done < at[1]:  # a new file, or this one from its beginning again
            progress.finish()
            progress.start(total, f"download {file}")
            at = (file, 0)
        progress.advance(done - at[1], file)
        at = (file, done)
        if done >= total:
            progress.finish()

    return tell
