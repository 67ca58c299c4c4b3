"""The gates: their order, what closes them, what is skipped then, and the token at the end."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kernel_bpf.build.source import SOURCE_LIMIT_BYTES, read_source
from kernel_bpf.build.target import KernelTarget
from schedagent.core import token as tokens
from schedagent.core.deployment import LARGEST_OBJECT_BYTES
from schedagent.core.errors import BpfError, CompileError, HostBusy, KernelRejected, PolicyError, SetupError, VmLost
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo, Standing, Tunable
from schedagent.core.policies.proposal import Origin
from schedagent.core.rules import GATES
from schedagent.core.verification import Coverage, Finding, GateStatus, Place, Severity
from tests.support.elf_parts import Part, Parts
from verifier import pipeline, submission
from verifier import report_cache as report_cache_module
from verifier.coverage.judge import Judgement
from verifier.microvm import jobs
from verifier.microvm.topology import Topology
from verifier.pipeline import KernelBench, Verifier
from verifier.proving.identity import NOTHING_WORN
from verifier.proving.prove import COVERAGE, Depth
from verifier.report_cache import ReportCache
from verifier.signer import Signer

TARGET = KernelTarget("7.3.4", "ab" * 20, Path("/nowhere/vmlinux"), Path("/nowhere"))
OLDER = KernelTarget("6.16.12", "cd" * 20, Path("/nowhere/vmlinux"), Path("/nowhere"))
SLICE = Tunable("slice_us", "u64", "us", 500, 100_000, 5000, "longer turns")
PASSED, FAILED, SKIPPED = GateStatus.PASSED, GateStatus.FAILED, GateStatus.SKIPPED
NOT_REQUESTED = GateStatus.NOT_REQUESTED
ABSENT = GateStatus.NOT_APPLICABLE
LOST_TASK = Finding(18, Severity.ERROR, "enqueue", "fifo.bpf.c", 7, "a path neither inserts nor stores the task")
NO_KICK = Finding(20, Severity.WARNING, "enqueue", "fifo.bpf.c", 9, "no kick", cleared_by="work conservation")


def oracle(name, rule, ok=True, detail="0.10 s"):
    return {"name": name, "rule": rule, "ok": ok, "measured": 0.1, "bound": 1.0, "unit": "s", "detail": detail}


ORACLES = (oracle("starvation", 29), oracle("work conservation", 20), oracle("idle machine", 30))


@dataclass
class Ground:
    """A proving ground that answers as told and notes what it was asked."""

    load_error: Exception | None = None
    prove_error: Exception | None = None
    exit_text: str = ""
    results: tuple = ORACLES
    undecided: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    phases: list = field(default_factory=list)
    closed: int = 0
    shapes: list = field(default_factory=list)
    on_shape: object = jobs.ProveAnswer("", [], {}, {})
    versions: tuple = ("2", "512", "tcg", "QEMU 10")

    def cell(self, policy):
        return Cell(self, policy)

    def load(self, policy):
        self.asked.append(("load", policy))
        if self.load_error:
            raise self.load_error
        return jobs.LoadAnswer({"fifo_enqueue": {"verified_instructions": 123}, "fifo_exit": {}})

    def prove(self, policy, phases):
        self.asked.append(("prove", policy))
        self.phases = phases
        if self.prove_error:
            raise self.prove_error
        events = {"SCX_EV_REENQ": 0, "SCX_EV_DISPATCH": 7}
        return jobs.ProveAnswer(self.exit_text, list(self.results), events, {"load": 0.0}, undecided=self.undecided)


@dataclass
class Cell:
    """A machine of such a ground."""

    ground: Ground
    policy: object

    def load(self):
        return self.ground.load(self.policy)

    def prove(self, _depth, phases):
        return self.ground.prove(self.policy, phases)

    def prove_on(self, topology, _depth):
        self.ground.shapes.append(topology)
        if isinstance(self.ground.on_shape, Exception):
            raise self.ground.on_shape
        results = [result | {"topology": str(topology)} for result in self.ground.on_shape.results]
        return replace(self.ground.on_shape, results=results)

    def close(self):
        self.ground.closed += 1


@pytest.fixture(autouse=True)
def static(monkeypatch):
    """The static layers without clang and without an object; tests that want them to find something set it."""
    found = SimpleNamespace(source=(), logic=(), compiled=[], never_ran=(), lacks="It lacks nothing.")

    def compile_policy(source, name, target, **_options):
        found.compiled.append((name, target.release))
        return PolicyArtifact(name, read_source(source) + target.release.encode(), "digest", target.btf_build_id)

    monkeypatch.setattr(submission, "compile_policy", compile_policy)
    monkeypatch.setattr(pipeline, "check_sources", lambda *_arguments, **_options: found.source)
    monkeypatch.setattr(pipeline, "read_object", lambda object_bytes, _inlined: object_bytes)
    monkeypatch.setattr(pipeline.lacks, "sentence", lambda *_object: found.lacks)
    monkeypatch.setattr(pipeline, "worn_for", lambda _image: NOTHING_WORN)
    monkeypatch.setattr(pipeline, "features", lambda _target: frozenset())
    monkeypatch.setattr(pipeline, "enum_values", lambda _target: {})

    def check_logic(_image, _features, _enums, tunables, **_origin):
        found.judged = tunables
        return SimpleNamespace(
            summary="9 callbacks", findings=found.logic, unfilled=(), handed_over=False, limits=(), kept=()
        )

    def judge(answer, standing, include_dirs):
        found.marks = answer.passed, standing, include_dirs
        return Judgement(Coverage(4, 3, (Place("fifo.bpf.c", 9),), 2, 2), found.never_ran)

    monkeypatch.setattr(pipeline, "check_logic", check_logic)
    monkeypatch.setattr(pipeline.measure, "measured", lambda *_policy: SimpleNamespace(copy=None, judge=judge))
    return found


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


def verifier(ground, signer=None, **fields):
    return Verifier((KernelBench(ground, TARGET),), Path("/nowhere"), signer, **fields)


def verify(ground, candidate, info, signer=None, **fields):
    return verifier(ground, signer, **fields).verify(candidate, info)


def assert_closed(verified, gate, detail, status=FAILED, *, object_made=True):
    """All gates before passed, this one ended with `status`, all behind it were skipped and say why; no token.

    Of the static gates all run: the others passed, as far as there is an object.
    """
    report = verified.report
    place = GATES.index(gate)
    last_run = max(place, GATES.index("scheduling logic")) if object_made else GATES.index("compile")
    expected = [PASSED] * (last_run + 1) + [SKIPPED] * (len(GATES) - last_run - 1)
    expected[place] = status
    if not object_made:
        expected[last_run] = FAILED
    assert [found.status for found in report.gates] == expected
    assert detail in report.gates[place].detail
    for behind in report.gates[last_run + 1 :]:
        blamed = gate if object_made or behind.gate != "scheduling logic" else "compile"
        assert behind.detail == f"not run, because gate {blamed!r} did not pass"
    assert not report.passed
    assert report.token == ""
    assert (report.failure is not None) == (status is FAILED)


def test_all_gates_pass_in_order_and_a_token_is_issued(candidate, info, signer):
    ground, seen = Ground(), []
    verified = verify(ground, candidate, info, signer, on_gate=seen.append)
    report, artifact = verified.report, verified.artifact
    assert [result.gate for result in report.gates] == list(GATES)
    assert seen == list(report.gates)
    assert report.passed
    assert (report.policy, report.candidate_key, report.kernel_release) == ("fifo", candidate.key, "7.3.4")
    assert report.artifact_digest == artifact.digest
    token = tokens.decode(report.token)
    assert (token.artifact_digest, token.tunables) == (artifact.digest, (("slice_us", 700),))
    assert (token.kernel_release, token.btf_build_id) == ("7.3.4", TARGET.btf_build_id)
    assert (token.report_digest, token.scope) == (report.digest, "full")
    assert [what for what, _ in ground.asked] == ["load", "prove"]
    assert ground.closed == 1, "the machine of both gates was left running"
    assert {policy.artifact.digest for _, policy in ground.asked} == {artifact.digest}, "other bytes were proved"
    details = {result.gate: result.detail for result in report.gates}
    assert details["kernel verifier"] == "2 programs accepted, 123 instructions walked"
    assert details["proving ground"] == (
        "2 oracles hold; kernel events: SCX_EV_DISPATCH 7; 3 of 4 branches ran, 2 of 2 queues were used;"
        " never: fifo.bpf.c:9; proved on 2x2x1x2, too"
    )
    assert details["overhead"] == "1 oracles hold"


@pytest.mark.parametrize("depth", Depth, ids=lambda depth: depth.name)
def test_what_a_stranger_wrote_is_measured_and_judged_by_groups_at_every_depth(candidate, info, signer, static, depth):
    ground = Ground()
    report = verify(ground, candidate, info, signer, depth=depth).report
    assert {"groups", "moved clock", COVERAGE} < set(ground.phases)
    assert report.coverage.ran == 3


def test_our_own_policies_are_measured_in_a_thorough_proof_only(candidate, info, signer, static, monkeypatch):
    monkeypatch.setattr(submission, "standing", lambda *_policy: Standing.BUNDLED)
    ground = Ground()
    assert verify(ground, candidate, info, signer).report.coverage is None
    assert not {"groups", "moved clock", COVERAGE} & set(ground.phases)
    assert verify(ground, candidate, info, signer, depth=Depth.THOROUGH).report.coverage.ran == 3
    assert {"groups", "moved clock", COVERAGE} < set(ground.phases)


def test_without_a_signer_there_is_no_token(candidate, info):
    report = verify(Ground(), candidate, info).report
    assert report.passed
    assert report.token == ""


@pytest.mark.parametrize(
    ("ground", "gate", "detail"),
    [
        (Ground(load_error=KernelRejected("R1 invalid mem access")), "kernel verifier", "R1 invalid mem access"),
        (Ground(load_error=BpfError("bpf_object__load", 22, "log")), "kernel verifier", "bpf_object__load"),
        (Ground(prove_error=KernelRejected("init returned -22")), "attach", "init returned -22"),
        (Ground(exit_text="runnable task stall"), "proving ground", "runnable task stall"),
        (Ground(results=(oracle("yield", 29, ok=False, detail="9 s"),)), "proving ground", "yield: 9 s"),
        (Ground(results=(oracle("idle machine", 30, ok=False, detail="0.8"),)), "overhead", "idle machine: 0.8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_closes_a_gate(candidate, info, signer, ground, gate, detail):
    assert_closed(verify(ground, candidate, info, signer), gate, detail)
    if gate == "kernel verifier":
        assert ground.closed == 1
        assert [what for what, _ in ground.asked] == ["load"]


@pytest.mark.parametrize(
    ("ground", "gate"),
    [(Ground(load_error=VmLost("no answer")), "kernel verifier"), (Ground(prove_error=VmLost("no answer")), "attach")],
)
def test_a_lost_vm_neither_passes_nor_fails(candidate, info, signer, ground, gate):
    assert_closed(verify(ground, candidate, info, signer), gate, "the VM was lost twice: no answer", SKIPPED)


def test_a_host_too_busy_to_measure_neither_passes_nor_fails(candidate, info, signer, tmp_path):
    """It passed before: an oracle that had seen nothing was one that held."""
    reports = ReportCache(tmp_path / "reports", lambda _token, _digest: True)
    busy = Ground(results=ORACLES[:2], undecided={"idle machine": "0 pairs; 7 more were disturbed by a busy host"})
    verified = verify(busy, candidate, info, signer, report_cache=reports)
    assert_closed(verified, "overhead", "no verdict: this host was too busy to measure the overhead", SKIPPED)
    [*_, last] = verified.report.gates
    assert last.detail.endswith(
        "(idle machine: 0 pairs; 7 more were disturbed by a busy host); verify again when it has less to do"
    )
    assert verified.report.conclusion == "incomplete: gate 'overhead' has no verdict"
    assert not list(tmp_path.glob("reports/*")), "what has no verdict was cached"
    assert verify(Ground(), candidate, info, signer, report_cache=reports).report.passed


def test_any_oracle_without_a_verdict_keeps_the_policy_from_passing(candidate, info, signer):
    busy = Ground(undecided={"pinned crowd": "the crowd was not there, or not woken, in time"})
    said = "no verdict: this host was too busy to measure all that is measured here (pinned crowd: the crowd"
    assert_closed(verify(busy, candidate, info, signer), "proving ground", said, SKIPPED)


def test_one_loss_that_is_certain_fails_whatever_else_could_not_be_measured(candidate, info, signer):
    lost = oracle("saturated machine", 30, ok=False, detail="0.4 certainly lost")
    busy = Ground(results=(*ORACLES[:2], lost), undecided={"idle machine": "0 pairs"})
    assert_closed(verify(busy, candidate, info, signer), "overhead", "saturated machine: 0.4 certainly lost")


def test_what_a_policy_declares_not_to_seek_needs_no_verdict(candidate, info, signer):
    busy = Ground(results=ORACLES[:2], undecided={"idle machine": "0 pairs"})
    declared = replace(info, declares=("idle machine",))
    assert verify(busy, candidate, declared, signer).report.passed


def test_a_host_that_held_a_cpu_is_not_a_lost_vm(candidate, info, signer):
    held = HostBusy("a CPU of the machine stood still for 0.4 s", "verify again when this host has less to do")
    verified = verify(Ground(prove_error=held), candidate, info, signer)
    assert_closed(verified, "attach", "no verdict: a CPU of the machine stood still for 0.4 s; verify again", SKIPPED)


def test_a_source_that_does_not_compile(candidate, info, signer, monkeypatch):
    def refuse(*_arguments, **_options):
        raise CompileError("fifo.bpf.c:3:1: error: expected ';'")

    monkeypatch.setattr(submission, "compile_policy", refuse)
    ground = Ground()
    verified = verify(ground, candidate, info, signer)
    assert_closed(verified, "compile", "fifo.bpf.c:3:1: error: expected ';'", object_made=False)
    assert verified.report.safe is None, "nothing was there to be judged"
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
    assert_closed(verify(Ground(), candidate, info, signer), "source", detail, object_made=False)


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


def rules(report):
    return [finding.rule for finding in report.findings]


@pytest.mark.parametrize(("layer", "gate"), [("source", "source"), ("logic", "scheduling logic")])
def test_an_error_of_a_static_layer_closes_its_gate(candidate, info, signer, static, layer, gate):
    setattr(static, layer, (LOST_TASK, NO_KICK))
    ground = Ground()
    verified = verify(ground, candidate, info, signer)
    assert_closed(verified, gate, "1 errors, of rule 18")
    assert (rules(verified.report), ground.asked) == ([18, 20], [])


def test_an_unreadable_object_closes_the_logic_gate(candidate, info, signer, monkeypatch):
    def refuse(_object_bytes, _inlined):
        raise PolicyError("not an ELF file")

    monkeypatch.setattr(pipeline, "read_object", refuse)
    assert_closed(verify(Ground(), candidate, info, signer), "scheduling logic", "not an ELF file")


def test_a_warning_is_cleared_by_its_oracle(candidate, info, signer, static):
    static.logic = (NO_KICK,)
    report = verify(Ground(), candidate, info, signer).report
    assert report.passed
    assert report.clears(NO_KICK)
    assert "1 warnings" in report.gates[2].detail


def test_a_warning_that_nothing_cleared_closes_the_proving_ground(candidate, info, signer, static):
    static.logic = (NO_KICK,)
    ground = Ground(results=(oracle("starvation", 29),))
    assert_closed(verify(ground, candidate, info, signer), "proving ground", "work conservation did not run")
    ground = Ground(results=(oracle("work conservation", 20, ok=False, detail="idle 0.9 s"),))
    failed = verify(ground, candidate, info, signer).report
    assert failed.failure.detail == "work conservation: idle 0.9 s"
    assert failed.token == ""


def test_what_the_kernel_says_names_the_rule(candidate, info):
    said = "invalid CPU -1 from ops.select_cpu()"
    assert rules(verify(Ground(exit_text=said), candidate, info).report) == [1]
    assert rules(verify(Ground(exit_text="words nobody knows"), candidate, info).report) == []
    refused = Ground(load_error=KernelRejected("infinite loop detected at insn 7"))
    assert rules(verify(refused, candidate, info).report) == [28]


UNWEIGHTED = (*ORACLES, oracle("weights", 22, ok=False, detail="1.0"))
UNCHARGED = Finding(22, Severity.ERROR, "stopping", "fifo.bpf.c", 20, "weights are not looked at")
UNBOUNDED = Finding(24, Severity.ERROR, "enqueue", "fifo.bpf.c", 11, "a slice without a range")
NAMED = Finding(32, Severity.NOTE, "enqueue", "fifo.bpf.c", 30, "comm decides an order", word="reads:comm")


def test_what_is_unfair_stops_nothing_and_gets_no_token(candidate, info, signer):
    """It may be tried in the lab, and the report says which word a token takes."""
    report = verify(Ground(results=UNWEIGHTED), candidate, info, signer).report
    assert [result.status for result in report.gates] == [*[PASSED] * 5, FAILED, PASSED]
    assert (report.outcome, report.safe, report.token, report.needs) == ("failed", True, "", ("weights",))
    assert report.conclusion.endswith("it is safe to be tried in the lab; a token takes --accept weights")
    unsafe = Ground(results=(*UNWEIGHTED, oracle("starvation", 29, ok=False, detail="9 s")))
    report = verify(unsafe, candidate, info, signer).report
    assert (report.gates[-1].status, report.safe) == (SKIPPED, False)
    assert [finding.where for finding in report.findings] == ["starvation", "weights"], "the worst first"


@pytest.mark.parametrize("hidden", [{"undecided": {"pinned crowd": "not woken"}}, {"exit_text": "words nobody knows"}])
def test_unfair_is_not_safe_as_long_as_something_is_not_decided(candidate, info, signer, hidden):
    report = verify(Ground(results=UNWEIGHTED, **hidden), candidate, info, signer).report
    assert report.safe is None
    assert report.gates[-1].status is SKIPPED


def test_what_never_ran_is_looked_at_although_the_policy_is_unfair(candidate, info, signer, static):
    static.never_ran = (Finding(33, Severity.ERROR, "enqueue", "fifo.bpf.c", 9, "this branch was never taken"),)
    report = verify(Ground(results=UNWEIGHTED), candidate, info, signer, depth=Depth.THOROUGH).report
    assert report.safe is False
    assert rules(report) == [33, 22]


def test_what_is_accepted_by_name_is_in_the_token(candidate, info, signer, static):
    static.logic = (UNCHARGED, NAMED)
    ground = Ground(results=UNWEIGHTED)
    assert verify(ground, candidate, info, signer).report.needs == ("reads:comm", "weights")
    accepted = info.accepting(["weights", "reads:comm"])
    report = verify(ground, candidate, accepted, signer).report
    assert (report.passed, report.safe, report.needs) == (True, True, ())
    assert [finding.severity for finding in report.findings] == [Severity.NOTE] * 2
    token = tokens.decode(report.token)
    assert (token.declares, token.reads) == (("weights",), ("comm",))


def test_an_input_that_a_person_s_policy_goes_by_takes_a_word_for_a_token_only(candidate, info, signer, static):
    static.logic = (NAMED,)
    report = verify(Ground(), candidate, info, signer).report
    assert (report.passed, report.safe, report.token, report.needs) == (True, True, "", ("reads:comm",))
    assert report.conclusion.endswith("; a token takes --accept reads:comm")
    static.logic = (replace(NAMED, word="reads:kernel memory"),)
    report = verify(Ground(), candidate, info, signer).report
    assert (report.token, report.conclusion.rpartition("; ")[2]) == ("", "nobody can accept reads:kernel memory")


def test_of_a_foreign_policy_static_findings_stop_the_later_gates_only_if_they_are_unsafe(
    candidate, info, signer, static
):
    static.source, static.logic = (UNBOUNDED,), (UNCHARGED,)
    report = verify(Ground(), candidate, info, signer).report
    assert [result.status for result in report.gates] == [PASSED, PASSED, FAILED, *[PASSED] * 4]
    assert [(each.rule, each.severity) for each in report.findings] == [(22, Severity.ERROR), (24, Severity.NOTE)]
    assert (report.safe, report.token, report.lacks) == (True, "", "It lacks nothing.")
    static.logic = (UNCHARGED, LOST_TASK)
    report = verify(Ground(), candidate, info, signer).report
    assert [result.status for result in report.gates[2:4]] == [FAILED, SKIPPED]
    assert (report.safe, rules(report)) == (False, [18, 22, 24])


def test_of_a_derived_policy_the_house_rules_are_asked(candidate, info, signer, static):
    static.source = (UNBOUNDED,)
    ground = Ground()
    report = verify(ground, candidate, replace(info, origin=Origin.GENERATE), signer).report
    assert [result.status for result in report.gates] == [FAILED, PASSED, PASSED, *[SKIPPED] * 4]
    assert (report.safe, report.lacks, ground.asked) == (None, "", [])


def test_all_static_gates_run_whatever_failed_before(candidate, info, signer, static):
    static.source = static.logic = (LOST_TASK,)
    report = verify(Ground(), candidate, info, signer, static_only=True).report
    assert [result.status for result in report.gates] == [FAILED, PASSED, FAILED, *[NOT_REQUESTED] * 4]
    assert report.failure.gate == "source"


def test_the_source_is_read_while_it_is_compiled(candidate, info, monkeypatch):
    """Each waits for the other to have begun; one after the other, neither would go on."""
    both_begun = threading.Barrier(2, timeout=30)
    compile_policy = submission.compile_policy

    def compile_beside(*arguments, **options):
        both_begun.wait()
        return compile_policy(*arguments, **options)

    def read_beside(*_arguments, **_options):
        both_begun.wait()
        return ()

    monkeypatch.setattr(submission, "compile_policy", compile_beside)
    monkeypatch.setattr(pipeline, "check_sources", read_beside)
    report = verify(Ground(), candidate, info, static_only=True).report
    assert [(result.gate, result.status) for result in report.gates[:3]] == [
        (gate, PASSED) for gate in ("source", "compile", "scheduling logic")
    ]


def test_a_policy_may_declare_that_it_ignores_weights_but_nothing_else(candidate, info, signer):
    weights = Ground(results=(oracle("weights", 22, ok=False, detail="1.0"),))
    assert verify(weights, candidate, info, signer).report.failure.detail == "weights: 1.0"
    declared = verify(weights, candidate, replace(info, declares=("weights",)), signer).report
    assert declared.passed
    assert "declared not to hold: weights" in declared.gates[5].detail


def test_a_compiled_object_has_no_source_gates(candidate, info, signer, static):
    path = info.source.with_name("fifo.bpf.o")
    path.write_bytes(b"elf")
    verified = verify(Ground(), candidate, replace(info, source=path), signer)
    assert [result.status for result in verified.report.gates] == [ABSENT, ABSENT, *[PASSED] * 5]
    assert verified.report.token
    assert (verified.artifact.object_bytes, static.compiled) == (b"elf", [])


def test_what_is_too_large_to_deploy_fails_at_once(candidate, info, signer, monkeypatch):
    """Not after an hour of gates, at schedagentd's socket."""
    path = info.source.with_name("fifo.bpf.o")
    compiled = replace(info, source=path)
    path.write_bytes(bytes(LARGEST_OBJECT_BYTES))
    assert verify(Ground(), candidate, compiled, signer).report.token
    path.write_bytes(bytes(LARGEST_OBJECT_BYTES + 1))
    report = verify(Ground(), candidate, compiled, signer).report
    assert (report.gates[1].status, report.token) == (FAILED, "")
    assert "no object of more than 2097152 bytes can be deployed" in report.gates[1].detail
    assert "llvm-strip -g" in report.gates[1].detail

    def compile_policy(source, name, target, **_options):
        return PolicyArtifact(name, bytes(LARGEST_OBJECT_BYTES + 1), "digest", target.btf_build_id)

    monkeypatch.setattr(submission, "compile_policy", compile_policy)
    large = verify(Ground(), candidate, info, signer)
    assert_closed(large, "compile", "2097153 bytes came out of the compiler", object_made=False)


