"""The atomic tools: what an agent, of ours or over MCP, may ask for. Each is described once, in `_TOOLS`.

    tools_for("planning", services)     # what one of our agents gets
    all_tools(services)                 # what `schedagent mcp` offers

A tool takes checked arguments and returns a text that a model can act upon; what it raises as SchedagentError reaches
the model. Arguments come from a model: they are bounded in size, and where a thing is named no path is accepted.
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

from agents import plain_text
from agents.llm.calling import Tool
from agents.tools.services import Services, ToolBench
from kernel_bpf.build.source import SOURCE_LIMIT_BYTES, read_source
from kernel_bpf.policies.compose import compose
from kernel_bpf.policies.programs import known_programs
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


def workload_profile(services: Services, arguments: ProfilePart) -> str:
    """One tier of what observing a workload has shown."""
    run = services.run(arguments.run)
    profile = services.profile(run)
    match arguments.part:
        case "commands":
            return _rows(f"commands of run {run.id}", plain_text.command_lines(profile.commands), len(profile.commands))
        case "identities":
            return _rows(
                f"identities of run {run.id}", plain_text.history_lines(profile.histories), len(profile.histories)
            )
        case "pressure":
            return plain_text.pressure(profile)
    return plain_text.lines(
        plain_text.profile_summary(run, profile), plain_text.meaning_lines(services.records.meaning(run.id))
    )


class Search(Arguments):
    words: Annotated[str, Field(max_length=500, description="what to look for; empty: list all policies")] = ""


def search_policies(services: Services, arguments: Search) -> str:
    """Policies by what they are for; of programs that load their policies themselves, those that match."""
    if not arguments.words.strip():
        policies = list(services.library.values())
        return _rows("policies, best match first", map(plain_text.policy_line, policies), len(policies))
    programs = known_programs()
    matches = services.records.search_policies(arguments.words, MOST_ROWS + len(programs))
    names = [match.name for match in matches]
    policies = [services.library[name] for name in names if name in services.library]
    others = [programs[name] for name in names if name in programs and name not in services.library]
    lines = [plain_text.policy_line(policy) for policy in policies]
    lines += [plain_text.program_line(info.name, info.description, info.target_workloads) for info in others]
    lines = lines[:MOST_ROWS]
    return _rows("policies, best match first", lines, len(lines))


class PolicyPart(Arguments):
    policy: PolicyName
    part: Literal["summary", "source", "manifest"] = Field(
        "summary",
        description="summary: what it is for, how it decides, its tunables; source: its BPF C; manifest: its TOML",
    )
    first_line: Annotated[int, Field(ge=1, le=100_000, description="of source or manifest")] = 1
    most_lines: Annotated[int, Field(ge=1, le=1000)] = 300


def show_policy(services: Services, arguments: PolicyPart) -> str:
    """A policy's documentation or text."""
    policy = services.policy(arguments.policy)
    if arguments.part == "summary":
        return plain_text.policy_summary(policy)
    if arguments.part == "source" and policy.is_object:
        raise UsageError(f"policy {policy.name} came as a compiled object: there is no source")
    path = policy.source if arguments.part == "source" else policy.source.with_name(f"{policy.name}.toml")
    text = read_source(path).decode().splitlines()
    start = arguments.first_line - 1
    chosen = text[start : start + arguments.most_lines]
    head = f"{path.name}, lines {arguments.first_line} to {start + len(chosen)} of {len(text)}:"
    return "\n".join([head, *chosen])


class History(Arguments):
    policy: PolicyName
    limit: Limit = 20


def policy_history(services: Services, arguments: History) -> str:
    """Every verdict on a policy, whatever the workload."""
    policy = services.policy(arguments.policy)
    results = services.records.results_of(policy.name, arguments.limit)
    places = (services.records.run(lesson.run_id) for lesson in results)
    rows = (
        plain_text.lesson_line(lesson, f"{plain_text.short(run.workload.command, 80)!r} on {run.hardware.lab}")
        for lesson, run in zip(results, places, strict=True)
    )
    return _rows(f"verdicts on {policy.name}, newest first", rows, len(results))


class RunAndLimit(Arguments):
    run: RunId = ""
    limit: Limit = 20


