"""What holds for every test."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Have Ctrl-C work: a shell that starts us in the background has us, and our children, ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
