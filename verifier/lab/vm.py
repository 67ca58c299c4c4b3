"""Where workloads are measured: VmLab, a micro-VM restored from a snapshot.

Two profiles: *sealed* machines see nothing of the host and are where untrusted candidates are loaded first;
*hostfs* machines see the host's files read-only under a throw-away overlay and are where workloads run.
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from schedagent.core.errors import VmLost, WorkloadFailed
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.process.machine_lock import LAB_LOCK, MachineLock
from schedagent.core.process.shell_text import quoted
from schedagent.core.trials.metric import last_lines
from schedagent.core.trials.readings import OutputReader, RunValues
from schedagent.core.trials.trial import DEFAULT_ARM, Hardware, Sample
from schedagent.core.trials.workload import Observation, WorkloadCommand
from verifier.microvm import jobs
from verifier.microvm.image import ANSWER_TIMEOUT_S, SnapshotStore
from verifier.microvm.kernels import KernelImage
from verifier.microvm.machine import Machine
from verifier.proving.prove import Depth

log = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 120.0
SAMPLE_OUTPUT_CHARS = 4000

STALL_S = 0.3
"""A virtual CPU that does not run for this long was kept from it by the host."""

WATCHDOG_LATE = "watchdog failed to check in"
"""From scx_tick() in kernel/sched/ext.c: the work that looks for stalled tasks has not run itself."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class LabPolicy:
    """A candidate with the object compiled for the lab's kernel."""

    candidate: CandidatePolicy
    artifact: PolicyArtifact

    def message(self) -> jobs.PolicyLoad:
        """The form in which it travels to the guest."""
        return jobs.PolicyLoad(
            name=self.artifact.name,
            object_base64=base64.b64encode(self.artifact.object_bytes).decode(),
            tunables=dict(self.candidate.tunables),
            history=list(self.candidate.history),
            classes=list(self.candidate.classes),
        )


