"""The report of a run as JSON values: the face for programs, and what a finished run stores."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from schedagent.approval.approvals import to_json as request_to_json
from schedagent.core.trials.trial import Hardware, Verdict
from schedagent.core.trials.workload import CommandStats, WorkloadCommand, WorkloadProfile
from schedagent.core.verification import GateResult
from schedagent.report.report import CandidateReport, DecisionReport, IterationReport, Report


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON values; what was not measured, a NaN, is null."""
    return {
        "run": report.run,
        "started_at": report.started_at,
        "workload": _workload(report.workload),
        "hardware": _hardware(report.hardware),
        "profile": _profile(report.profile) if report.profile else None,
        "meaning": asdict(report.meaning) if report.meaning else None,
        "iterations": [_iteration(iteration) for iteration in report.iterations],
        "best": _candidate(report.best) if report.best else None,
        "outcome": report.outcome,
        "insights": [{**asdict(insight), "evidence": list(insight.evidence)} for insight in report.insights],
        "model": _model(report),
        "out_of_time": report.out_of_time,
        "complete": report.complete,
        "verified_by": list(report.verified_by),
        "approvals": [_decision(entry) for entry in report.decisions],
        "waiting": request_to_json(report.waiting) if report.waiting else None,
        "deployment": asdict(report.deployment) if report.deployment else None,
    }


def _workload(workload: WorkloadCommand) -> dict[str, Any]:
    return {
        "key": workload.key,
        "command": workload.command,
        "directory": workload.directory,
        "goal": workload.goal.value,
        "prepare": workload.prepare,
        "metric": workload.metric,
    }


def _hardware(hardware: Hardware) -> dict[str, Any]:
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
        "commands": [_command(stats) for stats in profile.commands],
    }


def _command(stats: CommandStats) -> dict[str, Any]:
    return {
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


def _iteration(iteration: IterationReport) -> dict[str, Any]:
    return {
        "reason": iteration.reason,
        "learned": iteration.learned,
        "candidates": [_candidate(entry) for entry in iteration.candidates],
        "runs_measured": iteration.runs_measured,
    }


def _candidate(entry: CandidateReport) -> dict[str, Any]:
    candidate = entry.candidate
    return {
        "key": candidate.key,
        "policy": candidate.policy,
        "tunables": dict(candidate.tunables),
        "origin": candidate.origin.value,
        "reason": candidate.reason,
        "expected": candidate.expected,
        "refuted_by": candidate.refuted_by,
        "gates": [_gate(gate) for gate in entry.gates],
        "verdict": _verdict(entry.verdict) if entry.verdict else None,
        "cpu_time_ratio": _finite(entry.cpu_time_ratio),
        "repairs": entry.repairs,
    }


def _gate(gate: GateResult) -> dict[str, Any]:
    return {"gate": gate.gate, "status": gate.status.value, "detail": gate.detail, "seconds": gate.seconds}


def _verdict(verdict: Verdict) -> dict[str, Any]:
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


def _model(report: Report) -> dict[str, Any] | None:
    if report.model is None:
        return None
    values = asdict(report.model)
    return {**values, "steps": list(values["steps"]), "notes": list(values["notes"])}


def _decision(entry: DecisionReport) -> dict[str, Any]:
    return {
        "stage": entry.stage.value,
        "iteration": entry.iteration,
        "digest": entry.digest,
        "approved": entry.decision.approved,
        "by": entry.decision.by,
        "at": entry.decision.at,
        "because": entry.decision.because,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
