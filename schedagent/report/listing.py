"""Tables and JSON for the commands that only look: runs and policies."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from agents.llm.transcript import Exchange, render
from repo_store.records import PolicyMatch, RunRecord
from schedagent.core.policies.policy import PolicyInfo


def show_runs(runs: Sequence[RunRecord], as_json: bool) -> None:
    """List runs."""
    rows = [
        {
            "run": run.id,
            "started_at": run.started_at,
            "status": run.status.value,
            "command": run.workload.command,
            "directory": run.workload.directory,
            "outcome": (run.report or {}).get("outcome", ""),
        }
        for run in runs
    ]
    if as_json:
        _print_json(rows)
    elif not rows:
        _say('no runs yet; start one: schedagent optimize --workload "make -j"')
    else:
        _print_table(("run", "started_at", "status", "command", "directory", "outcome"), rows)


def show_policies(policies: Sequence[PolicyInfo], as_json: bool) -> None:
    """List policies."""
    if as_json:
        _print_json([_policy(policy) for policy in policies])
        return
    rows = [
        {
            "policy": policy.name,
            "origin": policy.origin.label,
            "for": ", ".join(policy.target_workloads),
            "description": policy.description,
        }
        for policy in policies
    ]
    _print_table(("policy", "origin", "for", "description"), rows)


def show_policy(policy: PolicyInfo, as_json: bool) -> None:
    """Show everything about one policy."""
    if as_json:
        _print_json(_policy(policy))
        return
    _say(f"{policy.name}: {policy.description}\n")
    for heading, text in (
        ("Origin", f"{policy.origin.label} from {policy.parent}" if policy.parent else policy.origin.label),
        ("Meant for", ", ".join(policy.target_workloads)),
        ("How it decides", policy.algorithm),
        ("When it loses", policy.limitations),
        ("Needs", ", ".join(policy.inputs) or "nothing measured beforehand"),
        ("Source", str(policy.source)),
    ):
        _say(f"{heading}:\n{textwrap.indent(textwrap.fill(' '.join(text.split()), 90), '  ')}")
    if policy.tunables:
        rows = [
            {
                "tunable": tunable.name,
                "default": str(tunable.default),
                "range": f"{tunable.minimum} to {tunable.maximum} {tunable.unit}",
                "effect": tunable.effect,
            }
            for tunable in policy.tunables
        ]
        _print_table(("tunable", "default", "range", "effect"), rows)


def show_matches(matches: Sequence[PolicyMatch], as_json: bool) -> None:
    """Show what a search found."""
    if as_json:
        _print_json([dataclasses.asdict(match) for match in matches])
    elif not matches:
        _say("no policy matches; see all: schedagent policies list")
    else:
        _print_table(("policy", "description"), [{"policy": m.name, "description": m.description} for m in matches])


def show_exchanges(header: Mapping[str, Any], exchanges: Sequence[Exchange], as_json: bool) -> None:
    """Show what a run asked models, and what they answered."""
    if as_json:
        _print_json({**header, "exchanges": [_exchange(exchange) for exchange in exchanges]})
    else:
        for block in render(header, exchanges):
            _say(block)


def show_replay(found: Mapping[str, Any], as_json: bool) -> None:
    """Show what a replay found."""
    if as_json:
        _print_json(found)
        return
    for difference in found["differences"]:
        _say(difference)
    verdict = "as it was recorded" if found["same"] else f"otherwise in {len(found['differences'])} points"
    _say(f"Replayed {found['requests']} requests of run {found['run']}: it went {verdict}.")


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
    return {**dataclasses.asdict(policy), "source": str(policy.source)}


def _print_table(columns: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(row[column] for column in columns))
    Console(emoji=False).print(table, markup=False)


def _print_json(value: Any) -> None:
    _say(json.dumps(value, indent=2, default=str, allow_nan=False))


def _say(text: str) -> None:
    Console(emoji=False).print(text, markup=False, highlight=False, soft_wrap=True)