def test_zeros_of_an_arena_keep_an_object_from_being_deployed_and_not_from_being_judged(candidate, info, signer):
    parts = Parts.sound()
    parts.sections[".addr_space.1"] = Part(content=bytes(LARGEST_OBJECT_BYTES))
    path = info.source.with_name("fifo.bpf.o")
    path.write_bytes(parts.build())
    report = verify(Ground(), candidate, replace(info, source=path), signer).report
    assert report.passed
    assert (report.gates[1].status, report.token) == (ABSENT, "")
    assert "too large to be deployed" in report.gates[1].detail


def test_other_kernels_are_told_of_but_do_not_close_the_gate(candidate, info, signer, static):
    older = Ground(load_error=KernelRejected("unknown func scx_bpf_new"))
    both = (KernelBench(Ground(), TARGET), KernelBench(older, OLDER))
    report = Verifier(both, Path("/nowhere"), signer).verify(candidate, info).report
    assert report.passed
    assert [(kernel.release, kernel.status) for kernel in report.kernels] == [("7.3.4", PASSED), ("6.16.12", FAILED)]
    assert "6.16.12: failed: unknown func scx_bpf_new" in report.gates[3].detail
    assert static.compiled == [("fifo", "7.3.4"), ("fifo", "6.16.12")]
    assert older.closed == 1
    assert [what for what, _ in older.asked] == ["load"], "it is proved on the first kernel only"


