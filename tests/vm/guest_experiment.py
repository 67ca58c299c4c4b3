"""Runs inside the micro-VM as root: an experiment on a small service, with the real schedagentd and real policies.

The command line around it needs more than this machine has, and is tested over a scripted kernel: here is what measures
and decides. Objects were compiled outside.

Usage: guest_experiment.py FOLDER_OF_OBJECTS; prints what it saw as one JSON object.
"""

import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from kernel_bpf.load.running import running_build_id, running_release
from kernel_bpf.load.sched_ext import kernel_state
from kernel_bpf.policies.library import load_library
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.token import DeploymentToken, Scope, digest_inputs, encode, key_id
from schedagent.core.trials.objective import Direction
from schedagent.core.trials.trial import Block
from schedagent.experiment import windows
from schedagent.experiment.service import Service
from schedagent.experiment.spec import Experiment, Kind, NumberSource
from tests.support.guest_daemon import CGROUPS, KEY, PUBLIC, Daemon, prepare
from verifier.lab.vm import LabPolicy

HOGS, SERVICE, LOG = 6, "/service", Path("/tmp/service.log")
SLUGGISH_US = 100_000
"""The longest slice that fifo takes: who wakes up waits for several of them."""
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
TIMES = {"window_s": 2.0, "wash_out_s": 0.5, "for_s": 90.0}


def start(cgroup: str, work: Any) -> int:
    """Have a process of its own do something in a cgroup for ever."""
    folder = CGROUPS / cgroup.lstrip("/")
    folder.mkdir(exist_ok=True)
    pid = os.fork()
    if pid == 0:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
        (folder / "cgroup.procs").write_text(f"{os.getpid()}")
        work()
    return pid


def serve() -> None:
    """Wake up a hundred times a second, and write down how late."""
    with LOG.open("a", buffering=1) as log:
        while True:
            began = time.monotonic_ns()
            time.sleep(0.01)
            log.write(f"late {max(1, (time.monotonic_ns() - began - 10_000_000) // 1000)} us\n")


def toil() -> None:
    """Work all the time, nicely, and write down each piece."""
    os.nice(10)
    with LOG.open("a", buffering=1) as log:
        while True:
            sum(range(2000))
            log.write("done\n")


def burn() -> None:
    while True:
        pass


@contextmanager
def load(*works: tuple[str, Any]) -> Iterator[list[int]]:
    """Have processes do something meanwhile: (cgroup, what) of each; their ids."""
    LOG.touch()
    pids = [start(*work) for work in works]
    try:
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def arm_of(name: str, **tunables: int) -> LabPolicy:
    """A policy with the token that a verifier would have issued."""
    candidate = CandidatePolicy(name, load_library()[name].configured(tunables))
    artifact = PolicyArtifact(name, Path(sys.argv[1], f"{name}.o").read_bytes(), "source", "btf")
    now = int(time.time())
    token = DeploymentToken(
        artifact_digest=artifact.digest,
        tunables=candidate.tunables,
        inputs_digest=digest_inputs(candidate.history, candidate.classes),
        report_digest="ef" * 32,
        kernel_release=running_release(),
        btf_build_id=running_build_id(),
        scope=Scope.FULL,
        cgroup="",
        not_before=now - 10,
        expires_at=now + 3600,
        nonce=secrets.token_hex(16),
        key_id=key_id(PUBLIC),
    )
    return LabPolicy(candidate, artifact, token=encode(token, KEY.sign))


class Kept:
    """Blocks, and progress for who reads the output of a test that failed."""

    def __init__(self) -> None:
        self.kept: list[Block] = []

    def blocks(self) -> list[Block]:
        return list(self.kept)

    def add_block(self, block: Block) -> None:
        self.kept.append(block)

    def step(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")

    note = step

    def count(self, text: str, done: int, total: int) -> None:
        self.step(f"{text}: {done} of {total}")


def experiment(daemon: Daemon, wanted: Experiment, arm: LabPolicy) -> dict:
    """What comes of an experiment, and how often a policy was in charge in it."""
    before, kept, key = kernel_state().enable_seq, Kept(), arm.candidate.key
    service = Service(wanted, daemon.client, nullcontext, ENVIRONMENT, kept)
    cut = service.measure([arm], kept, planned=1, seed=5)
    verdict = service.judge(kept.kept, key, planned=1)
    return {
        "outcome": verdict.outcome.value,
        "reason": verdict.reason,
        "ratio": verdict.ratio,
        "pairs": verdict.pairs,
        "cut": cut,
        "pulses": kernel_state().enable_seq - before,
        "state": kernel_state().state,
        "seconds": [sample.wall_ns / 1e9 for block in kept.kept for sample in block.samples if sample.arm == key],
        "values": [[sample.value for sample in block.samples] for block in kept.kept],
        "guards": {guard.name: [guard.ratio, guard.held] for guard in verdict.guards},
    }


def main() -> None:
    windows.LEASE_MARGIN_S = 60.0  # a busy host stops its CPUs
    prepare("baseline_samples = 0\nsample_s = 0.5\n[bounds]\nstarvation_s = 20\n")  # a busy host stops its CPUs
    daemon = Daemon()
    daemon.start()
    late = Experiment(("cgroup", SERVICE), NumberSource(Kind.LOG, "late ([0-9]+ us)", str(LOG)), **TIMES)
    done = NumberSource(Kind.LOG, "done", str(LOG))
    work = Experiment(("pid", ""), done, Direction.HIGHER, **{**TIMES, "for_s": 220.0})
    try:
        with load((SERVICE, serve), ("/hogs", burn), ("/hogs", burn)):
            profile = Service(late, daemon.client, nullcontext, ENVIRONMENT, Kept()).observe()
            seen: dict[str, Any] = {"profile": [profile.kind.value, *profile.evidence]}
            seen["harms"] = experiment(daemon, late, arm_of("fifo", slice_us=SLUGGISH_US))
        os.nice(-10)  # beside so many hogs; without the default scheduler it is of no use
        with load(("/hogs", toil), *[("/hogs", burn)] * HOGS) as pids:
            seen["helps"] = experiment(daemon, replace(work, scope=("pid", f"{pids[0]}")), arm_of("fifo"))
    finally:
        daemon.kill(signal.SIGTERM)
    sys.stdout.write("\n" + json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
