"""Change points: a step is found where it is, and noise, drift-free bursts and single outliers are none."""

from __future__ import annotations

import random

from schedagent.observing.change_points import change_points
from schedagent.observing.measure import changes
from tests.support.observed_host import interval


def noisy(level, count, seed=1, spread=0.2):
    chance = random.Random(seed)
    return [level * chance.uniform(1 - spread, 1 + spread) for _number in range(count)]


def test_a_step_is_found_where_it_is():
    [(place, before, after, p)] = change_points(noisy(1.0, 40) + noisy(2.0, 60, 2))
    assert abs(place - 40) <= 2
    assert (round(before), round(after)) == (1, 2)
    assert p < 1e-6


def test_a_burst_has_a_begin_and_an_end():
    found_places = [place for place, *_rest in change_points(noisy(1, 40) + noisy(5, 40, 2) + noisy(1, 40, 3))]
    assert [round(place, -1) for place in found_places] == [40, 80]


def test_noise_is_no_change():
    """Not even where medians of parts differ by more than LEAST_EFFECT: that is what p is for."""
    assert sum(bool(change_points(noisy(1.0, 120, seed, 0.95))) for seed in range(300)) <= 1


def test_an_outlier_is_no_change():
    series = noisy(1.0, 60)
    series[30] = 1000.0
    assert change_points(series) == []


def test_a_small_effect_is_no_change_however_sure_it_is():
    assert change_points([1.0] * 100 + [1.1] * 100) == []


def test_too_short_a_series_has_none():
    assert change_points([1.0] * 7 + [9.0] * 7) == []
    assert change_points([]) == []


def test_a_change_of_a_quantity_says_when_and_of_how_many_samples():
    seen = [interval(0.25 * number, cpus=1.0 if number <= 20 else 3.0, waiting=0.0) for number in range(1, 61)]
    [change] = [each for each in changes(seen) if each.quantity == "cpus"]
    assert (change.at_s, change.before, change.after, change.samples) == (5.0, 1.0, 3.0, (20, 40))
