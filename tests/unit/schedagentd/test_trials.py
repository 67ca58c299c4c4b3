"""Trials over the socket, with real daemons over a scripted kernel: what ends them."""

from __future__ import annotations

import json
import os
import signal
import socket
import time

import pytest

from schedagent.core.errors import Refused, SetupError
from tests.support.daemon_processes import Agent, Daemon, request_of, until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def daemon(tmp_path, kernel):
    made = Daemon(tmp_path / "d", kernel).start()
    made.tell_kernel("reset")
    yield made
    made.end()
    made.tell_kernel("reset")


def events(daemon):
    return [event["kind"] for event in daemon.client.events(0, follow=False)]


def test_a_policy_is_in_charge_while_the_block_runs(daemon):
    with daemon.client.trial(request_of(), 30) as trial:
        assert (daemon.state["enabled"], daemon.state["partial"]) == (True, False)
        assert (trial.deployment["stage"], trial.deployment["phase"], trial.ended) == ("trial", "running", None)
        assert 29 < trial.deployment["lease_left_s"] <= 30
    assert not daemon.state["enabled"], "when the block is left, not some time later"
    assert (trial.ended["end"], trial.ended["detail"]) == ("its time is over", "its client is done")
    assert events(daemon) == ["started", "trial", "ended"]


def test_its_time_ends_it_though_its_client_is_there(daemon):
    begun = time.monotonic()
    with daemon.client.trial(request_of(), 1) as trial:
        until(lambda: not daemon.state["enabled"], 5)
        assert time.monotonic() - begun > 0.9
    assert (trial.ended["end"], trial.ended["detail"]) == ("its time is over", "1 s")


def test_a_second_one_is_refused_in_a_line_and_changes_nothing(daemon):
    with daemon.client.trial(request_of("first"), 30) as trial:
        before = daemon.state, events(daemon)
        number = trial.deployment["deployment"]
        with (
            pytest.raises(
                Refused, match=f"deployment {number} .* is at stage trial: there is one at a time"
            ) as refused,
            daemon.client.trial(request_of("second"), 30),
        ):
            pass
        assert "\n" not in refused.value.message
        assert (daemon.state, events(daemon)) == before
    with pytest.raises(Refused, match="a policy was in charge"), daemon.client.trial(request_of("second"), 30):
        pass


def test_an_error_in_the_block_ends_it_and_is_not_lost(daemon):
    with pytest.raises(FileNotFoundError, match="own"), daemon.client.trial(request_of(), 30):
        raise FileNotFoundError("the workload's own")
    assert not daemon.state["enabled"]


def test_who_says_more_ends_it(daemon):
    with socket.socket(socket.AF_UNIX) as talker, talker.makefile("rb") as answers:
        talker.connect(str(daemon.config.socket))
        talker.sendall(json.dumps({"version": 1, "verb": "trial", **request_of(), "lease_s": 30}).encode() + b"\n")
        assert json.loads(answers.readline())["ok"]["stage"] == "trial"
        talker.sendall(b"more\n")
        assert json.loads(answers.readline())["ok"]["trial"]["end"] == "its time is over"
    assert not daemon.state["enabled"]


def test_who_is_gone_before_the_answer_has_no_trial(daemon):
    """Killed while the policy was loaded: there is nobody to answer, and nothing to read an end from."""
    with socket.socket(socket.AF_UNIX) as talker:
        talker.connect(str(daemon.config.socket))
        talker.sendall(json.dumps({"version": 1, "verb": "trial", **request_of(), "lease_s": 30}).encode() + b"\n")
    until(lambda: "trial" in events(daemon), 5)
    until(lambda: not daemon.state["enabled"], 2)
    assert daemon.client.ask("status")["active"] is None


def test_what_the_breaker_ends_is_reported(daemon):
    with daemon.client.trial(request_of(), 30) as trial:
        daemon.tell_kernel("end_policy", kind=1024)
        until(lambda: daemon.client.ask("status")["active"] is None)
    assert (trial.ended["end"], trial.ended["tripped"]) == ("ejected by the kernel", True)


def test_a_daemon_that_is_killed_leaves_the_default(daemon):
    with pytest.raises(SetupError, match="ended before it answered"), daemon.client.trial(request_of(), 30):
        daemon.end()
    assert not daemon.state["enabled"]


def test_a_daemon_that_hangs_is_ended_by_the_kernel(tmp_path, kernel):
    """Neither its own deadline nor a lease nor its client can end it then."""
    daemon = Daemon(tmp_path / "h", kernel, hangs=True).start()
    daemon.tell_kernel("reset")
    client = Agent(daemon, trial=request_of(), lease_s=1)
    begun = time.monotonic()
    try:
        until(lambda: daemon.state["enabled"])
        _pid, status = os.waitpid(daemon.pid, 0)
        daemon.pid = 0
        assert os.WTERMSIG(status) == signal.SIGALRM
        until(lambda: not daemon.state["enabled"], 2)
        assert time.monotonic() - begun > 1
    finally:
        client.kill()
        daemon.end()
        daemon.tell_kernel("reset")
