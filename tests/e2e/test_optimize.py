"""The whole program on a real batch of tasks, in the real micro-VM: nothing in here is a stand-in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from schedagent.cli.common import EXIT_WAITING
from schedagent.core.rules import GATES
from tests.support.paths import FIXTURES
from tests.support.real_runs import PROGRAM, Measured, begun, newest_run, qemu_of, samples, wait_for_blocks

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


@dataclass(frozen=True)
class FirstRun:
    """A run with one plan of two candidates, stopped with Ctrl-C, resumed, killed with -9 and resumed to its end.

    Args:
        run_id: of it.
        status, said: exit status and stderr of the process that was stopped.
        survivors: QEMUs that outlived the process that was killed.
        before, after: what had been measured when it was killed, and in the end.
        ended: how the last process ended; its output is the report.
    """

    run_id: str
    status: int
    said: str
    survivors: list[str]
    before: list[Measured]
    after: list[Measured]
    ended: subprocess.CompletedProcess[str]

    @property
    def report(self) -> Any:
        return json.loads(self.ended.stdout)


@pytest.fixture(scope="module")
def first(batch: Path, environment: Mapping[str, str]) -> FirstRun:
    """The run; tests/e2e/test_wheel.py has one that nobody disturbs."""
    database = Path(environment["SCHEDAGENT_STATE"], "repository.sqlite")
    argv = optimize_argv(batch, "--iterations", "1", "--candidates", "2")
    with begun(argv, environment) as stopped:
        stopped.send_signal(signal.SIGINT)
        _out, said = stopped.communicate(timeout=10)
    run_id = newest_run(database)
    resume = [*PROGRAM, "resume", run_id, "--json"]
    killed = subprocess.Popen(resume, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        stored = {block for block, _arm, _started in samples(database)}
        before = wait_for_blocks(database, len(stored) + 1, killed)
    finally:
        killed.kill()
        killed.communicate()
    survivors = qemu_of(killed.pid)
    ended = subprocess.run(resume, env=environment, capture_output=True, text=True, check=False)
    return FirstRun(run_id, stopped.returncode, said, survivors, before, samples(database), ended)


def test_a_long_tail_is_found_by_measurement_and_longest_first_is_tried_on_a_real_kernel(first: FirstRun) -> None:
    assert first.ended.returncode in (0, 3), first.ended.stderr
    assert first.report["profile"]["kind"] == "batch-long-tail"
    candidates = first.report["iterations"][0]["candidates"]
    assert "longest_first" in [candidate["policy"] for candidate in candidates]
    for candidate in candidates:
        assert [gate["status"] for gate in candidate["gates"]] == ["passed"] * len(GATES), candidate["gates"]
        assert candidate["verdict"]["pairs"] >= 6, candidate["verdict"]
        assert candidate["verdict"]["outcome"] != "failed", candidate["verdict"]


def test_the_exit_status_says_whether_something_better_was_found(first: FirstRun) -> None:
    assert first.ended.returncode == (0 if first.report["best"] else 3)


def test_ctrl_c_stops_at_once_and_says_how_to_go_on(first: FirstRun) -> None:
    assert first.status == 130
    assert f"schedagent resume {first.run_id}" in first.said
    assert "Traceback" not in first.said


def test_kill_9_while_measuring_then_resume_counts_every_sample_once(first: FirstRun) -> None:
    assert not first.survivors
    assert first.after[: len(first.before)] == first.before
    blocks = {block for block, _arm, _started in first.after}
    assert sorted(blocks) == list(range(len(blocks)))
    verdicts = [candidate["verdict"] for candidate in first.report["iterations"][0]["candidates"]]
    assert max(verdict["pairs"] + verdict["disturbed"] for verdict in verdicts) == len(blocks) - 1


def test_a_second_run_starts_from_what_the_first_one_learned(
    first: FirstRun, batch: Path, environment: Mapping[str, str]
) -> None:
    """It waits for an approval of its plan, which is all that is looked at here."""
    argv = optimize_argv(batch, "--iterations", "1", "--candidates", "1", "--approve", "plan")
    second = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == EXIT_WAITING, second.stderr
    report = json.loads(second.stdout)
    assert report["run"] != first.run_id
    assert report["iterations"][0]["learned"]
