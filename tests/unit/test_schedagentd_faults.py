"""The fault matrix: real processes of schedagentd, killed at each of their steps and hurt in every way, over a scripted
kernel of another process. After each fault: the kernel runs the default scheduler or what proved itself, record and
kernel agree, and no accepted deployment and no used token is forgotten."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import suppress
from itertools import count

import pytest
from daemons import Daemon, request_of, scripted_kernel, until
from deploying import CANARY, WIDER, content_of
from scripted_kernel import RemoteWorld

from schedagent.core.errors import RecordError, Refused, SchedagentError, SetupError, TokenError
from schedagent.schedagentd.record import FILE, Record

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    with scripted_kernel(tmp_path_factory.mktemp("kernel")) as path:
        yield path


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
    """A whole life: a canary, proven, promoted; another instead, ended by the breaker; back, and to the default.

    Args:
        accepted: gets the numbers of deployments as they are accepted.
    """
    ask = daemon.client.ask
    first = ask("deploy", **requests[0], cgroup=CANARY)["deployment"]
    accepted.append(first)
    settle(daemon, lambda told: told["proven"])
    ask("promote", deployment=first, stage="wider", cgroup=WIDER)
    settle(daemon, lambda told: told["proven"])
    ask("promote", deployment=first, stage="full")
    settle(daemon, lambda told: told["proven"])
    accepted.append(ask("deploy", **requests[1], cgroup=CANARY)["deployment"])
    daemon.tell_kernel("end_policy")
    settle(daemon, lambda told: told["policy"] == "first")
    ask("rollback", to_default=True)
    if daemon.end(signal.SIGTERM) != 0:
        raise Gone


def check_after_death(daemon, accepted=()):
    """What must hold of the kernel at once, and of kernel and record once the next daemon is there."""
    until(lambda: not daemon.alive)
    until(lambda: not daemon.state["enabled"] or daemon.state["pin"] == daemon.state["number"], 2)
    asked = daemon.state
    daemon.start()
    told = status(daemon)
    truth = daemon.state
    running = truth["number"] if truth["enabled"] else None
    assert running == (told["active"] and told["active"]["deployment"]), "record and kernel agree"
    assert truth["pin"] in (None, running)
    if running is None:
        assert truth["moved"] == []
    elif not asked["enabled"] or asked["number"] != running:
        raise AssertionError("a new daemon starts nothing by itself")
    known = daemon.client.ask("history", limit=100)["history"]
    assert set(accepted) <= {one["deployment"] for one in known}
    for one in known:
        assert (one["phase"] == "ended") == (one["deployment"] != running)
    return told


def check_tokens(daemon, requests):
    """Whoever's deployment was accepted has used up the token."""
    history = [one["policy"] for one in daemon.client.ask("history", limit=100)["history"]]
    for request in requests:
        if request["policy"] in history:
            with pytest.raises(SchedagentError) as refused:
                daemon.client.ask("deploy", **request, cgroup=CANARY)
            assert isinstance(refused.value, TokenError | Refused)


class TestKilledAtEachStep:
    """kill -9 at each step of a life (deploy, promote twice, trip, restore, roll back):"""

    @pytest.mark.parametrize("rollback", ["auto", "not_on_exit"])
    @pytest.mark.parametrize("kernel_calls", [True, False], ids=["around kernel calls", "around record writes"])
    def test_before_and_after_each_kernel_change_and_before_each_record_write(
        self, tmp_path, kernel, world, rollback, kernel_calls
    ):
        """default, or what was proven and pinned; the next daemon's record agrees with the kernel, tells of every
        deployment that was accepted, and no used token is accepted again (`auto` and `not_on_exit`)"""
        for step in count():
            world.reset()
            daemon = Daemon(tmp_path / f"d{step}", kernel, rollback=rollback)
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

    def test_together_with_the_agent(self, daemon):
        """default; a dead agent alone is a lease that nobody renews"""
        daemon.start()
        daemon.deploy()
        daemon.end()
        assert not daemon.state["enabled"]
        assert check_after_death(daemon)["active"] is None

    def test_terminated_in_the_middle(self, daemon, world):
        """the deployment is finished, then taken back: default"""
        daemon.start()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, b"x")
            with suppress(SchedagentError):
                daemon.deploy()
            os._exit(0)
        os.read(reader, 1)
        assert daemon.end(signal.SIGTERM) == 0
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)
        assert not daemon.state["enabled"]
        check_after_death(daemon)

    def test_terminated_while_something_proven_runs(self, staying):
        """it stays in charge (`not_on_exit`) and is taken over"""
        staying.start()
        number = proven(staying)
        assert staying.end(signal.SIGTERM) == 0
        assert staying.state["number"] == number
        staying.start()
        assert active(staying) == number


class TestHurt:
    """while a policy runs:"""

    def back(self, daemon, limit_s=2.0):
        until(lambda: not daemon.state["enabled"], limit_s)
        until(lambda: status(daemon)["active"] is None, limit_s)

    def test_stall(self, daemon, world):
        """default within 2 s; cause and dump are kept"""
        daemon.start()
        daemon.deploy()
        world.end_policy(1026)
        self.back(daemon)
        assert daemon.client.ask("history")["history"][0]["end"] == "stall"
        [kept] = daemon.client.ask("history", dumps=True)["history"]
        assert kept["dump"] == "CPU states"

    def test_error(self, daemon, world):
        """default within 2 s; the same object is not loaded again"""
        daemon.start()
        daemon.deploy()
        world.end_policy(1024)
        self.back(daemon)
        with pytest.raises(Refused, match="circuit breaker"):
            daemon.deploy()

    def test_unreadable_sysfs(self, daemon, world):
        """taken away within 2 s, since nothing can be confirmed"""
        daemon.start()
        daemon.deploy()
        world.set(available=False)
        until(lambda: status(daemon)["active"] is None, 2)
        world.set(available=True)
        assert not daemon.state["enabled"]

    def test_lapsing_lease(self, daemon):
        """default within 2 s"""
        daemon.start()
        daemon.deploy(lease_s=1)
        time.sleep(1)
        self.back(daemon)

    def test_expiring_token(self, daemon):
        """default within 2 s: no lease outlives the token"""
        daemon.start()
        order = request_of(life_s=2)
        daemon.client.ask("deploy", **order, cgroup=CANARY, lease_s=600)
        time.sleep(2)
        self.back(daemon)

    @pytest.mark.parametrize("fault", ["full", "read-only"])
    def test_disk(self, tmp_path, kernel, world, fault, monkeypatch):
        """full or read-only: new deployments are refused; what trips is taken away, and stored when that is possible"""
        daemon = Daemon(tmp_path / "d", kernel)
        broken = tmp_path / "broken"
        change = Record._change

        def checked(record):
            if broken.exists():
                pragma = "max_page_count = 1" if fault == "full" else "query_only = ON"
                record._database.execute(f"PRAGMA {pragma}")
            else:
                record._database.execute("PRAGMA query_only = OFF")
                record._database.execute("PRAGMA max_page_count = 1000000")
            return change(record)

        monkeypatch.setattr(Record, "_change", checked)
        daemon.start()
        try:
            daemon.deploy()
            broken.touch()
            with pytest.raises(RecordError):
                [daemon.deploy(f"policy{turn}") for turn in range(30)]  # the last page has room for some
            assert daemon.state["enabled"]
            world.end_policy()
            self.back(daemon)
            broken.unlink()
            until(lambda: status(daemon)["unsaved"] == [])
            assert daemon.client.ask("history")["history"][0]["end"] == "stall"
        finally:
            daemon.end()

    def test_clock_jump(self, daemon, monkeypatch):
        """tokens are refused while the clock is behind the latest that was seen; leases do not use it"""
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

    def test_corrupt_record(self, staying):
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

    def test_second_daemon(self, daemon, kernel):
        """it refuses to start; the first goes on"""
        daemon.start()
        number = daemon.deploy()["deployment"]
        second = Daemon(daemon.folder, kernel)
        second.start(wait=False)
        until(lambda: not second.alive)
        assert "another schedagentd works with" in (daemon.folder / "log").read_text()
        assert active(daemon) == number
        assert daemon.state["number"] == number


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
