"""Notifications to systemd (sd_notify(3))."""

from __future__ import annotations

import socket
from contextlib import suppress


class Notifier:
    """Sends states to systemd; does nothing where there is none.

    Args:
        address: of the socket, from NOTIFY_SOCKET; empty for none.
        watchdog_s: how often systemd wants to hear from us at the latest; 0 for never.
    """

    def __init__(self, address: str, watchdog_s: float) -> None:
        self.watchdog_s = watchdog_s
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._address = f"\0{address[1:]}" if address.startswith("@") else address

    def close(self) -> None:
        """Send nothing more; idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def tell(self, state: str) -> None:
        """Send assignments such as "READY=1"; lost ones are no reason to stop."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto(state.encode(), self._address)
