"""SIGTERM and SIGHUP end a command as Ctrl-C does: what it started ends with it, and it cleans up."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)
AGAIN = 5.0  # seconds in which another signal is the same message: kernel and shell both tell of a closed terminal

_received: list[tuple[int, float]] = []


def raise_on_signals() -> None:
    """Have them raise KeyboardInterrupt in the main thread; what is ignored, as under nohup, stays ignored."""
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def exit_code(interrupted: int) -> int:
    """That of a command which was interrupted: 128 + the signal's number; `interrupted` where there was none."""
    return 128 + _received[0][0] if _received else interrupted


def _interrupt(number: int, _: FrameType | None) -> None:
    now = time.monotonic()
    if _received and now - _received[-1][1] < AGAIN:
        return  # cleaning up must not be cut short
    _received.append((number, now))
    if number == signal.SIGHUP:  # the terminal is gone, and a write to it would fail
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
    raise KeyboardInterrupt