def test_static_only_stops_before_the_machine_and_issues_nothing(candidate, info, signer):
    ground = Ground()
    report = verify(ground, candidate, info, signer, static_only=True).report
    assert [result.status for result in report.gates] == [PASSED] * 3 + [NOT_REQUESTED] * 4
    assert (report.outcome, report.passed, report.token, ground.asked) == ("static only", False, "", [])


def test_the_scope_asked_for_stands_in_the_token(candidate, info, signer):
    report = verify(Ground(), candidate, info, signer, scope=tokens.Scope.PARTIAL, cgroup="/batch").report
    token = tokens.decode(report.token)
    assert (token.scope, token.cgroup) == ("partial", "/batch")


@pytest.fixture
def report_cache(tmp_path, signer):
    return ReportCache(tmp_path / "reports", signer.vouches)


def test_a_policy_that_passed_is_not_proved_twice(candidate, info, signer, report_cache, static):
    ground = Ground()
    first = verify(ground, candidate, info, signer, report_cache=report_cache).report
    second = verify(ground, candidate, info, signer, report_cache=report_cache).report
    assert [what for what, _ in ground.asked] == ["load", "prove"]
    assert (second.oracles, second.kernels) == (first.oracles, first.kernels)
    assert tokens.decode(second.token).nonce != tokens.decode(first.token).nonce
    static.logic = (LOST_TASK,)
    assert_closed(verify(ground, candidate, info, signer, report_cache=report_cache), "scheduling logic", "rule 18")


