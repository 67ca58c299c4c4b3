"""Arms: the ways to schedule that a trial compares: the default, a policy, or a knob that every kernel has.

A knob is a strong baseline: what could be had without a policy. It runs beside the candidates for a few blocks, and
nothing is claimed of it. Three that come to mind are no arms of the lab: nice and cpu.weight only tell tasks of one
workload apart, and nobody said which of them matter; autogroups do not exist inside the cgroup that the workload has.
"""

from __future__ import annotations

from dataclasses import dataclass

from schedagent.core.trials.trial import DEFAULT_ARM
from schedagent.core.trials.workload import Goal

KNOB_PREFIX = "knob:"
"""Begins the key of a knob's arm; keys of candidates are hex digits."""

KNOB_BLOCKS = 3
"""Blocks in which knobs run, after the warm-up."""


@dataclass(frozen=True)
class Knob:
    """A setting of the fair class for all tasks of the workload.

    Args:
        name: for people.
        batch: SCHED_BATCH instead of SCHED_OTHER: a task that wakes up preempts nobody.
        slice_us: slice that a task asks for, in microseconds (sched_setattr(2), sched_runtime, since Linux 6.12);
            0 for the kernel's own.
    """

    name: str
    batch: bool = False
    slice_us: int = 0

    @property
    def key(self) -> str:
        """The key of its arm."""
        return KNOB_PREFIX + self.name


BATCH = Knob("SCHED_BATCH with a slice of 20 ms", batch=True, slice_us=20_000)
SHORT_SLICE = Knob("a slice of 0.5 ms", slice_us=500)


def knobs_for(goal: Goal) -> tuple[Knob, ...]:
    """Return the knobs worth a run for a goal: what switches often for latency, what switches seldom otherwise."""
    return (SHORT_SLICE,) if goal is Goal.LATENCY else (BATCH,)


def is_candidate(arm: str) -> bool:
    """Whether an arm is a policy about which a claim may be made."""
    return arm != DEFAULT_ARM and not arm.startswith(KNOB_PREFIX)
