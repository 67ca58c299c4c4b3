"""Planning: ask the repository what is known, let a planner decide, and accept only candidates that can exist.

The planner is a Protocol: the rules of agents/offline.py, or a model behind the same signature. Whatever it is, its
answer is checked against the library here. May import: schedagent.core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from schedagent.core.errors import PolicyError
from schedagent.core.lesson import Antipattern, Lesson
from schedagent.core.policy import CandidatePolicy, Plan, PolicyInfo
from schedagent.core.trial import Hardware, Verdict
from schedagent.core.workload import WorkloadCommand, WorkloadProfile


class LessonStore(Protocol):
    """Where earlier results are kept."""

    def lessons(self, workload_key: str, hardware_key: str) -> Sequence[Lesson]: ...

    def antipatterns(self, workload_key: str, hardware_key: str) -> Sequence[Antipattern]: ...


class Planner(Protocol):
    """Decides what to try next; see agents.offline.plan for the arguments."""

    def __call__(
        self,
        profile: WorkloadProfile,
        library: Mapping[str, PolicyInfo],
        lessons: Sequence[Lesson],
        antipatterns: Sequence[Antipattern],
        *,
        iteration: int,
        tried: Sequence[tuple[CandidatePolicy, Verdict]],
        limit: int,
        lower_is_better: bool,
    ) -> Plan: ...


def propose(
    planner: Planner,
    store: LessonStore,
    library: Mapping[str, PolicyInfo],
    *,
    workload: WorkloadCommand,
    hardware: Hardware,
    profile: WorkloadProfile,
    iteration: int,
    tried: Sequence[tuple[CandidatePolicy, Verdict]] = (),
    limit: int = 3,
) -> Plan:
    """Return the next plan of a run.

    Raises:
        PolicyError: the planner proposed a policy that the library does not have, or inputs that it does not take.
        TunableError: the planner proposed a tunable that does not exist or is out of range.
        RepositoryError: the repository cannot be read.
    """
    plan = planner(
        profile,
        library,
        store.lessons(workload.key, hardware.key),
        [pattern for pattern in store.antipatterns(workload.key, hardware.key) if _still_holds(pattern, library)],
        iteration=iteration,
        tried=tried,
        limit=limit,
        lower_is_better=workload.goal.lower_is_better,
    )
    for candidate in plan.candidates:
        check_candidate(candidate, library)
    return plan


def _still_holds(pattern: Antipattern, library: Mapping[str, PolicyInfo]) -> bool:
    """Whether the policy that failed is still the one in the library; a mended one deserves another try."""
    info = library.get(pattern.policy)
    return info is None or not pattern.source_digest or pattern.source_digest == info.source_digest


def check_candidate(candidate: CandidatePolicy, library: Mapping[str, PolicyInfo]) -> None:
    """Raise PolicyError or TunableError unless the library can make this candidate."""
    info = library.get(candidate.policy)
    if info is None:
        known = ", ".join(sorted(library)) or "none"
        raise PolicyError(f"the planner proposed a policy that does not exist: {candidate.policy!r}", f"known: {known}")
    info.configured(dict(candidate.tunables))
    for name, entries in (("history", candidate.history), ("classes", candidate.classes)):
        if entries and name not in info.inputs:
            raise PolicyError(
                f"the planner filled the input {name!r}, which {info.name} does not have",
                f"its inputs: {', '.join(info.inputs) or 'none'}",
            )
