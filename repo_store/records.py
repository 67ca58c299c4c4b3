"""What the repository returns besides the types of schedagent.core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from schedagent.core.trials.lesson import Lesson
from schedagent.core.trials.trial import Hardware
from schedagent.core.trials.workload import WorkloadClass, WorkloadCommand


class RunStatus(StrEnum):
    """Where a run stands. A run that was killed stays RUNNING until someone resumes it; WAITING is for an approval."""

    RUNNING = "running"
    WAITING = "waiting"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class RunFailure:
    """Why a run failed.

    Args:
        message, hint: what failed, and what to do about it, as the error said.
        resumable: whether the run can continue once that is done; if not, it would fail in the same way again.
    """

    message: str
    hint: str
    resumable: bool


@dataclass(frozen=True)
class RunRecord:
    """One `optimize` run.

    Args:
        id: short id that sorts by time.
        workload, hardware: what is optimised, and where.
        settings: options of the run, JSON values.
        seed: of every random choice in it.
        started_at: ISO 8601 UTC time.
        finished_at: the same; empty while it is not finished.
        status: see RunStatus.
        report: final report, JSON values; None while there is none.
        failure: why it failed; None if it did not, or if a version that did not keep it stored the run.
    """

    id: str
    workload: WorkloadCommand
    hardware: Hardware
    settings: Mapping[str, Any]
    seed: int
    started_at: str
    finished_at: str
    status: RunStatus
    report: Mapping[str, Any] | None
    failure: RunFailure | None = None


@dataclass(frozen=True)
class PolicyMatch:
    """One policy found by a search.

    Args:
        name, description: of the policy.
        score: how well it matches; only comparable within one search, larger is better.
    """

    name: str
    description: str
    score: float


@dataclass(frozen=True)
class SimilarRun:
    """A run of another workload that looked alike.

    Args:
        run_id: the run.
        workload: what it ran.
        kind: what its profile was classified as.
        distance: between the profiles, see repo_store.similar; smaller is nearer.
        lessons: what was measured on that workload in this run, in the order of its plans.
    """

    run_id: str
    workload: WorkloadCommand
    kind: WorkloadClass
    distance: float
    lessons: tuple[Lesson, ...]
