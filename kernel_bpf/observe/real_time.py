"""Real-time and deadline tasks that hold a CPU: what runs below them, sched_ext included, does not get it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from kernel_bpf.observe import tasks
from schedagent.core.terminal.foreign import quote

LOOK_S = 0.2
HELD_SHARE = 0.5
"""Of the time between two looks, so that two tasks that share a CPU are both named."""

MOST_NAMED = 4
_SCHED_DEADLINE = 6
_ABOVE = frozenset({os.SCHED_FIFO, os.SCHED_RR, _SCHED_DEADLINE})
"""include/uapi/linux/sched.h; they rank above the fair class and SCHED_EXT (sched_class_above() of
kernel/sched/sched.h)."""

_PROCESSOR = 36
"""Of /proc/PID/stat behind the command, counted from 0 (proc_pid_stat(5), 39)."""


def holders(pause: Callable[[float], None] = time.sleep) -> tuple[str, ...]:
    """Return the real-time tasks that hold a CPU now, each as 'PID "COMMAND" on CPU N', the busiest first.

    Takes LOOK_S, and reads the scheduling policy of every thread: it is for moments at which something went wrong.
    """
    threads = [thread for thread in tasks.all_threads() if _policy(thread) in _ABOVE]
    before, began = _ran_ns(threads), time.monotonic()
    pause(LOOK_S)
    after, spent_ns = _ran_ns(threads), (time.monotonic() - began) * 1e9
    ran = {thread: after[thread] - before[thread] for thread in after.keys() & before.keys()}
    busiest = sorted((thread for thread in ran if ran[thread] > HELD_SHARE * spent_ns), key=lambda each: -ran[each])
    return tuple(filter(None, map(_named, busiest[:MOST_NAMED])))


def _policy(thread: int) -> int:
    with suppress(OSError):  # it ended
        return os.sched_getscheduler(thread)
    return os.SCHED_OTHER


def _ran_ns(threads: Iterable[int]) -> dict[int, int]:
    counters = ((thread, tasks.schedstat(thread)) for thread in threads)
    return {thread: counted[0] for thread, counted in counters if counted}


def _named(thread: int) -> str:
    try:
        before, _parenthesis, after = Path(tasks.PROC, str(thread), "stat").read_text(errors="replace").rpartition(")")
        return f"{thread} {quote(before.partition('(')[2])} on CPU {int(after.split()[_PROCESSOR])}"
    except (OSError, ValueError, IndexError):
        return ""