@pytest.mark.parametrize(
    "versions", [("4", "512", "tcg", "QEMU 10"), ("2", "512", "tcg", "QEMU 11"), ("2", "1024", "tcg", "QEMU 10")]
)
def test_a_report_of_another_machine_is_proved_again(versions, candidate, info, signer, report_cache):
    first, second = Ground(), Ground(versions=versions)
    verify(first, candidate, info, signer, report_cache=report_cache)
    verify(second, candidate, info, signer, report_cache=report_cache)
    assert [what for what, _ in second.asked] == ["load", "prove"]


def test_a_report_of_another_clang_or_depth_is_proved_again(candidate, info, signer, report_cache, monkeypatch):
    ground = Ground()
    verify(ground, candidate, info, signer, report_cache=report_cache)
    verify(ground, candidate, info, signer, report_cache=report_cache, depth=Depth.DEEP)
    monkeypatch.setattr(pipeline, "find_clang", lambda: (Path("/usr/bin/clang"), "clang version 99"))
    verify(ground, candidate, info, signer, report_cache=report_cache)
    assert len(ground.asked) == 6


def test_a_deep_proof_is_signed_for_a_week_and_any_other_for_a_day(candidate, info, signer):
    for depth in Depth:
        report = verify(Ground(), candidate, info, signer, depth=depth).report
        token = tokens.decode(report.token)
        days = (token.expires_at - token.not_before) / 86400
        assert (report.depth, days) == (depth.name.lower(), 7 if depth is Depth.DEEP else 1)


