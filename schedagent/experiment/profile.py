"""What a service does, watched for a while, as planning knows workloads: its threads in the place of finished tasks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from agents.observation import build_profile
from kernel_bpf.observe.tasks import PROC
from schedagent.core.errors import SetupError
from schedagent.core.host_profile import HostProfile
from schedagent.core.trials.workload import Observation, TaskRecord, WorkloadClass, WorkloadProfile
from schedagent.observing.commands import ThreadCounters, read_threads
from schedagent.observing.measure import Order
from schedagent.observing.measure import observe as watch
from schedagent.observing.scope import Target

LONGEST_S = 30.0
LEAST_WAITED = 0.25
"""Part of its CPU time that a service waits for it, from which on scheduling may help."""
_LONGEST_CMDLINE = 4096
_FINITE = (WorkloadClass.BATCH_LONG_TAIL, WorkloadClass.PARALLEL_BUILD)
"""What only work that ends can be."""


def observe(target: Target, seconds: float, stopped: Callable[[float], bool] | None = None) -> WorkloadProfile:
    """Watch what runs, under the default scheduler, and return its profile.

    Args:
        seconds: for how long.
        stopped: as of observing.measure.observe.

    Raises:
        UsageError: it is not there.
        SetupError: nothing of it can be seen.
    """
    before, began = read_threads(target), time.monotonic()
    seen = watch(Order(target, seconds), stopped).profile
    after, wall_ns = read_threads(target), round((time.monotonic() - began) * 1e9)
    each = (_record(thread, before.get(thread), now, wall_ns) for thread, now in after.items())
    records = tuple(record for record in each if record)
    if not any(record.cpu_ns for record in records):
        raise SetupError(
            f"nothing of {target.words} ran in {seconds:.0f} s, so there is nothing to compare",
            "put it under load; or it may not be watched by this user",
        )
    return _endless(build_profile(_observation(seen, records, wall_ns)))


def _observation(seen: HostProfile, records: tuple[TaskRecord, ...], wall_ns: int) -> Observation:
    stalled = {name: round(share * wall_ns / 1000) for name, share in seen.pressure.items()}
    return Observation(
        wall_ns=wall_ns,
        cpus=len(os.sched_getaffinity(0)),
        records=records,
        parallelism=tuple((round(each.at_s * 1e9), round(each.cpus + each.waiting)) for each in seen.intervals),
        psi_cpu_us=stalled.get("cpu", -1),
        psi_io_us=stalled.get("io", -1),
        psi_memory_us=stalled.get("memory", -1),
        lost_events=0,
    )


def _record(thread: int, before: ThreadCounters | None, now: ThreadCounters, wall_ns: int) -> TaskRecord | None:
    """Return what a thread did, as the record of a task that lived so long; None if it is another one now."""
    then = before or ThreadCounters("", 0, 0, 0, 0, 0)
    if now.ran_ns < then.ran_ns:
        return None
    involuntary = max(0, now.involuntary - then.involuntary)
    cmdline, process = _names(thread)
    return TaskRecord(
        pid=thread,
        tgid=process,
        ppid=0,
        comm=now.comm,
        cmdline=cmdline,
        start_ns=0,
        elapsed_ns=wall_ns,
        cpu_ns=now.ran_ns - then.ran_ns,
        run_delay_ns=max(0, now.waited_ns - then.waited_ns),
        voluntary_switches=max(0, now.runs - then.runs - involuntary),
        involuntary_switches=involuntary,
    )


def _names(thread: int) -> tuple[bytes, int]:
    """Return command line and process of a thread."""
    cmdline, process = b"", thread
    with suppress(OSError, ValueError, IndexError):
        status = (PROC / str(thread) / "status").read_text(errors="replace")
        process = int(status.partition("\nTgid:")[2].split()[0])
        with (PROC / str(thread) / "cmdline").open("rb") as file:
            cmdline = file.read(_LONGEST_CMDLINE) if process == thread else b""
    return cmdline, process


def _endless(profile: WorkloadProfile) -> WorkloadProfile:
    """Return the profile without what is only true of work that ends: those kinds, and a long tail beside another one.

    A service that seldom runs is serial work by itself; if it waits for CPUs that others have, its latency suffers. The
    evidence begins with that of the kind, and ends with the load.
    """
    *own, load = profile.evidence
    waited_s = sum(command.run_delay_ns_total for command in profile.commands) / 1e9
    if profile.kind is WorkloadClass.SERIAL and waited_s >= LEAST_WAITED * profile.cpu_s:
        sentence = f"it waited {waited_s:.2f} s for {profile.cpu_s:.2f} s of CPU time, beside others"
        return replace(profile, kind=WorkloadClass.LATENCY_SENSITIVE, evidence=(sentence, load), predicted_ratio=1.0)
    if profile.kind in _FINITE:
        return replace(profile, kind=WorkloadClass.MIXED, evidence=(load,), predicted_ratio=1.0)
    return replace(profile, evidence=(*own[:1], load), predicted_ratio=1.0)
