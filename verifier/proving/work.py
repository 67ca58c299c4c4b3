"""The kinds of work on the proving ground: each a body for crew.Crew.start, that runs until it is killed."""

from __future__ import annotations

import itertools
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from kernel_bpf.load import linux
from kernel_bpf.load.spinner import Spinner
from verifier.proving.crew import Body, Record

SLEEP_NS = 5_000_000
"""A sleeper asks to be woken after this time."""

HOLD_S, REST_S = 0.03, 0.015
BURST_S = 0.02
BURSTS_S, PAUSE_S = (0.008, 0.008, 0.032), 0.001
STAT_REFRESH = Path("/proc/sys/vm/stat_refresh")

BEAT_S = 0.08
METRONOME_PRIORITY = 60
"""Above the agent and everything else: a metronome that beats late shows that its CPU stood still."""

_LEAP_NS = 3600 * 1_000_000_000
"""No CPU stands still for so long: what is later was made so (proving/groups.py)."""

_MIB = 1 << 20


def hog(_record: Record) -> NoReturn:
    """Use the CPU without ever giving it up."""
    while True:
        pass


def pinned(cpu: int, body: Body) -> Body:
    """`body`, on one CPU only."""

    def run(record: Record) -> NoReturn:
        os.sched_setaffinity(0, {cpu})
        record.events = 1
        body(record)

    return run


def allow(pid: int, cpus: Sequence[int]) -> None:
    """Let a task use these CPUs."""
    os.sched_setaffinity(pid, cpus)


def niced(level: int, body: Body) -> Body:
    """`body` at a nice level."""

    def run(record: Record) -> NoReturn:
        os.nice(level)
        body(record)

    return run


def real_time(body: Body, priority: int = 10) -> Body:
    """`body` as a real-time task: not under the policy, but beside it."""

    def run(record: Record) -> NoReturn:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        body(record)

    return run


def sleeper(record: Record) -> NoReturn:
    """Sleep again and again; record how late each wake-up came."""
    while True:
        record.begin()
        time.sleep(SLEEP_NS / 1e9)
        record.end(SLEEP_NS)


def metronome(cpu: int) -> Body:
    """Beat on a CPU, before everything else there; record how late each beat came, unless the clock was moved."""

    def beat(record: Record) -> NoReturn:
        while True:
            began_ns = time.monotonic_ns()
            time.sleep(BEAT_S)
            late_ns = time.monotonic_ns() - began_ns - int(BEAT_S * 1e9)
            if late_ns < _LEAP_NS:
                record.note(late_ns)

    return real_time(pinned(cpu, beat), METRONOME_PRIORITY)


def ping(sender: int, receiver: int) -> Body:
    """Send a byte and wait for the answer; record how long the round took."""

    def run(record: Record) -> NoReturn:
        while True:
            record.begin()
            os.write(sender, b"x")
            os.read(receiver, 1)
            record.end()

    return run


def pong(sender: int, receiver: int) -> Body:
    """Answer every byte with a byte."""

    def run(record: Record) -> NoReturn:
        while True:
            os.read(receiver, 1)
            os.write(sender, b"x")
            record.events += 1

    return run


def in_two_threads(first: Body, second: Body) -> Body:
    """Two bodies as threads of one process, for policies that take a thread for its process; the first one reports."""

    def run(record: Record) -> NoReturn:
        threading.Thread(target=second, args=(Record(),), daemon=True).start()
        first(record)

    return run


def in_thread(body: Callable[[Record], None]) -> Body:
    """`body` in a second thread of the process, whose first one waits for it."""

    def run(record: Record) -> NoReturn:
        def begin() -> None:
            record.thread = threading.get_native_id()
            body(record)

        thread = threading.Thread(target=begin, daemon=True)
        thread.start()
        thread.join()
        raise AssertionError("the thread ended")

    return run


def through(door: int, body: Body) -> Body:
    """`body`, once there is a byte to be had at the door (a pipe); an event says that it waits there."""

    def run(record: Record) -> NoReturn:
        record.events = 1
        os.read(door, 1)
        body(record)

    return run


def worker(record: Record) -> NoReturn:
    """Compute for some CPU time, mostly short of a slice and at times beyond one, pause for a millisecond, again."""
    for burst_s in itertools.cycle(BURSTS_S):
        until = time.thread_time() + burst_s
        while time.thread_time() < until:
            pass
        record.events += 1
        time.sleep(PAUSE_S)
    raise AssertionError("itertools.cycle ended")


def yielder(record: Record) -> NoReturn:
    """Give up the CPU all the time."""
    while True:
        os.sched_yield()
        record.events += 1


def affinity_flipper(cpus: Sequence[int]) -> Body:
    """Move from CPU to CPU by changing the own mask; record how long each move took and whether it ended elsewhere."""

    def run(record: Record) -> NoReturn:
        for cpu in itertools.cycle(cpus):
            record.begin()
            os.sched_setaffinity(0, {cpu})
            record.wrong += current_cpu() != cpu
            record.end()
            sum(range(1000))
        raise AssertionError("itertools.cycle ended")

    return run


def current_cpu() -> int:
    """The CPU this task runs on (field 39 of /proc/self/stat)."""
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[36])


