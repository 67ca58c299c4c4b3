"""Where workloads are measured: VmLab, a micro-VM restored from a snapshot.

Two profiles: *sealed* machines see nothing of the host and are where untrusted candidates are loaded first;
*hostfs* machines see the host's files read-only under a throw-away overlay and are where workloads run.
"""

from __future__ import annotations

import base64
import logging
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from schedagent.core.errors import MetricError, VmLost, WorkloadFailed
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.process.machine_lock import LAB_LOCK, MachineLock
from schedagent.core.process.shell_text import quoted
from schedagent.core.readings.metric import last_lines
from schedagent.core.readings.readings import OutputReader, RunValues
from schedagent.core.trials.arm import Knob
from schedagent.core.trials.trial import DEFAULT_ARM, Hardware, Sample
from schedagent.core.trials.usage import MachineCosts
from schedagent.core.trials.workload import Observation, WorkloadCommand
from verifier.lab.costs import compare, probe_host
from verifier.lab.doubt import (
    NOTHING_PROVED,
    beyond_doubt,
    doubtful,
    failed,
    joined,
    perhaps_host_stalled,
    phases_of,
    stretch_of,
    twice,
    with_second,
)
from verifier.lab.remarks import failure_hint, failure_seen, how_it_ended, usage_of, why_nonsense
from verifier.microvm import jobs
from verifier.microvm.image import ANSWER_TIMEOUT_S, SnapshotStore
from verifier.microvm.kernels import KernelImage
from verifier.microvm.kvm import qemu_version
from verifier.microvm.machine import Machine
from verifier.microvm.topology import Topology
from verifier.proving.identity import NOTHING_WORN, Worn
from verifier.proving.prove import COVERAGE, SHAPED_PHASES, Depth, Phase, chosen, phases_at

log = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 120.0
SAMPLE_OUTPUT_CHARS = 4000

IDLE_LIMIT_S = 60.0
"""A workload under observation that neither uses nor wants a CPU for so long is ended: it waits for something that does
not come, and else would do so, silently, until its time limit. In a trial it has twice as long: it got through once."""

WHEN_IT_RUNS = {
    "--setup": "it runs once in each machine, before the first run; try it by hand in the same directory",
    "--prepare": "it runs before each trial; try it by hand in the same directory",
    "--cleanup": "it runs after each run; try it by hand in the same directory",
}


@dataclass(frozen=True)
class ProbedCopy:
    """A policy's object with probes, see verifier.coverage.

    Args:
        object_bytes: the copy.
        section: where its probes leave their marks.
        inputs: maps that the loader fills, see core.policies.policy.PolicyInfo.
        hotplug: whether the policy handles CPUs that come and go.
    """

    object_bytes: bytes
    section: str
    inputs: tuple[str, ...] = ()
    hotplug: bool = False

    def added_to(self, job: jobs.Prove) -> jobs.Prove:
        """Return the job that runs the copy, too."""
        return replace(
            job,
            copy_base64=base64.b64encode(self.object_bytes).decode(),
            copy_section=self.section,
            copy_inputs=list(self.inputs),
            copy_hotplug=self.hotplug,
        )


@dataclass(frozen=True)
class LabPolicy:
    """A candidate with the object compiled for the lab's kernel.

    Args:
        candidate, artifact: both.
        worn: constants of the object, for the crew of the proving ground to wear.
        reads: what the policy declares to go by, see core.policies.policy.READABLE.
        copy: its object with probes; None if there is none.
        token: what its verification issued, for labs that load it on this host; empty for none.
    """

    candidate: CandidatePolicy
    artifact: PolicyArtifact
    worn: Worn = NOTHING_WORN
    reads: tuple[str, ...] = ()
    copy: ProbedCopy | None = None
    token: str = ""

    def message(self) -> jobs.PolicyLoad:
        """The form in which it travels to the guest."""
        return jobs.PolicyLoad(
            name=self.artifact.name,
            object_base64=base64.b64encode(self.artifact.object_bytes).decode(),
            tunables=dict(self.candidate.tunables),
            history=list(self.candidate.history),
            classes=list(self.candidate.classes),
        )

    def placed(self, job: jobs.RunWorkload) -> jobs.RunWorkload:
        """Return the run as one under this policy."""
        return replace(job, policy=self.message())


