"""The correctness mix: work of many kinds at once, each with an oracle that reads kernel truth.

Runs inside the guest, on plain tasks that the policy under test schedules. May import: the standard library only.

Members: CPU hogs, sleepers, pinned tasks, a fork storm, affinity changes, nice levels. "Nobody starves" is read from
/proc/PID/schedstat (run-queue wait) and from the longest time a task was runnable without running.
"""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

STARVATION_BOUND_S = 2.0
"""No runnable task may go longer than this without CPU time.

Well under the watchdog's 5 s (candidates set timeout_ms = 5000), and far above what any fair order needs for the
dozen or so tasks of the mix: with 20 ms slices each would wait about 0.2 s on two CPUs.
"""

FORK_BOUND_S = 2 * STARVATION_BOUND_S
"""From fork to reaping: two waits for a CPU, the child's and then the parent's, each within the starvation bound."""


@dataclass(frozen=True)
class Finding:
    """What one member of the mix showed.

    Args:
        name: the member.
        ok: whether its oracle holds.
        detail: the figures behind it.
    """

    name: str
    ok: bool
    detail: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Member:
    """A running member: processes, all of which must make progress, and the longest gap seen for each."""

    name: str
    pids: list[int]
    reader: int
    always_runnable: bool


def progress(writer: int, value: int) -> None:
    """Report an event of `value` to the parent; a full pipe drops it (the mix must not depend on the reader)."""
    try:
        os.write(writer, struct.pack("<q", value))
    except BlockingIOError:
        return


def hog(_writer: int) -> NoReturn:
    """Use the CPU without ever giving it up."""
    while True:
        pass


def sleeper(writer: int) -> NoReturn:
    """Sleep 5 ms at a time; report how late each wake-up came, in microseconds."""
    while True:
        start = time.monotonic_ns()
        time.sleep(0.005)
        progress(writer, (time.monotonic_ns() - start) // 1000 - 5000)


def pinned(cpu: int) -> Callable[[int], NoReturn]:
    """A hog that may only run on one CPU."""

    def body(writer: int) -> NoReturn:
        os.sched_setaffinity(0, {cpu})
        hog(writer)

    return body


def fork_storm(writer: int) -> NoReturn:
    """Fork, run a little, exit, reap; report how long each child took from fork to reaping, in microseconds."""
    while True:
        start = time.monotonic_ns()
        pid = os.fork()
        if pid == 0:
            sum(range(1000))
            os._exit(0)
        os.waitpid(pid, 0)
        progress(writer, (time.monotonic_ns() - start) // 1000)


def affinity_flipper(writer: int) -> NoReturn:
    """Move from CPU to CPU by changing the own mask; report 0 for each move that ended on the CPU asked for, else 1."""
    cpus = sorted(os.sched_getaffinity(0))
    while True:
        for cpu in cpus:
            os.sched_setaffinity(0, {cpu})
            sum(range(2000))
            progress(writer, 0 if current_cpu() == cpu else 1)


def current_cpu() -> int:
    """The CPU this task runs on (field 39 of /proc/self/stat)."""
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[36])


def niced(level: int) -> Callable[[int], NoReturn]:
    """A hog at a nice level."""

    def body(writer: int) -> NoReturn:
        os.nice(level)
        hog(writer)

    return body


def start_member(name: str, bodies: list[Callable[[int], NoReturn]], *, always_runnable: bool) -> Member:
    """Fork one process per body; they report to one pipe."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    pids = []
    for body in bodies:
        pid = os.fork()
        if pid == 0:
            try:
                body(writer)
            finally:
                os._exit(1)
        pids.append(pid)
    os.close(writer)
    return Member(name, pids, reader, always_runnable)


def start_mix() -> list[Member]:
    """Start every member."""
    cpus = sorted(os.sched_getaffinity(0))
    return [
        start_member("CPU hogs", [hog] * len(cpus), always_runnable=True),
        start_member("sleepers", [sleeper] * 2, always_runnable=False),
        start_member("pinned tasks", [pinned(cpu) for cpu in cpus], always_runnable=True),
        start_member("fork storm", [fork_storm], always_runnable=False),
        start_member("affinity changes", [affinity_flipper], always_runnable=True),
        start_member("nice levels", [niced(-5), niced(0), niced(5)], always_runnable=True),
    ]


def cpu_time_ns(pid: int) -> int:
    """CPU time of a task as the scheduler counts it (first field of schedstat)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


class GapWatch:
    """Follows the CPU time of always-runnable tasks and keeps the longest time each went without any."""

    def __init__(self, members: list[Member]) -> None:
        self.pids = [pid for member in members if member.always_runnable for pid in member.pids]
        now = time.monotonic()
        self.seen = {pid: (cpu_time_ns(pid), now) for pid in self.pids}
        self.longest_s = dict.fromkeys(self.pids, 0.0)

    def look(self) -> None:
        """Read all CPU times once."""
        for pid in self.pids:
            now = time.monotonic()
            used = cpu_time_ns(pid)
            before, since = self.seen[pid]
            self.longest_s[pid] = max(self.longest_s[pid], now - since)
            if used > before:
                self.seen[pid] = (used, now)


def run_mix(seconds: float, enabled: Callable[[], bool]) -> list[Finding]:
    """Run the mix for `seconds` and judge every member; stop early once the policy is no longer enabled."""
    members = start_mix()
    reports: dict[str, list[int]] = {member.name: [] for member in members}
    try:
        watch = GapWatch(members)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and enabled():
            time.sleep(0.1)
            watch.look()
            for member in members:
                reports[member.name] += drain(member.reader)
    finally:
        stop_mix(members)
    return [judge_member(member, watch, reports[member.name]) for member in members]


def drain(reader: int) -> list[int]:
    """Read what a member has reported so far."""
    values: list[int] = []
    while True:
        try:
            chunk = os.read(reader, 1 << 16)
        except BlockingIOError:
            return values
        if not chunk:
            return values
        values += [value for (value,) in struct.iter_unpack("<q", chunk[: len(chunk) // 8 * 8])]


def stop_mix(members: list[Member]) -> None:
    """Kill and reap every process of the mix."""
    for member in members:
        for pid in member.pids:
            os.kill(pid, signal.SIGKILL)
        for pid in member.pids:
            os.waitpid(pid, 0)
        os.close(member.reader)


def judge_member(member: Member, watch: GapWatch, reports: list[int]) -> Finding:
    """Apply the oracle of one member to what was measured."""
    if member.always_runnable:
        longest_s = max(watch.longest_s[pid] for pid in member.pids)
        wrong_cpu = sum(reports)
        detail = f"longest wait without CPU time {longest_s:.2f} s (bound {STARVATION_BOUND_S:g} s)"
        if member.name == "affinity changes":
            detail += f"; {len(reports)} moves, {wrong_cpu} ended on a wrong CPU"
            return Finding(member.name, longest_s <= STARVATION_BOUND_S and wrong_cpu == 0 and len(reports) > 0, detail)
        return Finding(member.name, longest_s <= STARVATION_BOUND_S, detail)
    bound_s = FORK_BOUND_S if member.name == "fork storm" else STARVATION_BOUND_S
    unit = "children, slowest reaped after" if member.name == "fork storm" else "wake-ups, latest by"
    worst_s = max(reports, default=0) / 1e6
    detail = f"{len(reports)} {unit} {worst_s:.2f} s (bound {bound_s:g} s)"
    return Finding(member.name, bool(reports) and worst_s <= bound_s, detail)
