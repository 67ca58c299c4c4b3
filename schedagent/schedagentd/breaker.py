"""The circuit breaker: when a running policy has to go. Pure: it is told what was seen, and says why or nothing.

May import: kernel_bpf.sched_ext's types, schedagent.core, its neighbours deployment and tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kernel_bpf.exit_info import ExitInfo
from kernel_bpf.sched_ext import KernelState
from schedagent.schedagentd.deployment import End, Spread
from schedagent.schedagentd.tasks import Sample

ERROR_EVENTS = ("SCX_EV_SELECT_CPU_FALLBACK", "SCX_EV_DISPATCH_LOCAL_DSQ_OFFLINE", "SCX_EV_INSERT_NOT_OWNED")
"""Counters that say the policy did what the kernel had to mend (kernel/sched/ext_internal.h)."""

STALL_KIND = 1026  # SCX_EXIT_ERROR_STALL
SUSPENDED_S = 0.5
LEAST_SAMPLES = 12
_T = 2.72
"""One-sided 99 % quantile of Student's t with 11 degrees of freedom, the fewest that Welch's test has for two times 12
samples. It is looked at repeatedly and the samples are not independent, so what counts as worse must also be so three
times in a row."""
TIMES_IN_A_ROW = 3


@dataclass(frozen=True)
class Bounds:
    """When to stop.

    Args:
        error_events_per_s: of ERROR_EVENTS together.
        worse_ratio: how much higher than the baseline run-queue delay and pressure may be, as a part of it.
        delay_floor_s, pressure_floor: and by at least this much: nobody feels less.
        starvation_s: how long a runnable task may not run.
    """

    error_events_per_s: float = 100.0
    worse_ratio: float = 0.5
    delay_floor_s: float = 0.002
    pressure_floor: float = 0.1
    starvation_s: float = 3.0


@dataclass(frozen=True)
class Reading:
    """What one look at a running policy showed.

    Args:
        boot, monotonic: CLOCK_BOOTTIME and CLOCK_MONOTONIC in seconds; they part while the machine is suspended.
        state: of sysfs.
        enabled: the very policy is in charge.
        exit: why it ended, if it says so.
    """

    boot: float
    monotonic: float
    state: KernelState
    enabled: bool
    exit: ExitInfo | None = None


Trip = tuple[End, str]


def judge_reading(first: Reading, before: Reading, now: Reading, bounds: Bounds) -> Trip | None:
    """Say why a policy has to go, given the look when its stage began, the one before this, and this one."""
    if not now.state.available:
        return End.BLIND, "/sys/kernel/sched_ext cannot be read: nothing can be confirmed any more"
    if now.exit is not None:
        return _of_exit(now.exit)
    if not now.enabled and now.state.enable_seq != first.state.enable_seq:
        return End.FOREIGN, f"{now.state.ops!r} is in charge instead"
    if not now.enabled and now.state.state == "disabled":
        return End.EXITED, f"state is {now.state.state!r}; the policy does not tell why"
    return _of_counters(first, before, now, bounds) if now.enabled else None  # ending: it will say why


def _of_exit(info: ExitInfo) -> Trip:
    if info.asks_for_restart:
        return End.HOTPLUG, str(info)
    if info.kind == STALL_KIND:
        return End.STALL, str(info)
    return (End.EJECTED if info.ejected else End.EXITED), str(info)


def _of_counters(first: Reading, before: Reading, now: Reading, bounds: Bounds) -> Trip | None:
    asleep_s = (now.boot - now.monotonic) - (before.boot - before.monotonic)
    if asleep_s > SUSPENDED_S:
        return End.SUSPENDED, f"the machine was suspended for {asleep_s:.1f} s"
    rejected = now.state.nr_rejected - first.state.nr_rejected
    if rejected > 0:
        return End.REJECTED_TASKS, f"{rejected} tasks were refused"
    elapsed_s = now.monotonic - before.monotonic
    if elapsed_s <= 0:
        return None
    count = sum(now.state.events.get(name, 0) - before.state.events.get(name, 0) for name in ERROR_EVENTS)
    if count / elapsed_s <= bounds.error_events_per_s:
        return None
    return End.ERROR_EVENTS, f"{count / elapsed_s:.0f} a second, more than {bounds.error_events_per_s:g}"


DELAY, PRESSURE = "run_queue_delay_s", "pressure"


def intervals(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Return what each interval between two samples shows: mean wait for a turn (s), and the part of it stalled."""
    found: dict[str, list[float]] = {DELAY: [], PRESSURE: []}
    for before, now in pairwise(samples):
        elapsed_s, turns = now.at - before.at, now.turns - before.turns
        if elapsed_s > 0:
            found[PRESSURE].append((now.stalled_s - before.stalled_s) / elapsed_s)
            if turns > 0:
                found[DELAY].append((now.delay_s - before.delay_s) / turns)
    return found


def spread(values: Sequence[float]) -> Spread:
    """Summarise; a deviation of fewer than two values is 0."""
    count = len(values)
    if not count:
        return Spread(0, 0.0, 0.0)
    mean = sum(values) / count
    squares = sum((value - mean) ** 2 for value in values)
    return Spread(count, mean, math.sqrt(squares / (count - 1)) if count > 1 else 0.0)


def summarise(samples: Sequence[Sample]) -> dict[str, Spread]:
    """Return the spreads of `intervals`."""
    return {name: spread(values) for name, values in intervals(samples).items()}


def judge_samples(baseline: Mapping[str, Spread], samples: Sequence[Sample], bounds: Bounds) -> Trip | None:
    """Say what is worse than the baseline by the margin, with 99 % confidence; None while too little was measured."""
    now = summarise(samples)
    for name, end, floor, unit in (
        (DELAY, End.RUN_QUEUE_DELAY, bounds.delay_floor_s, " s"),
        (PRESSURE, End.PRESSURE, bounds.pressure_floor, ""),
    ):
        before = baseline.get(name, Spread(0, 0.0, 0.0))
        bound = before.mean + max(before.mean * bounds.worse_ratio, floor)
        if surely_above(now[name], before, bound):
            return end, f"{now[name].mean:.4g}{unit} on average, {before.mean:.4g}{unit} before it"
    return None


def surely_above(now: Spread, before: Spread, bound: float) -> bool:
    """Whether the mean is above the bound with 99 % confidence (Welch's t, the bound being as uncertain as the
    baseline's mean); never with fewer than LEAST_SAMPLES on either side."""
    if min(now.count, before.count) < LEAST_SAMPLES:
        return False
    error = math.sqrt(now.deviation**2 / now.count + before.deviation**2 / before.count)
    return now.mean - bound > _T * error