@dataclass(frozen=True)
class LabProgram:
    """A candidate that loads its policy itself.

    Args:
        candidate: it, with its program.
        attach_timeout_s: how long its policy may take to be in charge: an emulated CPU verifies a large one slowly.
    """

    candidate: CandidatePolicy
    attach_timeout_s: float = 60.0

    def placed(self, job: jobs.RunWorkload) -> jobs.RunWorkload:
        """Return the run as one under this program's policy; raise UsageError if the file has changed meanwhile."""
        program = self.candidate.program
        assert program is not None, "a candidate of this origin has one"
        program.require_unchanged()
        return replace(job, loader=jobs.LoaderStart(program.argv, self.attach_timeout_s))


LabArm = LabPolicy | LabProgram


class LabMachine(Protocol):
    """Where the runs of a session follow each other; see verifier.microvm.machine.Machine."""

    def call(self, job: jobs.Message, timeout_s: float, /) -> Mapping[str, Any]: ...

    def close(self) -> None: ...


class Workplace(Protocol):
    """What a session needs of its lab."""

    @property
    def environment(self) -> Mapping[str, str]: ...

    def open(self, *, hostfs: bool) -> LabMachine: ...

    def placed(self, arm: LabArm, job: jobs.RunWorkload) -> jobs.RunWorkload: ...


