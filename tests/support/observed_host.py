"""What a probe counts on a host that does as a test wants, and a profile with every section at its largest."""

from __future__ import annotations

from kernel_bpf.observe.sched_probe import BUCKETS, CommandFigures, Figures, ProbeReading, TaskFigures, Wakeups
from schedagent.core.host_profile import (
    VERSION,
    CgroupRow,
    ChangePoint,
    ClassRow,
    CommandRow,
    CriticalThread,
    HostProfile,
    Interval,
    Lifetimes,
    ProcessRow,
    WakeupRow,
)
from schedagent.observing.tracing import distribution

NOTHING = (0,) * BUCKETS
FUTEX, NANOSLEEP = 202, 230


def histogram(**counts):
    """Counts by bucket: histogram(b3=10)."""
    return tuple(counts.get(f"b{bucket}", 0) for bucket in range(BUCKETS))


def figures(**fields):
    sums = dict.fromkeys(tuple(Figures.__dataclass_fields__)[:10], 0)
    rest = {"woken_wait": NOTHING, "preempted_wait": NOTHING, "run": NOTHING}
    return Figures(**{**sums, **rest, **fields})


def task(tid, comm, *, policy=0, kernel=False, **fields):
    return TaskFigures(tid, tid, comm, policy, 0, kernel, figures(**fields))


def ping_pong(seconds=10):
    """'echo' answers 'clock' a hundred times a second; 'hog' computes; 'worker' is the kernel's."""
    times = 100 * seconds
    waits = {"woken_wait": histogram(b4=times - 2, b20=2), "run": histogram(b8=times)}
    clock = task(
        11,
        b"clock",
        run_ns=times * 20_000,
        runs=2 * times,
        wakeups=2 * times,
        wakes=times,
        calls=((NANOSLEEP, times), (0, times // 2)),
        **waits,
    )
    echo = task(
        12, b"echo", run_ns=times * 10_000, runs=times, wakeups=times, wakes=times, calls=((0, times),), **waits
    )
    hog = task(13, b"hog", run_ns=seconds * 900_000_000, runs=400, preempted=399, run=histogram(b30=400))
    worker = task(14, b"kworker/0:1", kernel=True, run_ns=1000, runs=times, wakeups=times, run=histogram(b2=times))
    edges = (
        Wakeups(0, 11, b"", b"clock", times),
        Wakeups(12, 11, b"echo", b"clock", times // 2),
        Wakeups(11, 12, b"clock", b"echo", times),
    )
    ended = (CommandFigures(b"hog", 0, False, 3, figures(run_ns=1_000_000_000, runs=30), histogram(b6=2, b10=1)),)
    return ProbeReading((clock, echo, hog, worker), ended, edges, interrupts_known=True)


def interval(at_s, cpus=1.0, waiting=0.5, runs=100, seconds=0.25):
    return Interval(at_s, seconds, cpus, waiting, 1e6 * waiting * seconds / runs if runs else -1.0, runs, 0.3)


def largest_profile():
    """Every section full, with long names that mean harm."""
    comm = "a-name-of-15-ch"
    spread = distribution(tuple(range(1, BUCKETS + 1)))
    command = CommandRow(comm, 12345, 1234, 12345.678, 12345.678, 99999.0, 12.3, 987654321, 999999, 99999, 9999999.0)
    thread = CriticalThread(
        4194304, comm, 9999999, 99999.0, 99999.0, 999.9, spread, "clock_nanosleep", 0.999, comm, 4194303, 0.999
    )
    return HostProfile(
        version=VERSION,
        tier=2,
        scope=f"cgroup /{'system.slice' * 3}",
        kernel="7.3.4+deb13-amd64",
        seconds=3600.0,
        cpus=512,
        cpus_used=511.99,
        delay_us=123456.7,
        runs=987654321,
        switches=987654321,
        pressure={"cpu": 1.0, "io": 1.0, "memory": 1.0},
        load=1234.5,
        policy="a_policy_of_fif",
        events={"SCX_EV_ENQ_SKIP_EXITING": 123456789},
        cost_cpus=0.01,
        intervals=tuple(interval(0.25 * number, 2.0, 1.0 * (number % 7)) for number in range(1, 601)),
        changes=(ChangePoint("delay_us", 123.4, 123.4, 567.8, (300, 300), 1e-9),) * 4,
        cgroups=(CgroupRow("/system.slice/very-long-name-of-a.service", 123.45),) * 6,
        commands=(command,) * 20,
        processes=(ProcessRow(4194304, 4194303, comm, 1234, 9999999.0, 99999.99),) * 32,
        lifetimes=Lifetimes(123456, 0.123, 123.4),
        classes=tuple(ClassRow(name, 12345, spread, spread, spread) for name in ("normal", "real-time", "kernel")),
        critical=(thread,) * 8,
        wakeups=(WakeupRow(comm, comm, 987654321),) * 12,
        lost={"lost_tasks": 123456},
        remarks=("this kernel hides what is an interrupt",),
    )
