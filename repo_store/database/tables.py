"""The tables. Primary keys are what a thing is about, so the same thing cannot be stored twice.

A column has the type of the field it stores; `_COLUMN_TYPES` shows how each type stands in the database.
A change here needs a new numbered file in migrations/versions and a new SCHEMA; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from sqlalchemy import BigInteger, ForeignKey, ForeignKeyConstraint, Index, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

from repo_store.database.column_types import EnumText, JsonText, NanAsNull
from repo_store.records import RunFailure, RunStatus
from schedagent.core.approval import ApprovalStage
from schedagent.core.policies.program import SchedulerProgram
from schedagent.core.policies.proposal import Origin
from schedagent.core.recommendation import Progress, RecommendationKind, Standing
from schedagent.core.trials.lesson import Claim
from schedagent.core.trials.trial import Expected, GuardVerdict, Hardware, Outcome
from schedagent.core.trials.usage import Usage
from schedagent.core.trials.workload import WorkloadCommand, WorkloadProfile
from schedagent.core.verification import VerificationReport
from schedagent.core.welch import Spread

SCHEMA = "0010"
"""Revision these tables need: the newest in migrations/versions."""

Tunables = tuple[tuple[str, int], ...]
Inputs = tuple[tuple[int, int], ...]
Words = tuple[str, ...]
Values = Mapping[str, Any]
Shares = Mapping[str, float]
Measures = Mapping[str, Spread]
Guards = tuple[GuardVerdict, ...]
Claims = tuple[Claim, ...]
Seed = Annotated[int, mapped_column(JsonText(int))]
"""As text: it may need 64 bits unsigned."""
Ratio = Annotated[float, mapped_column(NanAsNull, nullable=True)]
RunId = Annotated[str, mapped_column(ForeignKey("runs.id"), primary_key=True)]
Key = Annotated[str, mapped_column(primary_key=True)]
Number = Annotated[int, mapped_column(primary_key=True, autoincrement=False)]

_COLUMN_TYPES: dict[Any, TypeEngine[Any]] = {
    str: Text(),
    int: BigInteger(),
    Values: JsonText(dict[str, Any]),
    Shares: JsonText(dict[str, float]),
    Measures: JsonText(dict[str, Spread]),
}
for _kind in (
    *(
        Claims,
        Expected,
        Guards,
        Hardware,
        RunFailure,
        SchedulerProgram,
        Usage,
        VerificationReport,
        WorkloadCommand,
        WorkloadProfile,
    ),
    *(Tunables, Inputs, Words),
):
    _COLUMN_TYPES[_kind] = JsonText(_kind)
for _enum in (ApprovalStage, Origin, Outcome, Progress, RecommendationKind, RunStatus, Standing):
    _COLUMN_TYPES[_enum] = EnumText(_enum)


class Base(DeclarativeBase):
    """Base of all tables; text has no length limit."""

    type_annotation_map = _COLUMN_TYPES


class RunRow(Base):
    """One optimize run."""

    __tablename__ = "runs"
    __table_args__ = (Index("runs_by_workload", "workload_key", "hardware_key"),)

    id: Mapped[Key]
    workload: Mapped[WorkloadCommand]
    workload_key: Mapped[str]
    hardware: Mapped[Hardware]
    hardware_key: Mapped[str]
    settings: Mapped[Values]
    seed: Mapped[Seed]
    started_at: Mapped[str]
    finished_at: Mapped[str]
    status: Mapped[RunStatus]
    report: Mapped[Values | None]
    failure: Mapped[RunFailure | None]


class ProfileRow(Base):
    """What observation has shown."""

    __tablename__ = "profiles"

    run_id: Mapped[RunId]
    profile: Mapped[WorkloadProfile]


class MeaningRow(Base):
    """What a model said of the profile; no figure is ever read from it."""

    __tablename__ = "meanings"

    run_id: Mapped[RunId]
    meaning: Mapped[str]
    goal: Mapped[str]


class CostsRow(Base):
    """What separates the lab's machine from the hardware beneath it, as measured for one run."""

    __tablename__ = "costs"

    run_id: Mapped[RunId]
    kappa: Mapped[float]
    lab_switch_ns: Mapped[float]
    host_switch_ns: Mapped[float]


class PlanRow(Base):
    """Why the candidates of one iteration were chosen."""

    __tablename__ = "plans"

    run_id: Mapped[RunId]
    iteration: Mapped[Number]
    reason: Mapped[str]
    learned: Mapped[str]


class CandidateRow(Base):
    """A candidate of a plan, or one that repairs the candidate of the same iteration that has the key `repairs`."""

    __tablename__ = "candidates"
    __table_args__ = (ForeignKeyConstraint(["run_id", "iteration"], ["plans.run_id", "plans.iteration"]),)

    run_id: Mapped[Key]
    iteration: Mapped[Number]
    key: Mapped[Key]
    position: Mapped[int]
    policy: Mapped[str]
    tunables: Mapped[Tunables]
    history: Mapped[Inputs]
    classes: Mapped[Inputs]
    reason: Mapped[str]
    origin: Mapped[Origin]
    expected: Mapped[str]
    refuted_by: Mapped[str]
    program: Mapped[SchedulerProgram | None]
    repairs: Mapped[str]


