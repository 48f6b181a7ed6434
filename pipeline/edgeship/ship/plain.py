"""An artifact on a machine that has a runtime of its own: this one, or one that no bundle can be made for."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgeship.errors import HostError
from edgeship.ship.course import VERIFY_FAILED, Course
from edgeship.ship.place import Place, sent, where_it_lies
from edgeship.ship.probe import check_machine, check_space, read_facts
from edgeship.ship.transports import CutError
from edgeship.ship.verdict import read_verify


@dataclass
class Plain(Course):
    """Verified and measured, on this machine where it lies; nothing is installed."""

    @property
    def _in_place(self) -> bool:
        return self.transport.host == "local"

    def place(self) -> Place:
        return where_it_lies(self.contents) if self._in_place else sent(self.contents)

    def steps(self) -> Mapping[str, Callable[[], str]]:
        pushed = {} if self._in_place else {"space": self._space, "push": self._push}
        return {
            "probe": self._probe,
            **pushed,
            "doctor": self._doctor,
            "verify": self._verify,
            "bench": self._bench,
            "fetch": self._fetch,
        }

    def _probe(self) -> str:
        c = self.contents
        facts = read_facts(self.transport, ())
        if not self.transport.pretends:
            check_machine(facts, c.arch, c.system, (), c.device)
        own = {"python": platform.python_version()} if self._in_place else {}
        self._facts, self._board = facts, facts.board.model_copy(update=own)
        self._lock.take()
        self._note(
            f"validated where it lies, by the runtime of {self._place.python}"
            if self._in_place
            else "validated by the runtime that is installed there"
        )
        return self._tell_board()

    def _space(self) -> str:
        assert self._facts is not None
        self._need = self._compare()
        return "not known" if self.transport.pretends else check_space(self._facts, self._need.send_bytes)

    def _doctor(self) -> str:
        try:
            return super()._doctor()
        except HostError as error:
            if "No module named" in error.message and not isinstance(error, CutError):
                error.hint = (
                    f"install it for {self._place.python}: pip install 'edgeship-runtime[{self.contents.engine}]'"
                )
            raise

    def _verify(self) -> str:
        done, raw = self._measure("verify")
        if self.transport.pretends:
            return ""
        self._check_ran("verify", done, raw)
        self.checks, self._agreement = read_verify(raw)
        self._refused = done.code == VERIFY_FAILED
        return "pass" if done.code == 0 else "fail"
