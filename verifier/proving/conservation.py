"""Work conservation: as many tasks as CPUs keep all of them busy, and a task that wakes takes the idle one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from verifier.proving import work
from verifier.proving.crew import Crew, Task
from verifier.proving.ground import Ground
from verifier.proving.oracle import OracleInfo, OracleResult

CONSERVATION = OracleInfo(
    "work conservation", 20, 0.35, "ratio",
    "share of time that a task which may use every CPU waits although one is idle: the worse of the idle share with as "
    "many hogs as CPUs, and of a wake-up's median wait beside 3 ms of sleep",
    "With as many hogs as CPUs, which all started on one CPU, two on one CPU leave half of a two-CPU machine idle; a "
    "policy that moves them at once leaves some hundredths, the time of the agent itself. A task that went to sleep on "
    "a CPU that a hog then keeps busy takes the idle one within some tenths of a millisecond; without a kick it waits "
    "for the hog's slice, of some milliseconds at least. Not seen are waits below 1.6 ms, and idle CPUs out of more "
    "than three.",
)  # fmt: skip

ORACLES = (CONSERVATION,)

LOOK_S = 0.02
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
    before_ns, began = sum(task.cpu_ns() for task in hogs), time.monotonic()
    for _now in ground.watch(seconds - SETTLE_S, LOOK_S):
        pass
    used_s = (sum(task.cpu_ns() for task in hogs) - before_ns) / 1e9
    return max(0.0, 1 - used_s / (len(ground.cpus) * (time.monotonic() - began)))


def wakeup_waits(ground: Ground, crew: Crew, seconds: float) -> list[int]:
    """Let tasks wake where a hog has the CPU they slept on and another one idles; return how long each waited, in ns."""
    home = ground.cpus[0]
    crew.start("hog", work.pinned(home, work.hog))
    sleepers = [crew.start(f"sleeper {number}", work.rehoming_sleeper(home, ground.cpus)) for number in range(2)]
    for _now in ground.watch(seconds, LOOK_S):
        pass
    return [wait for task in sleepers for wait in task.record.samples_ns()]


def wait_for(ground: Ground, tasks: Sequence[Task], limit_s: float = 3.0) -> None:
    """Wait until each of these tasks is where it wants to be, and says so by its first event."""
    for _now in ground.watch(limit_s, LOOK_S / 4):
        if all(task.record.events for task in tasks):
            return


def judge(idle: float, waits_ns: Sequence[int]) -> OracleResult:
    """Judge the idle share, and the wake-ups' waits in ns."""
    median_ns = statistics.median(waits_ns) if waits_ns else 0.0
    waiting = median_ns / (median_ns + work.REHOME_SLEEP_NS)
    detail = f"{idle:.0%} idle beside waiting hogs; {len(waits_ns)} wake-ups, half waited over {median_ns / 1e6:.2f} ms"
    if not waits_ns:
        return CONSERVATION.fail(idle, f"{detail}: a sleeper beside a hog never got to sleep")
    return CONSERVATION.judge(max(idle, waiting), detail)
