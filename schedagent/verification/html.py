"""A verification report as one HTML file that a phone shows as well, without scripts or outside resources.

Names, paths and messages in it may come from a hostile policy: all of them are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import PackageNotFoundError, version

from schedagent.core.errors import TokenError
from schedagent.core.terminal.printable import printable
from schedagent.core.token import DeploymentToken, decode
from schedagent.core.verification import Finding, GateResult, KernelResult, OracleResult, VerificationReport
from schedagent.verification.text import finding_lines, oracle_word
from verifier.proving.prove import ORACLES

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --page: #fff; --line: #d8d8dc; --soft: #5c5f66; --box: #f4f4f6;
  --good: #137333; --bad: #b3261e; --open: #8a5300; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e3e6; --page: #16181c; --line: #44474e; --soft: #a9acb3;
  --box: #23262c; --good: #7fd18b; --bad: #ff8a80; --open: #ffb74d; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 64rem;
  margin: 2rem auto; padding: 0 1rem; }
h1, h3, dd, p, small, pre, code, summary, td:last-child { overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 2.5rem; }
code, pre { font: .875rem/1.5 ui-monospace, monospace; white-space: pre-wrap; }
pre { margin: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; } dt { color: var(--soft); }
dd { margin: 0; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem 1rem .35rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: normal; white-space: nowrap; } .number { white-space: nowrap; }
small { display: block; color: var(--soft); font-size: .8125rem; }
details { border-bottom: 1px solid var(--line); padding: .5rem 0; }
.token { background: var(--box); padding: .75rem; border-radius: .25rem; user-select: all; }
.passed, .yes { color: var(--good); } .failed, .error, .no { color: var(--bad); }
.static-only, .incomplete, .skipped, .not-requested, .warning, .excused { color: var(--open); }
@media (max-width: 40rem) {
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
  table, tbody, tr, td { display: block; overflow-wrap: anywhere; } thead { display: none; }
  tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  td { border: 0; padding: .1rem 0; } td:first-child { font-weight: bold; } td:empty { display: none; }
  td:not(:first-child, :last-child) { display: inline-block; margin-right: 1rem; }
  td:not(:first-child, [data-heading="detail"])::before { content: attr(data-heading) ": "; color: var(--soft); }
}
"""


def to_html(report: VerificationReport) -> str:
    """One HTML document."""
    title = f"{report.policy}: {report.outcome}"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{_text(report.policy)}: {_word(report.outcome)}</h1>",
            f"<p>{_text(_sentence(report.conclusion.partition(': ')[2]))}</p>",
            _facts(report),
            "<h2>Gates</h2>",
            _table(("gate", "result", "seconds", "detail"), map(_gate_row, report.gates)),
            *_findings(report),
            *_measured(report),
            *_kernels(report),
            *_token(report),
            f"<p><small>Written by {_text(_program())}.</small></p>",
            "</body></html>\n",
        ]
    )


def _facts(report: VerificationReport) -> str:
    tunables = " ".join(f"{name}={value}" for name, value in report.tunables)
    return _list(
        ("Verified", _moment_text(report.verified_at)),
        ("By", report.verified_by or "the process that asked"),
        ("Kernel", report.kernel_release),
        ("Tunables", tunables or "none"),
        ("Object, SHA-256", report.artifact_digest or "none: it did not compile"),
        ("Verifier", report.verifier_version),
    )


def _token(report: VerificationReport) -> Iterator[str]:
    yield "<h2>Token</h2>"
    if not report.token:
        yield f"<p>None{': no key to sign with' if report.passed else ''}.</p>"
        return
    try:
        yield _permit(decode(report.token))
    except TokenError as error:
        yield f"<p>It cannot be read: {_text(error.message)}</p>"
    yield f'<pre class="token">{_text(report.token)}</pre><small>One click selects all of it.</small>'


