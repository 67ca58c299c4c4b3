"""Whether samples bear out what somebody concludes from them: one arm better than another in one metric. Pure.

Who chooses among many comparisons afterwards finds one that luck made, so each has an equal share of the error of all
that could be made. What a verdict decides (a candidate against the default scheduler, in what is compared) is its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from schedagent.core.readings.readings import UNNAMED
from schedagent.core.trials.guards import log_ratio
from schedagent.core.trials.interval import trimmed
from schedagent.core.trials.judge import Terms
from schedagent.core.trials.lesson import Claim, Relation
from schedagent.core.trials.objective import Direction
from schedagent.core.trials.race import candidates_of
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Outcome, Sample, Verdict
from schedagent.core.trials.workload import WorkloadCommand

WALL, CPU = "wall time", "CPU time"

_DECIDED = {
    Outcome.BETTER: Relation.BETTER,
    Outcome.TRADE_OFF: Relation.BETTER,
    Outcome.NO_DIFFERENCE: Relation.SAME,
}
"""What a verdict says of a candidate beside the default scheduler; of WORSE the reverse holds."""


@dataclass(frozen=True)
class Compared:
    """One metric of a trial.

    Args:
        of: its value in a sample; nan if it has none.
        lower_is_better: which way is better.
    """

    of: Callable[[Sample], float]
    lower_is_better: bool


def metrics(workload: WorkloadCommand) -> dict[str, Compared]:
    """Return what can be compared, by name; what verdicts go by comes first."""
    objective = Compared(lambda sample: sample.value, workload.goal.lower_is_better)
    compared = {workload.objective or (UNNAMED if workload.metric else WALL): objective}
    for metric in (*workload.metrics, *(guard.metric for guard in workload.guards)):
        compared.setdefault(metric.name, Compared(_value(metric.name), metric.direction is Direction.LOWER))
    compared.setdefault(WALL, Compared(lambda sample: float(sample.wall_ns), True))
    compared.setdefault(CPU, Compared(lambda sample: float(sample.cpu_ns), True))
    return compared


def holds(claim: Claim, blocks: Sequence[Block], verdicts: Mapping[str, Verdict], terms: Terms) -> bool:
    """Whether what was measured bears out a claim.

    Args:
        blocks: of the trials it is about.
        verdicts: on their candidates, by key.
        terms: what these go by.
    """
    compared = metrics(terms.workload)
    arms = {DEFAULT_ARM, *(arm for block in blocks for arm in candidates_of(block))}
    if claim.metric not in compared or claim.arm == claim.other or not {claim.arm, claim.other} <= arms:
        return False
    if claim.metric == next(iter(compared)) and DEFAULT_ARM in (claim.arm, claim.other):
        return _decided(claim, verdicts)
    comparisons = len(arms) * (len(arms) - 1) // 2 * len(compared)
    logs = _logs(blocks, claim, compared[claim.metric])
    if len(logs) < terms.rules.minimum_pairs:
        return False
    interval = trimmed(logs, (1 - terms.rules.confidence) / comparisons)
    effect = math.log1p(terms.rules.minimum_effect)
    if claim.relation is Relation.SAME:
        return -2 * effect <= interval.low and interval.high <= 2 * effect
    return interval.high < 0


def _value(name: str) -> Callable[[Sample], float]:
    return lambda sample: sample.values.get(name, math.nan)


def _decided(claim: Claim, verdicts: Mapping[str, Verdict]) -> bool:
    """Whether the verdict on the candidate of a claim says the same."""
    candidate = claim.other if claim.arm == DEFAULT_ARM else claim.arm
    verdict = verdicts.get(candidate)
    if verdict is None:
        return False
    if claim.arm == DEFAULT_ARM and claim.relation is Relation.BETTER:
        return verdict.outcome is Outcome.WORSE
    return _DECIDED.get(verdict.outcome) is claim.relation


def _logs(blocks: Sequence[Block], claim: Claim, compared: Compared) -> list[float]:
    """Return log(arm / other) of each block in which both ran, below 0 where the arm is better; not of the warm-up."""
    sign = 1 if compared.lower_is_better else -1
    logs = []
    for block in blocks:
        arm, other = block.sample(claim.arm), block.sample(claim.other)
        if block.number and arm and other and not arm.failure and not other.failure:
            logs.append(sign * log_ratio(compared.of(other), compared.of(arm)))
    return [value for value in logs if math.isfinite(value)]
