"""Intervals for the mean of paired log ratios: one for a planned look, one that holds whenever somebody looks.

* **Trimmed mean** (20 %, from 8 values on: of six, four would be left, and their interval is twice as wide) with Yuen's
  standard error, so that one run in five that something disturbed decides nothing.
  K. K. Yuen, "The two-sample trimmed t for unequal population variances", Biometrika 61 (1974): one sample of n values,
  g = floor(n / 5) cut off at each end, h = n - 2 g left, variance (n - 1) s_w^2 / (h (h - 1)) with s_w^2 of the
  winsorised values, h - 1 degrees of freedom.
* **Autocorrelation**: neighbouring pairs may be alike. A positive lag-1 correlation r of the winsorised values, freed
  of its bias of -(1 + 3 r) / n (M. G. Kendall, Biometrika 41 (1954)), widens the standard error by
  sqrt((1 + r) / (1 - r)), the asymptotic factor of an AR(1) process.
* **Looks**: who looks eight times at 5 % errs in 14 % of trials. Lan and DeMets, "Discrete sequential boundaries for
  clinical trials", Biometrika 70 (1983): after n of N pairs, alpha (n / N)^2 may have been spent; the level of each
  look follows from the joint distribution of the sums before it. Student's t at these levels is not quite what that
  theory assumes, hence a tenth less.

What the rule does under five shapes of noise: `make bench-verdict`. Pure; numpy and scipy are imported when needed,
which is for looks or an error that are not the usual ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

TRIM = 0.2
FEWEST_TO_TRIM = 8
LOOK_EVERY = 2
"""Pairs between two looks."""

T_ALLOWANCE = 0.9
"""Levels are made for normal sums; Student's t at the same levels errs a little more often."""

_MOST_CORRELATION = 0.7
"""A few pairs cannot tell more than this from a drift."""

EFFECT_VARIANCE = 1.0
"""Of the effect sizes that `confidence_sequence` mixes: it is narrowest where an effect is as large as its noise."""

_GRID = 801
_REACH = 8.0
_FARTHEST = 1e15
"""A quantile beyond this bounds nothing."""

_USUAL = (6, 8, 10, 12, 14, 16, 18, 20), 0.05
_USUAL_LEVELS = (
    0.00405,
    0.005012104432010089,
    0.007223909246897804,
    0.010045896102791427,
    0.013289400677366784,
    0.017410262997614126,
    0.02190714509188014,
    0.027176722384455926,
)
"""Those of the usual looks at the usual error, as `computed_levels` gives them: schedagentd has no numpy."""


@dataclass(frozen=True)
class Interval:
    """A mean and what is known about it, on the log scale.

    Args:
        mean: trimmed mean; nan if there are no values.
        half_width: of the two-sided interval around it; nan without values, infinite where nothing is known.
    """

    mean: float
    half_width: float

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width


def trimmed(values: Sequence[float], level: float) -> Interval:
    """Return the trimmed mean with its two-sided interval at error `level`.

    Args:
        values: log ratios, in the order they were measured.
        level: two-sided error, between 0 and 1.
    """
    count = len(values)
    if count == 0:
        return Interval(math.nan, math.nan)
    cut = _cut(count)
    kept = count - 2 * cut
    ordered = sorted(values)
    mean = math.fsum(ordered[cut : count - cut]) / kept
    if count == 1:
        return Interval(mean, math.inf)
    winsorised = [min(max(value, ordered[cut]), ordered[count - 1 - cut]) for value in values]
    centre = math.fsum(winsorised) / count
    squares = math.fsum((value - centre) ** 2 for value in winsorised)
    error = math.sqrt(squares / (kept * (kept - 1))) if kept > 1 else math.inf
    return Interval(mean, quantile(count, level) * error * _widening(winsorised, centre, squares))


@cache
def quantile(count: int, level: float) -> float:
    """Return how many standard errors the interval of so many values reaches to either side, at error `level`.

    Student's t quantile, by bisection of its distribution: whoever judges need not have scipy.
    """
    degrees, low, high = count - 2 * _cut(count) - 1, 0.0, 1.0
    if degrees < 1 or not 0 < level < 1:
        return 0.0 if level >= 1 else math.inf
    while _within(high, degrees) < 1 - level and high < _FARTHEST:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _within(middle, degrees) < 1 - level else (low, middle)
    return high


