"""Tier 2: what the probe counted, as sections of a profile. Pure.

Which threads are latency-critical: those that are woken often, wake others often and run briefly, in the sense of
scx_lavd, whose criticality grows with both frequencies and falls with the run time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from kernel_bpf.observe.sched_probe import (
    BUCKETS,
    PAGE_FAULT,
    Figures,
    Histogram,
    ProbeReading,
    TaskFigures,
    Wakeups,
    bounds_us,
)
from schedagent.core.host_profile import ClassRow, CommandRow, CriticalThread, Distribution, Lifetimes, WakeupRow
from schedagent.observing.commands import SHOWN_COMMANDS, name

SHOWN_THREADS, SHOWN_WAKEUPS = 8, 12
LEAST_WAKEUPS = 20
LONGEST_BURST_US = 2000.0
LARGEST_SHARE = 0.5
"""Of a CPU: what runs longer is limited by its own work."""
INTERRUPT = "interrupt"

_POLICIES = {0: "normal", 1: "real-time", 2: "real-time", 3: "batch", 5: "idle", 6: "deadline", 7: "sched_ext"}
_NS = 1e-9

_CALLS = {
    PAGE_FAULT: "page fault", 0: "read", 1: "write", 7: "poll", 17: "pread64", 18: "pwrite64", 19: "readv",
    20: "writev", 23: "select", 34: "pause", 35: "nanosleep", 42: "connect", 43: "accept", 44: "sendto", 45: "recvfrom",
    46: "sendmsg", 47: "recvmsg", 61: "wait4", 65: "semop", 70: "msgrcv", 72: "fcntl", 73: "flock", 74: "fsync",
    75: "fdatasync", 128: "rt_sigtimedwait", 130: "rt_sigsuspend", 202: "futex", 208: "io_getevents", 220: "semtimedop",
    230: "clock_nanosleep", 232: "epoll_wait", 243: "mq_timedreceive", 247: "waitid", 270: "pselect6", 271: "ppoll",
    281: "epoll_pwait", 288: "accept4", 299: "recvmmsg", 426: "io_uring_enter", 441: "epoll_pwait2", 449: "futex_waitv",
    455: "futex_wait",
}  # fmt: skip
"""System calls that wait, by number: arch/x86/entry/syscalls/syscall_64.tbl."""


def call_name(number: int) -> str:
    """Return the name of a system call that waits; of another one, its number."""
    return _CALLS.get(number, f"system call {number}")


def class_of(policy: int, kernel: bool) -> str:
    """Return the class of a task; a policy of sched_ext for the whole machine leaves "normal" what is so."""
    return "kernel" if kernel else _POLICIES.get(policy, "other")


def distribution(histogram: Sequence[int]) -> Distribution:
    """Return a histogram of the probe with its quantiles."""
    held = tuple((*bounds_us(bucket), count) for bucket, count in enumerate(histogram) if count)
    return Distribution(sum(histogram), quantile_us(held, 0.5), quantile_us(held, 0.99), held)


def quantile_us(buckets: Sequence[tuple[int, int, int]], share: float) -> float:
    """Return a quantile, interpolated inside its bucket; -1 without samples."""
    wanted = share * sum(count for _low, _high, count in buckets)
    passed = 0
    for low, high, count in buckets:
        if passed + count >= wanted:
            return round(low + (high - low) * (wanted - passed) / count, 1)
        passed += count
    return -1.0


def command_rows(reading: ProbeReading) -> tuple[CommandRow, ...]:
    """Return all commands, most CPU time first."""
    parts: dict[str, list[tuple[int, int, Figures]]] = defaultdict(list)
    for task in reading.tasks:
        parts[name(task.comm)].append((1, 0, task.figures))
    for command in reading.commands:
        parts[name(command.comm)].append((command.tasks, command.tasks, command.figures))
    rows = [_command_row(comm, of_it) for comm, of_it in parts.items()]
    used = [row for row in rows if row.runs]
    return tuple(sorted(used, key=lambda row: (-row.run_s, row.comm))[:SHOWN_COMMANDS])


def _command_row(comm: str, parts: Sequence[tuple[int, int, Figures]]) -> CommandRow:
    figures = [of_it for _tasks, _ended, of_it in parts]
    return CommandRow(
        comm=comm,
        tasks=sum(tasks for tasks, _ended, _figures in parts),
        ended=sum(ended for _tasks, ended, _figures in parts),
        run_s=round(sum(each.run_ns for each in figures) * _NS, 6),
        wait_s=round(sum(each.wait_ns for each in figures) * _NS, 6),
        sleep_s=round(sum(each.sleep_ns for each in figures) * _NS, 3),
        block_s=round(sum(each.block_ns for each in figures) * _NS, 6),
        runs=sum(each.runs for each in figures),
        preempted=sum(each.preempted for each in figures),
        migrations=sum(each.migrations for each in figures),
        longest_wait_us=round(max(each.longest_wait_ns for each in figures) / 1000, 1),
    )


def lifetimes(reading: ProbeReading) -> Lifetimes | None:
    """Return how long the processes lived that ended; None if none did."""
    total = _sum(command.lived_ms for command in reading.commands)
    if not any(total):
        return None
    lived = distribution(total)  # in ms where others are in us
    return Lifetimes(lived.samples, lived.p50_us / 1000, quantile_us(lived.buckets, 0.95) / 1000)


def class_rows(reading: ProbeReading) -> tuple[ClassRow, ...]:
    """Return the classes, the largest first."""
    parts: dict[str, list[Figures]] = defaultdict(list)
    tasks: Counter[str] = Counter()
    for task in reading.tasks:
        parts[class_of(task.policy, task.kernel)].append(task.figures)
        tasks[class_of(task.policy, task.kernel)] += 1
    for command in reading.commands:
        parts[class_of(command.policy, command.kernel)].append(command.figures)
        tasks[class_of(command.policy, command.kernel)] += command.tasks
    rows = [
        ClassRow(
            each,
            tasks[each],
            distribution(_sum(figures.woken_wait for figures in of_it)),
            distribution(_sum(figures.preempted_wait for figures in of_it)),
            distribution(_sum(figures.run for figures in of_it)),
        )
        for each, of_it in parts.items()
    ]
    return tuple(sorted((row for row in rows if row.run.samples), key=lambda row: -row.run.samples))


def _sum(histograms: Iterable[Histogram]) -> list[int]:
    total = [0] * BUCKETS
    for histogram in histograms:
        total = [sum(pair) for pair in zip(total, histogram, strict=True)]
    return total


def critical_threads(reading: ProbeReading, seconds: float) -> tuple[CriticalThread, ...]:
    """Return the latency-critical threads, the most critical first."""
    wakers: dict[int, list[Wakeups]] = defaultdict(list)
    for edge in reading.wakeups:
        wakers[edge.wakee].append(edge)
    chosen = [task for task in reading.tasks if _is_critical(task, seconds)]
    chosen.sort(key=lambda task: -_criticality(task, seconds))
    return tuple(_critical(task, wakers[task.tid], seconds) for task in chosen[:SHOWN_THREADS])


def _burst_us(figures: Figures) -> float:
    return figures.run_ns / 1000 / max(1, figures.runs)


def _is_critical(task: TaskFigures, seconds: float) -> bool:
    figures = task.figures
    often = figures.wakeups >= LEAST_WAKEUPS and figures.wakeups >= seconds
    briefly = _burst_us(figures) <= LONGEST_BURST_US and figures.run_ns * _NS <= LARGEST_SHARE * seconds
    return often and briefly and not task.kernel


def _criticality(task: TaskFigures, seconds: float) -> float:
    figures = task.figures
    return figures.wakeups / seconds * (1 + figures.wakes / seconds) / (1 + _burst_us(figures))


def _critical(task: TaskFigures, edges: Sequence[Wakeups], seconds: float) -> CriticalThread:
    figures = task.figures
    sleeps = sum(count for _call, count in figures.calls)
    call, slept = figures.calls[0] if figures.calls else (PAGE_FAULT, 0)
    woken = sum(edge.count for edge in edges)
    waker = max(edges, key=lambda edge: edge.count, default=None)
    return CriticalThread(
        tid=task.tid,
        comm=name(task.comm),
        wakeups=figures.wakeups,
        wakeups_per_s=round(figures.wakeups / seconds, 1),
        wakes_per_s=round(figures.wakes / seconds, 1),
        burst_us=round(_burst_us(figures), 1),
        woken=distribution(figures.woken_wait),
        waits_in=call_name(call) if slept else "",
        waits_share=round(slept / sleeps, 3) if sleeps else 0.0,
        woken_by=(name(waker.waker_comm) if waker.waker else INTERRUPT) if waker else "",
        woken_by_tid=waker.waker if waker else 0,
        woken_share=round(waker.count / woken, 3) if waker and woken else 0.0,
    )


def wakeup_rows(reading: ProbeReading) -> tuple[WakeupRow, ...]:
    """Return who wakes whom, by command, the most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    for edge in reading.wakeups:
        counts[name(edge.waker_comm) if edge.waker else INTERRUPT, name(edge.wakee_comm)] += edge.count
    return tuple(WakeupRow(*pair, count) for pair, count in counts.most_common(SHOWN_WAKEUPS))
