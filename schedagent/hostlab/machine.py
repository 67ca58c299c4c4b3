"""This machine in the role of the lab's: it runs a workload's commands on the real files, as the user who asks.

    HostMachine(daemon).call(jobs.RunWorkload(...), 100)

Under a policy a command runs within a trial of schedagentd's: the policy is in charge from before the command starts
until after it has ended, and no longer, whatever happens to this process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from kernel_bpf.load import linux
from kernel_bpf.load.sched_ext import kernel_state
from kernel_bpf.observe.tasks import machine_sums
from schedagent.client.daemon import DaemonClient, Trial
from schedagent.core.errors import KernelRejected, Refused
from schedagent.core.token import decode
from schedagent.core.trials.usage import Usage
from schedagent.hostlab.command import Command, Left
from verifier.guest.output import Output
from verifier.guest.recorder import Recorder, growth, read_pressure
from verifier.guest.waiting import Ended
from verifier.microvm import jobs

REST_S = 1.2
"""The default scheduler is in charge for so long before a trial; schedagentd wants a second."""

LEASE_MARGIN_S = 5.0
LONGEST_LEASE_S = 600.0
"""What schedagentd allows unless it is configured otherwise (longest_trial_s)."""

_ENABLED = "enabled"


@dataclass(frozen=True)
class Permitted(jobs.PolicyLoad):
    """A policy with what schedagentd wants to see of it.

    Args:
        token: that its verification issued.
    """

    token: str = ""


class HostMachine:
    """Answers the lab's jobs on this machine.

    Args:
        daemon: puts policies in charge.
        recorded: whether this user may record what tasks do.
    """

    def __init__(self, daemon: DaemonClient, *, recorded: bool = False) -> None:
        self._daemon = daemon
        self._recorded = recorded
        self._rested_at = 0.0

    def call(self, job: jobs.Message, _timeout_s: float) -> Mapping[str, Any]:
        """Do what is asked, and return the answer as a machine of the lab gives it."""
        if isinstance(job, jobs.RunSetup):
            return self._set_up(job).to_json()
        assert isinstance(job, jobs.RunWorkload), "nothing else is asked of this machine"
        return self._run(job).to_json()

    def close(self) -> None:
        """Nothing stays of it."""

    def _set_up(self, job: jobs.RunSetup) -> jobs.SetupAnswer:
        with closing(Output(job.uid, job.gid)) as output:
            ended = _beside(job, job.command, output)
            return jobs.SetupAnswer(ended.status, output.printed().text)

    def _run(self, job: jobs.RunWorkload) -> jobs.RunAnswer:
        """Prepare, run under its scheduler, clean up."""
        with closing(Output(job.uid, job.gid)) as output:
            if job.prepare:
                ended, printed = _beside(job, job.prepare, output), output.printed()
                if ended.status != 0:
                    return jobs.RunAnswer(0, 0, None, ended.status, 0, printed.text, "", None)
            answer = self._under_its_scheduler(job, output)
            if not job.cleanup:
                return answer
            ended = _beside(job, job.cleanup, output)
            return replace(answer, cleanup_status=ended.status, cleanup_output=output.printed().text)

    def _under_its_scheduler(self, job: jobs.RunWorkload, output: Output) -> jobs.RunAnswer:
        if job.policy is None or not job.attached:
            return self._timed(job, output, lambda: True)
        assert isinstance(job.policy, Permitted), "HostLab has placed it"
        time.sleep(max(0.0, self._rested_at + REST_S - time.monotonic()))
        lease_s = min(job.timeout_s + LEASE_MARGIN_S, LONGEST_LEASE_S)
        try:
            with self._daemon.trial(trial_order(job.policy), lease_s) as trial:
                still = in_charge()
                answer = self._timed(job, output, still)
                stayed = still()
        except Refused as refused:  # of this one: what ends limits of cgroups here, or was ended here before
            raise KernelRejected(refused.message, refused.hint) from None
        finally:
            self._rested_at = time.monotonic()
        return answer if stayed else replace(answer, policy_exit=why_ended(trial))

    def _timed(self, job: jobs.RunWorkload, output: Output, healthy: Callable[[], bool]) -> jobs.RunAnswer:
        """The timed part of a run."""
        recorder = Recorder() if job.observe and self._recorded else None
        pressure, sums = read_pressure(), machine_sums()
        if recorder:
            recorder.start()
        with _knob(job), Command(_words(job, job.command), job.directory, job.environment, output) as command:
            ended = command.wait(job.timeout_s, healthy)
            observation = recorder.stop(command.pid).to_json() if recorder else None
            left = command.left()
        printed = output.printed()
        usage = _usage(ended, left, pressure, printed.total_bytes)
        cpu_ns = int((ended.rusage.ru_utime + ended.rusage.ru_stime) * 1e9) if ended.rusage else 0
        wall_ns = ended.at_ns - command.started_ns
        others = _others_share(sums, machine_sums(), (cpu_ns + left.cpu_ns) / 1e9, wall_ns / 1e9)
        return jobs.RunAnswer(
            wall_ns=wall_ns,
            cpu_ns=cpu_ns,
            exit_status=ended.status,
            prepare_status=0,
            calibration_ns=0,
            output=printed.text,
            policy_exit="",
            observation=observation,
            usage=asdict(replace(usage, others_share=others)),
            busy=list(left.busy),
        )


def _words(job: jobs.RunWorkload | jobs.RunSetup, command: str) -> list[str]:
    return [*job.shell, "-c", command]


def _beside(job: jobs.RunWorkload | jobs.RunSetup, command: str, output: Output) -> Ended:
    """Run a command that is not timed."""
    with Command(_words(job, command), job.directory, job.environment, output) as running:
        return running.wait(job.timeout_s)


@contextmanager
def _knob(job: jobs.RunWorkload) -> Iterator[None]:
    """Turn a knob of this thread's while it starts a command, which inherits it (sched(7))."""
    if not (job.batch or job.slice_us):
        yield
        return
    linux.set_fair_class(batch=job.batch, slice_ns=1000 * job.slice_us)
    try:
        yield
    finally:
        linux.set_fair_class()


