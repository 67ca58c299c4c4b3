"""The tables. Primary keys are what a thing is about, so the same thing cannot be stored twice.

A change here needs a new numbered file in migrations/versions and a new SCHEMA; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, ForeignKeyConstraint, Index, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "0004"
"""Revision these tables need: the newest in migrations/versions."""


class Base(DeclarativeBase):
    """Base of all tables; text has no length limit."""

    type_annotation_map = {str: Text(), int: BigInteger()}  # noqa: RUF012 - SQLAlchemy's own way


class RunRow(Base):
    """One optimize run. JSON: workload, hardware, settings, report. The seed is text: it may need 64 bits unsigned."""

    __tablename__ = "runs"
    __table_args__ = (Index("runs_by_workload", "workload_key", "hardware_key"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    workload: Mapped[str]
    workload_key: Mapped[str]
    hardware: Mapped[str]
    hardware_key: Mapped[str]
    settings: Mapped[str]
    seed: Mapped[str]
    started_at: Mapped[str]
    finished_at: Mapped[str]
    status: Mapped[str]
    report: Mapped[str | None]


class ProfileRow(Base):
    """What observation has shown (JSON)."""

    __tablename__ = "profiles"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    profile: Mapped[str]


class MeaningRow(Base):
    """What a model said of the profile; no figure is ever read from it."""

    __tablename__ = "meanings"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    meaning: Mapped[str]
    goal: Mapped[str]


class PlanRow(Base):
    """Why the candidates of one iteration were chosen."""

    __tablename__ = "plans"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    iteration: Mapped[int] = mapped_column(primary_key=True)
    reason: Mapped[str]
    learned: Mapped[str]


class CandidateRow(Base):
    """A candidate of a plan, or one that repairs another of the same iteration. JSON: tunables, history, classes."""

    __tablename__ = "candidates"
    __table_args__ = (ForeignKeyConstraint(["run_id", "iteration"], ["plans.run_id", "plans.iteration"]),)

    run_id: Mapped[str] = mapped_column(primary_key=True)
    iteration: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]
    policy: Mapped[str]
    tunables: Mapped[str]
    history: Mapped[str]
    classes: Mapped[str]
    reason: Mapped[str]
    origin: Mapped[str] = mapped_column("way")
    expected: Mapped[str]
    refuted_by: Mapped[str]
    repairs: Mapped[str] = mapped_column("mends")


class VerificationRow(Base):
    """What the verifier said of one candidate in one run. JSON: report, all of it; the rest is for queries."""

    __tablename__ = "verifications"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    candidate_key: Mapped[str] = mapped_column(primary_key=True)
    artifact_digest: Mapped[str]
    kernel_release: Mapped[str]
    report: Mapped[str]
    token_text: Mapped[str]


class SampleRow(Base):
    """One measured run of the workload; a value of NULL is nan, which SQLite cannot hold. JSON: argv."""

    __tablename__ = "samples"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    iteration: Mapped[int] = mapped_column(primary_key=True)
    block: Mapped[int] = mapped_column(primary_key=True)
    arm: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]
    value: Mapped[float | None]
    wall_ns: Mapped[int]
    cpu_ns: Mapped[int]
    exit_status: Mapped[int | None]
    started_at: Mapped[str]
    calibration_ns: Mapped[int]
    output_tail: Mapped[str]
    policy_exit: Mapped[str]
    argv: Mapped[str]


class VerdictRow(Base):
    """The comparison of one candidate with the default; NULL is nan."""

    __tablename__ = "verdicts"
    __table_args__ = (
        ForeignKeyConstraint(
            ["run_id", "iteration", "candidate_key"], ["candidates.run_id", "candidates.iteration", "candidates.key"]
        ),
    )

    run_id: Mapped[str] = mapped_column(primary_key=True)
    iteration: Mapped[int] = mapped_column(primary_key=True)
    candidate_key: Mapped[str] = mapped_column(primary_key=True)
    outcome: Mapped[str]
    ratio: Mapped[float | None]
    low: Mapped[float | None]
    high: Mapped[float | None]
    confidence: Mapped[float]
    pairs: Mapped[int]
    disturbed: Mapped[int]
    reason: Mapped[str]
    at: Mapped[str]


class AntipatternRow(Base):
    """A candidate that failed. JSON: tunables."""

    __tablename__ = "antipatterns"

    hardware_key: Mapped[str] = mapped_column(primary_key=True)
    workload_key: Mapped[str] = mapped_column(primary_key=True)
    candidate_key: Mapped[str] = mapped_column(primary_key=True)
    gate: Mapped[str] = mapped_column(primary_key=True)
    source_digest: Mapped[str] = mapped_column(primary_key=True)
    policy: Mapped[str]
    tunables: Mapped[str]
    reason: Mapped[str]
    at: Mapped[str]


class ApprovalRow(Base):
    """What a run has shown to a person, and what was decided. JSON: shown. Undecided: `decided_at` is empty."""

    __tablename__ = "approvals"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)
    stage: Mapped[str]
    iteration: Mapped[int]
    shown: Mapped[str]
    asked_at: Mapped[str]
    approved: Mapped[int]
    decided_by: Mapped[str]
    decided_at: Mapped[str]
    because: Mapped[str]


class InsightRow(Base):
    """What was concluded from trials, in words. JSON: evidence."""

    __tablename__ = "insights"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    text: Mapped[str] = mapped_column(primary_key=True)
    evidence: Mapped[str]
    created_at: Mapped[str]


class DerivedPolicyRow(Base):
    """A policy that did not come with the program. JSON: spec. The run may be empty: nobody has to be running."""

    __tablename__ = "made_policies"

    name: Mapped[str] = mapped_column(primary_key=True)
    origin: Mapped[str] = mapped_column("way")
    parent: Mapped[str]
    source: Mapped[str]
    manifest: Mapped[str]
    spec: Mapped[str | None]
    run_id: Mapped[str]
    created_at: Mapped[str]


class PolicyRow(Base):
    """Mirror of the policy library, for searching. Targets are separated by spaces."""

    __tablename__ = "policies"

    name: Mapped[str] = mapped_column(primary_key=True)
    description: Mapped[str]
    targets: Mapped[str]
    algorithm: Mapped[str]
    limitations: Mapped[str]


class ReadingRow(Base):
    """One interval that the agent service measured; a delay of NULL: nothing had a turn. JSON: commands."""

    __tablename__ = "looks"

    subject: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[float] = mapped_column(primary_key=True)
    elapsed_s: Mapped[float]
    delay_s: Mapped[float | None]
    pressure: Mapped[float]
    commands: Mapped[str]


class BaselineRow(Base):
    """What is usual for a subject of the agent service. JSON: measures, mix."""

    __tablename__ = "baselines"

    subject: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[float]
    until: Mapped[float]
    measures: Mapped[str]
    mix: Mapped[str]


class RecommendationRow(Base):
    """What the agent service recommends; times are Unix time. JSON: evidence, workload."""

    __tablename__ = "recommendations"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    subject: Mapped[str]
    policy: Mapped[str]
    what: Mapped[str]
    why: Mapped[str]
    evidence: Mapped[str]
    workload: Mapped[str]
    cgroup: Mapped[str]
    since: Mapped[float]
    expires_at: Mapped[float]
    standing: Mapped[str]
    note: Mapped[str]


class RequestRow(Base):
    """Who wants a recommendation carried out, and how far that is; times are Unix time, 0 for not yet."""

    __tablename__ = "requests"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    recommendation_id: Mapped[str] = mapped_column(ForeignKey("recommendations.id"))
    cgroup: Mapped[str]
    asked_by: Mapped[str]
    asked_at: Mapped[float]
    started_at: Mapped[float]
    ended_at: Mapped[float]
    progress: Mapped[str]
    run_id: Mapped[str]
    deployment: Mapped[int]
    note: Mapped[str]