def test_logic_is_judged_with_the_tunables_of_the_candidate(candidate, info, static):
    verify(Ground(), candidate, info)
    assert static.judged == {"slice_us": 700}


def test_other_tunables_or_bytes_are_proved_again(candidate, info, signer, report_cache):
    ground = Ground()
    verify(ground, candidate, info, signer, report_cache=report_cache)
    verify(ground, replace(candidate, tunables=(("slice_us", 900),)), info, signer, report_cache=report_cache)
    info.source.write_text("int y;\n")
    verify(ground, candidate, info, signer, report_cache=report_cache)
    assert len(ground.asked) == 6


@pytest.mark.parametrize(
    "file",
    [
        "verifier/logic/walk/facts.py",
        "kernel_bpf/build/compile.py",
        "kernel_bpf/load/sched_ext.py",
        "kernel_bpf/bpf/include/common.bpf.h",
        "schedagent/core/policies/policy.py",
        "schedagent/core/rules.py",
    ],
)
def test_a_cached_report_depends_on_every_file_that_made_it(tmp_path, monkeypatch, file):
    root = Path(report_cache_module.__file__).parents[1]
    before = report_cache_module.verifier_version()
    monkeypatch.setattr(report_cache_module, "_ROOT", tmp_path)
    for pattern in report_cache_module._CODE:
        for path in root.glob(pattern):
            place = tmp_path / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    unwrapped = report_cache_module.verifier_version.__wrapped__
    assert unwrapped() == before
    with (tmp_path / file).open("a") as changed:
        changed.write("\n")
    assert unwrapped() != before


