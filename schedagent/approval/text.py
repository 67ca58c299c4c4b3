"""How an approval is shown to people: everything its digest covers, and how to answer."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from schedagent.core.terminal.foreign import block, marked, quote

_FIRST_DIGITS = 16


def commands(run: str, digest: str) -> str:
    """Return the commands that continue a run that waits."""
    exactly = f" --digest {digest[:_FIRST_DIGITS]}" if digest else ""
    return (
        f"Run {run} waits for your approval. Continue, also from another terminal or after a restart:\n"
        f"  schedagent approve {run}{exactly}\n"
        f'  schedagent reject {run}{exactly} --because "..."'
    )


def show_waiting(waiting: Mapping[str, Any]) -> None:
    """Print everything that has to be approved, so that nothing in it steers the terminal."""
    from schedagent.core.terminal.console import open_console

    console = open_console()
    console.print()
    for line in _lines(waiting):
        console.print(marked(line), markup=False, highlight=False, soft_wrap=True)


def _lines(waiting: Mapping[str, Any]) -> Iterator[str]:
    if waiting["stage"] == "plan":
        yield f"Plan {waiting['iteration']} of run {waiting['run']} for {waiting['workload']!r}: {waiting['reason']}"
        if waiting["learned"]:
            yield f"  Learned earlier: {waiting['learned']}"
        for number, candidate in enumerate(waiting["candidates"], start=1):
            yield from _candidate(f"{number} ", candidate)
        yield f"  If you approve: {waiting['allows']}"
    else:
        yield f"Run {waiting['run']} for {waiting['workload']!r} ends with a winner whose token can be issued:"
        yield from _candidate("", waiting["candidate"])
        yield from _proved(waiting["verdict"], waiting["measured"], waiting["verification"])
        yield f"  If you approve: the token allows {token_allows(waiting['allows'])}"
    yield f"  Digest of what is shown here: {waiting['digest']}"


def _candidate(number: str, candidate: Mapping[str, Any]) -> Iterator[str]:
    parent = f" of {candidate['parent']}" if candidate["parent"] else ""
    made = (
        "" if candidate["policy_origin"] == "bundled" else f", a policy that was {candidate['policy_origin']}{parent}"
    )
    if candidate.get("argv"):
        yield f"  {number}{candidate['policy']}, a program: {quote(shlex.join(candidate['argv']))}"
        yield f"      Its content: {candidate['source_digest'][:_FIRST_DIGITS]}"
    else:
        yield f"  {number}{candidate['policy']} ({candidate['origin']}{made})"
    ours = candidate["policy_origin"] == "bundled"
    for heading, text, is_quoted in (
        ("What it does", candidate["description"], not ours),
        ("Why", candidate["reason"], False),  # of the rules, or a model's, in its quotation marks
        ("Expected", candidate["expected"], True),
        ("Refuted by", candidate["refuted_by"], True),
    ):
        if text:
            yield f"      {heading}: {quote(text) if is_quoted else text}"
    if candidate["declares"]:
        yield f"      Does not mean to satisfy: {', '.join(candidate['declares'])}"
    if candidate.get("reads"):
        yield f"      Goes by: {', '.join(candidate['reads'])}"
    for name, tunable in candidate["tunables"].items():
        changed = "" if tunable["value"] == tunable["default"] else f" (default {tunable['default']})"
        yield f"      {name} = {tunable['value']}{changed}"
    for name, count in candidate["inputs"].items():
        if count:
            yield f"      {name}: {count} measured entries"
    if candidate["spec"]:
        yield from block(json.dumps(candidate["spec"], indent=2), "      ", whole=True)
    if candidate["diff"]:
        yield from block(candidate["diff"].rstrip("\n"), "      ", whole=True)


def _proved(verdict: Mapping[str, Any], measured: Mapping[str, Any], verification: Mapping[str, Any]) -> Iterator[str]:
    yield f"  Verdict: {verdict['outcome']}: {verdict['reason']}"
    yield (
        f"  Expected effect: ratio {measured['ratio']:.3f}, between {measured['low']:.3f} and {measured['high']:.3f} "
        f"with {100 * measured['confidence']:.1f} % confidence, from {verdict['pairs']} pairs"
    )
    counts = (f"{count} gates {status}" for status, count in verification["statuses"].items())
    yield f"  Verification: {'; '.join(counts)}"
    yield from (f"      {gate['status']}: {gate['gate']}: {gate['detail']}" for gate in verification["gates"])
    yield f"      {verification['oracles']['held']} of {verification['oracles']['of']} oracles held"
    yield from (f"      kernel {release}: {status}" for release, status in verification["kernels"].items())
    yield from (f"      warning: {warning}" for warning in verification["warnings"])
    if verification.get("coverage"):
        yield f"      coverage: {verification['coverage']}"
    yield from (f"      never ran: {finding}" for finding in verification.get("never_ran", []))


def token_allows(allows: Mapping[str, Any]) -> str:
    """Return in one line what a token allows."""
    where = {"full": "for all tasks", "partial": "for tasks that are moved to it"}[allows["scope"]]
    inside = f" in cgroup {allows['cgroup']}" if allows["cgroup"] else ""
    return (
        f"whoever has it to load this object ({allows['object'][:12]}) once on kernel {allows['kernel']}, "
        f"{where}{inside}, until {allows['until']}{on_word(allows)}"
    )


def on_word(allows: Mapping[str, Any]) -> str:
    """Return what of a token rests on its submitter's word, and which settings of schedagentd take that; or nothing."""
    declares, reads = allows.get("declares", ()), allows.get("reads", ())
    what = [f"does not seek {', '.join(declares)}"] * bool(declares) + [f"goes by {', '.join(reads)}"] * bool(reads)
    settings = ["accept_declared"] * bool(declares) + ["accept_reads"] * bool(reads)
    if not what:
        return ""
    return f"; the policy declares that it {' and '.join(what)}, which schedagentd takes by {' and '.join(settings)}"
