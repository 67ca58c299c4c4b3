"""Trimmed means, the levels of the looks, and the confidence sequence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from schedagent.core.trials.interval import (
    T_ALLOWANCE,
    computed_levels,
    confidence_sequence,
    levels,
    looks,
    quantile,
    trimmed,
)


def test_without_a_drift_it_is_yuen_s_interval():
    values = [0.3, -0.1, 0.2, -0.4, 0.9, -0.2, 0.1, -0.3, 0.0, 0.5]
    interval = trimmed(values, 0.05)
    cut = stats.mstats.trimmed_mean(values, (0.2, 0.2))
    winsorised = np.asarray(stats.mstats.winsorize(np.array(values), (0.2, 0.2)))
    error = math.sqrt(9 * winsorised.var(ddof=1) / (6 * 5))
    assert interval.mean == pytest.approx(cut)
    assert interval.half_width == pytest.approx(stats.t.ppf(0.975, 5) * error)


def test_neighbours_that_are_alike_widen_it():
    alternating, drifting = [0.1, -0.1] * 5, [-0.1] * 5 + [0.1] * 5
    assert trimmed(drifting, 0.05).half_width > 1.5 * trimmed(alternating, 0.05).half_width


def test_little_is_known_of_little():
    assert math.isnan(trimmed([], 0.05).mean)
    assert trimmed([0.5], 0.05).half_width == math.inf
    assert trimmed([0.5, 0.5], 0.05).half_width == 0


def test_looks():
    assert looks(6, 20) == (6, 8, 10, 12, 14, 16, 18, 20)
    assert looks(6, 9) == (6, 8, 9)
    assert looks(4, 4) == (4,)


def test_levels_are_those_of_the_design():
    found = [level / T_ALLOWANCE for level in levels(looks(6, 20), 0.05)]
    assert found == pytest.approx([0.0045, 0.0057, 0.0080, 0.0110, 0.0146, 0.0193, 0.0240, 0.0296], rel=0.03)


def test_the_usual_levels_are_those_that_are_computed():
    usual = levels(looks(6, 20), 1 - 0.95)
    assert usual == pytest.approx(computed_levels(looks(6, 20), 0.05), rel=1e-9)


@pytest.mark.parametrize("count", [2, 3, 5, 6, 7, 8, 20, 41])
def test_quantiles_are_student_s(count):
    degrees = count - 1 - 2 * (int(0.2 * count) if count >= 8 else 0)
    for level in (0.9, 0.1, 0.05, 0.0041, 1e-6):
        assert quantile(count, level) == pytest.approx(stats.t.isf(level / 2, degrees), rel=1e-8)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3])
def test_all_looks_together_err_as_often_as_they_may(alpha):
    """Normal sums, 200,000 trials: what the levels are made for, without the allowance for Student's t."""
    planned = looks(6, 20)
    sums = np.cumsum(np.random.default_rng(3).standard_normal((200_000, 20)), axis=1)
    erred = np.zeros(len(sums), dtype=bool)
    for count, level in zip(planned, levels(planned, alpha), strict=True):
        erred |= np.abs(sums[:, count - 1]) / math.sqrt(count) > stats.norm.isf(level / T_ALLOWANCE / 2)
    assert erred.mean() == pytest.approx(alpha, rel=0.05)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_the_confidence_sequence_holds_at_all_times(alpha):
    """From the second value on, which an asymptotic one does not."""
    rng = np.random.default_rng(4)
    missed = 0
    for _ in range(400):
        values = list(0.1 + rng.standard_normal(120))
        intervals = [confidence_sequence(values[:count], alpha) for count in range(2, 121)]
        missed += not all(interval.low <= 0.1 <= interval.high for interval in intervals)
    assert 0.2 * alpha <= missed / 400 <= alpha
    assert confidence_sequence(values, 0.05).half_width < 0.4, "and it is of use"


def test_the_confidence_sequence_knows_nothing_of_one_value():
    assert confidence_sequence([1.0], 0.05).half_width == math.inf
    assert math.isnan(confidence_sequence([], 0.05).mean)
