"""Carrying a recommendation out: in the lab as `optimize` does; this machine through schedagentd.

A request is stored as running before anything is done, with the id of its run: whoever finds it later, its process
gone, carries it out again, and the run continues after its last completed step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from repo_store.records import RunStatus
from repo_store.runs import new_run_id
from repo_store.store import PolicyRepository
from schedagent.approval.approvals import winner
from schedagent.approval.handover import handover
from schedagent.client.daemon import DaemonClient
from schedagent.core import token
from schedagent.core.approval import ApprovalStage
from schedagent.core.errors import PolicyError, SchedagentError, UsageError
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.recommendation import ApplyRequest, Progress, Recommendation, RecommendationKind, Standing
from schedagent.core.service_settings import ServiceSettings
from schedagent.core.settings import Settings
from schedagent.core.trials.judge import TrialRules
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.core.verification import VerificationReport
from schedagent.report.report import Report
from schedagent.run.lifecycle import only_one, report_of, resume_run, start_run
from schedagent.run.opening import AnyVerifier, open_repository, open_run_library, open_verifier, with_headers
from schedagent.run.options import RunOptions
from schedagent.run.progress import LineReporter, Reporter

Deployment = dict[str, Any]
"""What schedagentd answers about a deployment."""


class ServiceLab(Protocol):
    """What a request needs of the lab."""

    def start(self, workload: WorkloadCommand, options: RunOptions, run_id: str, reporter: Reporter) -> Report: ...

    def resume(self, run_id: str, reporter: Reporter) -> Report: ...

    def compile(self, repository: PolicyRepository, run_id: str, policy: str, kernel: str) -> PolicyArtifact: ...

    def verify(
        self, repository: PolicyRepository, run_id: str, candidate: CandidatePolicy, kernel: str
    ) -> VerificationReport: ...


@dataclass(frozen=True)
class WiredLab:
    """The lab of the settings, as `schedagent optimize` has it."""

    settings: Settings

    def start(self, workload: WorkloadCommand, options: RunOptions, run_id: str, reporter: Reporter) -> Report:
        """Begin a run under this id, and take it to its end."""
        return start_run(self.settings, workload, options, reporter, run_id)

    def resume(self, run_id: str, reporter: Reporter) -> Report:
        """Take a run that was cut short to its end."""
        return resume_run(self.settings, run_id, reporter)

    def compile(self, repository: PolicyRepository, run_id: str, policy: str, kernel: str) -> PolicyArtifact:
        """Compile a policy of a run's library for a kernel."""
        info = open_run_library(self.settings, repository, run_id)[policy]
        return self._verifier(repository, run_id, kernel).compile(info)

    def verify(
        self, repository: PolicyRepository, run_id: str, candidate: CandidatePolicy, kernel: str
    ) -> VerificationReport:
        """Verify a candidate of a run again; what passed before, by the same verifier, is not proved again."""
        info = open_run_library(self.settings, repository, run_id)[candidate.policy]
        return self._verifier(repository, run_id, kernel).verify(candidate, info).report

    def _verifier(self, repository: PolicyRepository, run_id: str, kernel: str) -> AnyVerifier:
        """Return the verifier as the run had it: a source that was brought needs the headers that it had."""
        include = repository.run(run_id).settings.get("include", ())
        return with_headers(open_verifier(replace(self.settings, kernel_release=kernel)), include)


