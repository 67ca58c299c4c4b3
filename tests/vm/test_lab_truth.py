"""What a workload really did, case by case, in one small machine: each was measured, or failed, without a word before.

One machine serves all cases, because what a case leaves behind must not reach the next one either.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from schedagent.core.errors import WorkloadFailed
from schedagent.core.settings import load_settings
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.run.opening import open_lab
from verifier.lab.remarks import remarks
from verifier.lab.vm import TrialSession
from verifier.microvm import jobs

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

DASH = "/bin/dash"
SLEEPER = "sh -c 'trap \"\" TERM HUP; exec sleep 600'"


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """A state folder with a key in it."""
    state = tmp_path_factory.mktemp("state")
    (state / "keys").mkdir()
    (state / "keys/signing.key").write_text("s3cret")
    (state / "mcp.token").write_text("t0ken")
    (state / "notes").write_text("not hidden\n")
    state.chmod(0o751)
    return state


@pytest.fixture(scope="module")
def lab(state):
    return open_lab(replace(load_settings(), vm_memory_mib=512, state_dir=state))


@pytest.fixture(scope="module")
def machine(lab):
    with lab.open(hostfs=True) as machine:
        yield machine


@pytest.fixture
def session(lab, machine):
    """A session for any command, in the one machine."""

    def session(command: str, directory: Path | str = "/", **changes: object) -> TrialSession:
        session = TrialSession(lab, WorkloadCommand(command, str(directory), shell=DASH, timeout_s=60, **changes))
        session._machine = machine
        return session

    return session


def refused(session):
    with pytest.raises(WorkloadFailed) as failure:
        session.warm_up()
    return failure.value


def test_output_sent_away_with_bashs_words_under_dash_is_refused(session):
    error = refused(session("sh -c 'while :; do :; done' &> log"))
    assert re.search(r"returned while work it had started was still going on: \w+$", error.message)
    assert "in /bin/dash &> runs the command in the background" in error.hint
    assert "--shell bash" in error.hint
    sample = session("echo to the file &> log; cat log", "/tmp").run_default()
    assert sample.failure == ""


def test_an_endless_loop_beside_the_work_is_in_no_figure(session):
    work = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done"
    alone = session(work).run_default()
    beside = session(f"sh -c 'while :; do :; done' & {work}").run_default()
    assert beside.usage.left_behind == ("sh",)
    assert beside.usage.left_cpu_ns > 0.3 * beside.wall_ns
    assert beside.cpu_ns < 1.3 * beside.wall_ns
    assert {row.comm for row in beside.usage.commands} == {"dash"}
    assert (alone.usage.left_behind, alone.usage.left_cpu_ns) == ((), 0)
    assert sum(row.cpu_ns for row in alone.usage.commands) == pytest.approx(alone.cpu_ns, rel=0.2)


def test_sleepers_and_daemons_that_ignore_sigterm_are_told_and_gone_before_the_next_run(session):
    observing = session(f"setsid sleep 600 & setsid {SLEEPER} & echo done")
    sample, observation = observing.observe()
    assert sample.usage.left_behind == ("sleep",)
    assert sample.output_tail == "done\n"
    words = " ".join(remarks(observing._workload, sample, observation))
    assert "it left sleep running" in words
    left = session("cat /proc/[0-9]*/comm").run_default()
    assert "sleep" not in left.output_tail.split()


def test_a_server_of_the_prepare_command_belongs_to_the_run(session):
    sample = session("sleep 0.1; cat started", "/tmp", prepare="echo yes > started; sleep 600 &").run_default()
    assert (sample.failure, sample.output_tail, sample.usage.left_behind) == ("", "yes\n", ())


def test_a_run_is_counted_in_both_arms_the_same(session):
    sample = session("ls > /dev/null; ls > /dev/null; sleep 0.05; exit 3", ignore_failure=True).run_default()
    usage = sample.usage
    assert (sample.failure, sample.exit_status) == ("", 3)
    assert {row.comm: row.tasks for row in usage.commands} == {"dash": 1, "ls": 2, "sleep": 1}
    assert usage.voluntary_switches == sum(row.voluntary_switches for row in usage.commands) > 0
    assert min(usage.psi_cpu_us, usage.psi_io_us, usage.psi_memory_us) >= 0


def test_keys_are_not_in_the_guests_view_of_the_host(session, state):
    sample = session(f"cd {state}; ls; stat -c %a .; cat notes; cat keys/* mcp.token 2>&1").run_default()
    shown = sample.output_tail.splitlines()
    assert shown[:3] == ["notes", "751", "not hidden"]
    assert not {"s3cret", "t0ken"} & set(sample.output_tail.split())
    assert (state / "keys/signing.key").read_text() == "s3cret"


def test_nothing_left_to_build(session, tmp_path):
    (tmp_path / "Makefile").write_text("all: made\nmade:\n\techo x > made\n")
    (tmp_path / "made").write_text("x\n")
    error = refused(session("make", tmp_path))
    assert "had nothing left to do: make: Nothing to be done for 'all'." in error.message
    assert "--prepare 'make clean'" in error.hint
    session("make", tmp_path, prepare="rm made").warm_up()


def test_standard_input_is_empty_and_the_failure_says_so(session):
    error = refused(session("sh -c 'read x || { echo EOFError: nothing to read; exit 1; }'"))
    assert "standard input is /dev/null" in error.hint


def test_a_wait_without_any_cpu_time_ends_early(session, monkeypatch):
    monkeypatch.setattr("verifier.lab.vm.IDLE_LIMIT_S", 2.0)
    error = refused(session("echo waiting; sleep 50"))
    assert "waited for a long time, without using any CPU time" in error.message
    assert "    waiting" in error.message


def test_space_for_files_runs_full_by_the_file_that_is_named(session):
    error = refused(session("fallocate -l 200M big; dd if=/dev/zero of=rest bs=1M", "/tmp"))
    assert "the lab's space for files ran full; most of it is in /tmp/big" in error.message
    assert "No space left on device" in error.message
    assert "--memory" in error.hint


def test_memory_runs_full(session):
    """The kernel takes all of it in one call: a program that does so itself may wait a minute for its own pages."""
    all_of_it = 'os.sysconf("SC_PHYS_PAGES") * 4096'
    flags = "mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE"
    take = f"import mmap, os; mmap.mmap(-1, {all_of_it}, flags={flags}); input()"
    error = refused(session(f"fallocate -l 150M /dev/shm/some; {sys.executable} -ISc '{take}'"))
    assert "the lab's memory ran full" in error.message
    assert "--memory" in error.hint


def test_a_hundred_megabytes_of_output_are_counted_and_cut(session):
    observing = session("echo first; head -c 100000000 /dev/zero; echo last")
    sample, observation = observing.observe()
    assert sample.failure == ""
    assert sample.usage.output_bytes == 100_000_000 + len("first\nlast\n")
    assert sample.output_tail.endswith("\0last\n")
    assert any("of the 100.0 MB it printed" in words for words in remarks(observing._workload, sample, observation))


def test_bytes_that_are_no_text_arrive(session):
    sample = session(r"printf 'a\000b\377\033[31m\303\251\n'; echo to stderr > /dev/stderr").run_default()
    assert sample.output_tail == "a\0b\\xff\x1b[31mé\nto stderr\n"


def test_braces_run_once_under_dash_and_eight_times_under_bash(session):
    command = "for i in {1..8}; do echo run; done"
    observing = session(command)
    sample, observation = observing.observe()
    assert sample.output_tail == "run\n"
    assert any(
        "{1..8}" in words and "--shell bash" in words for words in remarks(observing._workload, sample, observation)
    )
    bash = session(command)
    bash._workload = replace(bash._workload, shell="/bin/bash")
    assert bash.run_default().output_tail == "run\n" * 8


def test_cleanup_runs_after_the_clock_has_stopped_and_setup_stays(lab, machine):
    setup = jobs.RunSetup(
        "echo kept > /tmp/kept; rm -f /tmp/gone", "/", lab.environment, 20, os.getuid(), os.getgid(), []
    )
    try:
        assert machine.call(setup, 60) == {"status": 0, "output": ""}
        workload = WorkloadCommand(
            "cat kept; echo lost > kept", "/tmp", cleanup="cat kept; sleep 1; exit 4", timeout_s=20
        )
        session = TrialSession(lab, workload)
        session._machine = machine
        sample, answer = session._run(None)
        assert (sample.output_tail, answer.cleanup_status, answer.cleanup_output) == ("kept\n", 4, "lost\n")
        assert sample.wall_ns < 1e9
        assert session.run_default().output_tail == "kept\n"
    finally:
        machine.call(replace(setup, command="rm -f /tmp/kept; exit 0"), 60)


def test_a_command_that_cannot_be_started_names_its_shell(session):
    starting = session("true")
    starting._workload = replace(starting._workload, shell="/no/shell")
    assert "/no/shell" in refused(starting).message
