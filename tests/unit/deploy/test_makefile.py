"""What the make targets call, with a shell that notes each command instead of running it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SHELL = """#!/bin/sh
# make calls this with -c and a command.
echo "$2" >> {log}
case $2 in
*--keep-going*) exec /bin/sh -c "$2" ;;
*"{failing}"*) exit 1 ;;
esac
"""
NOTHING = "what no command contains"


@pytest.fixture
def make(tmp_path: Path):
    """Run make; return its status and the commands that it gave to the shell."""

    def call(*words: str, failing: str = NOTHING) -> tuple[int, list[str]]:
        shell, log = tmp_path / "shell", tmp_path / "log"
        shell.write_text(SHELL.format(log=log, failing=failing))
        shell.chmod(0o755)
        argv = ["make", *words, f"SHELL={shell}", "VENV=/venv"]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, log.read_text().splitlines()

    return call


UNIT, IN_VM = "tests/unit", "tests/vm tests/e2e"


@pytest.mark.parametrize("failing", [UNIT, IN_VM, NOTHING])
def test_make_test_runs_both_parts_and_fails_if_either_does(make, failing: str) -> None:
    status, commands = make("test", failing=failing)
    ran = [part for command in commands for part in (UNIT, IN_VM) if part in command]
    assert ran == [UNIT, IN_VM]
    assert (status == 0) == (failing == NOTHING)


def test_kernels_and_set_up_are_the_programs_own_verbs(make) -> None:
    assert "/venv/bin/schedagent setup --yes" in make("setup")[1]
    assert "/venv/bin/schedagent kernels fetch 6.18" in make("kernel", "KERNEL=6.18")[1]
    assert "/venv/bin/schedagent kernels fetch --older" in make("older-kernel")[1]


def test_every_target_that_is_named_has_a_rule() -> None:
    """A phony target without a rule does nothing and ends with 0: `make picture` was one."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    [phony] = [line.partition(":")[2].split() for line in text.splitlines() if line.startswith(".PHONY:")]
    assert [target for target in phony if not re.search(rf"^{re.escape(target)}:", text, re.MULTILINE)] == []
