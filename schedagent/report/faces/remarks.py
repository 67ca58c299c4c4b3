"""What samples and guards amount to, in short lines that every face for people shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from schedagent.core.process.shell_text import quoted
from schedagent.core.terminal.foreign import quote
from schedagent.core.trials.arm import KNOB_PREFIX
from schedagent.core.trials.lesson import Insight
from schedagent.core.trials.objective import Direction
from schedagent.core.trials.trial import DEFAULT_ARM, Expected, GuardVerdict, Sample
from schedagent.core.trials.usage import MachineCosts
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.report.report import CandidateReport, Report
from schedagent.report.values import DETAILS, SECONDS, Split, ValueReport, figure


def where_text(workload: WorkloadCommand) -> str:
    """Return what was measured, in a few words: a command and its folder, or what runs already."""
    if workload.running:
        return f"experiment on {quoted(workload.command)}"
    return f"{quoted(workload.command)} in {workload.directory}"


def guard_line(guard: GuardVerdict) -> str:
    """Return whether a guard held, by how much it changed, and how much it may get worse."""
    margin = f"may be {100 * guard.margin:g} % worse"
    if not math.isfinite(guard.ratio):
        return f"guard {guard.name}: {guard_word(guard)}, nothing could be compared; {margin}"
    return f"guard {guard.name}: {guard_word(guard)}, ratio {ratio_text(guard.ratio, guard.low, guard.high)}; {margin}"


def guard_word(guard: GuardVerdict) -> str:
    """Return whether it held, in a word."""
    return "held" if guard.held else "broken"


def ratio_text(ratio: float, low: float, high: float) -> str:
    """Return a ratio with its interval; one pair and a worst run have none, and what was not compared no ratio."""
    if not math.isfinite(ratio):
        return "-"
    known = math.isfinite(low) and math.isfinite(high) and low < high
    return f"{ratio:.3f} ({interval_text(low, high)})" if known else f"{ratio:.3f}"


def interval_text(low: float, high: float) -> str:
    """Return an interval, - if it has no end."""
    return f"{low:.3f} to {high:.3f}" if math.isfinite(low) and math.isfinite(high) else "-"


def expected_line(expected: Expected) -> str:
    """Return what is expected on hardware, with its bounds."""
    return (
        f"expected on hardware: {ratio_text(expected.ratio, expected.low, expected.high)}; bounds: "
        f"{expected.utilisation:.3f} if only the use of the CPUs carries over, {expected.raw:.3f} as measured, emulated"
    )


def costs_line(costs: MachineCosts) -> str:
    """Return what separates the emulated machine from hardware."""
    return (
        f"emulated: the same work takes {costs.kappa:.1f} times as long as on the host; a task switch costs "
        f"{figure(costs.lab_switch_ns / 1e9, SECONDS)} here and {figure(costs.host_switch_ns / 1e9, SECONDS)} there"
    )


def split_line(split: Split) -> str:
    """Return what the difference in wall time consists of."""
    parts = f"CPU time x {split.cpu_time:.3f}, use of the CPUs x {split.utilisation:.3f}"
    return f"wall time x {split.wall_time:.3f} = {parts}"


def mode_lines(entry: CandidateReport) -> Iterator[str]:
    """Yield a line for each value that falls into two clusters, in either arm."""
    for value in entry.values:
        for arm, values in (("the default", value.default), (entry.candidate.policy, value.candidate)):
            if values.modes:
                clusters = " and ".join(
                    f"{mode.runs} of {len(values.runs)} runs near {figure(mode.median, value.unit)}"
                    for mode in values.modes
                )
                yield f"{value.name} of {arm} has two modes: {clusters}; worst {figure(values.worst, value.unit)}"


def knob_lines(report: Report) -> Iterator[str]:
    """Yield what could be had without a policy, a line for each knob."""
    for iteration in report.iterations:
        for knob in iteration.knobs:
            value = knob.value
            ratio = f"ratio {knob.ratio:.3f}"
            if knob.expected is not None:
                ratio = f"{knob.expected:.3f} expected on hardware, {knob.ratio:.3f} as measured, emulated"
            yield (
                f"without a policy, by {knob.name}: {ratio} ({value.name} "
                f"{figure(value.candidate.median, value.unit)} instead of {figure(value.default.median, value.unit)}, "
                f"median of {len(value.candidate.runs)} runs; no claim)"
            )


def insight_line(insight: Insight) -> str:
    """Return what samples were checked for, and a model's words beside it, marked as such."""
    if not insight.claims:
        return f"a model's words, unchecked: {quote(insight.text)}"
    words = f"; a model's words: {quote(insight.words)}" if insight.words else ""
    return f"{insight.measured}{words}"


