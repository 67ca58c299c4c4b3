"""The verdict: outcomes, guards, what counts as a pair, and error rates by simulation with a fixed seed.

`make bench-verdict` repeats the rates with more trials, and under more shapes of noise.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from schedagent.core.errors import UsageError, WorkloadFailed
from schedagent.core.trials.guards import GuardPairs, Pair, guard_pairs
from schedagent.core.trials.hardware_gain import HardwareRatio
from schedagent.core.trials.judge import Terms, TrialRules, decided, failed, judge, judge_arm, more_pairs, pairs_of
from schedagent.core.trials.objective import Direction, Guard, Metric
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Outcome, Sample
from schedagent.core.trials.usage import CommandUsage, MachineCosts, Usage
from schedagent.core.trials.workload import Goal, WorkloadCommand

ARM = "abc123"
RULES = TrialRules()


def pairs_with(mean_log, spread, count):
    """Pairs whose log ratios have exactly this mean, and a symmetric spread without a drift."""
    signs = [(1, -1, -1, 1)[number % 4] for number in range(count)]
    return [(2.0, 2.0 * math.exp(mean_log + sign * spread)) for sign in signs]


def sequential(rng, ratio, sd, **options):
    """Judge at each look, as the execution agent does, until something is shown."""
    logs = math.log(ratio) + sd * rng.standard_normal(RULES.maximum_pairs)
    pairs = [(1.0, math.exp(value)) for value in logs]
    for count in range(RULES.minimum_pairs, RULES.maximum_pairs + 1):
        verdict = judge(pairs[:count], **options)
        if decided(verdict):
            break
    return verdict


def outcomes(seed, ratio, sd, trials, **options) -> dict[Outcome, float]:
    rng = np.random.default_rng(seed)
    found = [sequential(rng, ratio, sd, **options).outcome for _ in range(trials)]
    return {outcome: found.count(outcome) / trials for outcome in Outcome}


class TestOutcome:
    def test_clear_gain_is_better_and_says_how_much_it_is_at_least(self):
        verdict = judge(pairs_with(math.log(0.8), 0.01, 6))
        assert verdict.outcome is Outcome.BETTER
        assert verdict.ratio == pytest.approx(0.8)
        assert verdict.low < 0.8 < verdict.high < 1
        assert (verdict.pairs, verdict.confidence) == (6, 0.95)
        assert f"at least {1 - verdict.high:.1%}, probably 20.0%" in verdict.reason

    def test_direction_follows_the_goal(self):
        pairs = pairs_with(math.log(0.8), 0.01, 6)
        assert judge(pairs, lower_is_better=False).outcome is Outcome.WORSE
        swapped = judge([(candidate, default) for default, candidate in pairs], lower_is_better=False)
        assert swapped.outcome is Outcome.BETTER
        assert "probably 25.0%" in swapped.reason, "0.8 the other way round is a quarter more"

    def test_real_but_tiny_gain_is_no_difference(self):
        verdict = judge(pairs_with(math.log(0.985), 0.004, 12))
        assert verdict.high < 1, "the interval excludes 1, so only the minimum effect keeps this from a claim"
        assert verdict.outcome is Outcome.NO_DIFFERENCE
        finer = judge(pairs_with(math.log(0.985), 0.002, 12), TrialRules(minimum_effect=0.01))
        assert finer.outcome is Outcome.BETTER

    def test_an_excluded_gain_is_no_useful_one_though_it_may_be_a_loss(self):
        verdict = judge(pairs_with(math.log(1.05), 0.045, 12))
        assert verdict.low < 1 < 1.06 < verdict.high
        assert verdict.outcome is Outcome.NO_USEFUL_GAIN
        assert "a gain of 3% is excluded" in verdict.reason

    def test_noise_is_inconclusive_and_says_what_is_known(self):
        verdict = judge(pairs_with(-0.01, 0.2, 8))
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "vary too much to say: between" in verdict.reason
        assert more_pairs(verdict, RULES) is None, "no advice such as 3018 more pairs"

    def test_a_probable_gain_is_said_as_such(self):
        verdict = judge(pairs_with(math.log(0.85), 0.15, 8))
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "probably a gain of 15.0%, but not shown" in verdict.reason

    def test_what_would_decide_a_probable_gain_does(self):
        pairs = pairs_with(math.log(0.88), 0.07, 20)
        verdict = judge(pairs[:6])
        assert verdict.outcome is Outcome.INCONCLUSIVE
        more = more_pairs(verdict, RULES)
        assert more is not None
        assert 2 <= more <= 6
        assert judge(pairs[:12]).outcome is Outcome.BETTER

    def test_identical_values_are_no_difference(self):
        verdict = judge([(1.5, 1.5)] * 6)
        assert (verdict.outcome, verdict.ratio, verdict.low, verdict.high) == (Outcome.NO_DIFFERENCE, 1, 1, 1)

    @pytest.mark.parametrize("count", [0, 1, 5])
    def test_too_few_pairs(self, count):
        verdict = judge([(1.0, 0.5)] * count, disturbed=3)
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert f"{count} pairs of at least 6" in verdict.reason
        assert (verdict.pairs, verdict.disturbed) == (count, 3)
        assert math.isnan(verdict.ratio) == (count == 0)

    def test_between_two_looks_the_last_one_counts(self):
        pairs = pairs_with(math.log(0.8), 0.01, 6)
        assert judge([*pairs, (1.0, 50.0)]) == judge(pairs)
        assert judge([*pairs, (1.0, 50.0), (1.0, 50.0)]) != judge(pairs)

    def test_the_largest_trial_ends_with_a_look(self):
        odd = TrialRules(maximum_pairs=9)
        assert judge(pairs_with(0.0, 0.5, 9), odd).pairs == 9

    def test_more_claims_need_more_evidence(self):
        pairs = pairs_with(math.log(0.9), 0.033, 6)
        assert judge(pairs).outcome is Outcome.BETTER
        assert judge(pairs, comparisons=6).outcome is Outcome.INCONCLUSIVE
        assert judge(pairs, comparisons=4).confidence == pytest.approx(0.9875)

    def test_one_wild_pair_decides_nothing(self):
        """The mean of the logs would be -0.09, and its interval reach from 0.6 to 1.3."""
        pairs = pairs_with(math.log(0.8), 0.01, 8)
        assert judge([*pairs[:7], (1.0, 1.9)]).outcome is Outcome.BETTER

    @pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
    def test_value_without_ratio(self, value):
        with pytest.raises(UsageError, match=r"pair 2: the candidate's value is"):
            judge([(1.0, 1.0), (1.0, value)])
        with pytest.raises(UsageError, match=r"pair 1: the default's value is"):
            judge([(value, 1.0)])

    @pytest.mark.parametrize(
        "rules",
        [{"confidence": 1.0}, {"minimum_effect": 0.0}, {"minimum_pairs": 1}, {"minimum_pairs": 9, "maximum_pairs": 8}],
    )
    def test_senseless_threshold(self, rules):
        with pytest.raises(UsageError, match=next(iter(rules))):
            judge([(1.0, 1.0)] * 6, TrialRules(**rules))
        with pytest.raises(UsageError, match="comparisons"):
            judge([(1.0, 1.0)] * 6, comparisons=0)

    def test_failed(self):
        verdict = failed(["block 1: it ended with exit status 2", "block 2: it ran into its time limit"], pairs=4)
        assert verdict.outcome is Outcome.FAILED
        assert "exit status 2 (and 1 more runs)" in verdict.reason
        assert decided(verdict)


GAIN = pairs_with(math.log(0.8), 0.01, 12)


def guard(logs, *, lower=True, margin=0.05):
    return GuardPairs("requests/s", tuple(logs), lower, margin)


class TestGuards:
    def test_a_gain_whose_guards_hold_is_better(self):
        verdict = judge(GAIN, guards=[guard([0.001, -0.001] * 6)])
        assert verdict.outcome is Outcome.BETTER
        assert [(one.name, one.held) for one in verdict.guards] == [("requests/s", True), ("worst run", True)]

    def test_a_gain_that_halves_the_throughput_is_a_trade_off(self):
        """What was called "90.4 % better" on real schbench."""
        verdict = judge(GAIN, guards=[guard([-0.6, -0.62] * 6, lower=False)])
        assert verdict.outcome is Outcome.TRADE_OFF
        assert decided(verdict)
        assert "a gain of at least" in verdict.reason
        assert "requests/s is 0.543 times the default's (allowed: 5% worse)" in verdict.reason

    @pytest.mark.parametrize("lower", [True, False])
    def test_a_guard_that_got_better_holds(self, lower):
        logs = [-0.6, -0.62] * 6 if lower else [0.6, 0.62] * 6
        assert judge(GAIN, guards=[guard(logs, lower=lower)]).outcome is Outcome.BETTER

    def test_a_guard_that_is_not_settled_keeps_a_claim_back(self):
        verdict = judge(GAIN, guards=[guard([0.4, -0.4] * 6)])
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "whether requests/s got worse is not settled" in verdict.reason

    def test_a_guard_with_a_value_missing_does_not_hold(self):
        assert judge(GAIN, guards=[guard([0.0] * 11 + [math.nan])]).outcome is Outcome.INCONCLUSIVE

    def test_a_worse_guard_makes_no_trade_off_of_what_gains_nothing(self):
        assert judge([(1.0, 1.0)] * 12, guards=[guard([0.6] * 12)]).outcome is Outcome.NO_DIFFERENCE

    def test_one_run_that_takes_more_than_twice_the_worst_default_is_told(self):
        """The slow mode of interactive: a p99 of 45 ms where no default run passed 5.2."""
        pairs = [*GAIN[:11], (2.0, 9.0)]
        verdict = judge(pairs)
        assert verdict.outcome is Outcome.TRADE_OFF
        assert "the worst run is 4.50 times the default's" in verdict.reason
        assert judge([(1 / default, 1 / candidate) for default, candidate in pairs], lower_is_better=False).outcome is (
            Outcome.TRADE_OFF
        )

    def test_the_guards_of_a_workload(self):
        metric = Metric("requests/s", "r: ([0-9]+)", Direction.HIGHER)
        workload = WorkloadCommand("s", "/", Goal.LATENCY, metric="(x)", guards=(Guard(metric, 0.1),))
        pair = Pair(run_of(DEFAULT_ARM, 1.0, used=(60, 40, 0)), run_of(ARM, 0.5, used=(80, 20, 0)))
        named = {one.name: one for one in guard_pairs(workload, [pair])}
        assert list(named) == ["requests/s", "wall time", "CPU share of hog", "CPU share of work"]
        assert named["requests/s"].logs == pytest.approx([math.log(2)])
        assert named["CPU share of hog"].logs == pytest.approx([math.log(0.5)])
        assert named["CPU share of work"].logs == pytest.approx([math.log(80 / 60)])

    def test_wall_time_as_the_objective_needs_no_guard_of_itself(self):
        pair = Pair(run_of(DEFAULT_ARM, 1.0, used=(60, 40, 0)), run_of(ARM, 0.5, used=(80, 20, 0)))
        assert guard_pairs(WorkloadCommand("make", "/"), [pair]) == []


class TestHardware:
    """In an emulated machine the outcome rests on what carries over."""

    def test_a_gain_that_does_not_carry_over_is_none(self):
        verdict = judge(GAIN, hardware=[HardwareRatio(1.0 + 0.002 * (n % 2), 1.0, 0.8) for n in range(12)])
        assert verdict.ratio == pytest.approx(0.8)
        assert verdict.outcome is Outcome.NO_DIFFERENCE
        assert verdict.expected is not None
        assert (verdict.expected.utilisation, verdict.expected.raw) == pytest.approx((1.0, 0.8))

    def test_a_claim_is_made_on_what_carries_over(self):
        verdict = judge(GAIN, hardware=[HardwareRatio(0.9 + 0.002 * (n % 2), 0.91, 0.8) for n in range(12)])
        assert verdict.outcome is Outcome.BETTER
        assert verdict.expected is not None
        assert f"at least {1 - verdict.expected.high:.1%}" in verdict.reason

    def test_it_needs_costs_and_usage(self):
        found = replace(pairs_of([block_of(n, 2.0, 1.6) for n in range(7)], ARM))
        terms = Terms(WorkloadCommand("make", "/"), RULES, cpus=2, costs=MachineCosts(10.0, 30_000.0, 1500.0))
        assert judge_arm(found, terms).expected is None, "samples of older versions have no usage"
        used = replace(found, pairs=tuple(Pair(with_usage(d), with_usage(c)) for d, c in found.pairs))
        assert judge_arm(used, terms).expected is not None
        assert judge_arm(used, replace(terms, costs=None)).expected is None
        throughput = replace(terms, workload=WorkloadCommand("x", "/", Goal.THROUGHPUT, metric="(x)"))
        assert judge_arm(used, throughput).expected is None


class TestErrorRates:
    """Rates with looks after 6, 8, ... 20 pairs; the bounds leave room for the simulation's own error."""

    @pytest.mark.parametrize("sd", [0.02, 0.06, 0.12])
    def test_few_false_claims(self, sd):
        rates = outcomes(11, 1.0, sd, 400)
        assert rates[Outcome.BETTER] + rates[Outcome.WORSE] <= 0.05

    @pytest.mark.parametrize("sd", [0.01, 0.02, 0.03])
    def test_no_true_effect_ends_as_none(self, sd):
        rates = outcomes(12, 1.0, sd, 200)
        assert rates[Outcome.NO_DIFFERENCE] + rates[Outcome.NO_USEFUL_GAIN] >= 0.9

    @pytest.mark.parametrize(("ratio", "sd"), [(0.95, 0.04), (0.90, 0.10), (0.85, 0.10)])
    def test_a_true_gain_is_found(self, ratio, sd):
        assert outcomes(13, ratio, sd, 200)[Outcome.BETTER] >= 0.8

    def test_slower_candidate_is_never_better(self):
        assert outcomes(14, 1.03, 0.04, 200)[Outcome.BETTER] == 0

    def test_interval_covers_the_true_ratio(self):
        rng = np.random.default_rng(15)
        verdicts = [sequential(rng, 0.9, 0.05) for _ in range(300)]
        assert np.mean([verdict.low <= 0.9 <= verdict.high for verdict in verdicts]) >= 0.94


