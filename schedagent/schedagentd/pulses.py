"""The roll-out by pulses: which window is next, and what the pairs of windows allow. Pure.

A pair is a window under the policy and one under the default scheduler, next to each other in time and in random order.
Of each window the beginning, the wash-out, is left out. The pairs of one length are judged by the rule of every verdict
(core.trials.judge): for longer ones to follow, every guard has to be shown not to be worse by more than its margin; to
stay, the workload's own metric has to be shown to be better, where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from kernel_bpf.observe.tasks import TaskSample
from schedagent.core.deployment import End
from schedagent.core.trials.guards import GuardPairs, log_ratio
from schedagent.core.trials.judge import TrialRules, judge, judge_guards, last_look
from schedagent.core.trials.trial import GuardVerdict, Outcome
from schedagent.core.welch import DELAY, METRIC, SHARE, Better, Measure, Spread, spread
from schedagent.schedagentd.breaker import END_OF, Bounds, intervals, measures

RULES = TrialRules()
MOST_TRIED = 2 * RULES.maximum_pairs
"""Pairs of one length, those included in which there was nothing to compare."""
EVERYBODY = " of everybody"
_WASHED, _LONGEST_WASH_OUT_S = 0.2, 5.0
_SMALLEST_RATIO = 0.01

Coin = Callable[[], bool]
"""Decides whether the policy's window of a pair comes first."""


class Going(Enum):
    """What the pairs of one length allow."""

    ON = "one more pair"
    LONGER = "longer pulses"
    STAY = "it stays in charge"


@dataclass(frozen=True)
class Window:
    """What was measured in one window, without its wash-out.

    Args:
        values: by name of the measure, in the measured scope; its name with EVERYBODY for the whole machine, where
            that is another scope. What was not to be seen is not there.
        metric: mean of what was reported of the workload's own metric; nan if nothing was.
        series: values of the shorter intervals in it, by name: the baseline of what is in charge later.
        starved: runnable tasks that did not run for too long.
    """

    values: Mapping[str, float]
    metric: float = math.nan
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)
    starved: tuple[str, ...] = ()


class Pair(NamedTuple):
    """Two windows that are compared."""

    default: Window
    policy: Window


@dataclass(frozen=True)
class Pulses:
    """How far a roll-out has come.

    Args:
        lengths_s: how long the pulses are, one length after the other.
        policy_first: the order of the present pair.
        length: index of the present length.
        first: the first window of the present pair; None before it has ended.
        pairs: those of the present length.
    """

    lengths_s: tuple[float, ...]
    policy_first: bool
    length: int = 0
    first: Window | None = None
    pairs: tuple[Pair, ...] = ()

    @property
    def length_s(self) -> float:
        """How long each window is now."""
        return self.lengths_s[self.length]

    @property
    def is_last(self) -> bool:
        """Whether nothing is longer."""
        return self.length == len(self.lengths_s) - 1

    @property
    def is_policy_next(self) -> bool:
        """Whether the next window is the policy's."""
        return self.policy_first == (self.first is None)

    @property
    def compared(self) -> tuple[Pair, ...]:
        """The pairs in which something wanted a CPU, both times."""
        return tuple(pair for pair in self.pairs if all(SHARE in window.values for window in pair))

    def ended(self, window: Window, coin: Coin) -> Pulses:
        """Return what is so after the next window."""
        if self.first is None:
            return replace(self, first=window)
        windows = (window, self.first) if self.policy_first else (self.first, window)
        return replace(self, first=None, pairs=(*self.pairs, Pair(*windows)), policy_first=coin())

    def longer(self) -> Pulses:
        """Return what is so when the next length begins."""
        return replace(self, length=self.length + 1, pairs=())

    def baseline(self) -> dict[str, Spread]:
        """Return what the windows of the default scheduler of this length were like, for the circuit breaker."""
        series: dict[str, list[float]] = {}
        for pair in self.pairs:
            for name, values in pair.default.series.items():
                series.setdefault(name, []).extend(values)
        return {name: spread(values) for name, values in series.items()}


def values_of(first: TaskSample, last: TaskSample) -> dict[str, float]:
    """Return what a scope's tasks show between two samples, by measure.

    Where nothing was switched to, something that ran all the time had no wait to show.
    """
    values = {name: series[0] for name, series in intervals([first, last]).items() if series}
    if SHARE in values:
        values.setdefault(DELAY, last.delay_s - first.delay_s)
    return values


def wash_out_s(length_s: float) -> float:
    """Return how much of a window is left out, from its beginning."""
    return min(_WASHED * length_s, _LONGEST_WASH_OUT_S)


