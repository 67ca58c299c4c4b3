"""Tasks of the proving ground: started, watched and ended; what they report, and what the kernel reports of them.

A task is a forked process of the normal class, so the policy under test schedules it. It reports on itself in a
page that it shares with the agent; the rest is read from /proc (Documentation/scheduler/sched-stats.rst).
"""

from __future__ import annotations

import mmap
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

REAP_LIMIT_S = 2.2
"""A killed task needs some CPU time to die; one that does not get it within this time is left to the kernel."""

_SAMPLES_FROM = 8
_FRAMES = 6


class ForkRefused(Exception):
    """The kernel did not let a task of the proving ground be forked: what a failing init_task does."""

    def __init__(self, errno: int) -> None:
        super().__init__(f"fork: {os.strerror(errno)}")
        self.errno = errno


class _Word:
    """One 64-bit number of a Record."""

    def __init__(self, place: int) -> None:
        self._place = place

    def __get__(self, record: Record, _owner: type[Record]) -> int:
        return record.words[self._place]

    def __set__(self, record: Record, value: int) -> None:
        record.words[self._place] = value


class Record:
    """What a task reports of itself: numbers that it writes, in memory that the agent can read.

    Attributes:
        events: how many operations it finished.
        worst_ns: the longest of them.
        began_ns: when the present one began (CLOCK_MONOTONIC), 0 between two.
        wrong: how many ended wrongly.
        errno: of the last one that failed.
        go: the one number that the agent writes: whether a task that waits for it may continue.
        thread: id of the thread that does the work, if it is not the process's first.
    """

    events = _Word(0)
    worst_ns = _Word(1)
    began_ns = _Word(2)
    wrong = _Word(3)
    errno = _Word(4)
    go = _Word(5)
    thread = _Word(6)

    def __init__(self) -> None:
        self.words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")

    def begin(self) -> None:
        """An operation begins."""
        self.began_ns = time.monotonic_ns()

    def end(self, expected_ns: int = 0) -> None:
        """The operation is over; `expected_ns` of its time were to be expected."""
        self.note(time.monotonic_ns() - self.began_ns - expected_ns)
        self.began_ns = 0

    def note(self, value_ns: int) -> None:
        """Count an operation that took `value_ns`."""
        place = self.events % (len(self.words) - _SAMPLES_FROM)
        self.words[_SAMPLES_FROM + place] = value_ns
        self.worst_ns = max(self.worst_ns, value_ns)
        self.events += 1

    def samples_ns(self) -> list[int]:
        """The latest durations, some five hundred of them."""
        count = min(self.events, len(self.words) - _SAMPLES_FROM)
        return list(self.words[_SAMPLES_FROM : _SAMPLES_FROM + count])

    def longest_s(self) -> float:
        """The longest operation in seconds; one that has not ended counts for as long as it lasts by now."""
        began_ns = self.began_ns
        lasting_ns = time.monotonic_ns() - began_ns if began_ns else 0
        return max(self.worst_ns, lasting_ns) / 1e9


Body = Callable[[Record], NoReturn]


class Task:
    """A running task and the kernel's figures of it.

    Args:
        name: for people.
        pid: of the process; the kernel's figures are those of its first thread.
        record: what it reports of itself.
    """

    def __init__(self, name: str, pid: int, record: Record) -> None:
        self.name = name
        self.pid = pid
        self.record = record
        self._followed = 0
        self._schedstat = os.open(f"/proc/{pid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self._stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)

    def follow(self) -> None:
        """From now on take the kernel's figures from the thread that the record names, if it names one."""
        if self.record.thread and self.record.thread != self._followed:
            self._followed = self.record.thread
            self.close()
            self._schedstat = os.open(f"/proc/{self.record.thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            self._stat = os.open(f"/proc/{self.record.thread}/stat", os.O_RDONLY | os.O_CLOEXEC)

    def cpu_ns(self) -> int:
        """CPU time the scheduler has charged it with."""
        return int(os.pread(self._schedstat, 64, 0).split()[0])

    def family_ns(self) -> int:
        """CPU time of it and of its children: it differs from before if any of them has run, or was forked."""
        children = (_proc(child, "schedstat").split() for child in _children(self.pid))
        return self.cpu_ns() + sum(int(fields[0]) for fields in children if fields)

    def turns(self) -> int:
        """How often it was given a CPU."""
        return int(os.pread(self._schedstat, 64, 0).split()[2])

    def cpu(self) -> int:
        """The CPU it ran on last (field 39 of /proc/PID/stat)."""
        return int(os.pread(self._stat, 1024, 0).rpartition(b")")[2].split()[36])

    def whereabouts(self) -> str:
        """What it and its children do at this moment, for people: state, CPU, and where in the kernel each waits."""
        return f"{self.name}: " + ", its child ".join(_whereabouts(pid) for pid in (self.pid, *_children(self.pid)))

    def close(self) -> None:
        """Close the files it is watched by."""
        os.close(self._schedstat)
        os.close(self._stat)


class Crew:
    """The tasks of one phase; leaving the `with` block kills them all.

    Args:
        reap_limit_s: they have so long to die together.

    Attributes:
        undead: names of tasks that did not die although they were killed: they never got a CPU.
    """

    def __init__(self, reap_limit_s: float = REAP_LIMIT_S) -> None:
        self._reap_limit_s = reap_limit_s
        self.tasks: list[Task] = []
        self.undead: list[str] = []

    def start(self, name: str, body: Body) -> Task:
        """Fork a task that runs `body`; raise ForkRefused if the kernel does not let us."""
        record = Record()
        try:
            pid = os.fork()
        except OSError as error:
            raise ForkRefused(error.errno or 0) from None
        if pid == 0:
            _run(body, record)
        task = Task(name, pid, record)
        self.tasks.append(task)
        return task

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        died = [task for task in self.tasks if os.waitpid(task.pid, os.WNOHANG)[0]]
        left = [task for task in self.tasks if task not in died]
        for task in left:
            os.kill(task.pid, signal.SIGKILL)
        deadline = time.monotonic() + self._reap_limit_s
        while left and time.monotonic() < deadline:
            left = [task for task in left if not os.waitpid(task.pid, os.WNOHANG)[0]]
            time.sleep(0.002)
        self.undead = [task.name for task in left]
        for task in self.tasks:
            task.close()
        if died and error is None:
            names = ", ".join(task.name for task in died)
            raise RuntimeError(f"tasks of the proving ground ended by themselves: {names}")


def _whereabouts(pid: int) -> str:
    """State, last CPU and kernel functions of a task, innermost first: what of it /proc gives away."""
    stat = _proc(pid, "stat").rpartition(")")[2].split()
    if not stat:
        return f"{pid} is gone"
    frames = [line.split()[-1].partition("+")[0] for line in _proc(pid, "stack").splitlines()[:_FRAMES] if line]
    inside = " < ".join(frames) or _proc(pid, "wchan").strip("0")
    return f"{pid} in state {stat[0]} on CPU {stat[36]}" + (f" in {inside}" if inside else "")


def _children(pid: int) -> list[int]:
    """Children of a task that are not reaped yet."""
    return [int(child) for child in _proc(pid, f"task/{pid}/children").split()]


def _proc(pid: int, name: str) -> str:
    """A file of a task in /proc; empty if the task is gone, or the kernel was built without that file."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


def _run(body: Body, record: Record) -> NoReturn:
    """Be a task until killed; a mistake in a body reaches the console, and then the host as a lost machine."""
    try:
        body(record)
    except BaseException:  # noqa: BLE001  the process boundary of a forked child
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(1)
