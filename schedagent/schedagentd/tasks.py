"""The tasks of a cgroup: moved to SCHED_EXT and back, and what they wait for. Everything from /proc and cgroupfs.

May import: the standard library.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SCHED_EXT = 7
"""include/uapi/linux/sched.h; tasks of SCHED_NORMAL are moved to it, all others are left alone."""

PROC = Path("/proc")
_CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_MOST_WATCHED = 4096
_NS = 1e-9
_US = 1e-6


@dataclass(frozen=True)
class Sample:
    """Counters of a scope, which only grow.

    Args:
        at: CLOCK_MONOTONIC, in seconds.
        stalled_s: how long at least one of its tasks waited for a CPU (PSI, "some").
        delay_s, turns: how long its tasks waited in run queues, and how often they then ran.
        starved: runnable tasks that have not run for longer than the bound, each as "PID (COMMAND)".
    """

    at: float
    stalled_s: float
    delay_s: float
    turns: int
    starved: tuple[str, ...] = ()


def cgroup_root() -> Path:
    """Where the one hierarchy of cgroup v2 is mounted."""
    return next((root for root in _CGROUPS if (root / "cgroup.controllers").exists()), _CGROUPS[0])


def processes() -> list[int]:
    """Ids of all processes."""
    return _numbers(PROC)


def threads_of(cgroup: str, root: Path) -> Iterator[int]:
    """Yield the thread ids of a cgroup and of those below it.

    Args:
        cgroup: path below `root`, such as "/build.slice"; empty for every thread of the machine.
    """
    if not cgroup:
        for process in processes():
            yield from _numbers(PROC / str(process) / "task")
        return
    for folder, _folders, _files in os.walk(root / cgroup.lstrip("/")):
        with suppress(OSError):  # it went away; or a threaded domain, whose threads are told below it
            yield from map(int, Path(folder, "cgroup.threads").read_text().split())


def move_in(cgroup: str, root: Path) -> int:
    """Move a cgroup's normal tasks to SCHED_EXT, so that their children begin there; return how many were moved."""
    return sum(_change(thread, os.SCHED_OTHER, SCHED_EXT) for thread in threads_of(cgroup, root))


def move_out() -> int:
    """Move every SCHED_EXT task of the machine back to SCHED_NORMAL; return how many were moved.

    All of them, since children may have left the cgroup.
    """
    return sum(_change(thread, SCHED_EXT, os.SCHED_OTHER) for thread in threads_of("", cgroup_root()))


def _change(thread: int, before: int, after: int) -> bool:
    """Give a thread another scheduling policy; its nice value stays (kernel/sched/syscalls.c)."""
    with suppress(OSError):  # it ended
        if os.sched_getscheduler(thread) == before:
            os.sched_setscheduler(thread, after, os.sched_param(0))
            return True
    return False


class Watch:
    """Counts what the tasks of one scope wait for, sample by sample.

    Args:
        cgroup: the scope, "" for the whole machine.
        starvation_s: how long a runnable task may not run.
    """

    def __init__(self, cgroup: str, starvation_s: float, root: Path) -> None:
        self._cgroup = cgroup
        self._root = root
        self._starvation_s = starvation_s
        self._seen: dict[int, tuple[int, int, int, float]] = {}
        self._delay_ns = 0
        self._turns = 0

    def sample(self) -> Sample:
        """Look at every task of the scope (the first 4096) and at its PSI."""
        now = time.monotonic()
        seen: dict[int, tuple[int, int, int, float]] = {}
        starved = []
        for thread in threads_of(self._cgroup, self._root):
            if len(seen) >= _MOST_WATCHED:
                break
            told = _schedstat(thread)
            if told is None:
                continue
            ran, delay, turns = told
            before = self._seen.get(thread)
            since = now
            if before is not None:
                self._delay_ns += max(0, delay - before[1])
                self._turns += max(0, turns - before[2])
                if (ran, turns) == (before[0], before[2]) and (name := _runnable(thread)):
                    since = before[3]
                    if now - since >= self._starvation_s:
                        starved.append(name)
            seen[thread] = (ran, delay, turns, since)
        self._seen = seen
        return Sample(now, self._stalled_s(), self._delay_ns * _NS, self._turns, tuple(starved))

    @property
    def ran_ns(self) -> dict[int, int]:
        """CPU time of each task at the last sample, by thread id."""
        return {thread: seen[0] for thread, seen in self._seen.items()}

    def _stalled_s(self) -> float:
        """PSI's total of the scope; 0 where the kernel has none."""
        path = self._root / self._cgroup.lstrip("/") / "cpu.pressure" if self._cgroup else PROC / "pressure/cpu"
        try:
            return int(path.read_text().partition("total=")[2].split()[0]) * _US
        except (OSError, ValueError, IndexError):
            return 0.0


def _schedstat(thread: int) -> tuple[int, int, int] | None:
    """Time on a CPU and in run queues (ns), and turns on a CPU (Documentation/scheduler/sched-stats.rst)."""
    try:
        ran, delay, turns = Path(PROC, str(thread), "schedstat").read_text().split()
        return int(ran), int(delay), int(turns)
    except (OSError, ValueError):
        return None


def _runnable(thread: int) -> str:
    """Return "PID (COMMAND)" of a runnable thread, else an empty text. Threads without a CPU of their own never are."""
    try:
        before, _parenthesis, after = Path(PROC, str(thread), "stat").read_text().rpartition(")")
    except OSError:
        return ""
    return f"{before})" if after.split()[:1] == ["R"] else ""


def _numbers(folder: Path) -> list[int]:
    try:
        return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
    except OSError:
        return []
