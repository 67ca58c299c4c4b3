"""The statistics: outcomes, thresholds, and error rates by simulation with a fixed seed."""

import math

import numpy as np
import pytest

from schedagent.core.errors import UsageError, WorkloadFailed
from schedagent.core.trials.judge import failed, judge, pairs_of, precise_enough
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Outcome, Sample, Verdict

ARM = "candidate"


def pairs_with(mean_log, spread, count):
    """Pairs whose log ratios have exactly this mean and a symmetric spread."""
    signs = [1 if number % 2 else -1 for number in range(count)]
    return [(2.0, 2.0 * math.exp(mean_log + sign * spread)) for sign in signs]


def sequential(rng, ratio, sd, *, maximum_pairs=20, **options):
    """Judge after each new pair, as the execution agent does, until the verdict is precise enough."""
    logs = math.log(ratio) + sd * rng.standard_normal(maximum_pairs)
    pairs = [(1.0, math.exp(value)) for value in logs]
    for count in range(6, maximum_pairs + 1):
        verdict = judge(pairs[:count], **options)
        if precise_enough(verdict):
            break
    return verdict


def outcomes(seed, ratio, sd, trials, **options) -> dict[Outcome, float]:
    rng = np.random.default_rng(seed)
    found = [sequential(rng, ratio, sd, **options).outcome for _ in range(trials)]
    return {outcome: found.count(outcome) / trials for outcome in Outcome}


class TestOutcome:
    def test_clear_gain_is_better_and_the_interval_holds_the_ratio(self):
        verdict = judge(pairs_with(math.log(0.8), 0.02, 6))
        assert verdict.outcome is Outcome.BETTER
        assert verdict.ratio == pytest.approx(0.8)
        assert verdict.low < 0.8 < verdict.high < 1
        assert (verdict.pairs, verdict.confidence) == (6, 0.95)
        assert "20.0% lower" in verdict.reason

    def test_interval_is_the_t_interval_of_the_mean_log_ratio(self):
        from scipy.stats import ttest_1samp

        logs = np.array([-0.11, -0.16, -0.2, -0.13, -0.15, -0.18, -0.14])
        verdict = judge([(3.0, 3.0 * math.exp(value)) for value in logs], comparisons=4)
        expected = ttest_1samp(logs, 0).confidence_interval(1 - 0.05 / 4)
        assert [verdict.low, verdict.high] == pytest.approx([math.exp(expected.low), math.exp(expected.high)])
        assert verdict.confidence == pytest.approx(0.9875)

    def test_direction_follows_the_goal(self):
        pairs = pairs_with(math.log(0.8), 0.02, 6)
        throughput = judge(pairs, lower_is_better=False)
        assert throughput.outcome is Outcome.WORSE
        assert throughput.ratio == pytest.approx(0.8)
        swapped = [(candidate, default) for default, candidate in pairs]
        assert judge(swapped, lower_is_better=False).outcome is Outcome.BETTER
        assert judge(swapped).outcome is Outcome.WORSE

    def test_real_but_tiny_gain_is_no_difference(self):
        verdict = judge(pairs_with(math.log(0.985), 0.004, 12))
        assert verdict.high < 1, "the interval excludes 1, so only the minimum effect keeps this from a claim"
        assert verdict.outcome is Outcome.NO_DIFFERENCE
        assert judge(pairs_with(math.log(0.985), 0.004, 12), minimum_effect=0.01).outcome is Outcome.BETTER

    def test_noise_is_inconclusive_and_says_how_many_pairs_might_decide(self):
        verdict = judge(pairs_with(-0.01, 0.1, 8))
        assert verdict.outcome is Outcome.INCONCLUSIVE
        more = int(verdict.reason.split("about ")[1].split()[0])
        assert judge(pairs_with(-0.01, 0.1, 8 + more)).outcome is Outcome.NO_DIFFERENCE

    def test_identical_values_are_no_difference(self):
        verdict = judge([(1.5, 1.5)] * 6)
        assert (verdict.outcome, verdict.ratio, verdict.low, verdict.high) == (Outcome.NO_DIFFERENCE, 1, 1, 1)
        assert precise_enough(verdict)

    @pytest.mark.parametrize("count", [0, 1, 5])
    def test_too_few_pairs(self, count):
        verdict = judge([(1.0, 0.5)] * count, disturbed=3)
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert f"{6 - count} more" in verdict.reason
        assert (verdict.pairs, verdict.disturbed) == (count, 3)
        assert not precise_enough(verdict)
        assert math.isnan(verdict.ratio) == (count == 0)

    def test_more_candidates_need_more_evidence(self):
        pairs = pairs_with(0.0, 0.024, 6)
        assert judge(pairs).outcome is Outcome.NO_DIFFERENCE
        assert judge(pairs, comparisons=3).outcome is Outcome.INCONCLUSIVE

    @pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
    def test_value_without_ratio(self, value):
        with pytest.raises(UsageError, match=r"pair 2: the candidate's value is"):
            judge([(1.0, 1.0), (1.0, value)])
        with pytest.raises(UsageError, match=r"pair 1: the default's value is"):
            judge([(value, 1.0)])

    @pytest.mark.parametrize(
        "options", [{"comparisons": 0}, {"confidence": 1.0}, {"minimum_effect": 0.0}, {"minimum_pairs": 1}]
    )
    def test_senseless_threshold(self, options):
        with pytest.raises(UsageError, match=next(iter(options))):
            judge([(1.0, 1.0)] * 6, **options)

    def test_failed(self):
        verdict = failed(["block 1: it ended with exit status 2", "block 2: it ran into its time limit"], pairs=4)
        assert verdict.outcome is Outcome.FAILED
        assert "exit status 2 (and 1 more runs)" in verdict.reason
        assert precise_enough(verdict)

    def test_precise_enough_for_a_smaller_effect(self):
        verdict = judge(pairs_with(0.0, 0.02, 8))
        assert precise_enough(verdict, 0.03)
        assert not precise_enough(verdict, 0.01)


