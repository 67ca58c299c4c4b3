"""Lines of stdin for an event loop that must be able to end while stdin is still open.

The usual way, a worker thread that reads, is waited for when the loop ends, so that Ctrl-C would do nothing until the
next line. This thread is not waited for, reads from a descriptor of its own, and leaves /dev/null as stdin to whatever
this process starts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from contextlib import suppress

log = logging.getLogger(__name__)

_CHUNK = 1 << 16
_AHEAD = 16


class StdinLines:
    """The lines of stdin, with their line ends, as an asynchronous iterator; made inside of the loop that reads it.

    Args:
        longest: bytes; a longer line ends the reading, because nobody means it.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(_AHEAD)
        self._descriptor = _take_stdin()
        threading.Thread(target=self._read, daemon=True, name="stdin").start()

    def __aiter__(self) -> StdinLines:
        return self

    async def __anext__(self) -> str:
        line = await self._queue.get()
        if not line:
            raise StopAsyncIteration
        return line.decode(errors="replace")

    def _read(self) -> None:
        with suppress(RuntimeError, asyncio.CancelledError):  # the loop ended first
            pending = b""
            while chunk := os.read(self._descriptor, _CHUNK):
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    self._put(line + b"\n")
                if len(pending) > self._longest:
                    log.error("a line of stdin is longer than %d bytes: no more is read", self._longest)
                    break
            self._put(b"")

    def _put(self, line: bytes) -> None:
        asyncio.run_coroutine_threadsafe(self._queue.put(line), self._loop).result()


def _take_stdin() -> int:
    """Return a private descriptor of stdin, whose number reads nothing from now on."""
    private = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return private
