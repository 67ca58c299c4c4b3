"""What was measured, in a page: ratios of pairs, the values of both arms, what the time splits into, every run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean, median

from schedagent.core.trials.trial import Sample
from schedagent.page.markup import table, text
from schedagent.report.faces.remarks import (
    arm_names,
    headline_values,
    higher_is_better,
    remarks,
)
from schedagent.report.page.numbers import Place, count, measured, places, pointer, ratio
from schedagent.report.page.plots import Row, bars, colour_of, strip_plot
from schedagent.report.report import IterationReport, Report
from schedagent.report.values import CPU, SECONDS, WALL, ArmValues, ValueReport, objective_name, runs_of


def compared(report: Report) -> Iterator[str]:
    """Yield the sections on what was compared; nothing if nothing was."""
    if any(place.entry.values for place in places(report)):
        yield "<h2>What was measured</h2>"
        yield f'<div class="plots">{"".join(_plots(report))}</div>'
        yield from (f"<p>{text(line)}.</p>" for line in remarks(report))
        yield from _values(report)
        yield from _split(report)
        yield from _knobs(report)


def all_samples(report: Report) -> Iterator[str]:
    """Yield every run of every arm, folded."""
    names = arm_names(report)
    for trial, iteration in enumerate(report.iterations):
        rows = [
            _sample(sample, f"iterations/{trial}/blocks/{place}/samples/{number}", block.number, names)
            for place, block in enumerate(iteration.blocks)
            for number, sample in enumerate(block.samples)
        ]
        if rows:
            yield f"<details><summary>All {len(rows)} runs of plan {trial + 1}</summary>"
            yield table(
                (
                    "arm",
                    "block",
                    objective_name(report.workload),
                    "wall time",
                    "CPU time",
                    "probe",
                    "started",
                    "detail",
                ),
                rows,
            )
            yield "</details>"


def _sample(sample: Sample, at: str, block: int, names: dict[str, str]) -> list[str]:
    return [
        text(names.get(sample.arm, sample.arm)),
        f"{block}{'' if block else ' (warm-up)'}",
        measured(sample.value, f"{at}/value"),
        measured(sample.wall_ns / 1e9, f"{at}/wall_s", SECONDS),
        measured(sample.cpu_ns / 1e9, f"{at}/cpu_s", SECONDS),
        measured(sample.calibration_ns / 1e6, f"{at}/calibration_ms") + " ms",
        text(sample.started_at[11:19]),
        text(sample.failure),
    ]


# --- plots -----------------------------------------------------------------------------------------------------------


def _plots(report: Report) -> Iterator[str]:
    yield from _ratios(report)
    names = arm_names(report)
    for trial, iteration in enumerate(report.iterations):
        yield from _strips(report, trial, iteration, names)
        yield from _capacity(report, trial, iteration, names)


def _ratios(report: Report) -> Iterator[str]:
    """A row for each candidate, its pairs with the interval; what is expected on hardware, and its guards, below it."""
    rows, arms = [], list(arm_names(report))
    for place in places(report):
        verdict, colour = place.entry.verdict, colour_of(arms.index(place.entry.candidate.key))
        if verdict is None or not math.isfinite(verdict.ratio):
            continue
        pairs = tuple(candidate / default for default, candidate in place.entry.pairs if min(default, candidate) > 0)
        raw = f"{place.name}, as measured"
        rows.append(Row(raw, colour, pairs, verdict.ratio, _known(verdict.low, verdict.high)))
        if verdict.expected:
            claim = verdict.expected
            label = f"{place.name}, expected on hardware"
            rows.append(Row(label, colour, (), claim.ratio, _known(claim.low, claim.high)))
        for guard in verdict.guards:
            if math.isfinite(guard.ratio):
                limit = 1 - guard.margin if higher_is_better(report, guard.name) else 1 + guard.margin
                label = f"{place.name}, guard {guard.name}: limit {limit:.2f}"
                rows.append(Row(label, colour, (), guard.ratio, _known(guard.low, guard.high), limit))
    title = "Ratios to the default scheduler: pairs, estimate and interval; dotted, the limit of a guard"
    if rows:
        yield strip_plot("ratios", title, rows, None, ratio=True)


def _strips(report: Report, trial: int, iteration: IterationReport, names: dict[str, str]) -> Iterator[str]:
    wanted = {value.name for entry in iteration.candidates for value in headline_values(entry.values)}
    arms = list(dict.fromkeys([*names, *(sample.arm for block in iteration.blocks for sample in block.samples)]))
    for number, value in enumerate(runs_of(iteration.blocks, report.workload, report.hardware.cpus)):
        if value.name in wanted:
            rows = [
                Row(names.get(arm, arm), colour_of(arms.index(arm)), runs, median(runs))
                for arm, runs in sorted(value.runs.items(), key=lambda item: arms.index(item[0]))
            ]
            yield strip_plot(
                f"value-{trial}-{number}",
                f"{value.name[:1].upper()}{value.name[1:]}: every run, and the median",
                rows,
                value.unit,
            )


def _capacity(report: Report, trial: int, iteration: IterationReport, names: dict[str, str]) -> Iterator[str]:
    """A bar for each arm: the CPU seconds that there were, those that were used filled."""
    values = {value.name: value.runs for value in runs_of(iteration.blocks, report.workload, report.hardware.cpus)}
    rows = {}
    for number, (arm, name) in enumerate(names.items()):
        if arm in values.get(WALL, {}) and arm in values.get(CPU, {}):
            used = fmean(values[CPU][arm])
            there = fmean(values[WALL][arm]) * report.hardware.cpus
            rows[name] = (colour_of(number), used, max(0.0, there - used))
    if rows:
        title = "CPU seconds of a run, mean: filled what was used, framed what stood idle"
        yield bars(f"capacity-{trial}", title, rows, ("used", "idle"))


def _known(low: float, high: float) -> tuple[float, float] | None:
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


# --- tables ----------------------------------------------------------------------------------------------------------


def _values(report: Report) -> Iterator[str]:
    yield "<h3>Both arms, in absolute values</h3>"
    for place in places(report):
        if place.entry.values:
            modes = any(arm.modes for value in place.entry.values for arm in (value.default, value.candidate))
            headings = ("value", "arm", "median", "spread", "worst", "runs", *(["modes"] if modes else []))
            rows = [row for value in place.entry.values for row in _both_arms(place, value, modes)]
            yield f"<details{' open' if place.number == 1 else ''}><summary>{text(place.name)}</summary>"
            yield table(headings, rows)
            yield "</details>"
    yield "<p><small>Spread: the distance of the quartiles. All runs after the warm-up that did not fail.</small></p>"


def _both_arms(place: Place, value: ValueReport, modes: bool) -> Iterator[list[str]]:
    at = f"{place.at}/values/{pointer(value.name)}"
    policy = place.entry.candidate.policy
    for arm, key, name in ((value.default, "default", "default"), (value.candidate, "candidate", policy)):
        cells = _arm(arm, f"{at}/{key}", value.unit)
        yield [text(value.name), text(name), *(cells if modes else cells[:-1])]


def _arm(arm: ArmValues, at: str, unit: str | None) -> list[str]:
    modes = [
        f"{count(mode.runs, f'{at}/modes/{number}/runs')} near "
        f"{measured(mode.median, f'{at}/modes/{number}/median', unit)}"
        for number, mode in enumerate(arm.modes)
    ]
    return [
        measured(arm.median, f"{at}/median", unit),
        measured(arm.spread, f"{at}/spread", unit),
        measured(arm.worst, f"{at}/worst", unit),
        count(len(arm.runs), f"{at}/n"),
        "; ".join(modes),
    ]


def _split(report: Report) -> Iterator[str]:
    rows = [_split_row(place) for place in places(report) if place.entry.split]
    if rows:
        yield "<h3>What the time splits into</h3>"
        yield (
            "<p>Wall time is CPU time by the number of CPUs and their use, so its ratio is the product of two: that of "
            "CPU time, where the work is the same but switching and caches are not, and that of their use.</p>"
        )
        yield table(("policy", "wall time", "CPU time", "use of the CPUs"), rows)


def _split_row(place: Place) -> list[str]:
    split, at = place.entry.split, f"{place.at}/split"
    assert split is not None, "rows are made of what has one"
    return [
        text(place.name),
        ratio(split.wall_time, f"{at}/wall_time"),
        ratio(split.cpu_time, f"{at}/cpu_time"),
        ratio(split.utilisation, f"{at}/utilisation"),
    ]


def _knobs(report: Report) -> Iterator[str]:
    """What could be had without a policy."""
    rows = [
        [
            text(knob.name),
            text("-") if knob.expected is None else ratio(knob.expected, f"{at}/expected"),
            ratio(knob.ratio, f"{at}/ratio"),
            measured(knob.value.candidate.median, f"{at}/value/candidate/median", knob.value.unit),
            measured(knob.value.default.median, f"{at}/value/default/median", knob.value.unit),
            count(len(knob.value.candidate.runs), f"{at}/value/candidate/n"),
        ]
        for trial, iteration in enumerate(report.iterations)
        for number, knob in enumerate(iteration.knobs)
        for at in [f"iterations/{trial}/knobs/{number}"]
    ]
    if rows:
        yield "<h3>What could be had without a policy</h3>"
        yield "<p>Settings that every kernel has, run beside the candidates. No claim is made of them.</p>"
        yield table(("knob", "expected", "as measured", "median with it", "without", "runs"), rows)
