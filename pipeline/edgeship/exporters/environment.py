"""The environment an exporter runs in: a virtual environment of its own, whose versions need not live beside others.

It is made once by `edgeship install-exporter NAME`, under $EDGESHIP_EXPORTERS or the user's cache directory; without
it, an edgeship that was installed with the extra of that name runs the exporter with its own Python. Workers are run by
path, as processes that open no connection: a request goes in as a file, and lines of JSON come back.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from filelock import FileLock, Timeout

from edgeship.errors import ArtifactError, DependencyError, ExporterError, ResourceError, UsageError
from edgeship.exporter import READ_BY
from edgeship.exporters import packages
from edgeship.fields import did_you_mean, found
from edgeship.progress import Progress

HERE = Path(__file__).parent
NAMES = tuple(sorted(READ_BY))
MARKER = "edgeship.json"  # written last: an environment without it was never finished
TAIL = 12  # lines of a worker's own output that an error shows
LINE = 1 << 20  # characters of one line from a worker
QUIET = 30.0  # seconds without a word, after which the user is told that it lives

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OLIVE_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Environment:
    """A virtual environment for the exporter `name`, or the one that edgeship itself runs in."""

    name: str
    directory: Path
    shared: bool = False  # with edgeship
    scratch: Path | None = None  # where workers work, else in a directory for temporary files

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.shared else self.directory / "bin" / "python"

    @property
    def ready(self) -> bool:
        """Whether it was installed whole, with the packages that are wanted now."""
        if self.shared:
            return True
        try:
            marker = json.loads((self.directory / MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(marker == {"packages": packages.digest(self.name)}) and self.python.exists()


def find(name: str) -> Environment:
    """The environment of an exporter, made or not. Raises UsageError for a name that is none."""
    if name not in NAMES:
        text = f"expected one of {', '.join(NAMES)}, found {found(name)}{did_you_mean(name, NAMES)}."
        raise UsageError(text, hint="native needs no environment")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = os.environ.get("EDGESHIP_EXPORTERS") or Path(cache) / "edgeship" / "exporters"
    own = Environment(name, Path(root).absolute() / name)
    if not own.ready and packages.installed_here(name):
        return Environment(name, Path(sys.prefix), shared=True)
    return own


def require(name: str) -> Environment:
    """The environment of an exporter; raises DependencyError with the one command that makes it where it is missing."""
    environment = find(name)
    if not environment.ready:
        what = "of other versions" if (environment.directory / MARKER).exists() else "not installed"
        raise DependencyError(
            f"exporter: {name}: expected its environment in {environment.directory}, found it {what}.",
            hint=f"edgeship install-exporter {name} (once; 1 to 2 GB of torch and the like)",
        )
    return environment


def install(name: str, progress: Progress) -> Environment:
    """Make the environment of an exporter, or leave what is whole as it is. Raises DependencyError where pip fails.

    An unfinished one, or one of other versions, is replaced.
    """
    environment = find(name)
    if environment.shared:
        return environment
    directory = environment.directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(directory.with_name(f".{name}.lock"), timeout=0):
            if environment.ready:
                return environment
            shutil.rmtree(directory, ignore_errors=True)
            progress.start(0, f"install {name}: torch and the like, some minutes")
            venv.create(directory, with_pip=True, symlinks=True)
            _pip(environment)
            marker = json.dumps({"packages": packages.digest(name)})
            (directory / MARKER).write_text(marker + "\n", encoding="utf-8")
            progress.finish()
    except Timeout:
        raise ArtifactError(
            f"{directory}: another process is installing it right now.", hint="wait for it to end"
        ) from None
    except (OSError, subprocess.CalledProcessError) as error:
        raise ArtifactError(
            f"{directory}: the environment cannot be made: {error}.", hint="set EDGESHIP_EXPORTERS to another directory"
        ) from error
    return environment


def _pip(environment: Environment) -> None:
    command = [str(environment.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    ended = subprocess.run(
        [*command, *packages.packages(environment.name)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if ended.returncode:
        shutil.rmtree(environment.directory, ignore_errors=True)
        said = [line for line in ended.stderr.splitlines() if not line.startswith("WARNING")]
        raise DependencyError(
            f"exporter: {environment.name}: pip could not install it:\n" + "\n".join(said[-TAIL:]),
            hint="check the network and the disk; the versions resolve for Python 3.11",
        )


def run(environment: Environment, worker: str, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Run a module of `workers` in the environment with a request, and return its answer.

    Raises ExporterError for what it refuses or where it fails, ResourceError where the system ended it.
    """
    with tempfile.TemporaryDirectory(prefix="edgeship-", dir=environment.scratch) as scratch:
        asked, log = Path(scratch) / "request.json", Path(scratch) / "log"
        asked.write_text(json.dumps(request), encoding="utf-8")
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [
                    str(environment.python),
                    "-P" if environment.shared else "-I",
                    str(HERE / "workers" / "run.py"),
                    worker,
                    str(asked),
                ],
                stdin=subprocess.PIPE,  # however this process ends, it closes, and the worker ends too
                stdout=subprocess.PIPE,
                stderr=None if os.environ.get("EDGESHIP_DEBUG") else errors,
                cwd=scratch,
                env=os.environ | OFFLINE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            try:
                assert process.stdout is not None
                answer = _listen(process.stdout, progress)
                code = process.wait()
            finally:
                _end(process)
        if answer is None:
            raise _failure(environment.name, code, log)
    if "error" in answer:
        raise ExporterError(f"exporter: {environment.name}: {answer['error']}", hint=str(answer.get("hint", "")))
    return answer


def _listen(lines: IO[str], progress: Progress) -> dict[str, Any] | None:
    """Pass notes on until the answer comes; None where the worker ends without one."""
    heard: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_hear, args=(lines, heard), daemon=True).start()
    started = time.monotonic()
    while True:
        try:
            line = heard.get(timeout=QUIET)
        except Empty:
            progress.note(f"still at work after {time.monotonic() - started:.0f} s")
            continue
        if not line:
            return None
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict) and "note" in told:
            progress.note(str(told["note"]))
        elif isinstance(told, dict):
            return told


def _hear(lines: IO[str], heard: SimpleQueue[str]) -> None:
    """Put every line into a queue, and an empty one at the end."""
    with suppress(ValueError):  # closed, where nobody listens any more
        while line := lines.readline(LINE):
            heard.put(line)
    heard.put("")


def _end(process: subprocess.Popen[str]) -> None:
    """The worker and what it started, gone."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            stream.close()


def _failure(name: str, code: int, log: Path) -> ExporterError | ResourceError:
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    shown = "\n".join("".join(c for c in line if c.isprintable())[:300] for line in said[-TAIL:])
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL) or "MemoryError" in shown:
        return ResourceError(
            f"exporter: {name}: the system ended it, as it does where memory runs out.",
            hint="--max-ram does not hold other exporters: they load the whole model, twice and more",
        )
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return ExporterError(f"exporter: {name}: it failed ({how}):\n{shown}", hint="EDGESHIP_DEBUG=1 shows all it says")
