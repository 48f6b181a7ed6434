"""A bundle for a phone: pushed, and verified and measured by the native program in it; no Python there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeship.errors import HostError
from edgeship.ship.course import Course, Step
from edgeship.ship.place import Place, native
from edgeship.ship.probe import read_board
from edgeship.ship.report import Check
from edgeship.ship.transports.command import last_line
from edgeship_runtime.files import FileEntry

_WHEELS = "wheels/"

# Pushed files are not programs yet, and a place that forbids programs should say so before it looks like a defect.
_PREPARE = """
chmod 755 "$1"* && "$1" --help >/dev/null
"""


@dataclass
class Native(Course):
    """What a phone lacks (a Python, its wheels) stays here; the rest goes there and runs where it lies."""

    @property
    def files(self) -> Mapping[str, FileEntry]:
        """All but the wheels, which are for Termux's Python."""
        return {name: entry for name, entry in self.contents.files.items() if not name.startswith(_WHEELS)}

    def place(self) -> Place:
        return native(self.contents)

    def steps(self) -> Mapping[str, Step]:
        return {
            "probe": self._probe,
            "space": self._space,
            "push": self._push,
            "prepare": self._prepare,
            **self._last_steps(prune=self.options.prune),
        }

    def _probe(self) -> str:
        facts = read_board(self.transport, self.contents)
        self._facts, self._board = facts, facts.board.model_copy(update={"python": ""})  # none has a part in it
        self._lock.take()
        self._note("validated by the native runner; chat templates are not rendered by it, and were when it was sealed")
        return self._tell_board()

    def _prepare(self) -> str:
        if not any(name.startswith("runner/") for name in self.files):
            hint = f"make it again: edgeship bundle ARTIFACT --device {self.contents.device}"
            raise HostError("the bundle holds no native runner", hint=hint)
        done = self._sh(_PREPARE, self._place.runner)
        if done.code and not self.transport.pretends:
            hint = "programs have to be allowed there (no noexec), and the phone's system has to be 64-bit ARM"
            raise HostError(f"the runner does not start there: {last_line(done.stderr)}", hint=hint)
        return self._place.runner

    def _verify(self) -> str:
        said = super()._verify()
        if not self.transport.pretends:
            self.checks.append(Check(name="templates", passed=None, found="not rendered by the native runner"))
        return said
