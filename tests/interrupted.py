"""An export that kills itself: `python interrupted.py CHECKPOINT OUT POINT`, POINT counting calls that change the disk.

With POINT 0 it runs to its end and prints how many such calls there were. Run as a process of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


class Countdown:
    """SIGKILL to this very process at the n-th call; every call is counted, from any thread."""

    def __init__(self, point: int) -> None:
        self.point, self.calls, self.lock = point, 0, threading.Lock()

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.lock:
                self.calls += 1
                if self.calls == self.point:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted


def main() -> None:
    checkpoint, out, point = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    from edgeship import build, output, stream
    from edgeship.memory import Budget
    from exports import export

    countdown = Countdown(point)
    for name in ("pwrite", "fsync", "fdatasync", "rename", "ftruncate", "posix_fallocate", "unlink"):
        setattr(os, name, countdown.before(getattr(os, name)))
    # Small chunks and a sync after each: the points spread over the whole export of a tiny model.
    output.SYNC_EVERY = 1
    real = stream.stream
    build.stream = lambda jobs, budget: real(jobs, Budget(budget.workers, 1 << 12))
    export(checkpoint, out)
    print(countdown.calls)


if __name__ == "__main__":
    main()
