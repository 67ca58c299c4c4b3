"""Waiting for a command to end while somebody looks after it."""

from __future__ import annotations

import os
import resource
import select
import time
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        status: its exit status, negative for a signal; None if it was given up.
        at_ns: when (CLOCK_MONOTONIC).
        rusage: of the shell and of all that it waited for; None if it was given up.
        waited: whether it was given up because it did nothing for too long.
    """

    status: int | None
    at_ns: int
    rusage: resource.struct_rusage | None = None
    waited: bool = False


class Watching(Protocol):
    """Who looks after a command while it runs."""

    def look(self) -> bool:
        """Do what is due, and return whether the command may continue."""
        ...

    @property
    def idle(self) -> bool:
        """Whether the command has waited for too long."""
        ...

    @property
    def pause_s(self) -> float:
        """How long nobody needs to look."""
        ...


def wait(pid: int, timeout_s: float, watch: Watching) -> Ended:
    """Wait until `pid` ends; give up if it does not end in time, does not stay healthy, or does nothing for long."""
    deadline = time.monotonic() + timeout_s
    pidfd = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        while not poller.poll(watch.pause_s * 1000):
            if time.monotonic() > deadline or not watch.look():
                return Ended(None, time.monotonic_ns())
            if watch.idle:
                return Ended(None, time.monotonic_ns(), waited=True)
        ended_ns = time.monotonic_ns()
    finally:
        os.close(pidfd)
    _pid, status, rusage = os.wait4(pid, 0)
    return Ended(os.waitstatus_to_exitcode(status), ended_ns, rusage)