class VerificationRow(Base):
    """The report of the verifier on one candidate in one run."""

    __tablename__ = "verifications"

    run_id: Mapped[RunId]
    candidate_key: Mapped[Key]
    report: Mapped[VerificationReport]


class SampleRow(Base):
    """One measured run of the workload; `argv`, the command that the lab ran for it, is loaded only on request."""

    __tablename__ = "samples"

    run_id: Mapped[RunId]
    iteration: Mapped[Number]
    block: Mapped[Number]
    arm: Mapped[Key]
    position: Mapped[int]
    value: Mapped[Ratio]
    wall_ns: Mapped[int]
    cpu_ns: Mapped[int]
    exit_status: Mapped[int | None]
    started_at: Mapped[str]
    calibration_ns: Mapped[int]
    output_tail: Mapped[str]
    policy_exit: Mapped[str]
    values: Mapped[Shares]
    usage: Mapped[Usage | None]
    argv: Mapped[Words] = mapped_column(deferred=True)


class VerdictRow(Base):
    """The comparison of one candidate with the default."""

    __tablename__ = "verdicts"
    __table_args__ = (
        ForeignKeyConstraint(
            ["run_id", "iteration", "candidate_key"], ["candidates.run_id", "candidates.iteration", "candidates.key"]
        ),
    )

    run_id: Mapped[Key]
    iteration: Mapped[Number]
    candidate_key: Mapped[Key]
    outcome: Mapped[Outcome]
    ratio: Mapped[Ratio]
    low: Mapped[Ratio]
    high: Mapped[Ratio]
    confidence: Mapped[float]
    pairs: Mapped[int]
    disturbed: Mapped[int]
    reason: Mapped[str]
    guards: Mapped[Guards]
    expected: Mapped[Expected | None]
    at: Mapped[str]


class AntipatternRow(Base):
    """A candidate that failed."""

    __tablename__ = "antipatterns"

    hardware_key: Mapped[Key]
    workload_key: Mapped[Key]
    candidate_key: Mapped[Key]
    gate: Mapped[Key]
    source_digest: Mapped[Key]
    policy: Mapped[str]
    tunables: Mapped[Tunables]
    reason: Mapped[str]
    at: Mapped[str]


class ApprovalRow(Base):
    """What a run has shown to a person, and what was decided. Undecided: `decided_at` is empty."""

    __tablename__ = "approvals"

    run_id: Mapped[RunId]
    digest: Mapped[Key]
    stage: Mapped[ApprovalStage]
    iteration: Mapped[int]
    shown: Mapped[Values]
    asked_at: Mapped[str]
    approved: Mapped[int]
    decided_by: Mapped[str]
    decided_at: Mapped[str]
    because: Mapped[str]


class InsightRow(Base):
    """What was concluded from trials; the evidence is keys of candidates."""

    __tablename__ = "insights"

    run_id: Mapped[RunId]
    text: Mapped[Key]
    evidence: Mapped[Words]
    created_at: Mapped[str]
    claims: Mapped[Claims]


class DerivedPolicyRow(Base):
    """A policy that did not come with the program. The run may be empty: nobody has to be running."""

    __tablename__ = "derived_policies"

    name: Mapped[Key]
    origin: Mapped[Origin]
    parent: Mapped[str]
    source: Mapped[str]
    manifest: Mapped[str]
    spec: Mapped[Values | None]
    run_id: Mapped[str]
    created_at: Mapped[str]


class PolicyRow(Base):
    """Mirror of the policy library, for searching. Targets are separated by spaces."""

    __tablename__ = "policies"

    name: Mapped[Key]
    description: Mapped[str]
    targets: Mapped[str]
    algorithm: Mapped[str]
    limitations: Mapped[str]


class ReadingRow(Base):
    """One interval that the agent service measured; no delay: no task ran."""

    __tablename__ = "readings"

    subject: Mapped[Key]
    at: Mapped[float] = mapped_column(primary_key=True)
    elapsed_s: Mapped[float]
    delay_s: Mapped[float | None]
    pressure: Mapped[float]
    commands: Mapped[Shares]


class BaselineRow(Base):
    """What is usual for a subject of the agent service."""

    __tablename__ = "baselines"

    subject: Mapped[Key]
    since: Mapped[float]
    until: Mapped[float]
    measures: Mapped[Measures]
    mix: Mapped[Shares]


class RecommendationRow(Base):
    """What the agent service recommends; times are Unix time."""

    __tablename__ = "recommendations"

    id: Mapped[Key]
    kind: Mapped[RecommendationKind]
    subject: Mapped[str]
    policy: Mapped[str]
    what: Mapped[str]
    why: Mapped[str]
    evidence: Mapped[Values]
    workload: Mapped[WorkloadCommand]
    cgroup: Mapped[str]
    since: Mapped[float]
    expires_at: Mapped[float]
    standing: Mapped[Standing]
    note: Mapped[str]


class RequestRow(Base):
    """Who wants a recommendation carried out, and how far that is; times are Unix time, 0 for not yet."""

    __tablename__ = "requests"

    number: Mapped[Number]
    recommendation_id: Mapped[str] = mapped_column(ForeignKey("recommendations.id"))
    cgroup: Mapped[str]
    asked_by: Mapped[str]
    asked_at: Mapped[float]
    started_at: Mapped[float]
    ended_at: Mapped[float]
    progress: Mapped[Progress]
    run_id: Mapped[str]
    deployment: Mapped[int]
    note: Mapped[str]
