"""The model's part in the four nodes: what each agent asks, from what is stored, and what of the answer is stored.

Every answer may be missing; the node then continues by rules. The records a question is made of are those that were
there when it was first asked, so that a resumed run asks the same and is answered from its transcript.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agents import plain_text as shown
from agents.learning import Trials, conclude
from agents.llm.transcript import Replay, Transcript
from agents.observation import interpret
from agents.planner.builder import PolicyBuilder
from agents.planning import Known, propose_with_model, still_holds
from agents.repair import ModelRepairer
from agents.session import ModelSession
from repo_store.records import RunRecord, SimilarRun
from repo_store.store import PolicyRepository
from schedagent.core.policies.policy import CandidatePolicy, Plan, PolicyInfo
from schedagent.core.policies.proposal import DerivedPolicy
from schedagent.core.trials.trial import Outcome, Verdict
from schedagent.core.trials.workload import WorkloadProfile
from schedagent.report.model_use import ModelUse, model_use

SIMILAR_RUNS = 3

Tried = Sequence[tuple[CandidatePolicy, Verdict]]


@dataclass(frozen=True)
class ModelAgents:
    """The agents of one run, as far as they ask a model.

    Args:
        transcript: where the session keeps its exchanges and notes.
        library: all policies, those that are made meanwhile included.
    """

    repository: PolicyRepository
    session: ModelSession
    transcript: Transcript | Replay
    builder: PolicyBuilder
    library: Mapping[str, PolicyInfo]

    def used(self) -> ModelUse | None:
        """Return what the run has used of models, and what happened meanwhile."""
        return model_use(self.transcript.path)

    def close(self) -> None:
        """Close the transcript."""
        self.transcript.close()

    def observe(self, run: RunRecord, profile: WorkloadProfile) -> None:
        """Have the profile put into words, unless that was done."""
        if self.repository.meaning(run.id) is None:
            meaning = interpret(self.session, run.workload, run.hardware, profile)
            if meaning:
                self.repository.save_meaning(run.id, meaning)

    def plan(
        self, run: RunRecord, iteration: int, profile: WorkloadProfile, *, tried: Tried, limit: int
    ) -> Plan | None:
        """Return the plan that the model wants; None if it gives none."""
        known = self._known(run, profile, tried, limit)
        return propose_with_model(self.session, self.builder, known, iteration)

    def repairer(self, iteration: int, profile: WorkloadProfile) -> ModelRepairer:
        """Return who decides on what the model wrote and what failed."""
        return ModelRepairer(self.session, self.builder, self._made, profile, iteration)

    def conclude(self, run: RunRecord, iteration: int, trials: Trials) -> None:
        """Have insights drawn from the trials of an iteration, and keep them."""
        meaning = self.repository.meaning(run.id)
        insights = conclude(self.session, trials, meaning=meaning, run_id=run.id, iteration=iteration)
        stored = self.repository.insights(run.workload.key, run.hardware.key)
        known = {insight.text for insight in stored if insight.run_id == run.id}
        for insight in insights:
            if insight.text not in known:  # of an earlier iteration, or of this one before it was cut short
                known.add(insight.text)
                self.repository.add_insight(insight)

    def _made(self, name: str) -> DerivedPolicy | None:
        return next((made for made in self.repository.derived_policies() if made.name == name), None)

    def _known(self, run: RunRecord, profile: WorkloadProfile, tried: Tried, limit: int) -> Known:
        workload, hardware = run.workload, run.hardware
        store = self.repository
        lessons = [lesson for lesson in store.lessons(workload.key, hardware.key) if lesson.run_id != run.id]
        failures = store.antipatterns(workload.key, hardware.key)
        return Known(
            workload=workload,
            hardware=hardware,
            profile=profile,
            meaning=store.meaning(run.id),
            policies=self._offered(run, tried),
            lessons=lessons,
            antipatterns=[failure for failure in failures if still_holds(failure, self.library)],
            insights=store.insights(workload.key, hardware.key),
            similar=[similar_line(similar) for similar in self._similar(run, profile)],
            tried=tried,
            limit=limit,
        )

    def _similar(self, run: RunRecord, profile: WorkloadProfile) -> list[SimilarRun]:
        return self.repository.similar_runs(profile, run.hardware.key, SIMILAR_RUNS, but_not=run.workload.key)

    def _offered(self, run: RunRecord, tried: Tried) -> list[PolicyInfo]:
        """Return the library without what this run has made and not tried: the question that led to it, before."""
        made_here = {made.name for made in self.repository.derived_policies() if made.run_id == run.id}
        unknown = made_here - {candidate.policy for candidate, _verdict in tried}
        return [info for name, info in self.library.items() if name not in unknown]


def similar_line(run: SimilarRun) -> str:
    """Return in one line what a run of another workload found: its best result, or that there was none."""
    won = [lesson for lesson in run.lessons if lesson.outcome is Outcome.BETTER]
    best = max(won, key=lambda lesson: abs(math.log(lesson.ratio))) if won else None
    result = f"{best.policy} {shown.tunables(best.tunables)}: {shown.verdict(best)}" if best else "nothing won"
    return f"{shown.short(run.workload.command, 60)} ({run.kind.value}, distance {run.distance:.1f}): {result}"