def higher_is_better(report: Report, guard: str) -> bool:
    """Whether a guard holds what is the better the larger it is."""
    metrics = {entry.metric.name: entry.metric.direction for entry in report.workload.guards}
    return metrics.get(guard) is Direction.HIGHER or guard.startswith("CPU share of ")


def remarks(report: Report) -> list[str]:
    """Return what the runs of a report did besides their work; nothing if they did nothing remarkable."""
    samples = [sample for iteration in report.iterations for block in iteration.blocks for sample in block.samples]
    return [*_failures(report, samples), *_left_behind(samples), *_full(samples), *_overheads(report, samples)]


def arm_names(report: Report) -> dict[str, str]:
    """Return what the arms are called; a policy that has several arms has its tunables in its name."""
    candidates = {entry.candidate.key: entry.candidate for entry in report.candidates}
    policies = Counter(candidate.policy for candidate in candidates.values())
    names = {
        key: candidate.policy if policies[candidate.policy] == 1 else candidate.label
        for key, candidate in candidates.items()
    }
    samples = (sample for iteration in report.iterations for block in iteration.blocks for sample in block.samples)
    knobs = {
        sample.arm: sample.arm.removeprefix(KNOB_PREFIX) for sample in samples if sample.arm.startswith(KNOB_PREFIX)
    }
    return {DEFAULT_ARM: "default", **names, **knobs}


def headline_values(values: Iterable[ValueReport]) -> list[ValueReport]:
    """Return the values that a table has room for: the objective, what the user watches, wall and CPU time."""
    return [value for value in values if value.name not in DETAILS]


def _failures(report: Report, samples: Iterable[Sample]) -> Iterator[str]:
    names = arm_names(report)
    failures = Counter((names.get(sample.arm, sample.arm), sample.failure) for sample in samples if sample.failure)
    for (arm, failure), count in failures.items():
        yield f"{count} run{'s' * (count != 1)} of {arm} failed: {failure}"


def _left_behind(samples: Iterable[Sample]) -> Iterator[str]:
    usages = [sample.usage for sample in samples if sample.usage and sample.usage.left_behind]
    if usages:
        names = sorted({name for usage in usages for name in usage.left_behind})
        used = sum(usage.left_cpu_ns for usage in usages) / 1e9
        yield (
            f"{len(usages)} run{'s' * (len(usages) != 1)} left processes behind when the shell returned "
            f"({', '.join(names)}); they were killed, and their {figure(used, SECONDS)} of CPU time count nowhere"
        )


def _overheads(report: Report, samples: Sequence[Sample]) -> Iterator[str]:
    """Yield what the programs that load their policies themselves used beside the work, at its expense."""
    names = arm_names(report)
    for arm in dict.fromkeys(sample.arm for sample in samples):
        runs = [sample for sample in samples if sample.arm == arm and sample.usage and not sample.failure]
        beside_s = sum(sample.usage.loader_cpu_ns for sample in runs if sample.usage) / 1e9
        if beside_s > 0:
            share = beside_s / max(1e-9, sum(sample.wall_ns for sample in runs) / 1e9 * report.hardware.cpus)
            yield (
                f"the program of {names[arm]} itself used {figure(beside_s / len(runs), SECONDS)} of CPU time a run, "
                f"{share:.2%} of what the CPUs had"
            )


def _full(samples: Iterable[Sample]) -> Iterator[str]:
    full = Counter(sample.usage.full for sample in samples if sample.usage and sample.usage.full)
    for what, count in full.items():
        yield f"{count} run{'s' * (count != 1)} filled {'the memory' if what == 'memory' else what}"
