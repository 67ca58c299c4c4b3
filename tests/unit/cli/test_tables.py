"""Every table, on a terminal of 80 and 120 columns and in a pipe: no id is cut, and no heading is wrapped."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest

from kernel_bpf.policies.library import load_library
from schedagent.run import opening
from tests.support import scripted_lab as scripted
from tests.support.paths import ROOT

LONG_PATH = "/srv/a/folder/whose/path/is/longer/than/any/column/of/a/table/on/eighty/columns"
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]")


@dataclass(frozen=True)
class Listing:
    """A command that prints a table.

    Args:
        words: of the command; RUN stands for the id of a run that has won.
        headings: of its table.
        whole: what stands in it and must not be cut.
    """

    words: tuple[str, ...]
    headings: tuple[str, ...]
    whole: tuple[str, ...]


LISTINGS = (
    Listing(("runs", "list"), ("run", "started", "result"), ("RUN", LONG_PATH)),
    Listing(("runs", "show", "RUN"), ("policy", "pairs", "ratio", "interval", "verdict"), ("RUN", LONG_PATH)),
    Listing(("policies", "list"), ("policy", "origin"), ("longest_first",)),
    Listing(("policies", "search", "build"), ("policy",), ("longest_first",)),
    Listing(("keys", "list"), ("key", "state", "trusted until"), ("KEY",)),
)
"""All tables of the program; add yours."""


@pytest.fixture
def names(run, script, monkeypatch):
    """Make a run that has won, and a key; return what stands for them."""
    monkeypatch.setattr(opening, "load_library", load_library)
    monkeypatch.setattr(opening, "open_lab", lambda _settings: scripted.Lab(script))
    run("optimize", "--workload", f"true {LONG_PATH} {'argument ' * 9}", "--iterations", "1")
    run("keys", "create")
    [listed] = json.loads(run("runs", "list", "--json").stdout)
    [key] = json.loads(run("keys", "list", "--json").stdout)
    return {"RUN": listed["run"], "KEY": key["key"]}


def printed(run, listing, names):
    result = run(*(names.get(word, word) for word in listing.words))
    assert result.exit_code == 0, result.output
    return result.stdout


def in_one_line(headings, text):
    pattern = r"[^\n]*\b".join(re.escape(heading) for heading in headings)
    return re.search(rf"(?m)^\W*\b{pattern}\b", text)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("listing", LISTINGS, ids=lambda listing: " ".join(listing.words))
def test_on_a_terminal_nothing_is_cut_and_no_heading_is_wrapped(run, names, monkeypatch, listing, columns):
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, this makes any stdout a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    text = re.sub(r"\x1b\[[0-9;]*m", "", printed(run, listing, names))
    assert in_one_line(listing.headings, text), text
    for word in listing.whole:
        assert names.get(word, word) in text
    table = [line for line in text.splitlines() if line[:1] in tuple("┏┃┡│└")]
    assert max(map(len, table), default=0) <= columns


@pytest.mark.parametrize("listing", LISTINGS, ids=lambda listing: " ".join(listing.words))
def test_in_a_pipe_nothing_is_wrapped_or_coloured(run, names, monkeypatch, listing):
    monkeypatch.delenv("COLUMNS", raising=False)
    text = printed(run, listing, names)
    assert in_one_line(listing.headings, text), text
    for word in listing.whole:
        assert names.get(word, word) in text
    assert "\x1b" not in text
    if listing.words == ("runs", "list"):
        [row] = [line for line in text.splitlines() if names["RUN"] in line]
        assert "argument argument" in row


def on_a_terminal(*words, columns, **environment):
    """What the program prints on a real terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "schedagent", *words],
        stdin=theirs,
        stdout=theirs,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm", **environment},
    ) as process:
        os.close(theirs)
        pieces = []
        try:
            while piece := os.read(ours, 65536):
                pieces.append(piece)
        except OSError:  # EIO: the last writer is gone
            pass
        assert process.wait(60) == 0
    os.close(ours)
    return b"".join(pieces).decode()


def test_a_real_terminal_is_not_overrun_and_heeds_no_color(folders):
    text = on_a_terminal("policies", "list", columns=80, NO_COLOR="1")
    assert in_one_line(("policy", "origin"), text)
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in text.splitlines()) <= 80
    assert not COLOUR.search(text)
