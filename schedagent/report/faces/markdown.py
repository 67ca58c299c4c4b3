"""The report as Markdown: a table and the conclusion, as they fit into an issue or a pull request."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from schedagent.core.terminal.printable import printable
from schedagent.report.conclusion import conclusion
from schedagent.report.faces.again import repeat_command
from schedagent.report.faces.remarks import (
    arm_names,
    costs_line,
    expected_line,
    guard_line,
    headline_values,
    knob_lines,
    mode_lines,
    ratio_text,
    remarks,
    split_line,
)
from schedagent.report.report import CandidateReport, Report
from schedagent.report.values import CPU, SECONDS, WALL, figure, objective_name

_ACTIVE = re.compile(r"([\\`*_\[\]<>|~&$])")
_MENTIONS = re.compile(r"(@|#|\bGH-)(?=\w)")
_WORD_JOINER = "\u2060"
"""Has no width, and keeps a host from seeing a user or an issue in a name."""


def to_markdown(report: Report) -> str:
    """Return the report; what others wrote in it is escaped, so that it neither mentions nor formats anything."""
    return "\n".join([*_head(report), *_candidates(report), *_values(report), *_rest(report)]) + "\n"


def samples_markdown(report: Report) -> str:
    """Return every run of every arm as a table."""
    names = arm_names(report)
    rows = [
        [
            names.get(sample.arm, sample.arm),
            f"{block.number}" if block.number else "0 (warm-up)",
            f"{sample.value:.6g}" if math.isfinite(sample.value) else "-",
            f"{sample.wall_ns / 1e9:.4f}",
            f"{sample.cpu_ns / 1e9:.4f}",
            sample.failure,
        ]
        for iteration in report.iterations
        for block in iteration.blocks
        for sample in block.samples
    ]
    headings = ("arm", "block", objective_name(report.workload), f"{WALL}, {SECONDS}", f"{CPU}, {SECONDS}", "failure")
    return "\n".join(_table(headings, rows)) + "\n"


def _head(report: Report) -> Iterator[str]:
    lead, *rest = conclusion(report)
    hardware = report.hardware
    yield f"### schedagent: {_code(report.workload.command)}"
    yield ""
    yield f"**{_text(lead)}**"
    yield ""
    yield from (f"- {_text(line.strip())}" for line in rest)
    yield ""
    yield f"Run {_text(report.title)}, {hardware.lab}, {hardware.cpus} CPUs, kernel {_text(hardware.kernel_release)}."
    if report.costs and hardware.lab == "vm-tcg":
        yield f"The machine was {_text(costs_line(report.costs))}."
    yield ""


def _candidates(report: Report) -> Iterator[str]:
    entries = list(report.candidates)
    if not entries:
        return
    emulated = any(entry.verdict and entry.verdict.expected for entry in entries)
    claimed = ["expected on hardware"] if emulated else []
    yield from _table(
        ["policy", "verdict", *claimed, "raw, emulated" if emulated else "ratio", "pairs", "guards"],
        [_row(entry, emulated) for entry in entries],
    )
    yield ""
    for entry in entries:
        yield from (f"- {_text(entry.candidate.policy)}: {_text(line)}" for line in _details(entry))
    yield ""


def _row(entry: CandidateReport, emulated: bool) -> list[str]:
    verdict = entry.verdict
    if verdict is None:
        return [entry.candidate.label, "not reached", *["-"] * (emulated + 1), "0", "-"]
    claim = verdict.expected
    claimed = [ratio_text(claim.ratio, claim.low, claim.high) if claim else "-"] if emulated else []
    broken = [guard.name for guard in verdict.guards if not guard.held]
    guards = f"broken: {', '.join(broken)}" if broken else "held" if verdict.guards else "-"
    raw = ratio_text(verdict.ratio, verdict.low, verdict.high)
    return [entry.candidate.label, verdict.outcome.value, *claimed, raw, str(verdict.pairs), guards]


def _details(entry: CandidateReport) -> Iterator[str]:
    if entry.verdict:
        yield entry.verdict.reason
        if entry.verdict.expected:
            yield expected_line(entry.verdict.expected)
        yield from map(guard_line, entry.verdict.guards)
    if entry.split:
        yield split_line(entry.split)
    yield from mode_lines(entry)


def _values(report: Report) -> Iterator[str]:
    rows = []
    for entry in report.candidates:
        for value in headline_values(entry.values):
            for arm, name in ((value.default, "default"), (value.candidate, entry.candidate.policy)):
                figures = (figure(number, value.unit) for number in (arm.median, arm.spread, arm.worst))
                rows.append([value.name, name, *figures, str(len(arm.runs))])
    if rows:
        yield from _table(("value", "arm", "median", "spread", "worst", "runs"), list(dict.fromkeys(map(tuple, rows))))
        yield ""


def _rest(report: Report) -> Iterator[str]:
    yield from (f"- {_text(line)}." for line in (*knob_lines(report), *remarks(report)))
    yield ""
    yield "Do it again:"
    yield ""
    yield from (f"    {line}" for line in printable(repeat_command(report)).splitlines())


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield _line(headings)
    yield _line(["---"] * len(headings))
    yield from map(_line, ([_text(cell) for cell in row] for row in rows))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(words: str) -> str:
    """Foreign text in a line: nothing in it is markup, a mention or a line break."""
    escaped = _ACTIVE.sub(r"\\\1", " ".join(printable(words).split()))
    return _MENTIONS.sub(rf"\1{_WORD_JOINER}", escaped)


def _code(words: str) -> str:
    """Foreign text as code, fenced by more backticks than it has in a row."""
    content = " ".join(printable(words).split())
    fence = "`" * (max(map(len, re.findall("`+", content)), default=0) + 1)
    return f"{fence} {content} {fence}" if "`" in content else f"{fence}{content}{fence}"
