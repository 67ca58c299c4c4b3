"""Words of others in our text: a compiler's, a kernel's, a policy's, a model's, a workload's. Each is marked as theirs.

Whoever reads our output believes a line that begins at its margin: "Verdict: ...", a token, a hint. So nobody else's
words ever begin one. In a sentence of ours they are a `quote`: one line between quotation marks. A text of several
lines is a `block`, each line behind `MARK`. A message of ours may carry such a text after its first line (an error with
a compiler's output, a gate's detail): it is shown `marked`, which all printers do with whatever they get.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from schedagent.core.terminal.printable import printable

MARK = "| "
"""Before each line of a text that is not ours."""

LONGEST_QUOTE = 600
LONGEST_LINE = 2000
MOST_LINES = 200


def one_line(text: str, limit: int = LONGEST_QUOTE) -> str:
    """Return a text as one printable line; of a longer one, how long it is."""
    line = " ".join(printable(text[: 8 * limit]).split())
    if len(line) <= limit and len(text) <= 8 * limit:
        return line
    return f"{line[:limit]}... ({len(text)} characters)"


def quote(text: str, limit: int = LONGEST_QUOTE) -> str:
    """Return words of others as part of a line of ours: in quotation marks, of which they themselves have none."""
    inner = one_line(text, limit).replace('"', "'")
    return f'"{inner}"'


def block(text: str, indent: str = "", *, whole: bool = False) -> Iterator[str]:
    """Yield the lines of a text of others, each behind `MARK`, with how many are left out.

    Args:
        whole: leave out nothing: for what a person has to judge.
    """
    lines = text.split("\n")
    most, longest = (len(lines), len(text)) if whole else (MOST_LINES, LONGEST_LINE)
    for line in lines[:most]:
        shown = printable(line[:longest]).replace("\t", "    ")
        yield f"{indent}{MARK}{shown}{'...' if len(line) > longest else ''}".rstrip()
    if len(lines) > most:
        yield f"{indent}({len(lines) - most} more lines of it)"


def marked(text: str) -> str:
    """Return a message of ours whose further lines are somebody else's: these marked, below it, all of it printable."""
    first, line_break, rest = text.rstrip("\n").partition("\n")
    shown = printable(first).replace("\t", "    ")
    indent = " " * (len(first) - len(first.lstrip(" ")))
    return "\n".join([shown, *block(rest, f"{indent}  ")]) if line_break else shown


class MarkingFormatter(logging.Formatter):
    """Formats log records, which quote commands, paths and output: what follows the first line of one is marked."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text that neither steers a terminal nor looks like another record."""
        return marked(super().format(record))
