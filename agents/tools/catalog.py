"""The atomic tools: what an agent, of ours or over MCP, may ask for. Each is described once, in `_TOOLS`.

    tools_for("planning", services)     # what one of our agents gets
    all_tools(services)                 # what `schedagent mcp` offers

A tool takes checked arguments and returns a text that a model can act upon; what it raises as SchedagentError is told
to the model. Arguments come from a model: they are bounded in size, and where a thing is named no path is accepted.
To add a tool: an arguments model, a function and an entry here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agents import plain_text as shown
from agents.llm.calling import Tool
from agents.tools.services import Services, ToolBench
from kernel_bpf.build.source import SOURCE_LIMIT_BYTES, read_source
from kernel_bpf.policies.compose import compose
from schedagent.core.errors import UsageError
from schedagent.core.policies.proposal import Origin, Proposal
from schedagent.core.policies.spec_reader import read_spec, spec_schema

__all__ = ["ROLES", "Services", "all_tools", "tools_for"]

OBSERVATION, PLANNING, EXECUTION, LEARNING = "observation", "planning", "execution", "learning"
ROLES = (OBSERVATION, PLANNING, EXECUTION, LEARNING)

MOST_ROWS = 40
"""Rows of a table that one call returns."""


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
    return shown.lines(shown.profile_summary(run, profile), shown.meaning_lines(services.records.meaning(run.id)))


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
    told = list(services.records.insights(run.workload.key, run.hardware.key))
    concluded = _rows("what runs concluded from them, in words", map(shown.insight_line, told), len(told), asked.limit)
    return shown.lines(_rows(about, map(shown.lesson_line, found), len(found), asked.limit), concluded)


def similar_runs(services: Services, asked: RunAndLimit) -> str:
    """What was measured on other workloads that looked alike."""
    run = services.run(asked.run)
    found = services.records.similar_runs(
        services.profile(run), run.hardware.key, asked.limit, but_not=run.workload.key
    )
    told = [line for similar in found for line in shown.similar_lines(similar)]
    return _rows(f"runs of other workloads, the one most like run {run.id} first", told, len(told), len(told))


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
        description="summary: each gate in a line; findings: broken rules with place, path and repair; gates: in full, "
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


class Wish(Arguments):
    origin: Literal["compose", "patch", "generate"] = Field(
        description="compose: from spec; patch: by diff, of the policy of that name; generate: from source"
    )
    policy: PolicyName
    spec: dict[str, Any] | None = Field(None, description="compose: the policy spec, see describe_spec")
    diff: Annotated[str, Field(max_length=SOURCE_LIMIT_BYTES, description="patch: unified diff against its source")] = (
        ""
    )
    source: Annotated[
        str, Field(max_length=SOURCE_LIMIT_BYTES, description="generate: BPF C of one sched_ext policy")
    ] = ""
    description: Annotated[str, Field(max_length=300, description="one sentence: what the new policy does")] = ""


def make_policy(services: Services, asked: Wish) -> str:
    """A new policy in the library; nothing has looked at it yet but its reader."""
    wish = Proposal(
        origin=Origin(asked.origin),
        policy=asked.policy,
        spec=asked.spec,
        diff=asked.diff,
        source=asked.source,
        description=asked.description,
    )
    made = _bench(services).make(wish, "")
    return f"policy {made.policy} is in the library now, unverified; with its defaults it is candidate {made.key}"


class Settled(Arguments):
    policy: PolicyName
    tunables: Annotated[
        dict[Annotated[str, Field(max_length=64)], int],
        Field(max_length=64, description="changes to the defaults; ranges: show_policy"),
    ] = {}

    @property
    def proposal(self) -> Proposal:
        return Proposal(origin=Origin.CONFIGURE, policy=self.policy, tunables=self.tunables)


class PolicyOnly(Arguments):
    policy: PolicyName


def compile_policy(services: Services, asked: PolicyOnly) -> str:
    """A policy as the kernel would get it, or the compiler's words."""
    made = _bench(services).compile(services.policy(asked.policy))
    said = f"the compiler said:\n{made.log}" if made.log.strip() else "without a warning"
    return f"{made.name} compiles to {len(made.object_bytes)} bytes, digest {made.digest}, {said}"


class Gates(Settled):
    gates: Literal["static", "all"] = Field(
        "static",
        description="static: source, compile and scheduling logic, in seconds; all: also the kernel's verifier and the "
        "proving ground in a micro-VM, in minutes",
    )
    run: RunId = Field("", description="id of the run whose profile fills the policy's inputs; empty: none are filled")


