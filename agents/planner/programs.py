"""Which schedulers with a loader of their own a run tries unasked: those that suit the work, the best known first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kernel_bpf.policies.programs import ProgramInfo
from schedagent.core.policies.policy import CandidatePolicy, Plan
from schedagent.core.policies.program import SchedulerProgram
from schedagent.core.trials.workload import Goal, WorkloadClass, WorkloadProfile

MOST_MISSING = 2
"""Schedulers that are named though they are not installed."""


class Shelf(Protocol):
    """Where programs are: kernel_bpf.policies.programs.InstalledPrograms, or a recording of what it had."""

    def program(self, name: str, arguments: Collection[str]) -> SchedulerProgram | None: ...


@dataclass(frozen=True)
class Choice:
    """What to try of them.

    Args:
        candidates: the installed ones, best first.
        missing: names of some that suit the work as well and are not installed.
    """

    candidates: tuple[CandidatePolicy, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def remark(self) -> str:
        """Which are not installed, as a sentence; empty if none is missing."""
        if not self.missing:
            return ""
        are, they = ("are", "they") if len(self.missing) > 1 else ("is", "it")
        return f"{' and '.join(self.missing)} {are} not installed: {they} would have been tried"


def suited_programs(profile: WorkloadProfile, known: Mapping[str, ProgramInfo]) -> list[ProgramInfo]:
    """Return the schedulers for this kind of work, best first; none for work that no scheduler can help."""
    kind = profile.kind.value
    if profile.kind is WorkloadClass.SERIAL:
        return []
    suited = [info for info in known.values() if kind in info.target_workloads]
    return sorted(suited, key=lambda info: (info.target_workloads.index(kind), info.rank))


def choose_programs(
    suited: Sequence[ProgramInfo], shelf: Shelf, goal: Goal, *, limit: int, failed: Collection[str] = ()
) -> Choice:
    """Return which of the suited schedulers to try.

    Args:
        suited: best first.
        goal: of the run, which decides their arguments.
        limit: candidates at most.
        failed: keys of candidates that failed here before.
    """
    candidates: list[CandidatePolicy] = []
    missing: list[str] = []
    for info in suited:
        program = shelf.program(info.name, info.arguments(goal))
        if program is None:
            missing.append(info.name)
            continue
        candidate = CandidatePolicy.of_program(program, f"it is installed, and suits such work: {info.description}")
        if candidate.key not in failed and len(candidates) < limit:
            candidates.append(candidate)
    return Choice(tuple(candidates), tuple(missing[:MOST_MISSING]) if len(candidates) < limit else ())


def joined(plan: Plan, named: Sequence[CandidatePolicy], choice: Choice, limit: int) -> Plan:
    """Return a plan with what the user named before its own candidates, and the chosen programs among these.

    Args:
        limit: candidates at most, besides those that were named.
    """
    room = max(0, limit - len(choice.candidates))
    every = (*named, *plan.candidates[:room], *choice.candidates)
    candidates = tuple({candidate.key: candidate for candidate in every}.values())
    names = (candidate.label if candidate.loads_itself else candidate.policy for candidate in named)
    words = f"{', '.join(names)} as named" if named else ""
    installed = (
        f"installed: {', '.join(candidate.label for candidate in choice.candidates)}" if choice.candidates else ""
    )
    reason = "; ".join(filter(None, [words, plan.reason, installed, choice.remark]))
    return Plan(candidates, reason, plan.learned)
