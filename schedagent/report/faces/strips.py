"""Plots in a line of characters: a mark for each run of an arm, on the scale of both arms; what held over time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from schedagent.report.values import ValueReport

MARKS = "·•●"
"""One run, two or three, and more in the same place."""
_BARS = " ▁▂▃▄▅▆▇█"
_LOGARITHMIC_FROM = 8.0


def strips(value: ValueReport, width: int) -> tuple[str, str]:
    """Return the strips of the default and of the candidate; a wide range is drawn by its logarithm."""
    default, candidate = value.default.runs, value.candidate.runs
    if logarithmic((*default, *candidate)):
        default, candidate = (tuple(map(math.log, runs)) for runs in (default, candidate))
    low, high = min(*default, *candidate), max(*default, *candidate)
    return _strip(default, low, high, width), _strip(candidate, low, high, width)


def levels(points: Sequence[tuple[float, int]], end: float, width: int) -> str:
    """Return a line of bars of what held over time, each as high as the most of its span; arguments as `spans`."""
    most = spans(points, end, width)
    highest = max(most) or 1
    return "".join(_BARS[round(value / highest * (len(_BARS) - 1))] for value in most)


def spans(points: Sequence[tuple[float, int]], end: float, count: int) -> list[int]:
    """Return the most that held in each of `count` equal spans of time.

    Args:
        points: (time, value from then on), by time.
        end: of the last value.
    """
    most = [0] * count
    for (time, value), until in zip(points, [*(time for time, _value in points[1:]), end], strict=True):
        first, last = int(time / end * count), math.ceil(until / end * count)
        for place in range(max(first, 0), min(max(last, first + 1), count)):
            most[place] = max(most[place], value)
    return most


def logarithmic(values: Sequence[float]) -> bool:
    """Whether values are better drawn by their logarithms: all positive, and far apart."""
    return min(values) > 0 and max(values) / min(values) >= _LOGARITHMIC_FROM


def _strip(runs: Sequence[float], low: float, high: float, width: int) -> str:
    step = (high - low) / (width - 1) or 1.0
    places = Counter(round((run - low) / step) for run in runs)
    return "".join(MARKS[min(places[place] // 2, 2)] if places[place] else " " for place in range(width))
