"""Work conservation: as many tasks as CPUs keep all of them busy, and a task that wakes takes the idle one."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from verifier.proving import work
from verifier.proving.crew import Crew, Task
from verifier.proving.ground import Ground
from verifier.proving.oracle import OracleInfo, OracleResult

CONSERVATION = OracleInfo(
    "work conservation", 20, 0.25, "ratio",
    "share of time that a task which may use every CPU waits although one is idle: the worse of the idle share with as "
    f"many hogs as CPUs, and of the usual wait of a task that wakes on a CPU which is held for {work.HOLD_S * 1000:g} "
    "ms",
    "The hogs all start on one CPU; left there, they leave half of a two-CPU machine idle. A policy that moves them at "
    "once leaves some hundredths. The task that wakes takes the idle CPU at once; without a kick it waits until the "
    "held CPU is free, or somebody else wakes the idle one, which was half of the time at least. Not seen are waits of "
    "less than 7 ms, one idle CPU out of more than four, and policies that search for an idle CPU as a task wakes and "
    "forget to only as it is put back.",
)  # fmt: skip

ORACLES = (CONSERVATION,)

LOOK_S = 0.02
STAT = Path("/proc/stat")
SETTLE_S = 0.08


def prove(ground: Ground, seconds: float) -> list[OracleResult]:
    """Half of the time hogs on all CPUs, half of it wake-ups beside a hog; nothing to see on a machine of one CPU."""
    if len(ground.cpus) < 2:
        return []
    with Crew() as crew:
        idle = idle_share(ground, crew, seconds / 2)
    with Crew() as crew:
        waits_ns = wakeup_waits(ground, crew, seconds / 2)
    return [judge(idle, waits_ns)]


def idle_share(ground: Ground, crew: Crew, seconds: float) -> float:
    """Start as many hogs as CPUs on one CPU, allow them all CPUs, and return the share of time CPUs then idled."""
    home = ground.cpus[0]
    hogs = [crew.start(f"hog {number}", work.pinned(home, work.hog)) for number in range(len(ground.cpus))]
    wait_for(ground, hogs)
    for task in hogs:
        work.allow(task.pid, ground.cpus)
    time.sleep(SETTLE_S)
    before_s, began = idle_s(), time.monotonic()
    for _now in ground.watch(seconds - SETTLE_S, 5 * LOOK_S):
        pass
    return (idle_s() - before_s) / (len(ground.cpus) * (time.monotonic() - began))


def idle_s() -> float:
    """Time that all CPUs together were idle since boot: the fourth and fifth number of the first line in /proc/stat."""
    fields = STAT.read_text().split(maxsplit=6)
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def wakeup_waits(ground: Ground, crew: Crew, seconds: float) -> list[int]:
    """Wake a task again and again where its CPU is held and another one idles; return how long each waited, in ns."""
    home, door = ground.cpus[0], os.eventfd(0)
    sleeper = crew.start("sleeper", work.rehoming_sleeper(home, ground.cpus, door))
    crew.start("blocker", work.blocker(home, door))
    for _now in ground.watch(seconds, 5 * LOOK_S):
        pass
    os.close(door)
    return sleeper.record.samples_ns()


def wait_for(ground: Ground, tasks: Sequence[Task], events: int = 1, limit_s: float = 3.0) -> bool:
    """Wait until each of these tasks shows by so many events that it is where it wants to be; return whether it is."""
    looks = ground.watch(limit_s, LOOK_S / 4)
    return any(all(task.record.events >= events for task in tasks) for _now in looks)


def judge(idle: float, waits_ns: Sequence[int]) -> OracleResult:
    """Judge the idle share, and the wake-ups' waits in ns."""
    if not waits_ns:
        return CONSERVATION.fail(1.0, f"{idle:.2f} idle beside waiting hogs; a task that was woken never ran")
    waited = statistics.median(waits_ns) / 1e9 / work.HOLD_S
    detail = (
        f"{idle:.2f} idle beside waiting hogs; half of {len(waits_ns)} wake-ups waited for {waited:.2f} or more of the "
        f"{work.HOLD_S * 1000:g} ms"
    )
    return CONSERVATION.judge(max(idle, waited), detail)
