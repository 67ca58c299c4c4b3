"""The only door to rich's console: all that is printed through it is `printable`, and a pipe gets unbroken lines."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from schedagent.core.terminal.printable import printable

UNBROKEN = 10_000
"""Columns of what is no terminal, unless $COLUMNS says otherwise: wide enough that nothing wraps."""


class PrintableConsole(Console):
    """A console that shows control characters instead of sending them; what rich itself sends is left alone."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield the segments of a renderable, printable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def open_console(*, stderr: bool = False, file: IO[str] | None = None) -> Console:
    """Return a console on stdout, stderr or `file`, without emoji: rich takes the ":100:" of "file.c:100:5" for one."""
    console = PrintableConsole(stderr=stderr, file=file, emoji=False)
    if not console.is_terminal:
        console.width = shutil.get_terminal_size((UNBROKEN, 25)).columns
    return console
