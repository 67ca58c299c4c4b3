"""The whole program on a real batch of tasks, in the real micro-VM: nothing in here is a stand-in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from schedagent.core.rules import GATES
from tests.support.paths import FIXTURES

PROGRAM = [sys.executable, "-m", "schedagent"]

pytestmark = [pytest.mark.vm, pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long-tail batch, built: nine short tasks and a long one, the same program with other arguments."""
    folder = tmp_path_factory.mktemp("batch") / "longtail"
    shutil.copytree(FIXTURES / "longtail", folder)
    subprocess.run(["make", "-s", "-C", str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """A state folder of its own; the cache (kernel, snapshots) is the user's."""
    return {**os.environ, "SCHEDAGENT_STATE": str(tmp_path_factory.mktemp("state"))}


def optimize_argv(batch: Path, *more: str) -> list[str]:
    return [*PROGRAM, "optimize", "--workload", "./batch.sh 9 100 700", "--dir", str(batch), "--json", *more]


@pytest.fixture(scope="module")
def first(batch: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A first run with one plan of two candidates."""
    argv = optimize_argv(batch, "--iterations", "1", "--candidates", "2")
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)


def test_a_long_tail_is_found_by_measurement_and_longest_first_is_tried_on_a_real_kernel(
    first: subprocess.CompletedProcess[str],
) -> None:
    assert first.returncode in (0, 3), first.stderr
    report = json.loads(first.stdout)
    assert report["profile"]["kind"] == "batch-long-tail"
    assert "longest_first" in [candidate["policy"] for candidate in report["iterations"][0]["candidates"]]
    for candidate in report["iterations"][0]["candidates"]:
        assert [gate["status"] for gate in candidate["gates"]] == ["passed"] * len(GATES), candidate["gates"]
        assert candidate["verdict"]["pairs"] >= 6, candidate["verdict"]
        assert candidate["verdict"]["outcome"] != "failed", candidate["verdict"]


def test_the_exit_status_says_whether_something_better_was_found(first: subprocess.CompletedProcess[str]) -> None:
    report = json.loads(first.stdout)
    assert first.returncode == (0 if report["best"] else 3)


def test_a_second_run_starts_from_what_the_first_one_learned(
    first: subprocess.CompletedProcess[str], batch: Path, environment: Mapping[str, str]
) -> None:
    argv = optimize_argv(batch, "--iterations", "1", "--candidates", "1", "--budget-minutes", "0.5")
    second = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode in (0, 3), second.stderr
    assert json.loads(second.stdout)["iterations"][0]["learned"]


def test_kill_9_while_measuring_then_resume_counts_every_sample_once(
    batch: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    environment = {**environment, "SCHEDAGENT_STATE": str(tmp_path)}
    argv = optimize_argv(batch, "--iterations", "1", "--candidates", "1")
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        before = wait_for_blocks(tmp_path / "repository.sqlite", 2, process)
    finally:
        process.kill()
        process.wait()
    assert not qemu_of(process.pid)
    run_id = query(tmp_path / "repository.sqlite", "select id from runs")[0][0]
    resumed = subprocess.run(
        [*PROGRAM, "resume", run_id, "--json"], env=environment, capture_output=True, text=True, check=False
    )
    assert resumed.returncode in (0, 3), resumed.stderr
    after = samples(tmp_path / "repository.sqlite")
    assert after[: len(before)] == before
    blocks = {block for block, _arm, _started in after}
    assert sorted(blocks) == list(range(len(blocks)))
    verdict = json.loads(resumed.stdout)["iterations"][0]["candidates"][0]["verdict"]
    assert verdict["pairs"] + verdict["disturbed"] == len(blocks) - 1


def test_ctrl_c_stops_at_once_and_says_how_to_go_on(
    batch: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    environment = {**environment, "SCHEDAGENT_STATE": str(tmp_path)}
    argv = optimize_argv(batch, "--iterations", "1", "--candidates", "1")
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for_blocks(tmp_path / "repository.sqlite", 1, process)
        process.send_signal(signal.SIGINT)
        _out, said = process.communicate(timeout=10)
    assert process.returncode == 130
    run_id = query(tmp_path / "repository.sqlite", "select id from runs")[0][0]
    assert f"schedagent resume {run_id}" in said
    assert "Traceback" not in said


def query(database: Path, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(database) as connection:
        return list(connection.execute(sql))


def samples(database: Path) -> list[tuple[int, str, str]]:
    return query(database, "select block, arm, started_at from samples order by block, position")


def wait_for_blocks(database: Path, count: int, process: subprocess.Popen[Any]) -> list[tuple[int, str, str]]:
    """Wait until a run has stored `count` blocks, and return its samples."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended early"
        try:
            found = samples(database)
        except sqlite3.OperationalError:  # not created yet
            found = []
        if len({block for block, _arm, _started in found}) >= count:
            return found
        time.sleep(0.1)
    raise AssertionError(f"no {count} blocks within 300 s")


def qemu_of(parent: int) -> list[str]:
    """QEMU processes that outlived their parent for two seconds."""
    time.sleep(2)
    listing = subprocess.run(["ps", "-eo", "ppid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if line.split()[0] == str(parent) and "qemu-system" in line]
