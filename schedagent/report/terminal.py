"""The report of a run on a terminal of 80 columns. Nothing in it is markup to rich."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schedagent.core.terminal.console import UNBROKEN
from schedagent.core.terminal.foreign import one_line, quote
from schedagent.core.trials.trial import Outcome
from schedagent.core.trials.workload import CommandStats, Goal, WorkloadCommand, WorkloadProfile
from schedagent.core.verification import GateResult, GateStatus
from schedagent.report.conclusion import conclusion
from schedagent.report.faces.remarks import (
    costs_line,
    expected_line,
    guard_line,
    headline_values,
    insight_line,
    interval_text,
    knob_lines,
    mode_lines,
    remarks,
    split_line,
    where_text,
)
from schedagent.report.faces.strips import levels, strips
from schedagent.report.report import CandidateReport, Report
from schedagent.report.tables import say, say_wrapped
from schedagent.report.values import figure

TOP_COMMANDS = 5

_COLOURS = {
    Outcome.BETTER: "bold green",
    Outcome.TRADE_OFF: "bold yellow",
    Outcome.WORSE: "red",
    Outcome.FAILED: "bold red",
}
_NOT_REACHED = "not reached"
UNSEEN = "loads its policy itself, which no gate saw"
_LONGEST_NAME = 20
_NARROWEST_STRIP, _WIDEST_STRIP, _NARROWEST_TERMINAL = 10, 40, 60


def render(report: Report, console: Console) -> None:
    """Print what a person wants to know at the end of a run."""
    console.print()
    say(console, f"Run {report.title}: {where_text(report.workload)}")
    hardware = report.hardware
    say(console, f"  Lab: {hardware.lab}, {hardware.cpus} CPUs, kernel {hardware.kernel_release}")
    if report.costs and hardware.lab == "vm-tcg":
        say_wrapped(console, costs_line(report.costs), "    ")
    if report.profile:
        _render_profile(report, report.profile, console)
    for number, iteration in enumerate(report.iterations, start=1):
        say(console, f"Plan {number}: {iteration.reason}")
        if iteration.learned:
            say(console, f"  Learned earlier: {iteration.learned}")
    _render_candidates(report, console)
    for line in knob_lines(report):
        say_wrapped(console, line, "  ")
    for line in remarks(report):
        say_wrapped(console, f"Note: {line}.", "  ")
    for insight in report.insights:
        say(console, f"  Insight: {insight_line(insight)} (from {', '.join(insight.evidence)})")
    console.print()
    for line in conclusion(report):
        say(console, line)


def _render_profile(report: Report, profile: WorkloadProfile, console: Console) -> None:
    busy = f"{100 * profile.busy_fraction:.0f} % of {profile.cpus} CPUs busy"
    say(console, f"  Profile: {profile.kind.value}; {profile.wall_s:.2f} s wall, {profile.cpu_s:.2f} s CPU, {busy}")
    for sentence in profile.evidence:
        say_wrapped(console, sentence, "    ")
    if profile.parallelism and _draws(console):
        most = max(tasks for _time, tasks in profile.parallelism)
        bars = levels(profile.parallelism, profile.wall_s, min(console.width - 35, _WIDEST_STRIP))
        say(console, f"    runnable tasks, at most {most}  |{bars}|")
    if report.meaning:
        say(console, f"    In a model's words: {quote(report.meaning.meaning)} Goal: {quote(report.meaning.goal)}")
    if profile.commands:
        for line in _commands(profile.commands[:TOP_COMMANDS]):
            say(console, f"    {line}")
    console.print()


def _commands(commands: Sequence[CommandStats]) -> Iterator[str]:
    """A line for each command, which comes last: it may be long, and is not broken."""
    rows = [("tasks", "CPU time", "longest", "waited", "command")]
    for stats in commands:
        cpu, longest, waited = stats.cpu_ns_total / 1e9, stats.cpu_ns_max / 1e6, stats.run_delay_ns_total / 1e9
        rows.append((str(stats.count), f"{cpu:.2f} s", f"{longest:.0f} ms", f"{waited:.2f} s", stats.label))
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for row in rows:
        yield "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])


def _render_candidates(report: Report, console: Console) -> None:
    candidates = tuple(report.candidates)
    if not candidates:
        return
    console.print()
    say(console, f"Candidates against the default scheduler ({_ratio_means(report.workload)}):")
    console.print(_fitting_table(candidates, console))
    if _any_expected(candidates):
        say(console, "  expected: on hardware, which is what is claimed; raw: as measured, emulated")
    for number, entry in enumerate(candidates, start=1):
        say(console, f"  {number} {entry.candidate.label}")
        for line in _details(entry):
            say_wrapped(console, line, "      ")
        for line in _values(entry, console):
            say(console, f"      {line}".rstrip())


def _ratio_means(workload: WorkloadCommand) -> str:
    if not workload.metric:
        return "ratio below 1: less time"
    name = workload.objective or "metric"
    return f"ratio above 1: more {name}" if workload.goal is Goal.THROUGHPUT else f"ratio below 1: a smaller {name}"


def _any_expected(candidates: Sequence[CandidateReport]) -> bool:
    return any(entry.verdict and entry.verdict.expected for entry in candidates)


def _fitting_table(candidates: Sequence[CandidateReport], console: Console) -> Table:
    """The table; where there is no room for the names, its numbers refer to the lines below."""
    unbroken = console.options.update(max_width=UNBROKEN)
    for table in (_table(candidates), _table(candidates, padded=False)):
        if console.measure(table, options=unbroken).maximum <= console.width:
            return table
    return _table(candidates, names=False)


def _table(candidates: Sequence[CandidateReport], *, names: bool = True, padded: bool = True) -> Table:
    """A row for each candidate."""
    emulated = _any_expected(candidates)
    table = Table(pad_edge=padded)
    table.add_column("")
    if names:
        table.add_column("policy", no_wrap=True)
    for heading in ("pairs", "expected", "interval", "raw") if emulated else ("pairs", "ratio", "interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for number, entry in enumerate(candidates, start=1):
        outcome = entry.verdict.outcome if entry.verdict else None
        style = _COLOURS.get(outcome, "") if outcome else ""
        verdict = Text(outcome.value if outcome else _NOT_REACHED, style=style)
        name = [Text(one_line(entry.candidate.policy))] if names else []
        table.add_row(str(number), *name, *_figures(entry, emulated), verdict)
    return table


def _figures(entry: CandidateReport, emulated: bool) -> tuple[str, ...]:
    """Pairs, ratio and interval of what is claimed, and the raw ratio if that is another.

    What nothing is expected of has its raw ratio alone.
    """
    if entry.verdict is None:
        return ("0", "-", "-", "-")[: 3 + emulated]
    ratio, low, high = entry.verdict.claim
    raw = f"{entry.verdict.ratio:.3f}" if math.isfinite(entry.verdict.ratio) else "-"
    if emulated and entry.verdict.expected is None:
        return str(entry.verdict.pairs), "-", "-", raw
    claimed = f"{ratio:.3f}" if math.isfinite(ratio) else "-"
    return (str(entry.verdict.pairs), claimed, interval_text(low, high), raw)[: 3 + emulated]


def _details(entry: CandidateReport) -> Iterator[str]:
    yield entry.verdict.reason if entry.verdict else _NOT_REACHED
    if entry.verdict:
        if entry.verdict.expected:
            yield expected_line(entry.verdict.expected)
        yield from map(guard_line, entry.verdict.guards)
    if entry.split:
        yield split_line(entry.split)
    facts = [UNSEEN if entry.candidate.loads_itself else _gates(entry.gates)]
    if entry.verdict and entry.verdict.disturbed:
        facts.append(f"{entry.verdict.disturbed} disturbed pair{'s' * (entry.verdict.disturbed > 1)} left out")
    yield "; ".join(facts)
    yield from mode_lines(entry)


def _values(entry: CandidateReport, console: Console) -> Iterator[str]:
    """A line for each value and arm: median, spread, worst, runs, and on a terminal where the runs lie."""
    values = headline_values(entry.values)
    if not values:
        return
    rows: list[tuple[str, ...]] = [("value", "median", "spread", "worst", "runs")]
    for value in values:
        for arm, name in ((value.default, f"{_short(value.name)}, default"), (value.candidate, "  this policy")):
            figures = (figure(number, value.unit) for number in (arm.median, arm.spread, arm.worst))
            rows.append((name, *figures, str(len(arm.runs))))
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    room = min(console.width - 6 - sum(widths) - 2 * len(widths), _WIDEST_STRIP)
    drawn = _draws(console) and room >= _NARROWEST_STRIP
    marks = ["", *(strip for value in values for strip in strips(value, room))] if drawn else [""] * len(rows)
    for (name, *numbers), strip in zip(rows, marks, strict=True):
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        yield "  ".join([name + " " * (widths[0] - cell_len(name)), *cells, strip]).rstrip()


def _draws(console: Console) -> bool:
    """Whether plots help: somebody looks at a terminal that has more than ASCII, and is not too narrow."""
    return console.is_terminal and not console.options.ascii_only and console.width >= _NARROWEST_TERMINAL


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."


def _gates(gates: Sequence[GateResult]) -> str:
    """The gate that decided against a policy; one that is only unfair was measured all the same."""
    failed = [gate for gate in gates if gate.status is not GateStatus.PASSED]
    deciding = next((gate for gate in failed if not gate.tolerable), None)
    if deciding:
        return f"gate {deciding.status.value}: {deciding.gate}"
    if failed:
        return f"safe, but unfair: gate {failed[0].gate} failed, so there is no token"
    return f"{len(gates)} gates passed" if gates else "gates not run"
