"""C as text in the style of .clang-format: tabs, 80 columns. Pure; may import: nothing of ours."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

COLUMNS = 80
_TAB = 8


def comment(text: str) -> str:
    """Return a C comment, on one line if it fits; paragraphs are kept."""
    flat = " ".join(text.split())
    if "\n" not in text.strip() and len(flat) + 6 <= COLUMNS:
        return f"/* {flat} */"
    paragraphs = [textwrap.wrap(part, COLUMNS - 3, break_on_hyphens=False) for part in text.strip().split("\n\n")]
    lines = [f" * {line}" for lines in paragraphs for line in [*lines, ""]][:-1]
    return "\n".join(["/*", *(line.rstrip() for line in lines), " */"])


def call(head: str, arguments: Sequence[str], tail: str = "") -> str:
    """Return `head(arguments)tail`, broken between arguments and aligned with the parenthesis if it is too long."""
    column = _width(f"{head}(")
    lines = [f"{head}("]
    for position, argument in enumerate(arguments):
        piece = argument + ("," if position < len(arguments) - 1 else f"){tail}")
        if position and _width(f"{lines[-1]} {piece}") > COLUMNS:
            lines.append("\t" * (column // _TAB) + " " * (column % _TAB) + piece)
        else:
            lines[-1] += f" {piece}" if position else piece
    return "\n".join(lines)


def _width(line: str) -> int:
    return len(line.expandtabs(_TAB))


def _fit(line: str) -> str:
    """Break a statement that became too long: a call whose arguments hold no parenthesis."""
    head, opened, rest = line.partition("(")
    if _width(line) <= COLUMNS or not opened or not rest.endswith(");"):
        return line
    return call(head, rest.removesuffix(");").split(", "), ";")


def function(kind: str, name: str, parameters: Sequence[str], body: Sequence[str], about: str = "") -> str:
    """Return an inline function; the body's lines are indented by one tab."""
    return _function(call(f"static __always_inline {kind} {name}", parameters), body, about)


def callback(kind: str, name: str, parameters: Sequence[str], body: Sequence[str], *, sleepable: bool = False) -> str:
    """Return a callback of the ops struct."""
    macro = "SCX_CALLBACK_SLEEPABLE" if sleepable else "SCX_CALLBACK"
    return _function(call(f"{kind} {macro}", [name, *parameters]), body, "")


def _function(head: str, body: Sequence[str], about: str) -> str:
    return "\n".join([*([comment(about)] if about else []), head, "{", *map(_fit, indent(body)), "}"])


def indent(lines: Sequence[str]) -> list[str]:
    """Return lines one tab deeper."""
    return [f"\t{line}" if line else "" for text in lines for line in text.split("\n")]


def switch(subject: str, cases: Mapping[str, Sequence[str]]) -> list[str]:
    """Return statements that choose by a value; each case ends by itself, and the last one is the default.

    Cases that say the same as the default are left to it, and nothing is chosen if all do.
    """
    *_, default = cases.values()
    labels: dict[tuple[str, ...], list[str]] = {}
    for label, lines in cases.items():
        if list(lines) != list(default):
            labels.setdefault(tuple(lines), []).append(label)
    if not labels:
        return list(default)
    written = [f"switch ({subject}) {{"]
    for lines, same in labels.items():
        written += [*(f"case {label}:" for label in same), *indent(lines)]
    return [*written, "default:", *indent(default), "}"]
