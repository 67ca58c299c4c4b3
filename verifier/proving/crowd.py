"""A crowd of pinned tasks on one CPU, and what it costs the others to find their own work behind it."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence

from verifier.proving import work
from verifier.proving.conservation import LOOK_S, wait_for
from verifier.proving.crew import Crew, Task
from verifier.proving.ground import Ground
from verifier.proving.oracle import OracleInfo, OracleResult, Undecided

FEW, MANY = 50, 800
WINDOWS = 3
"""Of so many the best counts: a busy host only ever makes wake-ups slower, and the crowd is there in each."""

ROUNDS = 5
"""So often both are tried, in turn, before a policy fails: a host that got busier between them looks like a crowd."""

LEAST_PLAUSIBLE = 0.75
"""A large crowd makes no wake-ups quicker: a smaller ratio shows a host that was busy beside the small one."""

PINNED_CROWD = OracleInfo(
    "pinned crowd", 23, 1.7, "ratio",
    f"how much slower two tasks wake each other on the last CPU while {MANY} tasks that may only use the first one"
    f" wake, than while {FEW} of them do",
    "Where the crowd has a queue of its own its size is nothing to the others: good policies were seen at 0.9 to 1.2."
    " In a shared queue every wake-up walks past the whole crowd, under the queue's lock: broken ones were seen at 2.6"
    " to 3.3. A small crowd is the measure, and not none, because a busy first CPU slows the last one on some hosts:"
    " two hardware threads of one core cost a third of the wake-ups then, whatever the policy. Before a policy fails,"
    " both crowds are tried again in turn, and the best of each counts: the host may have got busier between them. The"
    " two sleep in turn and do not yield: a policy in virtual time may let one yield many times in a row, and a yield"
    " without switch is cheap. The crowd is bound to one CPU, the only part of two that is not all of them: what a"
    " crowd bound to some of many CPUs costs the others is not shown.",
)  # fmt: skip

ORACLES = (PINNED_CROWD,)


def prove(ground: Ground, seconds: float) -> Sequence[OracleResult | Undecided]:
    """Time the wake-ups beside a small and beside a large crowd; nothing to see on a machine of one CPU."""
    first, last = ground.cpus[0], ground.cpus[-1]
    if first == last:
        return []
    there, back = os.pipe(), os.pipe()
    with Crew() as crew:
        small, large = (crew.start(f"crowd of {size}", work.crowd(first, size)) for size in (FEW, MANY - FEW))
        wait_for(ground, [small, large])
        crew.start("hog", work.pinned(first, work.hog))
        pair = [
            crew.start("ping", work.pinned(last, work.ping(there[1], back[0]))),
            crew.start("pong", work.pinned(last, work.pong(back[1], there[0]))),
        ]
        wait_for(ground, pair)
        small.record.go = 1

        def beside(size: int) -> float | None:
            large.record.go = size > FEW
            grown = large if size > FEW else small
            woken = wait_for(ground, [grown], events=grown.record.events + 1)
            return best_rate(ground, pair, seconds / 2) if woken else None

        result = compare(beside)
    for end in itertools.chain(there, back):
        os.close(end)
    if result is None and ground.enabled():
        return [Undecided(PINNED_CROWD.name, "the crowd was not there, or not woken, in time")]
    return [result] if result else []


def compare(beside: Callable[[int], float | None]) -> OracleResult | None:
    """Try both crowds in turn until the oracle holds plausibly, ROUNDS times at most; the best of each counts.

    Args:
        beside: returns wake-ups per second beside a crowd of this size, None if that did not wake.
    """
    few = many = 0.0
    for _ in range(ROUNDS):
        beside_few, beside_many = beside(FEW), beside(MANY)
        if beside_few is None or beside_many is None:
            return None
        few, many = max(few, beside_few), max(many, beside_many)
        if many and LEAST_PLAUSIBLE <= few / many <= PINNED_CROWD.bound:
            break
    return judge(few, many)


def best_rate(ground: Ground, tasks: Sequence[Task], seconds: float) -> float:
    """Events per second of these tasks in the best of a few windows, which take `seconds` together."""
    return max(rate(ground, tasks, seconds / WINDOWS) for _ in range(WINDOWS))


def rate(ground: Ground, tasks: Sequence[Task], seconds: float) -> float:
    """Events per second of these tasks."""
    before, began = sum(task.record.events for task in tasks), time.monotonic()
    for _now in ground.watch(seconds, LOOK_S):
        pass
    return (sum(task.record.events for task in tasks) - before) / (time.monotonic() - began)


def judge(few: float, many: float) -> OracleResult:
    """Judge wake-ups per second beside the small and the large crowd."""
    detail = f"{few:.0f} wake-ups a second on the other CPU beside {FEW} pinned tasks, {many:.0f} beside {MANY}"
    if not many:
        return PINNED_CROWD.fail(few, detail)
    return PINNED_CROWD.judge(few / many, f"{detail}: {few / many:.2f} times as many")
