"""A unix socket of this machine, reached from inside a guest that has no network: many connections over one channel.

Usage, inside: relay.py SOCKET; makes it appear there. It needs nothing but Python.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PORT = "relay"
"""Name of the guest's virtio-serial port."""

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


def near_end(path: Path) -> None:
    """Make the socket appear inside a guest, and serve it until the process ends."""
    [name] = [port.parent.name for port in Path("/sys/class/virtio-ports").glob("*/name") if PORT in port.read_text()]
    with socket.socket(socket.AF_UNIX) as listener, Path("/dev", name).open("r+b", buffering=0) as channel:
        listener.bind(str(path))
        listener.listen()
        relay = Relay(channel)
        threading.Thread(target=relay.listen, args=(listener,), daemon=True).start()
        relay.serve()


@contextmanager
def far_end(folder: Path, service: Path) -> Iterator[list[str]]:
    """Serve every machine that boots meanwhile; yields what QEMU is to be told, see verifier.microvm.machine.qemu_argv.

    Args:
        folder: QEMU, which is nobody, gets at the channel in it.
        service: the socket of this machine.
    """
    path = folder / "relay.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen()
        threading.Thread(target=_accept, args=(listener, service), daemon=True).start()
        yield ["-chardev", f"socket,id=relay,path={path}", "-device", f"virtserialport,chardev=relay,name={PORT}"]


def _accept(listener: socket.socket, service: Path) -> None:
    with suppress(OSError):
        while True:
            end, _address = listener.accept()
            threading.Thread(target=_serve, args=(end, service), daemon=True).start()


def _serve(end: socket.socket, service: Path) -> None:
    def connect() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(service))
        return connection

    with end, end.makefile("rwb", buffering=0) as channel, suppress(OSError):
        Relay(channel, connect).serve()


if __name__ == "__main__":
    near_end(Path(sys.argv[1]))
