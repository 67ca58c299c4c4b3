"""The report of a run: built from the repository alone, so it is the same whenever and wherever it is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from agents.learning import best
from repo_store.records import RunRecord
from repo_store.store import PolicyRepository
from schedagent.approval import approvals as approval
from schedagent.approval.text import token_allows
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.trials.judge import cpu_time_ratio
from schedagent.core.trials.lesson import Insight
from schedagent.core.trials.trial import Outcome, Verdict
from schedagent.core.trials.workload import Goal, WorkloadProfile
from schedagent.core.verification import VerificationReport

TOP_COMMANDS = 5
SAVED_CPU_TIME = 0.97
"""CPU time ratio from which on a gain under emulation is, in part, one of cheaper switching: the minimum effect."""

IN_PROCESS = "this process itself"

Report = Mapping[str, Any]


def build_report(
    repository: PolicyRepository,
    run_id: str,
    *,
    model: Mapping[str, Any] | None = None,
    out_of_time: bool = False,
    complete: bool = True,
) -> dict[str, Any]:
    """Collect everything a run found, as JSON values.

    Args:
        model: what it used of models, see model_report.model_use; None if it asked none.
        out_of_time: whether the run ended because its budget was used up.
        complete: whether the run has ended; if not, the report tells what is known so far.
    """
    run = repository.run(run_id)
    profile, meaning = repository.profile(run_id), repository.meaning(run_id)
    iterations = [_iteration(repository, run_id, number) for number in repository.iterations(run_id)]
    verdicts: dict[str, Verdict] = {}
    for number in repository.iterations(run_id):
        verdicts.update(repository.verdicts(run_id, number))
    candidates = [candidate for iteration in iterations for candidate in iteration["candidates"]]
    winner = best(verdicts, lower_is_better=run.workload.goal.lower_is_better)
    verifications = [repository.verification(run_id, candidate["key"]) for candidate in candidates]
    asked = approval.waiting(repository, run_id)
    return {
        "run": run_id,
        "started_at": run.started_at,
        "workload": _workload(run),
        "hardware": _hardware(run),
        "profile": _profile(profile) if profile else None,
        "meaning": asdict(meaning) if meaning else None,
        "iterations": iterations,
        "best": next((candidate for candidate in candidates if candidate["key"] == winner), None),
        "outcome": "better" if winner else "keep the default scheduler",
        "insights": [asdict(insight) for insight in _insights(repository, run)],
        "model": model,
        "out_of_time": out_of_time,
        "complete": complete,
        "verified_by": sorted({found.verified_by or IN_PROCESS for found in verifications if found}),
        "approvals": approval.history(repository, run_id),
        "waiting": approval.to_json(asked) if asked and not complete else None,
        "deployment": approval.deployment(repository, run_id) if complete else None,
    }


def _insights(repository: PolicyRepository, run: RunRecord) -> list[Insight]:
    found = repository.insights(run.workload.key, run.hardware.key)
    return [insight for insight in found if insight.run_id == run.id]


def _workload(run: RunRecord) -> dict[str, Any]:
    workload = run.workload
    return {
        "key": workload.key,
        "command": workload.command,
        "directory": workload.directory,
        "goal": workload.goal.value,
        "prepare": workload.prepare,
        "metric": workload.metric,
    }


def _hardware(run: RunRecord) -> dict[str, Any]:
    hardware = run.hardware
    return {
        "key": hardware.key,
        "cpu_model": hardware.cpu_model,
        "cpus": hardware.cpus,
        "memory_mib": hardware.memory_mib,
        "lab": hardware.lab,
        "kernel_release": hardware.kernel_release,
    }


def _profile(profile: WorkloadProfile) -> dict[str, Any]:
    return {
        "kind": profile.kind.value,
        "evidence": list(profile.evidence),
        "wall_s": profile.wall_s,
        "cpu_s": profile.cpu_s,
        "cpus": profile.cpus,
        "busy_fraction": profile.busy_fraction,
        "parallelism": [list(point) for point in profile.parallelism],
        "psi_s": {
            "cpu": profile.psi_cpu_some_s,
            "io": profile.psi_io_some_s,
            "memory": profile.psi_memory_some_s,
        },
        "lost_events": profile.lost_events,
        "commands": [
            {
                "command": stats.label,
                "count": stats.count,
                "cpu_s": stats.cpu_ns_total / 1e9,
                "cpu_ms_p50": stats.cpu_ns_p50 / 1e6,
                "cpu_ms_p95": stats.cpu_ns_p95 / 1e6,
                "cpu_ms_max": stats.cpu_ns_max / 1e6,
                "run_delay_s": stats.run_delay_ns_total / 1e9,
                "voluntary_switches": stats.voluntary_switches,
                "involuntary_switches": stats.involuntary_switches,
            }
            for stats in profile.commands
        ],
    }


def _iteration(repository: PolicyRepository, run_id: str, number: int) -> dict[str, Any]:
    plan = repository.plan(run_id, number)
    assert plan is not None, "iterations() lists stored plans"
    verdicts = repository.verdicts(run_id, number)
    blocks, repaired = repository.blocks(run_id, number), repository.repaired(run_id, number)
    return {
        "reason": plan.reason,
        "learned": plan.learned,
        "candidates": [
            _candidate(candidate, verdicts.get(candidate.key), repository.verification(run_id, candidate.key))
            | {
                "cpu_time_ratio": _finite(cpu_time_ratio(blocks, candidate.key)),
                "repairs": repaired.get(candidate.key, ""),
            }
            for candidate in repository.candidates(run_id, number)
        ],
        "runs_measured": sum(len(block.samples) for block in blocks),
    }


def _candidate(
    candidate: CandidatePolicy, verdict: Verdict | None, verification: VerificationReport | None
) -> dict[str, Any]:
    return {
        "key": candidate.key,
        "policy": candidate.policy,
        "tunables": dict(candidate.tunables),
        "origin": candidate.origin.value,
        "reason": candidate.reason,
        "expected": candidate.expected,
        "refuted_by": candidate.refuted_by,
        "gates": [
            {"gate": gate.gate, "status": gate.status.value, "detail": gate.detail, "seconds": gate.seconds}
            for gate in (verification.gates if verification else ())
        ],
        "verdict": _verdict(verdict) if verdict else None,
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    """The verdict with JSON's null for a ratio that nothing measured."""
    return {
        "outcome": verdict.outcome.value,
        "ratio": _finite(verdict.ratio),
        "low": _finite(verdict.low),
        "high": _finite(verdict.high),
        "confidence": verdict.confidence,
        "pairs": verdict.pairs,
        "disturbed": verdict.disturbed,
        "reason": verdict.reason,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def render(report: Report, console: Console) -> None:
    """Print what a person wants to know at the end of a run."""
    _render_profile(report, console)
    candidates = [candidate for iteration in report["iterations"] for candidate in iteration["candidates"]]
    for number, iteration in enumerate(report["iterations"], start=1):
        _say(console, f"Plan {number}: {iteration['reason']}")
        if iteration["learned"]:
            _say(console, f"  Learned earlier: {iteration['learned']}")
    if candidates:
        console.print(_table(candidates, _ratio_means(report["workload"])))
    for number, candidate in enumerate(candidates, start=1):
        reason = candidate["verdict"]["reason"] if candidate["verdict"] else "not reached"
        _say(console, f"  {number} {_label(candidate)}\n      {reason}")
    for insight in report.get("insights", ()):
        _say(console, f"  Insight: {insight['text']} (from {', '.join(insight['evidence'])})")
    console.print()
    for line in conclusion(report):
        _say(console, line)


def _render_profile(report: Report, console: Console) -> None:
    profile, hardware, workload = report["profile"], report["hardware"], report["workload"]
    console.print()
    _say(console, f"Run {report['run']}: {workload['command']!r} in {workload['directory']}")
    _say(console, f"  Lab: {hardware['lab']}, {hardware['cpus']} CPUs, kernel {hardware['kernel_release']}")
    if profile is None:
        return
    _say(
        console,
        f"  Profile: {profile['kind']}; {profile['wall_s']:.2f} s wall, {profile['cpu_s']:.2f} s CPU, "
        f"{100 * profile['busy_fraction']:.0f} % of {profile['cpus']} CPUs busy",
    )
    for sentence in profile["evidence"]:
        _say(console, f"    {sentence}")
    if report.get("meaning"):  # a report of an earlier version has none
        _say(console, f"    In words: {report['meaning']['meaning']} Goal: {report['meaning']['goal']}")
    for stats in profile["commands"][:TOP_COMMANDS]:
        _say(
            console,
            f"    {stats['command']:<16} {stats['count']:>4} tasks  {stats['cpu_s']:7.2f} s CPU  "
            f"longest {stats['cpu_ms_max']:7.0f} ms  waited {stats['run_delay_s']:6.2f} s",
        )
    console.print()


def _ratio_means(workload: Mapping[str, Any]) -> str:
    if not workload["metric"]:
        return "ratio below 1: less time"
    return "ratio above 1: more" if workload["goal"] == Goal.THROUGHPUT else "ratio below 1: a smaller metric"


def _table(candidates: Sequence[Mapping[str, Any]], ratio_means: str) -> Table:
    table = Table(title=f"Candidates against the default scheduler ({ratio_means})")
    table.add_column("")
    table.add_column("policy", no_wrap=True)
    table.add_column("gates")
    for heading in ("pairs", "ratio", "interval", "CPU time"):
        table.add_column(heading, justify="right")
    table.add_column("verdict", no_wrap=True)
    for number, candidate in enumerate(candidates, start=1):
        verdict = candidate["verdict"]
        outcome = verdict["outcome"] if verdict else "not reached"
        style = {"better": "bold green", "worse": "red", "failed": "bold red"}.get(outcome, "")
        table.add_row(
            str(number),
            candidate["policy"],
            _gates(candidate["gates"]),
            *_numbers(verdict),
            f"x {candidate['cpu_time_ratio']:.2f}" if candidate["cpu_time_ratio"] else "-",
            f"[{style}]{outcome}[/]" if style else outcome,
        )
    return table


def _label(candidate: Mapping[str, Any]) -> str:
    tunables = " ".join(f"{name}={value}" for name, value in candidate["tunables"].items())
    return f"{candidate['policy']} {tunables}".strip()


def _gates(gates: Sequence[Mapping[str, Any]]) -> str:
    for gate in gates:
        if gate["status"] != "passed":  # the gates behind it were not run
            return f"{gate['status']}: {gate['gate']}"
    return f"{len(gates)} passed" if gates else "not run"


def _numbers(verdict: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if verdict is None:
        return "0", "-", "-"
    pairs = str(verdict["pairs"]) + (f" (+{verdict['disturbed']} disturbed)" if verdict["disturbed"] else "")
    if verdict["ratio"] is None:
        return pairs, "-", "-"
    if verdict["low"] is None or verdict["high"] is None:  # one pair has an estimate and no interval
        return pairs, f"{verdict['ratio']:.3f}", "-"
    interval = f"{verdict['low']:.3f} to {verdict['high']:.3f}"
    return pairs, f"{verdict['ratio']:.3f}", interval


def conclusion(report: Report) -> list[str]:
    """The verdict and what to do next, in sentences."""
    lines = []
    winner = report["best"]
    if winner:
        verdict = winner["verdict"]
        change = abs(1 - verdict["ratio"])
        word = "less" if verdict["ratio"] < 1 else "more"
        unit = "of the metric" if report["workload"]["metric"] else "time"
        lines.append(f"Verdict: {winner['policy']} is better: {100 * change:.1f} % {word} {unit} than the default.")
        lines.append("Next: run the same command again; it starts from this result and measures the winner anew.")
    elif not report["complete"]:
        lines.append("No verdict yet: the run is not finished.")
    elif report["iterations"] and all(_rejected(report, number) for number in range(1, len(report["iterations"]) + 1)):
        lines.append("Verdict: nothing was tried, because no plan was approved. Keep the default scheduler.")
    else:
        lines.append("Verdict: nothing better was found. Keep the default scheduler.")
        lines.append(_next_without_winner(report))
    lines += _decided(report)
    if report["out_of_time"]:
        lines.append("The time budget ended the run; what was not decided by then is called inconclusive.")
    if winner and report["hardware"]["lab"] == "vm-tcg" and (winner["cpu_time_ratio"] or 1) < SAVED_CPU_TIME:
        lines.append(
            f"Caution: the same work took {100 * (1 - winner['cpu_time_ratio']):.0f} % less CPU time. In an emulated "
            "VM a task switch costs many times what it costs on hardware, so expect less of this gain on a real host."
        )
    lines += _model_lines(report.get("model"))
    if report["hardware"]["lab"] != "host":
        lines.append(
            f"Measured in a micro-VM ({report['hardware']['lab']}); nothing was changed on this machine."
            + _who_verified(report["verified_by"])
        )
    return lines


def _rejected(report: Report, iteration: int) -> bool:
    """Whether the plan of this iteration, counted from 1, was rejected in the end."""
    made = [
        found for found in report.get("approvals", ()) if (found["stage"], found["iteration"]) == ("plan", iteration)
    ]
    return bool(made) and not made[-1]["approved"]


def _decided(report: Report) -> list[str]:
    """Who approved or rejected what, and what the run hands out."""
    lines = []
    for made in report.get("approvals", ()):
        what = f"Plan {made['iteration']}" if made["stage"] == "plan" else "The deployment"
        verb = "approved" if made["approved"] else "rejected"
        lines.append(f"{what} was {verb} by {made['by']}" + (f": {made['because']}" if made["because"] else "."))
    handed_out = report.get("deployment")
    if handed_out:
        where = f"schedagent runs show {report['run']} --json"
        lines.append(f"A token for it ({where}: deployment) allows {token_allows(handed_out['allows'])}.")
    elif report["complete"] and lines and report["approvals"][-1]["stage"] == "deploy":
        lines.append("No token was handed out.")
    return lines


def _model_lines(model: Mapping[str, Any] | None) -> list[str]:
    """What was used of models, and what happened meanwhile."""
    if model is None:
        return []
    notes = [f"  {note['role']}, iteration {note['iteration']}: {note['text']}" for note in model["notes"]]
    return [f"Model: {model['used']}.", *notes]


def _who_verified(verifiers: Sequence[str]) -> str:
    if not verifiers:
        return ""
    alone = ", not by a separate service" if IN_PROCESS in verifiers else ""
    return f" Candidates were verified and signed by {' and '.join(verifiers)}{alone}."


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _next_without_winner(report: Report) -> str:
    """What to do when nothing better was found: measure longer only if something was left undecided."""
    verdicts = [candidate["verdict"] for plan in report["iterations"] for candidate in plan["candidates"]]
    if any(verdict and verdict["outcome"] == Outcome.INCONCLUSIVE.value for verdict in verdicts):
        return "Next: on a quieter machine, or with a longer --budget-minutes, the undecided may be decided."
    return "Next: nothing to do. Another --goal may show more."
