"""Watching a target for some time: what each tier begins, what it reads at the end, and the profile of both."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from kernel_bpf.observe.sched_probe import ProbeReading, SchedProbe, Switch
from kernel_bpf.observe.system import read_system
from kernel_bpf.observe.tasks import cgroup_root
from schedagent.core.host_profile import VERSION, ChangePoint, HostProfile, Interval
from schedagent.observing import sampling, tracing
from schedagent.observing.change_points import change_points
from schedagent.observing.commands import Exits, grown, lifetimes, process_tree, read_threads
from schedagent.observing.sampling import Sampler
from schedagent.observing.scope import Target, check, probe_scope

TIERS = (0, 1, 2)
SHORTEST_S, LONGEST_S = 0.5, 3600.0
BUDGET = {0: 0.003, 1: 0.008, 2: 0.008}
"""Part of a CPU that sampling may take; the rest of a tier's cost is bounded by what it reads once."""
_WATCHED_QUANTITIES = ("cpus", "waiting", "delay_us", "pressure")


@dataclass(frozen=True)
class Order:
    """What is to be watched.

    Args:
        seconds: for how long, SHORTEST_S to LONGEST_S.
        tier: 0 reads counters of the kernel; 1 reads those of tasks, too; 2 traces.
        tracing: keep single switches as well; tier 2 only.
    """

    target: Target = field(default_factory=Target)
    seconds: float = 30.0
    tier: int = 0
    tracing: bool = False


@dataclass(frozen=True)
class Observed:
    """A profile, and the single switches if they were asked for.

    Args:
        more_switches: how many came after the last one that was kept.
    """

    profile: HostProfile
    switches: tuple[Switch, ...] = ()
    more_switches: int = 0


def observe(order: Order, stopped: Callable[[float], bool] | None = None) -> Observed:
    """Watch until the time is over or nobody is interested any more.

    Args:
        stopped: waits so many seconds, and returns whether to end now.

    Raises:
        UsageError: what is to be watched is not there.
        SetupError: this process may not trace, or the kernel cannot.
        KernelRejected, BpfError: the kernel refused the probe.
    """
    check(order.target)
    with ExitStack() as stack:
        tasks = _Tasks(order.target) if order.tier == 1 else None
        if tasks:
            stack.callback(tasks.exits.close)
        probe = None
        if order.tier >= 2:
            probe = stack.enter_context(SchedProbe.attach(probe_scope(order.target), order.tracing))
        attached = time.monotonic()
        spent, begin = time.thread_time(), _Machine.read(order.target)
        seen = sampling.intervals(
            Sampler(order.target),
            order.seconds,
            BUDGET[order.tier],
            stopped or _sleep,
            tasks.exits.drain if tasks else lambda: None,
        )
        end = _Machine.read(order.target)
        cost = round((time.thread_time() - spent) / (end.at - begin.at), 5)
        traced_s = time.monotonic() - attached
        reading = probe.read() if probe else None
        sections = _of_tasks(tasks) if tasks else _of_probe(reading, traced_s) if reading else {}
        if order.tier >= 1:
            sections["processes"] = process_tree(order.target)
    machine = _machine_fields(order.target, begin, end, seen)
    profile = HostProfile(version=VERSION, tier=order.tier, cost_cpus=cost, **machine, **sections)
    return Observed(profile, reading.switches, reading.more_switches) if reading else Observed(profile)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


class _Tasks:
    """Tier 1: the threads of a target at the begin, and the records of those that end."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.exits = Exits(target)
        self.before = read_threads(target)
        self.exits.know(self.before)


def _of_tasks(tasks: _Tasks) -> dict[str, Any]:
    tasks.exits.drain()
    return {
        "commands": grown(tasks.before, read_threads(tasks.target), tasks.exits.records),
        "lifetimes": lifetimes(tasks.exits.records),
        "remarks": tuple(filter(None, [tasks.exits.remark])),
    }


def _of_probe(reading: ProbeReading, seconds: float) -> dict[str, Any]:
    hidden = "this kernel hides what is an interrupt: a wake-up may be put down to the task that was interrupted"
    return {
        "commands": tracing.command_rows(reading),
        "lifetimes": tracing.lifetimes(reading),
        "classes": tracing.class_rows(reading),
        "critical": tracing.critical_threads(reading, seconds),
        "wakeups": tracing.wakeup_rows(reading),
        "lost": reading.lost,
        "remarks": () if reading.interrupts_known else (hidden,),
    }


@dataclass(frozen=True)
class _Machine:
    """Counters of the machine, and of the cgroups, at one time."""

    at: float
    switches: int
    pressure: dict[str, float]
    events: dict[str, int]
    policy: str
    cgroups: dict[str, float]

    @classmethod
    def read(cls, target: Target) -> _Machine:
        folder = sampling.pressure_folder(target, cgroup_root())
        pressure = {each: sampling.pressure_s(folder, each) for each in sampling.RESOURCES}
        state = read_system().sched_ext
        lines = [line.split() for line in state.get("root/events", "").splitlines()]
        return cls(
            at=time.monotonic(),
            switches=sampling.switches(),
            pressure={each: total for each, total in pressure.items() if total is not None},
            events={words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()},
            policy=state.get("root/ops", "") if state.get("state") == "enabled" else "",
            cgroups={} if target.pid or target.cgroup else sampling.cgroups_cpu_s(),
        )


def _machine_fields(target: Target, begin: _Machine, end: _Machine, seen: list[Interval]) -> dict[str, Any]:
    seconds = end.at - begin.at
    measured_s = sum(each.seconds for each in seen)
    runs = sum(each.runs for each in seen)
    waited_us = sum(each.waiting * each.seconds * 1e6 for each in seen)
    return {
        "scope": target.words,
        "kernel": os.uname().release,
        "seconds": round(seconds, 2),
        "cpus": os.cpu_count() or 1,
        "cpus_used": round(sum(each.cpus * each.seconds for each in seen) / measured_s, 4) if measured_s else 0.0,
        "delay_us": round(waited_us / runs, 1) if runs else -1.0,
        "runs": runs,
        "switches": max(0, end.switches - begin.switches),
        "pressure": {
            each: round(min(1.0, max(0.0, (total - begin.pressure[each]) / seconds)), 4)
            for each, total in end.pressure.items()
            if each in begin.pressure
        },
        "load": round(sampling.load(), 2),
        "policy": end.policy,
        "events": {
            each: grown_by for each, now in end.events.items() if (grown_by := now - begin.events.get(each, 0)) > 0
        },
        "intervals": tuple(seen),
        "changes": changes(seen),
        "cgroups": sampling.busiest_cgroups(begin.cgroups, end.cgroups, seconds),
    }


def changes(seen: list[Interval]) -> tuple[ChangePoint, ...]:
    """Return where a quantity became another one."""
    every = []
    for quantity in _WATCHED_QUANTITIES:
        measured = [each for each in seen if getattr(each, quantity) >= 0]
        places = change_points([getattr(each, quantity) for each in measured])
        edges = [0, *(place for place, *_rest in places), len(measured)]
        for number, (place, before, after, p) in enumerate(places, 1):
            samples = place - edges[number - 1], edges[number + 1] - place
            at_s = measured[place - 1].at_s
            every.append(ChangePoint(quantity, at_s, round(before, 4), round(after, 4), samples, p))
    return tuple(sorted(every, key=lambda change: change.at_s))
