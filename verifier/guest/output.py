"""What a workload prints: a pipe that the guest's agent empties now and then.

The agent does not wait for output, so no line of it wakes anybody: it looks in whenever it looks after the run anyhow,
and throws away, without copying it, all but the beginning and the end. A run that prints gigabytes is held up a little
when the pipe is full, in every arm alike, and never fills the machine's memory.
"""

from __future__ import annotations

import fcntl
import os
import select
from contextlib import suppress
from dataclasses import dataclass

from verifier.microvm.jobs import OUTPUT_LIMIT_BYTES

HEAD_BYTES = 64 << 10
TAIL_BYTES = OUTPUT_LIMIT_BYTES - HEAD_BYTES
CUT = b"\n[... cut here: the middle of a long output is not kept ...]\n"
"""Stands for what was thrown away; it holds no digit that a metric could take for a number."""

PIPE_BYTES = (32 << 20, 8 << 20, 2 << 20)
"""Sizes to try: the kernel keeps a pipe's slots in one piece of memory, which a used machine may not have."""

LONGEST_PAUSE_S = 0.1
FIRST_PAUSE_S = 0.02
SHORTEST_PAUSE_S = 0.002

_FIONREAD = 0x541B  # asm-generic/ioctls.h


@dataclass(frozen=True)
class Printed:
    """The output of one command.

    Args:
        content: all of it, or its beginning and its end with CUT between them.
        total_bytes: how much it was before it was cut.
    """

    content: bytes
    total_bytes: int

    @property
    def text(self) -> str:
        """The content as text that JSON can carry: bytes that are not UTF-8 are lone surrogates (PEP 383)."""
        return self.content.decode("utf-8", "surrogateescape")


class Output:
    """A pipe for stdout and stderr of all commands of one run.

    Args:
        uid, gid: who may open it again, by /dev/stderr for example.
    """

    def __init__(self, uid: int, gid: int) -> None:
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        self._null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._size = enlarge(self.writer)
        os.fchown(self.writer, uid, gid)
        self._begin()

    def _begin(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._thrown_away = 0
        self._total = 0
        self.pause_s = FIRST_PAUSE_S

    def drain(self) -> None:
        """Throw away what is too much, and set `pause_s`: how long the pipe can be left alone now."""
        waiting, full = self._waiting(), not writable(self.writer)
        surplus = waiting - TAIL_BYTES
        if self._tail or (full and surplus <= 0):  # many small pieces, each of which takes a slot of the pipe
            self._take(waiting)
        elif surplus > 0:
            self._discard(surplus)
        busy = full or surplus > self._size // 8
        self.pause_s = max(self.pause_s / 2, SHORTEST_PAUSE_S) if busy else min(self.pause_s * 2, LONGEST_PAUSE_S)

    def printed(self) -> Printed:
        """Return what was written since the last call, or since the beginning."""
        self.drain()
        self._take(self._waiting())
        cut = CUT if self._thrown_away else b""
        result = Printed(bytes(self._head) + cut + bytes(self._tail), self._total)
        self._begin()
        return result

    def close(self) -> None:
        """Close both ends; whoever still writes gets SIGPIPE."""
        for end in (self._reader, self.writer, self._null):
            os.close(end)

    def _waiting(self) -> int:
        return int.from_bytes(fcntl.ioctl(self._reader, _FIONREAD, bytes(4)), "little")

    def _discard(self, count: int) -> None:
        """Take `count` bytes out of the pipe; of these the head keeps what it has room for."""
        self._head += self._read(min(count, HEAD_BYTES - len(self._head)))
        surplus = self._waiting() - TAIL_BYTES
        while surplus > 0:
            moved = os.splice(self._reader, self._null, surplus)
            self._total += moved
            self._thrown_away += moved
            surplus -= moved

    def _take(self, count: int) -> None:
        """Read `count` bytes and keep the beginning and the end of all that was read."""
        self._tail += self._read(count)
        room = HEAD_BYTES - len(self._head)
        if len(self._tail) > TAIL_BYTES and room > 0:
            self._head += self._tail[:room]
            del self._tail[:room]
        surplus = len(self._tail) - TAIL_BYTES
        if surplus > 0:
            self._thrown_away += surplus
            del self._tail[:surplus]

    def _read(self, count: int) -> bytes:
        pieces = []
        while count > 0:
            piece = os.read(self._reader, count)
            self._total += len(piece)
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)


def enlarge(pipe: int) -> int:
    """Give a pipe as much room as the kernel grants, and return how much that is."""
    for size in PIPE_BYTES:
        with suppress(OSError):
            return fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)
    return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


def writable(pipe: int) -> bool:
    """Whether the pipe has a free slot."""
    poller = select.poll()
    poller.register(pipe, select.POLLOUT)
    return bool(poller.poll(0))
