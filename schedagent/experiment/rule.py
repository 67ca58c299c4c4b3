"""What the pairs of an experiment allow to be said, whenever one looks. Pure.

A pair is a window under a policy and one under the default scheduler, next to each other in time and in random order.
Each number is compared by the mean of log(policy / default) over the pairs, with a confidence sequence
(`core.trials.interval`), which holds after every pair alike: there is no planned end, so none has to be waited for.

* **worse**: the policy was ended within a window, for it did harm; or the sequence excludes 1, and the estimate is
  beyond the minimum effect of 3 %; or a guard is shown to have become worse by more than its margin.
* **trade-off**: the same of a guard, and the number itself is better.
* **better**: the sequence excludes 1, the estimate is beyond the minimum effect, and every guard is shown not to be
  worse by more than its margin. From 6 pairs on.
* **no useful gain**: a sequence of error 0.2 excludes a gain of the minimum effect. Who errs here keeps the default
  scheduler, so more may be erred. From 6 pairs on.
* **inconclusive**: none of these; at the end there was no answer in the time.

A zero has no ratio: half of the smallest other value of its number stands for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from schedagent.core.trials.guards import GuardPairs, broken, figures, log_ratio
from schedagent.core.trials.interval import Interval, confidence_sequence
from schedagent.core.trials.judge import TrialRules, Words, failed
from schedagent.core.trials.objective import Direction, Guard
from schedagent.core.trials.trial import DEFAULT_ARM, Block, GuardVerdict, Outcome, Sample, Verdict
from schedagent.experiment.counters import BUILT_IN, LEAST_WAITING

FUTILE_ERROR = 0.2
"""Chance to give up a policy whose gain is the minimum effect."""

HARM_OF_OWN = 3.0
"""A window does harm in which a number of the user's is so many times as bad as in the worst one of the default
scheduler; for built-in guards see there."""


@dataclass(frozen=True)
class Terms:
    """What a verdict goes by.

    Args:
        lower_is_better: of the number that is compared.
        guards: the user's.
        counters: whether the number is time in run queues for each CPU second.
        alpha: two-sided error of each sequence: claims about several policies share it.
    """

    lower_is_better: bool
    guards: tuple[Guard, ...] = ()
    counters: bool = False
    alpha: float = 0.05
    rules: TrialRules = field(default_factory=TrialRules)


@dataclass(frozen=True)
class Pair:
    """Two windows that are compared."""

    default: Sample
    policy: Sample


def pairs_of(blocks: Sequence[Block], arm: str) -> tuple[Pair, ...]:
    """Return the pairs in which a policy was in charge to the end."""
    both = ((block.sample(DEFAULT_ARM), block.sample(arm)) for block in blocks if block.number)
    return tuple(Pair(default, policy) for default, policy in both if default and policy and not policy.failure)


def judge(blocks: Sequence[Block], arm: str, terms: Terms) -> Verdict:
    """Return what may be said of a policy after these blocks.

    Args:
        arm: key of the candidate.
    """
    pairs = pairs_of(blocks, arm)
    ended = next((sample for block in blocks if (sample := block.sample(arm)) and sample.failure), None)
    if ended is not None and ended.policy_exit:
        return failed([ended.failure], pairs=len(pairs))
    logs = _logs([(pair.default.value, pair.policy.value) for pair in pairs], LEAST_WAITING if terms.counters else 0.0)
    raw, futile = (confidence_sequence(logs, level) for level in (terms.alpha, max(terms.alpha, FUTILE_ERROR)))
    guards = _Guards.of(pairs, terms)
    good = _oriented(raw, terms)
    harm = ended.failure if ended else _harm_of_blocks(blocks, arm, terms)
    outcome = Outcome.WORSE if harm else _outcome(good, _oriented(futile, terms), len(pairs), guards, terms.rules)
    reason = harm or _reason(outcome, good, len(pairs), guards, terms)
    return Verdict(outcome, *figures(raw), 1 - terms.alpha, len(pairs), 0, reason, guards.verdicts)


@dataclass(frozen=True)
class _Guards:
    """The guards of some pairs: all of them, and those that are shown to have become worse."""

    verdicts: tuple[GuardVerdict, ...]
    worse: tuple[GuardVerdict, ...]

    @classmethod
    def of(cls, pairs: Sequence[Pair], terms: Terms) -> _Guards:
        guarded = list(_guards(pairs, terms)) if pairs else []
        verdicts = tuple(_judge_guard(guard, terms.alpha) for guard in guarded)
        return cls(
            verdicts, tuple(verdict for verdict, guard in zip(verdicts, guarded, strict=True) if broken(verdict, guard))
        )

    @property
    def held(self) -> bool:
        return all(verdict.held for verdict in self.verdicts)


def _outcome(good: Interval, futile: Interval, count: int, guards: _Guards, rules: TrialRules) -> Outcome:
    """Return the outcome; in the intervals, less is better."""
    effect = math.log1p(rules.minimum_effect)
    gained = good.high < 0 and good.mean < -effect
    if guards.worse:
        return Outcome.TRADE_OFF if gained else Outcome.WORSE
    if good.low > 0 and good.mean > effect:
        return Outcome.WORSE
    if count < rules.minimum_pairs:
        return Outcome.INCONCLUSIVE
    if gained and guards.held:
        return Outcome.BETTER
    return Outcome.NO_USEFUL_GAIN if futile.low > -effect else Outcome.INCONCLUSIVE


def _reason(outcome: Outcome, good: Interval, count: int, guards: _Guards, terms: Terms) -> str:
    if outcome is Outcome.WORSE and guards.worse:
        changes = (f"{guard.name} is {guard.ratio:.3g} times the default's" for guard in guards.worse)
        return f"{' and '.join(changes)}, in {count} pairs"
    words = Words(good, count, terms.rules, terms.lower_is_better)
    return words.reason(outcome, guards.verdicts, guards.worse)


def _oriented(interval: Interval, terms: Terms) -> Interval:
    """Return the interval in which less is better."""
    return interval if terms.lower_is_better else Interval(-interval.mean, interval.half_width)


def _judge_guard(guard: GuardPairs, alpha: float) -> GuardVerdict:
    interval = confidence_sequence(guard.logs, alpha)
    furthest = interval.high if guard.lower_is_better else -interval.low
    return GuardVerdict(guard.name, *figures(interval), guard.margin, furthest <= guard.bound)


def _guards(pairs: Sequence[Pair], terms: Terms) -> Iterator[GuardPairs]:
    """What must not become worse; of the built-in guards those that the kernel shows."""
    for guard in terms.guards:
        name, lower = guard.metric.name, guard.metric.direction is Direction.LOWER
        values = [(pair.default.values[name], pair.policy.values[name]) for pair in pairs]
        yield GuardPairs(name, tuple(_logs(values)), lower, guard.margin)
    for built_in in BUILT_IN:
        if any(built_in.name in window.values for pair in pairs for window in (pair.default, pair.policy)):
            name, lower = built_in.name, built_in.direction is Direction.LOWER
            good = 0.0 if lower else 1.0
            values = [(pair.default.values.get(name, good), pair.policy.values.get(name, good)) for pair in pairs]
            yield GuardPairs(name, tuple(_logs(values, built_in.added)), lower, built_in.margin)


def _logs(values: Sequence[tuple[float, float]], added: float = 0.0) -> list[float]:
    smallest = min((value for pair in values for value in pair if value > 0), default=1.0)
    stands_for = 0.0 if added else smallest / 2
    return [log_ratio(*(added + (value or stands_for) for value in pair)) for pair in values]


# --- harm -------------------------------------------------------------------------------------------------------------


def harm_of(values: Mapping[str, float], defaults: Sequence[Mapping[str, float]]) -> str:
    """Return how far a window is worse than every one of the default scheduler was, by the built-in guards; or nothing.

    Args:
        values, defaults: by name of the guard, of the window so far, and of those under the default scheduler.
    """
    for guard in BUILT_IN:
        seen = [window[guard.name] for window in defaults if guard.name in window]
        if guard.name not in values or not seen:
            continue
        now, lower = values[guard.name], guard.direction is Direction.LOWER
        worst = max(seen) if lower else min(seen)
        bad, usual = (now, worst) if lower else (worst, now)
        if bad + guard.added > guard.harm * (usual + guard.added):
            return _in_words(guard.name, now, worst)
    return ""


def _in_words(name: str, now: float, worst: float) -> str:
    return f"ended, for it did harm: {name} was {now:.3g}; under the default scheduler it was {worst:.3g} at worst"


def _harm_of_blocks(blocks: Sequence[Block], arm: str, terms: Terms) -> str:
    """Return how a window of the policy did harm as a whole: the user's numbers are known at its end only."""
    defaults: list[Sample] = []
    for block in blocks:
        defaults += [sample for sample in block.samples if sample.arm == DEFAULT_ARM]
        policy = block.sample(arm)
        harm = policy and (
            harm_of(policy.values, [window.values for window in defaults]) or _harm_to_numbers(policy, defaults, terms)
        )
        if harm:
            return harm
    return ""


def _harm_to_numbers(policy: Sample, defaults: Sequence[Sample], terms: Terms) -> str:
    """Return how a window did harm to the user's numbers; what the kernel counts has guards of its own."""
    numbers: list[_Number] = [] if terms.counters else [("what is compared", _value, terms.lower_is_better)]
    numbers += [(guard.metric.name, _named(guard), guard.metric.direction is Direction.LOWER) for guard in terms.guards]
    for name, read, lower in numbers:
        now, seen = read(policy), [value for window in defaults if (value := read(window)) > 0]
        if seen and (now > HARM_OF_OWN * max(seen) if lower else now < min(seen) / HARM_OF_OWN):
            return _in_words(name, now, max(seen) if lower else min(seen))
    return ""


_Number = tuple[str, Callable[[Sample], float], bool]
"""Its name, how it is read, and whether lower is better."""


def _value(sample: Sample) -> float:
    return sample.value


def _named(guard: Guard) -> Callable[[Sample], float]:
    return lambda sample: sample.values.get(guard.metric.name, math.nan)
