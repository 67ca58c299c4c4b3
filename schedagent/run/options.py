"""What bounds a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from schedagent.core.approval import ApprovalStage
from schedagent.core.errors import UsageError
from schedagent.core.policies.program import SchedulerProgram
from schedagent.core.policies.proposal import Origin, Proposal
from schedagent.core.trials.judge import TrialRules

VM, HOST, AUTO = "vm", "host", "auto"
"""Where a workload is measured: in the micro-VM; on this machine; or on this machine if it can be."""


@dataclass(frozen=True)
class RunOptions:
    """What bounds a run; stored with it, so that `resume` keeps to it.

    Args:
        iterations: most plans to try.
        budget_s: time after which no new run of the workload begins; counted again from zero after a resume,
            and not while the run waits for the lab.
        candidates: most candidates per plan.
        rules: when a trial may end.
        approve: before which steps a person is asked.
        proposal: the only candidate, instead of plans of its own; the run then asks no model and issues no token.
        profile_of: an earlier run of the workload, whose profile is taken over if its hardware was the same; empty:
            the workload is observed.
        cpus, memory_mib: size of the micro-VM in which the workload runs; None for that of the settings.
        recognise: whether what the workload prints may choose what is compared and guarded.
        warmup: runs of each arm before those that count.
        name: of the run, for people; empty for none.
        schedulers: what the user named: they come first in the first plan.
        include: folders with the headers of those among them that are sources.
        compare: whether those named are all that is tried: then nothing is planned, and no model is asked.
        on: where the workload is measured: HOST, or VM.
        experiment: what an experiment on something that runs already asks for, as
            schedagent.experiment.spec.Experiment.to_json returns it; None: a command is run.
    """

    iterations: int = 2
    budget_s: float = 1800.0
    candidates: int = 3
    rules: TrialRules = field(default_factory=TrialRules)
    approve: tuple[ApprovalStage, ...] = ()
    proposal: Proposal | None = None
    profile_of: str = ""
    cpus: int | None = None
    memory_mib: int | None = None
    recognise: bool = False
    warmup: int = 1
    name: str = ""
    schedulers: tuple[Proposal, ...] = ()
    include: tuple[str, ...] = ()
    compare: bool = False
    on: str = VM
    experiment: Mapping[str, Any] | None = None

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> RunOptions:
        """Read the options a run was started with."""
        approve = tuple(ApprovalStage(stage) for stage in stored.get("approve", ()))
        proposal = _read_proposal(stored["proposal"]) if stored.get("proposal") else None
        named = tuple(map(_read_proposal, stored.get("schedulers", ())))
        read = {
            "rules": TrialRules(**stored["rules"]),
            "approve": approve,
            "proposal": proposal,
            "schedulers": named,
            "include": tuple(stored.get("include", ())),
        }
        return cls(**{**stored, **read})

    @property
    def wanted_policies(self) -> tuple[str, ...]:
        """Names of policies that the library of the run must have."""
        proposals = (*self.schedulers, *([self.proposal] if self.proposal else ()))
        return tuple(each.policy for each in proposals if each.origin not in (Origin.BROUGHT, Origin.PROGRAM))

    @property
    def planned_by_models(self) -> bool:
        """Whether a model may be asked, if there is one."""
        return self.proposal is None and not self.compare


def _read_proposal(stored: Mapping[str, Any]) -> Proposal:
    program = stored.get("program")
    read = SchedulerProgram(**{**program, "arguments": tuple(program["arguments"])}) if program else None
    return Proposal(**{**stored, "origin": Origin(stored["origin"]), "program": read})


def read_memory(text: str) -> int:
    """Return the MiB that --memory names: a number of MiB, or one with a unit, such as 3G.

    Raises:
        UsageError: it names something else.
    """
    size = _SIZE.fullmatch(text)
    if size is None or not int(size["number"]):
        raise UsageError(f"--memory {text!r} is not a size", "accepted: a number of MiB, or one with a unit: 3072M, 3G")
    return int(size["number"]) * (1024 if (size["unit"] or "").upper() == "G" else 1)


_SIZE = re.compile(r"(?P<number>[0-9]{1,9})(?:(?P<unit>[MG])(?:i?B)?)?", re.IGNORECASE)


LONGEST_NAME = 80


def read_name(text: str) -> str:
    """Return the name that --name gives a run.

    Raises:
        UsageError: it could not be shown in a line.
    """
    name = text.strip()
    if not name.isprintable() or len(name) > LONGEST_NAME:
        raise UsageError(
            f"--name {text!r} cannot be a name", f"accepted: one line of at most {LONGEST_NAME} characters"
        )
    return name


def read_place(text: str) -> str:
    """Return where --on says that a workload is measured; raise UsageError if it says something else."""
    if text not in (VM, HOST, AUTO):
        raise UsageError(f"--on {text!r} is not known", f"accepted: {VM}, {HOST}, {AUTO}")
    return text


def read_approve(text: str) -> tuple[ApprovalStage, ...]:
    """Return the stages that --approve names.

    Raises:
        UsageError: it names something else.
    """
    words = {word.strip() for word in text.split(",")}
    if words == {"none"}:
        return ()
    if not words <= set(ApprovalStage):
        raise UsageError(f"--approve {text!r} is not known", "accepted: none, plan, deploy, or plan,deploy")
    return tuple(stage for stage in ApprovalStage if stage in words)
