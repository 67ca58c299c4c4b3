"""The lab that is this machine: real commands in real sessions; schedagentd and sched_ext are scripted here.

tests/vm/test_host_lab.py has the same with both of them real.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from kernel_bpf.load.sched_ext import KernelState
from schedagent.client.daemon import Trial
from schedagent.core.errors import DaemonAbsent, KernelRejected, Refused, WorkloadFailed
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.token import DeploymentToken, Scope, encode
from schedagent.core.trials.arm import Knob
from schedagent.core.trials.trial import DEFAULT_ARM
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.hostlab import lab as host_lab
from schedagent.hostlab import machine
from schedagent.hostlab.lab import HostLab, why_not_here
from verifier.lab.vm import LabPolicy, LabProgram

TOKEN = DeploymentToken(
    artifact_digest="ab" * 32,
    tunables=(("slice_us", 5000),),
    inputs_digest="cd" * 32,
    report_digest="ef" * 32,
    kernel_release="7.3.4",
    btf_build_id="ab" * 20,
    scope=Scope.FULL,
    cgroup="",
    not_before=1,
    expires_at=9,
    nonce="ab" * 16,
    key_id="ab" * 8,
)
POLICY = LabPolicy(
    CandidatePolicy("fifo"),
    PolicyArtifact("fifo", b"elf", "source", "btf"),
    token=encode(TOKEN, lambda _signed: bytes(64)),
)


@dataclass
class Kernel:
    """What sysfs says, and who changes it."""

    state: str = "disabled"
    enable_seq: int = 0

    def read(self) -> KernelState:
        return KernelState(True, self.state, enable_seq=self.enable_seq)


@dataclass
class Daemon:
    """schedagentd as HostMachine asks it.

    Args:
        ends_after_s: when the circuit breaker ends a trial; never if None.
    """

    kernel: Kernel
    ends_after_s: float | None = None
    orders: list[tuple[Mapping[str, Any], float]] = field(default_factory=list)
    begun: float = 0.0
    refusal: str = ""

    @contextmanager
    def trial(self, order: Mapping[str, Any], lease_s: float) -> Iterator[Trial]:
        self.orders.append((order, lease_s))
        if self.refusal:
            raise Refused(self.refusal)
        self.kernel.state, self.kernel.enable_seq, self.begun = "enabled", self.kernel.enable_seq + 1, time.monotonic()
        trial = Trial({"deployment": 1})
        try:
            yield trial
        finally:
            tripped = self.kernel.state != "enabled"
            self.kernel.state = "disabled"
            trial.ended = {"end": "stall" if tripped else "its time is over", "detail": "stall (kind 1026)"}

    def read(self) -> KernelState:
        if self.ends_after_s is not None and time.monotonic() > self.begun + self.ends_after_s:
            self.kernel.state = "disabled"
        return self.kernel.read()


class Vm:
    """What HostLab needs of the micro-VM's lab."""

    environment: Mapping[str, str] = {"PATH": os.environ["PATH"], "MARK": "seen"}

    @contextmanager
    def measuring(self) -> Iterator[None]:
        yield


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    scripted = Daemon(Kernel())
    monkeypatch.setattr(machine, "kernel_state", scripted.read)
    monkeypatch.setattr(machine, "REST_S", 0.3)
    return scripted


@pytest.fixture
def lab(daemon: Daemon) -> HostLab:
    return HostLab(Vm(), daemon, recorded=False)  # type: ignore[arg-type]


def workload(command: str, folder: Path, **more: Any) -> WorkloadCommand:
    return WorkloadCommand(command, str(folder), timeout_s=10.0, **more)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_run_happens_here_with_what_it_uses(lab: HostLab, daemon: Daemon, tmp_path: Path) -> None:
    command = "echo $MARK from $PWD; echo more >> file; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exit 3"
    with lab.session(workload(command, tmp_path, prepare="echo new > file", cleanup="cat file > kept")) as session:
        sample = session.run_default(POLICY)
    assert (sample.arm, sample.exit_status) == (DEFAULT_ARM, 3)
    assert sample.output_tail == f"seen from {tmp_path}\n"
    assert (tmp_path / "kept").read_text() == "new\nmore\n"
    assert 0 < sample.cpu_ns <= sample.wall_ns * 1.2
    assert sample.usage
    assert 0 <= sample.usage.others_share < 2
    assert daemon.orders == [], "the default scheduler needs nobody"


def test_a_run_under_a_policy_is_a_trial_from_before_its_start_to_after_its_end(
    lab: HostLab, daemon: Daemon, tmp_path: Path
) -> None:
    with lab.session(workload("true", tmp_path)) as session:
        first, began = session.run_candidate(POLICY), time.monotonic()
        second = session.run_candidate(POLICY)
    assert [first.failure, second.failure] == ["", ""]
    assert first.arm == POLICY.candidate.key
    assert time.monotonic() - began >= 0.3, "the default scheduler was in charge for a while between the two"
    order, lease_s = daemon.orders[0]
    assert (order["policy"], order["token"], order["tunables"]) == ("fifo", POLICY.token, {"slice_us": 5000})
    assert order["report_digest"] == "ef" * 32
    assert lease_s == 15
    assert daemon.kernel.state == "disabled"


