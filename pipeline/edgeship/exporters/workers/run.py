"""Runs one job in the environment of an exporter: `python -I run.py MODULE REQUEST`, MODULE one beside this file.

MODULE's `work(request, note)` gives the answer, which goes to standard output as one line of JSON after the notes;
whatever libraries print goes to standard error. Standard input is a pipe that whoever waits for the answer holds open:
where it closes, nobody does, and the job ends at once. Nothing of edgeship can be imported here.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Note = Callable[[str], None]


class RefusedError(Exception):
    """What was asked for cannot be; the message is for the user."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def end_with(pipe: int) -> None:
    """Wait until nobody holds the other end, then end this process and what it started."""
    while os.read(pipe, 1):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(128 + signal.SIGHUP)


def main(module: str, request: str) -> None:
    """Do the job; a traceback goes to standard error where it fails in a way that nobody foresaw."""
    threading.Thread(target=end_with, args=(os.dup(0),), daemon=True).start()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)

        def tell(value: dict[str, Any]) -> None:
            channel.write(json.dumps(value) + "\n")
            channel.flush()

        sys.modules["run"] = sys.modules["__main__"]
        sys.path.insert(0, str(Path(__file__).parent))
        try:
            work = importlib.import_module(module).work
            tell(work(json.loads(Path(request).read_text(encoding="utf-8")), lambda text: tell({"note": text})))
        except RefusedError as error:
            tell({"error": str(error), "hint": error.hint})
        except MemoryError:
            raise
        except Exception as error:
            traceback.print_exc()
            text = " ".join(str(error).split())[:600]
            hint = "EDGESHIP_DEBUG=1 shows where"
            tell({"error": f"it failed: {type(error).__name__}: {text}", "hint": hint})


if __name__ == "__main__":
    main(*sys.argv[1:3])
