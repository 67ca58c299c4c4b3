"""QEMU's debugger port, for what no guest may do to itself: read and write the memory of its kernel.

The protocol is GDB's (Appendix E, "GDB Remote Serial Protocol"): $packet#checksum, acknowledged by a "+". Only this
side of the machine can speak it, and QEMU listens only between `opened` and its end; the machine stands still then.
"""

from __future__ import annotations

import socket
import struct
import time

from schedagent.core.errors import VmLost

ANSWER_TIMEOUT_S = 10.0
PORT_ID = "debugger"
"""Of QEMU's character device that the port is attached to."""


class Debugger:
    """A connection to a machine that stands still; addresses are virtual ones of its kernel.

    Args:
        sock: the other end is QEMU's.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pending = b""

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes, at most 1024; raise VmLost if they cannot be read."""
        return bytes.fromhex(self._ask(f"m{address:x},{size:x}").decode("ascii", "replace"))

    def write(self, address: int, content: bytes) -> None:
        """Overwrite memory; raise VmLost if that cannot be done."""
        if (answer := self._ask(f"M{address:x},{len(content):x}:{content.hex()}")) != b"OK":
            raise VmLost(f"QEMU's debugger did not write to {address:#x}: {answer!r}")

    def add(self, address: int, change: int) -> None:
        """Add to the 64-bit number at an address, which wraps."""
        (value,) = struct.unpack("<Q", self.read(address, 8))
        self.write(address, struct.pack("<Q", (value + change) & (1 << 64) - 1))

    def _ask(self, packet: str) -> bytes:
        """Send a packet and return the answer; raise VmLost for an error, or if there is none."""
        body = packet.encode("ascii")
        try:
            self._sock.settimeout(ANSWER_TIMEOUT_S)
            self._sock.sendall(b"$%s#%02x" % (body, sum(body) & 0xFF))
            answer = self._packet()
            self._sock.sendall(b"+")
        except OSError as error:
            raise VmLost(f"QEMU's debugger is gone: {error}") from None
        if answer.startswith(b"E"):
            raise VmLost(f"QEMU's debugger refused {packet[:40]!r}: {answer!r}")
        return answer

    def _packet(self) -> bytes:
        """The next packet's body; acknowledgements before it, and words that the machine stopped, are left out."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while time.monotonic() < deadline:
            begin, end = self._pending.find(b"$"), self._pending.find(b"#")
            if begin >= 0 and 0 <= end <= len(self._pending) - 3:
                body = self._pending[begin + 1 : end]
                self._pending = self._pending[end + 3 :]
                if not body.startswith((b"T", b"S")):
                    return body
                continue
            chunk = self._sock.recv(4096)
            if not chunk:
                raise VmLost("QEMU's debugger is gone")
            self._pending += chunk
        raise VmLost(f"QEMU's debugger gave no answer within {ANSWER_TIMEOUT_S:g} s")
