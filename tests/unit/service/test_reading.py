"""Looking at the real /proc, and at cgroups whose files a test writes around real threads."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import contextmanager

import pytest

from schedagent.core.recommendation import ENDED, MACHINE
from schedagent.service import reading as looking
from schedagent.service.reading import MOST_COMMANDS, OTHERS, Looker, by_command

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


def looks_of(looker, wait_s=0.4):
    assert looker.look() == [], "there is no interval before the first look"
    time.sleep(wait_s)
    return {look.subject: look for look in looker.look()}


def test_the_machine_is_measured_with_its_commands(tmp_path):
    with spinning(tmp_path, "spinner"):
        [look] = looks_of(Looker((), lambda: 7.0)).values()
    assert (look.subject, look.at) == (MACHINE, 7.0)
    assert 0.3 < look.elapsed_s < 5
    assert 0.02 < look.commands["spinner"] <= look.elapsed_s * 1.05
    assert look.delay_s >= 0
    assert 0 <= look.pressure <= 1
    assert look.cpu_s <= look.elapsed_s * os.cpu_count() * 1.2


def test_a_cgroup_is_measured_apart(tmp_path, monkeypatch):
    group = tmp_path / "cgroups" / "build.slice"
    group.mkdir(parents=True)
    monkeypatch.setattr(looking, "cgroup_root", lambda: tmp_path / "cgroups")
    with spinning(tmp_path, "compiler") as pid:
        (group / "cgroup.threads").write_text(f"{pid}\n")
        (group / "cpu.pressure").write_text("some avg10=0.00 total=1000000\n")
        (group / "cpu.stat").write_text("usage_usec 5000000\nuser_usec 0\n")
        looker = Looker(("/build.slice", "/not/there"))
        looker.look()
        time.sleep(0.3)
        (group / "cpu.pressure").write_text("some avg10=0.00 total=1100000\n")
        (group / "cpu.stat").write_text("usage_usec 8000000\nuser_usec 0\n")
        looks = {look.subject: look for look in looker.look()}
    look = looks["/build.slice"]
    assert look.pressure == pytest.approx(0.1 / look.elapsed_s, rel=0.01)
    assert set(look.commands) == {"compiler", ENDED}
    assert look.cpu_s == pytest.approx(3.0)
    assert (looks["/not/there"].delay_s, looks["/not/there"].commands) == (None, {})


def test_cpu_time_by_command():
    assert by_command({ME: 5}, {ME: 5}, 0.0) == {}
    assert sum(by_command({ME: 5_000_000_000}, {ME: 7_000_000_000}, None).values()) == pytest.approx(2.0)
    assert sum(by_command({ME: 9_000_000_000}, {ME: 1_000_000_000}, None).values()) == pytest.approx(1.0), (
        "a new thread"
    )
    gone = 1 << 30
    assert by_command({}, {gone: 1_000_000_000}, 3.0) == {ENDED: pytest.approx(3.0)}


def test_the_number_of_commands_is_bounded(monkeypatch):
    monkeypatch.setattr(looking, "_command", lambda thread: f"c{thread}")
    told = by_command({}, {thread: thread * 1_000_000 for thread in range(1, 100)}, None)
    assert len(told) == MOST_COMMANDS + 1
    assert (told["c99"], "c1" in told) == (pytest.approx(0.099), False)
    assert sum(told.values()) == pytest.approx(sum(range(100)) / 1000)
    assert OTHERS in told


def test_a_command_s_name_is_made_printable(tmp_path):
    with spinning(tmp_path, "a\x1b[2Jb"):
        time.sleep(0.05)
        [look] = looks_of(Looker(()), 0.2).values()
    assert "a?[2Jb" in look.commands