def run_of(arm, value, *, used=(), **fields):
    settings = {"exit_status": 0, "calibration_ns": 1000} | fields
    names = ("work", "hog", "rare")
    commands = tuple(CommandUsage(name, 1, cpu_ns, 0, 0, 0) for name, cpu_ns in zip(names, used, strict=False))
    return Sample(
        arm=arm, value=value, wall_ns=10**9, cpu_ns=10**9, started_at="2026-08-01T00:00:00Z",
        values={"requests/s": 1 / value}, usage=Usage(0, 0, commands) if used else None, **settings,
    )  # fmt: skip


def with_usage(sample):
    return replace(sample, usage=Usage(100, 100))


def block_of(number, default, candidate, **fields):
    return Block(number, (run_of(ARM, candidate, **fields), run_of(DEFAULT_ARM, default)))


class TestPairs:
    def test_warm_up_and_other_arms_are_left_out(self):
        blocks = [block_of(0, 9, 9), block_of(1, 2, 1), Block(2, (run_of(DEFAULT_ARM, 2),)), block_of(3, 4, 3)]
        found = pairs_of(blocks, ARM)
        assert (found.values, found.disturbed, found.failures) == (((2, 1), (4, 3)), 0, ())

    def test_disturbed_pair_is_counted_not_compared(self):
        blocks = [block_of(number, 2, 1) for number in range(5)] + [block_of(5, 2, 1, calibration_ns=1501)]
        found = pairs_of(blocks, ARM)
        assert (found.values, found.disturbed) == (((2, 1),) * 4, 1)
        assert pairs_of(blocks, ARM, calibration_tolerance=0.6).disturbed == 0

    def test_disturbance_of_another_candidate_leaves_this_pair(self):
        other = run_of("other", 2, calibration_ns=9000)
        blocks = [block_of(number, 2, 1) for number in range(3)] + [Block(3, (*block_of(3, 2, 1).samples, other))]
        assert pairs_of(blocks, ARM).disturbed == 0

    def test_a_run_that_failed_costs_its_block_and_no_more(self):
        """Real schbench ended once in sixteen runs with status 1, and seven finished pairs became no verdict."""
        blocks = [block_of(number, 2.0, 1.6) for number in range(14)]
        blocks[3] = block_of(3, 2.0, 1.6, exit_status=1)
        blocks[5] = Block(5, (run_of(ARM, 1.6), run_of(DEFAULT_ARM, 2.0, exit_status=1)))
        found = pairs_of(blocks, ARM)
        assert (len(found.pairs), len(found.failures), len(found.default_failures)) == (11, 1, 1)
        verdict = judge_arm(found, Terms(WorkloadCommand("make", "/"), RULES))
        assert verdict.outcome is Outcome.BETTER
        assert "1 of its 14 runs failed, 1 of the default's" in verdict.reason

    def test_a_candidate_that_fails_more_often_makes_no_claim(self):
        blocks = [block_of(number, 2.0, 1.6) for number in range(14)]
        for number in (3, 5):
            blocks[number] = block_of(number, 2.0, 1.6, exit_status=1)
        verdict = judge_arm(pairs_of(blocks, ARM), Terms(WorkloadCommand("make", "/"), RULES))
        assert verdict.outcome is Outcome.TRADE_OFF
        assert "2 of its 14 runs failed, 0 of the default's: block 3: it ended with exit status 1" in verdict.reason

    def test_a_candidate_whose_failures_are_the_rule_has_failed(self):
        blocks = [block_of(0, 2, 1, exit_status=1), block_of(1, 2, 1, exit_status=None)]
        assert pairs_of(blocks, ARM).failing
        assert not pairs_of(blocks[:1], ARM).failing

    def test_one_ejection_is_enough(self):
        blocks = [block_of(0, 2, 1), block_of(1, 2, 1), block_of(2, 2, 1, policy_exit="stall"), block_of(3, 2, 1)]
        found = pairs_of(blocks, ARM)
        assert found.failing
        assert judge_arm(found, Terms(WorkloadCommand("make", "/"), RULES)).outcome is Outcome.FAILED

    def test_runs_that_failed_do_not_shift_the_usual_calibration(self):
        dead = [run_of(f"dead{number}", 1, policy_exit="stall", calibration_ns=0) for number in range(3)]
        blocks = [Block(number, (*block_of(number, 2, 1).samples, *dead)) for number in range(4)]
        found = pairs_of(blocks, ARM)
        assert (found.values, found.disturbed) == (((2, 1),) * 3, 0)

    def test_a_default_that_fails_as_a_rule_raises(self):
        blocks = [Block(number, (run_of(ARM, 1), run_of(DEFAULT_ARM, 1, exit_status=2))) for number in range(2)]
        assert pairs_of(blocks[:1], ARM).default_failures
        with pytest.raises(WorkloadFailed, match=r"2 of 2 runs under the default scheduler failed.*exit status 2"):
            pairs_of(blocks, ARM)

    def test_nothing_measured(self):
        assert pairs_of([], ARM).values == ()
