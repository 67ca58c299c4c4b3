"""How near two measured profiles are: the distance between a handful of figures that do not depend on names."""

from __future__ import annotations

import math

from schedagent.core.trials.workload import WorkloadProfile

_OTHER_KIND = 2.0
"""Distance between two kinds of work, in the unit of the figures: factors of e, or a whole machine."""


def distance(profile: WorkloadProfile, other: WorkloadProfile) -> float:
    """Return how far two profiles are apart: 0 for the same figures, about 1 for a factor of e in one of them."""
    kinds = 0.0 if profile.kind is other.kind else _OTHER_KIND
    return kinds + math.dist(figures(profile), figures(other))


def figures(profile: WorkloadProfile) -> tuple[float, ...]:
    """Return what a scheduler would notice, each figure on a scale where 1 is much.

    The logarithms of the typical task's CPU time, of the number of tasks, and of sleeps per second of CPU time; how
    busy the machine was, how many tasks wanted each CPU, and what a better order could save, in tenths.
    """
    heaviest = profile.commands[0] if profile.commands else None
    tasks = sum(row.count for row in profile.commands)
    sleeps = sum(row.voluntary_switches for row in profile.commands)
    runnable = [count for _, count in profile.parallelism]
    crowd = sum(runnable) / len(runnable) / max(1, profile.cpus) if runnable else 0.0
    return (
        _logarithm((heaviest.cpu_ns_p50 if heaviest else 0) / 1e6),
        _logarithm(tasks),
        _logarithm(sleeps / profile.cpu_s if profile.cpu_s > 0 else 0.0),
        _finite(profile.busy_fraction),
        _logarithm(crowd),
        10 * (1 - _finite(profile.predicted_ratio)),
    )


def _logarithm(value: float) -> float:
    return math.log1p(max(0.0, _finite(value)))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