class VmLab:
    """Measures in micro-VMs.

    Args:
        kernel: the sched_ext kernel to run.
        snapshots: where booted machines are kept.
        cpus, memory_mib: size of the machines.
        kvm: whether KVM was proved to work.
        environment: variables that workloads see; never stored.
        lock: held while a workload is measured or a policy is proved, so that two runs do not disturb each other.
    """

    def __init__(
        self,
        kernel: KernelImage,
        snapshots: SnapshotStore,
        *,
        cpus: int,
        memory_mib: int,
        kvm: bool,
        environment: Mapping[str, str],
        lock: MachineLock = LAB_LOCK,
    ) -> None:
        self.kernel = kernel
        self.cpus = cpus
        self.memory_mib = memory_mib
        self.kvm = kvm
        self.environment = dict(environment)
        self._snapshots = snapshots
        self._lock = lock

    @property
    def hardware(self) -> Hardware:
        """What results of this lab depend on."""
        lab = "vm-kvm" if self.kvm else "vm-tcg"
        return Hardware(cpu_model(), self.cpus, self.memory_mib, lab, self.kernel.release)

    def open(self, *, hostfs: bool) -> Machine:
        """Return a fresh machine that has answered; raise VmLost if two in a row do not."""
        machine = self._snapshots.open(
            self.kernel, cpus=self.cpus, memory_mib=self.memory_mib, kvm=self.kvm, hostfs=hostfs
        )
        if hostfs:
            machine.call(jobs.MountHost(), ANSWER_TIMEOUT_S)
        return machine

    def prove(self, policy: LabPolicy, depth: Depth, phases: Sequence[str] = ()) -> jobs.ProveAnswer:
        """Take a policy through the proving ground in a fresh sealed machine; see Cell.prove."""
        with self.cell(policy) as cell:
            return cell.prove(depth, phases)

    def cell(self, policy: LabPolicy) -> Cell:
        """A sealed machine for one policy; it is started when it is needed."""
        return Cell(self, policy)

    def observe(self, workload: WorkloadCommand) -> tuple[Sample, Observation]:
        """Run the workload under the default scheduler with process events and taskstats on.

        One run before it, unrecorded, warms the caches.

        Raises:
            WorkloadFailed: it failed; the message carries the end of its output.
            MetricError: it ran, but an expression found no number that can be compared.
        """
        with self.session(workload) as session:
            session.run_default()
            sample, observation = session.observe()
        return sample, observation

    @contextmanager
    def session(self, workload: WorkloadCommand) -> Iterator[TrialSession]:
        """One hostfs machine in which runs of a workload follow each other; one session at a time on this host."""
        session = TrialSession(self, workload)
        with self.measuring():
            try:
                yield session
            finally:
                session.close()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Wait until no other process measures on this machine."""
        with self._lock.held():
            yield


class Cell:
    """A fresh sealed machine in which one policy, and no other, is loaded and proved; replaced if it is lost."""

    def __init__(self, lab: VmLab, policy: LabPolicy) -> None:
        self._lab = lab
        self._policy = policy
        self._machine: Machine | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the machine; idempotent."""
        if self._machine:
            self._machine.close()
            self._machine = None

    def load(self) -> jobs.LoadAnswer:
        """Let the kernel's verifier judge the policy; raise KernelRejected with its log."""
        job = jobs.LoadPolicy(self._policy.message())
        return jobs.LoadAnswer.from_json(twice(lambda: self._call(job, LOAD_TIMEOUT_S)))

    def prove(self, depth: Depth, phases: Sequence[str] = ()) -> jobs.ProveAnswer:
        """Take the policy through the proving ground; the machine is used up then.

        What a policy fails at while a CPU of the machine stood still may be the host's doing: it is looked at twice,
        and if the host disturbs that as well, there is no verdict.

        Args:
            phases: names in verifier.proving.prove.PHASES; empty for all.

        Raises:
            KernelRejected: it does not load or attach.
            VmLost: the machine was lost twice, or the host did not let its CPUs run while the policy failed.
        """
        job = jobs.Prove(self._policy.message(), depth.value, list(phases))

        def attempt() -> jobs.ProveAnswer:
            try:
                return jobs.ProveAnswer.from_json(self._call(job, LOAD_TIMEOUT_S + 4 * depth.value))
            finally:
                self.close()

        with self._lab.measuring():  # a machine that has to share its CPUs with another one looks like a slow policy
            answer = twice(attempt)
            if doubtful(answer) or perhaps_host_stalled(answer.exit_text):
                answer = twice(attempt)
        if doubtful(answer):
            raise VmLost(
                f"a CPU of the machine stood still for {answer.stalled_s:.1f} s while the policy failed, twice",
                "verify it again when this host has less to do",
            )
        return answer

    def _call(self, job: jobs.Message, timeout_s: float) -> Mapping[str, Any]:
        if self._machine is None:
            self._machine = self._lab.open(hostfs=False)
        try:
            return self._machine.call(job, timeout_s)
        except VmLost:
            self.close()
            raise


