"""Parts of a page, and the page around them: readable on a phone, in the dark and on paper, without outside resources.

Names, paths and messages may come from a hostile policy or workload: whatever is no markup goes through `text`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version

from schedagent.core.terminal.printable import printable

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
.passed, .yes { color: var(--good); } .failed, .error, .no { color: var(--bad); }
.static-only, .incomplete, .skipped, .not-requested, .warning, .excused { color: var(--open); }
@media (max-width: 40rem) {
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
  table, tbody, tr, td { display: block; overflow-wrap: anywhere; } thead { display: none; }
  tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  td { border: 0; padding: .1rem 0; } td:first-child { font-weight: bold; }
  td:not(:first-child, :last-child) { display: inline-block; margin-right: 1rem; }
  td:empty { display: none; } td:first-child small { font-weight: normal; }
  td:not(:first-child, [data-heading="detail"])::before { content: attr(data-heading) ": "; color: var(--soft); }
}
"""


def document(title: str, body: Iterable[str], *, style: str = "", script: str = "") -> str:
    """Return one HTML document.

    Args:
        title: plain text.
        body: markup.
        style: further rules.
        script: the only one that may run, as the page's policy holds its digest; it holds no foreign text.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            f"<title>{text(title)}</title><style>{_STYLE}{style}</style></head><body>",
            *body,
            f"<p><small>Written by {text(_program())}.</small></p>",
            *([f"<script>{script}</script>"] if script else []),
            "</body></html>\n",
        ]
    )


def text(content: str) -> str:
    """Return foreign text as markup that shows it; no line of the document's source is its own."""
    return escape(printable(content)).replace("\n", "&#10;")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the cells are markup already. On a narrow screen each row is a card whose lines carry the headings."""
    head = "".join(f"<th>{text(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-heading="{text(heading)}">{cell}</td>' for heading, cell in zip(headings, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def facts(*pairs: tuple[str, str]) -> str:
    """Facts, plain text, with their names; those that are not known are left out."""
    return f"<dl>{''.join(f'<dt>{text(name)}</dt><dd>{text(fact)}</dd>' for name, fact in pairs if fact)}</dl>"


def word(outcome: str) -> str:
    """An outcome in its colour."""
    return f'<span class="{escape(outcome.replace(" ", "-"))}">{escape(outcome)}</span>'


def sentence(words: str) -> str:
    """Return words as a sentence."""
    return f"{words[:1].upper()}{words[1:]}."


def moment(iso: str) -> str:
    """Return an ISO 8601 UTC time for people; empty if there is none."""
    return iso.replace("T", " ").removesuffix("+00:00") + " UTC" if iso else ""


def _program() -> str:
    try:
        return f"schedagent {version('schedagent')}"
    except PackageNotFoundError:  # a source tree that was not installed
        return "schedagent"
