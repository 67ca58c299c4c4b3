"""Tier 1 without tracing: what each command's threads used, from /proc at the begin and at the end, and who ended.

Threads that came and went in between are known from the kernel's exit records (taskstats), which need CAP_NET_ADMIN.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from kernel_bpf.observe.tasks import PROC, Threads, cgroup_root
from schedagent.core.errors import SetupError
from schedagent.core.host_profile import CommandRow, Lifetimes, ProcessRow
from schedagent.observing.scope import Target, where

if TYPE_CHECKING:
    from kernel_bpf.observe.netlink import Taskstats

MOST_THREADS = 4096
LONGEST_NAME = 63
"""Bytes: kernel workers have a name of their own in /proc (fs/proc/array.c), others 15."""
SHOWN_COMMANDS, SHOWN_PROCESSES = 20, 32
BUDGET = 0.01
"""Part of a CPU that reading exit records may take: beyond, the rest is left unread."""
_NS = 1e-9


@dataclass(frozen=True)
class ThreadCounters:
    """Counters of one thread, which only grow; see the proc(5) of schedstat, status and sched."""

    comm: str
    ran_ns: int
    waited_ns: int
    runs: int
    involuntary: int
    migrations: int


def name(comm: bytes | str) -> str:
    """Return a command name, which is anybody's bytes, as printable text of one line."""
    text = comm.decode(errors="replace") if isinstance(comm, bytes) else comm
    return "".join(letter if letter.isprintable() else "?" for letter in text[:LONGEST_NAME]) or "?"


def threads_of(target: Target) -> list[int]:
    """Return the threads of a target, the first MOST_THREADS."""
    return list(islice(Threads(where(target), cgroup_root()).now(), MOST_THREADS))


def read_threads(target: Target) -> dict[int, ThreadCounters]:
    """Return the counters of the threads of a target, of the first MOST_THREADS."""
    seen: dict[int, ThreadCounters] = {}
    for thread in threads_of(target):
        with suppress(OSError, ValueError, IndexError):
            seen[thread] = _counters(PROC / str(thread))
    return seen


def _counters(folder: Path) -> ThreadCounters:
    ran, waited, runs = map(int, (folder / "schedstat").read_text().split())
    involuntary = _after(folder / "status", "nonvoluntary_ctxt_switches:")
    migrations = _after(folder / "sched", "se.nr_migrations")
    return ThreadCounters(
        name((folder / "comm").read_bytes().rstrip(b"\n")), ran, waited, runs, involuntary, migrations
    )


def _after(path: Path, word: str) -> int:
    """Return the number behind a word in a file; -1 where the kernel does not show it."""
    try:
        return int(path.read_text(errors="replace").partition(word)[2].lstrip(": \t").split()[0])
    except (OSError, ValueError, IndexError):
        return -1


def grown(
    before: dict[int, ThreadCounters], after: dict[int, ThreadCounters], ended: Iterable[Taskstats]
) -> tuple[CommandRow, ...]:
    """Return what each command used in between, most CPU time first.

    Args:
        ended: exit records; what those threads used before the begin is taken off.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 7)
    for thread, now in after.items():
        then = before.get(thread)
        if then is not None and then.ran_ns > now.ran_ns:
            then = None  # another thread of the same id
        zero = ThreadCounters("", 0, 0, 0, 0, 0)
        _add(sums[now.comm], now, then or zero, 0)
    for record in ended:
        then = before.get(record.pid, ThreadCounters("", 0, 0, 0, 0, 0))
        switches = record.voluntary_switches + record.involuntary_switches
        last = ThreadCounters("", record.cpu_ns, record.run_delay_ns, switches, record.involuntary_switches, -1)
        _add(sums[name(record.comm)], last, then, 1)
    rows = [
        CommandRow(
            comm=comm,
            tasks=int(tasks),
            ended=int(gone),
            run_s=round(ran * _NS, 6),
            wait_s=round(waited * _NS, 6),
            runs=int(runs),
            preempted=int(preempted),
            migrations=int(migrations),
        )
        for comm, (tasks, gone, ran, waited, runs, preempted, migrations) in sums.items()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.run_s, row.comm))[:SHOWN_COMMANDS])


def _add(sums: list[float], now: ThreadCounters, then: ThreadCounters, ended: int) -> None:
    grown_by = (
        (now.ran_ns, then.ran_ns),
        (now.waited_ns, then.waited_ns),
        (now.runs, then.runs),
        (now.involuntary, then.involuntary),
        (now.migrations, then.migrations),
    )
    sums[0] += 1
    sums[1] += ended
    for place, (new, old) in enumerate(grown_by, 2):
        sums[place] += max(0, new - old)


class Exits:
    """The exit records of the machine, as far as they concern a target; without the right, none."""

    def __init__(self, target: Target) -> None:
        self.records: list[Taskstats] = []
        self.remark = ""
        self._target = target
        self._known: set[int] = set()
        self._spent = 0.0
        self._begin = time.monotonic()
        try:
            from kernel_bpf.observe.host_netlink import HostTaskstats

            self._socket: HostTaskstats | None = HostTaskstats()
            self._socket.listen()
        except SetupError as error:
            self._socket = None
            self.remark = f"processes that came and went are not counted: {error.message}"

    def know(self, threads: Iterable[int]) -> None:
        """Say which threads are of the target: their records count, and those of their children."""
        self._known.update(threads)

    def drain(self) -> None:
        """Take the records that are waiting, unless that has cost too much already."""
        if self._socket is None:
            return
        before = time.thread_time()
        self._socket.drain(self._take)
        self._spent += time.thread_time() - before
        if self._spent > BUDGET * max(1.0, time.monotonic() - self._begin):
            self.remark = f"after {len(self.records)} exit records the rest was left unread: too many end"
            self.close()

    def _take(self, record: Taskstats) -> None:
        anybody = not (self._target.pid or self._target.cgroup)
        if anybody or {record.pid, record.tgid, record.ppid} & self._known:
            self._known.add(record.pid)
            self.records.append(record)

    def close(self) -> None:
        """Listen no longer; idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def lifetimes(records: Iterable[Taskstats]) -> Lifetimes | None:
    """Return how long the processes lived that ended; None if none did."""
    ages = sorted(record.elapsed_ns * _NS for record in records if record.tgid in (0, record.pid))
    if not ages:
        return None
    return Lifetimes(len(ages), round(_quantile(ages, 0.5), 4), round(_quantile(ages, 0.95), 4))


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def process_tree(target: Target) -> tuple[ProcessRow, ...]:
    """Return the processes of a target, those with most CPU time of their lives."""
    ticks = os.sysconf("SC_CLK_TCK")
    uptime_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    rows = {}
    for thread in threads_of(target):
        with suppress(OSError, ValueError, IndexError):
            before, _parenthesis, after = (PROC / str(thread) / "stat").read_text(errors="replace").rpartition(")")
            fields = after.split()
            tgid = _after(PROC / str(thread) / "status", "Tgid:")
            if tgid == thread:
                rows[thread] = ProcessRow(
                    pid=thread,
                    parent=int(fields[1]),
                    comm=name(before.partition("(")[2]),
                    threads=int(fields[17]),
                    age_s=round(uptime_s - int(fields[19]) / ticks, 2),
                    cpu_s=round((int(fields[11]) + int(fields[12])) / ticks, 2),
                )
    return tuple(sorted(rows.values(), key=lambda row: (-row.cpu_s, row.pid))[:SHOWN_PROCESSES])
