"""The circuit breaker: when a running policy has to go. Pure: given what was seen, it returns why, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kernel_bpf.load.exit_info import ExitInfo
from kernel_bpf.load.sched_ext import KernelState
from kernel_bpf.observe.tasks import TaskSample
from schedagent.core.deployment import End
from schedagent.core.terminal.foreign import quote
from schedagent.core.welch import (
    DELAY,
    DELAY_FLOOR_S,
    METRIC,
    PRESSURE,
    PRESSURE_FLOOR,
    SHARE,
    WORSE_RATIO,
    Better,
    Measure,
    Spread,
    spread,
    surely_worse,
)

ERROR_EVENTS = ("SCX_EV_SELECT_CPU_FALLBACK", "SCX_EV_DISPATCH_LOCAL_DSQ_OFFLINE", "SCX_EV_INSERT_NOT_OWNED")
"""Counters of what the policy did wrong and the kernel had to correct (kernel/sched/ext_internal.h)."""

STALL_KIND = 1026  # SCX_EXIT_ERROR_STALL
SUSPENDED_S = 0.5


@dataclass(frozen=True)
class Bounds:
    """When to stop.

    Args:
        error_events_per_s: of ERROR_EVENTS together.
        worse_ratio: by which part of the baseline run-queue delay and pressure may be higher, and with 1 added how many
            times smaller the share of the wanted CPU time may be.
        delay_floor_s, pressure_floor, share_floor: and by at least this much: nobody feels less.
        metric_ratio: the same as worse_ratio for the workload's own metric, which has no floor.
        starvation_s: how long a runnable task may not run.
    """

    error_events_per_s: float = 100.0
    worse_ratio: float = WORSE_RATIO
    delay_floor_s: float = DELAY_FLOOR_S
    pressure_floor: float = PRESSURE_FLOOR
    share_floor: float = 0.1
    metric_ratio: float = 0.1
    starvation_s: float = 3.0


@dataclass(frozen=True)
class KernelReading:
    """What the kernel showed of a running policy at one moment.

    Args:
        boot, monotonic: CLOCK_BOOTTIME and CLOCK_MONOTONIC in seconds; they part while the machine is suspended.
        state: of sysfs.
        enabled: the very policy is in charge.
        exit: why it ended, if that is recorded.
    """

    boot: float
    monotonic: float
    state: KernelState
    enabled: bool
    exit: ExitInfo | None = None


Trip = tuple[End, str]


def judge_reading(first: KernelReading, before: KernelReading, now: KernelReading, bounds: Bounds) -> Trip | None:
    """Return why a policy has to go, given the reading when its stage began, the one before this, and this one."""
    if not now.state.available:
        return End.BLIND, "/sys/kernel/sched_ext cannot be read: nothing can be confirmed any more"
    if now.exit is not None:
        return judge_exit(now.exit, hotplugged=now.state.hotplug_seq != first.state.hotplug_seq)
    if not now.enabled and now.state.enable_seq != first.state.enable_seq:
        return End.FOREIGN, f"{quote(now.state.ops)} is in charge instead"
    if not now.enabled and now.state.state == "disabled":
        return End.EXITED, f"state is {quote(now.state.state)}; the policy does not report why"
    return _of_counters(first, before, now, bounds) if now.enabled else None  # ending: its exit info will say why


def judge_exit(info: ExitInfo, hotplugged: bool) -> Trip:
    """Return what an exit record means. It is the policy's own word: the kernel has to confirm that a CPU came or went.

    Args:
        hotplugged: the kernel counted a hotplug (scx_hotplug_seq, which grows before it ends a policy for that:
            handle_hotplug() of kernel/sched/ext.c).
    """
    if info.asks_for_restart and hotplugged:
        return End.HOTPLUG, info.what
    if info.kind == STALL_KIND:
        return End.STALL, info.what
    return (End.EJECTED if info.ejected else End.EXITED), info.what


def _of_counters(first: KernelReading, before: KernelReading, now: KernelReading, bounds: Bounds) -> Trip | None:
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


END_OF = {DELAY: End.RUN_QUEUE_DELAY, PRESSURE: End.PRESSURE, SHARE: End.CPU_SHARE, METRIC: End.METRIC}
"""How a deployment ends under which this became worse."""
CPU_USED, RUNS = "cpu_used", "turns_per_s"


def intervals(samples: Sequence[TaskSample]) -> dict[str, list[float]]:
    """Return what each interval between two samples shows.

    DELAY: mean wait for a CPU before a run, in seconds. PRESSURE: the part of the time in which some task waited (PSI).
    SHARE: how much of the CPU time that its tasks wanted (ran or waited in a run queue) they got. CPU_USED: CPU time a
    second, in CPUs. RUNS: how often a second a task was given a CPU (a context switch to it).
    """
    series: dict[str, list[float]] = {name: [] for name in (DELAY, PRESSURE, SHARE, CPU_USED, RUNS)}
    for before, now in pairwise(samples):
        elapsed_s, runs = now.at - before.at, now.runs - before.runs
        waited_s, ran_s = now.delay_s - before.delay_s, now.ran_s - before.ran_s
        if elapsed_s <= 0:
            continue
        series[CPU_USED].append(ran_s / elapsed_s)
        series[RUNS].append(runs / elapsed_s)
        if now.stalled_s is not None and before.stalled_s is not None:
            series[PRESSURE].append((now.stalled_s - before.stalled_s) / elapsed_s)
        if runs > 0:
            series[DELAY].append(waited_s / runs)
        if ran_s + waited_s > 0:
            series[SHARE].append(ran_s / (ran_s + waited_s))
    return series


def summarise(samples: Sequence[TaskSample], metric: Sequence[float] = ()) -> dict[str, Spread]:
    """Return the spreads of `intervals`, and of the workload's own metric if there is any."""
    series = intervals(samples) | ({METRIC: list(metric)} if metric else {})
    return {name: spread(values) for name, values in series.items()}


def measures(bounds: Bounds, better: Better | None) -> tuple[Measure, ...]:
    """Return what is judged. CPU_USED and RUNS are only shown: less of them may be an idle hour as well as a fault."""
    own = (Measure(METRIC, bounds.metric_ratio, 0.0, better=better),) if better else ()
    return (
        Measure(DELAY, bounds.worse_ratio, bounds.delay_floor_s, " s"),
        Measure(PRESSURE, bounds.worse_ratio, bounds.pressure_floor),
        Measure(SHARE, bounds.worse_ratio, bounds.share_floor, better=Better.HIGHER),
        *own,
    )


def judge_spreads(baseline: Mapping[str, Spread], now: Mapping[str, Spread], judged: Sequence[Measure]) -> Trip | None:
    """Return what is worse than the baseline by the margin, with 99 % confidence; None if too little was measured."""
    for measure in judged:
        nothing = Spread(0, 0.0, 0.0)
        before, after = baseline.get(measure.name, nothing), now.get(measure.name, nothing)
        if surely_worse(after, before, measure):
            unit = measure.unit
            return END_OF[measure.name], f"{after.mean:.4g}{unit} on average, {before.mean:.4g}{unit} before it"
    return None
