"""The Execution agent: takes candidates through the verifier, then measures them against the default scheduler.

Several candidates run a race, and the leader alone is then measured for its claim (schedagent.core.trials.race).

A candidate that a model wrote and that fails may be repaired, a few times; a repair is verified and measured like any
other. Every completed step is in the repository before the next begins (a verification, a repair, a block of runs), so
a run that was cut short continues after the last of them.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from schedagent.core.errors import KernelRejected, PolicyError, UsageError, VmLost
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo
from schedagent.core.trials.arm import KNOB_BLOCKS, Knob, knobs_for
from schedagent.core.trials.judge import Terms
from schedagent.core.trials.race import RACE_BLOCKS, judge_all, wanted
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Outcome, Sample
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.core.verification import VerificationReport, Verified
from verifier.lab.vm import LabArm, LabPolicy, LabProgram

log = logging.getLogger(__name__)

REPAIRS = 2
"""Times a candidate may be repaired, or tried again, in one iteration."""


class Runs(Protocol):
    """A lab session: see verifier.lab.vm.TrialSession."""

    def run_default(self, beside: LabArm | None = None) -> Sample: ...

    def run_candidate(self, policy: LabArm) -> Sample: ...

    def run_knob(self, knob: Knob, beside: LabArm) -> Sample: ...


class MeasuringLab(Protocol):
    """See verifier.lab.vm.VmLab."""

    def session(self, workload: WorkloadCommand) -> AbstractContextManager[Runs]: ...


class Verifier(Protocol):
    """See verifier.pipeline.Verifier."""

    def verify_all(self, submissions: Sequence[tuple[CandidatePolicy, PolicyInfo]]) -> Iterator[Verified]: ...

    def compile(self, info: PolicyInfo) -> PolicyArtifact: ...


class Notebook(Protocol):
    """Where this agent writes every finished step of one iteration of one run."""

    def verification(self, candidate_key: str) -> VerificationReport | None: ...

    def save_verification(self, report: VerificationReport) -> None: ...

    def blocks(self) -> Sequence[Block]: ...

    def add_block(self, block: Block) -> None: ...

    def repairs(self) -> Mapping[str, CandidatePolicy]:
        """By key of the candidate that failed."""
        ...

    def save_repair(self, failed_key: str, repaired: CandidatePolicy) -> None: ...


class RepairDecision(Protocol):
    """See agents.repair.Repair."""

    @property
    def repaired(self) -> CandidatePolicy | None: ...

    @property
    def retry(self) -> bool: ...


class Repairer(Protocol):
    """See agents.repair.ModelRepairer."""

    def after_gate(self, candidate: CandidatePolicy, report: VerificationReport) -> RepairDecision: ...

    def after_trial(self, candidate: CandidatePolicy, trouble: str, *, lost: bool) -> RepairDecision: ...


class Reporter(Protocol):
    """Shows the user how far the work is."""

    def step(self, text: str) -> None: ...

    def count(self, text: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class Execution:
    """The agent and its collaborators.

    Args:
        out_of_time: whether the run's budget is used up; asked before each verification and each block.
        repairer: decides on candidates that a model wrote and that failed; None without a model.
        warmup: runs in a fresh machine before those that count; the last of them is block 0 of a new trial.
    """

    verifier: Verifier
    lab: MeasuringLab
    library: Mapping[str, PolicyInfo]
    reporter: Reporter
    out_of_time: Callable[[], bool]
    repairer: Repairer | None = None
    warmup: int = 1

    def execute(self, candidates: Sequence[CandidatePolicy], notebook: Notebook, terms: Terms, *, seed: int) -> bool:
        """Verify each candidate, then measure those that passed. What was done before is not done again.

        A program that loads its policy itself is measured, and not verified: nobody but the lab's machine loads it.

        What takes the place of a candidate that failed in its trial has a round of its own, after the others.

        Args:
            terms: the workload, and what verdicts go by.
            seed: decides the order of runs inside each block.

        Returns:
            Whether the time ran out before it was done.

        Raises:
            WorkloadFailed: the workload fails under the default scheduler.
            UsageError: a policy changed since this run verified it.
            VmLost: a machine was lost twice while the default scheduler ran.
            RepositoryError: a finished step cannot be stored.
        """
        known = self._pass_gates(candidates, notebook)
        entering = known
        for _attempt in range(REPAIRS + 1):
            policies = [policy for candidate in entering if (policy := self._ready(candidate, notebook))]
            trial = Trial(self, policies, notebook, terms, seed)
            cut = trial.unfinished or bool(_unverified(known, notebook))
            if not policies or self.out_of_time():
                return cut
            trial.run()
            repaired, again = self._after_trial(trial, known, notebook)
            if not (repaired or again):
                return trial.unfinished
            if self.out_of_time():
                return True
            fresh = self._pass_gates(repaired, notebook)
            known, entering = [*known, *fresh], [*again, *fresh]
        return False

    def verified(self, candidates: Sequence[CandidatePolicy], notebook: Notebook) -> list[LabPolicy]:
        """Verify candidates, and return those that are safe, ready to run; what was verified before is not again.

        Raises:
            UsageError: a policy changed since this run verified it.
        """
        ready = [self._ready(candidate, notebook) for candidate in self._pass_gates(candidates, notebook)]
        return [policy for policy in ready if isinstance(policy, LabPolicy)]

    def _pass_gates(self, candidates: Sequence[CandidatePolicy], notebook: Notebook) -> list[CandidatePolicy]:
        """Verify candidates; what a gate rejects may be repaired and is then verified. Return all, repairs included."""
        known, waiting = list(candidates), list(candidates)
        while waiting:
            self._verify(waiting, notebook)
            waiting = [repair for candidate in waiting if (repair := self._repair(candidate, notebook))]
            known += waiting
        return known

    def _repair(self, candidate: CandidatePolicy, notebook: Notebook) -> CandidatePolicy | None:
        """Return what takes the place of a candidate that a gate rejected, or was found to before."""
        report = notebook.verification(candidate.key)
        if report is None or report.failure is None:
            return None
        repairs = notebook.repairs()
        if candidate.key in repairs:
            return repairs[candidate.key]
        if self.repairer is None or self.out_of_time() or _times_repaired(candidate, repairs) >= REPAIRS:
            return None
        return self._kept(candidate, self.repairer.after_gate(candidate, report).repaired, notebook)

    def _after_trial(
        self, trial: Trial, known: Sequence[CandidatePolicy], notebook: Notebook
    ) -> tuple[list[CandidatePolicy], list[CandidatePolicy]]:
        """Return what takes the place of candidates that failed in their trial, and those that are to be retried."""
        repaired: list[CandidatePolicy] = []
        again: list[CandidatePolicy] = []
        if self.repairer is None:
            return repaired, again
        for candidate, trouble, lost in trial.troubles():
            if candidate.loads_itself:
                continue
            repairs = notebook.repairs()
            repair = repairs.get(candidate.key)
            if repair is None and _times_repaired(candidate, repairs) < REPAIRS:
                decision = self.repairer.after_trial(candidate, trouble, lost=lost)
                again += [candidate] if decision.retry else []
                repair = self._kept(candidate, decision.repaired, notebook)
            repaired += [repair] if repair and repair not in known else []
        return repaired, again

    def _kept(
        self, failed: CandidatePolicy, repaired: CandidatePolicy | None, notebook: Notebook
    ) -> CandidatePolicy | None:
        """Store a repair, if there is one, and return it."""
        if repaired is None:
            return None
        try:
            notebook.save_repair(failed.key, repaired)
        except PolicyError as error:  # another candidate of the plan is the same
            self.reporter.step(f"{failed.label} is not repaired: {error.message}")
            return None
        self.reporter.step(f"{failed.label} is repaired: {repaired.label}")
        return repaired

    def _verify(self, candidates: Sequence[CandidatePolicy], notebook: Notebook) -> None:
        """Take those that were not verified yet through the gates, as long as there is time."""
        unknown = _unverified(candidates, notebook)
        verified = self.verifier.verify_all([(candidate, self.library[candidate.policy]) for candidate in unknown])
        for candidate in unknown:
            if self.out_of_time():
                return
            self.reporter.step(f"verifying {candidate.label}")
            notebook.save_verification(next(verified).report)

    def _ready(self, candidate: CandidatePolicy, notebook: Notebook) -> LabArm | None:
        """Return a candidate that is safe, ready to run; None for one that is not, has no verdict, or was not reached.

        What it costs others is no reason not to measure it: it gets no token, unless that is declared or accepted.
        """
        if candidate.loads_itself:
            return LabProgram(candidate)
        report = notebook.verification(candidate.key)
        if report is None or not report.safe or report.undecided:
            return None
        artifact = self.verifier.compile(self.library[candidate.policy])
        if artifact.digest != report.artifact_digest:
            raise UsageError(
                f"policy {candidate.policy} or its compiler changed since this run verified it",
                "what was measured before and after cannot be compared: start a new run",
            )
        return LabPolicy(candidate, artifact, token=report.token or "")


def _unverified(candidates: Sequence[CandidatePolicy], notebook: Notebook) -> list[CandidatePolicy]:
    """Return those that the verifier has to see, and has not seen yet."""
    return [each for each in candidates if not each.loads_itself and notebook.verification(each.key) is None]


def _times_repaired(candidate: CandidatePolicy, repairs: Mapping[str, CandidatePolicy]) -> int:
    """Return how many repairs lie between a planned candidate and this one."""
    failed_keys = {repaired.key: key for key, repaired in repairs.items()}
    count, key = 0, candidate.key
    while key in failed_keys and count <= REPAIRS:
        count, key = count + 1, failed_keys[key]
    return count


class Trial:
    """One round: blocks of interleaved runs until the race and its leader are decided, or pairs or time are used up."""

    def __init__(
        self, agent: Execution, policies: Sequence[LabArm], notebook: Notebook, terms: Terms, seed: int
    ) -> None:
        self._agent = agent
        self._policies = {policy.candidate.key: policy for policy in policies}
        self._notebook = notebook
        self._terms = terms
        self._knobs = {knob.key: knob for knob in knobs_for(terms.workload.goal)}
        self._seed = seed
        self._blocks = list(notebook.blocks())
        self._lost: set[str] = set()

    @property
    def unfinished(self) -> bool:
        """Whether more pairs would be measured if there were time."""
        return bool(self._wanted())

    def run(self) -> None:
        """Measure; block 0 is the warm-up and is kept but never compared."""
        if not self._wanted() or self._agent.out_of_time():
            return
        with self._agent.lab.session(self._terms.workload) as runs:
            for _ in range(self._agent.warmup - (not self._blocks)):
                runs.run_default()  # not counted: a resumed trial, too, has a fresh machine, whose caches are cold
            while (arms := self._wanted()) and not self._agent.out_of_time():
                self._agent.reporter.count(self._what(arms), len(self._blocks), self._most_blocks())
                block = Block(len(self._blocks), tuple(self._run_block(runs, len(self._blocks), arms)))
                self._notebook.add_block(block)
                self._blocks.append(block)

    def troubles(self) -> Iterator[tuple[CandidatePolicy, str, bool]]:
        """Yield the candidates that failed, or lost their machine: with what was seen, and whether it was lost."""
        verdicts = judge_all(self._blocks, list(self._policies), self._terms)
        for key, policy in self._policies.items():
            if key in self._lost:
                yield policy.candidate, "the VM was lost twice", True
            elif verdicts[key].outcome is Outcome.FAILED:
                yield policy.candidate, verdicts[key].reason, False

    def _wanted(self) -> tuple[str, ...]:
        """The candidates of the next block: neither failed nor decided, and their machine was not lost."""
        return wanted(self._blocks, [arm for arm in self._policies if arm not in self._lost], self._terms)

    def _what(self, arms: Sequence[str]) -> str:
        return "measuring" if len(arms) > 1 or len(self._policies) == 1 else "measuring the best again"

    def _most_blocks(self) -> int:
        """How many blocks the trial has at most, unless some are disturbed; the warm-up included."""
        return (RACE_BLOCKS if len(self._policies) > 1 else 0) + self._terms.rules.maximum_pairs + 1

    def _run_block(self, runs: Runs, number: int, arms: Sequence[str]) -> list[Sample]:
        """One run of the default, of these candidates and, at first, of each knob, in an order drawn from the seed.

        In the warm-up of a race the default runs alone: the first runs of the candidates make no claim. One that needs
        no race is warmed up: its first run was seen to take a tenth longer.
        """
        warm = number or len(arms) == 1
        order = [DEFAULT_ARM, *(arms if warm else ()), *(self._knobs if 0 < number <= KNOB_BLOCKS else ())]
        random.Random(f"{self._seed}:{number}").shuffle(order)
        beside = min((self._policies[arm] for arm in arms), key=lambda arm: arm.candidate.loads_itself)
        samples = [self._run_arm(runs, arm, beside) for arm in order]
        return [sample for sample in samples if sample]

    def _run_arm(self, runs: Runs, arm: str, beside: LabArm) -> Sample | None:
        """One run; None if the candidate lost its machine twice, which is neither a pass nor a failure."""
        if arm == DEFAULT_ARM:
            try:
                return runs.run_default(beside)
            except KernelRejected:  # its own run reports it
                return runs.run_default()
        if arm in self._knobs:
            return self._run_knob(runs, self._knobs[arm], beside)
        policy = self._policies[arm]
        started_at = datetime.now(UTC).isoformat()
        try:
            return runs.run_candidate(policy)
        except KernelRejected as error:
            return Sample(arm, 0.0, 0, 0, None, started_at, 0, policy_exit=error.message)
        except VmLost as error:
            log.warning("%s lost its machine twice and is left out: %s", policy.candidate.label, error.message)
            self._agent.reporter.step(f"{policy.candidate.label}: the VM was lost twice; nothing is claimed about it")
            self._lost.add(arm)
            return None

    def _run_knob(self, runs: Runs, knob: Knob, beside: LabArm) -> Sample | None:
        """One run with a knob turned; None where that fails, for nothing rests on it."""
        try:
            return runs.run_knob(knob, beside)
        except (KernelRejected, VmLost) as error:
            log.warning("no run with %s: %s", knob.name, error.message)
            return None
