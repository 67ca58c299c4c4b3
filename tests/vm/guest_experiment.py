"""Runs inside the micro-VM as root: `schedagent experiment` on a small service, with the real schedagentd and policies.

Only the verifier is scripted, which needs a machine of its own: it signs tokens for objects that were compiled outside.

Usage: guest_experiment.py CACHE FOLDER_OF_OBJECTS; prints what it saw as one JSON object.
"""

import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

CACHE, OBJECTS = sys.argv[1:3]
STATE = Path("/tmp/schedagent-state")
os.environ |= {"SCHEDAGENT_CACHE": CACHE, "SCHEDAGENT_STATE": str(STATE), "XDG_CONFIG_HOME": "/tmp", "HOME": "/tmp"}

from typer.testing import CliRunner  # noqa: E402 - the settings read the environment

from kernel_bpf.load.running import running_build_id, running_release  # noqa: E402
from kernel_bpf.load.sched_ext import kernel_state  # noqa: E402
from kernel_bpf.policies.library import load_library  # noqa: E402
from schedagent.cli import app as cli  # noqa: E402
from schedagent.core.policies.artifact import PolicyArtifact  # noqa: E402
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo  # noqa: E402
from schedagent.core.rules import GATES  # noqa: E402
from schedagent.core.token import DeploymentToken, Scope, digest_inputs, encode, key_id  # noqa: E402
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Sample  # noqa: E402
from schedagent.core.verification import GateResult, GateStatus, VerificationReport, Verified  # noqa: E402
from schedagent.experiment.service import Service  # noqa: E402
from schedagent.experiment.spec import Experiment  # noqa: E402
from schedagent.experiment.windows import Windows  # noqa: E402
from schedagent.run import opening  # noqa: E402
from tests.support.guest_daemon import CGROUPS, KEY, PUBLIC, Daemon, prepare  # noqa: E402
from verifier.lab.vm import LabPolicy  # noqa: E402

HOGS, SERVICE, LOG = 4, "/service", Path("/tmp/service.log")
SLUGGISH_US = 100_000
"""The longest slice that fifo takes: who wakes up waits for several of them."""
WINDOWS = ("--window", "2s", "--wash-out", "0.5s")


def into(cgroup: str) -> None:
    folder = CGROUPS / cgroup.lstrip("/")
    folder.mkdir(exist_ok=True)
    (folder / "cgroup.procs").write_text(f"{os.getpid()}")


def start(cgroup: str, work: Any) -> int:
    """Have a process of its own do something in a cgroup for ever."""
    pid = os.fork()
    if pid == 0:
        into(cgroup)
        work()
    return pid


def serve() -> None:
    """Wake up a hundred times a second, and write down how late."""
    with LOG.open("a", buffering=1) as log:
        while True:
            began = time.monotonic_ns()
            time.sleep(0.01)
            log.write(f"late {max(1, (time.monotonic_ns() - began - 10_000_000) // 1000)} us\n")


def burn() -> None:
    while True:
        pass


@contextmanager
def load() -> Iterator[None]:
    LOG.touch()
    pids = [start(SERVICE, serve), *(start("/hogs", burn) for _ in range(HOGS))]
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def artifact_of(name: str) -> PolicyArtifact:
    return PolicyArtifact(name, (Path(OBJECTS) / f"{name}.o").read_bytes(), "source", "btf")


def token_of(candidate: CandidatePolicy, artifact: PolicyArtifact) -> str:
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
    return encode(token, KEY.sign)


class Verifier:
    """Passes everything."""

    def compile(self, info: PolicyInfo) -> PolicyArtifact:
        return artifact_of(info.name)

    def verify_all(self, submissions: Any) -> Iterator[Verified]:
        for candidate, info in submissions:
            artifact = self.compile(info)
            gates = tuple(GateResult(gate, GateStatus.PASSED, "scripted") for gate in GATES)
            report = VerificationReport(info.name, candidate.key, artifact.digest, running_release(), gates)
            yield Verified(replace(report, token=token_of(candidate, artifact)), artifact)