def test_a_failure_is_proved_again(candidate, info, signer, report_cache):
    verify(Ground(exit_text="runnable task stall"), candidate, info, signer, report_cache=report_cache)
    assert verify(Ground(), candidate, info, signer, report_cache=report_cache).report.passed


@pytest.mark.parametrize("change", ["token", "figure", "key", "garbage", "another policy"])
def test_a_cached_report_that_was_tampered_with_is_not_believed(
    candidate, info, signer, report_cache, tmp_path, change
):
    ground = Ground(results=(oracle("starvation", 29), oracle("idle machine", 30)))
    verify(ground, candidate, info, signer, report_cache=report_cache)
    (path,) = (tmp_path / "reports").iterdir()
    if change == "another policy":
        info.source.write_text("int evil;\n")
        other = verify(Ground(exit_text="runnable task stall"), candidate, info, signer).report
        path.rename(path.with_name(f"{other.subject}.json"))
        verify(ground, candidate, info, signer, report_cache=report_cache)
        assert len(ground.asked) == 4, "the signed report of a good policy was believed of another one"
        return
    report = json.loads(path.read_text())
    if change == "token":
        report["token"] = report["token"][:-4] + "AAAA"
    elif change == "figure":
        report["oracles"][0]["measured"] = 0.05
    elif change == "key":
        report_cache = ReportCache(tmp_path / "reports", Signer(tmp_path / "others" / "signing.key").vouches)
    path.write_text("garbage" if change == "garbage" else json.dumps(report))
    verify(ground, candidate, info, signer, report_cache=report_cache)
    assert len(ground.asked) == 4


