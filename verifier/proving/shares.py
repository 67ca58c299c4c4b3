"""Shares of CPU time: two weights on one CPU, and on another CPU a task that comes back after a long sleep."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import pairwise

from verifier.proving import work
from verifier.proving.conservation import wait_for
from verifier.proving.crew import Crew, Task
from verifier.proving.ground import Ground
from verifier.proving.mix import Gap
from verifier.proving.oracle import OracleInfo, OracleResult

LOOK_S = 0.006
NICE = 5
WEIGHT_RATIO = 1024 / 335
"""Of nice 0 to nice 5 (sched_prio_to_weight[] in kernel/sched/core.c)."""

SLEPT_SHARE = 0.55

WEIGHTS = OracleInfo(
    "weights", 22, 0.20, "ratio",
    f"deviation of the CPU time of a hog of nice 0 to one of nice {NICE} on the same CPU from {WEIGHT_RATIO:.2f}",
    "Rule 29 grants a fifth. Whole rounds are counted, so that long slices do not blur the figure. A policy "
    "that declares to ignore weights is excused by the pipeline; the figure is reported anyway.",
)  # fmt: skip
RETURN = OracleInfo(
    "sleeper's return", 22, 0.35, "s",
    "longest time that a hog went without CPU time after a task that had slept came back to its CPU as a hog",
    "The sleeper is owed at most a slice or a short credit, some hundredths of a second. With a debt for all the time "
    "it slept, it keeps the CPU for as long as that: to the end of the phase, 0.7 s at standard depth.",
)  # fmt: skip

ORACLES = (WEIGHTS, RETURN)


def prove(ground: Ground, seconds: float) -> list[OracleResult]:
    """Let the hogs run, wake the sleeper after a good half of the time, and judge both pairs."""
    first, last = ground.cpus[0], ground.cpus[-1]
    door = os.pipe()
    with Crew() as crew:
        heavy = crew.start("hog of nice 0", work.pinned(first, work.hog))
        light = crew.start(f"hog of nice {NICE}", work.pinned(first, work.niced(NICE, work.hog)))
        sleeper = crew.start("long sleeper", work.pinned(last, work.long_sleeper(door[0])))
        rival = crew.start("hog beside it", work.pinned(last, work.hog))
        wait_for(ground, [heavy, light, sleeper, rival])
        samples = sample(ground, (heavy, light), seconds * SLEPT_SHARE)
        os.write(door[1], b"x")
        gap = Gap(time.monotonic(), rival.cpu_ns())
        samples += sample(ground, (heavy, light), seconds * (1 - SLEPT_SHARE), rival, gap)
        came_back = sleeper.record.events > 2
    for end in door:
        os.close(end)
    result = judge_return(gap.longest_s, came_back=came_back)
    return [judge_weights(samples), result] if first != last else [result]


def sample(
    ground: Ground, pair: tuple[Task, Task], seconds: float, rival: Task | None = None, gap: Gap | None = None
) -> list[tuple[int, int]]:
    """Read the CPU times of the pair again and again, and the gap of the rival if there is one."""
    samples = []
    for now in ground.watch(seconds, LOOK_S):
        samples.append((pair[0].cpu_ns(), pair[1].cpu_ns()))
        if rival and gap:
            gap.look(now, rival.cpu_ns())
    return samples


def share_ratio(samples: Sequence[tuple[int, int]]) -> float:
    """CPU time of the first to that of the second over whole rounds; 0 if the second had none.

    A round ends when the second has run: its CPU time grew before a sample, and not after it. Runs that are too short
    for the samples to see their ends do not matter.
    """
    grew = [after[1] > before[1] for before, after in pairwise(samples)]
    ends = [number + 1 for number, (here, behind) in enumerate(pairwise(grew)) if here and not behind]
    whole = ends and ends[-1] - ends[0] >= len(samples) / 2
    first, last = (samples[ends[0]], samples[ends[-1]]) if whole else (samples[0], samples[-1])
    light_ns = last[1] - first[1]
    return (last[0] - first[0]) / light_ns if light_ns > 0 else 0.0


def judge_weights(samples: Sequence[tuple[int, int]]) -> OracleResult:
    """Judge the CPU times (ns) of the heavy and the light hog, sampled over time."""
    ratio = share_ratio(samples) if len(samples) > 1 else 0.0
    detail = f"CPU time {ratio:.2f} to 1, the weights are {WEIGHT_RATIO:.2f} to 1"
    if not ratio:
        return WEIGHTS.fail(1.0, f"{detail}: one of the two had none")
    deviation = abs(ratio / WEIGHT_RATIO - 1)
    return WEIGHTS.judge(deviation, f"{detail}: a deviation of {deviation:.2f}")


def judge_return(gap_s: float, *, came_back: bool) -> OracleResult:
    """Judge the gap of the hog that the sleeper came back to."""
    if not came_back:
        return RETURN.fail(gap_s, "the sleeper was woken, and never ran")
    return RETURN.judge(gap_s, f"the hog beside it then went {gap_s:.2f} s without CPU time")
