"""A unix socket of this machine, reached from inside a guest that has no network: many connections over one channel."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

HEADER = struct.Struct("!II")
"""Number of a connection, and how many bytes of it follow; with none, this side of it has ended."""
PIECE = 1 << 16


class Relay:
    """One end of the channel.

    Args:
        channel: what both ends read and write, unbuffered.
        connect: opens the other side of a connection that is new here.
    """

    def __init__(self, channel: BinaryIO, connect: Callable[[], socket.socket] | None = None) -> None:
        self._channel, self._connect = channel, connect
        self._open: dict[int, socket.socket] = {}
        self._half: set[int] = set()
        self._writing = threading.Lock()

    def listen(self, listener: socket.socket) -> None:
        """Give each connection that is made to a socket here an end over there, until the socket is closed."""
        with suppress(OSError):
            for number in range(1 << 32):
                connection, _address = listener.accept()
                self._take(number, connection)

    def serve(self) -> None:
        """Hand on what comes over the channel, until it ends."""
        while header := self._read(HEADER.size):
            number, length = HEADER.unpack(header)
            content = self._read(length)
            if number not in self._open and self._connect is not None:
                self._take(number, self._connect())
            with suppress(OSError, KeyError):  # it has gone meanwhile
                if content:
                    self._open[number].sendall(content)
                else:
                    self._open[number].shutdown(socket.SHUT_WR)
            if not content:
                self._ended(number)

    def _take(self, number: int, connection: socket.socket) -> None:
        self._open[number] = connection
        threading.Thread(target=self._hand_on, args=(number, connection), daemon=True).start()

    def _hand_on(self, number: int, connection: socket.socket) -> None:
        content = b"-"
        while content:
            content = b""
            with suppress(OSError):
                content = connection.recv(PIECE)
            with self._writing:
                self._write(HEADER.pack(number, len(content)) + content)
        self._ended(number)

    def _ended(self, number: int) -> None:
        """Close a connection once both of its sides have ended."""
        with self._writing:
            if number in self._half:
                self._open.pop(number).close()
            self._half.add(number)

    def _write(self, content: bytes) -> None:
        while content:
            content = content[self._channel.write(content) :]

    def _read(self, length: int) -> bytes:
        """Read so many bytes; fewer if the channel ends."""
        content = b""
        while len(content) < length and (piece := self._channel.read(length - len(content))):
            content += piece
        return content
