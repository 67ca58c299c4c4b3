"""Foreign text (a workload's output, names, what a model or a compiler wrote), made harmless to a terminal.

A control character steers the terminal that shows it: a sequence that begins with ESC or a C1 control sets the
clipboard, the title or the colours, and a bidirectional override shows other words than are there.
"""

from __future__ import annotations

import logging


def printable(text: str) -> str:
    """Return `text` with everything that is neither printable nor a line break or tab written as an escape.

    Bytes of a path that are no UTF-8 stay what they are, unless a terminal could take one for a C1 control.
    """
    if text.isprintable():
        return text
    return "".join(
        letter
        if letter.isprintable() or letter in "\n\t" or _is_byte(letter)
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _is_byte(letter: str) -> bool:
    """Whether it is a byte of 0xa0 or above that was no UTF-8 (PEP 383, surrogateescape)."""
    return "\udca0" <= letter <= "\udcff"


class OneLineFormatter(logging.Formatter):
    """Formats log records for a journal: each is one printable line, whatever words of others it quotes."""

    LONGEST = 8000

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, its own line breaks as escapes."""
        line = printable(super().format(record)).replace("\n", "\\n").replace("\t", "\\t")
        return line if len(line) <= self.LONGEST else f"{line[: self.LONGEST]}..."
