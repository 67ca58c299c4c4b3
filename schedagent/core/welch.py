"""Whether something became worse for sure: Welch's t test against a baseline, with a margin. Pure.

schedagentd judges what it deployed with it, and the agent service what drifted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

DELAY, PRESSURE, SHARE, METRIC = "run_queue_delay_s", "pressure", "cpu_share", "metric"
"""What is compared: mean wait for a CPU in seconds; the part of the time in which some task waited (PSI); the part
of the wanted CPU time that was got; the workload's own metric."""
WORSE_RATIO, DELAY_FLOOR_S, PRESSURE_FLOOR = 0.5, 0.002, 0.1
"""By which part of the baseline waiting and pressure may be higher, and by at least how much: nobody feels less."""
LEAST_SAMPLES = 12
_T = 2.72
"""One-sided 99 % quantile of Student's t with 11 degrees of freedom, the fewest that Welch's test has for two times 12
samples. It is looked at repeatedly and the samples are not independent, so what counts as worse must also be so three
times in a row."""
TIMES_IN_A_ROW = 3


class Better(StrEnum):
    """Which way a workload's own metric is better."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True)
class Spread:
    """Some measurements in short: how many, their mean and standard deviation."""

    count: int
    mean: float
    deviation: float


@dataclass(frozen=True)
class Measure:
    """Something that may be worse than it was.

    Args:
        ratio, floor: how much worse it may be, as a part of the baseline and at least.
        unit: for people.
        better: which way.
    """

    name: str
    ratio: float
    floor: float
    unit: str = ""
    better: Better = Better.LOWER


def spread(values: Sequence[float]) -> Spread:
    """Summarise; a deviation of fewer than two values is 0."""
    count = len(values)
    if not count:
        return Spread(0, 0.0, 0.0)
    mean = sum(values) / count
    squares = sum((value - mean) ** 2 for value in values)
    return Spread(count, mean, math.sqrt(squares / (count - 1)) if count > 1 else 0.0)


def surely_above(measured: Spread, bound: float) -> bool:
    """Whether the mean is above a bound (Student's t), with 99 % confidence; never with fewer than LEAST_SAMPLES."""
    if measured.count < LEAST_SAMPLES:
        return False
    return measured.mean - bound > _T * measured.deviation / math.sqrt(measured.count)


def surely_worse(now: Spread, before: Spread, measure: Measure) -> bool:
    """Whether the mean is beyond the bound (Welch's t, the bound being as uncertain as the baseline's mean), with 99 %
    confidence; never with fewer than LEAST_SAMPLES on either side."""
    if min(now.count, before.count) < LEAST_SAMPLES:
        return False
    # What is better higher may become as many times smaller as what is better lower may become greater.
    lower, size = measure.better is Better.LOWER, abs(before.mean)
    allowed = max(size * measure.ratio if lower else size - size / (1 + measure.ratio), measure.floor)
    worse = now.mean - before.mean if lower else before.mean - now.mean
    error = math.sqrt(now.deviation**2 / now.count + before.deviation**2 / before.count)
    return worse - allowed > _T * error
