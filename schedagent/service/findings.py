"""Recommendations: made of drift, of the schedule, and of what finished runs found."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from repo_store.records import RunRecord, RunStatus
from repo_store.store import PolicyRepository
from schedagent.approval.approvals import deployment, winner
from schedagent.core import token
from schedagent.core.process.shell_text import quoted
from schedagent.core.readings.metric_options import as_options
from schedagent.core.recommendation import Baseline, Recommendation, RecommendationKind, Standing, recommendation_id
from schedagent.core.service_settings import ServiceSettings, WatchedWorkload
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.core.welch import DELAY
from schedagent.service.drift import Drift, distance, shares
from schedagent.service.limits import DAY_S, latest_slot, slot_s

KNOWN_SHARE = 0.5
"""A known workload is what runs in a cgroup if their mixes of commands have so much of the CPU time in common."""
RUNS = 50
"""How many of the latest runs are considered."""


@dataclass(frozen=True)
class Findings:
    """Makes recommendations.

    Args:
        repository: with the runs.
        settings: of the service.
    """

    repository: PolicyRepository
    settings: ServiceSettings

    def of_drift(
        self, baseline: Baseline, drifted: Sequence[Drift], mix: Mapping[str, float], now: float
    ) -> Iterator[Recommendation]:
        """Yield what to optimise because a subject drifted; nothing if it is not known what runs there.

        Args:
            drifted: what is not as usual.
            mix: of the last intervals.
            now: Unix time.
        """
        why = f"{_place(baseline)} is not as usual: {'; '.join(map(str, drifted))}."
        evidence = {
            "subject": baseline.subject,
            "baseline_since": baseline.since,
            "baseline_until": baseline.until,
            "drift": {drift.measure: {"now": asdict(drift.now), "before": asdict(drift.before)} for drift in drifted},
        }
        key = f"drift {baseline.subject} {baseline.since}"
        for watched in self.workloads_in(baseline.subject, mix):
            yield self._optimise(watched, key, why, evidence, now, self.settings.recommend_days * DAY_S)

    def of_waiting(self, baseline: Baseline, now: float) -> Iterator[Recommendation]:
        """Yield what to optimise because a subject usually waits much, unless that was done lately."""
        usual = baseline.measures[DELAY]
        why = f"{_place(baseline)} usually waits {usual.mean * 1e3:.2g} ms for a CPU."
        evidence = {"subject": baseline.subject, "baseline_since": baseline.since, "delay_s": asdict(usual)}
        lately = now - self.settings.recommend_days * DAY_S
        done = {run.workload.key for run in self._finished() if _unix(run.finished_at) >= lately}
        for watched in self.workloads_in(baseline.subject, baseline.mix):
            if watched.workload.key not in done:
                key = f"waits {baseline.subject} {baseline.since}"
                yield self._optimise(watched, key, why, evidence, now, self.settings.recommend_days * DAY_S)

    def of_schedule(self, now: datetime) -> Iterator[Recommendation]:
        """Yield what the schedule asks for, unless its slot began before the service came to this machine."""
        slot, first = latest_slot(self.settings, now), self.repository.service.first_reading_at()
        if slot is None or first is None or slot < first:
            return
        when = f"every {self.settings.every}" if self.settings.every else f"at {self.settings.at}"
        for watched in self.settings.workloads:
            lasts_s = slot + slot_s(self.settings) - now.timestamp()
            yield self._optimise(
                watched, f"schedule {slot}", f"It is scheduled: {when}.", {"slot": slot}, now.timestamp(), lasts_s
            )

    def of_runs(self, now: float) -> Iterator[Recommendation]:
        """Yield what to deploy: of each workload, what its latest finished run found better, while its token holds."""
        seen: set[str] = set()
        for run in self._finished():
            if run.workload.key not in seen:
                seen.add(run.workload.key)
                recommendation = self._deploy(run, now)
                if recommendation is not None and recommendation.expires_at > now:
                    yield recommendation

    def outdated(self, current: Sequence[Recommendation], now: float) -> list[str]:
        """Return the ids of open recommendations to deploy that a newer run has made obsolete."""
        ids = {recommendation.id for recommendation in current}
        stored = self.repository.service.recommendations()
        waiting = [
            recommendation
            for recommendation in stored
            if recommendation.kind is RecommendationKind.DEPLOY and recommendation.at(now) is Standing.OPEN
        ]
        return [recommendation.id for recommendation in waiting if recommendation.id not in ids]

    def workloads_in(self, subject: str, mix: Mapping[str, float]) -> list[WatchedWorkload]:
        """Return what runs in a subject: the workloads that the settings name for it, else the known one that has most
        of the CPU time in common with its mix of commands."""
        named = [watched for watched in self.settings.workloads if watched.cgroup == subject]
        if named or not mix:
            return named
        cgroup = subject if subject.startswith("/") else ""
        near = [(1 - distance(mix, known), workload) for workload, known in self._known()]
        near = [match for match in near if match[0] >= KNOWN_SHARE]
        return [WatchedWorkload(max(near, key=lambda matching: matching[0])[1], cgroup)] if near else []

    def _known(self) -> Iterator[tuple[WorkloadCommand, Mapping[str, float]]]:
        """Yield each workload of the latest runs with its mix of commands, as its run was observed."""
        seen: set[str] = set()
        for run in self.repository.list_runs(RUNS):
            if run.workload.key in seen:
                continue
            profile = self.repository.profile(run.id)
            if profile is not None:
                seen.add(run.workload.key)
                used: Counter[str] = Counter()
                for command in profile.commands:
                    used[command.comm] += command.cpu_ns_total
                yield run.workload, shares(used)

    def _finished(self) -> list[RunRecord]:
        return [run for run in self.repository.list_runs(RUNS) if run.status is RunStatus.FINISHED]

    def _optimise(
        self, watched: WatchedWorkload, key: str, why: str, evidence: Mapping[str, object], now: float, lasts_s: float
    ) -> Recommendation:
        subject = watched.workload.key
        return Recommendation(
            id=recommendation_id(RecommendationKind.OPTIMISE, subject, "", key),
            kind=RecommendationKind.OPTIMISE,
            subject=subject,
            policy="",
            what=optimize_command(watched.workload),
            why=why,
            evidence=evidence,
            workload=watched.workload,
            cgroup=watched.cgroup,
            since=now,
            expires_at=now + lasts_s,
        )

    def _deploy(self, run: RunRecord, now: float) -> Recommendation | None:
        handed, won = deployment(self.repository, run.id), winner(self.repository, run.id)
        if handed is None or won is None:
            return None
        candidate, verdict, report = won
        signed = token.decode(handed["token"])
        cgroup = next(
            (watched.cgroup for watched in self.settings.workloads if watched.workload.key == run.workload.key), ""
        )
        recommendation = recommendation_id(
            RecommendationKind.DEPLOY, run.workload.key, candidate.policy, f"{signed.artifact_digest} {candidate.key}"
        )
        return Recommendation(
            id=recommendation,
            kind=RecommendationKind.DEPLOY,
            subject=run.workload.key,
            policy=candidate.policy,
            what=f"schedagent apply {recommendation}",
            why=f"In run {run.id}, {quoted(run.workload.command)} under {candidate.policy}: {verdict.reason}.",
            evidence={
                "run": run.id,
                "trial": candidate.key,
                "pairs": verdict.pairs,
                "ratio": verdict.claim[0],
                "interval": list(verdict.claim[1:]),
                "confidence": verdict.confidence,
                "report_digest": report.digest,
                "kernel": signed.kernel_release,
                "lab": run.hardware.lab,
            },
            workload=run.workload,
            cgroup=cgroup,
            since=now,
            expires_at=float(signed.expires_at),
        )


def optimize_command(workload: WorkloadCommand) -> str:
    """Return the command line that optimises a workload by hand."""
    words = ["schedagent", "optimize", "--workload", workload.command, "--dir", workload.directory]
    words += ["--prepare", workload.prepare] if workload.prepare else []
    return shlex.join([*words, *as_options(workload)])


def _place(baseline: Baseline) -> str:
    return f"cgroup {baseline.subject}" if baseline.subject.startswith("/") else "this machine"


def _unix(iso: str) -> float:
    return datetime.fromisoformat(iso).astimezone(UTC).timestamp() if iso else 0.0
