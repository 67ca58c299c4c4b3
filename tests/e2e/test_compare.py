"""`schedagent compare` on a real build: a program, a bundled policy and a source, beside the default scheduler."""

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

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from kernel_bpf.policies.library import load_library
from schedagent.core.settings import load_settings
from schedagent.run.opening import open_lab
from tests.support.loaders import build_loader
from tests.support.paths import FIXTURES
from tests.support.real_runs import PROGRAM, Measured, begun, newest_run, qemu_of, samples, wait_for_blocks

pytestmark = [pytest.mark.vm, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

BUILD = "make -j2"
PARTS = " CFLAGS=-O0 build/rng.o build/strbuf.o build/checksum.o"
"""All of the build takes ten emulated seconds, four times a block."""

LIMIT_S = 600
"""For a block of runs, with all gates before it."""


@dataclass(frozen=True)
class Comparison:
    """A comparison, stopped with Ctrl-C, resumed, killed with -9 and resumed to its end.

    Args:
        run_id: of it.
        status, complaint: exit status and stderr of the process that was stopped.
        left: QEMUs that outlived the process that was stopped, or the one that was killed.
        before, after: what had been measured when it was killed, and in the end.
        ended: how the last process ended; its output is the report.
        shown: what runs show printed afterwards.
    """

    run_id: str
    status: int
    complaint: str
    left: list[str]
    before: list[Measured]
    after: list[Measured]
    ended: subprocess.CompletedProcess[str]
    shown: str

    @property
    def report(self) -> Any:
        return json.loads(self.ended.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build, a loader with the object that it loads, and a source of its own."""
    folder = tmp_path_factory.mktemp("compare")
    folder.chmod(0o755)
    shutil.copytree(FIXTURES / "cproject", folder / "cproject")
    for name in ("raw_fifo.bpf.c", "raw_fifo.toml"):
        shutil.copy(FIXTURES / "policies" / "correct" / name, folder)
    kernel = open_lab(load_settings()).kernel
    target = prepare_target(kernel.vmlinuz, kernel.release, load_settings().cache_dir)
    (folder / "fifo.bpf.o").write_bytes(compile_policy(load_library()["fifo"].source, "fifo", target).object_bytes)
    build_loader(folder, "scx_ours")
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Mapping[str, str]:
    """A state folder of its own, and the loader in PATH."""
    state = str(tmp_path_factory.mktemp("state"))
    return {**os.environ, "SCHEDAGENT_STATE": state, "PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def compared(folder: Path, environment: Mapping[str, str]) -> Comparison:
    database = Path(environment["SCHEDAGENT_STATE"], "repository.sqlite")
    schedulers = [f"scx_ours {folder}/fifo.bpf.o good", "longest_first", str(folder / "raw_fifo.bpf.c")]
    argv = [*PROGRAM, "compare", BUILD + PARTS, "--prepare", "make clean", "--dir", str(folder / "cproject")]
    argv += [word for scheduler in schedulers for word in ("--scheduler", scheduler)]
    argv += ["--budget-minutes", "1.5", "--json"]
    with begun(argv, environment, LIMIT_S) as stopped:
        stopped.send_signal(signal.SIGINT)
        _out, complaint = stopped.communicate(timeout=10)
    left = qemu_of(stopped.pid)
    run_id = newest_run(database)
    resume = [*PROGRAM, "resume", run_id, "--json"]
    killed = subprocess.Popen(resume, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        stored = {block for block, _arm, _started in samples(database)}
        before = wait_for_blocks(database, len(stored) + 1, killed, LIMIT_S)
    finally:
        killed.kill()
        killed.communicate()
    left += qemu_of(killed.pid)
    ended = subprocess.run(resume, env=environment, capture_output=True, text=True, check=False)
    shown = subprocess.run(
        [*PROGRAM, "runs", "show", run_id], env=environment, capture_output=True, text=True, check=True
    )
    after = samples(database)
    return Comparison(run_id, stopped.returncode, complaint, left, before, after, ended, shown.stdout)


def test_each_arm_is_measured_beside_the_default(compared: Comparison) -> None:
    assert compared.ended.returncode in (0, 3), compared.ended.stderr
    (iteration,) = compared.report["iterations"]
    arms = {candidate["policy"]: candidate for candidate in iteration["candidates"]}
    assert list(arms) == ["scx_ours", "longest_first", "raw_fifo"]
    assert {name: arm["origin"] for name, arm in arms.items()} == {
        "scx_ours": "program", "longest_first": "configure", "raw_fifo": "brought",
    }  # fmt: skip
    for arm in arms.values():
        assert arm["verdict"]["outcome"] != "failed", arm["verdict"]
        assert arm["verdict"]["pairs"] >= 1, arm["verdict"]
    measured = {sample["arm"] for block in iteration["blocks"] for sample in block["samples"] if not sample["failure"]}
    assert {"default", *(arm["key"] for arm in arms.values())} <= measured


def test_the_program_is_measured_unverified_and_the_source_goes_through_the_gates(compared: Comparison) -> None:
    ours, _bundled, source = compared.report["iterations"][0]["candidates"]
    assert (ours["gates"], ours["program"]["arguments"][-1]) == ([], "good")
    assert len(ours["program"]["digest"]) == 64
    assert source["program"] is None
    assert {gate["status"] for gate in source["gates"]} <= {"passed", "failed"}


def test_there_is_one_table_and_one_answer(compared: Comparison) -> None:
    assert compared.shown.count("Candidates against the default scheduler") == 1
    assert compared.shown.count("Verdict:") == 1
    assert "loads its policy itself, which no gate saw" in compared.shown
    assert "the program of scx_ours itself used" in compared.shown
    assert compared.report["best"] is None or compared.report["best"]["policy"] in compared.shown


def test_ctrl_c_and_kill_leave_nothing_running_and_nothing_is_measured_twice(compared: Comparison) -> None:
    assert compared.status == 130
    assert f"schedagent resume {compared.run_id}" in compared.complaint
    assert compared.left == []
    assert compared.after[: len(compared.before)] == compared.before
