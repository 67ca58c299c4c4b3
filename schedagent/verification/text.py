"""A verification report on the terminal, and as JSON with a schema.

Names, paths and messages in it may come from a hostile policy: none of it is markup to rich, nor drives the terminal.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from schedagent.core.errors import TokenError
from schedagent.core.policies.policy import is_acceptable
from schedagent.core.rules import RULES, FindingClass
from schedagent.core.terminal.console import open_console
from schedagent.core.terminal.foreign import marked, one_line
from schedagent.core.token import decode
from schedagent.core.verification import (
    Finding,
    GateResult,
    GateStatus,
    OracleResult,
    Severity,
    VerificationOutcome,
    VerificationReport,
)

_COLOURS = {GateStatus.PASSED: "green", GateStatus.FAILED: "red"}
_SEVERITY_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: ""}
_ORACLE_COLOURS = {"yes": "green", "excused": "yellow", "no": "red"}
_INDENT = "        "

VERSION = 1
"""Of the JSON: it grows when a field is renamed or removed."""


class GatePrinter:
    """Prints each gate as it ends."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = open_console(stderr=quiet)
        self._quiet = quiet

    def __call__(self, result: GateResult) -> None:
        if self._quiet:
            return
        head = Text(result.status.value, style=_COLOURS.get(result.status, "")).append(f"  {result.gate}", style="bold")
        self._console.print(head.append(f" ({result.seconds:.1f} s)", style="not bold default"), highlight=False)
        if result.detail:
            self._console.print(Text(marked(_INDENT + result.detail)), soft_wrap=True)
        for finding in result.findings:
            self._print(finding)

    def _print(self, finding: Finding) -> None:
        head = Text(_INDENT).append(finding.severity.value, style=_SEVERITY_COLOURS[finding.severity])
        self._console.print(head.append(f"  {finding.finding_class}: {one_line(str(finding))}"), soft_wrap=True)
        for line in finding_lines(finding):
            self._console.print(Text(_INDENT + "  " + line), soft_wrap=True)


def finding_lines(finding: Finding) -> Iterator[str]:
    """The path of a finding, why it matters and how to fix it, a line each."""
    for step in finding.path:
        yield one_line(f"by {step.file}:{step.line}: {step.text}")
    yield f"why: {finding.text.why}"
    if finding.finding_class is finding.text.finding_class and finding.text.classed_for:
        yield f"{finding.finding_class}, as {finding.text.classed_for}"
    if finding.accepted_as and is_acceptable(finding.accepted_as):
        yield f"accept it by name: --accept {shlex.quote(finding.accepted_as)}"
    yield f"fix: {finding.text.repair}"
    if causes := other_causes(finding):
        yield f"the same symptom comes from broken rules {', '.join(map(str, causes))}: see VERIFIER.md"
    if finding.cleared_by:
        yield f"the proving ground clears it if its oracle {finding.cleared_by!r} holds"


def other_causes(finding: Finding) -> list[int]:
    """Rules that the oracle which made this finding looks for, too; none for a finding of the static gates."""
    return [rule.number for rule in RULES.values() if finding.where in rule.checks and rule.number != finding.rule]


def show_end(report: VerificationReport) -> None:
    """Print the result; the gates were printed as they ended."""
    console = open_console()
    if report.lacks:
        _say(console, report.lacks)
    if report.oracles:
        console.print(oracle_table(report))
    for oracle in report.oracles:
        if report.excuses(oracle):
            _say(console, f"excused: it is declared or accepted that the policy does not seek {oracle.title!r}")
    if report.coverage:
        _say(console, f"coverage: {report.coverage.summary}")
    if report.reads:
        _say(console, f"goes by, as is declared or accepted: {', '.join(report.reads)}")
    for finding in report.findings:
        if finding.cleared_by and report.clears(finding):
            _say(console, f"cleared: rule {finding.rule} by the oracle {finding.cleared_by!r}")
    console.print()
    _say(console, f"{report.policy}: {report.conclusion}")
    if report.token:
        _say(console, f"token: {report.token}")
        for line in _on_word(report.token):
            _say(console, line)
    else:
        _say(console, f"No token{why_no_token(report)}")


