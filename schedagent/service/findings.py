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
from schedagent.core.recommendation import Baseline, Recommendation, RecommendationKind, Standing, recommendation_id
from schedagent.core.service_settings import ServiceSettings, WatchedWorkload
from schedagent.core.trials.workload import Goal, WorkloadCommand
from schedagent.core.welch import DELAY
from schedagent.service.drift import Drift, distance, shares
from schedagent.service.limits import DAY_S, latest_slot, slot_s

KNOWN_SHARE = 0.5
"""A known workload is what runs in a cgroup if their mixes of commands have so much of the CPU time in common."""
RUNS = 50
"""How many of the latest runs are looked at."""


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
        self, baseline: Baseline, found: Sequence[Drift], mix: Mapping[str, float], now: float
    ) -> Iterator[Recommendation]:
        """Yield what to optimise because a subject drifted; nothing if nobody knows what it runs.

        Args:
            found: what is not as usual.
            mix: of the last intervals.
            now: Unix time.
        """
        why = f"{_place(baseline)} is not as usual: {'; '.join(map(str, found))}."
        evidence = {
            "subject": baseline.subject,
            "baseline_since": baseline.since,
            "baseline_until": baseline.until,
            "drift": {one.measure: {"now": asdict(one.now), "before": asdict(one.before)} for one in found},
        }
        key = f"drift {baseline.subject} {baseline.since}"
        for one in self.workloads_in(baseline.subject, mix):
            yield self._optimise(one, key, why, evidence, now, self.settings.recommend_days * DAY_S)

    def of_waiting(self, baseline: Baseline, now: float) -> Iterator[Recommendation]:
        """Yield what to optimise because a subject usually waits much, unless that was done lately."""
        usual = baseline.measures[DELAY]
        why = f"{_place(baseline)} usually waits {usual.mean * 1e3:.2g} ms for each turn on a CPU."
        evidence = {"subject": baseline.subject, "baseline_since": baseline.since, "delay_s": asdict(usual)}
        lately = now - self.settings.recommend_days * DAY_S
        done = {run.workload.key for run in self._finished() if _unix(run.finished_at) >= lately}
        for one in self.workloads_in(baseline.subject, baseline.mix):
            if one.workload.key not in done:
                key = f"waits {baseline.subject} {baseline.since}"
                yield self._optimise(one, key, why, evidence, now, self.settings.recommend_days * DAY_S)

    def of_schedule(self, now: datetime) -> Iterator[Recommendation]:
        """Yield what the schedule asks for, if it asked for it since the service came to this machine."""
        slot, first = latest_slot(self.settings, now), self.repository.service.first_reading_at()
        if slot is None or first is None or slot < first:
            return
        when = f"every {self.settings.every}" if self.settings.every else f"at {self.settings.at}"
        for one in self.settings.workloads:
            lasts_s = slot + slot_s(self.settings) - now.timestamp()
            yield self._optimise(
                one, f"schedule {slot}", f"The schedule says so: {when}.", {"slot": slot}, now.timestamp(), lasts_s
            )

    def of_runs(self, now: float) -> Iterator[Recommendation]:
        """Yield what to deploy: of each workload, what its latest finished run found better, while its token holds."""
        seen: set[str] = set()
        for run in self._finished():
            if run.workload.key not in seen:
                seen.add(run.workload.key)
                found = self._deploy(run, now)
                if found is not None and found.expires_at > now:
                    yield found

    def outdated(self, current: Sequence[Recommendation], now: float) -> list[str]:
        """Return the ids of open recommendations to deploy that a newer run has taken the ground of."""
        ids = {one.id for one in current}
        stored = self.repository.service.recommendations()
        waiting = [one for one in stored if one.kind is RecommendationKind.DEPLOY and one.at(now) is Standing.OPEN]
        return [one.id for one in waiting if one.id not in ids]

    def workloads_in(self, subject: str, mix: Mapping[str, float]) -> list[WatchedWorkload]:
        """Return what runs in a subject: the workloads that the settings name for it, else the known one that has most
        of the CPU time in common with its mix of commands."""
        named = [one for one in self.settings.workloads if one.cgroup == subject]
        if named or not mix:
            return named
        cgroup = subject if subject.startswith("/") else ""
        near = [(1 - distance(mix, known), workload) for workload, known in self._known()]
        near = [found for found in near if found[0] >= KNOWN_SHARE]
        return [WatchedWorkload(max(near, key=lambda found: found[0])[1], cgroup)] if near else []

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
        self, one: WatchedWorkload, key: str, why: str, evidence: Mapping[str, object], now: float, lasts_s: float
    ) -> Recommendation:
        subject = one.workload.key
        return Recommendation(
            id=recommendation_id(RecommendationKind.OPTIMISE, subject, "", key),
            kind=RecommendationKind.OPTIMISE,
            subject=subject,
            policy="",
            what=optimize_command(one.workload),
            why=why,
            evidence=evidence,
            workload=one.workload,
            cgroup=one.cgroup,
            since=now,
            expires_at=now + lasts_s,
        )

    def _deploy(self, run: RunRecord, now: float) -> Recommendation | None:
        handed, found = deployment(self.repository, run.id), winner(self.repository, run.id)
        if handed is None or found is None:
            return None
        candidate, verdict, report = found
        said = token.decode(handed["token"])
        cgroup = next((one.cgroup for one in self.settings.workloads if one.workload.key == run.workload.key), "")
        recommendation = recommendation_id(
            RecommendationKind.DEPLOY, run.workload.key, candidate.policy, f"{said.artifact_digest} {candidate.key}"
        )
        return Recommendation(
            id=recommendation,
            kind=RecommendationKind.DEPLOY,
            subject=run.workload.key,
            policy=candidate.policy,
            what=f"schedagent apply {recommendation}" + ("" if cgroup else " --cgroup CGROUP"),
            why=f"In run {run.id}, {run.workload.command!r} under {candidate.policy}: {verdict.reason}.",
            evidence={
                "run": run.id,
                "trial": candidate.key,
                "pairs": verdict.pairs,
                "ratio": verdict.ratio,
                "interval": [verdict.low, verdict.high],
                "confidence": verdict.confidence,
                "report_digest": report.digest,
                "kernel": said.kernel_release,
                "lab": run.hardware.lab,
            },
            workload=run.workload,
            cgroup=cgroup,
            since=now,
            expires_at=float(said.expires_at),
        )


def optimize_command(workload: WorkloadCommand) -> str:
    """Return the command line that optimises a workload by hand."""
    words = ["schedagent", "optimize", "--workload", workload.command, "--dir", workload.directory]
    for option, value in (("--prepare", workload.prepare), ("--metric", workload.metric)):
        words += [option, value] if value else []
    if workload.goal is not Goal.MAKESPAN:
        words += ["--goal", workload.goal.value]
    return shlex.join(words)


def _place(baseline: Baseline) -> str:
    return f"cgroup {baseline.subject}" if baseline.subject.startswith("/") else "this machine"


def _unix(iso: str) -> float:
    return datetime.fromisoformat(iso).astimezone(UTC).timestamp() if iso else 0.0
