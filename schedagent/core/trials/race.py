"""Several candidates: a race finds the leader, and fresh blocks of its own decide about it. Pure.

In the race all candidates run beside the default in shared blocks, at most six. Who is certainly behind the leader, or
certainly gains too little, runs no longer. These decisions cost power if they err, and never a claim: the estimate of a
leader is too good (it was chosen for it), so a claim rests on blocks in which the leader ran alone against the default
scheduler, after the race. A single candidate needs no race: all its blocks are its own.

Where a trial stands follows from its blocks alone, so a run that was cut short goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from schedagent.core.trials.arm import is_candidate
from schedagent.core.trials.guards import Pair, figures, log_ratio
from schedagent.core.trials.interval import trimmed
from schedagent.core.trials.judge import (
    ArmPairs,
    Terms,
    decided,
    expected_of,
    failed,
    hardware_ratios,
    judge_arm,
    pairs_of,
)
from schedagent.core.trials.trial import Block, Outcome, Verdict

RACE_BLOCKS = 6
"""Most shared blocks."""

_BEHIND = (2, 0.90)
"""Fewest shared blocks, and the one-sided confidence, with which a candidate is behind the leader."""
_HOPELESS = (3, 0.975)
"""The same with which it gains less than the minimum effect."""

SPARE = 0.5
"""A candidate may have so many more blocks than pairs, because some are disturbed or fail."""


@dataclass(frozen=True)
class Race:
    """Where a race stands.

    Args:
        alive: the candidates that run on, the best first.
        shared: shared blocks so far, the warm-up left out.
        over: whether what follows is the leader's own blocks, or nothing.
    """

    alive: tuple[str, ...]
    shared: int
    over: bool

    @property
    def leader(self) -> str | None:
        """Who has won; None if nobody did, or the race goes on."""
        return self.alive[0] if self.over and self.alive else None


def candidates_of(block: Block) -> frozenset[str]:
    """Return the keys of the candidates that ran in a block: neither the default nor a knob."""
    return frozenset(sample.arm for sample in block.samples if is_candidate(sample.arm))


def own_blocks(blocks: Sequence[Block], arm: str) -> list[Block]:
    """Return the blocks in which `arm` was the only candidate, after the warm-up."""
    return [block for block in blocks if block.number and candidates_of(block) == {arm}]


def shared_blocks(blocks: Sequence[Block], arms: Sequence[str]) -> list[Block]:
    """Return the blocks in which one of `arms` ran beside other candidates, after the warm-up."""
    return [
        block
        for block in blocks
        if block.number and len(candidates_of(block)) > 1 and not candidates_of(block).isdisjoint(arms)
    ]


def race(blocks: Sequence[Block], arms: Sequence[str], terms: Terms) -> Race:
    """Return where the race of `arms` stands.

    Args:
        blocks: all blocks of the trial.
        arms: keys of the candidates of one round, in the order of the plan.
        terms: what verdicts go by.
    """
    if len(arms) < 2:
        return Race(tuple(arms), 0, True)
    shared = shared_blocks(blocks, arms)
    running = [arm for arm in arms if not shared or shared[-1].sample(arm)]
    measured = {arm: pairs_of(blocks, arm) for arm in running}
    running = [arm for arm in running if not measured[arm].failing]
    confirming = [arm for arm in running if own_blocks(blocks, arm)]
    if confirming:
        return Race((confirming[-1],), len(shared), True)
    standing = {arm: _scores(shared, measured[arm], terms) for arm in running}
    ranked = sorted(running, key=lambda arm: _mean(list(standing[arm].values())))
    alive = tuple(arm for arm in ranked if not _dropped(standing[arm], standing[ranked[0]], terms))
    return Race(alive, len(shared), bool(shared) and (len(alive) < 2 or len(shared) >= RACE_BLOCKS))


def _scores(shared: Sequence[Block], measured: ArmPairs, terms: Terms) -> dict[int, float]:
    """Return by the number of each shared block what a candidate gained there, on the log scale; less is better."""
    number_of = {id(sample): block.number for block in shared for sample in block.samples}
    return {
        number_of[id(pair.candidate)]: _score(pair, terms) for pair in measured.pairs if id(pair.candidate) in number_of
    }


def _score(pair: Pair, terms: Terms) -> float:
    ratios = hardware_ratios([pair], terms)
    value = math.log(ratios[0].ratio) if ratios else log_ratio(pair.default.value, pair.candidate.value)
    return value if terms.workload.goal.lower_is_better else -value


def _dropped(scores: Mapping[int, float], best: Mapping[int, float], terms: Terms) -> bool:
    """Whether a candidate is certainly behind the best one, or certainly gains too little."""
    effect = math.log1p(terms.rules.minimum_effect)
    behind = [scores[number] - best[number] for number in scores if number in best and scores is not best]
    return _at_least(list(scores.values()), _HOPELESS) > -effect or _at_least(behind, _BEHIND) > 0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.inf


def _at_least(values: Sequence[float], sure: tuple[int, float]) -> float:
    """Return the lower bound of a mean, by Student's t; -inf where too little is known."""
    fewest, confidence = sure
    if len(values) < fewest:
        return -math.inf
    from scipy.special import stdtrit

    mean = _mean(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean - float(stdtrit(len(values) - 1, confidence)) * math.sqrt(variance / len(values))


def judge_all(blocks: Sequence[Block], arms: Sequence[str], terms: Terms) -> dict[str, Verdict]:
    """Judge every candidate from the blocks at hand: by its own blocks, or by the race if it has none.

    Raises:
        WorkloadFailed: failing is the rule under the default scheduler.
    """
    return {arm: _judge_one(blocks, arm, terms) for arm in arms}


def _judge_one(blocks: Sequence[Block], arm: str, terms: Terms) -> Verdict:
    whole = pairs_of(blocks, arm)
    if whole.failing:
        return failed(whole.failures, pairs=len(whole.pairs), disturbed=whole.disturbed)
    own, shared = own_blocks(blocks, arm), shared_blocks(blocks, [arm])
    if not shared:
        return judge_arm(whole, terms)
    if own:
        return judge_arm(_only(whole, own), terms)
    return _raced(arm, _only(whole, shared), _round_of(blocks, shared, terms), terms)


def _only(measured: ArmPairs, blocks: Sequence[Block]) -> ArmPairs:
    """Return the pairs of these blocks alone; what was disturbed or failed is counted in all."""
    kept = {id(sample) for block in blocks for sample in block.samples}
    return replace(measured, pairs=tuple(pair for pair in measured.pairs if id(pair.candidate) in kept))


def _round_of(blocks: Sequence[Block], shared: Sequence[Block], terms: Terms) -> Race:
    """Return how the race of these shared blocks stands."""
    return race(blocks, sorted({arm for block in shared for arm in candidates_of(block)}), terms)


def _raced(arm: str, measured: ArmPairs, standing: Race, terms: Terms) -> Verdict:
    """Return what the race says of a candidate that has no blocks of its own; it may exclude a gain, and claims none.

    The interval has the error of the run for itself: it is no claim that shares it.
    """
    level = 1 - terms.rules.confidence
    raw = trimmed([log_ratio(*values) for values in measured.values], level)
    scores = [_score(pair, terms) for pair in measured.pairs]
    ratios = hardware_ratios(measured.pairs, terms)
    hopeless = _at_least(scores, _HOPELESS) > -math.log1p(terms.rules.minimum_effect)
    count = len(measured.pairs)
    where = f"in the race, in {count} shared block{'s' * (count != 1)}"
    if hopeless:
        reason = f"a gain of {terms.rules.minimum_effect:.0%} is excluded {where}"
    elif arm == standing.leader:
        reason = f"the best {where}; its own blocks, which alone can make a claim, were not measured"
    else:
        reason = f"not settled {where}" if arm in standing.alive else f"behind another {where}"
    return Verdict(
        Outcome.NO_USEFUL_GAIN if hopeless else Outcome.INCONCLUSIVE,
        *figures(raw),
        terms.rules.confidence,
        count,
        measured.disturbed,
        reason,
        expected=expected_of(ratios, level) if ratios else None,
    )


def wanted(blocks: Sequence[Block], arms: Sequence[str], terms: Terms) -> tuple[str, ...]:
    """Return the candidates that the next block is for; none when the trial has ended.

    Args:
        arms: keys of the candidates of one round that can run.
    """
    standing = race(blocks, arms, terms)
    if not standing.over:
        return standing.alive
    leader = standing.leader
    if leader is None:
        return ()
    own = own_blocks(blocks, leader)
    most = terms.rules.maximum_pairs
    verdict = _judge_one(blocks, leader, terms)
    enough = bool(own) and (
        decided(verdict) or verdict.outcome is Outcome.FAILED or _pairs_left(own, leader, most) <= 0
    )
    return () if enough else (leader,)


def _pairs_left(own: Sequence[Block], arm: str, most: int) -> int:
    """Return how many more blocks a candidate may have."""
    pairs = len(pairs_of(own, arm).pairs)
    return min(most - pairs, most + int(SPARE * most) - len(own))
