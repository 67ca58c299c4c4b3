"""Where the kernel keeps its clocks: read inside the guest, sent to the host. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SYMBOLS = Path("/proc/kallsyms")

_TIMEKEEPERS = ("timekeeper_data", "tk_core")
"""kernel/time/timekeeping.c, since 6.17 and before."""

_TICKS = ("jiffies_64", "last_jiffies_update", "tick_next_period")
"""kernel/time/timer.c, tick-sched.c and tick-common.c."""

_WATCHDOG = ("scx_watchdog_timestamp", "scx_watchdog_timeout", "scx_root")
"""kernel/sched/ext.c; the time limit is in 7.2 a member of what scx_root points to."""

_WANTED = (*_TIMEKEEPERS, "__sched_clock_offset", *_WATCHDOG, *_TICKS)


@dataclass(frozen=True)
class ClockPlace:
    """Addresses of a kernel's clocks; 0 for what it lacks.

    Args:
        timekeeper: what CLOCK_MONOTONIC and the wall clock follow from.
        jiffies, last_tick, next_tick: the ticks so far, and when (CLOCK_MONOTONIC, ns) the last one was counted and the
            next one will be.
        sched_clock: the offset of sched_clock(), which scx_bpf_now() follows (kernel/sched/clock.c).
        watchdog: when sched_ext's watchdog looked last, in jiffies (kernel/sched/ext.c).
        limit: how long it lets a task wait, in jiffies; with a `root`, how far behind what that points to.
        root: the pointer to the policy in charge.
    """

    timekeeper: int = 0
    jiffies: int = 0
    last_tick: int = 0
    next_tick: int = 0
    sched_clock: int = 0
    watchdog: int = 0
    limit: int = 0
    root: int = 0

    @property
    def known(self) -> bool:
        """Whether the clocks can be moved at all."""
        return bool(self.timekeeper and self.jiffies and self.last_tick and self.next_tick)


def find_clocks(limit_offset: int = 0) -> ClockPlace:
    """Look the clocks of the running kernel up; needs root, or addresses are hidden.

    Args:
        limit_offset: of the watchdog's time limit in struct scx_sched, in bytes; 0 where that has none.
    """
    text = SYMBOLS.read_bytes()
    symbols = re.findall(rb"^([0-9a-f]+) \w (%s)$" % "|".join(_WANTED).encode(), text, re.MULTILINE)
    address = {name.decode(): int(digits, 16) for digits, name in symbols}
    return ClockPlace(
        timekeeper=next((address[name] for name in _TIMEKEEPERS if name in address), 0),
        jiffies=address.get("jiffies_64", 0),
        last_tick=address.get("last_jiffies_update", 0),
        next_tick=address.get("tick_next_period", 0),
        sched_clock=address.get("__sched_clock_offset", 0),
        watchdog=address.get("scx_watchdog_timestamp", 0),
        limit=limit_offset or address.get("scx_watchdog_timeout", 0),
        root=address.get("scx_root", 0) if limit_offset else 0,
    )
