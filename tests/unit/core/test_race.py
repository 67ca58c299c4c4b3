"""Several candidates: who runs on, who is measured again, and what may be claimed of whom."""

from __future__ import annotations

import random

import numpy as np
import pytest

from schedagent.core.trials.judge import Terms, TrialRules
from schedagent.core.trials.race import RACE_BLOCKS, judge_all, own_blocks, race, shared_blocks, wanted
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Outcome, Sample
from schedagent.core.trials.workload import Goal, WorkloadCommand

TERMS = Terms(WorkloadCommand("make", "/"), TrialRules())
A, B, C = "a1", "b2", "c3"


def run(arm, value, **fields):
    return Sample(arm, value, 10**9, 10**9, fields.pop("exit_status", 0), "2026-01-01", 1000, **fields)


class Machine:
    """Measures blocks whose arms have these ratios, with noise."""

    def __init__(self, ratios, sd=0.02, seed=1, *, faults=()):
        self.ratios, self.sd, self.random, self.blocks = ratios, sd, random.Random(seed), []
        self.faults = set(faults)

    def block(self, arms):
        number = len(self.blocks)
        samples = [run(DEFAULT_ARM, self.noise())]
        for arm in arms:
            fault = {"exit_status": 1} if (arm, number) in self.faults or arm in self.faults else {}
            samples.append(run(arm, self.ratios[arm] * self.noise(), **fault))
        self.blocks.append(Block(number, tuple(samples)))

    def noise(self):
        return float(np.exp(self.sd * self.random.gauss(0, 1)))

    def trial(self, arms, terms=TERMS):
        while now := wanted(self.blocks, arms, terms):
            assert len(self.blocks) < 60
            self.block(now)
        return self.blocks


def test_one_candidate_needs_no_race():
    machine = Machine({A: 0.8})
    machine.trial([A])
    assert shared_blocks(machine.blocks, [A]) == []
    verdict = judge_all(machine.blocks, [A], TERMS)[A]
    assert (verdict.outcome, verdict.pairs, len(machine.blocks)) == (Outcome.BETTER, 6, 7)


def test_the_leader_is_measured_again_alone_and_claimed_on_that_alone():
    machine = Machine({A: 0.95, B: 0.75, C: 1.0})
    machine.trial([A, B, C])
    own, shared = own_blocks(machine.blocks, B), shared_blocks(machine.blocks, [A, B, C])
    assert len(own) >= 6
    assert 2 <= len(shared) <= RACE_BLOCKS
    verdicts = judge_all(machine.blocks, [A, B, C], TERMS)
    assert verdicts[B].outcome is Outcome.BETTER
    assert verdicts[B].pairs == len(own)
    assert {verdicts[A].outcome, verdicts[C].outcome} <= {Outcome.INCONCLUSIVE, Outcome.NO_USEFUL_GAIN}
    lucky = [with_luck(block, B) if block in shared else block for block in machine.blocks]
    assert judge_all(lucky, [B], TERMS)[B] == verdicts[B], "the race is no part of the claim"


def with_luck(block, arm):
    """The same block, in which `arm` took a tenth of the time."""
    return Block(block.number, tuple(run(arm, 0.1) if sample.arm == arm else sample for sample in block.samples))


def test_who_is_behind_runs_no_longer():
    machine = Machine({A: 1.0, B: 0.7, C: 1.0}, sd=0.01)
    machine.trial([A, B, C])
    assert len(shared_blocks(machine.blocks, [A, B, C])) <= 3
    assert "behind another in the race" in judge_all(machine.blocks, [A, C], TERMS)[A].reason


def test_a_race_in_which_nobody_gains_ends_early_and_says_so():
    machine = Machine({A: 1.1, B: 1.1, C: 1.1}, sd=0.01)
    machine.trial([A, B, C])
    assert len(machine.blocks) <= 1 + RACE_BLOCKS + 6
    verdicts = judge_all(machine.blocks, [A, B, C], TERMS)
    assert Outcome.BETTER not in {verdict.outcome for verdict in verdicts.values()}
    excluded = [verdict for verdict in verdicts.values() if verdict.outcome is Outcome.NO_USEFUL_GAIN]
    assert any("a gain of 3% is excluded in the race" in verdict.reason for verdict in excluded)


def test_a_race_of_equals_has_an_end():
    machine = Machine({A: 0.9, B: 0.9, C: 0.9}, sd=0.05)
    machine.trial([A, B, C])
    assert len(shared_blocks(machine.blocks, [A, B, C])) == RACE_BLOCKS


def test_a_race_that_time_ended_claims_nothing():
    machine = Machine({A: 0.7, B: 1.0})
    for _ in range(4):
        machine.block([A, B])
    verdicts = judge_all(machine.blocks, [A, B], TERMS)
    assert verdicts[A].outcome is Outcome.INCONCLUSIVE
    assert "its own blocks, which alone can make a claim, were not measured" in verdicts[A].reason


def test_who_fails_is_out_and_the_next_best_is_measured():
    machine = Machine({A: 0.5, B: 0.8, C: 0.97}, faults={(A, number) for number in range(5, 40)})
    machine.sd = 0.1
    machine.trial([A, B, C])
    verdicts = judge_all(machine.blocks, [A, B, C], TERMS)
    assert verdicts[A].outcome is not Outcome.BETTER


def test_one_that_fails_from_the_beginning_leaves_the_others():
    machine = Machine({A: 0.8, B: 0.9}, faults={A})
    machine.trial([A, B])
    verdicts = judge_all(machine.blocks, [A, B], TERMS)
    assert verdicts[A].outcome is Outcome.FAILED
    assert verdicts[B].outcome is Outcome.BETTER
    assert sum(block.sample(A) is not None for block in machine.blocks) == 2


@pytest.mark.parametrize("cut", range(12))
def test_a_trial_that_was_cut_goes_on_as_if_it_had_not_been(cut):
    machine = Machine({A: 0.9, B: 0.8, C: 1.0}, seed=cut)
    machine.trial([A, B, C])
    for count in range(1, len(machine.blocks)):
        expected = {sample.arm for sample in machine.blocks[count].samples} - {DEFAULT_ARM}
        assert set(wanted(machine.blocks[:count], [A, B, C], TERMS)) == expected


def test_throughput_races_the_other_way():
    terms = Terms(WorkloadCommand("x", "/", Goal.THROUGHPUT, metric="(x)"), TrialRules())
    machine = Machine({A: 0.8, B: 1.2})
    machine.trial([A, B], terms)
    assert race(machine.blocks, [A, B], terms).leader == B


def test_all_pairs_are_used_up():
    machine = Machine({A: 0.97}, sd=0.3)
    machine.trial([A])
    assert len(machine.blocks) == 1 + TERMS.rules.maximum_pairs


def test_the_winner_is_not_too_good():
    """Winner's curse: three equal gains of 5 %; the claimed estimate is right on average."""
    claimed = []
    for seed in range(80):
        machine = Machine({A: 0.95, B: 0.95, C: 0.95}, sd=0.04, seed=seed)
        machine.trial([A, B, C])
        verdicts = judge_all(machine.blocks, [A, B, C], TERMS)
        claimed += [verdict.ratio for arm, verdict in verdicts.items() if own_blocks(machine.blocks, arm)]
    assert len(claimed) >= 70
    assert np.mean(claimed) == pytest.approx(0.95, abs=0.008)
