"""How commands print: text that is no markup, and tables of few columns, which fit 80."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schedagent.core.terminal.console import UNBROKEN
from schedagent.core.terminal.foreign import block, marked, one_line

_INDENT = "    "


def show_table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table if it is narrow enough; else each row with its last cell below it, so that no cell is cut."""
    table = text_table(headings, rows)
    if console.measure(table, options=console.options.update(max_width=UNBROKEN)).maximum <= console.width:
        console.print(table)
    else:
        for line in _lines(headings, rows, console.width):
            say(console, line)


def _lines(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    columns = [max(map(cell_len, column)) for column in list(zip(headings, *rows, strict=True))[:-1]]
    for number, row in enumerate((headings, *([one_line(cell, UNBROKEN) for cell in row] for row in rows))):
        cells = [cell + " " * (column - cell_len(cell)) for cell, column in zip(row, columns, strict=False)]
        yield "  ".join(cells).rstrip() + (f"  ({row[-1]} below)" if number == 0 else "")
        if number:
            yield textwrap.fill(
                " ".join(row[-1].split()),
                width,
                initial_indent=_INDENT,
                subsequent_indent=_INDENT,
                break_long_words=False,
                break_on_hyphens=False,
            )


def say(console: Console, text: str) -> None:
    """Print a line, which the terminal wraps: nothing in it is markup, and what it has of further lines is marked."""
    console.print(marked(text), markup=False, highlight=False, soft_wrap=True)


def say_wrapped(console: Console, text: str, indent: str) -> None:
    """Print a sentence below a line it belongs to: indented, and on a terminal wrapped between words.

    What it has of further lines is somebody else's, and marked.
    """
    first, line_break, rest = text.partition("\n")
    width = max(console.width - len(indent), 20)
    for part in textwrap.wrap(first, width, break_long_words=False, break_on_hyphens=False) or [""]:
        say(console, (indent + part).rstrip())
    for line in block(rest, f"{indent}  ") if line_break else ():
        say(console, line)


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of plain text whose last column alone is folded if the terminal is narrow."""
    table = Table()
    for heading in headings[:-1]:
        table.add_column(heading, no_wrap=True)
    table.add_column(headings[-1], overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell, UNBROKEN)) for cell in row))
    return table
