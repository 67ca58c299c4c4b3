"""The values of both arms of a comparison, as every face of the report shows them, and what their time splits into."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles

from schedagent.core.readings.readings import UNNAMED
from schedagent.core.trials.arm import KNOB_PREFIX
from schedagent.core.trials.hardware_gain import expected
from schedagent.core.trials.modes import Mode, modes
from schedagent.core.trials.objective import Direction, Metric
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Sample
from schedagent.core.trials.usage import MachineCosts
from schedagent.core.trials.workload import WorkloadCommand

SECONDS, FRACTION, COUNT = "s", "fraction", "count"
"""Units of what is measured. A number that was read from the output is in seconds if it was printed as a time, in
whatever unit; else its unit is None."""

WALL, CPU, UTILISATION = "wall time", "CPU time", "utilisation"
VOLUNTARY, INVOLUNTARY, WAITED = "voluntary switches", "involuntary switches", "wait for a CPU"
DETAILS = frozenset((UTILISATION, VOLUNTARY, INVOLUNTARY, WAITED))
"""What is always measured, and shown only where there is room."""


@dataclass(frozen=True)
class ArmValues:
    """One value in all runs of one arm.

    Args:
        median, worst: of the runs.
        spread: distance of the quartiles; 0 if there was one run.
        runs: the values in the order they were measured.
        modes: the two clusters they fall into; none if they are one.
    """

    median: float
    spread: float
    worst: float
    runs: tuple[float, ...]
    modes: tuple[Mode, ...]


@dataclass(frozen=True)
class ValueReport:
    """One value in both arms, in all runs after the warm-up that did not fail; disturbed ones count.

    Args:
        name: of the value.
        unit: of both arms, see SECONDS; None if it is not known.
        lower_is_better: which way is better; what is worst follows from it.
        default, candidate: the arms; the default's are the runs of blocks in which the candidate ran, too.
    """

    name: str
    unit: str | None
    lower_is_better: bool
    default: ArmValues
    candidate: ArmValues


@dataclass(frozen=True)
class Split:
    """What a difference in wall time consists of: T = CPU time / (CPUs x utilisation). Ratios are candidate / default.

    Args:
        wall_time: of both parts together, their product.
        cpu_time: in CPU time: work that is the same needs the same, but for the cost of switching and of caches.
        utilisation: in the use of the CPUs, as a part of the time: below 1 if the candidate uses them better.
    """

    wall_time: float
    cpu_time: float
    utilisation: float


@dataclass(frozen=True)
class KnobReport:
    """What a setting that every kernel has gave, beside the candidates. It is no claim, so it has no interval.

    Args:
        name: of the knob.
        ratio: with it / without it in what is compared: the geometric mean of the pairs, as measured.
        value: what is compared, in both arms; the candidate's is the knob's.
        expected: the same, expected on hardware; None where the figures are the hardware's own, or say nothing of it.
    """

    name: str
    ratio: float
    value: ValueReport
    expected: float | None = None


@dataclass(frozen=True)
class ValueRuns:
    """One value in the runs of all arms of a trial, to be drawn; otherwise as ValueReport.

    Args:
        runs: by arm, in the order they were measured.
    """

    name: str
    unit: str | None
    runs: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class _Measure:
    name: str
    unit: str | None
    lower_is_better: bool
    of: Callable[[Sample], float]


def values_of(blocks: Sequence[Block], arm: str, workload: WorkloadCommand, cpus: int) -> tuple[ValueReport, ...]:
    """Return every value that both arms have, what is compared first.

    Args:
        blocks: of the trial, the warm-up included.
        arm: the candidate's key.
        cpus: of the machine it ran on.
    """
    both = list(_pairs(blocks, arm))
    reports = []
    for measure in _measures(workload, cpus, [sample for pair in both for sample in pair]):
        arms = [list(filter(math.isfinite, map(measure.of, runs))) for runs in zip(*both, strict=True)]
        if arms and all(arms):
            default, candidate = (_arm(values, measure.lower_is_better) for values in arms)
            reports.append(ValueReport(measure.name, measure.unit, measure.lower_is_better, default, candidate))
    return tuple(reports)


def knobs_of(
    blocks: Sequence[Block], workload: WorkloadCommand, cpus: int, costs: MachineCosts | None = None
) -> tuple[KnobReport, ...]:
    """Return what the knobs of a trial gave, in the order in which they first ran.

    Args:
        blocks: of the trial.
        cpus: of the machine it ran on.
        costs: what separates that machine from hardware; None where that is not known.
    """
    arms = dict.fromkeys(sample.arm for block in blocks for sample in block.samples)
    knobs = []
    for arm in arms:
        values = values_of(blocks, arm, workload, cpus) if arm.startswith(KNOB_PREFIX) else ()
        pairs = [(candidate.value, default.value) for default, candidate in _pairs(blocks, arm)]
        if values and all(min(pair) > 0 for pair in pairs):
            carried = None if workload.metric or costs is None else _expected(_pairs(blocks, arm), costs, cpus)
            knobs.append(KnobReport(arm.removeprefix(KNOB_PREFIX), _mean_ratio(pairs), values[0], carried))
    return tuple(knobs)


def _expected(pairs: Iterable[tuple[Sample, Sample]], costs: MachineCosts, cpus: int) -> float | None:
    """Return the geometric mean of the ratios to expect on hardware; None if one is not known."""
    ratios = [expected(default, knob, costs, cpus) for default, knob in pairs]
    logs = [math.log(ratio.ratio) for ratio in ratios if ratio]
    return math.exp(fmean(logs)) if logs and len(logs) == len(ratios) else None


def runs_of(blocks: Sequence[Block], workload: WorkloadCommand, cpus: int) -> tuple[ValueRuns, ...]:
    """Return every value of every arm: all runs after the warm-up that did not fail."""
    samples = [sample for block in blocks if block.number for sample in block.samples if not sample.failure]
    arms = dict.fromkeys(sample.arm for sample in samples)
    values = []
    for measure in _measures(workload, cpus, samples):
        runs = {arm: tuple(measure.of(sample) for sample in samples if sample.arm == arm) for arm in arms}
        known = {arm: finite for arm, all_runs in runs.items() if (finite := tuple(filter(math.isfinite, all_runs)))}
        if known:
            values.append(ValueRuns(measure.name, measure.unit, known))
    return tuple(values)


def split_of(blocks: Sequence[Block], arm: str) -> Split | None:
    """Return what the difference in wall time splits into; None if nothing can be compared."""
    both = [
        (default, candidate)
        for default, candidate in _pairs(blocks, arm)
        if min(default.cpu_ns, candidate.cpu_ns, default.wall_ns, candidate.wall_ns) > 0
    ]
    if not both:
        return None
    wall = _mean_ratio((candidate.wall_ns, default.wall_ns) for default, candidate in both)
    cpu = _mean_ratio((candidate.cpu_ns, default.cpu_ns) for default, candidate in both)
    return Split(wall, cpu, wall / cpu)


def objective_name(workload: WorkloadCommand) -> str:
    """Return what is compared, for people."""
    return workload.objective or ("metric" if workload.metric else WALL)


def figure(value: float, unit: str | None) -> str:
    """Return a value with its unit for people: four digits, seconds scaled."""
    if not math.isfinite(value):
        return "-"
    if unit == FRACTION:
        return f"{100 * value:.1f} %"
    if unit == SECONDS:
        return _seconds(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _seconds(value: float) -> str:
    if value == 0:
        return "0 s"
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if abs(value * factor) >= 1:
            return f"{value * factor:.{_decimals(abs(value * factor))}f} {unit}"
    return f"{value * 1e9:.3g} ns"


def _decimals(value: float) -> int:
    """Return how many decimals make four digits."""
    return max(0, 3 - math.floor(math.log10(value)))


def _pairs(blocks: Sequence[Block], arm: str) -> Iterator[tuple[Sample, Sample]]:
    """Yield (default's run, candidate's run) of each block after the warm-up in which both arms ran and none failed."""
    for block in blocks:
        default, candidate = block.sample(DEFAULT_ARM), block.sample(arm)
        if block.number and default and candidate and not (default.failure or candidate.failure):
            yield default, candidate


def _measures(workload: WorkloadCommand, cpus: int, samples: Sequence[Sample]) -> list[_Measure]:
    """What is compared, what the user named, what else was read from the output, and what is always measured."""
    higher = {metric.name for metric in _metrics(workload) if metric.direction is Direction.HIGHER}
    goal = workload.goal.lower_is_better
    units = {name: SECONDS for name, kind in workload.units if kind == SECONDS}
    compared = units.get(workload.objective or UNNAMED) if workload.metric else SECONDS
    objective = _Measure(objective_name(workload), compared, goal, lambda sample: sample.value)
    named = [metric.name for metric in _metrics(workload)]
    read = [name for sample in samples for name in sample.values]
    measures = [objective]
    measures += [_read(name, units.get(name), name not in higher) for name in dict.fromkeys([*named, *read])]
    measures += (
        []
        if workload.running
        else [
            _Measure(WALL, SECONDS, True, lambda sample: sample.wall_ns / 1e9),
            _Measure(CPU, SECONDS, True, lambda sample: sample.cpu_ns / 1e9),
            _Measure(UTILISATION, FRACTION, False, lambda sample: _utilisation(sample, cpus)),
            _Measure(VOLUNTARY, COUNT, True, lambda sample: _used(sample, "voluntary_switches")),
            _Measure(INVOLUNTARY, COUNT, True, lambda sample: _used(sample, "involuntary_switches")),
            _Measure(WAITED, SECONDS, True, _run_delay_s),
        ]
    )
    first: dict[str, _Measure] = {}
    for measure in measures:
        first.setdefault(measure.name, measure)
    return list(first.values())


def _metrics(workload: WorkloadCommand) -> Iterator[Metric]:
    yield from (guard.metric for guard in workload.guards)
    yield from workload.metrics


def _read(name: str, unit: str | None, lower_is_better: bool) -> _Measure:
    return _Measure(name, unit, lower_is_better, lambda sample: sample.values.get(name, math.nan))


def _utilisation(sample: Sample, cpus: int) -> float:
    return sample.cpu_ns / (sample.wall_ns * cpus) if sample.wall_ns and sample.cpu_ns else math.nan


def _used(sample: Sample, name: str) -> float:
    return float(getattr(sample.usage, name)) if sample.usage else math.nan


def _run_delay_s(sample: Sample) -> float:
    if sample.usage is None or not sample.usage.commands:
        return math.nan
    return sum(command.run_delay_ns for command in sample.usage.commands) / 1e9


def _arm(values: Sequence[float], lower_is_better: bool) -> ArmValues:
    low, _middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    worst = max(values) if lower_is_better else min(values)
    return ArmValues(median(values), high - low, worst, tuple(values), modes(values))


def _mean_ratio(pairs: Iterable[tuple[float, float]]) -> float:
    logs = [math.log(candidate / default) for candidate, default in pairs]
    return math.exp(math.fsum(logs) / len(logs))
