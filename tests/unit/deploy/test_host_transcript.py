"""The transcript of the host test is a file that git ignores, complete up to the last line that was written."""

from __future__ import annotations

import subprocess
import sys

from tests.host.transcript import PATH, Transcript
from tests.support.paths import ROOT


def test_lines_are_in_the_file_at_once(tmp_path, capsys):
    seconds = iter((100.0, 100.0, 161.25))
    transcript = Transcript(tmp_path / "build/walk.txt", lambda: next(seconds))
    transcript.line("== Install it")
    transcript.line("# dpkg --install schedagent.deb")
    text = (tmp_path / "build/walk.txt").read_text()
    assert text == "   0.0 == Install it\n  61.2 # dpkg --install schedagent.deb\n" == capsys.readouterr().err
    transcript.close()


def test_each_run_begins_a_new_one(tmp_path):
    for word in ("first", "second"):
        transcript = Transcript(tmp_path / "walk.txt")
        transcript.line(word)
        transcript.close()
    assert "first" not in (tmp_path / "walk.txt").read_text()


def test_it_is_not_committed():
    done = subprocess.run(["git", "check-ignore", "--quiet", PATH], cwd=ROOT, check=False)
    assert done.returncode == 0
    assert "build/host-test.txt" in (ROOT / "Makefile").read_text()


def test_the_walk_can_be_collected():
    """It is run by hand, so nothing else would notice that its modules do not find each other."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "host", "tests/host"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert "test_uninstalling_it" in done.stdout
