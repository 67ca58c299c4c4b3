"""schedagentd's socket: who may do what, what is no request, how much is too much, and the stream of events."""

from __future__ import annotations

import base64
import fcntl
import json
import math
import os
import pwd
import random
import re
import selectors
import signal
import socket
import subprocess
import sys
import termios
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from schedagent.client.daemon import DaemonClient
from schedagent.core.deployment import LARGEST_OBJECT_BYTES, MOST_ENTRIES, Stage
from schedagent.core.errors import Refused, SchedagentError, SetupError, TokenError, UsageError
from schedagent.core.process.listener import Peer
from schedagent.core.process.systemd import Notifier
from schedagent.core.settings import service_watch
from schedagent.schedagentd import server
from schedagent.schedagentd.config import Config, load_config
from schedagent.schedagentd.messages import LONGEST_QUESTION, LONGEST_REQUEST, History, Rollback, Status, read_request
from schedagent.schedagentd.record import Record
from schedagent.schedagentd.server import BURST, Gate, Rates
from tests.support.as_user import as_user, let_others_in
from tests.support.daemon_processes import ROOT, Daemon, request_of, scripted_kernel, until
from tests.support.deploy_orders import CANARY

pytestmark = pytest.mark.timeout(120)

LOOKER, STRANGER = pwd.getpwnam("daemon"), pwd.getpwnam("nobody")
CHANGER = pwd.getpwnam("mail")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    folder = tmp_path_factory.mktemp("daemon")
    let_others_in(folder)
    with scripted_kernel(folder) as kernel:
        made = Daemon(folder / "d", kernel, group="daemon", users=("mail",))
        made.start()
        made.config.socket.chmod(0o666)  # so that only the daemon itself is in the way
        yield made
        assert made.end(signal.SIGTERM) == 0


