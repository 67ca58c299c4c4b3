"""The summaries that agents start from: a few hundred tokens each, pure functions of what is stored.

The same records always give the same text, so that a resumed run asks what it asked before. Numbers are rounded to what
the measurements can show. Everything here is data in a prompt and goes there inside fences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agents import plain_text
from agents.evidence import metrics
from agents.plain_text import short
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo
from schedagent.core.process.shell_text import quoted
from schedagent.core.rules import RULES
from schedagent.core.terminal.foreign import marked
from schedagent.core.trials.lesson import Antipattern, Insight, Lesson, Meaning
from schedagent.core.trials.trial import Hardware, Outcome, Verdict
from schedagent.core.trials.workload import CommandStats, WorkloadCommand, WorkloadProfile
from schedagent.core.verification import Finding, GateResult, Severity, VerificationReport

COMMANDS = 6
SPLIT = 4
"""Command lines shown apart from their command's other tasks."""
LESSONS = 8
INSIGHTS = 6
FINDINGS = 4
STEPS = 6
AROUND = 3
DETAIL = 1500
"""Characters of a gate's own words, of which clang and the kernel's verifier have many."""

_SENTENCE = 240


def workload_text(workload: WorkloadCommand, hardware: Hardware) -> str:
    """Return what is to be improved, and where it runs."""
    better = "less" if workload.goal.lower_is_better else "more"
    of_what = f"the number that {quoted(workload.metric)} finds in its output" if workload.metric else "wall time"
    guards = [f"{guard.metric.name} (margin {100 * guard.margin:g} %)" for guard in workload.guards]
    return "\n".join(
        [
            f"command: {short(workload.command, _SENTENCE)}",
            f"goal: {workload.goal.value}, {better} of {workload.objective or of_what}",
            *([f"must not get worse: {', '.join(guards)}"] if guards else []),
            f"machine: {hardware.cpus} CPUs ({hardware.lab}), {hardware.memory_mib} MiB, "
            f"kernel {hardware.kernel_release}",
        ]
    )


def profile_text(profile: WorkloadProfile) -> str:
    """Return what one run under the default scheduler has shown: the first tier, without task histories."""
    lines = [
        f"kind: {profile.kind.value}",
        *(f"- {sentence}" for sentence in profile.evidence),
        f"wall {_figure(profile.wall_s)} s, CPU {_figure(profile.cpu_s)} s, {100 * profile.busy_fraction:.0f} % of "
        f"{profile.cpus} CPUs busy; {_runnable(profile)}",
        _pressure(profile),
    ]
    if profile.predicted_ratio < 1:
        saved = 100 * (1 - profile.predicted_ratio)
        lines.append(f"bound: running the longest task first could save {saved:.0f} % of the makespan at most")
    if profile.lost_events:
        lines.append(f"{profile.lost_events} events were lost: the table may miss tasks")
    lines.append("command | tasks | CPU s | CPU ms p50/p95/max | waited s | burst ms | sleeps")
    lines += [_command(stats) for stats in profile.commands[:COMMANDS]]
    if len(profile.commands) > COMMANDS:
        lines.append(f"and {len(profile.commands) - COMMANDS} more commands with less CPU time")
    known = {stats.identity for stats in profile.commands}
    lines += [_command(stats) for stats in profile.histories if stats.identity not in known][:SPLIT]
    return "\n".join(lines)


def _runnable(profile: WorkloadProfile) -> str:
    counts = sorted(runnable for _second, runnable in profile.parallelism)
    if not counts:
        return "runnable tasks not sampled"
    return f"runnable tasks: median {counts[len(counts) // 2]}, most {counts[-1]}"


def _pressure(profile: WorkloadProfile) -> str:
    kinds = {"CPU": profile.psi_cpu_some_s, "I/O": profile.psi_io_some_s, "memory": profile.psi_memory_some_s}
    known = [f"{kind} {seconds:.2g} s" for kind, seconds in kinds.items() if seconds >= 0]
    return f"some task waited for: {', '.join(known) or 'unknown, the kernel has no PSI'}"


def _command(stats: CommandStats) -> str:
    quantiles = "/".join(_figure(ns / 1e6) for ns in (stats.cpu_ns_p50, stats.cpu_ns_p95, stats.cpu_ns_max))
    return (
        f"{short(stats.label, 40)} | {stats.count} | {_figure(stats.cpu_ns_total / 1e9)} | {quantiles} | "
        f"{_figure(stats.run_delay_ns_total / 1e9)} | {_figure(stats.burst_ns_mean / 1e6)} | {stats.voluntary_switches}"
    )


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def meaning_text(meaning: Meaning | None) -> str:
    """Return what Observation made of the profile; empty if it made nothing of it."""
    return f"meaning: {meaning.meaning}\ngoal: {meaning.goal}" if meaning else ""


# --- what can be proposed, and what is known ------------------------------------------------------------------------


def library_text(policies: Iterable[PolicyInfo]) -> str:
    """Return what the library holds: a line for each policy and its tunables."""
    return "\n".join(_policy(info) for info in policies)


