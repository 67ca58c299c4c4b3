"""The tasks of a cgroup or of a process tree: moved to SCHED_EXT and back, what they get and what they wait for.

Everything from /proc and cgroupfs. Names in there are anybody's bytes: a process may call itself what it likes.
"""

from __future__ import annotations

import os
import re
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from schedagent.core.deployment import Tree, Where
from schedagent.core.terminal.foreign import quote

SCHED_EXT = 7
"""include/uapi/linux/sched.h; tasks of SCHED_NORMAL are moved to it, all others are left alone."""

PROC = Path("/proc")
_CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
MOST_WATCHED = 4096
"""Threads whose counters are read for one sample; where there are more, in turn if the watch rotates."""
_PASSES = 8
_PARENT, _BEGAN = 1, 19
"""Of /proc/PID/stat behind the command, counted from 0: ppid and starttime (proc_pid_stat(5), 4 and 22)."""
_OF_CPU = re.compile(r"cpu\d+ ")
_NS = 1e-9
_US = 1e-6


@dataclass(frozen=True)
class TaskSample:
    """Counters of a scope, which only grow.

    Args:
        at: CLOCK_MONOTONIC, in seconds.
        stalled_s: how long at least one of its tasks waited for a CPU (PSI, "some"); None where nothing shows it: a
            process tree has no PSI.
        delay_s, runs: how long its tasks waited in run queues, and how often they then ran.
        ran_s: CPU time that they used. Tasks that came and went between two samples are in neither this nor delay_s.
        starved: runnable tasks that have not run for longer than the bound, each as 'PID "COMMAND"'.
    """

    at: float
    stalled_s: float | None
    delay_s: float
    runs: int
    ran_s: float = 0.0
    starved: tuple[str, ...] = ()


def cgroup_root() -> Path:
    """Where the one hierarchy of cgroup v2 is mounted."""
    return next((root for root in _CGROUPS if (root / "cgroup.controllers").exists()), _CGROUPS[0])


def processes() -> list[int]:
    """Ids of all processes."""
    return _numbers(PROC)


def tree_of(pid: int) -> Tree | None:
    """Return the tree that begins with a process; None if there is no such process."""
    stat = _stat(pid)
    return Tree(pid, stat[1]) if stat else None


def cgroup_of(tree: Tree) -> str:
    """Return the cgroup that a tree's first process is in, as a path below the root; empty if it ended."""
    try:
        text = Path(PROC, str(tree.pid), "cgroup").read_text(errors="replace")
    except OSError:
        return ""
    paths = [line[3:] for line in text.splitlines() if line.startswith("0::")]
    return paths[0] if paths and tree_of(tree.pid) == tree else ""


class Threads:
    """The threads of a scope, listed again and again.

    A process that its parent left behind no longer shows whose descendant it is. What was seen in a tree once stays in
    it for as long as it lives; what was moved to SCHED_EXT stays there, and its children begin there, in any case.

    Args:
        where: the scope.
        root: where cgroups are mounted.
    """

    def __init__(self, where: Where, root: Path) -> None:
        self._where = where
        self._root = root
        self._known: dict[int, int] = {where.pid: where.started} if isinstance(where, Tree) else {}

    def now(self) -> Iterator[int]:
        """Yield the ids of the threads that are there now, those of cgroups below included."""
        if isinstance(self._where, Tree):
            yield from self._of_tree()
        elif self._where:
            yield from self._of_cgroup(self._root / self._where.lstrip("/"))
        else:
            yield from _threads(processes())

    def _of_tree(self) -> Iterator[int]:
        there = {pid: stat for pid in processes() if (stat := _stat(pid))}
        known = {pid: began for pid, began in self._known.items() if pid in there and there[pid][1] == began}
        children: dict[int, list[int]] = {}
        for pid, (parent, _began) in there.items():
            children.setdefault(parent, []).append(pid)
        new = list(known)
        while new:
            new = [child for parent in new for child in children.get(parent, ()) if child not in known]
            known |= {pid: there[pid][1] for pid in new}
        self._known = known
        yield from _threads(sorted(known))

    def _of_cgroup(self, top: Path) -> Iterator[int]:
        for folder, _folders, _files in os.walk(top):
            with suppress(OSError):  # it went away; or a threaded domain, whose threads are listed below it
                yield from map(int, Path(folder, "cgroup.threads").read_text().split())


