"""The report of a run as JSON values: the face for programs, and what a finished run stores."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from schedagent.approval.approvals import to_json as request_to_json
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Expected, GuardVerdict, Hardware, Sample, Verdict
from schedagent.core.trials.workload import CommandStats, WorkloadCommand, WorkloadProfile
from schedagent.core.verification import GateResult
from schedagent.report.json_form import (
    ArmForm,
    BlockForm,
    BoundsForm,
    CandidateForm,
    CommandForm,
    DecisionForm,
    ExpectedForm,
    GateForm,
    GuardForm,
    HardwareForm,
    IterationForm,
    KnobForm,
    ModeForm,
    PairForm,
    ProfileForm,
    ReportForm,
    SampleForm,
    SplitForm,
    ValueForm,
    VerdictForm,
    WorkloadForm,
)
from schedagent.report.report import CandidateReport, DecisionReport, IterationReport, Report
from schedagent.report.values import ArmValues, ValueReport, objective_name


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON values; what was not measured, a NaN, is null. `json_schema` describes it."""
    from pydantic import TypeAdapter

    values: dict[str, Any] = TypeAdapter(ReportForm).dump_python(_form(report), mode="json")
    return values


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of what `to_json` returns."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(ReportForm).json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _form(report: Report) -> ReportForm:
    return ReportForm(
        version=2,
        run=report.run,
        name=report.options.get("name", ""),
        started_at=report.started_at,
        workload=_workload(report.workload),
        hardware=_hardware(report.hardware),
        costs=report.costs,
        profile=_profile(report.profile) if report.profile else None,
        meaning=report.meaning,
        iterations=tuple(map(_iteration, report.iterations)),
        best=_candidate(report.best) if report.best else None,
        outcome=report.outcome,
        insights=report.insights,
        model=report.model,
        out_of_time=report.out_of_time,
        complete=report.complete,
        failure=report.failure,
        verified_by=report.verified_by,
        approvals=tuple(map(_decision, report.decisions)),
        waiting=request_to_json(report.waiting) if report.waiting else None,
        deployment=report.deployment,
    )


def _workload(workload: WorkloadCommand) -> WorkloadForm:
    return WorkloadForm(
        key=workload.key,
        command=workload.command,
        directory=workload.directory,
        goal=workload.goal.value,
        prepare=workload.prepare,
        metric=workload.metric,
        objective=objective_name(workload),
        preset=workload.preset,
        running=workload.running,
    )


def _hardware(hardware: Hardware) -> HardwareForm:
    return HardwareForm(
        key=hardware.key,
        cpu_model=hardware.cpu_model,
        cpus=hardware.cpus,
        memory_mib=hardware.memory_mib,
        lab=hardware.lab,
        kernel_release=hardware.kernel_release,
    )


def _profile(profile: WorkloadProfile) -> ProfileForm:
    return ProfileForm(
        kind=profile.kind.value,
        evidence=profile.evidence,
        wall_s=profile.wall_s,
        cpu_s=profile.cpu_s,
        cpus=profile.cpus,
        busy_fraction=profile.busy_fraction,
        parallelism=profile.parallelism,
        psi_s={
            "cpu": profile.psi_cpu_some_s,
            "io": profile.psi_io_some_s,
            "memory": profile.psi_memory_some_s,
        },
        lost_events=profile.lost_events,
        commands=tuple(map(_command, profile.commands)),
    )


def _command(stats: CommandStats) -> CommandForm:
    return CommandForm(
        command=stats.label,
        count=stats.count,
        cpu_s=stats.cpu_ns_total / 1e9,
        cpu_ms_p50=stats.cpu_ns_p50 / 1e6,
        cpu_ms_p95=stats.cpu_ns_p95 / 1e6,
        cpu_ms_max=stats.cpu_ns_max / 1e6,
        run_delay_s=stats.run_delay_ns_total / 1e9,
        voluntary_switches=stats.voluntary_switches,
        involuntary_switches=stats.involuntary_switches,
    )


