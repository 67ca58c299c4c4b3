"""The atomic tools: what an agent, of ours or over MCP, may ask for. Each is described once, in `_TOOLS`.

    tools_for("planning", services)     # what one of our agents gets
    all_tools(services)                 # what `schedagent mcp` offers

A tool takes checked arguments and returns a text that a model can act upon; what it raises as SchedagentError is told
to the model. Arguments come from a model: they are bounded in size, and where a thing is named no path is accepted.
To add a tool: an arguments model, a function and an entry here. May import: agents.calling, agents.shown, kernel_bpf,
repo_store.records and schedagent.core.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from agents import shown
from agents.calling import Tool
from kernel_bpf.compose import compose
from kernel_bpf.source import read_source
from kernel_bpf.system import SystemState, read_system
from repo_store.records import PolicyMatch, RunRecord
from schedagent.core.errors import UsageError
from schedagent.core.lesson import Antipattern, Lesson
from schedagent.core.policy import Plan, PolicyInfo
from schedagent.core.spec_reader import read_spec, spec_schema
from schedagent.core.trial import Block, Verdict
from schedagent.core.verification import VerificationReport
from schedagent.core.workload import WorkloadProfile

OBSERVATION, PLANNING, EXECUTION, LEARNING = "observation", "planning", "execution", "learning"
ROLES = (OBSERVATION, PLANNING, EXECUTION, LEARNING)

MOST_ROWS = 40
"""Rows of a table that one call returns."""


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

    def search_policies(self, text: str, limit: int = 10) -> Sequence[PolicyMatch]: ...


@dataclass(frozen=True)
class Services:
    """What tools work with.

    Args:
        records: the repository.
        library: every policy there is, by name.
        run_id: the run that is meant where a call names none; empty: the newest.
        reports: verifications that belong to no run, by candidate key.
        system: looks at the machine.
    """

    records: Records
    library: Mapping[str, PolicyInfo]
    run_id: str = ""
    reports: Mapping[str, VerificationReport] = field(default_factory=dict)
    system: Callable[[], SystemState] = read_system

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
        found = self.records.profile(run.id)
        if found is None:
            raise UsageError(f"the workload of run {run.id} was not observed yet", "name another run, or wait")
        return found

    def policy(self, name: str) -> PolicyInfo:
        """Return a policy of the library; raise UsageError naming those that exist."""
        if name in self.library:
            return self.library[name]
        close = difflib.get_close_matches(name, self.library, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise UsageError(f"there is no policy {name!r}", f"{meant}there are: {', '.join(self.library) or 'none'}")


class Arguments(BaseModel):
    """Arguments of a tool: nothing is converted, and nothing unknown is accepted."""

    model_config = ConfigDict(extra="forbid", strict=True)


RunId = Annotated[
    str, Field(max_length=64, pattern=r"^[0-9A-Za-z_-]*$", description="id of a run; empty: this run, or the newest")
]
PolicyName = Annotated[
    str, Field(min_length=1, max_length=100, pattern=r"^[0-9A-Za-z_]+$", description="name of a policy")
]
Limit = Annotated[int, Field(ge=1, le=MOST_ROWS, description="most rows")]


class NoArguments(Arguments):
    """None."""


class ProfilePart(Arguments):
    run: RunId = ""
    part: Literal["summary", "commands", "identities", "pressure"] = Field(
        "summary",
        description="summary: kind, evidence, top commands; commands: CPU time and waiting of each; identities: the "
        "same by command line, with the hashes that policies look up; pressure: waiting and parallelism over time",
    )


def workload_profile(services: Services, asked: ProfilePart) -> str:
    """One tier of what observing a workload has shown."""
    run = services.run(asked.run)
    profile = services.profile(run)
    match asked.part:
        case "commands":
            return _rows(f"commands of run {run.id}", shown.command_lines(profile.commands), len(profile.commands))
        case "identities":
            return _rows(f"identities of run {run.id}", shown.history_lines(profile.histories), len(profile.histories))
        case "pressure":
            return shown.pressure(profile)
    return shown.profile_summary(run, profile)


class Search(Arguments):
    words: Annotated[str, Field(max_length=500, description="what to look for; empty: list all policies")] = ""


def search_policies(services: Services, asked: Search) -> str:
    """Policies by what they are for."""
    if not asked.words.strip():
        found = list(services.library.values())
    else:
        matches = services.records.search_policies(asked.words, MOST_ROWS)
        found = [services.library[match.name] for match in matches if match.name in services.library]
    return _rows("policies, best match first", map(shown.policy_line, found), len(found))


class PolicyPart(Arguments):
    policy: PolicyName
    part: Literal["summary", "source", "manifest"] = Field(
        "summary",
        description="summary: what it is for, how it decides, its tunables; source: its BPF C; manifest: its TOML",
    )
    first_line: Annotated[int, Field(ge=1, le=100_000, description="of source or manifest")] = 1
    most_lines: Annotated[int, Field(ge=1, le=1000)] = 300


def show_policy(services: Services, asked: PolicyPart) -> str:
    """A policy's documentation or text."""
    policy = services.policy(asked.policy)
    if asked.part == "summary":
        return shown.policy_summary(policy)
    if asked.part == "source" and policy.is_object:
        raise UsageError(f"policy {policy.name} came as a compiled object: there is no source")
    path = policy.source if asked.part == "source" else policy.source.with_name(f"{policy.name}.toml")
    text = read_source(path).decode().splitlines()
    start = asked.first_line - 1
    chosen = text[start : start + asked.most_lines]
    head = f"{path.name}, lines {asked.first_line} to {start + len(chosen)} of {len(text)}:"
    return "\n".join([head, *chosen])


