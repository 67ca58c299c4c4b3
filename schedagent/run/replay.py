"""A recorded run once more, without a network, a machine or a compiler: for debugging what the agents do.

The agents, the graph and the policy builder are the real ones, on a copy of the repository as it was when the run
began. What models answered comes from the transcript; what the verifier and the lab found comes from the repository.
Whatever is asked must be what was asked then: where a request, a candidate or a verdict differs, the replay reports it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from agents.llm.budget import Budget, BudgetLimits
from agents.llm.exchange import Json, Role
from agents.llm.fences import Fence
from agents.llm.model import replay_model
from agents.llm.transcript import Replay
from agents.planner.builder import PolicyBuilder
from agents.session import ModelSession, T
from agents.tools.catalog import Services, tools_for
from repo_store.records import RunRecord
from repo_store.store import PolicyRepository
from schedagent.core.approval import ApprovalRequest, ApprovalStage, Decision
from schedagent.core.errors import ReplayDiverged, VmLost
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo
from schedagent.core.policies.program import SchedulerProgram
from schedagent.core.process.shell_text import quoted
from schedagent.core.trials.arm import Knob
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Sample
from schedagent.core.trials.usage import MachineCosts
from schedagent.core.trials.workload import Observation, WorkloadCommand
from schedagent.core.verification import VerificationReport, Verified
from schedagent.run.library import Library
from schedagent.run.model_agents import ModelAgents
from schedagent.run.nodes import RunNodes
from schedagent.run.options import RunOptions
from schedagent.run.progress import Reporter
from verifier.lab.vm import LabArm


class Recording:
    """What a run found, out of the repository it was made in.

    Args:
        repository: only read.
        run_id: of the run.
    """

    def __init__(self, repository: PolicyRepository, run_id: str) -> None:
        self.run: RunRecord = repository.run(run_id)
        self.iterations = repository.iterations(run_id)
        self.candidates = {number: repository.candidates(run_id, number) for number in self.iterations}
        self.blocks = {number: repository.blocks(run_id, number) for number in self.iterations}
        self.reports: dict[str, VerificationReport] = {}
        for candidate in chain.from_iterable(self.candidates.values()):
            report = repository.verification(run_id, candidate.key)
            if report:
                self.reports[candidate.key] = report
        self.decisions = [(request, made) for request, made in repository.approvals(run_id) if made]
        self.findings = findings(repository, run_id)

    @property
    def ran_out_of_time(self) -> bool:
        """Whether its last iteration was cut short: by its budget, or because it has not ended yet."""
        return self.run.report is None or bool(self.run.report["out_of_time"])


def findings(repository: PolicyRepository, run_id: str) -> dict[str, Any]:
    """Return what the agents made of a run, each part under a name, for comparing."""
    by_name: dict[str, Any] = {}
    meaning = repository.meaning(run_id)
    if meaning:
        by_name["the meaning of the workload"] = asdict(meaning)
    for number in repository.iterations(run_id):
        candidates = repository.candidates(run_id, number)
        by_name[f"the candidates of plan {number + 1}"] = [candidate.label for candidate in candidates]
        by_name[f"the keys of plan {number + 1}"] = [candidate.key for candidate in candidates]
        for key, verdict in repository.verdicts(run_id, number).items():
            by_name[f"the verdict on {key} in plan {number + 1}"] = verdict.outcome.value
    run = repository.run(run_id)
    insights = repository.insights(run.workload.key, run.hardware.key)
    by_name["the insights"] = sorted(insight.text for insight in insights if insight.run_id == run_id)
    return by_name


@dataclass(frozen=True)
class RecordedArtifact(PolicyArtifact):
    """An object of which only the digest is known."""

    known_digest: str = ""

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the ELF bytes that were verified."""
        return self.known_digest


