"""How stored records are shown to a model: short plain text, most important first, one line for each thing.

A model pays for every word, so there is neither markup nor a name repeated on each line. Numbers keep their units.
Pure functions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from agents.claims import NOTHING, without_claims
from kernel_bpf.observe.system import CpuPlace, SystemState
from repo_store.records import RunRecord, SimilarRun
from schedagent.core.policies.policy import CandidatePolicy, Plan, PolicyInfo
from schedagent.core.process.shell_text import quoted
from schedagent.core.terminal.foreign import marked
from schedagent.core.terminal.printable import printable
from schedagent.core.trials.lesson import Antipattern, Insight, Lesson, Meaning
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Verdict
from schedagent.core.trials.workload import CommandStats, WorkloadProfile
from schedagent.core.verification import GateStatus, KernelResult, OracleResult, Severity, VerificationReport

TOP_COMMANDS = 5
CURVE_POINTS = 16
LONGEST_DETAIL = 600


def lines(*parts: str | Iterable[str]) -> str:
    """Join lines; what is empty is left out."""
    flat = [line for part in parts for line in ([part] if isinstance(part, str) else part)]
    return "\n".join(line for line in flat if line)


def short(text: str, limit: int = LONGEST_DETAIL) -> str:
    """Return a text that is not longer than `limit` characters, on one printable line."""
    line = " ".join(printable(text).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def tunables(pairs: Iterable[tuple[str, int]]) -> str:
    """Tunables on one line."""
    return " ".join(f"{name}={value}" for name, value in pairs) or "no tunables"


# Workloads


def profile_summary(run: RunRecord, profile: WorkloadProfile) -> str:
    """What a workload is like, in some ten lines."""
    workload = run.workload
    measured = workload.objective or (f"metric {quoted(workload.metric)}" if workload.metric else "wall time")
    return lines(
        f"run {run.id}: {quoted(workload.command)} in {workload.directory}, goal {workload.goal.value} ({measured})",
        f"lab: {hardware(run)}",
        f"kind: {profile.kind.value}",
        f"{profile.wall_s:.2f} s wall, {profile.cpu_s:.2f} s CPU, {100 * profile.busy_fraction:.0f} % of "
        f"{profile.cpus} CPUs busy",
        (f"- {sentence}" for sentence in profile.evidence),
        _ordering(profile.predicted_ratio),
        "commands with the most CPU time:",
        command_lines(profile.commands[:TOP_COMMANDS]),
        f"({len(profile.commands)} commands, {len(profile.histories)} identities in all)",
    )


def _ordering(ratio: float) -> str:
    if ratio >= 1:
        return ""
    return f"ordering alone might bring the makespan to {ratio:.2f} of fair sharing (longest-first bound, not measured)"


def hardware(run: RunRecord) -> str:
    """Where a run measured."""
    lab = run.hardware
    return f"{lab.lab}, {lab.cpus} CPUs ({lab.cpu_model}), {lab.memory_mib} MiB, kernel {lab.kernel_release}"


def command_lines(commands: Iterable[CommandStats]) -> Iterator[str]:
    """One line for each command or identity."""
    for stats in commands:
        yield (
            f"- {short(stats.label, 80)}: {stats.count} tasks, {_s(stats.cpu_ns_total)} s CPU in all, each p50 "
            f"{_ms(stats.cpu_ns_p50)} p95 {_ms(stats.cpu_ns_p95)} max {_ms(stats.cpu_ns_max)} ms; waited "
            f"{_s(stats.run_delay_ns_total)} s in all, longest {_ms(stats.run_delay_ns_max)} ms; mean burst "
            f"{_ms(stats.burst_ns_mean)} ms; switches {stats.voluntary_switches} voluntary, "
            f"{stats.involuntary_switches} involuntary"
        )


def history_lines(histories: Iterable[CommandStats]) -> Iterator[str]:
    """One line for each identity, with the hash that policies look up."""
    for stats in histories:
        yield (
            f"- {stats.identity:016x} {short(stats.label, 100)}: {stats.count} tasks, CPU p50 "
            f"{_ms(stats.cpu_ns_p50)} max {_ms(stats.cpu_ns_max)} ms, mean burst {_ms(stats.burst_ns_mean)} ms"
        )


def pressure(profile: WorkloadProfile) -> str:
    """Waiting and parallelism over time."""
    waits = (
        ("CPU", profile.psi_cpu_some_s),
        ("I/O", profile.psi_io_some_s),
        ("memory", profile.psi_memory_some_s),
    )
    stalled = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in waits if seconds >= 0)
    delay_ns = sum(stats.run_delay_ns_total for stats in profile.commands)
    voluntary = sum(stats.voluntary_switches for stats in profile.commands)
    involuntary = sum(stats.involuntary_switches for stats in profile.commands)
    return lines(
        f"time in which some task waited (PSI, of {profile.wall_s:.2f} s wall): {stalled or 'not known'}",
        f"all tasks together waited {_s(delay_ns)} s for a CPU while runnable",
        f"switches: {voluntary} voluntary, {involuntary} involuntary",
        f"runnable tasks over time: {_curve(profile.parallelism)}",
        f"{profile.lost_events} process events were lost: tasks may be missing" if profile.lost_events else "",
    )


def _curve(points: Sequence[tuple[float, int]]) -> str:
    """At most CURVE_POINTS of the samples, evenly chosen, the last one among them."""
    if not points:
        return "not sampled"
    step = max(1, math.ceil(len(points) / CURVE_POINTS))
    chosen = list(points[::step])
    if chosen[-1] != points[-1]:
        chosen.append(points[-1])
    return ", ".join(f"{when:.1f} s: {runnable}" for when, runnable in chosen)


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:.3g}"


def _s(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.2f}"


# Policies


def policy_line(policy: PolicyInfo) -> str:
    """One policy of a list."""
    meant = ", ".join(policy.target_workloads) or "not stated"
    return f"- {short(policy.name, 80)} ({policy.origin.label}): {short(policy.description, 200)} Meant for: {meant}."


def policy_summary(policy: PolicyInfo) -> str:
    """All that is documented of a policy."""
    return lines(
        policy_line(policy)[2:],
        f"patched from: {policy.parent}" if policy.parent else "",
        f"how it decides: {short(policy.algorithm, 2000)}",
        f"when it loses: {short(policy.limitations, 1000)}",
        f"filled from the measured profile: {', '.join(policy.inputs) or 'nothing'}",
        f"declares not to keep: {', '.join(policy.declares)}" if policy.declares else "",
        "tunables:" if policy.tunables else "no tunables",
        (
            f"- {short(item.name, 80)}={item.default} ({item.minimum} to {item.maximum} {item.unit}): "
            f"{short(item.effect)}"
            for item in policy.tunables
        ),
    )


def verdict(result: Verdict | Lesson) -> str:
    """What was measured, on one line."""
    ratio, low, high = result.claim if isinstance(result, Verdict) else (result.ratio, result.low, result.high)
    if math.isnan(ratio):
        return f"{result.outcome.value}, nothing compared"
    interval = "" if math.isnan(low) or math.isnan(high) else f" ({low:.3f} to {high:.3f})"
    return f"{result.outcome.value}, candidate / default {ratio:.3f}{interval} in {result.pairs} pairs"


def lesson_line(lesson: Lesson, where: str = "") -> str:
    """One verdict of an earlier run."""
    place = f"; {where}" if where else ""
    return (
        f"- {lesson.policy} {tunables(lesson.tunables)}: {verdict(lesson)}{place}; candidate {lesson.candidate_key}, "
        f"run {lesson.run_id}, {lesson.at[:16]}"
    )


def antipattern_line(pattern: Antipattern) -> str:
    """One candidate that failed."""
    where = "this workload" if pattern.workload_key else "any workload"
    return (
        f"- {pattern.policy} {tunables(pattern.tunables)}: failed at {pattern.gate} on {where}: "
        f"{short(pattern.reason, 300)}; candidate {pattern.candidate_key}, {pattern.at[:16]}"
    )


def insight_line(insight: Insight) -> str:
    """One conclusion, with what it rests on."""
    return f"- {conclusion(insight)} (evidence: candidates {', '.join(insight.evidence)}; run {insight.run_id})"


def conclusion(insight: Insight) -> str:
    """What was checked first; a model's words beside it are no more than that. Those of older versions, which nobody
    checked, are shown without the sentences that hold a figure."""
    if not insight.claims:
        return f"unchecked words of a model: {short(without_claims(insight.text, NOTHING), 400)}"
    words = f"; a model's words: {short(insight.words, 400)}" if insight.words else ""
    return f"samples show: {short(insight.measured)}{words}"


def meaning_lines(meaning: Meaning | None) -> Iterator[str]:
    """A workload in a model's words, which are no measurement."""
    if meaning:
        yield f"in words of the Observation agent: {short(meaning.meaning)}"
        yield f"what a scheduler should do for it: {short(meaning.goal)}"


