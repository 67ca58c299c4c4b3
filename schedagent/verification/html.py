"""A verification report as one HTML file, without scripts or outside resources.

Names, paths and messages in it may come from a hostile policy: all of them are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from schedagent.core.terminal.printable import printable
from schedagent.core.verification import Finding, GateResult, KernelResult, OracleResult, VerificationReport
from schedagent.verification.text import figure, finding_lines

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { text-align: left; padding: .2rem .8rem .2rem 0;
  vertical-align: top; border-bottom: 1px solid #ddd; }
pre, code { font-family: ui-monospace, monospace; white-space: pre-wrap; }
.passed, .yes { color: #137333; } .failed, .error, .no { color: #b3261e; } .warning { color: #8a5300; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #e3e3e3; } .passed, .yes { color: #7fd18b; }
.failed, .error, .no { color: #ff8a80; } .warning { color: #ffb74d; } td, th { border-color: #444; } }
"""


def to_html(report: VerificationReport) -> str:
    """One HTML document."""
    verdict = "passed every gate" if report.passed else "did not pass"
    title = f"{report.policy} {verdict}"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f'<h1 class="{"passed" if report.passed else "failed"}">{escape(title)}</h1>',
            f"<p>Proved on kernel {escape(report.kernel_release)}; object {escape(report.artifact_digest or 'none')}; "
            f"verifier {escape(report.verifier_version)}.</p>",
            "<h2>Gates</h2>",
            _table(("gate", "result", "seconds", "detail"), map(_gate_row, report.gates)),
            *_findings(report),
            *_measured(report),
            *([f"<h2>Token</h2><pre>{escape(report.token)}</pre>"] if report.token else []),
            "</body></html>\n",
        ]
    )


def _findings(report: VerificationReport) -> Iterator[str]:
    if report.findings:
        yield "<h2>Findings</h2>"
        yield from (_finding(report, finding) for finding in report.findings)


def _gate_row(gate: GateResult) -> list[str]:
    status = f'<span class="{escape(gate.status.value)}">{escape(gate.status.value)}</span>'
    return [escape(gate.gate), status, f"{gate.seconds:.1f}", f"<pre>{escape(printable(gate.detail))}</pre>"]


def _finding(report: VerificationReport, finding: Finding) -> str:
    lines = "".join(f"<li><code>{escape(line)}</code></li>" for line in finding_lines(finding))
    cleared = " (cleared)" if finding.cleared_by and report.clears(finding) else ""
    kind = finding.severity.value
    head = f'<span class="{kind}">{kind}{cleared}</span> {escape(printable(str(finding)))}'
    return f"<details open><summary>{head}</summary><ul>{lines}</ul></details>"


def _measured(report: VerificationReport) -> Iterator[str]:
    if report.oracles:
        yield "<h2>Proving ground</h2>"
        headings = ("oracle", "rule", "holds", "measured", "bound", "detail")
        yield _table(headings, map(_oracle_row, report.oracles))
    if report.kernels:
        yield "<h2>Kernels</h2>"
        rows = map(_kernel_row, report.kernels)
        yield _table(("kernel", "result", "programs: instructions, walked, machine code bytes"), rows)


def _oracle_row(oracle: OracleResult) -> list[str]:
    holds = '<span class="yes">yes</span>' if oracle.ok else '<span class="no">no</span>'
    figures = [figure(oracle, oracle.measured), figure(oracle, oracle.bound)]
    return [escape(oracle.name), str(oracle.rule), holds, *map(escape, figures), escape(oracle.detail)]


def _kernel_row(kernel: KernelResult) -> list[str]:
    lines = [f"{name}: {', '.join(map(str, stats.values()))}" for name, stats in kernel.programs.items()]
    text = "\n".join([*lines, printable(kernel.detail)])
    return [escape(kernel.release), kernel.status.value, f"<pre>{escape(text)}</pre>"]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the cells are markup already."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