def fork_storm(record: Record) -> NoReturn:
    """Fork, exec, exit, reap; record how long each child took from fork to reaping."""
    program = smallest_program()
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    while True:
        record.begin()
        try:
            pid = os.posix_spawn(program, [program, "--version"], {}) if program else os.fork()
        except OSError as error:
            record.errno = error.errno or 0
            time.sleep(0.01)
            continue
        if pid == 0:
            os._exit(0)
        record.wrong += os.waitpid(pid, 0)[1] != 0
        record.end()


def smallest_program() -> str:
    """The dynamic loader: a program that is wherever Python is; empty if Python is linked statically."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[2]
        if path.rpartition("/")[2].startswith("ld-"):
            return f"/{path}"
    return ""


def rehoming_sleeper(home: int, cpus: Sequence[int], wake: int) -> Body:
    """Go to CPU `home`, be allowed everywhere, sleep until an event; record how long the wake-up waited for a CPU.

    The wait is the growth of the run delay in the task's own schedstat.

    Args:
        wake: an eventfd. A pipe would wake the sleeper with the promise that its waker is about to sleep, and a policy
            may then leave it where the waker is (SCX_WAKE_SYNC).
    """

    def run(record: Record) -> NoReturn:
        schedstat = os.open("/proc/self/schedstat", os.O_RDONLY)
        while True:
            os.sched_setaffinity(0, {home})
            os.sched_setaffinity(0, cpus)
            before = run_delay_ns(schedstat)
            os.eventfd_read(wake)
            record.note(run_delay_ns(schedstat) - before)

    return run


def blocker(home: int, wake: int) -> Body:
    """Leave CPU `home` alone for a while, then, as a real-time task, wake a sleeper and hold the CPU."""

    def run(record: Record) -> NoReturn:
        while True:
            time.sleep(REST_S)
            until = time.monotonic() + HOLD_S
            os.eventfd_write(wake, 1)
            while time.monotonic() < until:
                pass
            record.events += 1

    return real_time(pinned(home, run))


def run_delay_ns(schedstat: int) -> int:
    """Time spent waiting for a CPU: the second number of a schedstat file."""
    return int(os.pread(schedstat, 64, 0).split()[1])


def long_sleeper(wake: int) -> Body:
    """Sleep until a byte comes, then never again."""

    def run(record: Record) -> NoReturn:
        record.events += 1
        os.read(wake, 1)
        record.events += 1
        hog(record)

    return run


def burster(_record: Record) -> NoReturn:
    """Compute for 20 ms, sleep for 40 ms."""
    while True:
        until = time.monotonic() + BURST_S
        while time.monotonic() < until:
            pass
        time.sleep(2 * BURST_S)


def stat_refresher(record: Record) -> NoReturn:
    """Ask for a refresh of the kernel's statistics: returns once a worker pinned to each CPU has run.

    Source: vmstat_refresh() in mm/vmstat.c calls schedule_on_each_cpu() and waits for it.
    """
    while True:
        record.begin()
        STAT_REFRESH.read_bytes()
        record.end()
        time.sleep(0.02)


def cgroup_mover(pid: int, groups: Sequence[Path]) -> Body:
    """Move a task from cgroup to cgroup, each time as soon as it has run since; record how long each move took."""

    def run(record: Record) -> NoReturn:
        schedstat = os.open(f"/proc/{pid}/schedstat", os.O_RDONLY)
        for group in itertools.cycle(groups):
            used_ns = cpu_time_ns(schedstat)
            record.begin()
            (group / "cgroup.procs").write_text(str(pid))
            record.end()
            while cpu_time_ns(schedstat) == used_ns:
                time.sleep(0.03)
        raise AssertionError("itertools.cycle ended")

    return run


def cpu_time_ns(schedstat: int) -> int:
    """CPU time a task was charged with: the first number of its schedstat file."""
    return int(os.pread(schedstat, 64, 0).split()[0])


def memory_eater(group: Path, size_mib: int) -> Body:
    """In a cgroup: touch pages and offer them back, so that the next ones make the kernel reclaim."""

    def run(record: Record) -> NoReturn:
        (group / "cgroup.procs").write_text("0")
        pages = mmap.mmap(-1, size_mib * _MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_NOHUGEPAGE)
        part = _MIB
        touch = b"x" * (part // mmap.PAGESIZE)
        for start in itertools.cycle(range(0, len(pages), part)):
            pages[start : start + part : mmap.PAGESIZE] = touch
            pages.madvise(mmap.MADV_FREE, start, part)
            record.events += 1
        raise AssertionError("itertools.cycle ended")

    return run


def migration_disabled(spinner: Spinner) -> Body:
    """Run a BPF program without a pause: the kernel lets nobody migrate while it does."""

    def run(record: Record) -> NoReturn:
        while True:
            record.events += 1
            spinner.run()

    return run


def crowd(home: int, size: int) -> Body:
    """On one CPU: `size` threads that sleep, and while the record says so are woken faster than they find to sleep.

    Who wakes them is a real-time task, so that it can do so while they wait for the CPU.
    """

    def run(record: Record) -> NoReturn:
        os.sched_setaffinity(0, {home})
        threads = linux.SleepingThreads(size)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        record.events = 1
        while True:
            if record.go:
                threads.wake()
                record.events += 1
            time.sleep(0.01)

    return run
