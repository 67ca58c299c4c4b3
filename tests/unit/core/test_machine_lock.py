"""The lab's lock: one holder on a machine, known to those who wait, whatever other users put in its place."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import threading
import time
from contextlib import contextmanager

import pytest

from schedagent.core.errors import SetupError
from schedagent.core.process import machine_lock
from schedagent.core.process.machine_lock import FILE_NAME, LAB_LOCK, MachineLock
from schedagent.run.nodes import TimeBudget
from tests.support.as_user import let_others_in
from tests.support.verifier_service_process import wait_for

NOBODY = pwd.getpwnam("nobody")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")


@pytest.fixture
def shared(tmp_path):
    """A folder as /run/lock is: every user may make files there, and remove only their own."""
    folder = tmp_path / "lock"
    folder.mkdir()
    folder.chmod(0o1777)
    let_others_in(tmp_path)
    return folder


def lock_at(*folders, task="run 1"):
    lock = MachineLock(folders)
    lock.task = task
    lock.lines = []
    lock.on_wait = lambda line, _seconds: lock.lines.append(line)
    return lock


@contextmanager
def other_process(lock, user=None, *, until_killed=False):
    """A process that holds the lock from before this is entered until `release` is called or the block ends."""
    held, release = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if user:
                os.setgroups([])
                os.setgid(user.pw_gid)
                os.setuid(user.pw_uid)
            os.umask(0o077)
            with lock.held():
                os.write(held[1], b"x")
                os.read(release[0], 1)
        finally:
            os._exit(0)
    os.close(held[1])
    assert os.read(held[0], 1) == b"x", "the other process could not take the lock"
    try:
        yield lambda: os.kill(child, signal.SIGKILL) if until_killed else os.write(release[1], b"x")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for end in (held[0], *release):
            os.close(end)


@contextmanager
def waiting(lock):
    """A thread that waits for the lock, and then has it for a moment."""

    def wait():
        with lock.held():
            lock.lines.append("held")

    thread = threading.Thread(target=wait)
    thread.start()
    wait_for(lambda: lock.lines)
    yield
    thread.join(10)
    assert lock.lines[-1] == "held"


def test_who_waits_reads_who_holds_it_and_again_after_a_while(shared, monkeypatch):
    monkeypatch.setattr(machine_lock, "REPEAT_S", 0.05)
    ours = lock_at(shared)
    with other_process(lock_at(shared, task="run 20260101-000000-abcdef")) as release, waiting(ours):
        wait_for(lambda: len(ours.lines) >= 3)
        release()
    me = pwd.getpwuid(os.geteuid()).pw_name
    for line in ours.lines[:3]:
        assert "it measures for run 20260101-000000-abcdef (process " in line
        assert f" of {me}), for " in line
    assert ours.lines[-2] == "", "the end of the wait is reported"


@pytest.mark.parametrize("killed", [False, True])
def test_the_next_one_gets_it_however_the_holder_ends_and_finds_no_old_name(shared, killed):
    ours, theirs = lock_at(shared), lock_at(shared, task="run old")
    with other_process(theirs, until_killed=killed) as end, waiting(ours):
        end()
    assert (shared / FILE_NAME).read_bytes() == b""
    with other_process(lock_at(shared, task="run new")) as release, waiting(again := lock_at(shared)):
        release()
    assert "run new" in again.lines[0]


@as_root
def test_two_users_see_each_other(shared):
    ours = lock_at(shared)
    with other_process(lock_at(shared, task="run theirs"), NOBODY) as release, waiting(ours):
        release()
    assert "run theirs" in ours.lines[0]
    assert " of nobody)" in ours.lines[0]
    status = (shared / FILE_NAME).stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (NOBODY.pw_uid, 0o666), "whatever the umask is"
    with ours.held():
        pass


@as_root
def test_an_ordinary_user_takes_the_file_that_root_made(shared):
    with lock_at(shared).held():
        pass
    ours = lock_at(shared)
    with other_process(lock_at(shared, task="run theirs"), NOBODY) as release, waiting(ours):
        release()
    assert "run theirs" in ours.lines[0]


def test_the_clock_of_a_budget_stands_still_while_the_run_waits(shared, monkeypatch):
    monkeypatch.setattr(LAB_LOCK, "_folders", (shared,))
    lines = []
    monkeypatch.setattr(LAB_LOCK, "on_wait", lambda line, _seconds: lines.append(line))
    monkeypatch.setattr(LAB_LOCK, "waited_s", 0.0)
    out_of_time = TimeBudget(0.4)
    with other_process(lock_at(shared)) as release:
        threading.Timer(0.8, release).start()
        with LAB_LOCK.held():
            assert lines
            assert not out_of_time(), "what it waited counts"
    assert 0.5 < LAB_LOCK.waited_s < 5
    time.sleep(0.5)
    assert out_of_time()


def test_a_wait_that_is_stopped_counts_and_holds_nothing(shared):
    ours = lock_at(shared)

    def interrupt(line, _seconds):
        ours.lines.append(line)
        if len(ours.lines) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    ours.on_wait = interrupt
    with other_process(lock_at(shared)):
        with pytest.raises(KeyboardInterrupt), ours.held():
            pytest.fail("another process holds it")
        assert ours.lines[-1] == ""
        assert ours.waited_s > 0


HOSTILE = {
    "link": lambda path, victim: path.symlink_to(victim),
    "hard link": lambda path, victim: path.hardlink_to(victim),
    "folder": lambda path, _victim: path.mkdir(),
    "pipe": lambda path, _victim: os.mkfifo(path),
    "dangling": lambda path, _victim: path.symlink_to("/tmp/nowhere/x"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_somebody_else_put_there_is_left_alone(shared, tmp_path, kind):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    HOSTILE[kind](shared / FILE_NAME, victim)
    second = tmp_path / "second"
    second.mkdir()
    second.chmod(0o1777)
    with lock_at(shared, second).held():
        assert (second / FILE_NAME).stat().st_size > 0
        assert victim.read_text() == "precious"
    with pytest.raises(SetupError, match="lock cannot be opened") as caught, lock_at(shared).held():
        pytest.fail("it is no lock")
    assert str(shared / FILE_NAME) in caught.value.message


def test_a_folder_that_is_not_everybody_s_holds_it_only_if_it_was_put_there(shared, tmp_path):
    private = tmp_path / "private"
    private.mkdir(mode=0o755)
    with lock_at(private, shared).held():
        assert not (private / FILE_NAME).exists(), "another user would choose another file"
    (private / FILE_NAME).touch()
    (private / FILE_NAME).chmod(0o666)
    with lock_at(private, shared).held():
        assert (private / FILE_NAME).stat().st_size > 0


@as_root
def test_a_file_that_a_user_may_only_read_locks_all_the_same(shared):
    (shared / FILE_NAME).touch(mode=0o644)
    ours = lock_at(shared)
    with other_process(lock_at(shared, task="run theirs"), NOBODY) as release, waiting(ours):
        release()
    assert "it measures for another process" in ours.lines[0]


def test_a_file_that_was_removed_is_not_a_second_lock(shared):
    ours = lock_at(shared)
    with other_process(lock_at(shared)) as release, waiting(ours):
        (shared / FILE_NAME).unlink()
        release()
    assert (shared / FILE_NAME).exists(), "it was taken again, under its name"


RECORDS = {
    b"": "another process",
    b"\xff\xfe": "another process",
    b"[1]": "another process",
    b"[" * 900: "another process",
    b'{"pid": "1", "uid": 0, "task": "x", "since": 0}': "another process",
    b'{"pid": 1, "uid": 99999999999999, "task": "x", "since": 0}': "x (process 1 of user id 99999999999999), for ",
    b'{"pid": 1, "uid": 0, "task": "a\\u001b]52;c;eA==\\u0007b", "since": 0}': "a]52;c;eA==b (process 1 of root), for ",
    b'{"pid": 1, "uid": 0, "task": "x", "since": 99999999999}': "x (process 1 of root), for 0 s",
}


@pytest.mark.parametrize("record", RECORDS, ids=range(len(RECORDS)))
def test_a_record_is_only_shown_and_nothing_in_it_reaches_the_terminal(shared, record):
    ours = lock_at(shared)
    with other_process(lock_at(shared)) as release:
        (shared / FILE_NAME).write_bytes(record)
        with waiting(ours):
            release()
    assert RECORDS[record] in ours.lines[0]
    assert ours.lines[0].isprintable()
