"""Where a series became another one. Pure.

Pettitt's test (A. N. Pettitt, A non-parametric approach to the change-point problem, Applied Statistics 28, 1979): over
the ranks of all n samples, U(t) = 2 * (sum of the first t ranks) - t * (n + 1); the change lies where |U| is largest,
K, and p is about 2 exp(-6 K^2 / (n^3 + n^2)). It knows no distribution, and single outliers do not move it. The parts
on both sides are then searched in the same way (binary segmentation). Samples one after the other resemble each other,
which the test does not know: hence the small p, and an effect that matters.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

SHORTEST = 8
"""Fewest samples on either side."""
LARGEST_P = 0.001
LEAST_EFFECT = 0.25
"""By which part of the larger one the medians must differ."""


def change_points(values: Sequence[float]) -> list[tuple[int, float, float, float]]:
    """Return (number of the first sample after it, median before, median after, p) of each change, in order."""
    places = sorted(_splits(values, 0))
    changes = []
    for number, (place, p) in enumerate(places):
        begin = places[number - 1][0] if number else 0
        end = places[number + 1][0] if number + 1 < len(places) else len(values)
        before, after = median(values[begin:place]), median(values[place:end])
        if abs(after - before) >= LEAST_EFFECT * max(abs(before), abs(after)):
            changes.append((place, before, after, p))
    return changes


def _splits(values: Sequence[float], offset: int) -> Iterator[tuple[int, float]]:
    n = len(values)
    if n < 2 * SHORTEST:
        return
    ranks, total, place, largest = _ranks(values), 0.0, 0, 0.0
    for t in range(1, n):
        total += ranks[t - 1]
        u = abs(2 * total - t * (n + 1))
        if u > largest and SHORTEST <= t <= n - SHORTEST:
            place, largest = t, u
    p = min(1.0, 2 * math.exp(-6 * largest**2 / (n**3 + n**2)))
    if p > LARGEST_P:
        return
    yield offset + place, p
    yield from _splits(values[:place], offset)
    yield from _splits(values[place:], offset + place)


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, from 1; equal ones share the mean of theirs (scipy takes 0.5 s to import)."""
    places: dict[float, list[int]] = defaultdict(list)
    for rank, value in enumerate(sorted(values), 1):
        places[value].append(rank)
    return [sum(places[value]) / len(places[value]) for value in values]
