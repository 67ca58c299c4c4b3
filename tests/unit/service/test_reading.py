"""Looking at the real /proc, and at cgroups whose files a test writes around real threads."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import contextmanager

import pytest

from schedagent.core.recommendation import ENDED, MACHINE
from schedagent.service import reading as module
from schedagent.service.reading import MOST_COMMANDS, OTHERS, HostMeter, by_command

ME = os.getpid()


@contextmanager
def spinning(folder, name):
    """Run a process of this command name that uses all the CPU it gets."""
    program = folder / name
    program.symlink_to("/bin/sh")
    process = subprocess.Popen([program, "-c", "while :; do :; done"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def readings_of(meter, wait_s=0.4):
    assert meter.read() == [], "there is no interval before the first reading"
    time.sleep(wait_s)
    return {reading.subject: reading for reading in meter.read()}


def test_the_machine_is_measured_with_its_commands(tmp_path):
    with spinning(tmp_path, "spinner"):
        [reading] = readings_of(HostMeter((), lambda: 7.0)).values()
    assert (reading.subject, reading.at) == (MACHINE, 7.0)
    assert 0.3 < reading.elapsed_s < 5
    assert 0.02 < reading.commands["spinner"] <= reading.elapsed_s * 1.05
    assert reading.delay_s >= 0
    assert 0 <= reading.pressure <= 1
    assert reading.cpu_s <= reading.elapsed_s * os.cpu_count() * 1.2


def test_a_cgroup_is_measured_apart(tmp_path, monkeypatch):
    group = tmp_path / "cgroups" / "build.slice"
    group.mkdir(parents=True)
    monkeypatch.setattr(module, "cgroup_root", lambda: tmp_path / "cgroups")
    with spinning(tmp_path, "compiler") as pid:
        (group / "cgroup.threads").write_text(f"{pid}\n")
        (group / "cpu.pressure").write_text("some avg10=0.00 total=1000000\n")
        (group / "cpu.stat").write_text("usage_usec 5000000\nuser_usec 0\n")
        meter = HostMeter(("/build.slice", "/not/there"))
        meter.read()
        time.sleep(0.3)
        (group / "cpu.pressure").write_text("some avg10=0.00 total=1100000\n")
        (group / "cpu.stat").write_text("usage_usec 8000000\nuser_usec 0\n")
        readings = {reading.subject: reading for reading in meter.read()}
    reading = readings["/build.slice"]
    assert reading.pressure == pytest.approx(0.1 / reading.elapsed_s, rel=0.01)
    assert set(reading.commands) == {"compiler", ENDED}
    assert reading.cpu_s == pytest.approx(3.0)
    assert (readings["/not/there"].delay_s, readings["/not/there"].commands) == (None, {})


def test_cpu_time_by_command():
    assert by_command({ME: 5}, {ME: 5}, 0.0) == {}
    assert sum(by_command({ME: 5_000_000_000}, {ME: 7_000_000_000}, None).values()) == pytest.approx(2.0)
    assert sum(by_command({ME: 9_000_000_000}, {ME: 1_000_000_000}, None).values()) == pytest.approx(1.0), (
        "a new thread"
    )
    gone = 1 << 30
    assert by_command({}, {gone: 1_000_000_000}, 3.0) == {ENDED: pytest.approx(3.0)}


def test_the_number_of_commands_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "_command", lambda thread: f"c{thread}")
    told = by_command({}, {thread: thread * 1_000_000 for thread in range(1, 100)}, None)
    assert len(told) == MOST_COMMANDS + 1
    assert (told["c99"], "c1" in told) == (pytest.approx(0.099), False)
    assert sum(told.values()) == pytest.approx(sum(range(100)) / 1000)
    assert OTHERS in told


def test_a_command_s_name_is_made_printable(tmp_path):
    with spinning(tmp_path, "a\x1b[2Jb"):
        time.sleep(0.05)
        [reading] = readings_of(HostMeter(()), 0.2).values()
    assert "a?[2Jb" in reading.commands
