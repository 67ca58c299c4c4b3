"""A crowd of pinned tasks on one CPU, and what it costs the others to find their own work behind it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from verifier.proving import work
from verifier.proving.conservation import LOOK_S, wait_for
from verifier.proving.crew import Crew, Task
from verifier.proving.ground import Ground
from verifier.proving.oracle import OracleInfo, OracleResult

SIZE = 400

PINNED_CROWD = OracleInfo(
    "pinned crowd", 23, 2.5, "ratio",
    f"how much slower two tasks take turns on the last CPU while {SIZE} tasks that may only use the first one wait",
    "Where the crowd has a queue of its own the others hardly notice it: both CPUs being busy with it costs a half at "
    "most. In a shared queue every turn walks past the whole crowd, under the queue's lock, and takes three to nine "
    "times as long. The margin is thin on both sides: good policies were seen at 2.0, broken ones at 3.2.",
)  # fmt: skip

ORACLES = (PINNED_CROWD,)


def prove(ground: Ground, seconds: float) -> list[OracleResult]:
    """Time the turns without and with the crowd awake; nothing to see on a machine of one CPU."""
    first, last = ground.cpus[0], ground.cpus[-1]
    if first == last:
        return []
    door = os.pipe()
    with Crew() as crew:
        crowd = crew.start("crowd", work.crowd(first, SIZE, door[0]))
        wait_for(ground, [crowd])
        crew.start("hog", work.pinned(first, work.hog))
        pair = [crew.start(f"yielder {number}", work.pinned(last, work.yielder)) for number in range(2)]
        wait_for(ground, pair)
        alone = rate(ground, pair, seconds * 0.4)
        os.write(door[1], b"x")
        woken = wait_for(ground, [crowd], events=2)
        crowded = rate(ground, pair, seconds * 0.6)
    for end in door:
        os.close(end)
    return [judge(alone, crowded)] if woken else []


def rate(ground: Ground, tasks: Sequence[Task], seconds: float) -> float:
    """Events per second of these tasks."""
    before, began = sum(task.record.events for task in tasks), time.monotonic()
    for _now in ground.watch(seconds, LOOK_S):
        pass
    return (sum(task.record.events for task in tasks) - before) / (time.monotonic() - began)


def judge(alone: float, crowded: float) -> OracleResult:
    """Judge turns per second without and with the crowd."""
    detail = f"{alone:.0f} turns a second on the other CPU without the crowd, {crowded:.0f} with it"
    if not crowded:
        return PINNED_CROWD.fail(alone, detail)
    return PINNED_CROWD.judge(alone / crowded, detail)
