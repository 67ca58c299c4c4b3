"""The verifier service over a real socket: what it answers, whom it refuses, and what hostile peers get."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pytest

from schedagent.core.errors import CompileError, SetupError, TokenError, UsageError
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo, Tunable
from schedagent.core.policies.rodata import read_rodata
from schedagent.core.process.listener import Admission, Peer, listen, peer_of
from schedagent.core.process.machine_lock import LAB_LOCK
from schedagent.core.token import Scope, check, decode, digest_inputs
from schedagent.core.trusted import load_trusted
from schedagent.core.verification import GateStatus
from tests.support.verifier_service_process import Service, alive, answers, running, wait_for
from verifier.service.client import RemoteVerifier
from verifier.service.messages import MOST_HEADERS, MOST_PARTS, read_request
from verifier.service.worker import unpack
from verifier.signer import Signer

SLICE = Tunable("slice_us", "u64", "us", 500, 100_000, 5000, "longer turns")
NOBODY = 65534

pytestmark = pytest.mark.timeout(60)


def request(policy="good", **changes):
    return {"version": 1, "policy": policy, "source": "int x;\n"} | changes


@pytest.fixture(scope="module")
def service():
    with running("request_s=1") as found:
        yield found
        assert found.stop() == 0, found.log
        assert "Traceback" not in found.log.replace(EXPECTED_TRACEBACK, "")
        assert not found.path.exists()
        assert found.left_behind == []


EXPECTED_TRACEBACK = "a request failed\nTraceback"


def client(service, **options):
    return RemoteVerifier(service.path, **options)


@pytest.fixture
def info(tmp_path):
    return info_of(tmp_path, "good")


def info_of(folder, name, text="int x;\n"):
    source = folder / f"{name}.bpf.c"
    source.write_text(text)
    return PolicyInfo(name, "d", (), "a", "l", (SLICE,), ("history",), source)


def candidate_of(info, **tunables):
    return CandidatePolicy(info.name, info.configured(tunables), history=((2**64 - 1, 5),))


class TestAnswers:
    def test_gates_come_as_they_end_then_report_object_and_token(self, service, info):
        seen = []
        candidate = candidate_of(info, slice_us=700)
        verified = client(service, on_gate=seen.append, kernel="7.3.4").verify(candidate, info)
        report, artifact = verified.report, verified.artifact
        assert [gate.gate for gate in seen] == ["source", "scratch"]
        assert tuple(seen) == report.gates
        assert report.passed
        assert report.verified_by == f"the service at {service.path}"
        assert artifact.object_bytes == b"int x;\n"
        token = check(
            report.token,
            load_trusted(service.keys / "trusted"),
            artifact_digest=artifact.digest,
            tunables=candidate.tunables,
            inputs_digest=digest_inputs(candidate.history, ()),
            report_digest=report.digest,
            kernel_release="7.3.4",
            btf_build_id=artifact.btf_build_id,
            live_patches=(),
            scope=Scope.FULL,
            now=time.time(),
        )
        assert token.tunables == (("slice_us", 700),)

    def test_scope_reaches_the_token(self, service, info):
        report = client(service, scope=Scope.PARTIAL, cgroup="/a").verify(candidate_of(info), info).report
        assert (decode(report.token).scope, decode(report.token).cgroup) == (Scope.PARTIAL, "/a")

    def test_compile_only(self, service, info, tmp_path):
        assert client(service).compile(info).object_bytes == b"int x;\n"
        with pytest.raises(CompileError, match=r"refused\.bpf\.c:1:1: error") as caught:
            client(service).compile(info_of(tmp_path, "refused"))
        assert caught.value.hint == "repair it"

    def test_an_object_instead_of_a_source(self, service, tmp_path):
        place = tmp_path / "made.bpf.o"
        place.write_bytes(b"\x7fELF\0\xff")
        info = PolicyInfo("made", "d", (), "a", "l", (), (), place)
        assert client(service).compile(info).object_bytes == b"\x7fELF\0\xff"
        *_gates, last = service.ask(request("made", source=None, object_base64=base64.b64encode(b"\xff").decode()))
        assert base64.b64decode(last["object"]["object_base64"]) == b"\xff"

    def test_nothing_is_left_when_the_last_answer_comes(self, service):
        said_before = len(service.log)
        *_gates, last = service.ask(request("brief"))
        assert last["report"]
        assert service.left_behind == []
        assert "went away" not in service.log[said_before:]

    def test_files_lie_in_a_folder_of_the_request_only(self, service):
        gates = [answer["gate"] for answer in service.ask(request(headers={"a/b.h": "B", "c.h": "C"}))[:-1]]
        assert gates[0]["detail"] == "a/b.h=B; c.h=C; good.bpf.c=int x;\n"
        include_dir, scratch = map(Path, gates[1]["detail"].split())
        assert include_dir.parent == scratch
        assert not scratch.exists()

    def test_left_out_tunables_have_their_default(self, service):
        documented = [{"name": n, "type": "u64", "unit": "us", "minimum": 0, "maximum": 9, "default": 3, "effect": "e"}
                      for n in ("b", "a")]  # fmt: skip
        *_gates, last = service.ask(request(documented=documented, tunables={"b": 5}))
        assert decode(last["report"]["token"]).tunables == (("a", 3), ("b", 5))

    def test_a_wait_for_the_lab_is_shown_here_and_counts_here(self, service, tmp_path, monkeypatch):
        lines, before = [], LAB_LOCK.waited_s
        monkeypatch.setattr(LAB_LOCK, "on_wait", lambda line, _seconds: lines.append(line))
        info = info_of(tmp_path, "queued")
        assert client(service).verify(candidate_of(info), info).report.passed
        assert lines == ["waiting until this machine's lab is free: it measures for run 1", ""]
        assert LAB_LOCK.waited_s - before == 12.5

    def test_large_answers(self, service, tmp_path):
        info = info_of(tmp_path, "large")
        report = client(service).verify(candidate_of(info), info).report
        assert len(report.gates[2].detail) == 8 << 20


class TestFaults:
    @pytest.mark.parametrize("policy", ["crash", "leave"])
    def test_a_worker_that_dies_is_no_verdict(self, service, policy):
        *_gates, last = service.ask(request(policy))
        assert last["fault"]["kind"] == "SetupError"
        assert "ended early" in last["fault"]["message"]
        assert service.ask(request())[-1]["report"], "the service goes on"

    @pytest.mark.parametrize("policy", ["wrong", "surrogate"])
    def test_a_mistake_of_ours_tells_no_more_than_its_type(self, service, policy):
        *_gates, last = service.ask(request(policy))
        assert last["fault"]["kind"] == "SetupError"
        assert "the verifier failed" in last["fault"]["message"]
        assert "secret" not in json.dumps(last)

    def test_an_answer_that_contradicts_itself_is_refused_by_the_client(self, service, tmp_path):
        info = info_of(tmp_path, "liar")
        with pytest.raises(SetupError, match="its object of the token is 'abab"):
            client(service).verify(candidate_of(info), info)

    def test_a_report_that_no_trusted_key_signed_is_refused_by_the_client(self, service, info, tmp_path):
        client(service).verify(candidate_of(info), info)  # the first makes the service's key
        ours, other = load_trusted(service.keys / "trusted"), Signer(tmp_path / "keys" / "key").public_key
        assert client(service, trusted=(other, *ours)).verify(candidate_of(info), info).report.passed
        with pytest.raises(TokenError, match="none of the trusted ones"):
            client(service, trusted=(other,)).verify(candidate_of(info), info)

    def test_no_service(self, tmp_path, info):
        with pytest.raises(SetupError, match="No such file") as caught:
            RemoteVerifier(tmp_path / "none").compile(info)
        assert "schedagent verifier serve" in caught.value.hint

    @pytest.mark.parametrize(
        ("answer", "why"),
        [
            (b"", "ended early, after 0 bytes"),
            (b'{"gate":', "ended early, after 8 bytes"),
            (b"{}\n", "cannot be used: GateAnswer.gate: Field required"),
            (b'{"report":null,"object":null}\n', "it holds no report"),
            (b"\xff\n", "cannot be used"),
            (b'{"fault":{"kind":"SystemExit","message":"m","hint":""}}\n', "^m$"),
        ],
    )
    def test_a_service_that_lies(self, tmp_path, info, answer, why):
        listener = listen(tmp_path / "s", None)
        with ThreadPoolExecutor(1) as pool, listener:
            pool.submit(answer_once, listener, answer)
            with pytest.raises(SetupError, match=why):
                RemoteVerifier(tmp_path / "s").verify(candidate_of(info), info)


def answer_once(listener, answer):
    connection, _ = listener.accept()
    with connection:
        connection.makefile("rb").readline()
        connection.sendall(answer)


class TestHostileRequests:
    @pytest.mark.parametrize(
        "changes",
        [
            {"version": 2},
            {"policy": "../x"},
            {"policy": ""},
            {"policy": "x" * 101},
            {"policy": "x\n"},
            {"source": 1},
            {"source": None},
            {"object_base64": "AA=="},
            {"source": None, "object_base64": "A"},
            {"source": None, "object_base64": "é"},
            {"tunables": {"a": "1"}},
            {"tunables": {"a": True}},
            {"tunables": {"a": 1.5}},
            {"tunables": {"a": 1 << 64}},
            {"tunables": {"a": -(1 << 63) - 1}},
            {"tunables": [["a", 1]]},
            {"history": [[1]]},
            {"history": [[-1, 1]]},
            {"inputs": ["secrets"]},
            {"declares": ["starvation"]},
            {"declares": "weights"},
            {"kernel": "../../etc"},
            {"kernel": "-o"},
            {"scope": "everything"},
            {"documented": [{"name": "a"}]},
            {"unknown": 1},
            {"headers": {f"{number}.h": "" for number in range(MOST_HEADERS + 1)}},
            {"parts": [["../x.bpf.c", ""]]},
            {"parts": [["x.h", ""]]},
            {"parts": [["x.c", ""]] * (MOST_PARTS + 1)},
            {"source": None, "object_base64": "AA==", "parts": [["x.c", ""]]},
            {"rodata": {"rodata": {"a b": 1}}},
            {"rodata": {"maps": {}}},
            {"rodata": {"rodata": {"a": 1.5}}},
            {"rodata": {"ops": {"enqueue": 1}}},
        ],
        ids=lambda changes: json.dumps(changes)[:40],
    )
    def test_wrong_fields(self, service, changes):
        kind, message = service.fault(request(**changes))
        assert kind == "UsageError"
        assert message.startswith("the request cannot be used: ")
        assert len(message) < 2000

    @pytest.mark.parametrize(
        "path",
        [
            *("", "/etc/passwd", "../x.h", "a/../x.h", "a//x.h", "a/", "./a.h", ".a.h", "a/.b/c.h", "~/x.h"),
            *("a\0.h", "a b.h", "a\n.h", "é.h", "a\\b.h", "x" * 101, "a/b/c/d/e/f/g/h/i.h", "good.bpf.c", "good.bpf.o"),
        ],
    )
    def test_paths_of_headers(self, service, path):
        kind, message = service.fault(request(headers={path: "text"}))
        assert (kind, "header" in message) == ("UsageError", True)

    def test_a_header_that_is_a_folder_too(self, service):
        assert "another file" in service.fault(request(headers={"a/b.h": "", "a": ""}))[1]

    @pytest.mark.parametrize(
        "line",
        [
            b"\n",
            b"null\n",
            b"[]\n",
            b"garbage\n",
            b"\xff\xfe\n",
            b"\0" * 1000 + b"\n",
            b"[" * 100_000 + b"\n",
            b'{"version":' + b"9" * 10_000 + b"}\n",
            b"GET / HTTP/1.1\r\n\r\n",
        ],
        ids=lambda line: repr(line[:12]),
    )
    def test_garbage(self, service, line):
        assert service.fault(line)[0] == "UsageError"

    def test_too_large(self, service):
        line = json.dumps(request(source="x" * (4 << 20))).encode() + b"\n"
        assert "larger than 4194304 bytes" in service.fault(line)[1]
        assert "larger than 4194304 bytes" in service.fault(b"x" * (6 << 20))[1], "without any newline"
        *_gates, last = service.ask(request(source="x" * (4 << 20 >> 1)))
        assert last["report"]["policy"] == "good"

    def test_silence_and_half_a_request(self, service):
        started = time.monotonic()
        for beginning in (b"", b'{"version":1,'):
            with service.connect() as connection:
                connection.sendall(beginning)
                [answer] = answers(connection)
            assert "was not complete within 1 s" in answer["fault"]["message"]
        assert time.monotonic() - started < 10

    def test_a_request_that_trickles(self, service):
        with service.connect() as connection, suppress(ConnectionError):
            for _ in range(30):
                connection.sendall(b" ")
                time.sleep(0.1)
        with pytest.raises(ConnectionError):
            connection_after_limit(service)

    def test_an_end_in_the_middle(self, service):
        with service.connect() as connection:
            connection.sendall(b'{"version":1')
            connection.shutdown(socket.SHUT_WR)
            [answer] = answers(connection)
        assert "ended after 12 bytes" in answer["fault"]["message"]

    def test_fifty_at_once(self):
        with running("user_connections=50") as service:
            self.ask_fifty(service)

    @staticmethod
    def ask_fifty(service):
        def ask(number):
            return service.ask(request("brief", tunables={"a": number}))[-1]

        with ThreadPoolExecutor(50) as pool:
            found = list(pool.map(ask, range(50)))
        served = [number for number, answer in enumerate(found) if "report" in answer]
        for number, answer in enumerate(found):
            if number in served:
                assert decode(answer["report"]["token"]).tunables == (("a", number),), "answers were mixed up"
            else:
                assert "busy" in answer["fault"]["message"]
        assert len(served) >= 16
        assert service.ask(request())[-1]["report"]

    def test_a_peer_that_never_reads(self, service):
        with service.connect() as connection:
            connection.sendall(json.dumps(request("large")).encode() + b"\n")
            time.sleep(1)
        assert service.ask(request())[-1]["report"]
        wait_for(lambda: service.left_behind == [])


def connection_after_limit(service):
    """A peer that was told to go may not go on."""
    with service.connect() as connection:
        time.sleep(1.5)
        for _ in range(100):
            connection.sendall(b"x" * 4096)
            time.sleep(0.01)


@dataclass
class Slow:
    """A request that takes long: its connection, the answers so far read, its worker's pid and that of a child."""

    connection: socket.socket
    stream: BinaryIO
    worker: int
    child: int

    @property
    def ended(self) -> bool:
        return not alive(self.worker) and not alive(self.child)

    def leave(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)

    def fault(self) -> str:
        return json.loads(self.stream.readline())["fault"]["message"]


@contextmanager
def slow(service, policy="slow"):
    with asking(service, request(policy)) as connection, connection.makefile("rb") as stream:
        for _ in range(2):
            stream.readline()
        worker, child = map(int, json.loads(stream.readline())["gate"]["detail"].split())
        assert alive(worker)
        assert alive(child)
        yield Slow(connection, stream, worker, child)


@contextmanager
def asking(service, message):
    """A connection over which a message was sent."""
    with service.connect() as connection:
        connection.sendall(json.dumps(message).encode() + b"\n")
        yield connection


class TestCancelling:
    @pytest.mark.parametrize("policy", ["slow", "still"])
    def test_a_peer_that_goes_away(self, service, policy):
        """Also if the worker itself cannot do anything any more."""
        with slow(service, policy) as begun:
            pass
        wait_for(lambda: begun.ended)
        wait_for(lambda: service.left_behind == [])

    def test_a_peer_that_goes_on_talking(self, service):
        with slow(service) as begun:
            begun.connection.sendall(b"more\n")
            wait_for(lambda: begun.ended)

    def test_one_that_waits_for_its_turn(self):
        with running("parallel=1") as service, slow(service) as first:
            with asking(service, request()):
                time.sleep(0.2)
            with asking(service, request()) as last:
                first.leave()
                assert answers(last)[-1]["report"]["policy"] == "good"

    def test_the_time_limit(self):
        with running("connection_s=3") as service, slow(service) as begun:
            assert "not answered within 3 s" in begun.fault()
            wait_for(lambda: begun.ended)

    def test_too_many_wait(self):
        limits = ("parallel=1", "waiting=1", "connections=3")
        with running(*limits) as service, slow(service) as first, asking(service, request()) as second:
            time.sleep(0.3)
            assert "busy: 1 requests wait" in service.fault(request())[1]
            with service.connect(), service.connect() as fourth:
                assert "has 3 connections already" in answers(fourth)[0]["fault"]["message"]
            first.leave()
            assert answers(second)[-1]["report"]

    def test_nobody_takes_every_connection(self):
        with running("user_connections=2") as service, service.connect() as first, service.connect():
            with service.connect() as third:
                assert f"user id {os.getuid()} has 2 requests here already" in answers(third)[0]["fault"]["message"]
            first.close()
            wait_for(lambda: "report" in service.ask(request())[-1])

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_stopping(self, number):
        with running() as service, slow(service) as begun:
            service.process.send_signal(number)
            assert "is stopping" in begun.fault()
            assert service.process.wait(20) == 0
            wait_for(lambda: begun.ended)
            assert not service.path.exists()
            assert service.left_behind == []
            assert "Traceback" not in service.log
            assert "Exception" not in service.log

    def test_killed(self):
        """Even after kill -9 no worker goes on, and the next service takes the socket over."""
        with running() as service, slow(service) as begun:
            service.process.kill()
            service.process.wait()
            wait_for(lambda: begun.ended)
            assert service.path.exists()
            again = Service(service.folder)
            assert again.ask(request())[-1]["report"]
            assert again.stop() == 0


class TestPeers:
    def test_who_it_is(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert peer_of(ours) == Peer(os.getpid(), os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))

    @pytest.mark.parametrize(
        ("peer", "admitted"),
        [
            (Peer(1, 0, frozenset()), True),
            (Peer(1, os.geteuid(), frozenset()), True),
            (Peer(1, 4242, frozenset({4242})), False),
            (Peer(1, 1001, frozenset()), True),
            (Peer(1, 4242, frozenset({4242, 77})), True),
        ],
    )
    def test_admission(self, peer, admitted):
        assert Admission(frozenset({1001}), frozenset({77})).admits(peer) is admitted

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_somebody_else_is_refused(self, service):
        assert connect_as_nobody(service.path) == b"EACCES"
        service.path.chmod(0o666)
        try:
            said = json.loads(connect_as_nobody(service.path))
        finally:
            service.path.chmod(0o600)
        assert said["fault"]["kind"] == "UsageError"
        assert f"of user id {NOBODY} may not use this verifier" in said["fault"]["message"]


def connect_as_nobody(path):
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "try:\n    s.connect(sys.argv[1])\n"
        "except PermissionError:\n    print('EACCES', end='')\n"
        "else:\n    print(s.makefile().readline(), end='')\n"
    )
    system_python = "/usr/bin/python3"
    words = [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        system_python,
        "-c",
        code,
        str(path),
    ]
    return subprocess.run(words, capture_output=True, check=True, timeout=20).stdout


def test_parts_and_what_a_loader_sets_are_unpacked_beside_the_headers(tmp_path):
    rodata = read_rodata({"rodata": {"a": 1, "b": [1, 2]}, "ops": {"flags": ["SCX_OPS_ENQ_LAST"]}}, "it")
    sent = request(parts=[["x.bpf.c", "int x;"], ["x.bpf.c", "int y;"]], rodata=rodata.table)
    submission = unpack(read_request(json.dumps(sent).encode()), tmp_path / "files")
    assert submission.info.rodata == rodata
    assert [path.name for path in submission.info.parts] == ["x.bpf.c"] * 2
    assert [path.read_text() for path in submission.info.parts] == ["int x;", "int y;"]
    assert not any(path.is_relative_to(submission.include_dir) for path in submission.info.parts)


class TestHeaders:
    def test_they_reach_the_service(self, service, tmp_path):
        (tmp_path / "near.h").write_text("N")
        info = info_of(tmp_path, "good", '#include "near.h"\n')
        report = client(service).verify(candidate_of(info), info).report
        assert "near.h=N" in report.gates[0].detail
        assert report.gates[0].status is GateStatus.PASSED

    def test_parts_do_so_with_theirs(self, service, tmp_path):
        (tmp_path / "near.h").write_text("N")
        info = replace(info_of(tmp_path, "good", "int x;\n"), parts=(tmp_path / "part.bpf.c",))
        info.parts[0].write_text('#include "near.h"\n')
        assert "near.h=N" in client(service).verify(candidate_of(info), info).report.gates[0].detail

    def test_two_headers_of_one_path_are_refused(self, service, tmp_path):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "near.h").write_text(name)
            (tmp_path / name / "part.bpf.c").write_text('#include "near.h"\n')
        parts = tuple(tmp_path / name / "part.bpf.c" for name in ("one", "two"))
        info = replace(info_of(tmp_path, "good", "int x;\n"), parts=parts)
        with pytest.raises(UsageError, match="includes another near"):
            client(service).verify(candidate_of(info), info)
