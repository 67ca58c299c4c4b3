"""Two modes: seen where there are two, seldom where there is one with a long tail."""

from __future__ import annotations

import math
import random

import pytest

from schedagent.core.trials.modes import Mode, modes

TRIALS = 500
ONE_MODE = {
    "gauss 10 %": (lambda source: source.gauss(1, 0.1), 0.01),
    "gauss 30 %": (lambda source: max(0.001, source.gauss(1, 0.3)), 0.02),
    "lognormal 0.3": (lambda source: source.lognormvariate(0, 0.3), 0.01),
    "lognormal 0.5": (lambda source: source.lognormvariate(0, 0.5), 0.06),
    "student 3, 10 %": (
        lambda source: math.exp(0.1 * source.gauss(0, 1) / math.sqrt(source.gammavariate(1.5, 2) / 3)),
        0.01,
    ),
    "3 % doubled": (lambda source: source.gauss(1, 0.05) * (2 if source.random() < 0.03 else 1), 0.01),
    "pareto 2": (lambda source: source.paretovariate(2), 0.06),
    "exponential": (lambda source: source.expovariate(1), 0.1),
}


@pytest.mark.parametrize("runs", [6, 8, 12, 20])
@pytest.mark.parametrize("name", ONE_MODE)
def test_one_mode_is_seldom_taken_for_two(name, runs):
    draw, most = ONE_MODE[name]
    source = random.Random(f"{name} {runs}")
    alarms = sum(bool(modes(draw(source) for _run in range(runs))) for _trial in range(TRIALS))
    assert alarms / TRIALS <= most


@pytest.mark.parametrize(("factor", "spread"), [(4, 0.15), (40, 0.3)])
def test_a_slow_mode_in_a_quarter_of_the_runs_is_seen(factor, spread):
    source = random.Random(7)
    trials = [
        modes(source.lognormvariate(0, spread) * (factor if source.random() < 0.25 else 1) for _run in range(20))
        for _trial in range(TRIALS)
    ]
    assert sum(map(bool, trials)) / TRIALS >= 0.9


def test_the_modes_of_a_latency_with_a_slow_one():
    fast, slow = [0.0003, 0.0004, 0.0005, 0.0004, 0.00045, 0.0003], [0.016, 0.045]
    low, high = modes([fast[0], slow[0], *fast[1:], slow[1]])
    assert low == Mode(6, 0.0004, 0.75)
    assert high == Mode(2, pytest.approx(0.0305), 0.25)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1.0],
        [1.0, 1.0, 1.0, 100.0],
        [1.0, 1.1, 1.9, 2.0],
        [0.0, 0.0, 5.0, 5.0],
        [math.nan, 1.0, 5.0],
        [1.0] * 8,
    ],
    ids=str,
)
def test_one_slow_run_a_small_step_and_what_has_no_logarithm_are_no_modes(values):
    assert modes(values) == ()


def test_runs_that_are_all_alike_within_their_mode():
    assert [mode.runs for mode in modes([1.0, 1.0, 4.0, 4.0, 1.0])] == [3, 2]