def why_no_token(report: VerificationReport) -> str:
    """What to say behind "No token" of a report without one."""
    if not report.passed:
        return " was issued."
    return ": it needs what nobody declared or accepted." if report.needs else ": no key to sign with."


def _on_word(token: str) -> Iterator[str]:
    """Yield what of a token rests on its submitter's word, and the setting that makes schedagentd take it."""
    try:
        signed = decode(token)
    except TokenError:
        return
    for words, what, setting in (
        (signed.declares, "does not seek", "accept_declared"),
        (signed.reads, "goes by", "accept_reads"),
    ):
        if words:
            declared = f"it is declared or accepted that it {what} {', '.join(words)}"
            yield f"{declared}: schedagentd deploys it only with {setting} (schedagentd.toml)"


def oracle_table(report: VerificationReport) -> Table:
    """What the proving ground measured."""
    table = Table(title="proving ground", title_justify="left")
    for heading in ("oracle", "rule", "holds", "measured", "at most"):
        table.add_column(heading, no_wrap=True)
    for oracle in report.oracles:
        word = oracle_word(report, oracle)
        figures = oracle.figure(oracle.measured), oracle.figure(oracle.bound)
        table.add_row(oracle.title, str(oracle.rule), Text(word, style=_ORACLE_COLOURS[word]), *figures)
    return table


def oracle_word(report: VerificationReport, oracle: OracleResult) -> str:
    """Whether an oracle holds, or need not: yes, no or excused."""
    return "yes" if oracle.ok else "excused" if report.excuses(oracle) else "no"


def to_json(report: VerificationReport) -> dict[str, Any]:
    """The report as JSON values, with what follows from it; `json_schema` describes it."""
    from pydantic import TypeAdapter

    values: dict[str, Any] = TypeAdapter(VerificationReport).dump_python(report, mode="json")
    for gate in values["gates"]:
        for finding, fields in zip(_findings_of(report, gate["gate"]), gate["findings"], strict=True):
            del fields["classed"], fields["word"]
            fields.update({"class": finding.finding_class.value, "accepted_as": finding.accepted_as})
            fields.update(why=finding.text.why, repair=finding.text.repair, cleared=report.clears(finding))
    for oracle, fields in zip(report.oracles, values["oracles"], strict=True):
        fields.update(excused=report.excuses(oracle))
    decided = report.outcome in (VerificationOutcome.PASSED, VerificationOutcome.FAILED)
    passed = report.passed if decided else None
    top = {"version": VERSION, "outcome": report.outcome.value, "passed": passed, "safe": report.safe}
    return {**top, **values}


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of what `to_json` returns."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(VerificationReport).json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    added: dict[str, Any] = {
        "version": {"const": VERSION, "description": "of this form; it grows when a field is renamed or removed"},
        "outcome": {"enum": [outcome.value for outcome in VerificationOutcome]},
        "passed": {"type": ["boolean", "null"], "description": "null if not every gate has a verdict"},
        "safe": {
            "type": ["boolean", "null"],
            "description": "whether it may be tried in a machine of its own; null if that is not decided",
        },
    }
    schema["properties"] |= added
    schema["required"] = [*added, *schema["required"]]
    finding = schema["$defs"]["Finding"]["properties"]
    del finding["classed"], finding["word"]
    finding["class"] = {"enum": [each.value for each in FindingClass]}
    finding["accepted_as"] = {"type": "string", "description": "its name for --accept; empty if nobody can accept it"}
    finding.update(why={"type": "string"}, repair={"type": "string"}, cleared={"type": "boolean"})
    schema["$defs"]["OracleResult"]["properties"]["excused"] = {"type": "boolean"}
    return dict(schema)


def _findings_of(report: VerificationReport, gate: str) -> tuple[Finding, ...]:
    return next(result.findings for result in report.gates if result.gate == gate)


def _say(console: Console, text: str) -> None:
    console.print(marked(text), markup=False, highlight=False, soft_wrap=True)