def raw(daemon, content):
    """Send bytes and return the answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(daemon.config.socket))
        try:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        told = b""
        with suppress(ConnectionResetError):  # it closed before it had read everything
            while piece := connection.recv(65536):
                told += piece
        return [json.loads(line) for line in told.splitlines()]


LOOKS = {"status": {}, "policies": {}, "history": {"limit": 20}}
CHANGES = {
    "deploy": lambda: request_of() | {"cgroup": CANARY, "stage": "canary"},
    "trial": lambda: request_of() | {"lease_s": 1},
    "renew": lambda: {"deployment": 1},
    "promote": lambda: {"deployment": 1},
    "rollback": dict,
}


class TestWhoMayDoWhat:
    @pytest.mark.parametrize("verb", ["status", "policies", "history"])
    def test_members_of_the_group_may_look(self, daemon, verb):
        assert as_user(LOOKER, lambda: bool(daemon.client.ask(verb))) == "True"

    @pytest.mark.parametrize("verb", CHANGES)
    def test_and_no_more(self, daemon, verb):
        told = as_user(LOOKER, lambda: daemon.client.ask(verb, **CHANGES[verb]()))
        assert re.fullmatch(rf"Refused: schedagentd: process \d+ of user id 1 may not {verb}", told)
        assert not daemon.state["enabled"]

    @pytest.mark.parametrize("verb", ["status", "events", *CHANGES])
    def test_strangers_may_nothing(self, daemon, verb):
        fields = CHANGES.get(verb, dict)()
        told = as_user(STRANGER, lambda: daemon.client.ask(verb, **fields))
        assert re.fullmatch(r"Refused: schedagentd: process \d+ of user id 65534 may not ask schedagentd", told)
        assert not daemon.state["enabled"]

    def test_users_of_the_configuration_may_change(self, daemon):
        told = as_user(CHANGER, lambda: daemon.deploy()["phase"])
        assert told in ("<Phase.RUNNING: 'running'>", "'running'")
        assert daemon.state["enabled"]
        assert as_user(CHANGER, lambda: daemon.client.ask("rollback")["in_charge"]) == "'the default scheduler'"
        assert not daemon.state["enabled"]

    def test_the_socket_s_own_mode(self, tmp_path, daemon):
        with scripted_kernel(tmp_path) as kernel:
            private = Daemon(tmp_path / "d", kernel, group="there is none").start()
            assert private.config.socket.stat().st_mode & 0o777 == 0o600
            private.end(signal.SIGTERM)
            assert not private.config.socket.exists()

    def test_gate(self):
        gate = Gate(frozenset({5}), frozenset({1000}))
        looks = [
            (Peer(1, uid, frozenset({gid})), look, change)
            for uid, gid, look, change in (
                (0, 0, True, True),
                (1000, 9, True, True),
                (7, 5, True, False),
                (7, 9, False, False),
            )
        ]
        assert all((gate.may_look(peer), gate.may_change(peer)) == (look, change) for peer, look, change in looks)


class TestVerbs:
    def test_a_deployment_from_end_to_end(self, daemon):
        events = daemon.client.events()
        start = daemon.client.ask("status")
        assert (start["in_charge"], start["active"]) == ("the default scheduler", None)
        begun = daemon.deploy("walk", lease_s=100)
        assert math.copysign(1, begun["since_s"]) == 1, "it began, if a rounded moment ago"
        number = begun["deployment"]
        until(lambda: daemon.client.ask("status")["active"]["proven"])
        told = daemon.client.ask("status")
        assert told["in_charge"].startswith(f"deployment {number} (walk ")
        assert told["active"]["cgroup"] == CANARY
        assert 90 < told["active"]["lease_left_s"] <= 100
        assert (told["kernel"]["ops"], told["kernel"]["switch_all"]) == ("walk", False)
        assert daemon.client.ask("policies")["loaded"] == [{"ops": "walk", "ours": True, "switch_all": False}]
        assert daemon.client.ask("renew", deployment=number, lease_s=300)["lease_left_s"] > 250
        assert daemon.client.ask("promote", deployment=number)["stage"] == "pulse"
        assert daemon.client.ask("rollback")["in_charge"] == "the default scheduler"
        newest = daemon.client.ask("history", limit=1)["history"]
        assert [(one["deployment"], one["end"], one["phase"]) for one in newest] == [(number, "rolled back", "ended")]
        assert "dump" not in newest[0]
        kinds = [event["kind"] for event in daemon.client.events(0, follow=False) if event["deployment"] == number]
        assert kinds[:3] == ["accepted", "loading", "running"]
        assert kinds[-1] == "ended"
        events.close()

    def test_events_come_as_they_happen(self, daemon):
        events = daemon.client.events(after=0)
        before = next(events)
        assert before["kind"] == "started"
        number = daemon.deploy("streamed")["deployment"]
        seen = next(event for event in events if event["deployment"] == number and event["kind"] == "running")
        assert seen["detail"] == f"canary {CANARY}"
        events.close()
        daemon.client.ask("rollback")

    def test_refusals_keep_their_type_and_say_who_refused(self, daemon):
        with pytest.raises(Refused, match=r"^schedagentd: nothing is deployed") as refused:
            daemon.client.ask("rollback")
        assert refused.value.hint == "the default scheduler is in charge already"

    def test_nobody_there(self, tmp_path):
        with pytest.raises(SetupError, match="not running") as missing:
            DaemonClient(tmp_path / "none").ask("status")
        assert "systemctl start" in missing.value.hint


GOOD = {"version": 1, "verb": "status"}
WRONG = {
    "nothing": b"\n",
    "no JSON": b"status\n",
    "no object": b"[1]\n",
    "no version": b'{"verb": "status"}\n',
    "another version": b'{"version": 2, "verb": "status"}\n',
    "true is not 1": b'{"version": true, "verb": "status"}\n',
    "no verb": b'{"version": 1}\n',
    "a verb that is a list": b'{"version": 1, "verb": []}\n',
    "unknown verb": b'{"version": 1, "verb": "exec"}\n',
    "unknown field": b'{"version": 1, "verb": "status", "shell": "id"}\n',
    "a key twice": b'{"version": 1, "verb": "status", "verb": "rollback"}\n',
    "NaN": b'{"version": 1, "verb": "renew", "deployment": 1, "lease_s": NaN}\n',
    "infinite": b'{"version": 1, "verb": "renew", "deployment": 1, "lease_s": 1e999}\n',
    "a huge number": b'{"version": 1, "verb": "renew", "deployment": ' + b"9" * 3000 + b"}\n",
    "deep": b"[" * 4000 + b"\n",
    "not UTF-8": b'{"version": 1, "verb": "\xff\xfe"}\n',
    "a text for a number": b'{"version": 1, "verb": "renew", "deployment": "1"}\n',
    "missing": b'{"version": 1, "verb": "promote"}\n',
    "a trial without a time": b'{"version": 1, "verb": "trial", "policy": "x"}\n',
    "too long": b"x" * (LONGEST_REQUEST + 1),
}


class TestNonsense:
    @pytest.mark.parametrize("name", WRONG)
    def test_is_told_and_does_nothing(self, daemon, name):
        [answer] = raw(daemon, WRONG[name])
        assert answer["error"]["kind"] == "UsageError", answer
        assert daemon.answers

    def test_half_a_request_is_no_request(self, daemon):
        assert raw(daemon, b'{"version": 1, "verb": "status"}') == []
        assert daemon.answers

    def test_who_may_change_nothing_may_say_little(self, daemon):
        def act():
            return raw(daemon, b"x" * (LONGEST_QUESTION + 1))[0]["error"]["message"]

        assert as_user(LOOKER, act) == f"'the request is longer than {LONGEST_QUESTION} bytes'"

    @pytest.mark.parametrize("field", ["object_base64", "tunables", "history", "token", "report_digest", "policy"])
    def test_each_field_of_a_deployment_is_checked(self, field):
        for wrong in (7, None, [], {}, "ä", True, ["x"], {"a b": 1}, {"a": 1.5}, [[1]], [[-1, 2]], "x" * (3 << 20)):
            told = GOOD | request_of() | {"verb": "deploy", "cgroup": CANARY, field: wrong}
            if (
                field in ("tunables", "history")
                and not wrong
                and type(wrong) is {"tunables": dict, "history": list}[field]
            ):
                continue
            with pytest.raises(UsageError, match=f"{field} is not accepted"):
                read_request(json.dumps(told).encode())

    @pytest.mark.parametrize(
        ("verb", "field", "wrong"),
        [
            *(("renew", "metric", one) for one in (1.0, [True], ["1"], [1.1e18], [1.0] * 65, {"a": 1}, [[1.0]])),
            *(("deploy", "pid", one) for one in (-1, 1.0, True, "42", (1 << 22) + 1, 10**30)),
            *(("deploy", "better", one) for one in ("", "faster", 1, ["higher"])),
        ],
    )
    def test_metrics_and_processes_are_bounded(self, verb, field, wrong):
        told = GOOD | {"verb": verb} | (request_of() if verb == "deploy" else {"deployment": 1})
        with pytest.raises(UsageError, match=f"{field} is not accepted"):
            read_request(json.dumps(told | {field: wrong}).encode())
        good = {"metric": [1, -2.5, 1e18], "pid": 42, "better": "lower"}[field]
        assert read_request(json.dumps(told | {field: good}).encode())

    def test_everything_at_its_largest_fits_into_a_request(self):
        pairs = [[(1 << 64) - 1, (1 << 64) - 1]] * MOST_ENTRIES
        largest = {
            "verb": "deploy",
            "policy": "a" * 128,
            "object_base64": base64.b64encode(bytes(LARGEST_OBJECT_BYTES)).decode(),
            "tunables": {f"{'a' * 124}_{number:03}": -(1 << 63) for number in range(256)},
            "history": pairs,
            "classes": pairs,
            "token": "x" * 65536,
            "cgroup": ("/" + "\\" * 249) * 16,
        }
        line = json.dumps(GOOD | request_of() | largest).encode()
        assert len(line) < LONGEST_REQUEST
        assert len(read_request(line).content) == LARGEST_OBJECT_BYTES
        for more in (1, 2):  # base64 comes in threes, so one byte more is as long
            too_large = base64.b64encode(bytes(LARGEST_OBJECT_BYTES + more)).decode()
            with pytest.raises(UsageError, match="object_base64 is not accepted"):
                read_request(json.dumps(GOOD | request_of() | {"verb": "deploy", "object_base64": too_large}).encode())

    def test_the_largest_object_is_taken_over_the_socket(self, daemon):
        """Its token, which is for another one, is what is refused."""
        largest = base64.b64encode(bytes(LARGEST_OBJECT_BYTES)).decode()
        with pytest.raises(TokenError, match="the token is for artifact_digest"):
            daemon.client.ask("deploy", **request_of() | {"object_base64": largest}, cgroup=CANARY)

    def test_a_hundred_thousand_mutations(self):
        """Whatever comes, it is a request or a UsageError; none becomes a change that was not one before."""
        source = random.Random(7)
        seeds = [json.dumps(GOOD).encode(), b'{"version":1,"verb":"history","limit":5,"dumps":false}']
        seeds += [b'{"version":1,"verb":"events","after":3,"follow":true}', *WRONG.values()]
        seeds = [seed[:2000] for seed in seeds]
        begun, requests = time.monotonic(), 0
        for _turn in range(100_000):
            line = bytearray(source.choice(seeds))
            for _change in range(source.randrange(4)):
                at = source.randrange(len(line) + 1)
                line[at : at + source.randrange(3)] = source.randbytes(source.randrange(3))
            with suppress(UsageError):
                requests += isinstance(read_request(bytes(line)), Status)
        assert requests > 100
        assert time.monotonic() - begun < 60

    def test_over_the_socket_memory_stays_flat(
        self,
        daemon,
        tmp_path,
    ):
        source, sizes = random.Random(11), []
        big = json.dumps(GOOD | {"verb": "deploy", "object_base64": "A" * (3 << 20)}).encode() + b"\n"
        for turn in range(600):
            seed = bytearray(source.choice([*WRONG.values()])[:5000])
            seed[source.randrange(len(seed))] = source.randrange(256)
            raw(daemon, big if turn % 50 == 0 else bytes(seed) + b"\n")
            if turn % 100 == 99:
                sizes.append(rss_kib(daemon.pid))
        assert sizes[-1] - sizes[1] < 2048, sizes
        assert not daemon.state["enabled"]


class TestTooMuch:
    def test_rates(self):
        rates = Rates()
        assert sum(rates.take(1, 1.0, 100.0) for _ in range(100)) == BURST
        assert not rates.take(1, 1.0, 100.05)
        assert rates.take(1, 1.0, 100.2)
        assert rates.take(2, 1.0, 100.2)
        for uid in range(1000):
            rates.take(uid, 1.0, 200.0)
        rates.take(1, 1.0, 300.0)
        assert len(rates._buckets) < 300

    def server_with(self, *connections):
        made = server.Server(None, None, Gate(frozenset({5}), frozenset({1000})), None)
        made._connections = dict(enumerate(connections))
        return made

    def test_lookers_leave_room_for_changes(self):
        """Three users of the group take all that they can; a rollback still gets through."""
        taken = [SimpleNamespace(peer=Peer(1, 2000 + number // 16, frozenset({5}))) for number in range(48)]
        made = self.server_with(*taken)
        assert "too many connections" in made._refusal(Peer(1, 3000, frozenset({5}))).message
        assert made._refusal(Peer(1, 1000, frozenset())) is None

    def test_answers_that_nobody_reads_stop_further_ones_but_no_change(self):
        made = self.server_with(SimpleNamespace(unsent=bytes(server.MOST_UNREAD_BYTES + 1)))
        with pytest.raises(Refused, match="too many answers wait"):
            made._require_leave(Peer(1, 3000, frozenset({5})), Status())
        made._require_leave(Peer(1, 1000, frozenset()), Rollback(0, False))

    def test_large_requests_at_once_are_bounded(self):
        """What is not complete yet is held in memory, whoever sends it."""
        others = [SimpleNamespace(received=bytes(4 << 20)) for _ in range(16)]
        made, answers = self.server_with(*others), []
        made._answer = lambda connection, answer: answers.append((connection, answer["error"]["message"]))
        late = SimpleNamespace(received=bytearray())
        made._receive(late, b"x")
        assert (answers, late.received) == ([(late, "too many large requests at once")], b"")

    def test_who_may_only_look_does_not_read_what_a_policy_collected(self, daemon):
        """It may write a password that it found into its exit record: only whoever may deploy reads that."""
        daemon.deploy("collector")
        daemon.tell_kernel("end_policy", kind=1024, message="the password is hunter2")
        until(lambda: daemon.client.ask("status")["active"] is None)
        assert "hunter2" in daemon.client.ask("history", limit=1)["history"][0]["own_words"]

        def look():
            answers = [daemon.client.ask(verb, **fields) for verb, fields in LOOKS.items()]
            return [*answers, *daemon.client.events(0, follow=False)]

        seen = as_user(LOOKER, look)
        assert "collector" in seen
        assert "hunter2" not in seen

    def test_who_reads_events_may_say_nothing_more(self, daemon):
        """Each byte would wake us."""
        with socket.socket(socket.AF_UNIX) as talker, talker.makefile("rb") as answers:
            talker.connect(str(daemon.config.socket))
            talker.sendall(b'{"version": 1, "verb": "events"}\n')
            assert "after" in json.loads(answers.readline())["ok"]
            talker.sendall(b"x")
            assert "nothing more may be said" in json.loads(answers.readline())["error"]["message"]
            assert answers.readline() == b""
            with pytest.raises(BrokenPipeError):
                talker.sendall(b"x")

    def test_a_request_comes_in_few_pieces(self, daemon):
        """Sent byte by byte, each taken before the next, it is refused before it is there."""
        request, taken = json.dumps(GOOD).encode() + b" " * 100 + b"\n", 0
        with socket.socket(socket.AF_UNIX) as slow, slow.makefile("rb") as answers:
            slow.connect(str(daemon.config.socket))
            for byte in request:
                try:
                    slow.sendall(bytes([byte]))
                except OSError:
                    break
                taken += 1
                until(lambda: fcntl.ioctl(slow, termios.TIOCOUTQ, bytes(4)) == bytes(4), 5)
            assert "in too many pieces" in json.loads(answers.readline())["error"]["message"]
        assert server.PIECES <= taken <= server.PIECES + 5

    def test_a_large_request_may_come_in_as_many_pieces_as_its_size_needs(self):
        made, answers = self.server_with(), []
        made._answer = lambda _connection, answer: answers.append(answer)
        large = server.Connection(None, Peer(1, 0, frozenset()), LONGEST_REQUEST, None)
        for _piece in range(4000):
            made._receive(large, b"x" * server.PIECE_BYTES)
        assert (answers, large.pieces) == ([], 4000)

    def test_who_has_its_answer_is_not_listened_to(self):
        """It does not read it, and talks on instead."""
        ours, theirs = socket.socketpair()
        made = self.server_with()
        with ours, theirs:
            ours.setblocking(False)
            made._selector.register(ours, selectors.EVENT_READ)
            connection = server.Connection(ours, Peer(1, 0, frozenset()), 4096, None)
            made._answer(connection, {"ok": ["x" * 4000] * 1000})
            assert connection.unsent
            theirs.sendall(b"x" * 1000)
            assert made._selector.select(0) == []

    def test_history_costs_by_its_length(self):
        made = self.server_with()
        looker = Peer(1, 3000, frozenset({5}))
        for _question in range(int(BURST // (200 / server.ENTRIES_AT_ONE))):
            made._require_leave(looker, History(200))
        with pytest.raises(Refused, match="too much history"):
            made._require_leave(looker, History(200))
        made._require_leave(Peer(1, 1000, frozenset()), Rollback(0, False))

    def test_events_of_all_streams_of_a_user_are_bounded(self, tmp_path, monkeypatch):
        """Whoever reads all of them again and again gets no more of them than anybody, and others get theirs."""
        monkeypatch.setattr(server, "PER_S", 1e-9)
        let_others_in(tmp_path)
        with scripted_kernel(tmp_path) as kernel:
            daemon = Daemon(tmp_path / "d", kernel, group="daemon")
            with closing(Record.open(daemon.config.state_dir)) as record, record._change() as database:
                old = [(0.0, "old", 0, "x")] * 3000
                database.executemany("INSERT INTO events (at, kind, deployment, detail) VALUES (?, ?, ?, ?)", old)
            daemon.start(burst=40.0)
            daemon.config.socket.chmod(0o666)
            seen = [0] * 4
            with ExitStack() as stack:
                streams = []
                for _stream in seen:
                    streams.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
                    streams[-1].connect(str(daemon.config.socket))
                    streams[-1].sendall(b'{"version": 1, "verb": "events", "after": 0}\n')

                def read():
                    for number, stream in enumerate(streams):
                        with suppress(BlockingIOError):
                            seen[number] += stream.recv(1 << 20, socket.MSG_DONTWAIT).count(b'{"event"')
                    return sum(seen)

                until(lambda: read() >= 40 * server.ENTRIES_AT_ONE)
                for _round in range(5):
                    assert daemon.answers
                assert read() == 40 * server.ENTRIES_AT_ONE
                others = as_user(LOOKER, lambda: sum(1 for _event in daemon.client.events(0, follow=False)))
                assert int(others) == server.EVENTS_AT_ONCE
            daemon.end(signal.SIGTERM)

    def test_a_flood_is_refused_and_the_rest_is_served(self, tmp_path):
        with scripted_kernel(tmp_path) as kernel:
            daemon = Daemon(tmp_path / "d", kernel).start(burst=30.0)
            told = [raw(daemon, json.dumps(GOOD).encode() + b"\n")[0] for _ in range(120)]
            refused = [one["error"]["message"] for one in told if "error" in one]
            assert refused
            assert all("more than 10 requests a second" in message for message in refused)
            time.sleep(0.5)
            assert daemon.answers
            daemon.end(signal.SIGTERM)

    def test_connections_of_one_user_are_bounded_and_idle_ones_end(self, daemon):
        idle = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        try:
            for one in idle:
                one.connect(str(daemon.config.socket))
            [answer] = raw(daemon, json.dumps(GOOD).encode() + b"\n")
            assert "too many connections" in answer["error"]["message"]
            idle[0].settimeout(15)
            assert "nothing was asked within 10 s" in json.loads(idle[0].recv(4096))["error"]["message"]
        finally:
            for one in idle:
                one.close()
        until(lambda: daemon.answers)

    def test_a_stream_that_is_not_read_is_dropped(self, tmp_path):
        with scripted_kernel(tmp_path) as kernel:
            daemon = Daemon(tmp_path / "d", kernel)
            with closing(Record.open(daemon.config.state_dir)) as record, record._change() as database:
                told = [(0.0, "old", 0, "x" * 2000)] * server.EVENTS_AT_ONCE
                database.executemany("INSERT INTO events (at, kind, deployment, detail) VALUES (?, ?, ?, ?)", told)
            daemon.start()
            with socket.socket(socket.AF_UNIX) as lazy:
                lazy.settimeout(20)
                lazy.connect(str(daemon.config.socket))
                lazy.sendall(b'{"version": 1, "verb": "events", "after": 0}\n')
                assert b'"after": 0' in lazy.recv(100)  # it was let in; a megabyte follows, which it does not read
                assert daemon.answers
                assert daemon.answers
                with suppress(ConnectionResetError):
                    while lazy.recv(1 << 20):
                        pass
            daemon.end(signal.SIGTERM)


def rss_kib(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1))


OWN_MODULES = {
    "schedagent.core": {"accept", "deployment", "errors", "installation", "settings", "token", "trusted", "welch"}
    | {"trials"}
    | {f"trials.{name}" for name in ("guards", "hardware_gain", "interval", "judge", "objective", "trial")}
    | {"trials.usage", "trials.workload"}
    | {"process", "process.listener", "process.systemd", "retention", "retention.limits"}
    | {"terminal", "terminal.answers", "terminal.foreign", "terminal.printable"},
    "schedagent.schedagentd": {
        "__main__",
        "admission",
        "breaker",
        "config",
        "decisions",
        "pulses",
        "state",
        "driver",
        "kernel",
        "limits",
        "messages",
        "protection",
        "record",
    }
    | {"rollout", "server", "migrations", "migrations.versions"}
    | {
        f"migrations.v000{name}"
        for name in ("1_first_record", "2_totals", "3_trees_and_metrics", "4_known_good", "5_pulses")
    },
    "kernel_bpf": {
        "load",
        "observe",
        "observe.core_scheduling",
        "observe.real_time",
        "observe.schedulers",
        "observe.tasks",
    }
    | {
        f"load.{name}"
        for name in ("bpf_object", "btf", "exit_info", "libbpf", "locked_memory", "memory", "running", "sched_ext")
    },
}
FORBIDDEN = ("asyncio", "pydantic", "langgraph", "langchain", "openai", "sqlalchemy", "numpy", "http", "ssl")
FORBIDDEN += (
    "subprocess",
    "multiprocessing",
    "typer",
    "rich",
    "agents",
    "verifier",
    "repo_store",
    "concurrent",
    "pickle",
)


class TestTheProgram:
    """The real one, as systemd starts it."""

    @pytest.fixture
    def started(self, tmp_path):
        path = tmp_path / "schedagentd.toml"
        path.write_text(
            f'state_dir = "{tmp_path}/state"\nsocket = "{tmp_path}/s"\nkeys_dir = "{tmp_path}/keys"\nsample_s = 0.5\n'
        )
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(tmp_path / "notify"))
            systemd.settimeout(20)
            told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
            environment = {**os.environ, "PYTHONPATH": str(ROOT), **told}
            words = [sys.executable, "-m", "schedagent.schedagentd", "--config", str(path)]
            process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)
            yield process, systemd, tmp_path
            if process.poll() is None:
                process.kill()
            process.communicate()

    def test_it_tells_systemd_and_stays_small(self, started):
        process, systemd, folder = started
        assert systemd.recv(4096).startswith(b"READY=1\nSTATUS=the default scheduler")
        told = DaemonClient(folder / "s").ask("status")
        assert told["kernel"]["build_id"]
        with pytest.raises(SchedagentError) as refused:
            DaemonClient(folder / "s").ask("deploy", **request_of(), cgroup=CANARY)
        assert "no sched_ext" in refused.value.message or "kernel_release" in refused.value.message
        assert rss_kib(process.pid) < 45 * 1024
        begun = time.monotonic()
        while b"WATCHDOG=1" not in systemd.recv(4096):
            pass
        assert time.monotonic() - begun < 0.6
        process.terminate()
        assert process.wait(10) == 0
        assert not (folder / "s").exists()

    def test_its_modules_are_few_and_known(self):
        """What it imports, all that its work imports later included."""
        program = (
            "import sys; import schedagent.schedagentd.__main__ as m; from schedagent.core.token import _load_public; "
            "from cryptography.hazmat.primitives.asymmetric import ed25519; "
            "from cryptography.exceptions import InvalidSignature; "
            "from cryptography.hazmat.primitives.serialization import load_pem_public_key; "
            "m.load_config(m.Path('/none')); print(*sorted(sys.modules))"
        )
        words = [sys.executable, "-c", program]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        told = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=True)
        modules = set(told.stdout.split())
        for package, expected in OWN_MODULES.items():
            own = {name.removeprefix(f"{package}.") for name in modules if name.startswith(f"{package}.")}
            assert own - expected == set(), package
        assert {name for name in modules if name.partition(".")[0] in FORBIDDEN} == set()

    def test_what_it_logs_is_one_line(self):
        words = [sys.executable, "-m", "schedagent.schedagentd", "--shell\nINFO: in charge: x\x1b[2J"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
        [line] = ended.stderr.splitlines()
        assert (ended.returncode, line.startswith("ERROR: unknown"), line.isprintable()) == (2, True, True)

    def test_bad_usage(self):
        words = [sys.executable, "-m", "schedagent.schedagentd", "--shell"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert (ended.returncode, "unknown arguments: --shell" in ended.stderr) == (2, True)


class TestConfiguration:
    def test_defaults_and_choices(self, tmp_path):
        assert load_config(tmp_path / "none") == Config()
        path = tmp_path / "c.toml"
        path.write_text(
            'users = ["mail"]\nrollback = "not_on_exit"\nprobation_s = { canary = 5 }\nbounds = { worse_ratio = 1 }\n'
        )
        chosen = load_config(path)
        assert (chosen.users, chosen.rollback, chosen.bounds.worse_ratio) == (("mail",), "not_on_exit", 1.0)
        assert chosen.probation_s == Config().probation_s | {Stage.CANARY: 5.0}

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("x = 1", "unknown key 'x'"),
            ('users = "root"', "a list of user names"),
            ('rollback = "never"', "auto, not_on_exit"),
            ("sample_s = 0", "a number from 0.1 to 60"),
            ("watchdog_ms = 1.5", "a whole number"),
            ('socket = "relative"', "the absolute path of a unix socket"),
            (f'socket = "/{"a" * 107}"', "at most 107 bytes long"),
            ('state_dir = "relative"', "an absolute path"),
            ("probation_s = { later = 5 }", "unknown key 'later'"),
            ("bounds = 3", "bounds is not a table"),
            ("bounds = { worse_ratio = true }", "a number from"),
            ("direct_full = 1", "true or false"),
            ('accept_declared = ["weight"]', "weights, idle machine, saturated machine"),
            ('accept_declared = "weights"', "a list of weights"),
            ('accept_reads = ["everything"]', "comm, uid"),
            ("= 3", "cannot be read"),
        ],
    )
    def test_mistakes(self, tmp_path, text, why):
        (tmp_path / "c.toml").write_text(text)
        with pytest.raises(UsageError) as wrong:
            load_config(tmp_path / "c.toml")
        assert why in str(wrong.value)


def test_notifier(tmp_path):
    assert service_watch({}) == ("", 0.0)
    assert service_watch({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "30000000"}) == ("/n", 30.0)
    assert service_watch({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) == ("", 0.0)
    Notifier("", 0.0).tell("READY=1")
    with closing(Notifier(str(tmp_path / "none"), 0.0)) as nobody:
        nobody.tell("READY=1")
    name = f"schedagent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{name}")
        with closing(Notifier(f"@{name}", 0.0)) as notifier:
            notifier.tell("READY=1")
        assert systemd.recv(100) == b"READY=1"