class TrialSession:
    """Runs one workload again and again in one machine; a lost machine is replaced once per run."""

    def __init__(self, lab: VmLab, workload: WorkloadCommand) -> None:
        self._lab = lab
        self._workload = workload
        self._reader = OutputReader(workload)
        self._machine: Machine | None = None
        self._had_machine = False

    def close(self) -> None:
        """End the machine."""
        if self._machine:
            self._machine.close()
            self._machine = None

    def run_default(self, beside: LabPolicy | None = None) -> Sample:
        """One run under the default scheduler; raise WorkloadFailed or MetricError if it cannot be used.

        Args:
            beside: policy this run will be compared with: attached and detached before the clock starts, so that the
                kernel's code was patched in both arms.
        """
        sample, answer = self._run(beside, observe=False, attached=False)
        self._require_success(sample, answer)
        return sample

    def observe(self) -> tuple[Sample, Observation]:
        """One recorded run under the default scheduler, whose sample holds all of its output; raises as run_default."""
        sample, answer = self._run(None, observe=True)
        self._require_success(sample, answer)
        if answer.observation is None:
            raise VmLost("the guest returned no observation")
        return replace(sample, output_tail=answer.output), Observation.from_json(answer.observation)

    def run_candidate(self, policy: LabPolicy) -> Sample:
        """One run under a policy; what goes wrong stands in the sample.

        Raises:
            KernelRejected: it would not load or attach.
            VmLost: the machine was lost twice.
        """
        return self._run(policy, observe=False)[0]

    def _run(self, policy: LabPolicy | None, *, observe: bool, attached: bool = True) -> tuple[Sample, jobs.RunAnswer]:
        def attempt() -> tuple[Sample, jobs.RunAnswer]:
            machine = self._ready_machine()
            started_at = datetime.now(UTC).isoformat()
            answer = self._call(machine, self._job(policy, observe=observe, attached=attached))
            return self._sample(policy if attached else None, answer, started_at), answer

        sample, answer = twice(attempt)
        return twice(attempt) if perhaps_host_stalled(sample.policy_exit) else (sample, answer)

    def _ready_machine(self) -> Machine:
        """Return the session's machine; one that replaces a lost one first runs the workload once, for its caches."""
        if self._machine is None:
            self._machine = self._lab.open(hostfs=True)
            if self._had_machine:
                self._call(self._machine, self._job(None, observe=False))
            self._had_machine = True
        return self._machine

    def _call(self, machine: Machine, job: jobs.RunWorkload) -> jobs.RunAnswer:
        """Give the machine a job; let go of it if it is lost."""
        try:
            return jobs.RunAnswer.from_json(machine.call(job, LOAD_TIMEOUT_S + 2 * job.timeout_s))
        except VmLost:
            self.close()
            raise

    def _job(self, policy: LabPolicy | None, *, observe: bool, attached: bool = True) -> jobs.RunWorkload:
        workload = self._workload
        return jobs.RunWorkload(
            command=workload.command,
            directory=workload.directory,
            prepare=workload.prepare,
            environment=self._lab.environment,
            timeout_s=workload.timeout_s,
            uid=os.getuid(),
            gid=os.getgid(),
            groups=os.getgroups(),
            policy=policy.message() if policy else None,
            attached=attached,
            observe=observe,
        )

    def _sample(self, policy: LabPolicy | None, answer: jobs.RunAnswer, started_at: str) -> Sample:
        if answer.prepare_status != 0:
            command = quoted(self._workload.prepare)
            raise WorkloadFailed(
                f"the --prepare command {command} ended with exit status {answer.prepare_status}\n"
                + last_lines(answer.output),
                "it runs before each trial; try it by hand in the same directory",
            )
        usable = answer.exit_status == 0 or (self._workload.ignore_failure and answer.exit_status is not None)
        values = self._reader.read(answer.output, strict=policy is None) if usable else RunValues(None, {})
        return Sample(
            arm=policy.candidate.key if policy else DEFAULT_ARM,
            value=answer.wall_ns / 1e9 if values.objective is None else values.objective,
            wall_ns=answer.wall_ns,
            cpu_ns=answer.cpu_ns,
            exit_status=answer.exit_status,
            started_at=started_at,
            calibration_ns=answer.calibration_ns,
            output_tail=answer.output[-SAMPLE_OUTPUT_CHARS:],
            policy_exit=answer.policy_exit,
            values=values.named,
        )

    def _require_success(self, sample: Sample, answer: jobs.RunAnswer) -> None:
        if sample.failure:
            raise WorkloadFailed(
                f"the workload {quoted(self._workload.command)} failed under the default scheduler: {sample.failure}\n"
                + last_lines(answer.output),
                "fix the command until it works; nothing was changed on this machine",
            )


def twice(attempt: Callable[[], Answer]) -> Answer:
    """Return what `attempt` returns; if the VM is lost, try once more."""
    try:
        return attempt()
    except VmLost as error:
        log.warning("VM lost, trying once more: %s", error.message)
        return attempt()


def perhaps_host_stalled(exit_text: str) -> bool:
    """Whether an ejection may be the host's doing: the kernel's own watchdog did not get to run for its 5 s.

    A policy that starves kernel workers is ejected with the same words, so it is worth a second look, not a pardon.
    """
    if WATCHDOG_LATE not in exit_text:
        return False
    log.warning("the policy was ejected because the watchdog itself came late; trying once more")
    return True


def doubtful(answer: jobs.ProveAnswer) -> bool:
    """Whether a policy failed in a machine whose CPUs did not all keep running: worth a second look, not a pardon."""
    failed = answer.exit_text or not all(result["ok"] for result in answer.results)
    if not failed or answer.stalled_s < STALL_S:
        return False
    log.warning("a CPU of the machine stood still for %.1f s while a policy failed", answer.stalled_s)
    return True


def cpu_model() -> str:
    """The host's CPU as /proc/cpuinfo names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine
