"""What a repository holds in figures, read without ever writing to it: for those who watch, not for those who run."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Connection, func, select, type_coerce

from repo_store.database.snapshot import read_only
from repo_store.database.tables import (
    CandidateRow,
    DerivedPolicyRow,
    ReadingRow,
    RecommendationRow,
    RequestRow,
    RunRow,
    SampleRow,
    VerdictRow,
    VerificationRow,
)
from repo_store.records import RunStatus
from schedagent.core.recommendation import MACHINE, Progress, Standing
from schedagent.core.trials.trial import Outcome
from schedagent.core.verification import GateStatus

CONCLUSIVE = (Outcome.BETTER, Outcome.TRADE_OFF, Outcome.WORSE, Outcome.NO_DIFFERENCE, Outcome.NO_USEFUL_GAIN)
"""Outcomes whose ratio says something."""

PASSED, FAILED, INCOMPLETE = "passed", "failed", "incomplete"
"""How a verification ended: incomplete is one that skipped a gate without failing in another."""


@dataclass(frozen=True)
class GateTotals:
    """What verifications came to.

    Args:
        results: verifications by PASSED, FAILED or INCOMPLETE.
        gates: (gate, status) -> how often.
        seconds: gate -> time spent in it.
    """

    results: Counter[str] = field(default_factory=Counter)
    gates: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: GateTotals) -> None:
        """Count the other's, too."""
        self.results.update(other.results)
        self.gates.update(other.gates)
        for gate, seconds in other.seconds.items():
            self.seconds[gate] += seconds


@dataclass(frozen=True)
class RepositoryTotals:
    """Figures of a repository.

    Args:
        runs: how many there are, by status.
        samples: runs of workloads that were measured.
        verdicts: (policy, outcome) -> how many.
        ratios: candidate / default of every conclusive verdict.
        best: policy -> the lowest ratio of its verdicts "better".
        derived: policies that did not come with the program, by their origin.
        verified: verifications of candidates.
        recommendations: of the agent service: (kind, standing) -> how many.
        requests: to carry them out, by progress.
        queued_since: Unix time at which the oldest one was asked for that has not begun; 0 without any.
        last_reading_at: Unix time of the agent service's last reading of the machine; 0 without any.
    """

    runs: Mapping[str, int] = field(default_factory=dict)
    samples: int = 0
    verdicts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    ratios: tuple[float, ...] = ()
    best: Mapping[str, float] = field(default_factory=dict)
    derived: Mapping[str, int] = field(default_factory=dict)
    verified: GateTotals = field(default_factory=GateTotals)
    recommendations: Mapping[tuple[str, str], int] = field(default_factory=dict)
    requests: Mapping[str, int] = field(default_factory=dict)
    queued_since: float = 0.0
    last_reading_at: float = 0.0


class RepositoryReader:
    """Reads the totals again and again; reports of the verifier, which are long and never change, only once.

    Args:
        path: of the SQLite file, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._verified: dict[str, tuple[int, GateTotals]] = {}

    def read(self) -> RepositoryTotals:
        """Return the totals of this moment; all of them are 0 while there is no repository.

        Raises:
            RepositoryError: it cannot be read, or is of another version of schedagent.
        """
        if not self._path.exists():
            return RepositoryTotals()
        with read_only(self._path) as connection:
            return RepositoryTotals(
                runs=_counts(connection, RunRow.status, RunRow.id),
                samples=connection.scalar(select(func.count()).select_from(SampleRow)) or 0,
                derived=_counts(connection, DerivedPolicyRow.origin, DerivedPolicyRow.name),
                verified=self._verifications(connection),
                recommendations=_recommendations(connection),
                requests=_counts(connection, RequestRow.progress, RequestRow.number),
                queued_since=_moment(connection, func.min(RequestRow.asked_at), RequestRow.progress == Progress.QUEUED),
                last_reading_at=_moment(connection, func.max(ReadingRow.at), ReadingRow.subject == MACHINE),
                **_verdicts(connection),
            )

    def open_runs(self) -> frozenset[str]:
        """Return the ids of runs that are running, or wait for an approval.

        Raises:
            RepositoryError: as `read`.
        """
        if not self._path.exists():
            return frozenset()
        alive = (RunStatus.RUNNING, RunStatus.WAITING)
        with read_only(self._path) as connection:
            return frozenset(connection.scalars(select(RunRow.id).where(RunRow.status.in_(alive))))

    def _verifications(self, connection: Connection) -> GateTotals:
        """Sum up by run; only runs that have more verifications than when they were last read."""
        counts = _counts(connection, VerificationRow.run_id, VerificationRow.candidate_key)
        for run, count in counts.items():
            if self._verified.get(run, (0, None))[0] != count:
                self._verified[run] = count, _verifications_of(connection, run)
        total = GateTotals()
        for run in counts:
            total.add(self._verified[run][1])
        return total


def _counts(connection: Connection, by: Any, counted: Any) -> dict[str, int]:
    query = select(by, func.count(counted)).group_by(by)
    return {str(name): int(count) for name, count in connection.execute(query)}


def _recommendations(connection: Connection) -> Counter[tuple[str, str]]:
    """By kind and standing; what nobody acted upon in time has expired, whatever the row contains."""
    row, now = RecommendationRow, time.time()
    query = select(row.kind, row.standing, row.expires_at)
    counts: Counter[tuple[str, str]] = Counter()
    for kind, standing, expires_at in connection.execute(query):
        expired = standing in (Standing.OPEN, Standing.FAILED) and now >= expires_at
        counts[kind, Standing.EXPIRED if expired else standing] += 1
    return counts


def _moment(connection: Connection, moment: Any, condition: Any) -> float:
    return float(connection.scalar(select(moment).where(condition)) or 0.0)


def _verdicts(connection: Connection) -> dict[str, Any]:
    """The verdicts, by the names of RepositoryTotals."""
    query = select(CandidateRow.policy, VerdictRow.outcome, VerdictRow.ratio).join(VerdictRow)
    counts: Counter[tuple[str, str]] = Counter()
    ratios: list[float] = []
    best: dict[str, float] = {}
    for policy, outcome, ratio in connection.execute(query):
        counts[policy, outcome] += 1
        if outcome in CONCLUSIVE and not math.isnan(ratio):
            ratios.append(ratio)
            if outcome is Outcome.BETTER:
                best[policy] = min(ratio, best.get(policy, ratio))
    return {"verdicts": counts, "ratios": tuple(ratios), "best": best}


def _verifications_of(connection: Connection, run: str) -> GateTotals:
    totals = GateTotals()
    # As plain JSON: to make reports of it takes twice as long.
    reports = select(type_coerce(VerificationRow.report, JSON)).where(VerificationRow.run_id == run)
    for report in connection.scalars(reports):
        statuses = {gate["status"] for gate in report["gates"]}
        for gate in report["gates"]:
            totals.gates[gate["gate"], gate["status"]] += 1
            totals.seconds[gate["gate"]] += gate["seconds"]
        failed = GateStatus.FAILED in statuses
        skipped = GateStatus.SKIPPED in statuses or GateStatus.NOT_REQUESTED in statuses
        totals.results[FAILED if failed else INCOMPLETE if skipped or not statuses else PASSED] += 1
    return totals
