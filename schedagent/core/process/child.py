"""A forked process that works on one thing and answers in lines; whether it crashes or hangs, its parent continues.

Children are forks of a server process that has imported what they need, so each starts within milliseconds.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from schedagent.core.errors import SetupError

ANSWER_LIMIT_BYTES = 64 << 20
_CONTEXT = multiprocessing.get_context("forkserver")
_LAST_WAIT_S = 5.0


def prepare(modules: Sequence[str]) -> None:
    """Start the server process that workers are forked from; it is ready when this returns.

    Args:
        modules: what it imports beforehand.
    """
    _CONTEXT.set_forkserver_preload([__name__, *modules])
    first = _CONTEXT.Process(target=_nothing)
    first.start()
    first.join()


def _nothing() -> None:
    """The first worker: it starts when the imports of the server process are done."""


class Child:
    """A process that works and answers in lines. Use `answers` once, and `end` whatever happens.

    Args:
        work: called there with `send`, which takes one line, and with `arguments`; it must be picklable, as they must.
        folder: where its temporary files go; whoever made the folder removes it.
        is_last: whether a line is the last one.
        task: what the process does, for its error message, such as "verifies fair".
        grace_s: how long it may take to end by itself (it gets a KeyboardInterrupt) before it is killed.
    """

    def __init__(
        self,
        work: Callable[..., None],
        arguments: tuple[Any, ...],
        folder: Path,
        is_last: Callable[[bytes], bool],
        *,
        task: str,
        grace_s: float = 0.0,
    ) -> None:
        self._task = task
        self._is_last = is_last
        self._grace_s = grace_s
        self._ours, theirs = socket.socketpair()
        self._process = _CONTEXT.Process(target=_live, args=(work, arguments, str(folder), grace_s, theirs))
        with theirs:
            self._process.start()

    async def answers(self) -> AsyncGenerator[bytes, None]:
        """Yield the lines that it answers; raise SetupError if it dies before the last one."""
        reader, writer = await asyncio.open_connection(sock=self._ours, limit=ANSWER_LIMIT_BYTES)
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                yield line
                if self._is_last(line):
                    return
            await self._ended()
            raise SetupError(
                f"the process that {self._task} ended early (status {self._process.exitcode})",
                "its last words are on stderr, or in the service's log",
            )
        finally:
            writer.close()

    async def end(self) -> None:
        """Kill it with all that it started; QEMU ends with the process that started it."""
        self._ours.close()  # it takes that as the word to end
        if self._grace_s:
            await asyncio.to_thread(self._process.join, self._grace_s)
        pid = self._process.pid
        if pid is not None and self._process.is_alive():
            self._process.kill()
        if pid is not None:
            with suppress(ProcessLookupError, PermissionError):  # its compilers, which are in its process group
                os.killpg(pid, signal.SIGKILL)
        await self._ended()

    async def _ended(self) -> None:
        await asyncio.to_thread(self._process.join, _LAST_WAIT_S)


def _live(
    work: Callable[..., None], arguments: tuple[Any, ...], folder: str, grace_s: float, connection: socket.socket
) -> None:
    """The child's whole life."""
    os.setsid()  # so that Ctrl-C reaches its parent only, whose matter it is
    signal.signal(signal.SIGINT, signal.default_int_handler if grace_s else signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tempfile.tempdir = folder
    threading.Thread(target=_end_with, args=(connection, grace_s), daemon=True).start()
    lock = threading.Lock()

    def send(line: bytes) -> None:
        with lock:
            try:
                connection.sendall(line)
            except ConnectionError:
                raise SystemExit(1) from None

    try:
        work(send, *arguments)
    except KeyboardInterrupt:  # its parent has what it wanted, or wants no more
        raise SystemExit(1) from None
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of the parent's interest may come as late as that


def _end_with(connection: socket.socket, grace_s: float) -> None:
    """End with the parent: nothing is ever sent this way, so what comes is the end."""
    with suppress(OSError):
        connection.recv(1)
    if grace_s:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(grace_s)
    os.killpg(0, signal.SIGKILL)
