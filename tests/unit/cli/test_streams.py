"""The program when its standard streams are closed, full, or cannot show what is printed: no traceback, ever."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from schedagent.core.trials.workload import WorkloadCommand
from tests.support.paths import ROOT
from tests.support.scripted_lab import Script

ASCII_ONLY = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def make_run(tmp_path):
    """Store a run of a workload whose command is not all ASCII."""
    (tmp_path / "state").mkdir()
    return replace(Script(tmp_path), workload=WorkloadCommand("make ü …", "/tmp")).create()


def program(tmp_path, redirection, *words, **environment):
    """Run the command line in a process whose shell redirects its streams."""
    chosen = {"SCHEDAGENT_CACHE": "cache", "SCHEDAGENT_STATE": "state", "XDG_CONFIG_HOME": "config"}
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "schedagent", *words],
        env={**os.environ, **{key: str(tmp_path / name) for key, name in chosen.items()}, **environment},
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("redirection", "words", "status"),
    [
        (">&-", ["keys", "create"], 0),
        (">&-", ["--help"], 0),
        (">&- 2>&- <&-", ["policies", "list"], 0),
        ("2>&-", ["policies", "show", "nosuch"], 2),
        ("2>/dev/full", ["policies", "show", "nosuch"], 2),
        (">/dev/full", ["policies", "list"], 1),
        (">/dev/full", ["--help"], 1),
        (">/dev/full", ["--version"], 1),
        ("<&-", ["keys", "trust", "-"], 1),
    ],
)
def test_streams_that_are_closed_or_full(tmp_path, redirection, words, status):
    ended = program(tmp_path, redirection, *words)
    assert ended.returncode == status, ended.stderr
    assert b"Traceback" not in ended.stderr
    assert b"Exception" not in ended.stderr
    assert (b"error: " in ended.stderr) is (status != 0 and "2>" not in redirection)


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path):
    """Files get the lowest free number: what is printed would go into the repository."""
    assert program(tmp_path, ">&- 2>&-", "runs", "list").returncode == 0
    assert (tmp_path / "state" / "repository.sqlite").read_bytes()[:15] == b"SQLite format 3"


def test_a_locale_without_the_letters(tmp_path):
    ended = program(tmp_path, "", "runs", "show", make_run(tmp_path), **ASCII_ONLY)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"make \\xfc \\u2026" in ended.stdout


def test_a_path_that_is_no_text(tmp_path):
    ended = program(tmp_path, "", "keys", "create", SCHEDAGENT_STATE=f"{tmp_path}/\udcff")
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"/\xff/keys/" in ended.stdout, "it can be pasted and piped"
