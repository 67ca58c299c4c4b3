"""Tier 0: counters that the kernel keeps anyway, read now and then; their growth makes intervals.

How many tasks are on CPUs or wait for one on average is the growth of their run time, and of their time in run queues,
divided by the time that passed: no sampling of states, so nothing between two samples is missed. A sample's own cost
decides how long it is until the next one, so that watching stays below its budget whatever there is to read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from kernel_bpf.observe.tasks import MOST_WATCHED, PROC, Threads, cgroup_root, machine_sums
from schedagent.core.host_profile import CgroupRow, Interval
from schedagent.observing.scope import Target, where

PERIOD_S = 0.25
MOST_INTERVALS = 600
RESOURCES = ("cpu", "io", "memory")
MOST_CGROUPS, DEEPEST_CGROUP, SHOWN_CGROUPS = 512, 3, 6
_NS, _US = 1e-9, 1e-6


@dataclass(frozen=True)
class Counters:
    """What only grows.

    Args:
        at: CLOCK_MONOTONIC, in seconds.
        ran_s, waited_s: on CPUs and in run queues.
        runs: how often a task was given a CPU.
        stalled_s: PSI, "some" of the CPU; None where nothing shows it.
    """

    at: float
    ran_s: float
    waited_s: float
    runs: int
    stalled_s: float | None


class Sampler:
    """Reads the counters of a target.

    Args:
        root: where cgroups are mounted.
    """

    def __init__(self, target: Target, root: Path | None = None) -> None:
        self._root = root or cgroup_root()
        self._cgroup = target.cgroup
        self._sums = not (target.pid or target.cgroup) and machine_sums() is not None
        self._threads = ThreadSums(Threads(where(target), self._root))
        self._pressure = pressure_folder(target, self._root)

    def sample(self) -> Counters:
        """Read now."""
        stalled = pressure_s(self._pressure, "cpu")
        if self._sums and (sums := machine_sums()):
            waited_s, runs, ran_s = sums
            return Counters(time.monotonic(), ran_s, waited_s, runs, stalled)
        used_s = cgroup_cpu_s(self._root / self._cgroup.lstrip("/")) if self._cgroup else None
        at = time.monotonic()
        ran_s, waited_s, runs = self._threads.read()
        return Counters(at, ran_s if used_s is None else used_s, waited_s, runs, stalled)


class ThreadSums:
    """Sums over the threads of a target that grow with what each got since the last time; see `Watch`, which looks for
    more and takes twice the time. Threads that came and went in between are not seen.
    """

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._seen: dict[int, tuple[int, int, int]] = {}
        self._sums = [0, 0, 0]

    def read(self) -> tuple[float, float, int]:
        """Return time on CPUs and in run queues (s), and how often threads ran."""
        first, before, self._seen = not self._seen, self._seen, {}
        for thread in islice(self._threads.now(), MOST_WATCHED):
            counters = _schedstat(thread)
            if counters is None:
                continue
            self._seen[thread] = counters
            then = before.get(thread, counters if first else (0, 0, 0))
            for place, (now, earlier) in enumerate(zip(counters, then, strict=True)):
                self._sums[place] += max(0, now - earlier)
        ran_ns, waited_ns, runs = self._sums
        return ran_ns * _NS, waited_ns * _NS, runs


def _schedstat(thread: int) -> tuple[int, int, int] | None:
    """Time on a CPU and in run queues (ns), and how often it ran; None of a thread that ended."""
    try:
        descriptor = os.open(f"/proc/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            ran, waited, runs = map(int, os.read(descriptor, 100).split())
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return None
    return ran, waited, runs


def intervals(
    sampler: Sampler,
    seconds: float,
    budget: float,
    stopped: Callable[[float], bool],
    meanwhile: Callable[[], None] = lambda: None,
) -> list[Interval]:
    """Sample for so many seconds; return the intervals between.

    Args:
        budget: part of a CPU that sampling may take.
        stopped: waits so many seconds, and returns whether nobody is interested any more.
        meanwhile: called after each sample.
    """
    seen: list[Interval] = []
    last = first = sampler.sample()
    pause, spent = PERIOD_S, time.thread_time()
    while (left := first.at + seconds - time.monotonic()) > 0:
        if stopped(min(max(pause, seconds / MOST_INTERVALS), left)):
            break
        meanwhile()
        now = sampler.sample()
        if now.at - last.at > _SHORTEST_S:
            seen.append(_interval(first.at, last, now))
            last = now
        spent, before = time.thread_time(), spent
        pause = max(PERIOD_S, (spent - before) / budget)
    return seen


_SHORTEST_S = 0.02
"""The clock ticks of /proc/stat are 0.01 s long."""


def _interval(begin: float, last: Counters, now: Counters) -> Interval:
    seconds, runs = now.at - last.at, now.runs - last.runs
    waited = max(0.0, now.waited_s - last.waited_s)
    pressure = -1.0
    if now.stalled_s is not None and last.stalled_s is not None:
        pressure = min(1.0, max(0.0, (now.stalled_s - last.stalled_s) / seconds))
    return Interval(
        at_s=round(now.at - begin, 3),
        seconds=round(seconds, 3),
        cpus=round(max(0.0, now.ran_s - last.ran_s) / seconds, 4),
        waiting=round(waited / seconds, 4),
        delay_us=round(waited / runs * 1e6, 1) if runs > 0 else -1.0,
        runs=max(0, runs),
        pressure=round(pressure, 4),
    )


def pressure_folder(target: Target, root: Path) -> Path:
    """Return where the pressure of a target stands; a process tree has none of its own, and gets the machine's."""
    return root / target.cgroup.lstrip("/") if target.cgroup else PROC / "pressure"


