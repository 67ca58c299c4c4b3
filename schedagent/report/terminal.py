"""The report of a run on a terminal of 80 columns. Nothing in it is markup to rich."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from schedagent.core.process.shell_text import quoted
from schedagent.core.terminal.console import UNBROKEN
from schedagent.core.trials.trial import Outcome, Verdict
from schedagent.core.trials.workload import CommandStats, Goal, WorkloadCommand, WorkloadProfile
from schedagent.core.verification import GateResult, GateStatus
from schedagent.report.conclusion import conclusion
from schedagent.report.report import CandidateReport, Report
from schedagent.report.tables import say, say_wrapped

TOP_COMMANDS = 5

_COLOURS = {Outcome.BETTER: "bold green", Outcome.WORSE: "red", Outcome.FAILED: "bold red"}
_NOT_REACHED = "not reached"


def render(report: Report, console: Console) -> None:
    """Print what a person wants to know at the end of a run."""
    console.print()
    say(console, f"Run {report.run}: {quoted(report.workload.command)} in {report.workload.directory}")
    hardware = report.hardware
    say(console, f"  Lab: {hardware.lab}, {hardware.cpus} CPUs, kernel {hardware.kernel_release}")
    if report.profile:
        _render_profile(report, report.profile, console)
    for number, iteration in enumerate(report.iterations, start=1):
        say(console, f"Plan {number}: {iteration.reason}")
        if iteration.learned:
            say(console, f"  Learned earlier: {iteration.learned}")
    _render_candidates(tuple(report.candidates), report.workload, console)
    for insight in report.insights:
        say(console, f"  Insight: {insight.text} (from {', '.join(insight.evidence)})")
    console.print()
    for line in conclusion(report):
        say(console, line)


def _render_profile(report: Report, profile: WorkloadProfile, console: Console) -> None:
    busy = f"{100 * profile.busy_fraction:.0f} % of {profile.cpus} CPUs busy"
    say(console, f"  Profile: {profile.kind.value}; {profile.wall_s:.2f} s wall, {profile.cpu_s:.2f} s CPU, {busy}")
    for sentence in profile.evidence:
        say_wrapped(console, sentence, "    ")
    if report.meaning:
        say(console, f"    In words: {report.meaning.meaning} Goal: {report.meaning.goal}")
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


def _render_candidates(candidates: Sequence[CandidateReport], workload: WorkloadCommand, console: Console) -> None:
    if not candidates:
        return
    say(console, f"\nCandidates against the default scheduler ({_ratio_means(workload)}):")
    table = _table(candidates)
    wanted = console.measure(table, options=console.options.update(max_width=UNBROKEN)).maximum
    console.print(table if wanted <= console.width else _table(candidates, names=False))
    for number, entry in enumerate(candidates, start=1):
        say(console, f"  {number} {entry.candidate.label}")
        for line in _details(entry):
            say_wrapped(console, line, "      ")


def _ratio_means(workload: WorkloadCommand) -> str:
    if not workload.metric:
        return "ratio below 1: less time"
    return "ratio above 1: more" if workload.goal is Goal.THROUGHPUT else "ratio below 1: a smaller metric"


def _table(candidates: Sequence[CandidateReport], *, names: bool = True) -> Table:
    """A row for each candidate; where there is no room for the names, the numbers refer to the lines below."""
    table = Table()
    table.add_column("")
    if names:
        table.add_column("policy", no_wrap=True)
    for heading in ("pairs", "ratio", "interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for number, entry in enumerate(candidates, start=1):
        outcome = entry.verdict.outcome if entry.verdict else None
        style = _COLOURS.get(outcome, "") if outcome else ""
        verdict = Text(outcome.value if outcome else _NOT_REACHED, style=style)
        name = [Text(entry.candidate.policy)] if names else []
        table.add_row(str(number), *name, *_figures(entry.verdict), verdict)
    return table


def _figures(verdict: Verdict | None) -> tuple[str, str, str]:
    """Pairs, ratio and interval; one pair has an estimate and no interval."""
    if verdict is None:
        return "0", "-", "-"
    ratio = f"{verdict.ratio:.3f}" if math.isfinite(verdict.ratio) else "-"
    known = math.isfinite(verdict.low) and math.isfinite(verdict.high)
    return str(verdict.pairs), ratio, f"{verdict.low:.3f} to {verdict.high:.3f}" if known else "-"


def _details(entry: CandidateReport) -> Iterator[str]:
    yield entry.verdict.reason if entry.verdict else _NOT_REACHED
    facts = [_gates(entry.gates)]
    if math.isfinite(entry.cpu_time_ratio):
        facts.append(f"CPU time x {entry.cpu_time_ratio:.2f}")
    if entry.verdict and entry.verdict.disturbed:
        facts.append(f"{entry.verdict.disturbed} disturbed pair{'s' * (entry.verdict.disturbed > 1)} left out")
    yield "; ".join(facts)


def _gates(gates: Sequence[GateResult]) -> str:
    for gate in gates:
        if gate.status is not GateStatus.PASSED:  # the gates after it were not run
            return f"gate {gate.status.value}: {gate.gate}"
    return f"{len(gates)} gates passed" if gates else "gates not run"
