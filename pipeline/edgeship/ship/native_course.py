"""A bundle for a phone: pushed, and verified and measured by the native program in it; no Python there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgeship.errors import HostError
from edgeship.ship.course import VERIFY_FAILED, Course
from edgeship.ship.place import Place, native
from edgeship.ship.probe import check_machine, check_space, read_facts
from edgeship.ship.report import Check
from edgeship.ship.transports.command import last_line
from edgeship.ship.verdict import read_verify
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

    def steps(self) -> Mapping[str, Callable[[], str]]:
        return {
            "probe": self._probe,
            "space": self._space,
            "push": self._push,
            "prepare": self._prepare,
            "doctor": self._doctor,
            "verify": self._verify,
            "bench": self._bench,
            "fetch": self._fetch,
            **({"prune": self._prune} if self.options.prune else {}),
        }

    def _probe(self) -> str:
        c = self.contents
        facts = read_facts(self.transport, ())
        if not self.transport.pretends:
            check_machine(facts, c.arch, c.system, (), c.device)
        self._facts, self._board = facts, facts.board.model_copy(update={"python": ""})  # none has a part in it
        self._lock.take()
        self._note("validated by the native runner; chat templates are not rendered by it, and were when it was sealed")
        return self._tell_board()

    def _space(self) -> str:
        assert self._facts is not None
        self._need = self._compare()
        return "not known" if self.transport.pretends else check_space(self._facts, self._need.send_bytes)

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
        done, raw = self._measure("verify")
        if self.transport.pretends:
            return ""
        self._check_ran("verify", done, raw)
        self.checks, self._agreement = read_verify(raw)
        self.checks.append(Check(name="templates", passed=None, found="not rendered by the native runner"))
        self._refused = done.code == VERIFY_FAILED
        return "pass" if done.code == 0 else "fail"