def verify_policy(services: Services, asked: Gates) -> str:
    """How a candidate fares at the gates."""
    bench = _bench(services)
    candidate = bench.make(asked.proposal, asked.run)
    report = bench.verify(candidate, static=asked.gates == "static")
    found = list(shown.finding_lines(report))
    more = f"more: verification_report with candidate {candidate.key}; no token is handed out here"
    return shown.lines(shown.report_summary(report), found[:MOST_ROWS], more)


class TrialOf(Settled):
    run: RunId = Field("", description="id of the run whose workload is measured; empty: the newest run's")
    minutes: Annotated[int, Field(ge=1, le=60, description="begin no new block of runs after this long")] = 10


def measure_policy(services: Services, asked: TrialOf) -> str:
    """A candidate against the default scheduler, on a workload that the user has run before."""
    new = _bench(services).measure(asked.proposal, services.run(asked.run).id, 60.0 * asked.minutes)
    return show_run(services, RunPart(run=new, part="summary"))


def _bench(services: Services) -> ToolBench:
    assert services.bench is not None, "acting tools are offered with a bench only"
    return services.bench


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
    roles: tuple[str, ...] = ()
    read_only: bool = True
    slow: bool = False

    def bound(self, services: Services) -> Tool:
        answer = partial(self.call, services)
        return Tool(self.call.__name__, self.description, self.arguments, answer, self.read_only, self.slow)


_TOOLS = (
    _Entry(
        workload_profile,
        ProfilePart,
        "What observing a workload under the default scheduler has shown, in tiers. Start with the summary; ask for "
        "a further part only if a decision depends on it.",
        (OBSERVATION, PLANNING, LEARNING),
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
        "Measured verdicts of all runs on the same workload and hardware, and what was concluded from them.",
        (LEARNING,),
    ),
    _Entry(
        similar_runs,
        RunAndLimit,
        "Runs of other workloads on this hardware whose measured profiles are nearest, with their verdicts.",
        (LEARNING,),
    ),
    _Entry(
        antipatterns,
        RunAndLimit,
        "Candidates that failed a gate of the verifier, or a trial of the same workload, on this hardware: do not "
        "repeat them.",
        (LEARNING,),
    ),
    _Entry(list_runs, Latest, "The latest optimisation runs with their outcome.", ()),
    _Entry(
        show_run,
        RunPart,
        "One run: plans, candidates with their keys, verdicts; or the reasons, or the measured samples.",
        (LEARNING,),
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
        (),
    ),
    _Entry(
        compose_policy,
        SpecOnly,
        "Turn a policy spec into BPF C and its manifest; nothing is kept. A mistake is told by the name of its field.",
        (),
    ),
    _Entry(
        system_state,
        NoArguments,
        "This machine: kernel, CPU topology, sched_ext, pressure (PSI) and load.",
        (OBSERVATION, PLANNING),
    ),
)


_BENCH = (
    _Entry(
        make_policy,
        Wish,
        "Add a new policy to the library: composed from a spec, patched from a stored one, or written freely. It is "
        "kept, not verified; whatever does not fit is told, so that it can be repaired.",
        read_only=False,
        slow=True,
    ),
    _Entry(
        compile_policy,
        PolicyOnly,
        "Compile a policy of the library for the lab's kernel; errors are the compiler's own lines.",
        slow=True,
    ),
    _Entry(
        verify_policy,
        Gates,
        "Take a policy with its tunables through the verifier's gates, the static ones or all. A policy that breaks a "
        "rule is told which, where, on which path and how that is repaired.",
        read_only=False,
        slow=True,
    ),
)
"""What needs a bench."""

_MEASURING = (
    _Entry(
        measure_policy,
        TrialOf,
        "Measure a policy against the default scheduler on the workload of an earlier run, in the micro-VM, after all "
        "gates: interleaved runs and a statistical verdict. Takes minutes, and is kept as a run of its own.",
        read_only=False,
        slow=True,
    ),
)
"""What needs a bench that may run workloads."""


def all_tools(services: Services) -> tuple[Tool, ...]:
    """Return every tool that these services allow."""
    bench = services.bench
    entries = _TOOLS + (_BENCH if bench else ()) + (_MEASURING if bench and bench.measures else ())
    return tuple(entry.bound(services) for entry in entries)


def tools_for(role: str, services: Services) -> tuple[Tool, ...]:
    """Return the tools of one of our agents; all of them only read.

    Every description is paid for with every request, so an agent has those that tell more than its question does.

    Args:
        role: one of ROLES.
    """
    return tuple(entry.bound(services) for entry in _TOOLS if role in entry.roles)