def lessons(services: Services, arguments: RunAndLimit) -> str:
    """What was measured on the same workload and hardware."""
    run = services.run(arguments.run)
    verdicts = list(services.records.lessons(run.workload.key, run.hardware.key))
    about = f"verdicts on the workload and hardware of run {run.id}, newest first"
    insights = list(services.records.insights(run.workload.key, run.hardware.key))
    concluded = _rows(
        "insights of those runs, in words",
        map(plain_text.insight_line, insights),
        len(insights),
        arguments.limit,
    )
    return plain_text.lines(
        _rows(about, map(plain_text.lesson_line, verdicts), len(verdicts), arguments.limit), concluded
    )


def similar_runs(services: Services, arguments: RunAndLimit) -> str:
    """What was measured on other workloads that looked alike."""
    run = services.run(arguments.run)
    runs = services.records.similar_runs(
        services.profile(run), run.hardware.key, arguments.limit, but_not=run.workload.key
    )
    rows = [line for similar in runs for line in plain_text.similar_lines(similar)]
    return _rows(f"runs of other workloads, the one most like run {run.id} first", rows, len(rows), len(rows))


def antipatterns(services: Services, arguments: RunAndLimit) -> str:
    """What failed on the same workload or hardware."""
    run = services.run(arguments.run)
    patterns = list(services.records.antipatterns(run.workload.key, run.hardware.key))
    about = f"candidates that failed where run {run.id} measured, newest first"
    return _rows(about, map(plain_text.antipattern_line, patterns), len(patterns), arguments.limit)


class Latest(Arguments):
    limit: Limit = 10


def list_runs(services: Services, arguments: Latest) -> str:
    """The latest runs."""
    runs = services.records.list_runs(arguments.limit)
    return _rows("runs, newest first", map(plain_text.run_line, runs), len(runs))


class RunPart(Arguments):
    run: RunId = ""
    part: Literal["summary", "reasons", "samples"] = Field(
        "summary",
        description="summary: each plan, its candidates and their verdicts; reasons: why each was planned and what was "
        "expected of it; samples: the measured values, block by block",
    )


def show_run(services: Services, arguments: RunPart) -> str:
    """One run."""
    run = services.run(arguments.run)
    records = services.records
    plans = [(number, plan) for number in records.iterations(run.id) if (plan := records.plan(run.id, number))]
    head = f"{plain_text.run_line(run)[2:]}; status {run.status.value}; lab {plain_text.hardware(run)}"
    match arguments.part:
        case "reasons":
            candidates = (candidate for _number, plan in plans for candidate in plan.candidates)
            rows = (line for candidate in candidates for line in plain_text.candidate_reasons(candidate))
        case "samples":
            rows = (line for number, _plan in plans for line in plain_text.block_lines(records.blocks(run.id, number)))
        case _:
            judged = ((number, plan, records.verdicts(run.id, number)) for number, plan in plans)
            rows = (line for number, plan, verdicts in judged for line in plain_text.plan_lines(number, plan, verdicts))
    return plain_text.lines(head, plain_text.failure_line(run), rows)


class ReportPart(Arguments):
    candidate: Annotated[
        str, Field(min_length=1, max_length=64, pattern=r"^[0-9a-f]+$", description="key of the candidate")
    ]
    section: Literal["summary", "findings", "gates", "oracles", "kernels"] = Field(
        "summary",
        description="summary: each gate in a line; findings: broken rules with place, path and fix; gates: in full, "
        "with compiler and kernel logs; oracles: what the proving ground measured; kernels: each kernel's verifier",
    )
    run: RunId = ""


def verification_report(services: Services, arguments: ReportPart) -> str:
    """One section of the verifier's report on a candidate."""
    report = services.reports.get(arguments.candidate)
    if report is None:
        run = services.run(arguments.run)
        report = services.records.verification(run.id, arguments.candidate)
        if report is None:
            raise UsageError(
                f"run {run.id} holds no verification of candidate {arguments.candidate}",
                "show_run lists its candidates with their keys",
            )
    match arguments.section:
        case "findings":
            return plain_text.lines(*plain_text.finding_lines(report)) or "no open findings"
        case "gates":
            return plain_text.lines(*plain_text.gate_lines(report))
        case "oracles":
            figures = (plain_text.oracle_line(report, oracle) for oracle in report.oracles)
            return plain_text.lines(figures) or "the proving ground did not run"
        case "kernels":
            return plain_text.lines(map(plain_text.kernel_line, report.kernels)) or "no kernel's verifier saw it"
    return plain_text.report_summary(report)