def _policy(info: PolicyInfo) -> str:
    origin = "" if info.origin == "bundled" else f" ({info.origin.label})"
    tunables = ", ".join(
        f"{tunable.name} {tunable.minimum}..{tunable.maximum} ({tunable.default})" for tunable in info.tunables
    )
    targets = ", ".join(info.target_workloads) or "any work"
    inputs = f"; knows {' and '.join(info.inputs)}" if info.inputs else ""
    return (
        f"{info.name}{origin}: {short(info.description, _SENTENCE)} For {targets}{inputs}. Tunables: {tunables or '-'}"
    )


def tried_text(tried: Sequence[tuple[CandidatePolicy, Verdict]]) -> str:
    """Return the history of this run: each candidate with its verdict, and what its planner expected."""
    lines = []
    for candidate, verdict in tried:
        lines.append(f"{candidate.key} {candidate.origin.value} {candidate.label}: {plain_text.verdict(verdict)}")
        if candidate.expected:
            lines.append(f"  expected: {candidate.expected} Refuted by: {candidate.refuted_by or '-'}")
        if verdict.outcome is Outcome.FAILED or not verdict.pairs:
            lines.append(f"  {short(verdict.reason, _SENTENCE)}")
    return "\n".join(lines)


def lessons_text(lessons: Sequence[Lesson]) -> str:
    """Return the verdicts of earlier runs, those that won first, the latest of each configuration."""
    latest = {(lesson.policy, lesson.tunables): lesson for lesson in sorted(lessons, key=lambda lesson: lesson.at)}
    ranked = sorted(
        latest.values(), key=lambda lesson: (lesson.outcome is not Outcome.BETTER, lesson.policy, lesson.tunables)
    )
    lines = [
        f"{lesson.policy} {plain_text.tunables(lesson.tunables)}: {plain_text.verdict(lesson)}"
        for lesson in ranked[:LESSONS]
    ]
    return "\n".join(lines)


def antipatterns_text(antipatterns: Sequence[Antipattern]) -> str:
    """Return what failed in earlier runs, one line for each policy and gate."""
    seen = {(pattern.policy, pattern.gate): pattern for pattern in sorted(antipatterns, key=lambda pattern: pattern.at)}
    lines = [
        f"{policy} failed at {gate}: {short(pattern.reason, _SENTENCE)}"
        for (policy, gate), pattern in sorted(seen.items())
    ]
    return "\n".join(lines[:LESSONS])


def insights_text(insights: Sequence[Insight]) -> str:
    """Return what earlier runs concluded, those first that were checked against samples."""
    ranked = sorted(insights, key=lambda insight: not insight.claims)
    return "\n".join(f"- {plain_text.conclusion(insight)}" for insight in ranked[:INSIGHTS])


def metrics_text(workload: WorkloadCommand) -> str:
    """Return what claims may be about."""
    return "\n".join(
        f"{short(name, _SENTENCE)} ({'less' if compared.lower_is_better else 'more'} is better)"
        for name, compared in metrics(workload).items()
    )


# --- what a repair needs ----------------------------------------------------------------------------------------------


def rejection_text(report: VerificationReport) -> str:
    """Return why a gate failed, as far as a repair needs it: its findings, measurements and messages."""
    gate = report.failure
    if gate is None:
        return ""
    lines = [f"gate: {gate.gate}", *_finding_lines(gate)]
    for oracle in report.oracles:
        if not oracle.ok:
            measured = f"{oracle.measured:.3g}, bound {oracle.bound:.3g} {oracle.unit}"
            lines.append(f"oracle {oracle.title} (rule {oracle.rule}): {measured}. {short(oracle.detail, DETAIL)}")
            lines.append(f"  repair: {RULES[oracle.rule].repair}")
    lines.append(_middle_cut(marked(gate.detail), DETAIL))
    return "\n".join(lines)


def _finding_lines(gate: GateResult) -> list[str]:
    errors = [finding for finding in gate.findings if finding.severity is Severity.ERROR]
    lines = [line for finding in errors[:FINDINGS] for line in _finding(finding)]
    if len(errors) > FINDINGS:
        lines.append(f"and {len(errors) - FINDINGS} more findings")
    return lines


def _finding(finding: Finding) -> list[str]:
    rule = finding.text
    path = [short(f"{step.file}:{step.line} {step.text}", _SENTENCE) for step in finding.path[-STEPS:]]
    return [
        short(str(finding), DETAIL),
        *(f"  {step}" for step in path),
        f"  rule: {rule.text}. {rule.why}.",
        f"  repair: {rule.repair}",
    ]


def excerpts_text(report: VerificationReport, source: str) -> str:
    """Return the lines around the findings of the gate that failed, numbered as the findings name them."""
    if report.failure is None:
        return ""
    errors = [finding for finding in report.failure.findings if finding.severity is Severity.ERROR and finding.line]
    wanted = {
        number for finding in errors[:FINDINGS] for number in range(finding.line - AROUND, finding.line + AROUND + 1)
    }
    lines = source.splitlines()
    return "\n".join(f"{number:>4} {lines[number - 1]}" for number in sorted(wanted) if 1 <= number <= len(lines))


def _middle_cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n... ({len(text) - limit} characters left out) ...\n{text[-(limit - limit // 2) :]}"
