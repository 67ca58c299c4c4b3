"""What the atomic tools work with: the records of the repository, the library, the machine, and a bench to act on."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kernel_bpf.observe.system import SystemState, read_system
from repo_store.records import PolicyMatch, RunRecord, SimilarRun
from schedagent.core.errors import UsageError
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy, Plan, PolicyInfo
from schedagent.core.policies.proposal import Proposal
from schedagent.core.trials.lesson import Antipattern, Insight, Lesson, Meaning
from schedagent.core.trials.trial import Block, Verdict
from schedagent.core.trials.workload import WorkloadProfile
from schedagent.core.verification import VerificationReport


class Records(Protocol):
    """The part of repo_store.store.PolicyRepository that tools read."""

    def run(self, run_id: str) -> RunRecord: ...

    def list_runs(self, limit: int = 50) -> Sequence[RunRecord]: ...

    def profile(self, run_id: str) -> WorkloadProfile | None: ...

    def iterations(self, run_id: str) -> Sequence[int]: ...

    def plan(self, run_id: str, iteration: int) -> Plan | None: ...

    def verdicts(self, run_id: str, iteration: int) -> Mapping[str, Verdict]: ...

    def verification(self, run_id: str, candidate_key: str) -> VerificationReport | None: ...

    def blocks(self, run_id: str, iteration: int) -> Sequence[Block]: ...

    def lessons(self, workload_key: str, hardware_key: str) -> Sequence[Lesson]: ...

    def results_of(self, policy: str, limit: int = 20) -> Sequence[Lesson]: ...

    def antipatterns(self, workload_key: str, hardware_key: str) -> Sequence[Antipattern]: ...

    def insights(self, workload_key: str, hardware_key: str) -> Sequence[Insight]: ...

    def meaning(self, run_id: str) -> Meaning | None: ...

    def similar_runs(
        self, profile: WorkloadProfile, hardware_key: str, limit: int = 3, *, but_not: str = ""
    ) -> Sequence[SimilarRun]: ...

    def search_policies(self, text: str, limit: int = 10) -> Sequence[PolicyMatch]: ...


class ToolBench(Protocol):
    """What the acting tools work with. It reports its progress by its own means."""

    @property
    def measures(self) -> bool:
        """Whether workloads may be run (in the micro-VM)."""

    def make(self, proposal: Proposal, run_id: str) -> CandidatePolicy:
        """Make a candidate; a new policy is kept in the library. `run_id`: whose profile fills its inputs, or ""."""

    def compile(self, policy: PolicyInfo) -> PolicyArtifact:
        """Compile a policy for the lab's kernel."""

    def verify(self, candidate: CandidatePolicy, *, static: bool) -> VerificationReport:
        """Take a candidate through the gates that need no machine, or through all of them."""

    def measure(self, proposal: Proposal, run_id: str, budget_s: float) -> str:
        """Verify a candidate and measure it on the workload of a run; return the id of the new run that holds it."""


@dataclass(frozen=True)
class Services:
    """What tools work with.

    Args:
        records: the repository.
        library: every policy there is, by name.
        run_id: the run that is meant where a call names none; empty: the newest.
        reports: verifications that belong to no run, by candidate key.
        system: looks at the machine.
        bench: makes, compiles, verifies and measures; None: only tools that read are offered.
    """

    records: Records
    library: Mapping[str, PolicyInfo]
    run_id: str = ""
    reports: Mapping[str, VerificationReport] = field(default_factory=dict)
    system: Callable[[], SystemState] = read_system
    bench: ToolBench | None = None

    def run(self, run_id: str) -> RunRecord:
        """Return the run that a call means; raise UsageError if there is none."""
        wanted = run_id or self.run_id
        if wanted:
            return self.records.run(wanted)
        newest = next(iter(self.records.list_runs(1)), None)
        if newest is None:
            raise UsageError("no run is stored yet", "the user starts one: schedagent optimize --workload COMMAND")
        return newest

    def profile(self, run: RunRecord) -> WorkloadProfile:
        """Return what observing the run's workload has shown; raise UsageError if it was not observed yet."""
        profile = self.records.profile(run.id)
        if profile is None:
            raise UsageError(f"the workload of run {run.id} was not observed yet", "name another run, or wait")
        return profile

    def policy(self, name: str) -> PolicyInfo:
        """Return a policy of the library; raise UsageError naming those that exist."""
        if name in self.library:
            return self.library[name]
        close = difflib.get_close_matches(name, self.library, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise UsageError(f"there is no policy {name!r}", f"{meant}there are: {', '.join(self.library) or 'none'}")
