"""Real processes of schedagentd, killed at each of their steps, over a scripted kernel of another process.

After each fault: the kernel runs the default scheduler or what proved itself, record and kernel agree, and no accepted
deployment and no used token is forgotten. test_fault_matrix.py has the other faults, at the steps that people know."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import suppress
from itertools import count

import pytest

from schedagent.core.errors import RecordError, Refused, SchedagentError, SetupError, TokenError
from schedagent.schedagentd.record import FILE, Record
from tests.support.daemon_processes import Daemon, check_after_death, request_of, until
from tests.support.deploy_orders import CANARY, content_of
from tests.support.scripted_kernel import RemoteWorld
from tests.support.small_disk import SmallDisk

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def world(kernel):
    control = RemoteWorld(kernel)
    control.reset()
    yield control
    control.close()


@pytest.fixture
def daemon(tmp_path, kernel, world):
    made = Daemon(tmp_path / "d", kernel)
    yield made
    made.end()


@pytest.fixture
def staying(tmp_path, kernel, world):
    made = Daemon(tmp_path / "d", kernel, rollback="not_on_exit")
    yield made
    made.end()


def status(daemon):
    return daemon.client.ask("status")


def active(daemon):
    told = status(daemon)["active"]
    return told and told["deployment"]


def proven(daemon, name="good"):
    number = daemon.deploy(name)["deployment"]
    settled = ("proven", "pinned") if daemon.config.rollback == "not_on_exit" else ("proven",)
    until(lambda: all(status(daemon)["active"][mark] for mark in settled))
    return number


class Gone(Exception):
    """The daemon was killed."""


def settle(daemon, true):
    """Wait until something is so of what is active; raise Gone if the daemon ends first."""

    def settled():
        if not daemon.alive:
            raise Gone
        told = status(daemon)["active"]
        return told and true(told)

    until(settled)


def life(daemon, requests, accepted):
    """A whole life: a canary, proven; another instead, ended by the breaker; back, a pulse, and to the default.

    Args:
        accepted: gets the numbers of deployments as they are accepted.
    """
    ask, canary = daemon.client.ask, {"cgroup": CANARY, "stage": "canary"}
    first = ask("deploy", **requests[0], **canary)["deployment"]
    accepted.append(first)
    settle(daemon, lambda told: told["proven"])
    accepted.append(ask("deploy", **requests[1], **canary)["deployment"])
    daemon.tell_kernel("end_policy")
    settle(daemon, lambda told: told["policy"] == "first")
    ask("promote", deployment=first)
    settle(daemon, lambda told: told["stage"] == "pulse")
    ask("rollback", to_default=True)
    if daemon.end(signal.SIGTERM) != 0:
        raise Gone


def check_tokens(daemon, requests):
    """Whoever's deployment was accepted has used up the token."""
    history = [one["policy"] for one in daemon.client.ask("history", limit=100)["history"]]
    for request in requests:
        if request["policy"] in history:
            with pytest.raises(SchedagentError) as refused:
                daemon.client.ask("deploy", **request, cgroup=CANARY, stage="canary")
            assert isinstance(refused.value, TokenError | Refused)


class TestKilledAtEachStep:
    """kill -9 at each step of a life (deploy, trip, restore, promote, a pulse, roll back):"""

    @pytest.mark.parametrize("rollback", ["auto", "not_on_exit"])
    @pytest.mark.parametrize("kernel_calls", [True, False], ids=["around kernel calls", "around record writes"])
    def test_before_and_after_each_kernel_change_and_before_each_record_write(
        self, tmp_path, kernel, world, rollback, kernel_calls
    ):
        """default, or what was proven and pinned; the next daemon's record agrees with the kernel, tells of every
        deployment that was accepted, and no used token is accepted again (`auto` and `not_on_exit`)"""
        for step in count():
            world.reset()
            daemon = Daemon(tmp_path / f"d{step}", kernel, rollback=rollback, pulses_s=(0.1,))
            daemon.start(die_at=-1 if kernel_calls else step)
            if kernel_calls:
                world.set(kill_at=step)
            requests, accepted = (request_of("first"), request_of("second")), []
            with suppress(SchedagentError, Gone):
                life(daemon, requests, accepted)
                break  # it came to its end: there is no such step any more
            check_after_death(daemon, accepted)
            check_tokens(daemon, requests)
            assert daemon.end(signal.SIGTERM) == 0
        assert step >= 20


class TestKilled:
    """kill:"""

    def test_twice_in_a_row(self, staying):
        """what is proven goes on, and is taken over each time"""
        staying.start()
        number = proven(staying)
        for _time in range(2):
            staying.end()
            assert staying.state["number"] == number
            staying.start()
            assert active(staying) == number
        staying.client.ask("rollback")
        assert not staying.state["enabled"]


class TestHurt:
    """besides:"""

    def test_corrupt_record_of_a_dead_daemon(self, staying):
        """default; the file is kept aside, and no earlier token is accepted"""
        staying.start()
        proven(staying)
        staying.end()
        path = staying.config.state_dir / FILE
        content = bytearray(path.read_bytes())
        content[:100] = os.urandom(100)
        path.write_bytes(content)
        staying.start()
        assert (status(staying)["active"], staying.state["enabled"], staying.state["pin"]) == (None, False, None)
        kinds = [event["kind"] for event in staying.client.events(0, follow=False)]
        assert kinds[0] == "record lost"
        [kept] = staying.config.state_dir.glob("*.damaged-*[0-9]")
        assert kept.read_bytes() == bytes(content)

    def test_read_only_disk_at_the_start(self, tmp_path, kernel, world):
        """EROFS: schedagentd cannot start; what is proven and pinned stays, everything else is the default; a disk
        that can be written again lets the next one take it over"""
        disk = SmallDisk(tmp_path / "d" / "state")
        daemon = Daemon(tmp_path / "d", kernel, disk, rollback="not_on_exit")
        try:
            daemon.start()
            number = proven(daemon)
            daemon.end()
            disk.make_read_only()
            daemon.start(wait=False)
            until(lambda: not daemon.alive)
            assert "the record of deployments cannot be used" in (tmp_path / "d" / "log").read_text()
            assert daemon.state["number"] == number
            disk.make_read_only(again=False)
            daemon.start()
            assert active(daemon) == number
        finally:
            daemon.end()
            disk.close()

    def test_clock_set_back_while_no_daemon_runs(self, daemon, monkeypatch):
        """tokens are refused while the clock is behind the latest that was seen"""
        daemon.start()
        daemon.deploy()
        daemon.end()
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() - 3.2e7)
        daemon.start()
        monkeypatch.undo()
        with pytest.raises(TokenError, match="clock was set back"):
            daemon.deploy("second")
        assert not daemon.state["enabled"]


def test_a_record_is_durable_sqlite(daemon):
    daemon.start()
    daemon.deploy()
    daemon.end()
    database = sqlite3.connect(daemon.config.state_dir / FILE)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert database.execute("SELECT content FROM objects").fetchall() == [(content_of(),)]
    database.close()


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "state").touch()
    with pytest.raises(RecordError, match="cannot be used"):
        Record.open(tmp_path / "state")
    assert SetupError
