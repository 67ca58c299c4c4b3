"""What watching work that already runs has shown: a profile of a host, in sections, each number with its sample size.

`schedagent observe` and the observer make one; it crosses the observer's socket as one line of JSON.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from schedagent.core.errors import UsageError
from schedagent.core.terminal.answers import plain

VERSION = 1


@dataclass(frozen=True)
class Interval:
    """What happened between two samples.

    Args:
        at_s: its end, in seconds since the begin.
        seconds: how long it was.
        cpus: CPUs that were in use on average (CPU time / time).
        waiting: runnable tasks without a CPU on average (time in run queues / time).
        delay_us: mean wait for a CPU; -1 if nothing was given one.
        runs: how often a task was given a CPU: the sample size of delay_us.
        pressure: part of the time in which some task waited for a CPU (PSI, "some"); -1 where nothing shows it.
    """

    at_s: float
    seconds: float
    cpus: float
    waiting: float
    delay_us: float
    runs: int
    pressure: float


@dataclass(frozen=True)
class ChangePoint:
    """A quantity was another one before and after.

    Args:
        quantity: field of Interval.
        at_s: when, in seconds since the begin.
        before, after: medians, in the quantity's unit.
        samples: intervals before and after.
        p: chance of such a change in a series without one (Pettitt's test).
    """

    quantity: str
    at_s: float
    before: float
    after: float
    samples: tuple[int, int]
    p: float


@dataclass(frozen=True)
class Distribution:
    """A histogram of times.

    Args:
        samples: how many.
        p50_us, p99_us: quantiles, interpolated in buckets that are a third to a half as wide as they are high.
        buckets: (from, below, count), in us; those that hold something.
    """

    samples: int
    p50_us: float
    p99_us: float
    buckets: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class CommandRow:
    """All tasks of one command name.

    Args:
        tasks: how many, those that ended included.
        ended: how many of them.
        run_s, wait_s, sleep_s, block_s: on CPUs, in run queues, asleep, asleep in state D; -1: not measured.
        runs: how often they were given a CPU; run_s / runs is the mean burst.
        preempted: how often they lost it while they were runnable; -1: not measured.
        migrations: how often one ran on another CPU than before; -1: not measured.
        longest_wait_us: -1: not measured.
    """

    comm: str
    tasks: int
    ended: int
    run_s: float
    wait_s: float
    sleep_s: float = -1.0
    block_s: float = -1.0
    runs: int = 0
    preempted: int = -1
    migrations: int = -1
    longest_wait_us: float = -1.0


@dataclass(frozen=True)
class ProcessRow:
    """One process of the tree as it was at the end.

    Args:
        age_s: since it was started.
        cpu_s: CPU time of its whole life.
    """

    pid: int
    parent: int
    comm: str
    threads: int
    age_s: float
    cpu_s: float


@dataclass(frozen=True)
class Lifetimes:
    """Processes that ended while somebody watched.

    Args:
        ended: how many.
        p50_s, p95_s: how long they had lived.
    """

    ended: int
    p50_s: float
    p95_s: float


@dataclass(frozen=True)
class ClassRow:
    """All tasks of one class: normal, batch, idle, real-time, deadline, sched_ext or kernel (its threads).

    Args:
        woken: from a wake-up to the CPU.
        preempted: from losing the CPU to having it again.
        run: how long a task kept the CPU.
    """

    name: str
    tasks: int
    woken: Distribution
    preempted: Distribution
    run: Distribution


@dataclass(frozen=True)
class CriticalThread:
    """A thread that runs briefly and often, and whose delay others wait for.

    Args:
        wakeups_per_s, wakes_per_s: how often it is woken, and wakes others.
        wakeups: the sample size.
        burst_us: mean time on the CPU.
        waits_in, waits_share: the system call in which it sleeps most, and its part of all its sleeps.
        woken_by, woken_by_tid, woken_share: who wakes it most ("interrupt": 0), and its part of the wake-ups.
    """

    tid: int
    comm: str
    wakeups: int
    wakeups_per_s: float
    wakes_per_s: float
    burst_us: float
    woken: Distribution
    waits_in: str
    waits_share: float
    woken_by: str
    woken_by_tid: int
    woken_share: float


@dataclass(frozen=True)
class WakeupRow:
    """How often tasks of one command woke tasks of another."""

    waker: str
    wakee: str
    count: int


@dataclass(frozen=True)
class CgroupRow:
    """A cgroup and the CPUs that it used on average."""

    path: str
    cpus: float


@dataclass(frozen=True)
class HostProfile:
    """What was seen.

    Args:
        scope: what was watched, in words.
        seconds: for how long.
        cpus: of the machine that are online.
        cpus_used: CPU time / time.
        delay_us: mean wait for a CPU; -1 if nothing ran.
        runs: sample size of delay_us.
        switches: of the whole machine.
        pressure: resource -> part of the time in which some task waited for it (PSI, "some").
        load: average over one minute, at the end.
        policy: name of the sched_ext policy in charge at the end; empty: the default scheduler.
        events: counter of sched_ext -> growth.
        cost_cpus: CPUs that reading used while it watched; what the probe itself takes is in the tasks' own time.
        intervals: parallelism over time.
        lost: what found no room -> how often.
        remarks: what could not be measured, and why.
    """

    version: int
    tier: int
    scope: str
    kernel: str
    seconds: float
    cpus: int
    cpus_used: float
    delay_us: float
    runs: int
    switches: int
    pressure: dict[str, float]
    load: float
    policy: str
    events: dict[str, int]
    cost_cpus: float
    intervals: tuple[Interval, ...]
    changes: tuple[ChangePoint, ...] = ()
    cgroups: tuple[CgroupRow, ...] = ()
    commands: tuple[CommandRow, ...] = ()
    processes: tuple[ProcessRow, ...] = ()
    lifetimes: Lifetimes | None = None
    classes: tuple[ClassRow, ...] = ()
    critical: tuple[CriticalThread, ...] = ()
    wakeups: tuple[WakeupRow, ...] = ()
    lost: dict[str, int] | None = None
    remarks: tuple[str, ...] = ()


def to_json(profile: HostProfile) -> dict[str, Any]:
    """Return what `read_profile` takes."""
    return asdict(profile)


def read_profile(content: bytes | str) -> HostProfile:
    """Read a profile from JSON; nothing is converted, and every text in it becomes one printable line.

    Raises:
        UsageError: it is none, or one of another version.
    """
    from pydantic import TypeAdapter, ValidationError  # lazily: it takes a third of a second

    try:
        profile = TypeAdapter(HostProfile).validate_json(json.dumps(plain(json.loads(content))), strict=True)
    except (ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise UsageError(f"that is no profile: {str(error)[:200]}", HOW_TO_MAKE_ONE) from None
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise UsageError(f"that is no profile: {place}: {first['msg']}", HOW_TO_MAKE_ONE) from None
    if profile.version != VERSION:
        raise UsageError(f"the profile is of version {profile.version}, not {VERSION}", HOW_TO_MAKE_ONE)
    return profile


HOW_TO_MAKE_ONE = "make one: schedagent observe --system --json > FILE"