def trial_order(policy: Permitted) -> dict[str, Any]:
    """What schedagentd wants to know of a policy, see schedagentd/messages.py."""
    permit = decode(policy.token)
    return {
        "policy": policy.name,
        "object_base64": policy.object_base64,
        "tunables": dict(permit.tunables),
        "history": policy.history,
        "classes": policy.classes,
        "report_digest": permit.report_digest,
        "token": policy.token,
    }


def in_charge() -> Callable[[], bool]:
    """Return what says whether the policy that is in charge now still is; sysfs decides, which anybody may read.

    Raises:
        KernelRejected: none is.
    """
    first = kernel_state()
    if first.state != _ENABLED:
        raise KernelRejected(f"schedagentd began the trial, and sysfs says {first.state!r}")

    def still() -> bool:
        now = kernel_state()
        return (now.state, now.enable_seq) == (_ENABLED, first.enable_seq)

    return still


def why_ended(trial: Trial) -> str:
    """Why the policy of a trial was not in charge to the end."""
    ended = trial.ended or {}
    return f"{ended.get('end') or 'it ended'}: {ended.get('detail') or 'schedagentd does not say why'}"


def _usage(ended: Ended, left: Left, pressure: tuple[int, int, int], printed_bytes: int) -> Usage:
    cpu, io, memory = map(growth, pressure, read_pressure())
    rusage = ended.rusage
    return Usage(
        voluntary_switches=rusage.ru_nvcsw if rusage else 0,
        involuntary_switches=rusage.ru_nivcsw if rusage else 0,
        psi_cpu_us=cpu,
        psi_io_us=io,
        psi_memory_us=memory,
        left_behind=left.names,
        left_cpu_ns=left.cpu_ns,
        output_bytes=printed_bytes,
    )


def _others_share(
    before: tuple[float, int, float] | None, after: tuple[float, int, float] | None, own_s: float, wall_s: float
) -> float:
    """Return the part of this machine's CPU time that went to others than the workload; 0 if that is not known."""
    if before is None or after is None or wall_s <= 0:
        return 0.0
    return max(0.0, after[2] - before[2] - own_s) / (wall_s * len(os.sched_getaffinity(0)))