@dataclass(frozen=True)
class Hands:
    """Carries requests out.

    Args:
        settings: of this program.
        repository: with the requests.
        lab: where policies are tried and compiled.
        now: Unix time.
    """

    settings: Settings
    repository: PolicyRepository
    lab: ServiceLab
    now: Callable[[], float]

    def carry_out(self, number: int, reporter: Reporter) -> Report | Deployment:
        """Carry a request out, and return the report of its run, or schedagentd's answer about its deployment.

        One that is kept gets a newer token: the deployment would end with the first one's life, a day.

        Raises:
            UsageError: another process works on it.
            SchedagentError: it failed, which is stored.
            KeyboardInterrupt: it was stopped; it can be carried out again, and continues.
        """
        records = self.repository.service
        with only_one(self.settings, f"request-{number}"):
            request = records.request(number)
            recommendation = records.recommendation(request.recommendation_id)
            if request.progress is Progress.KEEPING:
                return self._freshen(request, recommendation)
            run_id = request.run_id or (new_run_id() if recommendation.kind is RecommendationKind.OPTIMISE else "")
            started_at = request.started_at or self.now()
            request = replace(request, progress=Progress.RUNNING, started_at=started_at, run_id=run_id)
            records.save_request(request)
            try:
                if run_id:
                    return self._optimise(request, recommendation, reporter)
                return self._deploy(request, recommendation)
            except SchedagentError as error:
                failed = replace(request, progress=Progress.FAILED, ended_at=self.now(), note=error.message)
                records.save_request(failed, Standing.FAILED)
                raise

    def _optimise(self, request: ApplyRequest, recommendation: Recommendation, reporter: Reporter) -> Report:
        report = self._run(request.run_id, recommendation.workload, reporter)
        outcome = f"{report.best.candidate.policy} is better" if report.best else "nothing better was found"
        done = replace(request, progress=Progress.DONE, ended_at=self.now(), note=f"run {request.run_id}: {outcome}")
        self.repository.service.save_request(done, Standing.APPLIED)
        if subject := recommendation.evidence.get("subject"):
            self.repository.service.forget_baseline(str(subject))  # what was unusual was examined: it is usual now
        return report

    def _run(self, run_id: str, workload: WorkloadCommand, reporter: Reporter) -> Report:
        """Run the loop under this id, or resume it."""
        try:
            run = self.repository.run(run_id)
        except UsageError:
            return self.lab.start(workload, run_options(self.settings.daemon), run_id, reporter)
        if run.status is RunStatus.FINISHED:
            return report_of(self.settings, self.repository, run_id)
        return self.lab.resume(run_id, reporter)

    def _deploy(self, request: ApplyRequest, recommendation: Recommendation) -> Deployment:
        client = DaemonClient(self.settings.daemon.socket)
        cgroup = request.cgroup or recommendation.cgroup
        run_id = str(recommendation.evidence["run"])
        compile_policy = partial(self.lab.compile, self.repository, run_id)
        fields = handover(self.repository, run_id, compile_policy, recommendation.policy)
        deployment = _running_already(client, fields.pop("digest"), fields["tunables"]) or client.ask(
            "deploy", **fields, stage="pulse", cgroup=cgroup, lease_s=self.settings.daemon.lease_s
        )
        number = deployment["deployment"]
        note = f"deployment {number}"
        kept = replace(request, progress=Progress.KEEPING, cgroup=cgroup, deployment=number, note=note)
        self.repository.service.save_request(kept, Standing.APPLIED)
        return deployment

    def _freshen(self, request: ApplyRequest, recommendation: Recommendation) -> Deployment:
        """Have what is deployed verified again, and give schedagentd the new token."""
        run_id = str(recommendation.evidence["run"])
        won = winner(self.repository, run_id)
        if won is None or won[0].policy != recommendation.policy:
            raise UsageError(f"run {run_id} has another winner than {recommendation.policy}")
        if ApprovalStage.DEPLOY in self.repository.run(run_id).settings.get("approve", ()):
            raise UsageError(f"a person approved one token of run {run_id}, not a further one", "optimise it again")
        candidate, _verdict, earlier = won
        report = self.lab.verify(self.repository, run_id, candidate, earlier.kernel_release)
        if not report.token:
            why = report.failure or "a gate was skipped"
            raise PolicyError(f"{candidate.policy} did not get a token again: {why}")
        signed = token.decode(report.token)
        return DaemonClient(self.settings.daemon.socket).ask(
            "renew",
            deployment=request.deployment,
            lease_s=self.settings.daemon.lease_s,
            token=report.token,
            report_digest=signed.report_digest,
        )


def run_options(settings: ServiceSettings) -> RunOptions:
    """Return what bounds the service's runs."""
    return RunOptions(settings.iterations, settings.budget_minutes * 60, settings.candidates, TrialRules())


def _running_already(client: DaemonClient, digest: str, tunables: dict[str, int]) -> Deployment | None:
    """Return the deployment of this very policy that runs or waits: it was requested before the service died."""
    status = client.ask("status")
    for deployment in (status["active"], status["waiting"]):
        if deployment and (deployment["digest"], deployment["tunables"]) == (digest, tunables):
            return dict(deployment)
    return None


def work(send: Callable[[bytes], None], settings: Settings, number: int) -> None:
    """Carry a request out in a process of its own (core.process.child), which reports in JSON lines."""
    with open_repository(settings) as repository:
        carry(send, settings, repository, WiredLab(settings), number)


def carry(
    send: Callable[[bytes], None], settings: Settings, repository: PolicyRepository, lab: ServiceLab, number: int
) -> None:
    """Carry a request out and report how it goes: the rest of `work`, whatever the lab."""

    def report(text: str) -> None:
        send(json.dumps({"step": text}).encode() + b"\n")

    try:
        Hands(settings, repository, lab, time.time).carry_out(number, LineReporter(report))
        last = {"ended": "done"}
    except SchedagentError as error:
        last = {"ended": str(error)}
    except KeyboardInterrupt:
        last = {"ended": "stopped; it continues when the service is back"}
    with suppress(OSError):  # the service died, which is why this ends
        send(json.dumps(last).encode() + b"\n")