@dataclass(frozen=True)
class RecordedVerifier:
    """Answers as the verifier did then.

    Args:
        reports: by candidate key.
    """

    reports: Mapping[str, VerificationReport]

    def verify_all(self, submissions: Sequence[tuple[CandidatePolicy, PolicyInfo]]) -> Iterator[Verified]:
        """Yield the report of each; raise ReplayDiverged for a candidate that was not verified then."""
        for candidate, _info in submissions:
            report = self.reports.get(candidate.key)
            if report is None:
                raise ReplayDiverged(f"the recorded run verified no candidate {candidate.label} ({candidate.key})")
            yield Verified(report, None)

    def compile(self, info: PolicyInfo) -> PolicyArtifact:
        """Return what stands for the object that was verified."""
        passed = (report for report in self.reports.values() if report.policy == info.name and report.passed)
        digest = next((report.artifact_digest for report in passed), "")
        return RecordedArtifact(info.name, b"", "", "", known_digest=digest)


class RecordedRuns:
    """A session in which the workload runs as it ran then.

    Args:
        blocks: of the iteration, as they were recorded.
        stored: returns how many of them have been replayed.
    """

    def __init__(self, blocks: Sequence[Block], stored: Callable[[], int]) -> None:
        self._blocks = blocks
        self._stored = stored
        self._warming = stored() > 0  # a later session begins with a run that is not counted

    def run_default(self, beside: LabArm | None = None) -> Sample:
        """Return what the default scheduler did."""
        warming, self._warming = self._warming, False
        return self._sample(DEFAULT_ARM, self._stored() - warming)

    def run_candidate(self, policy: LabArm) -> Sample:
        """Return what a candidate did; raise VmLost if it has no sample, for then its machine was lost."""
        return self._sample(policy.candidate.key, self._stored())

    def run_knob(self, knob: Knob, beside: LabArm) -> Sample:
        """Return what the default scheduler did with a knob turned; raise VmLost if that was not measured."""
        return self._sample(knob.key, self._stored())

    def _sample(self, arm: str, number: int) -> Sample:
        if number >= len(self._blocks):
            raise ReplayDiverged(f"the recorded run measured {len(self._blocks)} blocks, the replay wants another")
        sample = self._blocks[number].sample(arm)
        if sample is None:
            raise VmLost(f"block {number} holds no run of {arm}")
        return sample


@dataclass(frozen=True)
class RecordedLab:
    """Holds what was measured.

    Args:
        blocks: by iteration.
        repository: where the replay stores what it has replayed.
        run_id: of the run.
    """

    blocks: Mapping[int, Sequence[Block]]
    repository: PolicyRepository
    run_id: str

    @property
    def iteration(self) -> int:
        """That of the latest plan: each is measured before the next is made."""
        return max(self.repository.iterations(self.run_id), default=0)

    def observe(self, workload: WorkloadCommand) -> tuple[Sample, Observation]:
        """Never called where there is a profile, which a rewound repository keeps."""
        raise ReplayDiverged(f"{quoted(workload.command)} was not observed in the recorded run {self.run_id}")

    def costs(self) -> MachineCosts | None:
        """Never called where there is a profile, as above."""
        raise ReplayDiverged(f"the costs of the lab were not measured in the recorded run {self.run_id}")

    def pace(self, _costs: MachineCosts | None) -> float:
        """Never called where there is a profile, as above."""
        raise ReplayDiverged(f"the workload was not observed in the recorded run {self.run_id}")

    @contextmanager
    def session(self, _workload: WorkloadCommand) -> Iterator[RecordedRuns]:
        """Open a session."""
        yield RecordedRuns(self.blocks.get(self.iteration, ()), self.replayed)

    def replayed(self) -> int:
        """Return how many blocks of this iteration have been replayed."""
        return len(self.repository.blocks(self.run_id, self.iteration))


@dataclass(frozen=True)
class RecordedPrograms:
    """The schedulers with a loader of their own that the run's first plan had: those that were installed then.

    Args:
        planned: its candidates.
    """

    planned: Sequence[CandidatePolicy]

    def program(self, name: str, arguments: Collection[str]) -> SchedulerProgram | None:
        """Return the program of a name; None if the plan has none with these arguments."""
        programs = (candidate.program for candidate in self.planned if candidate.program)
        wanted = (program for program in programs if (program.name, program.arguments) == (name, tuple(arguments)))
        return next(wanted, None)


