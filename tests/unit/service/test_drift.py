"""Drift: what the agent service takes for usual, what it notices, and how seldom it is wrong."""

from __future__ import annotations

import math
import random

import pytest

from schedagent.core.recommendation import MACHINE, Reading
from schedagent.core.welch import DELAY, PRESSURE
from schedagent.service.drift import (
    MIX,
    RECENT,
    InARow,
    busy,
    distance,
    drifts,
    make_baseline,
    mix_of,
    shares,
    waits_much,
    worse,
)

BUILD = {"cc1": 30.0, "ld": 5.0, "make": 1.0}


def reading(number, *, delay_s=0.004, pressure=0.2, commands=BUILD):
    return Reading(MACHINE, 60.0 * number, 60.0, delay_s, pressure, commands)


def varied(seed, count, *, mean_s=0.004, correlation=0.0, start=0):
    """Intervals whose delay varies by half of its mean, log-normally, each like the one before to some part."""
    noise, last, found = random.Random(seed), 0.0, []
    sigma = math.sqrt(math.log(1.25))
    for number in range(start, start + count):
        last = correlation * last + math.sqrt(1 - correlation**2) * noise.gauss(0, sigma)
        delay = mean_s * math.exp(last - sigma**2 / 2)
        mix = {name: used * noise.uniform(0.5, 1.5) for name, used in BUILD.items()}
        found.append(reading(number, delay_s=delay, pressure=noise.uniform(0.1, 0.3), commands=mix))
    return found


def test_the_distance_of_mixes():
    assert distance(shares(BUILD), shares({name: 7 * used for name, used in BUILD.items()})) == pytest.approx(0)
    assert distance({"a": 1.0}, {"b": 1.0}) == 1
    assert distance({"a": 0.5, "b": 0.5}, {"a": 0.75, "b": 0.25}) == 0.25
    assert distance({}, {}) == 0
    assert shares({}) == {}
    assert list(shares({"a": 1.0, "b": 3.0})) == ["b", "a"]
    assert mix_of([reading(1, commands={"a": 1.0}), reading(2, commands={"b": 3.0})]) == {"b": 0.75, "a": 0.25}


def test_idle_intervals_do_not_count():
    idle = reading(1, commands={"sh": 0.1})
    assert busy([reading(0), idle, reading(2, delay_s=None)]) == [reading(0)]


def test_a_baseline_tells_what_is_usual():
    baseline = make_baseline([reading(1, delay_s=0.002), reading(2, delay_s=0.004)])
    assert (baseline.since, baseline.until, baseline.subject) == (60.0, 120.0, MACHINE)
    assert (baseline.measures[DELAY].count, baseline.measures[DELAY].mean) == (2, pytest.approx(0.003))
    assert baseline.measures[MIX].mean == pytest.approx(0)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_what_is_as_usual_is_not_called_drift(correlation):
    alarms, readings = 0, 0
    for seed in range(20):
        told = varied(seed, 160, correlation=correlation)
        baseline, row = make_baseline(told[:60]), InARow()
        for end in range(60 + RECENT, 160):
            readings += 1
            alarms += row.enough(MACHINE, bool(drifts(baseline, told[end - RECENT : end])))
    assert (alarms, readings >= 1700) == (0, True)


def test_a_tripled_wait_is_seen_soon_and_less_is_not():
    for seed in range(20):
        baseline, now = make_baseline(varied(seed, 60)), varied(seed + 100, 3 * RECENT, mean_s=0.012)
        row = InARow()
        windows = [now[end - RECENT : end] for end in range(RECENT, len(now) + 1)]
        assert any(row.enough(MACHINE, bool(worse(baseline, window))) for window in windows)
        assert drifts(baseline, varied(seed + 200, RECENT, mean_s=0.001)) == []


def test_other_commands_are_seen_but_are_not_worse():
    baseline = make_baseline(varied(1, 60))
    now = [reading(number, commands={"rustc": 30.0, "ld": 5.0}) for number in range(RECENT)]
    [found] = drifts(baseline, now)
    assert (found.measure, found.now.mean > 0.8) == (MIX, True)
    assert "of its CPU time goes to other commands than usual" in str(found)
    assert worse(baseline, now) == []


def test_pressure_is_seen_and_told():
    baseline = make_baseline(varied(1, 60))
    [found] = drifts(baseline, [reading(number, pressure=0.9) for number in range(RECENT)])
    assert (found.measure, str(found)) == (PRESSURE, "some task waits for a CPU 90% of the time, usually 20%")


def test_nothing_is_said_of_few_intervals():
    baseline = make_baseline(varied(1, 60))
    assert drifts(baseline, [reading(number, delay_s=1.0) for number in range(RECENT - 1)]) == []
    assert drifts(make_baseline(varied(1, RECENT - 1)), [reading(number, delay_s=1.0) for number in range(60)]) == []


def test_waiting_much_is_told_from_waiting():
    baseline = make_baseline(varied(1, 60, mean_s=0.012))
    assert waits_much(baseline, 0.01)
    assert not waits_much(baseline, 0.0125)


def test_three_times_in_a_row():
    row = InARow()
    assert [row.enough("a", found) for found in (True, True, False, True, True, True, True)] == [
        *(False, False, False, False, False, True, True)
    ]
    assert not row.enough("b", True)
