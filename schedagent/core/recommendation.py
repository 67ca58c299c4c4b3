"""What the agent service measured, what it recommends, and what it was requested to do about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from schedagent.core.trials.workload import WorkloadCommand
from schedagent.core.welch import Spread


class RecommendationKind(StrEnum):
    """What a recommendation is to do."""

    OPTIMISE = "optimise"
    """Search for a better policy in the lab; changes nothing on the host."""
    DEPLOY = "deploy"
    """Run a policy that a finished run found better, beginning with one cgroup."""


class Standing(StrEnum):
    """How a recommendation stands."""

    OPEN = "open"
    APPLIED = "applied"
    FAILED = "failed"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"
    """Something newer took its place."""


class Progress(StrEnum):
    """How far a request has come."""

    QUEUED = "queued"
    RUNNING = "running"
    KEEPING = "keeping"
    """Deployed; the service renews its lease."""
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Reading:
    """What a cgroup, or the machine, did in the interval since the reading before. The service measures it.

    Args:
        subject: path of the cgroup, or `MACHINE`.
        at: Unix time of its end.
        elapsed_s: how long it was.
        delay_s: mean wait in a run queue before each run on a CPU; None if nothing ran.
        pressure: part of the interval in which some task waited for a CPU (PSI, "some").
        commands: CPU time in seconds by command name, what ended in between as `ENDED`.
    """

    subject: str
    at: float
    elapsed_s: float
    delay_s: float | None
    pressure: float
    commands: Mapping[str, float]

    @property
    def cpu_s(self) -> float:
        """CPU time of all commands."""
        return sum(self.commands.values())


MACHINE = "machine"
ENDED = "(ended)"
"""CPU time of tasks that began and ended between two readings, or ended in between: seen in totals only."""


@dataclass(frozen=True)
class Baseline:
    """What is usual for a subject.

    Args:
        subject: as for Reading.
        since, until: Unix time of the first and the last interval in it.
        measures: by name, see schedagent.service.drift.
        mix: part of the CPU time by command.
    """

    subject: str
    since: float
    until: float
    measures: Mapping[str, Spread]
    mix: Mapping[str, float]


@dataclass(frozen=True)
class Recommendation:
    """What could be done, and why. Times are Unix time in seconds.

    Args:
        id: the same finding has the same one, see `recommendation_id`.
        kind: what to do.
        subject: key of the workload.
        policy: what to deploy; empty for optimise.
        what: the command that does it by hand.
        why: one or two sentences with the figures.
        evidence: what it rests on, JSON values: figures and intervals, run and trials by id.
        workload: whose work it is about.
        cgroup: where its tasks are; empty if that is not known.
        since: when it was first found.
        expires_at: it is not acted upon from then on.
        standing: how it stands; EXPIRED follows from the time, see `at`.
        note: what came of it.
    """

    id: str
    kind: RecommendationKind
    subject: str
    policy: str
    what: str
    why: str
    evidence: Mapping[str, Any]
    workload: WorkloadCommand
    cgroup: str
    since: float
    expires_at: float
    standing: Standing = Standing.OPEN
    note: str = ""

    def at(self, now: float) -> Standing:
        """How it stands at a moment."""
        expired = self.standing in (Standing.OPEN, Standing.FAILED) and now >= self.expires_at
        return Standing.EXPIRED if expired else self.standing


def recommendation_id(kind: RecommendationKind, subject: str, policy: str, key: str) -> str:
    """Return the id of a finding: 8 hex digits.

    Args:
        key: distinguishes its evidence from other evidence for the same.
    """
    text = json.dumps([kind.value, subject, policy, key])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class ApplyRequest:
    """A request of a user, or of the service itself, to carry a recommendation out. Times are Unix time, 0 for not yet.

    Args:
        number: counts up.
        recommendation_id: which one.
        cgroup: where to deploy, instead of the recommendation's.
        asked_by: name of a user; empty: the service itself.
        asked_at, started_at, ended_at: when.
        progress: how far it is.
        run_id: of the optimisation; chosen before it begins, so that a restart finds it.
        deployment: number of the deployment.
        note: what came of it.
    """

    number: int
    recommendation_id: str
    cgroup: str
    asked_by: str
    asked_at: float
    started_at: float = 0.0
    ended_at: float = 0.0
    progress: Progress = Progress.QUEUED
    run_id: str = ""
    deployment: int = 0
    note: str = ""
