"""Guards: what a candidate must be shown not to make worse, next to what it is measured for.

The user's and a preset's guards are numbers in the output. Three more cost nothing and are always there: the wall time
of the whole where another number is the objective, the share of the CPU time that each command had, and the worst run.
A guard holds if its interval shows that it is not worse by more than its margin (non-inferiority); all of them must
hold, so no error is split among them (intersection-union test: R. L. Berger, Technometrics 24 (1982)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from schedagent.core.trials.interval import Interval, trimmed
from schedagent.core.trials.objective import Direction
from schedagent.core.trials.trial import GuardVerdict, Sample
from schedagent.core.trials.workload import WorkloadCommand

WALL_MARGIN = 0.05
SHARE_MARGIN = 0.10
LEAST_SHARE = 0.10
"""A command with less of the CPU time than this is no guard of its own."""

WORST_RUN = "worst run"
WORST_MARGIN = 1.0
"""No run may take more than twice as long as the default's worst."""


class Pair(NamedTuple):
    """The two runs of one block that are compared."""

    default: Sample
    candidate: Sample


@dataclass(frozen=True)
class GuardPairs:
    """The values of one guard in the pairs of a trial.

    Args:
        name: of the guard.
        logs: log(candidate / default) of each pair; nan where one of the two has no such value.
        lower_is_better: its direction.
        margin: how much worse it may be, as a fraction.
    """

    name: str
    logs: tuple[float, ...]
    lower_is_better: bool
    margin: float

    @property
    def bound(self) -> float:
        """How far it may go towards worse, on the log scale: above 0."""
        return math.log1p(self.margin) if self.lower_is_better else -math.log1p(-min(self.margin, 0.99))


def guard_pairs(workload: WorkloadCommand, pairs: Sequence[Pair]) -> list[GuardPairs]:
    """Return the guards of a workload over these pairs, but for the worst run."""
    guards = [
        GuardPairs(
            guard.metric.name,
            _logs(pairs, _value_of(guard.metric.name)),
            guard.metric.direction is Direction.LOWER,
            guard.margin,
        )
        for guard in workload.guards
    ]
    if workload.metric and pairs:
        guards.append(GuardPairs("wall time", _logs(pairs, lambda sample: float(sample.wall_ns)), True, WALL_MARGIN))
        guards += [
            GuardPairs(f"CPU share of {comm}", _logs(pairs, _share_of(comm)), False, SHARE_MARGIN)
            for comm in _large_commands(pairs)
        ]
    return guards


def _value_of(name: str) -> Callable[[Sample], float]:
    return lambda sample: sample.values.get(name, math.nan)


def _share_of(comm: str) -> Callable[[Sample], float]:
    return lambda sample: shares(sample).get(comm, math.nan)


def shares(sample: Sample) -> dict[str, float]:
    """Return the share of the CPU time that each command had, by name; nothing if that is not known."""
    commands = sample.usage.commands if sample.usage else ()
    total = sum(command.cpu_ns for command in commands)
    return {command.comm: command.cpu_ns / total for command in commands if command.comm and total}


def _large_commands(pairs: Sequence[Pair]) -> Iterator[str]:
    """The commands that matter under the default scheduler; none if there is one only, whose share cannot change."""
    under_default = [shares(pair.default) for pair in pairs]
    names = sorted({name for share in under_default for name in share})
    large = [name for name in names if median(share.get(name, 0.0) for share in under_default) >= LEAST_SHARE]
    return iter(large if len(names) > 1 else ())


def _logs(pairs: Sequence[Pair], value: Callable[[Sample], float]) -> tuple[float, ...]:
    return tuple(log_ratio(value(pair.default), value(pair.candidate)) for pair in pairs)


def log_ratio(default: float, candidate: float) -> float:
    """Return log(candidate / default); nan unless both are positive and finite."""
    good = all(math.isfinite(value) and value > 0 for value in (default, candidate))
    return math.log(candidate / default) if good else math.nan


def judge_guard(guard: GuardPairs, level: float) -> GuardVerdict:
    """Compare one guard with the default scheduler at error `level`; one with values missing does not hold."""
    known = [value for value in guard.logs if not math.isnan(value)]
    interval = trimmed(known, level)
    worst = interval.high if guard.lower_is_better else -interval.low
    held = len(known) == len(guard.logs) and worst <= guard.bound
    return GuardVerdict(guard.name, *figures(interval), guard.margin, held)


def broken(verdict: GuardVerdict, guard: GuardPairs) -> bool:
    """Whether a guard is shown to have become worse, by more than its margin as far as one can tell."""
    if math.isnan(verdict.ratio):
        return False
    towards_worse = 1 if guard.lower_is_better else -1
    certain = verdict.low > 1 if guard.lower_is_better else verdict.high < 1
    return certain and towards_worse * math.log(verdict.ratio) > guard.bound


def worst_run(pairs: Sequence[tuple[float, float]], *, lower_is_better: bool) -> GuardVerdict:
    """Compare the worst runs of both arms: no interval, for a maximum has none that a few runs could tell."""
    worst = max if lower_is_better else min
    default, candidate = (worst(values) for values in zip(*pairs, strict=True))
    ratio = candidate / default
    held = (ratio if lower_is_better else 1 / ratio) <= 1 + WORST_MARGIN
    return GuardVerdict(WORST_RUN, ratio, ratio, ratio, WORST_MARGIN, held)


def figures(interval: Interval) -> tuple[float, float, float]:
    """Return ratio, low and high of an interval on the log scale."""
    return safe_exp(interval.mean), safe_exp(interval.low), safe_exp(interval.high)


def safe_exp(value: float) -> float:
    """Two pairs that differ, and many comparisons, make an interval wider than a float can hold."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