def move_in(where: Where, root: Path) -> int:
    """Move a scope's normal tasks to SCHED_EXT, so that their children begin there; return how many were moved.

    Repeated until there is nothing left to move: a child may be born, still a normal task, after the first pass.
    """
    threads, moved = Threads(where, root), 0
    for _pass in range(_PASSES):
        now = sum(_change(thread, os.SCHED_OTHER, SCHED_EXT) for thread in threads.now())
        moved += now
        if not now:
            break
    return moved


def move_out() -> int:
    """Move every SCHED_EXT task of the machine back to SCHED_NORMAL; return how many were moved.

    All of them, since children may have left the cgroup.
    """
    return sum(_change(thread, SCHED_EXT, os.SCHED_OTHER) for thread in Threads("", cgroup_root()).now())


def _change(thread: int, before: int, after: int) -> bool:
    """Give a thread another scheduling policy; its nice value stays (kernel/sched/syscalls.c)."""
    with suppress(OSError):  # it ended
        if os.sched_getscheduler(thread) == before:
            os.sched_setscheduler(thread, after, os.sched_param(0))
            return True
    return False


@dataclass(frozen=True)
class _Seen:
    """A thread's counters at a sample.

    Args:
        ran, delay: ns on a CPU and in run queues.
        runs: how often it ran.
        since: when (CLOCK_MONOTONIC) it was first seen with these counters, runnable.
        again: whether it was there at an earlier sample, too.
    """

    ran: int
    delay: int
    runs: int
    since: float
    again: bool