def test_several_policies_pass_the_static_gates_side_by_side_and_the_machines_in_turn(
    candidate, info, signer, static, monkeypatch
):
    meeting = threading.Barrier(2, timeout=10)
    monkeypatch.setattr(pipeline, "read_object", lambda _bytes, _inlined: meeting.wait())
    monkeypatch.setattr(pipeline.os, "sched_getaffinity", lambda _pid: {0, 1})
    ground, seen = Ground(), []
    others = [(replace(candidate, reason=str(number)), info) for number in range(2)]
    done = list(verifier(ground, signer, on_gate=seen.append).verify_all(others))
    assert [verified.report.passed for verified in done] == [True, True]
    assert [what for what, _ in ground.asked] == ["load", "prove"] * 2
    assert [result.gate for result in seen] == [*GATES, *GATES]


def test_what_never_ran_is_listed_beside_what_an_oracle_shows(candidate, info, signer, static):
    static.never_ran = (Finding(33, Severity.ERROR, "enqueue", "fifo.bpf.c", 9, "this branch was never taken"),)
    verified = verify(Ground(results=(oracle("yield", 29, ok=False),)), candidate, info, signer)
    assert [finding.rule for finding in verified.report.failure.findings] == [29, 33]


def test_what_never_ran_closes_the_proving_ground(candidate, info, signer, static):
    static.never_ran = (Finding(33, Severity.ERROR, "enqueue", "fifo.bpf.c", 9, "this branch was never taken"),)
    verified = verify(Ground(), candidate, info, signer)
    assert_closed(verified, "proving ground", "1 errors, of rule 33")
    assert verified.report.failure.findings == static.never_ran
    assert verified.report.safe is False
    assert verified.report.coverage.never == (Place("fifo.bpf.c", 9),)


def test_what_never_ran_of_a_persons_own_is_only_noted(candidate, info, signer, static):
    static.never_ran = (Finding(33, Severity.NOTE, "enqueue", "fifo.bpf.c", 9, "this branch was never taken"),)
    report = verify(Ground(), candidate, info, signer).report
    assert report.passed
    assert report.findings == static.never_ran
    assert static.marks[1] is Standing.FOREIGN