class History(Arguments):
    policy: PolicyName
    limit: Limit = 20


def policy_history(services: Services, asked: History) -> str:
    """Every verdict on a policy, whatever the workload."""
    policy = services.policy(asked.policy)
    found = services.records.results_of(policy.name, asked.limit)
    places = (services.records.run(lesson.run_id) for lesson in found)
    rows = (
        shown.lesson_line(lesson, f"{shown.short(run.workload.command, 80)!r} on {run.hardware.lab}")
        for lesson, run in zip(found, places, strict=True)
    )
    return _rows(f"verdicts on {policy.name}, newest first", rows, len(found))


class RunOnly(Arguments):
    run: RunId = ""


class RunAndLimit(Arguments):
    run: RunId = ""
    limit: Limit = 20


def lessons(services: Services, asked: RunAndLimit) -> str:
    """What was measured on the same workload and hardware."""
    run = services.run(asked.run)
    found = list(services.records.lessons(run.workload.key, run.hardware.key))
    about = f"verdicts on the workload and hardware of run {run.id}, newest first"
    return _rows(about, map(shown.lesson_line, found), len(found), asked.limit)


def antipatterns(services: Services, asked: RunAndLimit) -> str:
    """What failed on the same workload or hardware."""
    run = services.run(asked.run)
    found = list(services.records.antipatterns(run.workload.key, run.hardware.key))
    about = f"candidates that failed where run {run.id} measured, newest first"
    return _rows(about, map(shown.antipattern_line, found), len(found), asked.limit)


class Latest(Arguments):
    limit: Limit = 10


def list_runs(services: Services, asked: Latest) -> str:
    """The latest runs."""
    found = services.records.list_runs(asked.limit)
    return _rows("runs, newest first", map(shown.run_line, found), len(found))


class RunPart(Arguments):
    run: RunId = ""
    part: Literal["summary", "reasons", "samples"] = Field(
        "summary",
        description="summary: each plan, its candidates and their verdicts; reasons: why each was planned and what was "
        "expected of it; samples: the measured values, block by block",
    )


def show_run(services: Services, asked: RunPart) -> str:
    """One run."""
    run = services.run(asked.run)
    records = services.records
    plans = [(number, plan) for number in records.iterations(run.id) if (plan := records.plan(run.id, number))]
    head = f"{shown.run_line(run)[2:]}; status {run.status.value}; lab {shown.hardware(run)}"
    match asked.part:
        case "reasons":
            candidates = (candidate for _number, plan in plans for candidate in plan.candidates)
            told = (line for candidate in candidates for line in shown.candidate_reasons(candidate))
        case "samples":
            told = (line for number, _plan in plans for line in shown.block_lines(records.blocks(run.id, number)))
        case _:
            judged = ((number, plan, records.verdicts(run.id, number)) for number, plan in plans)
            told = (line for number, plan, verdicts in judged for line in shown.plan_lines(number, plan, verdicts))
    return shown.lines(head, told)


class ReportPart(Arguments):
    candidate: Annotated[
        str, Field(min_length=1, max_length=64, pattern=r"^[0-9a-f]+$", description="key of the candidate")
    ]
    section: Literal["summary", "findings", "gates", "oracles", "kernels"] = Field(
        "summary",
        description="summary: each gate in a line; findings: broken rules with place, path and mend; gates: in full, "
        "with compiler and kernel logs; oracles: what the proving ground measured; kernels: each kernel's verifier",
    )
    run: RunId = ""