def judge_pulses(pulses: Pulses, bounds: Bounds, better: Better | None) -> Going | tuple[End, str]:
    """Return what the pairs of the present length allow, or why the roll-out ends.

    Args:
        better: which way the workload's own metric is better; None if there is none.
    """
    if pulses.is_last and better is not None:
        return _for_good(pulses, bounds, better)
    pairs = pulses.compared
    seen, level = last_look(len(pairs), RULES, 1 - RULES.confidence)
    verdicts, broken = judge_guards(_guards(pairs, bounds, better), seen, level)
    if broken:
        return _worse(broken[0], pairs)
    if verdicts and all(verdict.held for verdict in verdicts):
        return Going.STAY if pulses.is_last else Going.LONGER
    return _again(pulses, pairs, [verdict.name for verdict in verdicts if not verdict.held])


def _for_good(pulses: Pulses, bounds: Bounds, better: Better) -> Going | tuple[End, str]:
    """What the pairs of the last length say of the workload's own metric, and of the guards beside it."""
    pairs = tuple(pair for pair in pulses.compared if all(window.metric > 0 for window in pair))
    values = [(pair.default.metric, pair.policy.metric) for pair in pairs]
    guards = _guards(pairs, bounds, None)
    verdict = judge(values, RULES, lower_is_better=better is Better.LOWER, guards=guards)
    match verdict.outcome:
        case Outcome.BETTER:
            return Going.STAY
        case Outcome.WORSE:
            return End.METRIC, verdict.reason
        case Outcome.TRADE_OFF:
            seen, level = last_look(len(pairs), RULES, 1 - RULES.confidence)
            broken = judge_guards(guards, seen, level)[1]
            return _worse(broken[0], pairs) if broken else (End.METRIC, verdict.reason)
        case Outcome.NO_DIFFERENCE | Outcome.NO_USEFUL_GAIN:
            return End.NO_GAIN, verdict.reason
    again = _again(pulses, pairs, [])
    return again if isinstance(again, Going) else (End.NO_GAIN, verdict.reason)


def _guards(pairs: Sequence[Pair], bounds: Bounds, better: Better | None) -> list[GuardPairs]:
    """Return what must not become worse: each measure that some window has, in either scope.

    The metric counts before the last length, too, as soon as the windows are so long that each has a value of it.
    """
    guards = [
        guard(pairs, measure, name)
        for measure in measures(bounds, None)
        for name in (measure.name, measure.name + EVERYBODY)
        if any(name in window.values for pair in pairs for window in pair)
    ]
    if better is not None and all(window.metric > 0 for pair in pairs for window in pair):
        logs = tuple(log_ratio(pair.default.metric, pair.policy.metric) for pair in pairs)
        own = Measure(METRIC, bounds.metric_ratio, 0.0, better=better)
        guards.append(GuardPairs(METRIC, logs, better is Better.LOWER, margin_of(own)))
    return guards


def guard(pairs: Sequence[Pair], measure: Measure, name: str) -> GuardPairs:
    """Return one guard of these pairs.

    A ratio of two short waits says nothing: to both values the same amount is added, so much that the measure's margin
    of the sum is its floor.
    """
    margin = margin_of(measure)
    added = measure.floor / margin
    values = [[window.values.get(name, math.nan) + added for window in pair] for pair in pairs]
    logs = tuple(log_ratio(default, policy) for default, policy in values)
    return GuardPairs(name, logs, measure.better is Better.LOWER, margin)


def margin_of(measure: Measure) -> float:
    """Return how much worse a measure may be, as a fraction: what is better higher may be as many times smaller."""
    ratio = max(measure.ratio, _SMALLEST_RATIO)
    return ratio if measure.better is Better.LOWER else ratio / (1 + ratio)


def _worse(broken: GuardVerdict, pairs: Sequence[Pair]) -> tuple[End, str]:
    name = broken.name.removesuffix(EVERYBODY)
    policy, default = (_mean(broken.name, [pair[index] for pair in pairs]) for index in (1, 0))
    whose = EVERYBODY if broken.name.endswith(EVERYBODY) else ""
    compared = f"{policy:.4g} on average{whose}, {default:.4g} under the default scheduler"
    return END_OF[name], f"{compared}, in {len(pairs)} pairs of pulses"


def _mean(name: str, windows: Sequence[Window]) -> float:
    values = [window.metric if name == METRIC else window.values.get(name, math.nan) for window in windows]
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _again(pulses: Pulses, pairs: Sequence[Pair], unsettled: Sequence[str]) -> Going | tuple[End, str]:
    """Ask for one more pair, unless there were enough."""
    if len(pairs) < RULES.maximum_pairs and len(pulses.pairs) < MOST_TRIED:
        return Going.ON
    windows = f"{len(pairs)} pairs of pulses of {pulses.length_s:g} s"
    if len(pairs) < RULES.minimum_pairs:
        return End.NOT_SHOWN, f"too little ran to compare: {windows} of {len(pulses.pairs)}"
    return End.NOT_SHOWN, f"{windows} leave open whether {' and '.join(unsettled)} became worse"
