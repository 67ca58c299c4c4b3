"""HostLab: measures on this machine, where VmLab measures in a micro-VM.

Candidates have passed every gate in the VM before they come here, and schedagentd sees their tokens. What a run writes
to files stays: this is no throw-away machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from kernel_bpf.load.sched_ext import kernel_state
from schedagent.client.daemon import DaemonClient
from schedagent.core.errors import KernelRejected, SchedagentError, WorkloadFailed
from schedagent.core.process.shell_text import quoted
from schedagent.core.terminal.foreign import quote
from schedagent.core.trials.trial import ON_HOST, Hardware, Sample
from schedagent.core.trials.usage import MachineCosts
from schedagent.core.trials.workload import Observation, WorkloadCommand
from schedagent.hostlab.machine import HostMachine, Permitted
from verifier.lab.vm import LabArm, LabPolicy, TrialSession, VmLab, cpu_model
from verifier.microvm import jobs

NOTHING_LEFT_SHARE = 0.1
"""A second run that uses less of the first one's CPU time had little left to do."""

NOTHING_LEFT_CPU_NS = 250_000_000
"""What a first run must have used for that to mean anything."""


class HostLab:
    """Measures on this machine.

    Args:
        vm: the lab that observes where this user may not record what tasks do.
        daemon: puts policies in charge.
        recorded: whether this user may.
    """

    def __init__(self, vm: VmLab, daemon: DaemonClient, *, recorded: bool | None = None) -> None:
        self._vm = vm
        self._daemon = daemon
        self._recorded = os.geteuid() == 0 if recorded is None else recorded
        self.environment = vm.environment

    @property
    def hardware(self) -> Hardware:
        """What results depend on here."""
        memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
        return Hardware(cpu_model(), len(os.sched_getaffinity(0)), memory_mib, ON_HOST, os.uname().release)

    def costs(self) -> MachineCosts | None:
        """Nothing separates this lab from the hardware."""
        return None

    def pace(self, costs: MachineCosts | None) -> float:
        """How many times as long work takes where it is observed as on the hardware."""
        costs = costs if self._recorded else self._vm.costs()
        return costs.kappa if costs else 1.0

    def open(self, *, hostfs: bool) -> HostMachine:
        """Return this machine; all of its files are seen."""
        assert hostfs, "this machine has its files"
        return HostMachine(self._daemon, recorded=self._recorded)

    def placed(self, arm: LabArm, job: jobs.RunWorkload) -> jobs.RunWorkload:
        """Return the run as one under a candidate; raise KernelRejected for one that may not be loaded here."""
        if not isinstance(arm, LabPolicy):
            raise KernelRejected("it loads its policy itself, as root: that is done in the micro-VM only")
        if not arm.token:
            raise KernelRejected("no token was issued for it, so schedagentd would not load it")
        return replace(job, policy=Permitted(**vars(arm.message()), token=arm.token))

    def measuring(self) -> AbstractContextManager[None]:
        """Wait until no other process measures on this machine."""
        return self._vm.measuring()

    @contextmanager
    def session(self, workload: WorkloadCommand) -> Iterator[TrialSession]:
        """This machine, on which runs of a workload follow each other; one session at a time."""
        session = TrialSession(self, workload)
        with self.measuring():
            try:
                yield session
            finally:
                session.close()

    def observe(self, workload: WorkloadCommand) -> tuple[Sample, Observation]:
        """Run the workload twice here, under the default scheduler, and record what its tasks do.

        Where this user may not record that, one more run in the micro-VM shows it.

        Raises:
            WorkloadFailed: it failed, or the first run left the second one nothing to do.
            MetricError: its output holds no number that the metric could find.
        """
        with self.session(workload) as session:
            first = session.run_default()
            if self._recorded:
                sample, observation = session.observe()
            else:
                sample = session.run_default()
        _require_work(workload, first, sample)
        if not self._recorded:
            _own, observation = self._vm.observe(workload)
        return sample, observation


def _require_work(workload: WorkloadCommand, first: Sample, second: Sample) -> None:
    """Refuse a command that does its work once only."""
    if first.failure or first.cpu_ns < NOTHING_LEFT_CPU_NS or second.cpu_ns > NOTHING_LEFT_SHARE * first.cpu_ns:
        return
    raise WorkloadFailed(
        f"the workload {quoted(workload.command)} used {first.cpu_ns / 1e9:.2g} s of CPU time in its first run and"
        f" {second.cpu_ns / 1e9:.2g} s in its second: the first left it nothing to do",
        "undo the work before each run, for example: --prepare 'make clean'",
    )


def why_not_here(daemon: DaemonClient, proved_on: str) -> str:
    """Return why nothing can be measured on this machine; empty if it can be.

    Args:
        proved_on: release of the kernel that candidates are proved on.
    """
    if not kernel_state().available:
        return f"the kernel of this machine, {os.uname().release}, has no sched_ext"
    if proved_on != os.uname().release:
        return f"candidates are proved on {proved_on}, and this machine runs {os.uname().release}"
    try:
        status = daemon.ask("status")
    except SchedagentError as error:
        return error.message
    if not status.get("may_change", True):
        return "this user may not have schedagentd try policies: be named under users in its configuration"
    busy = status.get("active") or status.get("waiting")
    return f"schedagentd runs {quote(str(busy['policy']))} already, and there is one at a time" if busy else ""
