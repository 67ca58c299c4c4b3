"""The four nodes of the graph: each reads what it needs from the repository, calls one agent, and stores the result.

A node may run again, because the process was killed before the graph could note that it had ended: it finds what it
stored and continues after that. So every node is safe to repeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from agents.execution import REPAIRS, Execution, MeasuringLab, Verifier
from agents.learning import Trials, learn
from agents.observation import ObservingLab, observe
from agents.planner import rules as offline
from agents.planner.builder import PolicyBuilder
from agents.planner.programs import Choice, Shelf, choose_programs, joined, suited_programs
from agents.planning import propose
from kernel_bpf.policies.programs import known_programs
from repo_store.records import RunRecord, RunStatus
from repo_store.store import PolicyRepository
from schedagent.approval.approvals import rejection
from schedagent.core.approval import ApprovalStage
from schedagent.core.policies.policy import CandidatePolicy, Plan
from schedagent.core.process.machine_lock import LAB_LOCK
from schedagent.core.process.shell_text import quoted
from schedagent.core.readings.presets import settle
from schedagent.core.trials.judge import Terms
from schedagent.core.trials.lesson import Antipattern, Lesson
from schedagent.core.trials.race import judge_all
from schedagent.core.trials.trial import Block, Verdict
from schedagent.core.trials.usage import MachineCosts
from schedagent.core.trials.workload import WorkloadCommand, WorkloadProfile
from schedagent.core.verification import VerificationReport
from schedagent.report.as_json import to_json
from schedagent.report.build import build_report
from schedagent.run.library import Library, proven
from schedagent.run.model_agents import ModelAgents, Tried
from schedagent.run.options import RunOptions
from schedagent.run.progress import Reporter
from schedagent.run.state import RunState
from verifier.lab.vm import LabPolicy


class Lab(ObservingLab, MeasuringLab, Protocol):
    """Where the workload is observed and candidates are measured."""

    def costs(self) -> MachineCosts | None:
        """Measure what separates the lab from the hardware; None if it is the hardware, or if that failed."""

    def pace(self, costs: MachineCosts | None) -> float:
        """How many times as long work takes where it is observed as on the hardware."""


@dataclass(frozen=True)
class Notebook:
    """The repository as the Execution agent sees it: one iteration of one run."""

    repository: PolicyRepository
    run_id: str
    iteration: int
    workload: WorkloadCommand

    def verification(self, candidate_key: str) -> VerificationReport | None:
        return self.repository.verification(self.run_id, candidate_key)

    def save_verification(self, report: VerificationReport) -> None:
        self.repository.save_verification(self.run_id, report)

    def blocks(self) -> Sequence[Block]:
        return self.repository.blocks(self.run_id, self.iteration)

    def repairs(self) -> Mapping[str, CandidatePolicy]:
        stored = self.repository.candidates(self.run_id, self.iteration)
        candidates = {candidate.key: candidate for candidate in stored}
        repaired = self.repository.repaired(self.run_id, self.iteration)
        return {failed_key: candidates[key] for key, failed_key in repaired.items()}

    def save_repair(self, failed_key: str, repaired: CandidatePolicy) -> None:
        self.repository.save_repair(self.run_id, self.iteration, failed_key, repaired)

    def add_block(self, block: Block) -> None:
        argv = ["/bin/sh", "-c", self.workload.command]
        self.repository.add_block(self.run_id, self.iteration, block, argv=argv)


@dataclass(frozen=True)
class EarlierRuns:
    """The repository as planning sees it: lessons of other runs; this one's are given as `tried`."""

    repository: PolicyRepository
    run_id: str

    def lessons(self, workload_key: str, hardware_key: str) -> list[Lesson]:
        lessons = self.repository.lessons(workload_key, hardware_key)
        return [lesson for lesson in lessons if lesson.run_id != self.run_id]

    def antipatterns(self, workload_key: str, hardware_key: str) -> list[Antipattern]:
        return self.repository.antipatterns(workload_key, hardware_key)


class Service(Protocol):
    """What runs already and is measured by pulses: see schedagent.experiment.service.Service."""

    @property
    def words(self) -> str: ...

    def observe(self) -> WorkloadProfile: ...

    def measure(self, arms: Sequence[LabPolicy], store: Notebook, *, planned: int, seed: int) -> bool: ...

    def judge(self, blocks: Sequence[Block], arm: str, *, planned: int) -> Verdict: ...


