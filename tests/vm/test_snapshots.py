"""Snapshots on a real disk with a real QEMU: two builders at once, a killed one, damage, and a full disk."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from schedagent.core.errors import SetupError
from schedagent.core.process import proc
from schedagent.core.settings import load_settings
from tests.support.paths import ROOT
from verifier.microvm import jobs
from verifier.microvm.image import SnapshotStore, sound
from verifier.microvm.kernels import default_kernel

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

SIZE = {"cpus": 1, "memory_mib": 256, "kvm": False, "hostfs": False}
OPEN = f"""
import logging, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
logging.basicConfig(level=logging.INFO)
from schedagent.core.settings import load_settings
from verifier.microvm import jobs
from verifier.microvm.image import SnapshotStore
from verifier.microvm.kernels import default_kernel
with SnapshotStore(Path(sys.argv[1])).open(default_kernel(load_settings()), **{SIZE}) as machine:
    print(machine.call(jobs.Hello(time.time_ns()), 30)["cpus"])
"""


def opener(folder):
    command = [sys.executable, "-c", OPEN, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, pattern, within_s):
    deadline = time.monotonic() + within_s
    while not (found := list(path.glob(pattern))):
        assert time.monotonic() < deadline, f"no {pattern} in {path}"
        time.sleep(0.05)
    return found[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("snapshots")


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_looks_finished_and_two_others_build_one(folder):
    with opener(folder) as killed:
        state = wait_for(folder, "*/state", 30)
        time.sleep(1)
        killed.send_signal(signal.SIGKILL)
    assert not sound(state.parent)
    openers = [opener(folder) for _ in range(2)]
    said = [process.communicate(timeout=200) for process in openers]
    assert [output for output, _ in said] == ["1\n", "1\n"], said
    assert sum("booting" in errors for _, errors in said) == 1
    assert [place for place in folder.iterdir() if place.is_dir()] == [state.parent]
    assert sound(state.parent)


@pytest.mark.slow
def test_damage_is_repaired_even_after_the_check(folder, caplog):
    """Runs behind the test above, whose snapshot it damages twice."""
    kernel, store = default_kernel(load_settings()), SnapshotStore(folder)
    with store.open(kernel, **SIZE):
        pass
    state = next(folder.glob("*/state"))
    os.truncate(state, 1 << 20)
    with caplog.at_level(logging.WARNING), store.open(kernel, **SIZE) as machine:
        assert machine.call(jobs.Hello(time.time_ns()), 30)["cpus"] == 1
    assert "could not be restored" in caplog.text
    assert "is damaged (state)" in caplog.text
    assert sound(state.parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if proc.run(["mount", "-t", "tmpfs", "-o", "size=80m", "small", small], timeout_s=10).returncode:
        pytest.skip("may not mount here")
    try:
        with pytest.raises(SetupError, match=r"No space left|could not write"):
            SnapshotStore(small).open(default_kernel(load_settings()), **SIZE)
        assert not [place for place in small.iterdir() if place.is_dir()]
    finally:
        proc.run(["umount", small], timeout_s=10)