def _permit(token: DeploymentToken) -> str:
    scope = f"{token.scope} {token.cgroup}".rstrip()
    return _list(
        ("Signed by key", token.key_id),
        ("Valid from", _unix_text(token.not_before)),
        ("Expires", _unix_text(token.expires_at)),
        ("Allows", f"this object once, on kernel {token.kernel_release}, scope {scope}"),
    )


def _findings(report: VerificationReport) -> Iterator[str]:
    if report.findings:
        yield "<h2>Findings</h2>"
        yield from (_finding(report, finding) for finding in report.findings)


def _gate_row(gate: GateResult) -> list[str]:
    return [_text(gate.gate), _word(gate.status), f"{gate.seconds:.1f}", f"<pre>{_text(gate.detail)}</pre>"]


def _finding(report: VerificationReport, finding: Finding) -> str:
    lines = "".join(f"<li><code>{_text(line)}</code></li>" for line in finding_lines(finding))
    cleared = " (cleared)" if finding.cleared_by and report.clears(finding) else ""
    head = f'<span class="{finding.severity}">{finding.severity}{cleared}</span> {_text(str(finding))}'
    return f"<details open><summary>{head}</summary><ul>{lines}</ul></details>"


def _measured(report: VerificationReport) -> Iterator[str]:
    if report.oracles:
        yield "<h2>Proving ground</h2>"
        if any(report.excuses(oracle) for oracle in report.oracles):
            yield (
                "<p>An oracle is excused if the policy declares that it does not seek what the oracle checks: rules "
                "29 and 30 allow that for fairness by weight and for throughput.</p>"
            )
        headings = ("oracle", "rule", "holds", "measured", "at most", "detail")
        yield _table(headings, (_oracle_row(report, oracle) for oracle in report.oracles))


def _oracle_row(report: VerificationReport, oracle: OracleResult) -> list[str]:
    info = ORACLES.get(oracle.name)
    measures = f"<small>Measured: {_text(info.measures)}.</small>" if info else ""
    figures = [
        f'<span class="number">{_text(oracle.figure(value))}</span>' for value in (oracle.measured, oracle.bound)
    ]
    word = _word(oracle_word(report, oracle))
    return [_text(oracle.name), str(oracle.rule), word, *figures, _text(oracle.detail) + measures]


def _kernels(report: VerificationReport) -> Iterator[str]:
    if report.kernels:
        yield "<h2>Kernels</h2>"
    for kernel in report.kernels:
        yield f"<h3>{_text(kernel.release)}: {_word(kernel.status)}</h3>"
        if kernel.detail:
            yield f"<pre>{_text(kernel.detail)}</pre>"
        yield from _programs(kernel)


def _programs(kernel: KernelResult) -> Iterator[str]:
    names = ("instructions", "verified_instructions", "jited_bytes")
    rows = [[name, *(str(stats.get(key, "")) for key in names)] for name, stats in kernel.programs.items()]
    if rows:
        headings = ("program", "instructions", "instructions walked", "bytes of machine code")
        yield _table(headings, [[_text(cell) for cell in row] for row in rows])


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the cells are markup already. On a narrow screen each row is a card whose lines carry the headings."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-heading="{escape(heading)}">{cell}</td>' for heading, cell in zip(headings, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _list(*facts: tuple[str, str]) -> str:
    """Facts with their names; those that are not known are left out."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{_text(fact)}</dd>' for name, fact in facts if fact)}</dl>"


def _word(word: str) -> str:
    """An outcome in its colour."""
    return f'<span class="{escape(word.replace(" ", "-"))}">{escape(word)}</span>'


def _program() -> str:
    try:
        return f"schedagent {version('schedagent')}"
    except PackageNotFoundError:  # a source tree that was not installed
        return "schedagent"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _text(text: str) -> str:
    return escape(printable(text))


def _unix_text(unix_s: int) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _moment_text(iso: str) -> str:
    return iso.replace("T", " ").removesuffix("+00:00") + " UTC" if iso else ""
