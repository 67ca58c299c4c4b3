"""Connections to the MCP server over HTTP: any process of the machine can make one, so one without the token is short.

uvicorn limits neither how long a connection may stay silent before its first request, nor how many there are.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping

from uvicorn.protocols.http.h11_impl import H11Protocol

ADMITTED = "schedagent.admitted"
"""Key in the scope of a request that carried the token."""

FIRST_REQUEST_S = 5.0
"""Within so long a connection has to show the token."""

MOST_STRANGERS = 16
"""Connections at once that have not shown it. With a further one the oldest of them is closed: whoever holds the token,
and sends it at once, gets in all the same."""


class Connection(H11Protocol):
    """One connection; uvicorn makes it, and asyncio calls it."""

    _numbers = itertools.count()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._number = next(self._numbers)
        strangers = [each for each in self.connections if isinstance(each, Connection) and not each.admitted]
        if len(strangers) > MOST_STRANGERS:
            min(strangers, key=lambda each: each._number).transport.abort()
        self.loop.call_later(FIRST_REQUEST_S, self._end_stranger)

    @property
    def admitted(self) -> bool:
        """Whether its latest request carried the token."""
        scope: Mapping[str, object] | None = self.scope
        return scope is not None and ADMITTED in scope

    def _end_stranger(self) -> None:
        if not self.admitted:
            self.transport.close()
