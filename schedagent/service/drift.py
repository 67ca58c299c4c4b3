"""What is usual for a cgroup or the machine, and what is not usual any more. Pure.

Every interval in which a subject was busy gives three numbers: mean run-queue delay for each turn (s), the part of it
that some task waited for a CPU (PSI), and how far its mix of commands is from the baseline's. The distance between two
mixes is the total variation distance of the parts of CPU time: 0 for the same, 1 if they have no command in common.

All three are judged as schedagentd judges what it deployed (core/welch.py: Welch's t, one-sided, 99 %): the
mean of the last intervals must be above the baseline's by a margin, surely, and be so three looks in a row. Only the
margin of the mix is our own. Less waiting than usual is no drift: there is nothing to repair.

Simulated over 2000 looks without a change, at a standard deviation of half the mean: no false alarm at neighbouring
intervals that are independent or correlated by 0.5. A tripled wait is seen within 36 busy intervals
(tests/unit/service/test_drift.py repeats both).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from schedagent.core.recommendation import Baseline, Reading
from schedagent.core.welch import (
    DELAY,
    DELAY_FLOOR_S,
    LEAST_SAMPLES,
    PRESSURE,
    PRESSURE_FLOOR,
    TIMES_IN_A_ROW,
    WORSE_RATIO,
    Measure,
    Spread,
    spread,
    surely_worse,
)

MIX = "command_mix"
MIX_FLOOR = 0.25
"""A quarter of the CPU time goes to other commands than before."""
BUSY_SHARE = 0.01
"""An interval counts if its tasks used at least this part of one CPU: an idle cgroup says nothing about waiting."""
RECENT = LEAST_SAMPLES

_WAITING = (Measure(DELAY, WORSE_RATIO, DELAY_FLOOR_S), Measure(PRESSURE, WORSE_RATIO, PRESSURE_FLOOR))
_ALL = (*_WAITING, Measure(MIX, WORSE_RATIO, MIX_FLOOR))


@dataclass(frozen=True)
class Drift:
    """One measure that is surely above what is usual.

    Args:
        measure: DELAY, PRESSURE or MIX.
        now, before: the last intervals, and the baseline.
    """

    measure: str
    now: Spread
    before: Spread

    def __str__(self) -> str:
        if self.measure == MIX:
            return f"{self.now.mean:.0%} of its CPU time goes to other commands than usual ({self.before.mean:.0%})"
        if self.measure == PRESSURE:
            return f"some task waits for a CPU {self.now.mean:.0%} of the time, usually {self.before.mean:.0%}"
        return f"its tasks wait {self.now.mean * 1e3:.2g} ms for a turn, usually {self.before.mean * 1e3:.2g} ms"


def busy(looks: Iterable[Reading]) -> list[Reading]:
    """Return the intervals that say something about waiting."""
    return [look for look in looks if look.delay_s is not None and look.cpu_s >= BUSY_SHARE * look.elapsed_s]


def make_baseline(looks: Sequence[Reading]) -> Baseline:
    """Return what is usual by these busy intervals of one subject, oldest first; there must be one at least."""
    mix = mix_of(looks)
    found = {name: spread(values) for name, values in _values(looks, mix).items()}
    return Baseline(looks[0].subject, looks[0].at, looks[-1].at, found, mix)


def mix_of(looks: Iterable[Reading]) -> dict[str, float]:
    """Return the parts of the CPU time by command."""
    used: Counter[str] = Counter()
    for look in looks:
        used.update(dict(look.commands))
    return shares(used)


def shares(used: Mapping[str, float]) -> dict[str, float]:
    """Return each part of a whole, the largest first; nothing of nothing."""
    whole = sum(used.values())
    return {name: part / whole for name, part in sorted(used.items(), key=lambda item: -item[1])} if whole > 0 else {}


def distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Return the total variation distance of two mixes, from 0 to 1."""
    return sum(abs(one.get(name, 0.0) - other.get(name, 0.0)) for name in {*one, *other}) / 2


def drifts(baseline: Baseline, looks: Sequence[Reading], judged: Iterable[Measure] = _ALL) -> list[Drift]:
    """Return which measures of these busy intervals are surely above what is usual, by the margin."""
    now = {name: spread(values) for name, values in _values(looks, baseline.mix).items()}
    found = []
    for measure in judged:
        before, after = baseline.measures[measure.name], now[measure.name]
        if surely_worse(after, before, measure):
            found.append(Drift(measure.name, after, before))
    return found


def worse(baseline: Baseline, looks: Sequence[Reading]) -> list[Drift]:
    """Return what is surely worse in these busy intervals: waiting, not the mix."""
    return drifts(baseline, looks, _WAITING)


def waits_much(baseline: Baseline, bound_s: float) -> bool:
    """Whether the usual wait for a turn is surely above a bound in seconds."""
    usual = baseline.measures[DELAY]
    return surely_worse(usual, Spread(usual.count, bound_s, 0.0), Measure(DELAY, 0.0, 0.0))


class InARow:
    """Counts how often something was found by subject, one look after the other."""

    def __init__(self) -> None:
        self._times: Counter[str] = Counter()

    def enough(self, subject: str, found: bool) -> bool:
        """Note one look; tell whether it was found TIMES_IN_A_ROW times in a row."""
        self._times[subject] = self._times[subject] + 1 if found else 0
        return self._times[subject] >= TIMES_IN_A_ROW


def _values(looks: Iterable[Reading], mix: Mapping[str, float]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {DELAY: [], PRESSURE: [], MIX: []}
    for look in looks:
        found[DELAY].append(look.delay_s or 0.0)
        found[PRESSURE].append(look.pressure)
        found[MIX].append(distance(shares(look.commands), mix))
    return found
