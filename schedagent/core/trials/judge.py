"""The verdict: what several pairs of runs allow to be said about a candidate. Pure; scipy is imported when needed.

A pair is the default's and the candidate's run of one block, next to each other in time, so a drift of the machine
cancels. The judge works on log(candidate / default): its mean is the log of the geometric mean ratio, and a two-sided
Student t interval around it holds the true ratio with the asked confidence (Bonferroni over the candidates compared).

Two thresholds turn the interval into an outcome, both on the log scale:

* **Precise enough**: the half-width is at most the minimum effect, or at most half of the measured effect. Until then
  the outcome is inconclusive, whatever the interval is. Whether to stop measuring therefore depends on the spread
  of the pairs and hardly on their mean, so looking after each new pair does not inflate the rate of false claims as
  it would with "stop as soon as it is significant".
* **Minimum effect**: once precise, an estimate beyond it is better or worse (the interval then excludes 1, because
  the estimate is farther from 1 than the half-width), and one within it is no difference: an effect of that size
  would have been seen. The whole interval then lies within twice the minimum effect.

Simulated with a look after each pair from 6 to 20 and a minimum effect of 3 %: without a true effect, 0 %, 1.1 % and
3.3 % false claims (better and worse together) at 2 %, 3 % and 4 % standard deviation per pair, at most 6.6 % at any;
a true ratio of 0.85 is called better by the sixth pair at 4 % (tests/unit/core/test_judge.py repeats the main figures).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from schedagent.core.errors import UsageError, WorkloadFailed
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Outcome, Sample, Verdict
from schedagent.core.trials.workload import Goal

MINIMUM_PAIRS = 6
"""No claim from fewer: with n pairs of one sign the smallest two-sided p of a sign test is 2**(1-n); 6 give 0.03."""


MOST_MORE_PAIRS = 100
"""An estimate beyond it is no advice: an effect that small is not settled within reasonable time."""


@dataclass(frozen=True)
class TrialRules:
    """When a trial may end.

    Args:
        minimum_effect: smallest relative change worth a claim.
        confidence: of all intervals together.
        minimum_pairs: no claim from fewer.
        maximum_pairs: give up on precision after so many.
    """

    minimum_effect: float = 0.03
    confidence: float = 0.95
    minimum_pairs: int = MINIMUM_PAIRS
    maximum_pairs: int = 20


class ArmPairs(NamedTuple):
    """What the blocks hold about one candidate.

    Args:
        pairs: (default's value, candidate's value) per block that can be compared.
        disturbed: blocks left out because a calibration probe showed a disturbed machine.
        failures: why runs of the candidate failed, one line each, the warm-up included; none if all went well.
    """

    pairs: tuple[tuple[float, float], ...]
    disturbed: int
    failures: tuple[str, ...]


def pairs_of(blocks: Sequence[Block], arm: str, *, calibration_tolerance: float = 0.5) -> ArmPairs:
    """Collect the pairs of `arm` and the default scheduler; the warm-up (block 0) is never compared.

    Args:
        blocks: all blocks of the trial, the warm-up included.
        arm: the candidate's key.
        calibration_tolerance: a pair counts as disturbed if the probe before either of its runs deviates by more
            than this fraction from the median probe of the trial (runs that failed may have no probe and do not count).
            A probe varies by a tenth on a quiet machine and doubles if another process takes half of the CPU.

    Raises:
        WorkloadFailed: a run under the default scheduler failed, so there is nothing to compare with.
    """
    whole = [sample for block in blocks for sample in block.samples if not sample.failure]
    usual_ns = median([sample.calibration_ns for sample in whole] or [0])
    pairs: list[tuple[float, float]] = []
    failures: list[str] = []
    disturbed = 0
    for block in blocks:
        candidate, default = block.sample(arm), block.sample(DEFAULT_ARM)
        if candidate is None or default is None:
            continue
        if default.failure:
            raise WorkloadFailed(
                f"block {block.number}: the run under the default scheduler failed: {default.failure}",
                "fix the command until it works each time, and start a new run",
            )
        if candidate.failure:
            failures.append(f"block {block.number}: {candidate.failure}")
        elif block.number == 0:
            continue
        elif any(_disturbed(sample, usual_ns, calibration_tolerance) for sample in (default, candidate)):
            disturbed += 1
        else:
            pairs.append((default.value, candidate.value))
    return ArmPairs(tuple(pairs), disturbed, tuple(failures))


def cpu_time_ratio(blocks: Sequence[Block], arm: str) -> float:
    """Return the geometric mean of candidate / default in CPU time, nan if nothing can be compared.

    Work that is the same in both arms needs the same CPU time: what differs is the cost of switching and of caches.
    """
    logs = []
    for block in blocks[1:]:
        candidate, default = block.sample(arm), block.sample(DEFAULT_ARM)
        if candidate and default and not candidate.failure and min(candidate.cpu_ns, default.cpu_ns) > 0:
            logs.append(math.log(candidate.cpu_ns / default.cpu_ns))
    return math.exp(math.fsum(logs) / len(logs)) if logs else math.nan


def judge(
    pairs: Sequence[tuple[float, float]],
    *,
    lower_is_better: bool = True,
    comparisons: int = 1,
    confidence: float = 0.95,
    minimum_effect: float = 0.03,
    minimum_pairs: int = MINIMUM_PAIRS,
    disturbed: int = 0,
) -> Verdict:
    """Compare a candidate with the default scheduler; the rules are in the module's docstring.

    Args:
        pairs: (default's value, candidate's value), both positive; see `pairs_of`.
        lower_is_better: whether a smaller value is the better one (time) or the larger (throughput).
        comparisons: how many candidates are compared with the same default; widens the interval.
        confidence: of all intervals together, between 0 and 1.
        minimum_effect: smallest relative change worth a claim: 0.03 means a ratio below 1/1.03 or above 1.03.
        minimum_pairs: fewer pairs are inconclusive; at least 2.
        disturbed: pairs left out, passed through to the verdict.

    Raises:
        UsageError: a value is not a positive finite number, or a threshold makes no sense.
    """
    _check(comparisons, confidence, minimum_effect, minimum_pairs)
    logs = [_log_ratio(number, *pair) for number, pair in enumerate(pairs, 1)]
    level = 1 - (1 - confidence) / comparisons
    mean, half_width = _interval(logs, level)
    if len(logs) < minimum_pairs or not _precise(mean, half_width, minimum_effect):
        outcome = Outcome.INCONCLUSIVE
        reason = _missing(len(logs), mean, half_width, minimum_effect, minimum_pairs)
    elif abs(mean) <= math.log1p(minimum_effect):
        outcome = Outcome.NO_DIFFERENCE
        reason = f"a difference of {minimum_effect:.1%} would have been seen in {len(logs)} pairs; keep the default"
    else:
        outcome = Outcome.BETTER if (mean < 0) == lower_is_better else Outcome.WORSE
        reason = f"the candidate's value is {_change(mean)} than the default's in {len(logs)} pairs"
    ratio, low, high = (_exp(value) for value in (mean, mean - half_width, mean + half_width))
    return Verdict(outcome, ratio, low, high, level, len(logs), disturbed, reason)


def judge_all(
    blocks: Sequence[Block],
    arms: Sequence[str],
    goal: Goal,
    rules: TrialRules,
    *,
    comparisons: int,
) -> dict[str, Verdict]:
    """Judge every candidate from the blocks at hand.

    Args:
        arms: keys of the candidates.
        comparisons: how many comparisons the correction counts.
    """
    verdicts = {}
    for arm in arms:
        pairs, disturbed, failures = pairs_of(blocks, arm)
        if failures:
            verdicts[arm] = failed(failures, pairs=len(pairs), disturbed=disturbed)
            continue
        verdicts[arm] = judge(
            pairs,
            lower_is_better=goal.lower_is_better,
            comparisons=comparisons,
            confidence=rules.confidence,
            minimum_effect=rules.minimum_effect,
            minimum_pairs=rules.minimum_pairs,
            disturbed=disturbed,
        )
    return verdicts


def failed(failures: Sequence[str], *, pairs: int = 0, disturbed: int = 0) -> Verdict:
    """Return the verdict on a candidate of which at least one run failed; no ratio is claimed for it."""
    rest = f" (and {len(failures) - 1} more runs)" if len(failures) > 1 else ""
    reason = f"a run under the candidate failed: {failures[0]}{rest}"
    return Verdict(Outcome.FAILED, math.nan, math.nan, math.nan, 0.0, pairs, disturbed, reason)


def precise_enough(verdict: Verdict, minimum_effect: float = 0.03) -> bool:
    """Return whether measuring may stop: nothing is left to decide about an effect of `minimum_effect`."""
    if verdict.outcome in (Outcome.FAILED, Outcome.INCONCLUSIVE):
        return verdict.outcome is Outcome.FAILED
    half_width = math.log(verdict.high / verdict.low) / 2
    return _precise(math.log(verdict.ratio), half_width, minimum_effect)


def _precise(mean: float, half_width: float, minimum_effect: float) -> bool:
    # The margin lets a verdict that went through exp() and log() be judged as it was.
    return half_width <= _target(mean, minimum_effect) + 1e-9


def _target(mean: float, minimum_effect: float) -> float:
    return max(math.log1p(minimum_effect), abs(mean) / 2)


def _interval(logs: Sequence[float], level: float) -> tuple[float, float]:
    """Return mean and half-width of the two-sided t interval; no pairs give nan, one pair an infinite width."""
    count = len(logs)
    if count == 0:
        return math.nan, math.nan
    mean = math.fsum(logs) / count
    if count == 1:
        return mean, math.inf
    from scipy.special import stdtrit  # Student t quantile; scipy.stats takes 0.7 s more

    variance = math.fsum((value - mean) ** 2 for value in logs) / (count - 1)
    return mean, float(stdtrit(count - 1, (1 + level) / 2)) * math.sqrt(variance / count)


def _missing(count: int, mean: float, half_width: float, minimum_effect: float, minimum_pairs: int) -> str:
    """Return why there is no verdict yet, with an estimate of the pairs that would bring one, if that is sensible."""
    if count < minimum_pairs:
        return f"{count} pairs of at least {minimum_pairs}: {minimum_pairs - count} more are needed before any claim"
    target = _target(mean, minimum_effect)
    more = _more(count, half_width, target)
    outlook = f"about {more} more pairs might decide" if more <= MOST_MORE_PAIRS else "more pairs would hardly decide"
    return (
        f"the runs vary too much: the ratio is known to ±{_exp(half_width) - 1:.1%}, a verdict needs "
        f"±{math.expm1(target):.1%}; {outlook}"
    )


def more_pairs(verdict: Verdict, rules: TrialRules) -> int | None:
    """Return about how many more pairs would decide an inconclusive verdict; None if more than a trial may have."""
    if verdict.pairs < rules.minimum_pairs:
        return rules.minimum_pairs - verdict.pairs
    half_width = math.log(verdict.high / verdict.low) / 2
    more = _more(verdict.pairs, half_width, _target(math.log(verdict.ratio), rules.minimum_effect))
    return more if verdict.pairs + more <= rules.maximum_pairs else None


def _more(count: int, half_width: float, target: float) -> int:
    """Return how many more pairs narrow an interval to its target: it shrinks with the square root of their number."""
    ratio = half_width / target
    return max(1, math.ceil(count * (ratio**2 - 1))) if ratio < MOST_MORE_PAIRS else MOST_MORE_PAIRS + 1


def _exp(value: float) -> float:
    """Two pairs that differ, and many comparisons, make an interval wider than a float can hold."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _change(mean: float) -> str:
    return f"{-math.expm1(mean):.1%} lower" if mean < 0 else f"{math.expm1(mean):.1%} higher"


def _log_ratio(number: int, default: float, candidate: float) -> float:
    for name, value in (("default", default), ("candidate", candidate)):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(
                f"pair {number}: the {name}'s value is {value!r}, which has no ratio",
                "the compared number must be positive and finite; check --metric",
            )
    return math.log(candidate / default)


def _disturbed(sample: Sample, usual_ns: float, tolerance: float) -> bool:
    return abs(sample.calibration_ns - usual_ns) > tolerance * usual_ns


def _check(comparisons: int, confidence: float, minimum_effect: float, minimum_pairs: int) -> None:
    accepted = {
        f"comparisons={comparisons} (at least 1)": comparisons >= 1,
        f"confidence={confidence} (between 0 and 1)": 0 < confidence < 1,
        f"minimum_effect={minimum_effect} (above 0, at most 1)": 0 < minimum_effect <= 1,
        f"minimum_pairs={minimum_pairs} (at least 2)": minimum_pairs >= 2,
    }
    for text, good in accepted.items():
        if not good:
            raise UsageError(f"cannot judge with {text}")
