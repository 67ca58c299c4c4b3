"""What the commands that only look print, as tables and text or as JSON: runs, policies, transcripts, replays."""

from __future__ import annotations

import dataclasses
import json
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from schedagent.core.policies.proposal import Origin
from schedagent.core.terminal.console import open_console
from schedagent.core.terminal.foreign import MARK, one_line
from schedagent.report.tables import say, show_table
from schedagent.report.times import unix_time, when

if TYPE_CHECKING:
    from agents.llm.transcript import Exchange
    from kernel_bpf.policies.programs import ListedProgram
    from repo_store.records import PolicyMatch, RunRecord
    from schedagent.core.policies.policy import PolicyInfo

_WIDTH = 78
_LONGEST_TEXT = 20_000


def show_runs(runs: Sequence[RunRecord], as_json: bool) -> None:
    """List runs."""
    if as_json:
        _print_json([_run(run) for run in runs])
    elif not runs:
        _say('no runs yet; start one: schedagent optimize --workload "make -j"')
    else:
        now = time.time()
        rows = [(run.id, when(unix_time(run.started_at), now), _result(run), run.workload.command) for run in runs]
        show_table(open_console(), ("run", "started", "result", "command"), rows)


def show_policies(policies: Sequence[PolicyInfo], programs: Sequence[ListedProgram], as_json: bool) -> None:
    """List policies, and schedulers with a loader of their own."""
    if as_json:
        _print_json([*map(_policy, policies), *map(_program, programs)])
    else:
        rows = [(policy.name, policy.origin.label, policy.description) for policy in policies]
        rows += [(program.info.name, program.standing, program.info.description) for program in programs]
        show_table(open_console(), ("policy", "origin", "description"), rows)


def show_policy(policy: PolicyInfo, as_json: bool) -> None:
    """Show everything about one policy."""
    if as_json:
        _print_json(_policy(policy))
        return
    ours = policy.origin is Origin.BUNDLED
    mark = "  " if ours else f"  {MARK}"
    if ours:
        _say(textwrap.fill(f"{policy.name}: {one_line(policy.description)}", _WIDTH) + "\n")
    else:
        _say(f"{one_line(policy.name)}:\n{_indented(policy.description, mark)}\n")
    origin = f"{policy.origin.label} from {policy.parent}" if policy.parent else policy.origin.label
    for heading, text, indent in (
        ("Origin", origin, "  "),
        ("Meant for", ", ".join(policy.target_workloads), "  "),
        ("How it decides", policy.algorithm, mark),
        ("When it loses", policy.limitations, mark),
        ("Needs", ", ".join(policy.inputs) or "nothing measured beforehand", "  "),
        ("Source", str(policy.source), "  "),
    ):
        _say(f"{heading}:\n{_indented(text, indent)}")
    if policy.tunables:
        _say("\n".join(["Tunables:", *_tunables(policy, mark)]))


def show_program(program: ListedProgram, as_json: bool) -> None:
    """Show everything about one scheduler with a loader of its own."""
    if as_json:
        _print_json(_program(program))
        return
    info = program.info
    _say(textwrap.fill(f"{one_line(info.name)}: {info.description}", _WIDTH) + "\n")
    modes = [f"{goal.value}: {' '.join(arguments)}" for goal, arguments in info.modes.items() if arguments]
    for heading, text in (
        ("Origin", f"a program that loads its policy itself, {program.standing}"),
        ("Meant for", ", ".join(info.target_workloads) or f"nothing unasked: it needs {info.needs or 'to be named'}"),
        ("How it decides", info.algorithm),
        ("When it loses", info.limitations),
        ("Arguments by goal", "; ".join(modes) or "none"),
        ("Program", program.path or "not installed"),
    ):
        _say(f"{heading}:\n{_indented(text, '  ')}")


def show_matches(matches: Sequence[PolicyMatch], as_json: bool) -> None:
    """Show the policies that match a search."""
    if as_json:
        _print_json([dataclasses.asdict(match) for match in matches])
    elif not matches:
        _say("no policy matches; list all: schedagent policies list")
    else:
        rows = [(match.name, match.description) for match in matches]
        show_table(open_console(), ("policy", "description"), rows)


def show_exchanges(header: Mapping[str, Any], exchanges: Sequence[Exchange], as_json: bool) -> None:
    """Show what a run asked models, and what they answered."""
    from agents.llm.transcript import render

    if as_json:
        _print_json({**header, "exchanges": [_exchange(exchange) for exchange in exchanges]})
    else:
        for block in render(header, exchanges):
            say(open_console(), block)


def show_replay(comparison: Mapping[str, Any], as_json: bool) -> None:
    """Show how a replay compares with the recorded run."""
    if as_json:
        _print_json(comparison)
        return
    differences = comparison["differences"]
    for difference in differences:
        say(open_console(), difference)
    points = f"{len(differences)} point{'s' * (len(differences) != 1)}"
    verdict = "the same as recorded" if comparison["same"] else f"different in {points}"
    _say(f"Replayed {comparison['requests']} requests of run {comparison['run']}: {verdict}.")


def _run(run: RunRecord) -> dict[str, Any]:
    return {
        "run": run.id,
        "started_at": run.started_at,
        "status": run.status.value,
        "command": run.workload.command,
        "directory": run.workload.directory,
        "outcome": (run.report or {}).get("outcome", ""),
    }


def _result(run: RunRecord) -> str:
    """What a finished run found, else where it stands."""
    if run.report is None:
        return run.status.value
    outcome = run.report.get("outcome")
    return outcome if outcome in ("better", "trade-off") else "nothing better"


def _tunables(policy: PolicyInfo, mark: str) -> Iterator[str]:
    for tunable in policy.tunables:
        unit = "" if tunable.unit == "none" else f" {tunable.unit}"
        yield f"  {one_line(tunable.name)} = {tunable.default} ({tunable.minimum} to {tunable.maximum}{unit})"
        yield _indented(tunable.effect, f"    {mark}")


def _indented(text: str, indent: str) -> str:
    return textwrap.fill(
        one_line(text, _LONGEST_TEXT), _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False
    )


def _exchange(exchange: Exchange) -> dict[str, Any]:
    request = exchange.request
    return {
        "number": exchange.number,
        "role": request.role,
        "iteration": request.iteration,
        "body": request.body,
        "outcome": dataclasses.asdict(exchange.outcome) if exchange.outcome else None,
        "used": dataclasses.asdict(exchange.record) if exchange.record else None,
        "results": [text for _place, text in sorted(exchange.results.items())],
    }


def _policy(policy: PolicyInfo) -> dict[str, Any]:
    fields = dataclasses.asdict(policy)
    del fields["parts"], fields["rodata"]  # of what somebody brings; none of a library
    return {**fields, "source": str(policy.source)}


def _program(program: ListedProgram) -> dict[str, Any]:
    about = dataclasses.asdict(program.info)
    del about["rank"]
    modes = {goal.value: list(arguments) for goal, arguments in program.info.modes.items()}
    return {**about, "modes": modes, "origin": Origin.PROGRAM.value, "path": program.path}


def _print_json(value: Any) -> None:
    _say(json.dumps(value, indent=2, default=str, allow_nan=False))


def _say(text: str) -> None:
    """Print lines of ours; what is anybody's in them has no line break any more."""
    console = open_console()
    for line in text.split("\n"):
        say(console, line)
