"""What acting tools work with: makes policies, compiles, verifies and measures, in the lab of the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from agents.planner.builder import PolicyBuilder
from agents.tools.services import Services
from kernel_bpf.policies.library import load_library
from repo_store.runs import new_run_id
from repo_store.store import PolicyRepository
from schedagent.core.errors import UsageError
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo
from schedagent.core.policies.proposal import Proposal
from schedagent.core.process.shell_text import quoted
from schedagent.core.rules import GATES
from schedagent.core.settings import Settings
from schedagent.core.trials.workload import WorkloadClass, WorkloadProfile
from schedagent.core.verification import GateResult, VerificationReport
from schedagent.run import opening
from schedagent.run.library import Library
from schedagent.run.lifecycle import start_run
from schedagent.run.options import RunOptions
from schedagent.run.progress import LineReporter
from schedagent.verification.files import VerifyOptions, choose_verifier

Progress = Callable[[str], None]
"""Takes a line of progress."""

UNMEASURED = WorkloadProfile(0, 0, 0, (), 0, (), (), -1, -1, -1, WorkloadClass.MIXED, ())
"""The profile of no run: it fills no input of a policy."""


@dataclass(frozen=True)
class Workbench:
    """See agents.tools.services.Bench.

    Args:
        settings: which lab, which verifier.
        repository, library: where policies, profiles and results are.
        reports: where verifications go, by candidate key.
        measures: whether workloads may be run.
        progress: takes each line of progress.
    """

    settings: Settings
    repository: PolicyRepository
    library: Library
    reports: MutableMapping[str, VerificationReport]
    measures: bool
    progress: Progress

    def make(self, proposal: Proposal, run_id: str) -> CandidatePolicy:
        """Make a candidate; what its policy wants to know of a workload comes from the run's profile."""
        return PolicyBuilder(self.library, run_id).make(proposal, self._profile(run_id))

    def compile(self, policy: PolicyInfo) -> PolicyArtifact:
        """Compile a policy for the lab's kernel."""
        return opening.open_verifier(self.settings).compile(policy)

    def verify(self, candidate: CandidatePolicy, *, static: bool) -> VerificationReport:
        """Take a candidate through the gates; a token that comes of it stays here."""
        gates = 0

        def on_gate(result: GateResult) -> None:
            nonlocal gates
            gates += 1
            self.progress(f"gate {gates} of {len(GATES)}, {result.gate}: {result.status.value}")

        verifier = (
            choose_verifier(self.settings, VerifyOptions(static_only=True))
            if static
            else opening.open_verifier(self.settings)
        )
        verified = replace(verifier, on_gate=on_gate).verify(candidate, self.library[candidate.policy])
        report = replace(verified.report, token="")
        self.reports[candidate.key] = report
        return report

    def measure(self, proposal: Proposal, run_id: str, budget_s: float) -> str:
        """Verify a candidate and measure it, as a new run of one iteration that can be resumed like any other.

        Raises:
            UsageError: workloads may not be run here, or the candidate cannot be made.
            PolicyError: there is no such policy.
        """
        if not self.measures:
            raise UsageError("this server may not run workloads", "the user starts it with --allow-trials")
        self.make(proposal, "")  # what cannot be made is refused before there is a run
        proposal = replace(proposal, reason=proposal.reason or "Asked for over MCP.")
        options = RunOptions(iterations=1, budget_s=budget_s, candidates=1, proposal=proposal, profile_of=run_id)
        workload, new = self.repository.run(run_id).workload, new_run_id()
        self.progress(f"run {new}: {quoted(workload.command)} in {workload.directory}")
        start_run(self.settings, workload, options, LineReporter(self.progress), new)
        return new

    def _profile(self, run_id: str) -> WorkloadProfile:
        if not run_id:
            return UNMEASURED
        profile = self.repository.profile(self.repository.run(run_id).id)
        if profile is None:
            raise UsageError(f"the workload of run {run_id} was not observed yet", "name another run, or wait")
        return profile


@contextmanager
def open_services(
    settings: Settings,
    reports: MutableMapping[str, VerificationReport],
    *,
    measures: bool,
    progress: Progress = lambda _text: None,
) -> Iterator[Callable[[], Services]]:
    """Open what tools work with; calling what this gives returns it with the library as it is at that moment.

    Args:
        reports: verifications that belong to no run, by candidate key; new ones are added.
        measures: whether workloads may be run.
        progress: takes each line of progress.
    """
    bundled = load_library()
    with opening.open_repository(settings) as repository:

        def now() -> Services:
            library = Library(bundled, repository, settings.state_dir / opening.DERIVED_POLICIES)
            bench = Workbench(settings, repository, library, reports, measures, progress)
            return Services(repository, library, reports=reports, bench=bench)

        yield now
