"""Foreign text (a workload's output, names, what a model or a compiler wrote), made harmless to a terminal.

A control character steers the terminal that shows it: a sequence that begins with ESC or a C1 control sets the
clipboard, the title or the colours, and a bidirectional override shows other words than are there.
"""

from __future__ import annotations

import logging


def printable(text: str) -> str:
    """Return `text` with everything that is neither printable nor a line break or tab written as an escape."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )


class PrintableFormatter(logging.Formatter):
    """Formats log records, which quote commands, paths and output, for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as printable text."""
        return printable(super().format(record))