class Vm:
    """What HostLab needs of the micro-VM's lab here."""

    environment = {"PATH": "/usr/bin:/bin"}  # noqa: RUF012 - a stand-in

    @contextmanager
    def measuring(self) -> Iterator[None]:
        yield


def library() -> dict[str, PolicyInfo]:
    """The bundled policies, fifo with its longest slice."""
    policies = dict(load_library())
    slices = [
        replace(each, default=SLUGGISH_US) if each.name == "slice_us" else each for each in policies["fifo"].tunables
    ]
    return policies | {"fifo": replace(policies["fifo"], tunables=tuple(slices))}


def experiment(policy: str, *words: str) -> dict:
    """What the command line prints of one policy, and how often it was in charge."""
    before = kernel_state().enable_seq
    metric = ("--metric-log", str(LOG), "late ([0-9]+ us)", "--better", "lower")
    called = ["experiment", "--cgroup", SERVICE, *metric, *WINDOWS, "--policy", policy, *words, "--json"]
    result = CliRunner().invoke(cli.app, called)
    seen = {"status": result.exit_code, "errors": result.stderr[-2000:], "state": kernel_state().state}
    seen["pulses"] = kernel_state().enable_seq - before
    with suppress(ValueError):
        report = json.loads(result.stdout)
        [candidate] = report["iterations"][0]["candidates"]
        seen |= {"verdict": candidate["verdict"], "values": candidate["values"], "run": report["run"]}
    return seen


class Against:
    """Blocks of a test, and progress that nobody reads."""

    def __init__(self) -> None:
        self.kept: list[Block] = []

    def blocks(self) -> list[Block]:
        return list(self.kept)

    def add_block(self, block: Block) -> None:
        self.kept.append(block)

    def step(self, _text: str) -> None: ...

    note = step

    def count(self, _text: str, _done: int, _total: int) -> None: ...


def against_itself(daemon: Daemon) -> dict:
    """Compare fair with fair: the windows of the default scheduler are under it as well."""
    info = load_library()["fair"]
    candidate = CandidatePolicy("fair", info.configured({}))
    artifact = artifact_of("fair")
    arm = LabPolicy(candidate, artifact, token=token_of(candidate, artifact))

    class Same(Windows):
        def default(self) -> Sample:
            return replace(self.policy(arm, lambda _values: ""), arm=DEFAULT_ARM)

    wanted = Experiment(("cgroup", "/hogs"), window_s=2.0, wash_out_s=0.5, for_s=90.0)
    kept = Against()
    service = Service(wanted, daemon.client, Vm().measuring, Vm.environment, kept)
    service._windows = Same(wanted, daemon.client, Vm.environment)
    service.measure([arm], kept, planned=1, seed=5)
    verdict = service.judge(kept.kept, candidate.key, planned=1)
    logs = [[sample.value for sample in block.samples] for block in kept.kept]
    return {"outcome": verdict.outcome.value, "reason": verdict.reason, "pairs": verdict.pairs, "values": logs}


def main() -> None:
    prepare("baseline_samples = 0\nsample_s = 0.5\n[bounds]\nstarvation_s = 20\n")  # a busy host stops its CPUs
    daemon = Daemon()
    daemon.start()
    opening.open_lab = lambda _settings: Vm()  # type: ignore[assignment]
    opening.open_verifier = lambda _settings: Verifier()  # type: ignore[assignment]
    opening.load_library = library  # type: ignore[assignment]
    opening.DaemonClient = lambda: daemon.client  # type: ignore[assignment,misc]
    try:
        with load():
            seen = {"helps": experiment("interactive", "--for", "90s"), "harms": experiment("fifo", "--for", "60s")}
            seen["same"] = against_itself(daemon)
    finally:
        daemon.kill(signal.SIGTERM)
    sys.stdout.write("\n" + json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