def pressure_s(folder: Path, resource: str) -> float | None:
    """Return PSI's total ("some") of a resource, in seconds; None where the kernel does not show it."""
    path = folder / (resource if folder.name == "pressure" else f"{resource}.pressure")
    try:
        return int(path.read_text().partition("total=")[2].split()[0]) * _US
    except (OSError, ValueError, IndexError):
        return None


def cgroup_cpu_s(folder: Path) -> float | None:
    """Return the CPU time of all that ever ran in a cgroup, in seconds; None where that is not counted."""
    try:
        return int((folder / "cpu.stat").read_text().partition("usage_usec")[2].split()[0]) * _US
    except (OSError, ValueError, IndexError):
        return None


def cgroups_cpu_s(root: Path | None = None) -> dict[str, float]:
    """Return the CPU time of the upper cgroups, by path."""
    root = root or cgroup_root()
    used: dict[str, float] = {}
    waiting = [(root, 0)]
    while waiting and len(used) < MOST_CGROUPS:
        place, depth = waiting.pop(0)
        with suppress(OSError):
            for entry in sorted(place.iterdir()):
                if entry.is_dir() and (seconds := cgroup_cpu_s(entry)) is not None:
                    used[f"/{entry.relative_to(root)}"] = seconds
                    if depth + 1 < DEEPEST_CGROUP:
                        waiting.append((entry, depth + 1))
    return used


def busiest_cgroups(before: dict[str, float], after: dict[str, float], seconds: float) -> tuple[CgroupRow, ...]:
    """Return the cgroups that used most, without those that used nearly all of it in one cgroup below."""
    grown = {path: used - before.get(path, 0.0) for path, used in after.items()}
    rows = [
        CgroupRow(path, round(used / seconds, 4))
        for path, used in grown.items()
        if used > 0 and not any(below.startswith(f"{path}/") and grown[below] > 0.9 * used for below in grown)
    ]
    return tuple(sorted(rows, key=lambda row: -row.cpus)[:SHOWN_CGROUPS])


def switches() -> int:
    """Return how many context switches the machine had since boot (proc_stat(5): ctxt); 0 if that is not shown."""
    with suppress(OSError, ValueError, IndexError):
        return int((PROC / "stat").read_text().partition("\nctxt ")[2].split()[0])
    return 0


def load() -> float:
    """Return the load average over one minute."""
    return os.getloadavg()[0]