class TestErrorRates:
    """Rates with a look after each pair from 6 to 20; the bounds leave room for the simulation's own error."""

    @pytest.mark.parametrize("sd", [0.01, 0.02, 0.03, 0.04])
    def test_no_true_effect_is_no_difference_19_times_of_20(self, sd):
        rates = outcomes(11, 1.0, sd, 500)
        assert rates[Outcome.NO_DIFFERENCE] >= 0.95
        assert rates[Outcome.BETTER] <= 0.03

    def test_noisier_machine_makes_no_more_than_few_false_claims(self):
        rates = outcomes(12, 1.0, 0.08, 300, maximum_pairs=40)
        assert rates[Outcome.BETTER] + rates[Outcome.WORSE] <= 0.08

    @pytest.mark.parametrize("sd", [0.04, 0.08])
    def test_ratio_085_is_found(self, sd):
        assert outcomes(13, 0.85, sd, 200)[Outcome.BETTER] >= 0.98

    def test_slower_candidate_is_never_better(self):
        assert outcomes(14, 1.03, 0.04, 300)[Outcome.BETTER] == 0

    def test_interval_covers_the_true_ratio(self):
        rng = np.random.default_rng(15)
        verdicts = [sequential(rng, 0.9, 0.03) for _ in range(400)]
        assert np.mean([verdict.low <= 0.9 <= verdict.high for verdict in verdicts]) >= 0.92


def run_of(arm, value, **fields):
    settings = {"exit_status": 0, "calibration_ns": 1000} | fields
    return Sample(arm=arm, value=value, wall_ns=1, cpu_ns=1, started_at="2026-08-01T00:00:00Z", **settings)


def block_of(number, default, candidate, **fields):
    return Block(number, (run_of(ARM, candidate, **fields), run_of(DEFAULT_ARM, default)))


class TestPairs:
    def test_warm_up_and_other_arms_are_left_out(self):
        blocks = [block_of(0, 9, 9), block_of(1, 2, 1), Block(2, (run_of(DEFAULT_ARM, 2),)), block_of(3, 4, 3)]
        assert pairs_of(blocks, ARM) == (((2, 1), (4, 3)), 0, ())

    def test_disturbed_pair_is_counted_not_compared(self):
        blocks = [block_of(number, 2, 1) for number in range(5)] + [block_of(5, 2, 1, calibration_ns=1501)]
        assert pairs_of(blocks, ARM)[:2] == (((2, 1),) * 4, 1)
        assert pairs_of(blocks, ARM, calibration_tolerance=0.6).disturbed == 0

    def test_disturbance_of_another_candidate_leaves_this_pair(self):
        other = run_of("other", 2, calibration_ns=9000)
        blocks = [block_of(number, 2, 1) for number in range(3)] + [Block(3, (*block_of(3, 2, 1).samples, other))]
        assert pairs_of(blocks, ARM).disturbed == 0

    def test_failures_of_the_candidate_are_told_even_in_the_warm_up(self):
        blocks = [block_of(0, 2, 1, policy_exit="stall"), block_of(1, 2, 1), block_of(2, 2, 1, exit_status=None)]
        found = pairs_of(blocks, ARM)
        assert found.pairs == ((2, 1),)
        assert found.failures == (
            "block 0: the kernel ejected the policy: stall",
            "block 2: it ran into its time limit",
        )

    def test_runs_that_failed_do_not_shift_the_usual_calibration(self):
        dead = [run_of(f"dead{number}", 0, policy_exit="stall", calibration_ns=0) for number in range(3)]
        blocks = [Block(number, (*block_of(number, 2, 1).samples, *dead)) for number in range(4)]
        assert pairs_of(blocks, ARM) == (((2, 1),) * 3, 0, ())

    def test_failing_default_raises(self):
        block = Block(1, (run_of(ARM, 1), run_of(DEFAULT_ARM, 1, exit_status=2)))
        with pytest.raises(WorkloadFailed, match=r"block 1.*exit status 2"):
            pairs_of([block], ARM)

    def test_nothing_measured(self):
        assert pairs_of([], ARM) == ((), 0, ())


def test_verdict_type_is_the_shared_one():
    assert isinstance(judge([(1.0, 1.0)] * 6), Verdict)
