"""What is usual for a cgroup or the machine, and what has drifted from that. Pure.

Every interval in which a subject was busy gives three numbers: mean run-queue delay before each run (s), the part of it
that some task waited for a CPU (PSI), and how far its mix of commands is from the baseline's. The distance between two
mixes is the total variation distance of the parts of CPU time: 0 for the same, 1 if they have no command in common.

All three are judged as schedagentd judges what it deployed (core/welch.py: Welch's t, one-sided, 99 %): the mean of the
last intervals must be surely above the baseline's by a margin, in three readings in a row. Only the margin of the mix
is our own. Less waiting than usual is no drift: there is nothing to fix.

Simulated over 2000 readings without a change, at a standard deviation of half the mean: no false alarm at neighbouring
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
    surely_above,
    surely_worse,
)

MIX = "command_mix"
MIX_FLOOR = 0.25
"""A quarter of the CPU time goes to other commands than before."""
BUSY_SHARE = 0.01
"""An interval counts if its tasks used at least this part of one CPU: an idle cgroup shows nothing about waiting."""
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
        return f"its tasks wait {self.now.mean * 1e3:.2g} ms for a CPU, usually {self.before.mean * 1e3:.2g} ms"


def busy(readings: Iterable[Reading]) -> list[Reading]:
    """Return the readings with enough work in them to show waiting."""
    return [
        reading
        for reading in readings
        if reading.delay_s is not None and reading.cpu_s >= BUSY_SHARE * reading.elapsed_s
    ]


def make_baseline(readings: Sequence[Reading]) -> Baseline:
    """Return what is usual by these busy intervals of one subject, oldest first; there must be one at least."""
    mix = mix_of(readings)
    usual = {name: spread(values) for name, values in _values(readings, mix).items()}
    return Baseline(readings[0].subject, readings[0].at, readings[-1].at, usual, mix)


def mix_of(readings: Iterable[Reading]) -> dict[str, float]:
    """Return the parts of the CPU time by command."""
    used: Counter[str] = Counter()
    for reading in readings:
        used.update(dict(reading.commands))
    return shares(used)


def shares(used: Mapping[str, float]) -> dict[str, float]:
    """Return each part of a whole, the largest first; nothing of nothing."""
    whole = sum(used.values())
    return {name: part / whole for name, part in sorted(used.items(), key=lambda item: -item[1])} if whole > 0 else {}


def distance(mix: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Return the total variation distance of two mixes, from 0 to 1."""
    return sum(abs(mix.get(name, 0.0) - other.get(name, 0.0)) for name in {*mix, *other}) / 2


def drifts(baseline: Baseline, readings: Sequence[Reading], judged: Iterable[Measure] = _ALL) -> list[Drift]:
    """Return which measures of these busy intervals are surely above what is usual, by the margin."""
    now = {name: spread(values) for name, values in _values(readings, baseline.mix).items()}
    drifted = []
    for measure in judged:
        before, after = baseline.measures[measure.name], now[measure.name]
        if surely_worse(after, before, measure):
            drifted.append(Drift(measure.name, after, before))
    return drifted


def worse(baseline: Baseline, readings: Sequence[Reading]) -> list[Drift]:
    """Return what is surely worse in these busy intervals: waiting, not the mix."""
    return drifts(baseline, readings, _WAITING)


def waits_much(baseline: Baseline, bound_s: float) -> bool:
    """Whether the usual wait for a CPU is surely above a bound in seconds."""
    return surely_above(baseline.measures[DELAY], bound_s)


class InARow:
    """Counts by subject in how many consecutive readings something was seen."""

    def __init__(self) -> None:
        self._times: Counter[str] = Counter()

    def enough(self, subject: str, seen: bool) -> bool:
        """Note one reading; return whether it was seen TIMES_IN_A_ROW times in a row."""
        self._times[subject] = self._times[subject] + 1 if seen else 0
        return self._times[subject] >= TIMES_IN_A_ROW


def _values(readings: Iterable[Reading], mix: Mapping[str, float]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {DELAY: [], PRESSURE: [], MIX: []}
    for reading in readings:
        values[DELAY].append(reading.delay_s or 0.0)
        values[PRESSURE].append(reading.pressure)
        values[MIX].append(distance(shares(reading.commands), mix))
    return values
