"""A terminal as far as what writes to it can tell; all that was written is kept."""

from __future__ import annotations

import io


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True
