"""The README's commands, as they stand there, on a copy of the bundled C project; only the time they take is cut."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.paths import FIXTURES, ROOT
from tests.support.readme import commands

OPTIMIZE = 'schedagent optimize "make -j" --dir ~/src/project --prepare "make clean"'
SHORT = "--iterations 1 --candidates 1 --budget-minutes 0.3"

pytestmark = [pytest.mark.vm, pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with a project, and a `schedagent` and a `sudo` on its PATH."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(FIXTURES / "cproject", folder / "src" / "project")
    programs = {"schedagent": f'exec {shlex.quote(sys.executable)} -m schedagent "$@"', "sudo": 'exec "$@"'}
    for name, script in programs.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(stat.S_IRWXU)
    return folder


@pytest.fixture(scope="module")
def environment(home: Path) -> Mapping[str, str]:
    """Everything is the home's own but the cache, which holds the kernel."""
    cache = os.environ.get("SCHEDAGENT_CACHE", str(Path.home() / ".cache" / "schedagent"))
    changes = {"HOME": str(home), "SCHEDAGENT_CACHE": cache, "PYTHONPATH": str(ROOT)}
    return {**os.environ, **changes, "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}


def shell(command: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    assert command.partition(" --iterations")[0] in commands() or "RUN" not in command
    return subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def optimized(environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return shell(f"{OPTIMIZE} {SHORT}", environment)


def run_id(done: subprocess.CompletedProcess[str]) -> str:
    found = re.search(r"^Run (\S+):", done.stdout, re.MULTILINE)
    assert found, done.stdout + done.stderr
    return found[1]


def test_optimize_ends_with_a_verdict(optimized: subprocess.CompletedProcess[str]) -> None:
    assert optimized.returncode in (0, 3), optimized.stderr
    assert "Verdict: " in optimized.stdout


def test_make_demo_is_the_same_on_the_bundled_project(environment: Mapping[str, str]) -> None:
    printed = subprocess.run(
        ["make", "-n", "demo"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert OPTIMIZE.partition(" ")[2].replace("~/src/project", "tests/fixtures/cproject") in printed


def test_runs_show_has_it_again(optimized: subprocess.CompletedProcess[str], environment: Mapping[str, str]) -> None:
    shown = shell(f"schedagent runs show {run_id(optimized)}", environment)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == optimized.stdout


def test_verify_takes_a_policy_of_the_library(environment: Mapping[str, str]) -> None:
    done = shell("schedagent verify longest_first --json", environment)
    assert done.returncode in (0, 3), done.stderr  # 3: a busy host may close the proving ground
    assert json.loads(done.stdout)["gates"]


def test_deploy_says_what_it_lacks_where_nothing_was_installed(
    optimized: subprocess.CompletedProcess[str], environment: Mapping[str, str]
) -> None:
    """On a machine with schedagentd `make test-host` deploys."""
    done = shell(f"sudo schedagent deploy {run_id(optimized)}", environment)
    assert done.returncode in (1, 3)
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
