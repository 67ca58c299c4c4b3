"""Commands in messages: a shell reads them back as they were, and no control character reaches the terminal."""

from __future__ import annotations

import subprocess

import pytest

from schedagent.core.process.shell_text import quoted

COMMANDS = [
    "make",
    "make -j",
    r"grep -E '\d+\.\d+' \"$HOME\"/*",
    "it's",
    "''",
    "\\",
    "two\nlines\t'x'",
    "\x1b]52;c;eA==\x07",
    "ü…",
    "\u202edesrever",
    "\udcff\x00"[:1],
    "a\x01f",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_shell_reads_it_back(command):
    word = quoted(command)
    assert word.isprintable()
    read = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True).stdout
    assert read == command.encode("utf-8", "surrogateescape")


def test_an_ordinary_command_looks_as_a_person_would_write_it():
    assert quoted("make -j") == "'make -j'"
    assert quoted(r"p99: (\d+)") == r"'p99: (\d+)'"
