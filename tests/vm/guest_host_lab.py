"""Runs inside the micro-VM as root: HostLab on a real sched_ext kernel, with the real schedagentd.

Usage: guest_host_lab.py TROUBLE_OBJECT; prints what it saw as one JSON object.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel_bpf.load.sched_ext import kernel_state
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.trials.trial import Sample
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.hostlab.lab import HostLab
from tests.support.guest_daemon import Daemon, prepare, request, until
from verifier.lab.vm import LabPolicy

WHO = "cat /sys/kernel/sched_ext/state /sys/kernel/sched_ext/root/ops 2>/dev/null; true"
LONG = "echo $$ > /tmp/shell; sleep 60"


class Vm:
    """What HostLab needs of the micro-VM's lab here."""

    def __init__(self) -> None:
        self.environment = {"PATH": "/usr/bin:/bin"}

    @contextmanager
    def measuring(self) -> Iterator[None]:
        yield


def figures(sample: Sample) -> dict:
    return {
        "printed": sample.output_tail.split(),
        "failure": sample.failure,
        "wall_ns": sample.wall_ns,
        "cpu_ns": sample.cpu_ns,
        "others_share": sample.usage.others_share if sample.usage else None,
    }


def one_of_each(lab: HostLab, policy: LabPolicy) -> dict:
    workload = WorkloadCommand(f"{WHO}; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done", "/tmp")
    sample, observation = lab.observe(workload)
    with lab.session(workload) as session:
        seen = {"default": figures(session.run_default(policy)), "policy": figures(session.run_candidate(policy))}
        seen["after it"] = kernel_state().state
    return seen | {"observed": [figures(sample), len(observation.records)]}


def cut_short(lab: HostLab, policy: LabPolicy) -> dict:
    """Kill who measures amid a trial, with -9."""
    time.sleep(1.5)  # schedagentd wants a second between two trials
    client = os.fork()
    if client == 0:
        with lab.session(WorkloadCommand(LONG, "/tmp")) as session:
            session.run_candidate(policy)
        os._exit(0)
    until(lambda: Path("/tmp/shell").exists() and kernel_state().state == "enabled")
    os.kill(client, signal.SIGKILL)
    took = until(lambda: kernel_state().state == "disabled")
    _pid, status = os.waitpid(client, 0)
    shell = Path("/proc", Path("/tmp/shell").read_text().strip())
    until(lambda: not shell.exists() or " Z " in (shell / "stat").read_text())
    return {"took": took, "status": os.waitstatus_to_exitcode(status), "state": kernel_state().state}


def main() -> None:
    content = Path(sys.argv[1]).read_bytes()
    prepare("baseline_samples = 0\nsample_s = 0.5\n[bounds]\nstarvation_s = 20\n")  # a busy host stops its CPUs
    daemon = Daemon()
    daemon.start()
    policy = LabPolicy(
        CandidatePolicy("trouble"), PolicyArtifact("trouble", content, "", ""), token=request(content)["token"]
    )
    lab = HostLab(Vm(), daemon.client, recorded=True)  # type: ignore[arg-type]
    try:
        seen = one_of_each(lab, policy)
        seen["killed"] = cut_short(lab, policy)
    finally:
        daemon.kill(signal.SIGTERM)
    sys.stdout.write("\n" + json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
