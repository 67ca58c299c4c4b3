"""A verification report on the terminal, and as JSON with a schema.

Names, paths and messages in it may come from a hostile policy: none of it is markup to rich, nor drives the terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from schedagent.core.rules import RULES
from schedagent.core.terminal.console import open_console
from schedagent.core.terminal.printable import printable
from schedagent.core.verification import (
    Finding,
    GateResult,
    GateStatus,
    OracleResult,
    Severity,
    VerificationReport,
)

_COLOURS = {GateStatus.PASSED: "green", GateStatus.FAILED: "red"}
_INDENT = "        "


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
        for line in printable(result.detail).splitlines():
            self._console.print(Text(_INDENT + line), soft_wrap=True)
        for finding in result.findings:
            self._print(finding)

    def _print(self, finding: Finding) -> None:
        style = "red" if finding.severity is Severity.ERROR else "yellow"
        head = Text(_INDENT).append(finding.severity.value, style=style)
        self._console.print(head.append(f"  {printable(str(finding))}"), soft_wrap=True)
        for line in finding_lines(finding):
            self._console.print(Text(_INDENT + "  " + line), soft_wrap=True)


def finding_lines(finding: Finding) -> Iterator[str]:
    """The path of a finding, why it matters and how to fix it, a line each."""
    for step in finding.path:
        yield printable(f"by {step.file}:{step.line}: {step.text}")
    yield f"why: {finding.text.why}"
    yield f"fix: {finding.text.repair}"
    if causes := other_causes(finding):
        yield f"the same symptom comes from broken rules {', '.join(map(str, causes))}: see VERIFIER.md"
    if finding.cleared_by:
        yield f"the proving ground clears it if its oracle {finding.cleared_by!r} holds"


def other_causes(finding: Finding) -> list[int]:
    """Rules that the oracle which made this finding looks for, too; none for a finding of the static gates."""
    return [rule.number for rule in RULES.values() if finding.where in rule.checks and rule.number != finding.rule]


def show_end(report: VerificationReport, *, static_only: bool) -> None:
    """Print the result; the gates were printed as they ended."""
    console = open_console()
    if report.oracles:
        console.print(oracle_table(report.oracles))
    for finding in report.findings:
        if finding.cleared_by and report.clears(finding):
            _say(console, f"cleared: rule {finding.rule} by the oracle {finding.cleared_by!r}")
    if report.passed:
        _say(console, f"\n{report.policy} passed every gate on {report.kernel_release}.")
        _say(console, f"token: {report.token}" if report.token else "No token: no key to sign with.")
    elif report.failure:
        _say(console, f"\n{report.policy} is rejected: gate {report.failure.gate!r} failed. No token was issued.")
    elif static_only:
        _say(console, f"\n{report.policy} passed the static gates. No token was issued: the others did not run.")
    else:
        _say(console, f"\nNo verdict on {report.policy}: the VM was lost twice. No token was issued; try again.")


def oracle_table(oracles: Sequence[OracleResult]) -> Table:
    """What the proving ground measured."""
    table = Table(title="proving ground", title_justify="left")
    for heading in ("oracle", "rule", "holds", "measured", "bound"):
        table.add_column(heading)
    for oracle in oracles:
        holds = Text("yes", style="green") if oracle.ok else Text("no", style="red")
        measured, bound = figure(oracle, oracle.measured), figure(oracle, oracle.bound)
        table.add_row(oracle.name, str(oracle.rule), holds, measured, bound)
    return table


def to_json(report: VerificationReport) -> dict[str, Any]:
    """The report as JSON values, with what follows from it; `json_schema` describes it."""
    from pydantic import TypeAdapter

    values: dict[str, Any] = TypeAdapter(VerificationReport).dump_python(report, mode="json")
    for gate in values["gates"]:
        for finding, fields in zip(_findings_of(report, gate["gate"]), gate["findings"], strict=True):
            fields.update(why=finding.text.why, repair=finding.text.repair, cleared=report.clears(finding))
    return {**values, "passed": report.passed}


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of what `to_json` returns."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(VerificationReport).json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"]["passed"] = {"type": "boolean", "title": "Passed"}
    finding = schema["$defs"]["Finding"]["properties"]
    finding.update(why={"type": "string"}, repair={"type": "string"}, cleared={"type": "boolean"})
    return dict(schema)


def _findings_of(report: VerificationReport, gate: str) -> tuple[Finding, ...]:
    return next(result.findings for result in report.gates if result.gate == gate)


def figure(oracle: OracleResult, value: float) -> str:
    """A value of an oracle with its unit."""
    return f"{value:.3g} {oracle.unit}"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
