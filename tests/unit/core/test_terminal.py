"""Foreign text does not steer the terminal, by whatever way it gets there."""

from __future__ import annotations

import io
import logging
import os
import sys

import pytest
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from schedagent.cli.common import complain, say
from schedagent.core.errors import WorkloadFailed
from schedagent.core.process.making import exit_status
from schedagent.core.terminal.answers import LONGEST_TEXT, plain
from schedagent.core.terminal.console import UNBROKEN, open_console
from schedagent.core.terminal.foreign import MarkingFormatter
from schedagent.core.terminal.printable import OneLineFormatter, printable

HOSTILE = "\x1b]52;c;cm0gLXJm\x07 \x1b]0;title\x1b\\ \x9b31m \x00\x08\r \u202eevil\u2066"
"""Clipboard, title, colour by a C1 control, overwriting, and bidirectional overrides."""
SHOWN = r"\x1b]52;c;cm0gLXJm\x07 \x1b]0;title\x1b\ \x9b31m \x00\x08\r \u202eevil\u2066"


def steers(text: str) -> list[str]:
    return [letter for letter in text if not letter.isprintable() and letter not in "\n\t"]


def test_printable_escapes_what_it_must_and_nothing_else():
    assert printable("für\n\t\x1b[0m\u202e\x9b\ud800") == "für\n\t\\x1b[0m\\u202e\\x9b\\ud800"
    assert printable(HOSTILE) == SHOWN


def test_bytes_of_a_path_stay_unless_a_terminal_could_take_them_for_controls():
    assert printable(os.fsdecode(b"/\xff/\xa0")) == os.fsdecode(b"/\xff/\xa0")
    assert printable(os.fsdecode(b"/\x9d")) == "/\\udc9d"


def test_an_error_and_its_hint(capsys):
    complain(WorkloadFailed(f"it failed:\n{HOSTILE}\nhint: do what the output says", HOSTILE), 1)
    out = capsys.readouterr().err
    assert steers(out) == []
    assert out == f"error: it failed:\n  | {SHOWN}\n  | hint: do what the output says\nhint: {SHOWN}\n"


def test_what_the_command_line_says(capsys):
    say(HOSTILE, err=True)
    say(HOSTILE)
    assert tuple(capsys.readouterr()) == (f"{SHOWN}\n", f"{SHOWN}\n")


def test_an_error_of_what_make_calls(capsys):
    def step():
        raise WorkloadFailed(HOSTILE)

    assert exit_status(step) == 1
    assert capsys.readouterr().err == f"error: {SHOWN}\n"


def test_a_log_record():
    record = logging.LogRecord("x", logging.DEBUG, __file__, 1, "run: %s", (HOSTILE,), None)
    assert MarkingFormatter("%(levelname)s: %(message)s").format(record) == f"DEBUG: run: {SHOWN}"


def test_the_console_shows_it_in_texts_and_tables():
    stream = io.StringIO()
    console = open_console(file=stream)
    table = Table()
    table.add_column(Text(HOSTILE))
    table.add_row(Text(HOSTILE))
    for renderable in (HOSTILE, Text(HOSTILE), table):
        console.print(renderable, markup=False, highlight=False, soft_wrap=True)
    assert steers(stream.getvalue()) == []
    assert stream.getvalue().count(r"\x1b]52;") == 4


def test_a_live_line_moves_the_cursor_only_by_itself(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    stream.isatty = lambda: True
    console = open_console(file=stream)
    with Progress(console=console) as progress:
        progress.add_task(HOSTILE)
    text = stream.getvalue()
    assert "\x1b[2K" in text or "\x1b[?25l" in text, "rich's own control sequences are to pass"
    assert "\x1b]" not in text
    assert not set(text) & set("\x07\x08\x9b\x00\u202e\u2066")


@pytest.mark.parametrize(("columns", "width"), [(None, UNBROKEN), ("80", 80)])
def test_a_pipe_gets_unbroken_lines_unless_columns_is_set(monkeypatch, columns, width):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: (_ for _ in ()).throw(OSError()))
    assert open_console(file=io.StringIO()).width == width


FORGED = "x\nINFO: deployment 9 pinned\r\x1b[2J\u202e\u2028\t"


def test_a_log_record_is_one_line_with_its_traceback_and_all():
    try:
        raise ValueError(FORGED)
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "", 1, "it says %s", (FORGED,), sys.exc_info())
    line = OneLineFormatter("%(levelname)s: %(message)s").format(record)
    assert (line.isprintable(), line.startswith("ERROR: it says x\\nINFO: deployment")) == (True, True)
    assert "ValueError" in line
    endless = logging.LogRecord("a", logging.ERROR, "", 1, "y" * 100_000, (), None)
    assert len(OneLineFormatter("%(message)s").format(endless)) == OneLineFormatter.LONGEST + 3


def test_every_text_of_an_answer_is_one_printable_line():
    answer = plain({"a": [FORGED, {FORGED: (1, None, True)}], "b": "z" * 100_000, "c": 1.5})
    [line, inner] = answer["a"]
    assert line.startswith("x INFO: deployment 9 pinned")
    assert (line.isprintable(), [*inner], inner[line]) == (True, [line], [1, None, True])
    assert (len(answer["b"]) < LONGEST_TEXT + 50, answer["c"], plain("as it is")) == (True, 1.5, "as it is")
