"""The real verifier service over a bench that follows the policy's name, as a program of its own: tests kill it.

python scripted_service.py SOCKET KEYS [name=value of ServiceLimits]...
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from schedagent.core.errors import CompileError
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.process.listener import Admission, listen
from schedagent.core.process.machine_lock import LAB_LOCK
from schedagent.core.token import digest_inputs
from schedagent.core.verification import GateResult, GateStatus, VerificationReport, Verified
from verifier.service.server import ServiceLimits, VerifierService
from verifier.signer import Signer


@dataclass(frozen=True)
class ScriptedBench:
    """What happens is the name of the policy."""

    keys: Path

    def compile(self, submission):
        if submission.info.name == "refused":
            raise CompileError("refused.bpf.c:1:1: error: no", "repair it")
        return PolicyArtifact(submission.info.name, submission.info.source.read_bytes(), "source", "cd" * 20, "fine")

    def verify(self, submission, on_gate):
        gates = []

        def passed(gate, detail):
            gates.append(GateResult(gate, GateStatus.PASSED, detail, 0.5))
            on_gate(gates[-1])

        files = sorted(path for path in submission.include_dir.rglob("*") if path.is_file())
        told = [f"{path.relative_to(submission.include_dir)}={path.read_text(errors='replace')[:20]}" for path in files]
        passed("source", "; ".join(told))
        passed("scratch", f"{submission.include_dir} {tempfile.gettempdir()}")
        self._act(submission.info.name, passed)
        artifact = self.compile(submission)
        report = VerificationReport(
            submission.info.name, submission.candidate.key, artifact.digest, submission.kernel or "7.3.4", tuple(gates)
        )
        return Verified(replace(report, token=self._sign(submission, artifact, report)), artifact)

    def _act(self, name, passed):
        if name == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif name == "wrong":
            raise RuntimeError("a mistake, with a secret in it")
        elif name == "leave":
            os._exit(0)
        elif name in ("slow", "still"):
            child = subprocess.Popen(["sleep", "600"])
            passed("busy", f"{os.getpid()} {child.pid}")
            if name == "still":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)
        elif name == "brief":
            time.sleep(0.3)
        elif name == "queued":
            LAB_LOCK.note_wait("waiting until this machine's lab is free: it measures for run 1", 0.0)
            LAB_LOCK.note_wait("", 12.5)
        elif name == "large":
            passed("large", "x" * (8 << 20))
        elif name == "surrogate":
            passed("bad text", "\ud800")

    def _sign(self, submission, artifact, report):
        candidate = submission.candidate
        return Signer(self.keys / "signing.key").issue(
            artifact_digest=("ab" * 32 if submission.info.name == "liar" else artifact.digest),
            tunables=candidate.tunables,
            inputs_digest=digest_inputs(candidate.history, candidate.classes),
            report_digest=report.digest,
            kernel_release=report.kernel_release,
            btf_build_id=artifact.btf_build_id,
            scope=submission.scope,
            cgroup=submission.cgroup,
        )


def main(path, keys, *options):
    chosen = {
        name: float(value) if name.endswith("_s") else int(value) for name, value in (o.split("=") for o in options)
    }
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    service = VerifierService(ScriptedBench(Path(keys)), Admission(), ServiceLimits(**{"parallel": 2} | chosen))
    listener = listen(Path(path), None)
    try:
        asyncio.run(service.run(listener, preload=["tests.support.scripted_verifier_service"]))
    finally:
        Path(path).unlink(missing_ok=True)


if __name__ == "__main__":
    from tests.support import scripted_verifier_service  # so that workers find the bench under one name

    scripted_verifier_service.main(*sys.argv[1:])
