"""What tests of the agent service need: finished runs with winners, a lab that needs no machine, readings to order."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace

from repo_store.records import RunStatus
from repo_store.store import PolicyRepository
from schedagent.core.errors import SetupError
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy, Plan
from schedagent.core.recommendation import MACHINE, Reading, Recommendation, RecommendationKind, recommendation_id
from schedagent.core.rules import GATES
from schedagent.core.trials.trial import Hardware, Outcome, Verdict
from schedagent.core.trials.workload import CommandStats, WorkloadClass, WorkloadCommand, WorkloadProfile
from schedagent.core.verification import GateResult, GateStatus, VerificationReport
from schedagent.run.lifecycle import REPOSITORY, report_of
from schedagent.run.options import RunOptions
from schedagent.service.acting import carry, run_options
from tests.support.deploy_orders import content_of, order_of
from tests.support.scripted_kernel import RELEASE

HARDWARE = Hardware("Scripted CPU", 2, 2048, "vm-tcg", RELEASE)
WORKLOAD = WorkloadCommand("make -j", "/srv/project", prepare="make clean")
BUILD = {"cc1": 30.0, "ld": 5.0, "make": 1.0}
DAY_S = 86400.0


def win(repository, workload=WORKLOAD, policy="good", *, run_id="", approve=(), **order):
    """Store a finished run in which a policy was better, with its token; return the run's id.

    Args:
        order: as for deploying.order_of.
    """
    token = order_of(policy, **order)
    options = asdict(run_options_with(approve))
    run_id = repository.create_run(workload, HARDWARE, settings=options, run_id=run_id)
    candidate = CandidatePolicy(policy, token.tunables, token.history, token.classes)
    repository.save_profile(run_id, profile())
    repository.save_plan(run_id, 0, Plan((candidate,), "because"))
    gates = tuple(GateResult(gate, GateStatus.PASSED, "fine") for gate in GATES)
    report = VerificationReport(policy, candidate.key, token.digest, RELEASE, gates, token=token.token)
    repository.save_verification(run_id, report)
    verdict = Verdict(Outcome.BETTER, 0.7, 0.65, 0.75, 0.95, 8, 0, "the candidate's value is 30.0% lower")
    repository.save_verdict(run_id, 0, candidate.key, verdict)
    repository.finish_run(run_id, RunStatus.FINISHED, {"best": {"policy": policy}, "waiting": None, "run": run_id})
    return run_id


def run_options_with(approve) -> RunOptions:
    from schedagent.core.trials.judge import TrialRules

    return RunOptions(2, 600.0, 3, TrialRules(), tuple(approve))


def profile(commands=BUILD) -> WorkloadProfile:
    """What observing a build has shown: who used how much CPU time."""
    rows = tuple(
        CommandStats(name, 1, name, 1, *([int(used * 1e9)] * 4), 0, 0, 0, 0, 0) for name, used in commands.items()
    )
    return WorkloadProfile(20, 36, 2, (), 0.9, rows, rows, 1, 0, 0, WorkloadClass.PARALLEL_BUILD, ())


def reading(number=0, *, subject=MACHINE, at=None, delay_s=0.004, pressure=0.2, commands=BUILD):
    """A reading over a minute; `number` places it in time, unless `at` does."""
    return Reading(subject, 60.0 * number if at is None else at, 60.0, delay_s, pressure, commands)


def optimise(workload=WORKLOAD, key="drift", *, now, lasts_s=DAY_S, cgroup="", **evidence):
    """A recommendation to optimise."""
    return Recommendation(
        recommendation_id(RecommendationKind.OPTIMISE, workload.key, "", key),
        RecommendationKind.OPTIMISE,
        workload.key,
        "",
        "schedagent optimize ...",
        "It waits.",
        evidence,
        workload,
        cgroup,
        now,
        now + lasts_s,
    )


@dataclass
class ScriptedLab:
    """Finds at once nothing better. Files in the state folder change that: `fail` makes it fail, `hang` makes it wait,
    `deaf` on top of it makes it ignore that it is to stop, `differ` makes it compile something else.

    Args:
        settings: of the program.
        repository: to store runs in.
    """

    settings: object
    repository: PolicyRepository

    def start(self, workload, options, run_id, reporter):
        assert options == run_options(self.settings.daemon)
        self.repository.create_run(workload, HARDWARE, settings=asdict(options), run_id=run_id)
        self._log(f"start {run_id}")  # only now: who is stopped before there is a run starts it, and resumes none
        return self._work(workload, run_id, reporter)

    def resume(self, run_id, reporter):
        self._log(f"resume {run_id}")
        return self._work(self.repository.run(run_id).workload, run_id, reporter)

    def compile(self, _repository, run_id, policy, kernel):
        self._log(f"compile {policy} of {run_id} for {kernel}")
        content = b"other bytes" if self._wanted("differ") else content_of(policy)
        return PolicyArtifact(policy, content, "source", "btf")

    def verify(self, repository, run_id, candidate, kernel):
        self._log(f"verify {candidate.policy} of {run_id} for {kernel}")
        report = replace(repository.verification(run_id, candidate.key), token="")
        return report if self._wanted("unsigned") else replace(report, token=order_of(candidate.policy).token)

    def _work(self, workload, run_id, reporter):
        reporter.stage("measuring")
        self._log(f"by {os.getpid()}")
        while self._wanted("hang"):
            try:
                time.sleep(0.02)
            except KeyboardInterrupt:
                if not self._wanted("deaf"):
                    raise
        if self._wanted("fail"):
            raise SetupError("the lab is broken")
        if self.repository.run(run_id).status is not RunStatus.FINISHED:
            self.repository.finish_run(run_id, RunStatus.FINISHED, {"best": None, "waiting": None, "run": run_id})
        return report_of(self.settings, self.repository, run_id)

    def _wanted(self, name):
        return (self.settings.state_dir / name).exists()

    def _log(self, line):
        with (self.settings.state_dir / "lab.log").open("a") as file:
            file.write(f"{line}\n")


def scripted_work(send, settings, number):
    """What `schedagent.service.acting.work` does, with a scripted lab."""
    with PolicyRepository(settings.state_dir / REPOSITORY) as repository:
        carry(send, settings, repository, ScriptedLab(settings, repository), number)


def dying_work(_send, _settings, _number):
    """A process that dies without a word."""
    os._exit(7)


def undecided_work(send, settings, _number):
    """A process that comes to no end that it could store."""
    with (settings.state_dir / "tries").open("a") as file:
        file.write("x")
    send(b'{"ended":"the disk is full"}\n')
