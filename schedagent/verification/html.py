"""A verification report as one HTML file that a phone shows as well, without scripts or outside resources.

Names, paths and messages in it may come from a hostile policy: all of them are escaped.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from schedagent.core.errors import TokenError
from schedagent.core.terminal.foreign import marked
from schedagent.core.token import DeploymentToken, decode
from schedagent.core.verification import Coverage, Finding, GateResult, KernelResult, OracleResult, VerificationReport
from schedagent.page.markup import document, facts, moment, sentence, table, text, word
from schedagent.verification.text import finding_lines, oracle_word, why_no_token
from verifier.proving.prove import ORACLES

_STYLE = ".token { background: var(--box); padding: .75rem; border-radius: .25rem; user-select: all; }"


def to_html(report: VerificationReport) -> str:
    """One HTML document."""
    title = f"{report.policy}: {report.outcome}"
    return document(
        title,
        [
            f"<h1>{text(report.policy)}: {word(report.outcome)}</h1>",
            f"<p>{text(report.lacks)}</p>" if report.lacks else "",
            f"<p>{text(sentence(report.conclusion.partition(': ')[2]))}</p>",
            _facts(report),
            "<h2>Gates</h2>",
            table(("gate", "result", "seconds", "detail"), map(_gate_row, report.gates)),
            *_findings(report),
            *_measured(report),
            *_kernels(report),
            *_token(report),
        ],
        style=_STYLE,
    )


def _facts(report: VerificationReport) -> str:
    tunables = " ".join(f"{name}={value}" for name, value in report.tunables)
    return facts(
        ("Verified", moment(report.verified_at)),
        ("By", report.verified_by or "the process that asked"),
        ("Kernel", report.kernel_release),
        ("Tunables", tunables or "none"),
        ("Object, SHA-256", report.artifact_digest or "none: it did not compile"),
        ("Verifier", report.verifier_version),
    )


def _token(report: VerificationReport) -> Iterator[str]:
    yield "<h2>Token</h2>"
    if not report.token:
        yield f"<p>None{text(why_no_token(report).removeprefix(' was issued'))}</p>"
        return
    try:
        yield _permit(decode(report.token))
    except TokenError as error:
        yield f"<p>It cannot be read: {text(error.message)}</p>"
    yield f'<pre class="token">{text(report.token)}</pre><small>One click selects all of it.</small>'


def _permit(token: DeploymentToken) -> str:
    scope = f"{token.scope} {token.cgroup}".rstrip()
    return facts(
        ("Signed by key", token.key_id),
        ("Valid from", _unix_text(token.not_before)),
        ("Expires", _unix_text(token.expires_at)),
        ("Does not seek, by its submitter's word", ", ".join(token.declares)),
        ("Goes by, by its submitter's word", ", ".join(token.reads)),
        ("Allows", f"this object once, on kernel {token.kernel_release}, scope {scope}"),
    )


def _findings(report: VerificationReport) -> Iterator[str]:
    if report.findings:
        yield "<h2>Findings</h2>"
        yield from (_finding(report, finding) for finding in report.findings)


def _gate_row(gate: GateResult) -> list[str]:
    return [text(gate.gate), word(gate.status), f"{gate.seconds:.1f}", f"<pre>{text(marked(gate.detail))}</pre>"]


def _finding(report: VerificationReport, finding: Finding) -> str:
    lines = "".join(f"<li><code>{text(line)}</code></li>" for line in finding_lines(finding))
    cleared = " (cleared)" if finding.cleared_by and report.clears(finding) else ""
    words = f"{finding.severity}{cleared}</span> {finding.finding_class}"
    head = f'<span class="{finding.severity}">{words}: {text(str(finding))}'
    return f"<details open><summary>{head}</summary><ul>{lines}</ul></details>"


def _measured(report: VerificationReport) -> Iterator[str]:
    if report.oracles:
        yield "<h2>Proving ground</h2>"
        if any(report.excuses(oracle) for oracle in report.oracles):
            yield (
                "<p>An oracle is excused if the policy declares that it does not seek what the oracle checks, or "
                "somebody accepts that by name: what is unfair or costly is a matter of goal.</p>"
            )
        headings = ("oracle", "rule", "holds", "measured", "at most", "detail")
        yield table(headings, (_oracle_row(report, oracle) for oracle in report.oracles))
    if report.coverage:
        yield from _coverage(report.coverage)


def _coverage(coverage: Coverage) -> Iterator[str]:
    """What ran, and all lines that never did."""
    yield f"<h2>Coverage</h2><p>{text(coverage.summary)}.</p>"
    if coverage.never:
        lines = ", ".join(f"{place.file}:{place.line}" for place in coverage.never)
        yield f"<details><summary>every line that never ran</summary><p><code>{text(lines)}</code></p></details>"


def _oracle_row(report: VerificationReport, oracle: OracleResult) -> list[str]:
    info = ORACLES.get(oracle.name)
    measures = f"<small>Measured: {text(info.measures)}.</small>" if info else ""
    figures = [f'<span class="number">{text(oracle.figure(value))}</span>' for value in (oracle.measured, oracle.bound)]
    held = word(oracle_word(report, oracle))
    return [text(oracle.title), str(oracle.rule), held, *figures, text(oracle.detail) + measures]


def _kernels(report: VerificationReport) -> Iterator[str]:
    if report.kernels:
        yield "<h2>Kernels</h2>"
    for kernel in report.kernels:
        yield f"<h3>{text(kernel.release)}: {word(kernel.status)}</h3>"
        if kernel.detail:
            yield f"<pre>{text(marked(kernel.detail))}</pre>"
        yield from _programs(kernel)


def _programs(kernel: KernelResult) -> Iterator[str]:
    names = ("instructions", "verified_instructions", "jited_bytes")
    rows = [[name, *(str(stats.get(key, "")) for key in names)] for name, stats in kernel.programs.items()]
    if rows:
        headings = ("program", "instructions", "instructions walked", "bytes of machine code")
        yield table(headings, [[text(cell) for cell in row] for row in rows])


def _unix_text(unix_s: int) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