class Clock(Protocol):
    """The time of a run; calling it returns whether it is used up."""

    def __call__(self) -> bool: ...

    def share(self, parts: int) -> Callable[[], bool]:
        """Return a clock for one of so many equal parts of what is left; it begins now, and ends with the whole."""
        ...


class TimeBudget:
    """A clock that starts now and stands still while this process waits for the lab.

    Calling it returns whether so many seconds have passed.
    """

    def __init__(self, budget_s: float) -> None:
        self._deadline = time.monotonic() + budget_s - LAB_LOCK.waited_s

    def __call__(self) -> bool:
        return self.left_s() < 0

    def left_s(self) -> float:
        """Return the seconds that are left."""
        return self._deadline + LAB_LOCK.waited_s - time.monotonic()

    def share(self, parts: int) -> Callable[[], bool]:
        """See Clock.share."""
        keep_s = self.left_s() * (parts - 1) / parts
        return lambda: self.left_s() < keep_s or self()


class RunNodes:
    """The nodes of one run and their collaborators.

    Args:
        open_models: gives the run's agents their models, by its id; None: it has none, and goes by rules.
        clock: the time of the run; by default, a clock with the budget of its options.
        programs: where schedulers with a loader of their own are, for the first plan; None: none is tried unasked.
        service: what an experiment is about; None: the workload is a command.
    """

    def __init__(
        self,
        repository: PolicyRepository,
        lab: Lab,
        verifier: Verifier,
        library: Library,
        reporter: Reporter,
        options: RunOptions,
        open_models: Callable[[str], ModelAgents | None] = lambda _run_id: None,
        clock: Clock | None = None,
        programs: Shelf | None = None,
        service: Service | None = None,
    ) -> None:
        self._repository = repository
        self._service = service
        self._programs = programs
        self._lab = lab
        self._verifier = verifier
        self._library = library
        self._reporter = reporter
        self._options = options
        self._out_of_time = clock or self._started_clock()
        self._open_models = open_models
        self._opened: ModelAgents | None = None

    def close(self) -> None:
        """Close what was opened for models."""
        if self._opened:
            self._opened.close()
            self._opened = None

    def _started_clock(self) -> TimeBudget:
        clock = TimeBudget(self._options.budget_s)
        self._reporter.budget(clock.left_s)
        return clock

    @property
    def library(self) -> Library:
        """The policies that candidates are made of."""
        return self._library

    def observation(self, state: RunState) -> dict[str, Any]:
        """Observe the workload once, unless that was done: the profile is stored last."""
        run_id = state["run_id"]
        if self._repository.profile(run_id) is None:
            earlier = self._earlier_profile(run_id)
            if earlier is None:
                self._reporter.stage(f"observation: {self._observing(run_id)} under the default scheduler")
            costs = self._costs(run_id)
            self._repository.save_profile(run_id, earlier or self._observed(run_id, costs))
        models = self._models(run_id)
        if models:
            models.observe(self._repository.run(run_id), self._profile(run_id))
        return {}

    def _observing(self, run_id: str) -> str:
        if self._service:
            return f"watching {quoted(self._service.words)}"
        return f"running {quoted(self._repository.run(run_id).workload.command)}"

    def _earlier_profile(self, run_id: str) -> WorkloadProfile | None:
        """Return what observing the same workload on the same hardware has shown before, if it may be used."""
        if not self._options.profile_of:
            return None
        run, earlier = self._repository.run(run_id), self._repository.run(self._options.profile_of)
        if (run.workload.key, run.hardware.key) != (earlier.workload.key, earlier.hardware.key):
            return None
        return self._repository.profile(earlier.id)

    def _costs(self, run_id: str) -> MachineCosts | None:
        """Return what separates the lab from the hardware, measured once in a run: no machine is the same each day."""
        costs = self._repository.costs(run_id)
        if costs is None:
            costs = self._lab.costs()
            if costs:
                self._repository.save_costs(run_id, costs)
        return costs

    def _observed(self, run_id: str, costs: MachineCosts | None) -> WorkloadProfile:
        """Run the workload, and settle by what it printed how its trials are compared; what runs already is watched."""
        if self._service:
            return self._service.observe()
        workload = self._repository.run(run_id).workload
        unread = replace(workload, metric="", metrics=(), guards=())
        sample, profile = observe(self._lab, unread, self._reporter.step, kappa=self._lab.pace(costs))
        settled = settle(workload, sample.output_tail, recognise=self._options.recognise)
        for note in settled.notes:
            self._reporter.note(note)
        self._repository.settle_workload(run_id, settled.workload)
        return profile

    def planning(self, state: RunState) -> dict[str, Any]:
        """Plan the iteration, unless that was done."""
        run_id, iteration = state["run_id"], state["iteration"]
        if self._repository.plan(run_id, iteration) is None:
            self._repository.save_plan(run_id, iteration, self._new_plan(run_id, iteration))
        plan = self._plan(run_id, iteration)
        self._reporter.stage(f"planning, iteration {iteration + 1}: {plan.reason}")
        if plan.learned:
            self._reporter.step(f"learned earlier: {plan.learned}")
        return {}

    def _new_plan(self, run_id: str, iteration: int) -> Plan:
        if self._options.proposal:
            candidate = PolicyBuilder(self._library, run_id).make(self._options.proposal, self._profile(run_id))
            return Plan((candidate,), "the one candidate that was asked for")
        named = self._named(run_id) if iteration == 0 else ()
        if self._options.compare:
            return joined(Plan((), ""), named, Choice(), 0)
        tried = self._tried(run_id, iteration)
        plan = self._plan_by_model(run_id, iteration, tried) or self._plan_by_rules(run_id, iteration, tried)
        choice = self._choice(run_id) if iteration == 0 else Choice()
        return joined(plan, named, choice, self._options.candidates)

    def _named(self, run_id: str) -> tuple[CandidatePolicy, ...]:
        """Return the candidates that the user named."""
        builder = PolicyBuilder(self._library, run_id)
        return tuple(builder.make(proposal, self._profile(run_id)) for proposal in self._options.schedulers)

    def _choice(self, run_id: str) -> Choice:
        """Return the installed schedulers that suit the work: at most half of the plan."""
        if self._programs is None:
            return Choice()
        run = self._repository.run(run_id)
        antipatterns = self._repository.antipatterns(run.workload.key, run.hardware.key)
        return choose_programs(
            suited_programs(self._profile(run_id), known_programs()),
            self._programs,
            run.workload.goal,
            limit=self._options.candidates // 2,
            failed={pattern.candidate_key for pattern in antipatterns},
        )

    def _plan_by_model(self, run_id: str, iteration: int, tried: Tried) -> Plan | None:
        models = self._models(run_id)
        if models is None:
            return None
        run, profile = self._repository.run(run_id), self._profile(run_id)
        plan = models.plan(run, iteration, profile, tried=tried, limit=self._options.candidates)
        if plan is None:
            models.session.note("planning", iteration, "planned by rules")
        return plan

    def _plan_by_rules(self, run_id: str, iteration: int, tried: Tried) -> Plan:
        run = self._repository.run(run_id)
        return propose(
            offline.plan,
            EarlierRuns(self._repository, run_id),
            proven(self._library, self._repository),
            workload=run.workload,
            hardware=run.hardware,
            profile=self._profile(run_id),
            iteration=iteration + 1,
            tried=tried,
            limit=self._options.candidates,
        )

    def execution(self, state: RunState) -> dict[str, Any]:
        """Verify and measure the candidates of the iteration, as far as that is not done yet."""
        run_id, iteration = state["run_id"], state["iteration"]
        run = self._repository.run(run_id)
        candidates, models = self._plan(run_id, iteration).candidates, self._models(run_id)
        judged = self._repository.verdicts(run_id, iteration)  # then learning has begun, and its samples are settled
        cut = state["out_of_time"]
        if candidates and not judged:
            self._reporter.stage(f"execution: {len(candidates)} candidates to verify and to measure")
            agent = Execution(
                self._verifier,
                self._lab,
                self._library,
                self._reporter,
                self._out_of_time.share(self._options.iterations - iteration),
                models.repairer(iteration, self._profile(run_id)) if models else None,
                self._options.warmup,
            )
            notebook = Notebook(self._repository, run_id, iteration, run.workload)
            if self._service:
                arms = replace(agent, out_of_time=lambda: False).verified(candidates, notebook)
                cut = self._service.measure(arms, notebook, planned=len(candidates), seed=run.seed)
            else:
                cut = agent.execute(candidates, notebook, self._terms(run), seed=run.seed + iteration)
        return {"out_of_time": cut}

    def learning(self, state: RunState) -> dict[str, Any]:
        """Judge the iteration, keep its lessons, and decide whether another one follows."""
        run_id, iteration = state["run_id"], state["iteration"]
        run = self._repository.run(run_id)
        candidates = self._repository.candidates(run_id, iteration)
        rejected = rejection(self._repository, run_id, ApprovalStage.PLAN, iteration)
        lessons = learn(
            candidates,
            self._library,
            self._reports(run_id, candidates),
            self._measured(run_id, iteration, candidates),
            workload_key=run.workload.key,
            hardware_key=run.hardware.key,
            rejected=rejected.in_words if rejected else "",
        )
        for key, verdict in lessons.verdicts.items():
            self._repository.save_verdict(run_id, iteration, key, verdict)
        for antipattern in lessons.antipatterns:
            self._repository.add_antipattern(antipattern)
        self._conclude(run, iteration, [(candidate, lessons.verdicts[candidate.key]) for candidate in candidates])
        another = bool(candidates) and iteration + 1 < self._options.iterations
        if another and not self._out_of_time():
            return {"iteration": iteration + 1, "out_of_time": False}
        return {"finished": True, "out_of_time": another or state["out_of_time"]}

    def ending(self, state: RunState) -> dict[str, Any]:
        """Store the report."""
        models = self._models(state["run_id"])
        used = models.used() if models else None
        report = build_report(self._repository, state["run_id"], model=used, out_of_time=state["out_of_time"])
        self._repository.finish_run(state["run_id"], RunStatus.FINISHED, to_json(report))
        return {}

    def _conclude(self, run: RunRecord, iteration: int, tried: Tried) -> None:
        """Have the model, if there is one, conclude what the trials teach."""
        models = self._models(run.id)
        if models:
            blocks = self._repository.blocks(run.id, iteration)
            models.conclude(run, iteration, Trials(tried, blocks, self._terms(run)))

    def _models(self, run_id: str) -> ModelAgents | None:
        """Return the agents that ask models, opened at the first use: then this process alone works on the run."""
        if self._opened is None and self._options.planned_by_models:
            self._opened = self._open_models(run_id)
        return self._opened

    def _profile(self, run_id: str) -> WorkloadProfile:
        profile = self._repository.profile(run_id)
        assert profile is not None, "all agents follow observation"
        return profile

    def _plan(self, run_id: str, iteration: int) -> Plan:
        plan = self._repository.plan(run_id, iteration)
        assert plan is not None, "execution and learning follow planning"
        return plan

    def _tried(self, run_id: str, iteration: int) -> list[tuple[CandidatePolicy, Verdict]]:
        """Candidates of the earlier iterations of this run, with their verdicts."""
        tried = []
        for earlier in range(iteration):
            verdicts = self._repository.verdicts(run_id, earlier)
            candidates = self._repository.candidates(run_id, earlier)
            tried += [(candidate, verdicts[candidate.key]) for candidate in candidates]
        return tried

    def _reports(self, run_id: str, candidates: Sequence[CandidatePolicy]) -> dict[str, VerificationReport]:
        reports = {candidate.key: self._repository.verification(run_id, candidate.key) for candidate in candidates}
        return {key: report for key, report in reports.items() if report}

    def _measured(self, run_id: str, iteration: int, candidates: Sequence[CandidatePolicy]) -> dict[str, Verdict]:
        """Verdicts from the blocks."""
        blocks = self._repository.blocks(run_id, iteration)
        if self._service:
            count = len(candidates)
            return {each.key: self._service.judge(blocks, each.key, planned=count) for each in candidates}
        return judge_all(blocks, [candidate.key for candidate in candidates], self._terms(self._repository.run(run_id)))

    def _terms(self, run: RunRecord) -> Terms:
        """What verdicts go by: all claims of the run together have its error, in equal shares.

        An iteration makes one claim, about the leader of its race; with a model that repairs, one more for each round
        of repairs, which follow the race.
        """
        rounds = 1 + REPAIRS if self._models(run.id) else 1
        return Terms(
            run.workload,
            self._options.rules,
            self._options.iterations * rounds,
            run.hardware.cpus,
            self._repository.costs(run.id),
        )