class VmLab:
    """Measures in micro-VMs.

    Args:
        kernel: the sched_ext kernel to run.
        snapshots: where booted machines are kept.
        cpus, memory_mib: size of the machines.
        kvm: whether KVM was proved to work.
        environment: variables that workloads see; never stored.
        hidden: files and folders of this host that no workload is to see, whoever's it is.
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
        hidden: Sequence[Path] = (),
        lock: MachineLock = LAB_LOCK,
    ) -> None:
        self.kernel = kernel
        self.cpus = cpus
        self.memory_mib = memory_mib
        self.kvm = kvm
        self.environment = dict(environment)
        self._hidden = sorted({str(path) for named in hidden for path in (named.absolute(), named.resolve())})
        self._snapshots = snapshots
        self._lock = lock

    @property
    def hardware(self) -> Hardware:
        """What results of this lab depend on."""
        lab = "vm-kvm" if self.kvm else "vm-tcg"
        return Hardware(cpu_model(), self.cpus, self.memory_mib, lab, self.kernel.release)

    @property
    def versions(self) -> tuple[str, ...]:
        """What proofs of this lab depend on besides the kernel: the machine's size and QEMU."""
        return (str(self.cpus), str(self.memory_mib), "kvm" if self.kvm else "tcg", qemu_version())

    def open(self, *, hostfs: bool, more_cpus: int = 0, topology: Topology | None = None) -> Machine:
        """Return a fresh machine that has answered; raise VmLost if two in a row do not.

        Args:
            hostfs: see the two profiles.
            more_cpus: so many more than usual.
            topology: how many CPUs instead, and how they are arranged.
        """
        machine = self._snapshots.open(
            self.kernel,
            cpus=topology.cpus if topology else self.cpus + more_cpus,
            memory_mib=self.memory_mib,
            kvm=self.kvm,
            hostfs=hostfs,
            topology=topology,
        )
        if hostfs:
            machine.call(jobs.MountHost(self._hidden), ANSWER_TIMEOUT_S)
        return machine

    def placed(self, arm: LabArm, job: jobs.RunWorkload) -> jobs.RunWorkload:
        """Return the run as one under a candidate."""
        return arm.placed(job)

    def pace(self, costs: MachineCosts | None) -> float:
        """How many times as long work takes where it is observed as on the hardware."""
        return costs.kappa if costs else 1.0

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
            session.warm_up()
            sample, observation = session.observe()
        return sample, observation

    def costs(self) -> MachineCosts | None:
        """Measure what separates this lab from the host, in about two seconds; None under KVM, or if that failed.

        Raises:
            VmLost: the machine was lost twice.
        """
        if self.kvm:
            return None
        with self.measuring():
            return compare(twice(self._probed), probe_host())

    def _probed(self) -> jobs.CostsAnswer:
        with self.open(hostfs=True) as machine:
            return jobs.CostsAnswer.from_json(machine.call(jobs.MeasureCosts(), ANSWER_TIMEOUT_S))

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
        self._more_cpus = 0
        self._topology: Topology | None = None

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
        and if the host disturbs that as well, there is no verdict. So is what a busy host left without a verdict.

        Args:
            phases: names in verifier.proving.prove.PHASES; and COVERAGE; empty for all of this depth.

        Raises:
            KernelRejected: it does not load or attach.
            VmLost: the machine was lost twice.
            HostBusy: the host did not let its CPUs run while the policy failed, twice.
        """

        with_copy = self._policy.copy is not None and (not phases or COVERAGE in phases)
        wanted = chosen(phases) if phases else phases_at(depth)

        def attempt(phases: Collection[Phase] = wanted, *, copied: bool = with_copy) -> jobs.ProveAnswer:
            here = [phase for phase in phases if not phase.elsewhere]
            there = [phase for phase in phases if phase.elsewhere]
            answer = self._prove(depth, here, copied=copied) if here or copied else NOTHING_PROVED
            if there and not answer.exit_text:
                self._more_cpus = 1
                answer = joined(answer, self._prove(depth, there))
            return answer

        with self._lab.measuring():  # a machine that has to share its CPUs with another one looks like a slow policy
            answer = twice(attempt)
            if doubtful(answer) or perhaps_host_stalled(answer.exit_text):
                answer = twice(attempt)
            if answer.undecided and not failed(answer):
                answer = with_second(answer, twice(partial(attempt, phases_of(answer.undecided), copied=False)))
        return beyond_doubt(answer)

    def prove_on(self, topology: Topology, depth: Depth) -> jobs.ProveAnswer:
        """Take the policy through what only a guest of this shape shows; raises as `prove`.

        What fails there is looked at twice: with more CPUs than the host has, each of them stands still at times.
        """

        def attempt() -> jobs.ProveAnswer:
            self.close()
            self._topology = topology
            try:
                return self._prove(depth, SHAPED_PHASES)
            finally:
                self._topology = None

        with self._lab.measuring():
            answer = twice(attempt)
            if doubtful(answer) or perhaps_host_stalled(answer.exit_text):
                answer = twice(attempt)
        results = [result | {"topology": str(topology)} for result in answer.results]
        return beyond_doubt(replace(answer, results=results), f"the {topology} machine")

    def _prove(self, depth: Depth, phases: Sequence[Phase], *, copied: bool = False) -> jobs.ProveAnswer:
        """Run phases in this machine, or a fresh one, and use it up; in each the crew wears other constants first.

        Args:
            copied: whether the copy with probes is run before them.
        """
        turned = self._policy.worn.turned(self._more_cpus)
        worn = {trait: list(values) for trait, values in asdict(turned).items()}
        names = [phase.name for phase in phases]
        job = jobs.Prove(self._policy.message(), depth.value, names, worn, list(self._policy.reads))
        if copied and self._policy.copy:
            job = self._policy.copy.added_to(job)
        if self._topology:
            job = replace(job, stretch=stretch_of(self._topology.cpus, len(os.sched_getaffinity(0))))
        try:
            return jobs.ProveAnswer.from_json(self._call(job, LOAD_TIMEOUT_S + 4 * depth.value))
        finally:
            self.close()
            self._more_cpus = 0

    def _call(self, job: jobs.Message, timeout_s: float) -> Mapping[str, Any]:
        if self._machine is None:
            self._machine = self._lab.open(hostfs=False, more_cpus=self._more_cpus, topology=self._topology)
        try:
            return self._machine.call(job, timeout_s)
        except VmLost:
            self.close()
            raise


class TrialSession:
    """Runs one workload again and again in one machine; a lost machine is replaced once per run."""

    def __init__(self, lab: Workplace, workload: WorkloadCommand) -> None:
        self._lab = lab
        self._workload = workload
        self._reader = OutputReader(workload)
        self._machine: LabMachine | None = None
        self._had_machine = False

    def close(self) -> None:
        """End the machine."""
        if self._machine:
            self._machine.close()
            self._machine = None

    def warm_up(self) -> None:
        """One run under the default scheduler that is not recorded; raises as `observe`."""
        self._require_success(*self._run(None, idle_limit_s=IDLE_LIMIT_S))

    def observe(self) -> tuple[Sample, Observation]:
        """One recorded run under the default scheduler, whose sample holds all of its output.

        Raises:
            WorkloadFailed: it failed, or its figures would be nonsense.
            MetricError: its output holds no number that the metric could find.
            VmLost: the machine was lost twice.
        """
        sample, answer = self._run(None, observe=True, idle_limit_s=IDLE_LIMIT_S)
        self._require_success(sample, answer)
        if answer.observation is None:
            raise VmLost("the guest returned no observation")
        return replace(sample, output_tail=answer.output), Observation.from_json(answer.observation)

    def run_default(self, beside: LabArm | None = None) -> Sample:
        """One run under the default scheduler; what goes wrong stands in the sample: one run proves no rule.

        Args:
            beside: candidate this run will be compared with: attached and detached before the clock starts, so that the
                kernel's code was patched in both arms.

        Raises:
            WorkloadFailed: a fresh machine was needed, and the setup command failed in it.
            KernelRejected: `beside` would not load or attach.
            VmLost: the machine was lost twice.
        """
        return self._run(beside, attached=False)[0]

    def run_knob(self, knob: Knob, beside: LabArm) -> Sample:
        """One run under the default scheduler with a knob turned; raises as run_default."""
        return self._run(beside, attached=False, knob=knob)[0]

    def run_candidate(self, policy: LabArm) -> Sample:
        """One run under a candidate; what goes wrong stands in the sample.

        Raises:
            WorkloadFailed: a fresh machine was needed, and the setup command failed in it.
            KernelRejected: a policy would not load or attach.
            UsageError: a program has changed since the run began.
            VmLost: the machine was lost twice.
        """
        return self._run(policy)[0]

    def _run(
        self,
        policy: LabArm | None,
        *,
        observe: bool = False,
        attached: bool = True,
        idle_limit_s: float = 2 * IDLE_LIMIT_S,
        knob: Knob | None = None,
    ) -> tuple[Sample, jobs.RunAnswer]:
        job = self._job(policy, observe=observe, attached=attached, idle_limit_s=idle_limit_s)
        arm = policy.candidate.key if policy and attached else DEFAULT_ARM
        if knob:
            job, arm = replace(job, batch=knob.batch, slice_us=knob.slice_us), knob.key

        def attempt() -> tuple[Sample, jobs.RunAnswer]:
            machine = self._ready_machine()
            started_at = datetime.now(UTC).isoformat()
            answer = self._call(machine, job)
            return self._sample(arm, answer, started_at), answer

        sample, answer = twice(attempt)
        return twice(attempt) if perhaps_host_stalled(sample.policy_exit) else (sample, answer)

    def _ready_machine(self) -> LabMachine:
        """Return the session's machine, set up; one that replaces a lost one first runs the workload for its caches."""
        if self._machine is None:
            self._machine = self._lab.open(hostfs=True)
            self._set_up(self._machine)
            if self._had_machine:
                self._call(self._machine, self._job(None))
            self._had_machine = True
        return self._machine

    def _set_up(self, machine: LabMachine) -> None:
        """Run the setup command, if there is one; let go of the machine if that fails."""
        workload = self._workload
        if not workload.setup:
            return
        job = jobs.RunSetup(command=workload.setup, timeout_s=workload.timeout_s, **self._surroundings())
        try:
            answer = jobs.SetupAnswer.from_json(machine.call(job, LOAD_TIMEOUT_S + job.timeout_s))
        except VmLost:
            self.close()
            raise
        if answer.status != 0:
            self.close()
            raise command_failed("--setup", workload.setup, answer.status, answer.output)

    def _call(self, machine: LabMachine, job: jobs.RunWorkload) -> jobs.RunAnswer:
        """Give the machine a job; let go of it if it is lost."""
        try:
            loading_s = job.loader.attach_timeout_s if job.loader else 0.0
            return jobs.RunAnswer.from_json(machine.call(job, LOAD_TIMEOUT_S + loading_s + 3 * job.timeout_s))
        except VmLost:
            self.close()
            raise

    def _job(
        self, policy: LabArm | None, *, observe: bool = False, attached: bool = True, idle_limit_s: float = 0.0
    ) -> jobs.RunWorkload:
        workload = self._workload
        job = jobs.RunWorkload(
            command=workload.command,
            prepare=workload.prepare,
            timeout_s=workload.timeout_s,
            attached=attached,
            observe=observe,
            cleanup=workload.cleanup,
            idle_limit_s=idle_limit_s,
            **self._surroundings(),
        )
        return self._lab.placed(policy, job) if policy else job

    def _surroundings(self) -> dict[str, Any]:
        """Where and as whom every command of the workload runs."""
        return {
            "directory": self._workload.directory,
            "environment": dict(self._lab.environment),
            "uid": os.getuid(),
            "gid": os.getgid(),
            "groups": os.getgroups(),
            "shell": [self._workload.shell],
        }

    def _sample(self, arm: str, answer: jobs.RunAnswer, started_at: str) -> Sample:
        workload, output = self._workload, answer.readable_output
        values, unread = self._read(answer, strict=arm == DEFAULT_ARM)
        wrong_with_loader = answer.loader.failure if answer.loader else ""
        return Sample(
            arm=arm,
            value=answer.wall_ns / 1e9 if values.objective is None else values.objective,
            wall_ns=answer.wall_ns,
            cpu_ns=answer.cpu_ns,
            exit_status=answer.exit_status if answer.prepare_status == 0 else answer.prepare_status,
            started_at=started_at,
            calibration_ns=answer.calibration_ns,
            output_tail=output[-SAMPLE_OUTPUT_CHARS:],
            policy_exit=answer.policy_exit,
            values=values.named,
            usage=replace(usage_of(answer), failure=wrong_with_loader or unread or failure_seen(workload, answer)),
        )

    def _read(self, answer: jobs.RunAnswer, *, strict: bool) -> tuple[RunValues, str | None]:
        """Return the numbers that a run printed, and why they cannot be compared; None if they can."""
        if answer.prepare_status != 0:
            return RunValues(math.nan, {}), None
        ended = answer.exit_status is not None
        if not (ended and (answer.exit_status == 0 or self._workload.ignore_failure)):
            return RunValues(None, {}), None
        try:
            return self._reader.read(answer.readable_output, strict=strict), None
        except MetricError as error:
            return RunValues(math.nan, {}), error.message.splitlines()[0]

    def _require_success(self, sample: Sample, answer: jobs.RunAnswer) -> None:
        """Raise what is wrong with a run of the default scheduler: nothing could be compared with it."""
        workload, output = self._workload, answer.readable_output
        if answer.prepare_status != 0:
            raise command_failed("--prepare", workload.prepare, answer.prepare_status, output)
        if math.isnan(sample.value):
            OutputReader(workload).read(output, strict=True)
        nonsense = why_nonsense(workload, sample, answer.busy)
        if nonsense:
            raise WorkloadFailed(f"the workload {quoted(workload.command)} {nonsense.what}", nonsense.hint)
        if sample.failure:
            raise WorkloadFailed(
                f"the workload {quoted(workload.command)} failed under the default scheduler: {sample.failure}\n"
                + last_lines(output),
                failure_hint(workload, sample, output),
            )
        if answer.cleanup_status != 0:
            raise command_failed("--cleanup", workload.cleanup, answer.cleanup_status, answer.cleanup_output)


def command_failed(option: str, command: str, status: int | None, output: str) -> WorkloadFailed:
    """The error for a command beside the workload that failed."""
    return WorkloadFailed(
        f"the {option} command {quoted(command)} {how_it_ended(status)}\n" + last_lines(jobs.readable(output)),
        WHEN_IT_RUNS[option],
    )


def cpu_model() -> str:
    """The host's CPU as /proc/cpuinfo names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine
