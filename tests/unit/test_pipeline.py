"""The gates: their order, what closes them, what is skipped then, and the token at the end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from kernel_bpf.source import SOURCE_LIMIT_BYTES
from kernel_bpf.target import KernelTarget
from schedagent.core import token as tokens
from schedagent.core.artifact import PolicyArtifact
from schedagent.core.errors import BpfError, CompileError, KernelRejected, SetupError, VmLost
from schedagent.core.policy import CandidatePolicy, PolicyInfo, Tunable
from schedagent.core.verification import GateStatus
from verifier import pipeline
from verifier.microvm import jobs
from verifier.pipeline import GATES, Verifier
from verifier.signer import Signer

TARGET = KernelTarget("7.3.4", "ab" * 20, Path("/nowhere/vmlinux"), Path("/nowhere"))
SLICE = Tunable("slice_us", "u64", "us", 500, 100_000, 5000, "longer turns")
GOOD = {"name": "hogs", "ok": True, "detail": "longest wait 0.10 s"}
STARVED = {"name": "sleepers", "ok": False, "detail": "latest by 9.00 s"}
PASSED, FAILED, SKIPPED = GateStatus.PASSED, GateStatus.FAILED, GateStatus.SKIPPED


@dataclass
class Ground:
    """A proving ground that answers as told and notes what it was asked."""

    load_error: Exception | None = None
    stress_error: Exception | None = None
    exit_text: str = ""
    findings: tuple = (GOOD,)
    asked: list = field(default_factory=list)

    def check_load(self, policy):
        self.asked.append(("load", policy))
        if self.load_error:
            raise self.load_error
        return jobs.LoadAnswer({"fifo_enqueue": {"verified_instructions": 123}, "fifo_exit": {}})

    def stress(self, policy, seconds):
        self.asked.append(("stress", policy))
        if self.stress_error:
            raise self.stress_error
        return jobs.StressAnswer(self.exit_text, list(self.findings), {"SCX_EV_REENQ": 0, "SCX_EV_DISPATCH": 7})


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    """clang, without clang; tests that want it to fail replace it."""

    def compile_policy(source, name, target, **_options):
        return PolicyArtifact(name, source.read_bytes(), "digest", target.btf_build_id)

    monkeypatch.setattr(pipeline, "compile_policy", compile_policy)


@pytest.fixture
def info(tmp_path):
    source = tmp_path / "fifo.bpf.c"
    source.write_text("int x;\n")
    return PolicyInfo("fifo", "d", (), "a", "l", (SLICE,), (), source)


@pytest.fixture
def candidate(info):
    return CandidatePolicy("fifo", info.configured({"slice_us": 700}))


@pytest.fixture
def signer(tmp_path):
    return Signer(tmp_path / "keys" / "signing.key")


def verify(ground, candidate, info, signer=None, on_gate=lambda _result: None):
    return Verifier(ground, TARGET, Path("/nowhere"), signer, on_gate=on_gate).verify(candidate, info)


def assert_closed(verified, gate, detail, status=FAILED):
    """All gates before passed, this one ended with `status`, all behind it were skipped and say why; no token."""
    report = verified.report
    place = GATES.index(gate)
    expected = [PASSED] * place + [status] + [SKIPPED] * (len(GATES) - place - 1)
    assert [found.status for found in report.gates] == expected
    assert detail in report.gates[place].detail
    for behind in report.gates[place + 1 :]:
        assert behind.detail == f"not run, because gate {gate!r} did not pass"
    assert not report.passed
    assert report.token == ""
    assert (report.failure is not None) == (status is FAILED)


def test_all_gates_pass_in_order_and_a_token_is_issued(candidate, info, signer):
    ground, seen = Ground(), []
    verified = verify(ground, candidate, info, signer, seen.append)
    report, artifact = verified.report, verified.artifact
    assert [result.gate for result in report.gates] == list(GATES)
    assert seen == list(report.gates)
    assert report.passed
    assert (report.policy, report.candidate_key, report.kernel_release) == ("fifo", candidate.key, "7.3.4")
    assert report.artifact_digest == artifact.digest
    token = tokens.decode(report.token)
    assert (token.artifact_digest, token.tunables) == (artifact.digest, (("slice_us", 700),))
    assert (token.kernel_release, token.btf_build_id) == ("7.3.4", TARGET.btf_build_id)
    assert [what for what, _ in ground.asked] == ["load", "stress"]
    assert {policy.artifact.digest for _, policy in ground.asked} == {artifact.digest}, "other bytes were proved"
    details = {result.gate: result.detail for result in report.gates}
    assert details["kernel verifier"] == "2 programs accepted: fifo_enqueue 123, fifo_exit"
    assert "SCX_EV_DISPATCH 7" in details["stress"]
    assert "REENQ" not in details["stress"]
    assert "hogs: longest wait 0.10 s" in details["starvation"]


def test_without_a_signer_there_is_no_token(candidate, info):
    report = verify(Ground(), candidate, info).report
    assert report.passed
    assert report.token == ""


@pytest.mark.parametrize(
    ("ground", "gate", "detail"),
    [
        (Ground(load_error=KernelRejected("R1 invalid mem access")), "kernel verifier", "R1 invalid mem access"),
        (Ground(load_error=BpfError("bpf_object__load", 22, "log")), "kernel verifier", "bpf_object__load"),
        (Ground(stress_error=KernelRejected("init returned -22")), "attach", "init returned -22"),
        (Ground(exit_text="runnable task stall", findings=(STARVED,)), "stress", "runnable task stall"),
        (Ground(findings=(GOOD, STARVED)), "starvation", "sleepers: latest by 9.00 s"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_closes_a_gate(candidate, info, signer, ground, gate, detail):
    assert_closed(verify(ground, candidate, info, signer), gate, detail)
    if gate == "kernel verifier":
        assert [what for what, _ in ground.asked] == ["load"]


@pytest.mark.parametrize(
    ("ground", "gate"),
    [(Ground(load_error=VmLost("no answer")), "kernel verifier"), (Ground(stress_error=VmLost("no answer")), "attach")],
)
def test_a_lost_vm_neither_passes_nor_fails(candidate, info, signer, ground, gate):
    assert_closed(verify(ground, candidate, info, signer), gate, "the VM was lost twice: no answer", SKIPPED)


def test_a_source_that_does_not_compile(candidate, info, signer, monkeypatch):
    def refuse(*_arguments, **_options):
        raise CompileError("fifo.bpf.c:3:1: error: expected ';'")

    monkeypatch.setattr(pipeline, "compile_policy", refuse)
    ground = Ground()
    verified = verify(ground, candidate, info, signer)
    assert_closed(verified, "compile", "fifo.bpf.c:3:1: error: expected ';'")
    assert (verified.artifact, verified.report.artifact_digest, ground.asked) == (None, "", [])


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"x" * (SOURCE_LIMIT_BYTES + 1), f"at most {SOURCE_LIMIT_BYTES} bytes are accepted"),
        (b"int x; // \xff", "not UTF-8 text: byte 10"),
        (None, "cannot be read: No such file or directory"),
    ],
    ids=["too large", "not text", "not there"],
)
def test_sources_that_are_refused(candidate, info, signer, content, detail):
    if content is None:
        info.source.unlink()
    else:
        info.source.write_bytes(content)
    assert_closed(verify(Ground(), candidate, info, signer), "source", detail)


@pytest.mark.parametrize(
    ("tunables", "detail"),
    [({"slice_us": 1}, "slice_us=1 is out of range"), ({"nothing": 1}, "has no tunable 'nothing'")],
)
def test_tunables_that_are_refused(info, signer, tunables, detail):
    candidate = CandidatePolicy("fifo", tuple(tunables.items()))
    assert_closed(verify(Ground(), candidate, info, signer), "source", detail)


def test_a_name_that_is_no_identifier(candidate, info, signer):
    assert_closed(verify(Ground(), candidate, replace(info, name="../fifo"), signer), "source", "letters, digits and _")


def test_what_is_not_the_policy_s_fault_is_raised(candidate, info, signer):
    with pytest.raises(SetupError):
        verify(Ground(load_error=SetupError("qemu is not installed")), candidate, info, signer)
