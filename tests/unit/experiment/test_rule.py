"""The rule of an experiment: what it claims under continuous looking, simulated with fixed seeds, and its cases."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from schedagent.core.trials.objective import Direction, Guard, Metric
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Outcome, Sample
from schedagent.core.trials.usage import Usage
from schedagent.experiment.counters import OTHERS_SHARE, OWN_WAITING, PRESSURE
from schedagent.experiment.rule import Terms, harm_of, judge, pairs_of

ARM = "ab12"
LOWER = Terms(lower_is_better=True)
ERRORS = Guard(Metric("errors", "query", Direction.LOWER), 0.1)
GUARDED = Terms(lower_is_better=True, guards=(ERRORS,))
QUIET = {OWN_WAITING: 0.1, OTHERS_SHARE: 0.9, PRESSURE: 0.2}


def window(arm, value, **named):
    values = {**QUIET, **named}
    return Sample(arm, value, 16_000_000_000, 0, 0, "", 0, values=values)


def blocks_of(pairs):
    """A warm-up, then a block of each pair of values or windows."""
    blocks = [Block(0, (window(DEFAULT_ARM, 10.0),))]
    for default, policy in pairs:
        windows = [
            each if isinstance(each, Sample) else window(arm, each)
            for arm, each in ((DEFAULT_ARM, default), (ARM, policy))
        ]
        blocks.append(Block(len(blocks), tuple(windows)))
    return blocks


def noisy(seed, count, ratio=1.0, noise=0.1, draw=None):
    rng = np.random.default_rng(seed)
    logs = (draw or rng.standard_normal)(count) * noise
    return [(10.0, float(10.0 * ratio * math.exp(log))) for log in logs]


def settled(pairs, terms=LOWER):
    """Look after every pair, as an experiment does, and return the first answer."""
    for count in range(1, len(pairs) + 1):
        verdict = judge(blocks_of(pairs[:count]), ARM, terms)
        if verdict.outcome is not Outcome.INCONCLUSIVE:
            return verdict
    return verdict


@pytest.mark.parametrize("shape", ["normal", "heavy tails", "one window in ten doubled"])
def test_no_more_than_alpha_of_useless_policies_are_called_better_however_often_one_looks(shape):
    """Against whoever stops only at "better": nothing else ends the looking here, up to 30 pairs."""
    rng = np.random.default_rng(11)
    draws = {
        "normal": rng.standard_normal,
        "heavy tails": lambda count: rng.standard_t(3, count),
        "one window in ten doubled": lambda count: (
            rng.standard_normal(count) + 7 * (rng.random(count) < 0.1) - 7 * (rng.random(count) < 0.1)
        ),
    }
    trials, wrong = 100, 0
    for _ in range(trials):
        blocks = blocks_of(noisy(0, 30, draw=draws[shape]))
        wrong += any(judge(blocks[:end], ARM, LOWER).outcome is Outcome.BETTER for end in range(7, 32))
    assert wrong <= 0.05 * trials


def test_the_default_in_disguise_has_no_useful_gain_in_19_of_20():
    """With windows that vary by 5 %, and as many pairs as 80 minutes of the usual length hold."""
    outcomes = [settled(noisy(seed, 110, noise=0.05)).outcome for seed in range(40)]
    assert outcomes.count(Outcome.NO_USEFUL_GAIN) >= 38
    assert Outcome.BETTER not in outcomes


def test_a_gain_is_seen_in_the_usual_time():
    """30 minutes hold 42 pairs: a tenth less, with windows that vary by 10 %."""
    verdicts = [settled(noisy(seed, 42, ratio=0.88)) for seed in range(40)]
    assert sum(verdict.outcome is Outcome.BETTER for verdict in verdicts) >= 34
    assert Outcome.WORSE not in [verdict.outcome for verdict in verdicts]
    assert all(verdict.high < 1 for verdict in verdicts if verdict.outcome is Outcome.BETTER)


def test_a_loss_ends_it_before_a_gain_may_be_claimed():
    verdict = settled(noisy(1, 20, ratio=1.5, noise=0.02))
    assert (verdict.outcome, verdict.pairs) == (Outcome.WORSE, 5)
    assert "a loss of at least" in verdict.reason


def test_larger_is_better_the_other_way_round():
    higher = Terms(lower_is_better=False)
    assert settled(noisy(1, 20, ratio=1.3, noise=0.02), higher).outcome is Outcome.BETTER
    assert settled(noisy(1, 20, ratio=0.7, noise=0.02), higher).outcome is Outcome.WORSE


def test_nothing_is_claimed_from_fewer_than_six_pairs():
    verdict = judge(blocks_of(noisy(1, 5, ratio=0.5, noise=0.01)), ARM, LOWER)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "5 pairs of at least 6" in verdict.reason


def guarded(seed, count, change):
    rng = np.random.default_rng(seed)
    usual = rng.standard_normal(count) * 0.02
    return [
        (window(DEFAULT_ARM, 10.0, errors=5.0), window(ARM, 7.0 + each, errors=5.0 * change * math.exp(each)))
        for each in usual
    ]


def test_a_gain_with_a_guard_that_became_worse_is_a_trade_off():
    verdict = settled(guarded(2, 20, 1.3), GUARDED)
    assert verdict.outcome is Outcome.TRADE_OFF
    assert "errors is 1." in verdict.reason


def test_a_guard_that_became_worse_ends_what_gains_nothing():
    pairs = [(default, replace(policy, value=10.0)) for default, policy in guarded(2, 20, 1.3)]
    verdict = settled(pairs, GUARDED)
    assert (verdict.outcome, verdict.pairs) == (Outcome.WORSE, 5)


def test_better_waits_until_every_guard_is_shown_to_hold():
    rng = np.random.default_rng(5)
    pairs = [
        (window(DEFAULT_ARM, 10.0, errors=5.0), window(ARM, 7.0 + each / 50, errors=5.0 * math.exp(0.4 * each)))
        for each in rng.standard_normal(12)
    ]
    verdict = settled(pairs, GUARDED)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "whether errors got worse is not settled" in verdict.reason
    assert settled(guarded(2, 20, 1.0), GUARDED).outcome is Outcome.BETTER


def test_zeros_have_half_of_the_smallest_value():
    none = [(window(DEFAULT_ARM, 10.0, errors=0.0), window(ARM, 7.0, errors=0.0)) for _ in range(8)]
    assert settled(none, GUARDED).outcome is Outcome.BETTER
    some = [(window(DEFAULT_ARM, 10.0, errors=0.0), window(ARM, 7.0, errors=3.0)) for _ in range(8)]
    assert settled(some, GUARDED).outcome is Outcome.TRADE_OFF


@pytest.mark.parametrize(
    ("values", "harm"),
    [
        ({OWN_WAITING: 1.7}, ""),
        ({OWN_WAITING: 2.0}, "its waiting for CPUs was 2; under the default scheduler it was 0.3 at worst"),
        ({OTHERS_SHARE: 0.2}, "everybody else's share of the CPU time they want was 0.2; under the default scheduler"),
        ({PRESSURE: 0.9}, "pressure on the CPUs was 0.9; under the default scheduler it was 0.2 at worst"),
        ({PRESSURE: 0.5, OTHERS_SHARE: 0.4}, ""),
        ({}, ""),
    ],
)
def test_a_window_is_harmful_if_it_is_far_worse_than_the_worst_without_it(values, harm):
    defaults = [QUIET, {**QUIET, OWN_WAITING: 0.3}]
    assert harm in harm_of(values, defaults)
    assert bool(harm) == bool(harm_of(values, defaults))
    assert harm_of(values, []) == "", "nothing is known yet"


def test_one_harmful_pulse_is_enough():
    verdict = judge(blocks_of([(10.0, 31.0)]), ARM, LOWER)
    assert verdict.outcome is Outcome.WORSE
    assert "what is compared was 31; under the default scheduler it was 10 at worst" in verdict.reason
    assert judge(blocks_of([(10.0, 29.0)]), ARM, LOWER).outcome is Outcome.INCONCLUSIVE
    ended = replace(window(ARM, math.nan), usage=Usage(0, 0, failure="ended, for it did harm: its wait"))
    assert judge(blocks_of([(10.0, ended)]), ARM, LOWER).reason == "ended, for it did harm: its wait"


def test_what_the_circuit_breaker_took_away_has_failed():
    ended = replace(window(ARM, math.nan), policy_exit="stall: it hung")
    blocks = blocks_of([(10.0, 7.0), (10.0, ended)])
    verdict = judge(blocks, ARM, LOWER)
    assert verdict.outcome is Outcome.FAILED
    assert "stall: it hung" in verdict.reason
    assert len(pairs_of(blocks, ARM)) == 1


def test_pairs_of_another_policy_do_not_count():
    other = Block(1, (window(DEFAULT_ARM, 10.0), window("cd34", 50.0)))
    assert judge([*blocks_of([]), other], ARM, LOWER).pairs == 0


def test_waiting_of_nearly_nothing_has_no_ratio_worth_a_claim():
    """The kernel's counters: less than a hundredth of a CPU second is added to both sides."""
    pairs = [(0.0004, 0.0001)] * 10
    assert settled(pairs, replace(LOWER, counters=True)).outcome is Outcome.NO_USEFUL_GAIN
    assert settled([(0.4, 0.1)] * 10, replace(LOWER, counters=True)).outcome is Outcome.BETTER