class Watch:
    """Counts what the tasks of one scope get and wait for, sample by sample.

    Args:
        where: the scope.
        starvation_s: how long a runnable task may not run.
        rotates: whether all threads are looked at in turn where there are more than MOST_WATCHED, each at two samples
            one after the other at least; and whether for the whole machine the kernel's own sums count, which hold
            threads that came and went, too. Otherwise only the first ones are looked at.
    """

    def __init__(self, where: Where, starvation_s: float, root: Path, rotates: bool = False) -> None:
        self._threads = Threads(where, root)
        self._pressure = _pressure_file(where, root)
        self._starvation_s = starvation_s
        self._rotates = rotates
        self._whole_machine = rotates and where == ""
        self._seen: dict[int, _Seen] = {}
        self._at = 0.0
        self._last = 0
        self._ran_ns = 0
        self._delay_ns = 0
        self._runs = 0

    def sample(self) -> TaskSample:
        """Read the counters of the tasks of the scope and its PSI."""
        now = time.monotonic()
        seen: dict[int, _Seen] = {}
        starved = []
        for thread in self._chosen():
            counters = schedstat(thread)
            if counters is None:
                continue
            ran, delay, runs = counters
            before = self._seen.get(thread)
            since = now
            if before is not None:
                self._ran_ns += max(0, ran - before.ran)
                self._delay_ns += max(0, delay - before.delay)
                self._runs += max(0, runs - before.runs)
                if (ran, runs) == (before.ran, before.runs) and (name := _runnable(thread)):
                    since = before.since
                    if now - since >= self._starvation_s:
                        starved.append(name)
            seen[thread] = _Seen(ran, delay, runs, since, before is not None)
        self._seen, self._at = seen, now
        waited_s, runs, ran_s = self._sums()
        return TaskSample(now, self._stalled_s(), waited_s, runs, ran_s, tuple(starved))

    def _sums(self) -> tuple[float, int, float]:
        """How long tasks waited (s), how often they ran, and for how long (s)."""
        sums = machine_sums() if self._whole_machine else None
        return sums or (self._delay_ns * _NS, self._runs, self._ran_ns * _NS)

    def _chosen(self) -> Iterable[int]:
        """Return the threads to look at now.

        Of too many: those that were seen for the first time the last time, those that may be starving, and new ones.
        """
        if not self._rotates:
            return islice(self._threads.now(), MOST_WATCHED)
        threads = sorted(self._threads.now())
        if len(threads) <= MOST_WATCHED:
            return threads
        there = set(threads)
        last = {thread: seen for thread, seen in self._seen.items() if thread in there}
        first_seen = [thread for thread, seen in last.items() if not seen.again]
        waiting = [thread for thread, seen in last.items() if seen.since < self._at]
        kept = dict.fromkeys([*first_seen, *waiting[: MOST_WATCHED // 4]])
        begin = bisect_right(threads, self._last)
        turn = (thread for thread in chain(threads[begin:], threads[:begin]) if thread not in kept)
        new = list(islice(turn, min(MOST_WATCHED // 2, MOST_WATCHED - len(kept))))
        self._last = new[-1]
        return [*kept, *new]

    @property
    def ran_ns(self) -> dict[int, int]:
        """CPU time of each task at the last sample, by thread id."""
        return {thread: seen.ran for thread, seen in self._seen.items()}

    def _stalled_s(self) -> float | None:
        """PSI's total of the scope; None where the kernel has none."""
        try:
            return int(self._pressure.read_text().partition("total=")[2].split()[0]) * _US if self._pressure else None
        except (OSError, ValueError, IndexError):
            return None


def machine_sums() -> tuple[float, int, float] | None:
    """Return how long all tasks of the machine waited in run queues (s), how often they ran, and for how long (s).

    The kernel's own sums since boot: the last two figures of each CPU in /proc/schedstat
    (Documentation/scheduler/sched-stats.rst), and user, nice and system time of /proc/stat (proc_stat(5)): the time on
    a CPU of /proc/schedstat grows only when a task leaves it. None where the kernel does not show them.
    """
    try:
        rows = [line.split() for line in (PROC / "schedstat").read_text().splitlines() if _OF_CPU.match(line)]
        spent = (PROC / "stat").read_text().split()[1:4]
        ticks = sum(map(int, spent))
        waited_ns, runs = sum(int(row[8]) for row in rows), sum(int(row[9]) for row in rows)
    except (OSError, ValueError, IndexError):
        return None
    return (waited_ns * _NS, runs, ticks / os.sysconf("SC_CLK_TCK")) if rows else None


def all_threads() -> list[int]:
    """Ids of all threads of the machine."""
    return list(_threads(processes()))


def _pressure_file(where: Where, root: Path) -> Path | None:
    if isinstance(where, Tree):
        return None
    return root / where.lstrip("/") / "cpu.pressure" if where else PROC / "pressure/cpu"


def schedstat(thread: int) -> tuple[int, int, int] | None:
    """Time on a CPU and in run queues (ns), and how often it ran (Documentation/scheduler/sched-stats.rst)."""
    try:
        ran, delay, runs = Path(PROC, str(thread), "schedstat").read_text().split()
        return int(ran), int(delay), int(runs)
    except (OSError, ValueError):
        return None


def _runnable(thread: int) -> str:
    """Return 'PID "COMMAND"' of a runnable thread, else an empty text. Threads without a CPU of their own never are."""
    try:
        before, _parenthesis, after = Path(PROC, str(thread), "stat").read_text(errors="replace").rpartition(")")
    except OSError:
        return ""
    name = before.partition("(")[2]
    return f"{thread} {quote(name)}" if after.split()[:1] == ["R"] else ""


def _stat(pid: int) -> tuple[int, int] | None:
    """Parent and start time (clock ticks since boot) of a process; None if there is none."""
    try:
        fields = Path(PROC, str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(fields[_PARENT]), int(fields[_BEGAN])
    except (OSError, ValueError, IndexError):
        return None


def _threads(pids: Iterable[int]) -> Iterator[int]:
    for pid in pids:
        yield from _numbers(PROC / str(pid) / "task")


def _numbers(folder: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(folder) if name.isdecimal()]  # noqa: PTH208 - half the time of a Path
    except OSError:
        return []