def verification_report(services: Services, asked: ReportPart) -> str:
    """One section of what the verifier said of a candidate."""
    report = services.reports.get(asked.candidate)
    if report is None:
        run = services.run(asked.run)
        report = services.records.verification(run.id, asked.candidate)
        if report is None:
            raise UsageError(
                f"run {run.id} holds no verification of candidate {asked.candidate}",
                "show_run lists its candidates with their keys",
            )
    match asked.section:
        case "findings":
            return shown.lines(*shown.finding_lines(report)) or "no open findings"
        case "gates":
            return shown.lines(*shown.gate_lines(report))
        case "oracles":
            return shown.lines(map(shown.oracle_line, report.oracles)) or "the proving ground did not run"
        case "kernels":
            return shown.lines(map(shown.kernel_line, report.kernels)) or "no kernel's verifier saw it"
    return shown.report_summary(report)


class SpecOnly(Arguments):
    spec: dict[str, Any] = Field(description="the policy spec, as the schema of describe_spec says")


def compose_policy(_services: Services, asked: SpecOnly) -> str:
    """A spec turned into the two texts of a policy; nothing is kept."""
    composed = compose(read_spec(asked.spec))
    return "\n".join([f"{composed.name}.toml:", composed.toml, f"{composed.name}.bpf.c:", composed.source])


def describe_spec(_services: Services, _asked: NoArguments) -> str:
    """What a spec may say."""
    return json.dumps(spec_schema(), separators=(",", ":"))


def system_state(services: Services, _asked: NoArguments) -> str:
    """The machine."""
    return shown.system_summary(services.system())


def _rows(about: str, rows: Any, count: int, limit: int = MOST_ROWS) -> str:
    """A headed list, cut to `limit` rows."""
    told = list(islice(rows, limit))
    left = f"({count - len(told)} more are left out)" if count > len(told) else ""
    return shown.lines(f"{about}:" if told else f"{about}: none", told, left)


@dataclass(frozen=True)
class _Entry:
    """One tool before its services are known."""

    call: Callable[[Services, Any], str]
    arguments: type[Arguments]
    description: str
    roles: tuple[str, ...]
    read_only: bool = True

    def bound(self, services: Services) -> Tool:
        return Tool(self.call.__name__, self.description, self.arguments, partial(self.call, services), self.read_only)


_TOOLS = (
    _Entry(
        workload_profile,
        ProfilePart,
        "What observing a workload under the default scheduler has shown, in tiers. Start with the summary; ask for "
        "a further part only if a decision depends on it.",
        ROLES,
    ),
    _Entry(
        search_policies,
        Search,
        "Find scheduling policies by what they are for, how they decide, and the workloads they were better on.",
        (PLANNING,),
    ),
    _Entry(
        show_policy,
        PolicyPart,
        "One policy: its documentation with tunables and ranges, its BPF C source, or its manifest.",
        (PLANNING, EXECUTION, LEARNING),
    ),
    _Entry(
        policy_history,
        History,
        "All measured verdicts on one policy, with the workloads and tunables they were measured with.",
        (PLANNING, LEARNING),
    ),
    _Entry(
        lessons,
        RunAndLimit,
        "Measured verdicts of all runs on the same workload and hardware.",
        (OBSERVATION, PLANNING, LEARNING),
    ),
    _Entry(
        antipatterns,
        RunAndLimit,
        "Candidates that failed a gate of the verifier, or a trial of the same workload, on this hardware: do not "
        "repeat them.",
        (PLANNING, LEARNING),
    ),
    _Entry(list_runs, Latest, "The latest optimisation runs with their outcome.", (LEARNING,)),
    _Entry(
        show_run,
        RunPart,
        "One run: plans, candidates with their keys, verdicts; or the reasons, or the measured samples.",
        (PLANNING, LEARNING),
    ),
    _Entry(
        verification_report,
        ReportPart,
        "What the verifier said of one candidate, section by section.",
        (EXECUTION, LEARNING),
    ),
    _Entry(
        describe_spec,
        NoArguments,
        "The JSON schema of a policy spec: classes of tasks, the order in each, placement, slices, dispatch.",
        (PLANNING,),
    ),
    _Entry(
        compose_policy,
        SpecOnly,
        "Turn a policy spec into BPF C and its manifest; nothing is kept. A mistake is told by the name of its field.",
        (PLANNING, EXECUTION),
    ),
    _Entry(
        system_state,
        NoArguments,
        "This machine: kernel, CPU topology, sched_ext, pressure (PSI) and load.",
        (OBSERVATION, PLANNING),
    ),
)


def all_tools(services: Services) -> tuple[Tool, ...]:
    """Return every tool."""
    return tuple(entry.bound(services) for entry in _TOOLS)


def tools_for(role: str, services: Services) -> tuple[Tool, ...]:
    """Return the tools of one of our agents; all of them only read.

    Args:
        role: one of ROLES.
    """
    return tuple(entry.bound(services) for entry in _TOOLS if role in entry.roles and entry.read_only)
