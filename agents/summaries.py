"""The summaries that agents start from: a few hundred tokens each, pure functions of what is stored.

The same records always give the same text, so that a resumed run asks what it asked before. Numbers are rounded to what
the measurements can tell. Everything here is data in a prompt and goes there inside fences.
May import: schedagent.core.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from schedagent.core.lesson import Antipattern, Insight, Lesson, Meaning
from schedagent.core.policy import CandidatePolicy, PolicyInfo
from schedagent.core.rules import RULES
from schedagent.core.trial import Hardware, Outcome, Verdict
from schedagent.core.verification import Finding, GateResult, Severity, VerificationReport
from schedagent.core.workload import CommandStats, WorkloadCommand, WorkloadProfile

COMMANDS = 6
LESSONS = 8
INSIGHTS = 6
FINDINGS = 4
STEPS = 6
DETAIL = 1500
"""Characters of a gate's own words, of which clang and the kernel's verifier have many."""

_SENTENCE = 240


def workload_text(workload: WorkloadCommand, hardware: Hardware) -> str:
    """Say what is to be made better, and where it runs."""
    better = "less" if workload.goal.lower_is_better else "more"
    of_what = f"the number that {workload.metric!r} finds in its output" if workload.metric else "wall time"
    return "\n".join(
        [
            f"command: {_cut(workload.command, _SENTENCE)}",
            f"goal: {workload.goal.value}, {better} of {of_what}",
            f"machine: {hardware.cpus} CPUs ({hardware.lab}), {hardware.memory_mib} MiB, "
            f"kernel {hardware.kernel_release}",
        ]
    )


def profile_text(profile: WorkloadProfile) -> str:
    """Say what one run under the default scheduler has shown: the first tier, without task histories."""
    lines = [
        f"kind: {profile.kind.value}",
        *(f"- {sentence}" for sentence in profile.evidence),
        f"wall {profile.wall_s:.3g} s, CPU {profile.cpu_s:.3g} s, {100 * profile.busy_fraction:.0f} % of "
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
    quantiles = "/".join(f"{ns / 1e6:.3g}" for ns in (stats.cpu_ns_p50, stats.cpu_ns_p95, stats.cpu_ns_max))
    return (
        f"{_cut(stats.label, 40)} | {stats.count} | {stats.cpu_ns_total / 1e9:.3g} | {quantiles} | "
        f"{stats.run_delay_ns_total / 1e9:.3g} | {stats.burst_ns_mean / 1e6:.3g} | {stats.voluntary_switches}"
    )


def meaning_text(meaning: Meaning | None) -> str:
    """Say what Observation made of the profile; empty if it said nothing."""
    return f"meaning: {meaning.meaning}\ngoal: {meaning.goal}" if meaning else ""


# --- what can be proposed, and what is known ------------------------------------------------------------------------


def library_text(policies: Iterable[PolicyInfo]) -> str:
    """Say what the library holds: a line for each policy and its tunables."""
    return "\n".join(_policy(info) for info in policies)


def _policy(info: PolicyInfo) -> str:
    origin = "" if info.origin == "bundled" else f" ({info.origin.value})"
    tunables = ", ".join(f"{one.name} {one.minimum}..{one.maximum} ({one.default})" for one in info.tunables)
    targets = ", ".join(info.target_workloads) or "any work"
    inputs = f"; knows {' and '.join(info.inputs)}" if info.inputs else ""
    return f"{info.name}{origin}: {_cut(info.description, _SENTENCE)} For {targets}{inputs}. Tunables: {tunables or '-'}"


def tried_text(tried: Sequence[tuple[CandidatePolicy, Verdict]]) -> str:
    """Tell the history of this run: each candidate with its verdict, and what its planner expected."""
    lines = []
    for candidate, verdict in tried:
        lines.append(f"{candidate.key} {candidate.way.value} {candidate.label}: {verdict_text(verdict)}")
        if candidate.expected:
            lines.append(f"  expected: {candidate.expected} Refuted by: {candidate.refuted_by or '-'}")
        if verdict.outcome is Outcome.FAILED or not verdict.pairs:
            lines.append(f"  {_cut(verdict.reason, _SENTENCE)}")
    return "\n".join(lines)


def verdict_text(verdict: Verdict) -> str:
    """Return a verdict in figures."""
    return _outcome(verdict.outcome, verdict.ratio, verdict.low, verdict.high, verdict.pairs)


def lessons_text(lessons: Sequence[Lesson]) -> str:
    """Tell the verdicts of earlier runs, those that won first, the latest of each configuration."""
    latest = {(lesson.policy, lesson.tunables): lesson for lesson in sorted(lessons, key=lambda one: one.at)}
    ranked = sorted(latest.values(), key=lambda one: (one.outcome is not Outcome.BETTER, one.policy, one.tunables))
    lines = [
        f"{lesson.policy} {_values(lesson.tunables)}: "
        f"{_outcome(lesson.outcome, lesson.ratio, lesson.low, lesson.high, lesson.pairs)}"
        for lesson in ranked[:LESSONS]
    ]
    return "\n".join(lines)


def antipatterns_text(antipatterns: Sequence[Antipattern]) -> str:
    """Tell what failed in earlier runs, one line for each policy and gate."""
    seen = {(one.policy, one.gate): one for one in sorted(antipatterns, key=lambda one: one.at)}
    lines = [
        f"{policy} failed at {gate}: {_cut(one.reason, _SENTENCE)}" for (policy, gate), one in sorted(seen.items())
    ]
    return "\n".join(lines[:LESSONS])


def insights_text(insights: Sequence[Insight]) -> str:
    """Tell what earlier runs concluded."""
    return "\n".join(f"- {one.text}" for one in insights[:INSIGHTS])


def _outcome(outcome: Outcome, ratio: float, low: float, high: float, pairs: int) -> str:
    if not math.isfinite(ratio):
        return outcome.value
    interval = f" [{low:.3f}, {high:.3f}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{outcome.value}, ratio {ratio:.3f}{interval} in {pairs} pairs"


def _values(tunables: Iterable[tuple[str, int]]) -> str:
    return " ".join(f"{name}={value}" for name, value in tunables)


# --- what a mend needs ----------------------------------------------------------------------------------------------


def rejection_text(report: VerificationReport) -> str:
    """Tell why a gate closed, as far as a mend needs it: its findings, its measurements, its words."""
    gate = report.failure
    if gate is None:
        return ""
    lines = [f"gate: {gate.gate}", *_finding_lines(gate)]
    for oracle in report.oracles:
        if not oracle.ok:
            measured = f"{oracle.measured:.3g}, bound {oracle.bound:.3g} {oracle.unit}"
            lines.append(f"oracle {oracle.name} (rule {oracle.rule}): {measured}. {oracle.detail}")
            lines.append(f"  mend: {RULES[oracle.rule].mend}")
    lines.append(_middle_cut(gate.detail, DETAIL))
    return "\n".join(lines)


def _finding_lines(gate: GateResult) -> list[str]:
    errors = [finding for finding in gate.findings if finding.severity is Severity.ERROR]
    lines = [line for finding in errors[:FINDINGS] for line in _finding(finding)]
    if len(errors) > FINDINGS:
        lines.append(f"and {len(errors) - FINDINGS} more findings")
    return lines


def _finding(finding: Finding) -> list[str]:
    rule = finding.text
    path = [f"  {step.file}:{step.line} {step.text}" for step in finding.path[-STEPS:]]
    return [str(finding), *path, f"  rule: {rule.text}. {rule.why}.", f"  mend: {rule.mend}"]


def numbered(source: str) -> str:
    """Return a source with the number of each line, as findings name them."""
    return "\n".join(f"{number:>4} {line}" for number, line in enumerate(source.splitlines(), 1))


def sections(**named: str) -> Mapping[str, str]:
    """Return the sections that are not empty, by their titles."""
    return {title.replace("_", " "): text for title, text in named.items() if text}


def _cut(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 4]} ..."


def _middle_cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n... ({len(text) - limit} characters left out) ...\n{text[-(limit - limit // 2) :]}"