def shaped(*results, exit_text=""):
    return jobs.ProveAnswer(exit_text, list(results), {}, {"domains": 3.0})


def test_from_which_depth_on_policies_are_proved_on_another_shape(candidate, info, monkeypatch):
    def shapes_at(**fields):
        ground = Ground()
        report = verify(ground, candidate, info, **fields).report
        assert report.topologies == tuple(map(str, ground.shapes))
        return [str(topology) for topology in ground.shapes]

    assert shapes_at() == ["2x2x1x2"]
    assert shapes_at(depth=Depth.QUICK) == []
    assert shapes_at(topologies=()) == []
    named = (Topology(1, 2, 2, 1), Topology(1, 4, 1, 1))
    assert shapes_at(topologies=named, depth=Depth.QUICK) == ["1x2x2x1", "1x4x1x1"]
    monkeypatch.setattr(submission, "standing", lambda *_policy: Standing.BUNDLED)
    assert shapes_at() == []
    assert shapes_at(depth=Depth.THOROUGH) == ["2x2x1x2"]
    assert shapes_at(topologies=named) == ["1x2x2x1", "1x4x1x1"]


def test_what_fails_on_a_shape_fails_the_gate_and_names_the_shape(candidate, info, signer):
    late = oracle("starvation", 29, ok=False, detail="hog pinned to CPU 7 went 4.90 s without CPU time")
    verified = verify(Ground(on_shape=shaped(late)), candidate, info, signer)
    assert_closed(verified, "proving ground", "starvation on 2x2x1x2: hog pinned to CPU 7 went 4.90 s")
    [finding] = [each for each in verified.report.findings if each.where == "starvation"]
    assert finding.message.startswith("on 2x2x1x2: hog pinned")
    assert [each.title for each in verified.report.oracles if not each.ok] == ["starvation on 2x2x1x2"]
    assert verified.report.safe is False


def test_an_ejection_on_a_shape_names_the_shape_and_its_rule(candidate, info, signer):
    ejected = shaped(exit_text="error: invalid CPU -17 from ops.select_cpu()")
    verified = verify(Ground(on_shape=ejected), candidate, info, signer)
    assert_closed(verified, "proving ground", "on 2x2x1x2 the kernel ejected it: error: invalid CPU -17")
    verified = verify(Ground(on_shape=KernelRejected("ops.init() failed (-7)")), candidate, info, signer)
    assert_closed(verified, "proving ground", "on 2x2x1x2: ops.init() failed (-7)")
    assert verified.report.safe is False


def test_a_host_too_busy_for_a_shape_leaves_the_gate_without_a_verdict(candidate, info, signer):
    busy = HostBusy("a CPU of the machine stood still for 0.4 s", "verify again when this host has less to do")
    verified = verify(Ground(on_shape=busy), candidate, info, signer)
    assert_closed(verified, "proving ground", "no verdict: a CPU of the machine stood still", SKIPPED)


def test_what_is_only_unfair_is_looked_at_on_the_shape_as_well(candidate, info, signer):
    slow = oracle("work conservation", 20, ok=False, detail="half of the time idle")
    lost = oracle("starvation", 29, ok=False, detail="5 s")
    unfair = verify(Ground(results=(slow,)), candidate, info, signer).report
    assert unfair.safe
    assert unfair.topologies == ("2x2x1x2",)
    report = verify(Ground(results=(slow,), on_shape=shaped(lost)), candidate, info, signer).report
    assert report.safe is False
    assert "half of the time idle; starvation on 2x2x1x2: 5 s" in report.failure.detail
    declared = replace(info, declares=("work conservation",))
    assert verify(Ground(on_shape=shaped(slow)), candidate, declared, signer).report.passed
    assert verify(Ground(on_shape=shaped(slow)), candidate, info, signer).report.safe


def test_what_is_unsafe_on_the_flat_guest_needs_no_other(candidate, info, signer):
    ground = Ground(exit_text="runnable task stall")
    verify(ground, candidate, info, signer)
    assert not ground.shapes


def test_the_shapes_are_part_of_what_a_report_and_its_token_are_about(candidate, info, signer, tmp_path):
    reports = ReportCache(tmp_path / "reports", lambda _token, _digest: True)
    flat = verify(Ground(), candidate, info, signer, report_cache=reports, topologies=()).report
    ground = Ground(on_shape=shaped(oracle("starvation", 29, detail="0.2 s")))
    report = verify(ground, candidate, info, signer, report_cache=reports).report
    assert report.subject != flat.subject
    assert report.digest != flat.digest
    assert ground.shapes, "the report of the flat guest was taken for that of both"
    again = verify(ground, candidate, info, signer, report_cache=reports).report
    assert (again.digest, len(ground.shapes)) == (report.digest, 1)
    assert again.oracles == report.oracles