def _iteration(iteration: IterationReport) -> IterationForm:
    return IterationForm(
        reason=iteration.reason,
        learned=iteration.learned,
        candidates=tuple(map(_candidate, iteration.candidates)),
        runs_measured=iteration.runs_measured,
        blocks=tuple(map(_block, iteration.blocks)),
        knobs=tuple(KnobForm(knob.name, knob.ratio, _value(knob.value), knob.expected) for knob in iteration.knobs),
    )


def _candidate(entry: CandidateReport) -> CandidateForm:
    candidate = entry.candidate
    return CandidateForm(
        key=candidate.key,
        policy=candidate.policy,
        tunables=dict(candidate.tunables),
        origin=candidate.origin.value,
        reason=candidate.reason,
        prediction=candidate.expected,
        refuted_by=candidate.refuted_by,
        gates=tuple(map(_gate, entry.gates)),
        verdict=_verdict(entry.verdict) if entry.verdict else None,
        expected=_expected(entry.verdict.expected) if entry.verdict and entry.verdict.expected else None,
        guards=tuple(map(_guard, entry.verdict.guards)) if entry.verdict else (),
        values={value.name: _value(value) for value in entry.values},
        split=SplitForm(**asdict(entry.split)) if entry.split else None,
        pairs=tuple(PairForm(*pair) for pair in entry.pairs),
        repairs=entry.repairs,
        program=candidate.program,
    )


def _gate(gate: GateResult) -> GateForm:
    return GateForm(gate.gate, gate.status.value, gate.detail, gate.seconds)


def _verdict(verdict: Verdict) -> VerdictForm:
    return VerdictForm(
        outcome=verdict.outcome.value,
        ratio=_finite(verdict.ratio),
        low=_finite(verdict.low),
        high=_finite(verdict.high),
        confidence=verdict.confidence,
        pairs=verdict.pairs,
        disturbed=verdict.disturbed,
        reason=verdict.reason,
    )


def _expected(expected: Expected) -> ExpectedForm:
    return ExpectedForm(
        ratio=_finite(expected.ratio),
        low=_finite(expected.low),
        high=_finite(expected.high),
        bounds=BoundsForm(_finite(expected.utilisation), _finite(expected.raw)),
    )


def _guard(guard: GuardVerdict) -> GuardForm:
    ratio, low, high = map(_finite, (guard.ratio, guard.low, guard.high))
    return GuardForm(guard.name, ratio, low, high, guard.margin, guard.held)


def _value(value: ValueReport) -> ValueForm:
    return ValueForm(value.unit, value.lower_is_better, _arm(value.default), _arm(value.candidate))


def _arm(arm: ArmValues) -> ArmForm:
    clusters = tuple(ModeForm(mode.runs, mode.median, mode.share) for mode in arm.modes)
    return ArmForm(arm.median, arm.spread, arm.worst, len(arm.runs), clusters)


def _block(block: Block) -> BlockForm:
    return BlockForm(block.number, block.number == 0, tuple(map(_sample, block.samples)))


def _sample(sample: Sample) -> SampleForm:
    return SampleForm(
        arm="default" if sample.arm == DEFAULT_ARM else sample.arm,
        value=_finite(sample.value),
        wall_s=sample.wall_ns / 1e9,
        cpu_s=sample.cpu_ns / 1e9,
        calibration_ms=sample.calibration_ns / 1e6,
        started_at=sample.started_at,
        exit_status=sample.exit_status,
        failure=sample.failure,
        values={name: _finite(value) for name, value in sample.values.items()},
        usage=sample.usage,
    )


def _decision(entry: DecisionReport) -> DecisionForm:
    return DecisionForm(
        stage=entry.stage.value,
        iteration=entry.iteration,
        digest=entry.digest,
        approved=entry.decision.approved,
        by=entry.decision.by,
        at=entry.decision.at,
        because=entry.decision.because,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
