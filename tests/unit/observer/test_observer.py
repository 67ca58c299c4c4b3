"""The observer's socket: who may ask, for what, how much at once; and what its client makes of the answers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from kernel_bpf.observe.sched_probe import Switch
from schedagent.client import observer as client
from schedagent.core.errors import Refused, SetupError, UsageError
from schedagent.core.process.listener import Admission, listen
from schedagent.core.process.systemd import Notifier
from schedagent.observer import server as serving
from schedagent.observer.__main__ import main
from schedagent.observer.messages import LONGEST_REQUEST, read_request
from schedagent.observer.server import EACH_AT_ONCE, Server
from schedagent.observing.measure import Observed, Order
from schedagent.observing.scope import Target
from tests.support.observed_host import largest_profile

REQUEST = {"version": 1, "verb": "observe", "seconds": 1.0}
SWITCHES = (Switch(5, 3, 11, 10, 1, 1, b"one"),)


class Scripted:
    """An observation that lasts until somebody ends it, or until the test lets it go."""

    def __init__(self):
        self.orders, self.ended, self.go = [], 0, threading.Event()

    def __call__(self, order, stopped):
        self.orders.append(order)
        while not self.go.is_set():
            if stopped(0.01):
                self.ended += 1
                break
        if order.target.pid == 4194304:
            raise UsageError("there is no process 4194304", "list processes: ps -e")
        return Observed(largest_profile(), SWITCHES, 7)


@contextmanager
def served(tmp_path, observe, admission=None):
    """A server in a thread of this process; yields its socket."""
    path = tmp_path / "observer.sock"
    listener = listen(path, None)
    server = Server(listener, admission or Admission(), observe, Notifier("", 0.0), ends_idle=False)
    loop = asyncio.new_event_loop()
    loop.add_signal_handler = lambda *_arguments: None  # only the main thread may
    thread = threading.Thread(target=loop.run_until_complete, args=(server.run(),))
    thread.start()
    try:
        yield path
    finally:
        observe.go.set()
        loop.call_soon_threadsafe(server._stop.set)
        thread.join(10)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        listener.close()
        assert not thread.is_alive()


@pytest.fixture
def script():
    return Scripted()


def exchange(path, line):
    """Send a line as it is; return the answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(line)
        with connection.makefile("rb") as stream:
            return json.loads(stream.readline())


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_was_asked_for_is_watched_and_comes_back_whole(tmp_path, script):
    script.go.set()
    with served(tmp_path, script) as path:
        seen = client.ask(0, "/build.slice", 2.5, True, path)
    assert script.orders == [Order(Target(cgroup="/build.slice"), 2.5, tier=2, tracing=True)]
    assert seen == (largest_profile(), SWITCHES, 7)


def test_a_refusal_arrives_as_what_it_is(tmp_path, script):
    script.go.set()
    with served(tmp_path, script) as path, pytest.raises(UsageError, match="observer: there is no process") as refusal:
        client.ask(4194304, "", 1.0, False, path)
    assert refusal.value.hint == "list processes: ps -e"


def test_strangers_are_refused(tmp_path, script, monkeypatch):
    monkeypatch.setattr(Admission, "admits", lambda _self, peer: peer.uid != os.getuid())
    with served(tmp_path, script) as path, pytest.raises(Refused, match="may not ask the observer"):
        client.ask(0, "", 1.0, False, path)
    assert script.orders == []


def test_one_user_watches_only_so_much_at_once(tmp_path, script):
    with served(tmp_path, script) as path:
        askers = [threading.Thread(target=client.ask, args=(0, "", 1.0, False, path)) for _ in range(EACH_AT_ONCE)]
        for asker in askers:
            asker.start()
        until(lambda: len(script.orders) == EACH_AT_ONCE)
        with pytest.raises(Refused, match="watches enough already"):
            client.ask(0, "", 1.0, False, path)
        script.go.set()
        for asker in askers:
            asker.join(10)
        assert client.ask(0, "", 1.0, False, path)


def test_who_hangs_up_ends_what_is_watched_for_him(tmp_path, script):
    with served(tmp_path, script) as path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(path))
            connection.sendall(json.dumps(REQUEST).encode() + b"\n")
            until(lambda: script.orders)
        until(lambda: script.ended)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"nonsense\n", "request: "),
        (b"{}\n", "version"),
        (b'{"version": 1, "verb": "load", "seconds": 1.0}\n', "verb"),
        (b'{"version": 1, "verb": "observe", "seconds": 1.0, "object": "x"}\n', "object: Extra inputs"),
        (b'{"version": 1, "verb": "observe", "seconds": "1"}\n', "seconds"),
        (b'{"version": 1, "verb": "observe", "seconds": 0.0}\n', "seconds"),
        (b'{"version": 1, "verb": "observe", "seconds": 3601.0}\n', "seconds"),
        (b'{"version": 1, "verb": "observe", "seconds": NaN}\n', "seconds|request"),
        (b'{"version": 1, "verb": "observe", "seconds": 1.0, "pid": -1}\n', "pid"),
        (b'{"version": 1, "verb": "observe", "seconds": 1.0, "pid": true}\n', "pid"),
        (b'{"version": 1, "verb": "observe", "seconds": 1.0, "pid": 1, "cgroup": "/x"}\n', "one at most"),
        (b'{"version": 1, "verb": "observe", "seconds": 1.0, "cgroup": "/../x"}\n', "no path of a cgroup"),
        (b"x" * (3 * LONGEST_REQUEST) + b"\n", "longer than"),
    ],
    ids=range(13),
)
def test_what_is_no_request_is_refused_in_one_line(tmp_path, script, line, why):
    with served(tmp_path, script) as path:
        fault = exchange(path, line)["error"]
    assert fault["kind"] == "UsageError"
    assert re.search(why, fault["message"]), fault
    assert "\n" not in fault["message"]
    assert script.orders == []


def test_a_request_says_what_it_is():
    assert read_request(json.dumps({**REQUEST, "pid": 7}).encode()).order() == Order(Target(pid=7), 1.0, tier=2)


def test_silence_is_no_request(tmp_path, script, monkeypatch):
    monkeypatch.setattr(serving, "REQUEST_S", 0.05)
    with served(tmp_path, script) as path:
        assert "nothing was asked" in exchange(path, b"")["error"]["message"]


def test_the_client_says_what_to_do(tmp_path):
    with pytest.raises(SetupError, match="cannot be asked") as refusal:
        client.ask(0, "", 1.0, False, tmp_path / "none.sock")
    assert "systemctl start schedagent-observer.socket" in refusal.value.hint


@pytest.mark.parametrize("answer", [b"nonsense\n", b'{"ok": {}}\n', b'{"ok": {"profile": {}, "switches": []}}\n', b""])
def test_an_answer_that_is_none_is_an_error_of_set_up(tmp_path, answer):
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer_once():
            connection, _address = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=answer_once)
        thread.start()
        with pytest.raises((SetupError, UsageError)):
            client.ask(0, "", 1.0, False, path)
        thread.join(10)


def test_arguments_that_are_unknown_are_bad_usage(caplog):
    assert main(["--nonsense"]) == 2
    assert "unknown arguments" in caplog.text