@dataclass(frozen=True)
class RecordedApprovals:
    """Every question was answered then; one that was not ends the recording."""

    decisions: Sequence[tuple[ApprovalRequest, Decision]]

    def request(self, stage: ApprovalStage, iteration: int) -> ApprovalRequest | None:
        """Return the last question before this step that was answered."""
        requests = [
            request for request, _ in self.decisions if (request.stage, request.iteration) == (stage, iteration)
        ]
        return requests[-1] if requests else None

    def decision(self, request: ApprovalRequest) -> Decision | None:
        """Return the answer."""
        return next(decision for decided, decision in self.decisions if decided == request)

    def ask(self, request: ApprovalRequest) -> dict[str, Any]:
        """Never called: what is asked for has been decided."""
        raise AssertionError("a replay asks nobody")


@dataclass(frozen=True)
class RecordedClock:
    """Runs out where the time of the recorded run did, or that of one of its iterations.

    Args:
        recording, replay: what was done, and what was asked of models.
        lab: what has been replayed of it.
    """

    recording: Recording
    replay: Replay
    lab: RecordedLab

    def __call__(self) -> bool:
        """Whether the recorded run had no more time here: all it did in its last iteration is replayed."""
        last = self.lab.iteration == max(self.recording.iterations, default=0)
        return self.recording.ran_out_of_time and last and self._replayed()

    def share(self, _parts: int) -> Callable[[], bool]:
        """Return a clock that runs out when all that the recorded run did in an iteration is replayed."""
        return self._replayed

    def _replayed(self) -> bool:
        number, recording = self.lab.iteration, self.recording
        candidates = recording.candidates.get(number, ())
        keys = [candidate.key for candidate in candidates if candidate.key in recording.reports]
        verified = all(self.lab.repository.verification(recording.run.id, key) for key in keys)
        measured = self.lab.replayed() >= len(recording.blocks.get(number, ()))
        return verified and measured and not self.replay.expects("execution", number)


class ReplaySession(ModelSession):
    """An endpoint that was lost is asked again where a later process of the run did so."""

    def ask(self, role: Role, iteration: int, messages: Sequence[Json], schema: type[T]) -> T | None:
        """Answer as the recording does; see ModelSession.ask."""
        if isinstance(self.notes, Replay) and self.notes.expects(role, iteration):
            self.lost = ""
        return super().ask(role, iteration, messages, schema)


def replay_nodes(
    recording: Recording, replay: Replay, repository: PolicyRepository, library: Library, reporter: Reporter
) -> RunNodes:
    """Build the nodes of a replay.

    Args:
        repository: the rewound copy, which they fill again.
        library: of that copy.
    """
    run_id = recording.run.id
    lab = RecordedLab(recording.blocks, repository, run_id)
    services = Services(repository, library, run_id)

    def open_models(_run_id: str) -> ModelAgents:
        session = ReplaySession(
            lambda role: replay_model(replay, role),
            Fence(replay.mark),
            Budget(BudgetLimits(0, 0, 0.0)),
            replay,
            reporter,
            lambda role: tools_for(role, services),
        )
        return ModelAgents(repository, session, replay, PolicyBuilder(library, run_id), library)

    options = RunOptions.from_json(recording.run.settings)
    verifier = RecordedVerifier(recording.reports)
    clock = RecordedClock(recording, replay, lab)
    programs = RecordedPrograms(recording.candidates.get(0, ()))
    return RunNodes(repository, lab, verifier, library, reporter, options, open_models, clock, programs)


@contextmanager
def up_to_the_end(recording: Recording, replay: Replay) -> Iterator[None]:
    """Let a replay end where a run that did not reach its end was cut short."""
    try:
        yield
    except ReplayDiverged:
        if recording.run.report or replay.left:
            raise


def compare(recording: Recording, replay: Replay, repository: PolicyRepository) -> dict[str, Any]:
    """Compare a replay with its recording; JSON values.

    Args:
        repository: the copy that the replay filled.
    """
    now = findings(repository, recording.run.id)
    compared = recording.findings.keys() | (now.keys() if recording.run.report else set())
    differences = [
        f"{what} was {recording.findings.get(what, 'nothing')!r}, now it is {now.get(what, 'nothing')!r}"
        for what in sorted(compared)
        if recording.findings.get(what) != now.get(what)
    ]
    if replay.left:
        differences.append(f"{replay.left} of {replay.count} recorded requests were not made")
    return {
        "run": recording.run.id,
        "requests": replay.count - replay.left,
        "same": not differences,
        "differences": differences,
    }
