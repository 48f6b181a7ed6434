"""Connections as uvicorn's h11 has them, closed where a client does not get to the end of its request's headers.

h11 whatever else is installed: its limits are the ones that the tests know.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

_HEADERS_S = 20.0


class Connection(H11Protocol):
    """Looks every so often whether a request has begun since; uvicorn's own timer starts only after an answer."""

    _look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As `asyncio.Protocol` has it."""
        super().connection_made(transport)
        self._look = self.loop.call_later(_HEADERS_S, self._looked, self.cycle, True)

    def connection_lost(self, exc: Exception | None) -> None:
        """As `asyncio.Protocol` has it."""
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _looked(self, before: RequestResponseCycle | None, idle_before: bool) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and idle_before and self.cycle is before:
            self.transport.close()
        else:
            self._look = self.loop.call_later(_HEADERS_S, self._looked, self.cycle, idle)
