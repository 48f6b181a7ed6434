"""An artifact on a machine that has a runtime of its own: this one, or one that no bundle can be made for."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass

from edgeship.errors import HostError
from edgeship.ship.course import Course, Step
from edgeship.ship.place import Place, sent, where_it_lies
from edgeship.ship.probe import read_board
from edgeship.ship.transports import CutError


@dataclass
class Plain(Course):
    """Verified and measured, on this machine where it lies; nothing is installed."""

    @property
    def _in_place(self) -> bool:
        return self.transport.host == "local"

    def place(self) -> Place:
        return where_it_lies(self.contents) if self._in_place else sent(self.contents)

    def steps(self) -> Mapping[str, Step]:
        pushed = {} if self._in_place else {"space": self._space, "push": self._push}
        return {"probe": self._probe, **pushed, **self._last_steps(prune=False)}

    def _probe(self) -> str:
        facts = read_board(self.transport, self.contents)
        own = {"python": platform.python_version()} if self._in_place else {}
        self._facts, self._board = facts, facts.board.model_copy(update=own)
        self._lock.take()
        self._note(
            f"validated where it lies, by the runtime of {self._place.python}"
            if self._in_place
            else "validated by the runtime that is installed there"
        )
        return self._tell_board()

    def _doctor(self) -> str:
        try:
            return super()._doctor()
        except HostError as error:
            if "No module named" in error.message and not isinstance(error, CutError):
                error.hint = (
                    f"install it for {self._place.python}: pip install 'edgeship-runtime[{self.contents.engine}]'"
                )
            raise
