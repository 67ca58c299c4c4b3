"""Table rows to domain types and back. Integers of any size are JSON text, nan is NULL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import inspect

from repo_store.codec import from_json, to_json
from repo_store.records import RunRecord, RunStatus
from repo_store.tables import (
    AntipatternRow,
    Base,
    CandidateRow,
    DerivedPolicyRow,
    InsightRow,
    PolicyRow,
    RunRow,
    SampleRow,
    VerdictRow,
    VerificationRow,
)
from schedagent.core.policies.policy import CandidatePolicy, Plan, PolicyInfo
from schedagent.core.policies.proposal import DerivedPolicy, Origin
from schedagent.core.trials.lesson import Antipattern, Insight, Lesson
from schedagent.core.trials.trial import Block, Hardware, Outcome, Sample, Verdict
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.core.verification import VerificationReport

Pairs = tuple[tuple[str, int], ...]
Numbers = tuple[tuple[int, int], ...]
Words = tuple[str, ...]
Values = dict[str, Any]


def identity(row: Base) -> tuple[Any, ...]:
    """Return the primary key of a row."""
    return tuple(inspect(type(row)).primary_key_from_instance(row))


def columns(row: Base) -> Values:
    """Return the content of a row by column name."""
    return {attribute.key: getattr(row, attribute.key) for attribute in inspect(type(row)).column_attrs}


def candidate_rows(run_id: str, iteration: int, plan: Plan) -> list[CandidateRow]:
    return [candidate_row(run_id, iteration, position, candidate) for position, candidate in enumerate(plan.candidates)]


def candidate_row(
    run_id: str, iteration: int, position: int, candidate: CandidatePolicy, repairs: str = ""
) -> CandidateRow:
    return CandidateRow(
        run_id=run_id,
        iteration=iteration,
        key=candidate.key,
        position=position,
        policy=candidate.policy,
        tunables=to_json(Pairs, candidate.tunables),
        history=to_json(Numbers, candidate.history),
        classes=to_json(Numbers, candidate.classes),
        reason=candidate.reason,
        origin=candidate.origin.value,
        expected=candidate.expected,
        refuted_by=candidate.refuted_by,
        repairs=repairs,
    )


def sample_rows(run_id: str, iteration: int, block: Block, argv: Sequence[str]) -> list[SampleRow]:
    words = to_json(list[str], list(argv))
    return [
        SampleRow(
            run_id=run_id,
            iteration=iteration,
            block=block.number,
            position=position,
            argv=words,
            **asdict(sample) | {"value": _null_for_nan(sample.value)},
        )
        for position, sample in enumerate(block.samples)
    ]


def verification_row(run_id: str, report: VerificationReport) -> VerificationRow:
    return VerificationRow(
        run_id=run_id,
        candidate_key=report.candidate_key,
        artifact_digest=report.artifact_digest,
        kernel_release=report.kernel_release,
        report=to_json(VerificationReport, report),
        token_text=report.token,
    )


def verdict_row(run_id: str, iteration: int, candidate_key: str, verdict: Verdict, at: str) -> VerdictRow:
    fields = {name: _null_for_nan(value) for name, value in asdict(verdict).items()}
    fields["outcome"] = verdict.outcome.value
    return VerdictRow(run_id=run_id, iteration=iteration, candidate_key=candidate_key, at=at, **fields)


def antipattern_row(found: Antipattern) -> AntipatternRow:
    return AntipatternRow(**asdict(found) | {"tunables": to_json(Pairs, found.tunables)})


def antipattern(row: AntipatternRow) -> Antipattern:
    return Antipattern(**columns(row) | {"tunables": from_json(Pairs, row.tunables)})


def policy_row(policy: PolicyInfo) -> PolicyRow:
    return PolicyRow(
        name=policy.name,
        description=policy.description,
        targets=" ".join(policy.target_workloads),
        algorithm=policy.algorithm,
        limitations=policy.limitations,
    )


def derived_policy_row(made: DerivedPolicy) -> DerivedPolicyRow:
    spec = None if made.spec is None else to_json(Values, dict(made.spec))
    return DerivedPolicyRow(
        name=made.name,
        origin=made.origin.value,
        parent=made.parent,
        source=made.source,
        manifest=made.manifest,
        spec=spec,
        run_id=made.run_id,
        created_at=made.created_at,
    )


def derived_policy(row: DerivedPolicyRow) -> DerivedPolicy:
    spec = None if row.spec is None else from_json(Values, row.spec)
    return DerivedPolicy(**columns(row) | {"origin": Origin(row.origin), "spec": spec})


def insight_row(insight: Insight) -> InsightRow:
    return InsightRow(**asdict(insight) | {"evidence": to_json(Words, insight.evidence)})


def insight(row: InsightRow) -> Insight:
    return Insight(**columns(row) | {"evidence": from_json(Words, row.evidence)})


def _null_for_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def run_record(row: RunRow) -> RunRecord:
    return RunRecord(
        id=row.id,
        workload=from_json(WorkloadCommand, row.workload),
        hardware=from_json(Hardware, row.hardware),
        settings=from_json(Values, row.settings),
        seed=int(row.seed),
        started_at=row.started_at,
        finished_at=row.finished_at,
        status=RunStatus(row.status),
        report=None if row.report is None else from_json(Values, row.report),
    )


def candidate(row: CandidateRow) -> CandidatePolicy:
    return CandidatePolicy(
        policy=row.policy,
        tunables=from_json(Pairs, row.tunables),
        history=from_json(Numbers, row.history),
        classes=from_json(Numbers, row.classes),
        reason=row.reason,
        origin=Origin(row.origin),
        expected=row.expected,
        refuted_by=row.refuted_by,
    )


def sample(row: SampleRow) -> Sample:
    return Sample(
        arm=row.arm,
        value=_number(row.value),
        wall_ns=row.wall_ns,
        cpu_ns=row.cpu_ns,
        exit_status=row.exit_status,
        started_at=row.started_at,
        calibration_ns=row.calibration_ns,
        output_tail=row.output_tail,
        policy_exit=row.policy_exit,
    )


def verdict(row: VerdictRow) -> Verdict:
    return Verdict(
        outcome=Outcome(row.outcome),
        ratio=_number(row.ratio),
        low=_number(row.low),
        high=_number(row.high),
        confidence=row.confidence,
        pairs=row.pairs,
        disturbed=row.disturbed,
        reason=row.reason,
    )


def lesson(run: RunRow, candidate: CandidateRow, verdict: VerdictRow) -> Lesson:
    return Lesson(
        workload_key=run.workload_key,
        hardware_key=run.hardware_key,
        policy=candidate.policy,
        candidate_key=candidate.key,
        tunables=from_json(Pairs, candidate.tunables),
        outcome=Outcome(verdict.outcome),
        ratio=_number(verdict.ratio),
        low=_number(verdict.low),
        high=_number(verdict.high),
        pairs=verdict.pairs,
        run_id=run.id,
        at=verdict.at,
    )