def test_a_policy_that_is_taken_away_fails_its_run_and_not_the_default_scheduler(
    lab: HostLab, daemon: Daemon, tmp_path: Path
) -> None:
    daemon.ends_after_s = 0.1
    with lab.session(workload("sleep 5", tmp_path)) as session:
        began = time.monotonic()
        sample = session.run_candidate(POLICY)
    assert time.monotonic() - began < 3, "nobody waits for a run that means nothing any more"
    assert sample.policy_exit == "stall: stall (kind 1026)"
    assert sample.failure == "the kernel ejected the policy: stall: stall (kind 1026)"


def test_a_refusal_is_the_candidates_and_the_run_goes_on(lab: HostLab, daemon: Daemon, tmp_path: Path) -> None:
    daemon.refusal = "cgroup /a would lose cpu.max"
    with lab.session(workload("true", tmp_path)) as session:
        with pytest.raises(KernelRejected, match=r"would lose cpu.max"):
            session.run_candidate(POLICY)
        assert session.run_default().failure == ""


def test_what_a_run_leaves_behind_is_killed_and_named(lab: HostLab, tmp_path: Path) -> None:
    command = f"sleep 60 & echo $! > {tmp_path}/pid"
    with lab.session(workload(command, tmp_path)) as session:
        sample = session.run_default()
    assert not alive(int((tmp_path / "pid").read_text()))
    assert sample.usage
    assert sample.usage.left_behind == ("sleep",)


def test_a_run_that_takes_too_long_is_ended_with_all_that_it_started(lab: HostLab, tmp_path: Path) -> None:
    command = f"sh -c 'echo $$ > {tmp_path}/pid; sleep 60'; true"
    with lab.session(replace(workload(command, tmp_path), timeout_s=0.5)) as session:
        sample = session.run_default()
    assert sample.exit_status is None
    assert not alive(int((tmp_path / "pid").read_text()))


def test_ctrl_c_ends_the_command_and_the_trial(lab: HostLab, daemon: Daemon, tmp_path: Path) -> None:
    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with lab.session(workload(f"echo $$ > {tmp_path}/pid; sleep 60", tmp_path)) as session:
            signal.setitimer(signal.ITIMER_REAL, 0.7)
            with pytest.raises(KeyboardInterrupt):
                session.run_candidate(POLICY)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not alive(int((tmp_path / "pid").read_text()))
    assert daemon.kernel.state == "disabled"


def test_a_knob_reaches_the_command_and_nothing_else(lab: HostLab, tmp_path: Path) -> None:
    with lab.session(workload("chrt -p $$", tmp_path)) as session:
        turned = session.run_knob(Knob("batch", batch=True), POLICY)
        plain = session.run_default()
    assert "SCHED_BATCH" in turned.output_tail
    assert "SCHED_OTHER" in plain.output_tail


@pytest.mark.parametrize(
    ("arm", "why"),
    [
        (replace(POLICY, token=""), "no token was issued"),
        (LabProgram(CandidatePolicy("scx_lavd")), "in the micro-VM only"),
    ],
)
def test_what_schedagentd_would_not_load_is_not_tried(lab: HostLab, tmp_path: Path, arm: Any, why: str) -> None:
    with lab.session(workload("true", tmp_path)) as session, pytest.raises(KernelRejected, match=why):
        session.run_candidate(arm)


def test_work_that_is_done_once_only_is_refused(lab: HostLab, tmp_path: Path) -> None:
    once = "[ -e done ] || python3 -c 'for n in range(20_000_000): pass'; touch done"
    with pytest.raises(WorkloadFailed, match="the first left it nothing to do") as refused:
        lab.observe(workload(once, tmp_path))
    assert "--prepare" in refused.value.hint


@pytest.mark.parametrize(
    ("available", "release", "absent", "why"),
    [
        (False, os.uname().release, False, "has no sched_ext"),
        (True, "0.0-other", False, "candidates are proved on 0.0-other"),
        (True, os.uname().release, True, "schedagentd is not running"),
        (True, os.uname().release, False, ""),
    ],
)
def test_why_nothing_can_be_measured_here(
    monkeypatch: pytest.MonkeyPatch, available: bool, release: str, absent: bool, why: str
) -> None:
    class Client:
        def ask(self, _verb: str) -> dict[str, Any]:
            if absent:
                raise DaemonAbsent("schedagentd is not running: nobody listens", "start it")
            return {}

    monkeypatch.setattr(host_lab, "kernel_state", lambda: KernelState(available))
    reason = why_not_here(Client(), release)  # type: ignore[arg-type]
    assert why in reason
    assert bool(reason) is bool(why)
