"""The rest of a page: the workload, what was tried and why, what it cost, and how to do it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from schedagent.core.terminal.foreign import marked, quote
from schedagent.core.trials.workload import CommandStats
from schedagent.core.verification import GateResult
from schedagent.page.markup import facts, moment, table, text, word
from schedagent.report.faces.again import repeat_command
from schedagent.report.faces.remarks import costs_line, insight_line
from schedagent.report.page.numbers import Place, count, measured, places
from schedagent.report.page.plots import timeline
from schedagent.report.page.sources import PolicyText
from schedagent.report.report import Report
from schedagent.report.times import duration, unix_time
from schedagent.report.values import SECONDS

_MOST_COMMANDS = 12


def worked(report: Report) -> Iterator[str]:
    """Yield what observing the workload has shown."""
    yield "<h2>The workload</h2>"
    profile = report.profile
    yield facts(
        ("Command", report.workload.command),
        ("Folder", report.workload.directory),
        ("Before each run", report.workload.prepare),
        ("Kind", profile.kind.value if profile else ""),
        ("In a model's words", quote(f"{report.meaning.meaning} {report.meaning.goal}") if report.meaning else ""),
        ("Machine", _machine(report)),
        (
            "Emulation",
            costs_line(report.costs).removeprefix("emulated: ")
            if report.costs and report.hardware.lab == "vm-tcg"
            else "",
        ),
    )
    if profile is None:
        yield "<p>It was not observed yet.</p>"
        return
    yield f"<ul>{''.join(f'<li>{text(line)}</li>' for line in profile.evidence)}</ul>"
    if profile.parallelism:
        title = "Tasks that ran or waited for a CPU, in the run that was observed under the default scheduler"
        plot = timeline("runnable", title, profile.parallelism, profile.cpus, profile.wall_s)
        yield f'<div class="plots">{plot}</div>'
    if profile.commands:
        rows = [_command(stats, f"profile/commands/{number}") for number, stats in enumerate(profile.commands)]
        yield table(("command", "tasks", "CPU time", "longest", "waited"), rows[:_MOST_COMMANDS])


def _machine(report: Report) -> str:
    hardware = report.hardware
    return (
        f"{hardware.cpu_model}, {hardware.cpus} CPUs, {hardware.memory_mib} MiB, {hardware.lab}, "
        f"kernel {hardware.kernel_release}"
    )


def _command(stats: CommandStats, at: str) -> list[str]:
    return [
        text(stats.label),
        count(stats.count, f"{at}/count"),
        measured(stats.cpu_ns_total / 1e9, f"{at}/cpu_s", SECONDS),
        measured(stats.cpu_ns_max / 1e6, f"{at}/cpu_ms_max") + " ms",
        measured(stats.run_delay_ns_total / 1e9, f"{at}/run_delay_s", SECONDS),
    ]


def tried(report: Report, policies: Mapping[str, PolicyText]) -> Iterator[str]:
    """Yield each plan with its candidates: why, with what settings, through which gates, and their source."""
    if report.iterations:
        yield "<h2>What was tried, and why</h2>"
    by_trial = {place.at: place for place in places(report)}
    for trial, iteration in enumerate(report.iterations):
        yield f"<h3>Plan {trial + 1}</h3><p>{text(iteration.reason)}</p>"
        if iteration.learned:
            yield f"<p>Learned earlier: {text(iteration.learned)}</p>"
        for number in range(len(iteration.candidates)):
            yield from _candidate(by_trial[f"iterations/{trial}/candidates/{number}"], policies)
    yield from (f"<p>Insight: {text(insight_line(insight))}</p>" for insight in report.insights)


def _candidate(place: Place, policies: Mapping[str, PolicyText]) -> Iterator[str]:
    candidate = place.entry.candidate
    yield f"<details><summary>{text(f'{place.number} {candidate.label}')}: {text(_outcome(place))}</summary>"
    yield facts(
        ("Why", candidate.reason),
        ("Origin", candidate.origin.value),
        ("Predicted", quote(candidate.expected) if candidate.expected else ""),
        ("Refuted by", quote(candidate.refuted_by) if candidate.refuted_by else ""),
        ("Program", shlex.join(candidate.program.argv) if candidate.program else ""),
        ("Content", candidate.program.digest if candidate.program else ""),
        ("Key", candidate.key),
    )
    if place.entry.gates:
        yield table(("gate", "result", "seconds", "detail"), _gates(place.entry.gates, place.at))
    policy = policies.get(candidate.policy)
    if policy:
        yield f"<p>Policy ({text(policy.origin)}):</p><pre class=source><code>{text(policy.text)}</code></pre>"
    yield "</details>"


def _outcome(place: Place) -> str:
    return place.entry.verdict.outcome.value if place.entry.verdict else "not reached"


def _gates(gates: Sequence[GateResult], at: str) -> Iterator[list[str]]:
    for number, gate in enumerate(gates):
        seconds = measured(gate.seconds, f"{at}/gates/{number}/seconds")
        yield [text(gate.gate), word(gate.status), seconds, f"<pre>{text(marked(gate.detail))}</pre>"]


def spent(report: Report) -> Iterator[str]:
    """Yield what the run cost: time, runs, model calls and money."""
    yield "<h2>What it cost</h2>"
    runs = sum(iteration.runs_measured for iteration in report.iterations)
    samples = [sample for iteration in report.iterations for block in iteration.blocks for sample in block.samples]
    in_runs = sum(sample.wall_ns for sample in samples) / 1e9
    verified = sum(gate.seconds for entry in report.candidates for gate in entry.gates)
    yield facts(
        ("Started", moment(report.started_at)),
        ("Took", _took(report)),
        ("Runs of the workload", f"{runs}, {duration(in_runs)} of its own time" if runs else "none"),
        ("Verifying", duration(verified)),
        ("Models", report.model.used if report.model else "none were asked"),
    )


def _took(report: Report) -> str:
    if not report.finished_at:
        return ""
    return duration(unix_time(report.finished_at) - unix_time(report.started_at))


def repeated(report: Report) -> Iterator[str]:
    """Yield the command that does the run again."""
    yield "<h2>Do it again</h2>"
    yield f'<pre class="source"><code>{text(repeat_command(report))}</code></pre>'
    yield (
        f"<p>All that was measured: <code>schedagent runs show {text(report.run)} --json</code>; every run as a line: "
        f"<code>schedagent runs report {text(report.run)} --csv runs.csv</code></p>"
    )