def _within(distance: float, degrees: int) -> float:
    """Return the probability that Student's t is at most so far from 0, for whole degrees of freedom.

    Abramowitz and Stegun, "Handbook of Mathematical Functions" (1964), 26.7.3 and 26.7.4.
    """
    angle = math.atan(distance / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for step in range((degrees - 1) // 2 if odd else degrees // 2):
        total += term
        below = 2 * step + 2 if odd else 2 * step + 1
        term *= below / (below + 1) * cosine**2
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _cut(count: int) -> int:
    """Return how many values are cut off at each end."""
    return int(TRIM * count) if count >= FEWEST_TO_TRIM else 0


def _widening(values: Sequence[float], centre: float, squares: float) -> float:
    """How much wider the interval is because neighbours are alike; 1 if they are not."""
    count = len(values)
    if squares <= 0 or count < 4:
        return 1.0
    products = math.fsum((before - centre) * (after - centre) for before, after in pairwise(values))
    seen = products / squares
    correlation = min(_MOST_CORRELATION, max(0.0, seen + (1 + 3 * seen) / count))
    return math.sqrt((1 + correlation) / (1 - correlation))


def looks(first: int, last: int) -> tuple[int, ...]:
    """Return after how many pairs one looks: from `first` on, and in any case after `last`."""
    return tuple(sorted({*range(first, last + 1, LOOK_EVERY), last})) if first <= last else ()


def levels(planned: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    """Return the two-sided error level of each look, so that all together err with probability `alpha` at most.

    Args:
        planned: after how many pairs one looks, ascending; the last is the largest trial.
        alpha: error of the whole trial, between 0 and 1.
    """
    usual = planned == _USUAL[0] and math.isclose(alpha, _USUAL[1])
    return _USUAL_LEVELS if usual else computed_levels(planned, alpha)


@cache
def computed_levels(planned: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    """Return what `levels` returns, from the joint distribution of the sums."""
    import numpy as np
    from scipy.special import ndtr, ndtri

    grid = np.linspace(-_REACH, _REACH, _GRID) * math.sqrt(planned[-1])
    step = grid[1] - grid[0]
    density, spent, nominal = np.zeros(_GRID), 0.0, []
    for number, count in enumerate(planned):
        if number == 0:
            density = np.exp(-(grid**2) / (2 * count)) / math.sqrt(2 * math.pi * count)
        else:
            spread = count - planned[number - 1]
            kernel = np.exp(-((grid[:, None] - grid[None, :]) ** 2) / (2 * spread)) / math.sqrt(2 * math.pi * spread)
            density = kernel @ density * step
        allowed = alpha * (count / planned[-1]) ** 2 - spent
        outside = _outside(grid, density, step, allowed)
        nominal.append(float(T_ALLOWANCE * 2 * ndtr(-outside / math.sqrt(count))))
        if number == 0:
            outside = -float(ndtri(allowed / 2)) * math.sqrt(count)
            nominal[0] = T_ALLOWANCE * allowed
        density = np.where(np.abs(grid) < outside, density, 0.0)
        spent += allowed
    return tuple(nominal)


def _outside(grid: object, density: object, step: float, allowed: float) -> float:
    """Return the bound beyond which, on both sides, the density has the mass `allowed`."""
    import numpy as np

    points, mass = np.asarray(grid), np.asarray(density) * step
    half = len(points) // 2
    tail = np.cumsum(mass[::-1])[: half + 1]  # beyond each point, from the outermost inwards
    return float(np.interp(allowed / 2, tail, points[::-1][: half + 1] - step / 2))


def confidence_sequence(values: Sequence[float], alpha: float) -> Interval:
    """Return an interval that holds at all times together with probability 1 - `alpha`, however long one measures.

    For work that never ends, where no largest trial is known, and for who looks after every value. The mean m of n
    values is inside unless the mixture of likelihood ratios of the t statistic exceeds 1 / alpha (Ville's inequality):

        (1 + n g)^(-1/2) * ((1 + r) / (1 + r / (1 + n g)))^(n/2),  r = t^2 / (n - 1) = n (mean - m)^2 / squares

    Effect sizes (mean / deviation) are mixed by a normal prior of variance g, the unknown deviation by Haar's measure.
    Solved for r with K = (sqrt(1 + n g) / alpha)^(2/n): r = (K - 1) / (1 - K / (1 + n g)), infinite where K reaches
    1 + n g. Exact for normal values from the second one on: T. L. Lai, "On confidence sequences", Annals of Statistics
    4 (1976); H. Wang and A. Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown
    variance", Sequential Analysis 44 (2025). A tenth wider than the asymptotic one of Waudby-Smith et al.
    (2024), which errs too often below a few dozen values.

    Args:
        values: log ratios, in the order they were measured.
        alpha: error, between 0 and 1.
    """
    count = len(values)
    if count < 2:
        return Interval(values[0] if values else math.nan, math.inf if values else math.nan)
    mean = math.fsum(values) / count
    squares = math.fsum((value - mean) ** 2 for value in values)
    mixed = 1 + count * EFFECT_VARIANCE
    bound = (math.sqrt(mixed) / alpha) ** (2 / count)
    if bound >= mixed:
        return Interval(mean, math.inf)
    return Interval(mean, math.sqrt(squares / count * (bound - 1) / (1 - bound / mixed)))