class SpecOnly(Arguments):
    spec: dict[str, Any] = Field(description="the policy spec; its schema: describe_spec")


def compose_policy(_services: Services, arguments: SpecOnly) -> str:
    """A spec turned into the two texts of a policy; nothing is kept."""
    composed = compose(read_spec(arguments.spec))
    return "\n".join([f"{composed.name}.toml:", composed.toml, f"{composed.name}.bpf.c:", composed.source])


def describe_spec(_services: Services, _arguments: NoArguments) -> str:
    """What a spec may contain."""
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


def make_policy(services: Services, arguments: Wish) -> str:
    """A new policy in the library; only its reader has checked it so far."""
    wish = Proposal(
        origin=Origin(arguments.origin),
        policy=arguments.policy,
        spec=arguments.spec,
        diff=arguments.diff,
        source=arguments.source,
        description=arguments.description,
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


def compile_policy(services: Services, arguments: PolicyOnly) -> str:
    """A policy as the kernel would get it, or the compiler's words."""
    made = _bench(services).compile(services.policy(arguments.policy))
    log = f"the compiler's words:\n{made.log}" if made.log.strip() else "without a warning"
    return f"{made.name} compiles to {len(made.object_bytes)} bytes, digest {made.digest}, {log}"


class Gates(Settled):
    gates: Literal["static", "all"] = Field(
        "static",
        description="static: source, compile and scheduling logic, in seconds; all: also the kernel's verifier and the "
        "proving ground in a micro-VM, in minutes",
    )
    run: RunId = Field("", description="id of the run whose profile fills the policy's inputs; empty: none are filled")


def verify_policy(services: Services, arguments: Gates) -> str:
    """What the gates make of a candidate."""
    bench = _bench(services)
    candidate = bench.make(arguments.proposal, arguments.run)
    report = bench.verify(candidate, static=arguments.gates == "static")
    findings = list(plain_text.finding_lines(report))
    more = f"more: verification_report with candidate {candidate.key}; no token is issued here"
    return plain_text.lines(plain_text.report_summary(report), findings[:MOST_ROWS], more)


class TrialOf(Settled):
    run: RunId = Field("", description="id of the run whose workload is measured; empty: the newest run's")
    minutes: Annotated[int, Field(ge=1, le=60, description="begin no new block of runs after this long")] = 10


def measure_policy(services: Services, arguments: TrialOf) -> str:
    """A candidate against the default scheduler, on a workload that the user has run before."""
    new = _bench(services).measure(arguments.proposal, services.run(arguments.run).id, 60.0 * arguments.minutes)
    return show_run(services, RunPart(run=new, part="summary"))


def _bench(services: Services) -> ToolBench:
    assert services.bench is not None, "acting tools are offered with a bench only"
    return services.bench


def system_state(services: Services, _arguments: NoArguments) -> str:
    """The machine."""
    return plain_text.system_summary(services.system())


def _rows(about: str, rows: Any, count: int, limit: int = MOST_ROWS) -> str:
    """A headed list, cut to `limit` rows."""
    kept = list(islice(rows, limit))
    left = f"({count - len(kept)} more are left out)" if count > len(kept) else ""
    return plain_text.lines(f"{about}:" if kept else f"{about}: none", kept, left)


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
        "The verifier's report on one candidate, section by section.",
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
        "Turn a policy spec into BPF C and its manifest; nothing is kept. Each mistake is reported by the name of its "
        "field.",
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
        "kept, not verified; errors name what does not fit, so that it can be fixed.",
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
        "Take a policy with its tunables through the verifier's gates, the static ones or all. Each broken rule is "
        "reported with its place, its path and how to fix it.",
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

    Every description is paid for with every request, so an agent has only those that add to its question.

    Args:
        role: one of ROLES.
    """
    return tuple(entry.bound(services) for entry in _TOOLS if role in entry.roles)