def similar_lines(similar: SimilarRun) -> Iterator[str]:
    """Another workload that looked alike, and what was measured on it."""
    where = f"{short(similar.workload.command, 120)!r} ({similar.kind.value})"
    yield f"run {similar.run_id}: {where}, distance {similar.distance:.2f}"
    yield from map(lesson_line, similar.lessons)


# Runs


def run_line(run: RunRecord) -> str:
    """One run of a list."""
    outcome = (run.report or {}).get("outcome", "") or run.status.value
    return f"- {run.id}: {short(run.workload.command, 120)!r} in {run.workload.directory}: {outcome}"


def failure_line(run: RunRecord) -> str:
    """Why a run failed; empty if it did not, or if that is not known."""
    return f"it failed: {short(run.failure.message)}" if run.failure else ""


def plan_lines(number: int, plan: Plan, verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    """One iteration of a run."""
    yield f"plan {number + 1}: {short(plan.reason)}"
    if plan.learned:
        yield f"  learned earlier: {short(plan.learned)}"
    for candidate in plan.candidates:
        measured = verdicts.get(candidate.key)
        judged = f"{verdict(measured)}: {short(measured.reason, 300)}" if measured else "not judged yet"
        yield f"- {candidate.key} {candidate.label}: {judged}"


def candidate_reasons(candidate: CandidatePolicy) -> Iterator[str]:
    """Why a candidate was planned, and what its planner expected."""
    yield f"- {candidate.key} {candidate.label} ({candidate.origin.value}): {short(candidate.reason)}"
    if candidate.expected:
        yield f"  expected: {short(candidate.expected)}"
    if candidate.refuted_by:
        yield f"  refuted by: {short(candidate.refuted_by)}"


def block_lines(blocks: Sequence[Block]) -> Iterator[str]:
    """The measured values, a line for each block; the warm-up is not compared."""
    for block in blocks:
        values = ", ".join(
            f"{sample.arm if sample.arm != DEFAULT_ARM else 'default'} {sample.failure or f'{sample.value:.4g}'}"
            for sample in block.samples
        )
        yield f"block {block.number}{' (warm-up)' if block.number == 0 else ''}: {values}"


# The verifier's reports


def report_summary(report: VerificationReport) -> str:
    """How a verification ended, gate by gate."""
    counts = Counter(finding.severity for finding in report.findings)
    decided = {True: "safe to be tried", False: "not safe", None: "whether it is safe is not decided"}
    return lines(
        [short(report.lacks, 600)] if report.lacks else [],
        f"{short(report.policy, 80)} (candidate {report.candidate_key}) on kernel {report.kernel_release}: "
        f"{report.conclusion}",
        (f"- {gate.gate}: {gate.status.value}: {short(gate.detail, 300)}" for gate in report.gates),
        f"{', '.join(f'{counts[kind]} {kind}s' for kind in Severity)}; {len(report.oracles)} oracles measured; "
        f"{decided[report.safe]}",
        [f"coverage: {short(report.coverage.summary, 600)}"] if report.coverage else [],
    )


def finding_lines(report: VerificationReport) -> Iterator[str]:
    """What is wrong, where, on which path, and how it is repaired."""
    for finding in report.findings:
        if finding.cleared_by and report.clears(finding):
            continue
        yield f"- {finding.severity.value}, {finding.finding_class}: {short(str(finding), 1000)}"
        yield from (f"  by {short(f'{step.file}:{step.line}: {step.text}', 300)}" for step in finding.path)
        yield f"  why: {finding.text.why}"
        yield f"  repair: {finding.text.repair}"
        if finding.cleared_by:
            yield f"  it is cleared if the oracle {finding.cleared_by!r} holds"


def gate_lines(report: VerificationReport) -> Iterator[str]:
    """Every gate in full; the one that failed may carry a compiler's or the kernel's log."""
    for gate in report.gates:
        yield f"{gate.gate}: {gate.status.value} ({gate.seconds:.1f} s)"
        if gate.detail:
            yield marked(gate.detail) if gate.status is GateStatus.FAILED else short(gate.detail, 2000)


def oracle_line(report: VerificationReport, oracle: OracleResult) -> str:
    """One figure of the proving ground."""
    excused = "does not hold, and is excused: the policy declares so"
    holds = "holds" if oracle.ok else excused if report.excuses(oracle) else "DOES NOT HOLD"
    return (
        f"- {oracle.title} (rule {oracle.rule}) {holds}: {oracle.figure(oracle.measured)}, at most "
        f"{oracle.figure(oracle.bound)}; {short(oracle.detail, 300)}"
    )


def kernel_line(kernel: KernelResult) -> str:
    """One kernel's verifier."""
    walked = sum(stats.get("verified_instructions", 0) for stats in kernel.programs.values())
    detail = f"{len(kernel.programs)} programs, {walked} instructions walked" if kernel.programs else kernel.detail
    return f"- {kernel.release}: {kernel.status.value}: {short(detail, 2000)}"


# The machine


def system_summary(state: SystemState) -> str:
    """What the host is and does."""
    own = state.sched_ext
    return lines(
        f"kernel {state.release}",
        f"build options: {', '.join(f'{name}={value}' for name, value in state.config.items())}"
        if state.config
        else "build options: not known",
        f"{len(state.cpus)} CPUs online, {state.memory_mib} MiB of memory"
        + (f", governor {state.governor}" if state.governor else ""),
        (f"- {line}" for line in _topology(state.cpus)),
        "sched_ext: " + (", ".join(f"{name} {short(text, 300)}" for name, text in own.items()) or "not in this kernel"),
        f"load averages: {state.load or 'not known'}",
        [f"pressure, {name}: {text}" for name, text in state.pressure.items()] or "pressure: not known (no PSI)",
        "policies are tried in a micro-VM with a kernel of its own; nothing here changes how this machine schedules",
    )


def _topology(cpus: Sequence[CpuPlace]) -> Iterator[str]:
    """Which CPUs share what; groups of one CPU are not worth a line."""
    nodes: dict[str, set[str]] = {}
    for cpu in cpus:
        nodes.setdefault(f"NUMA node {cpu.node}", set()).add(str(cpu.number))
    if len(nodes) > 1:
        yield from (f"{name}: CPUs {','.join(sorted(numbers, key=int))}" for name, numbers in sorted(nodes.items()))
    shared = sorted({cpu.llc for cpu in cpus if cpu.llc})
    yield f"last level caches shared by CPUs: {'; '.join(shared) or 'not known'}"
    threads = sorted({cpu.siblings for cpu in cpus if not cpu.siblings.isdigit() and cpu.siblings})
    yield f"hardware threads of one core: {'; '.join(threads) or 'none'}"
