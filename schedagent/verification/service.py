"""The verifier service put together: what it does with a request, and serving until it is stopped."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.process.listener import Admission
from schedagent.core.settings import Settings
from schedagent.core.verification import GateResult, Verified
from schedagent.run.opening import open_local_verifier, open_signer
from verifier.microvm.kernels import default_kernel
from verifier.pipeline import Verifier
from verifier.service.server import ServiceLimits, VerifierService
from verifier.service.worker import Submission


@dataclass(frozen=True)
class VerifierHandler:
    """What the verifier service does with a request, in a process of its own."""

    settings: Settings

    def verify(self, submission: Submission, on_gate: Callable[[GateResult], None]) -> Verified:
        """Take it through all gates."""
        verifier = replace(
            self._verifier(submission), on_gate=on_gate, scope=submission.scope, cgroup=submission.cgroup
        )
        return verifier.verify(submission.candidate, submission.info)

    def compile(self, submission: Submission) -> PolicyArtifact:
        """Only compile it."""
        return self._verifier(submission).compile(submission.info)

    def _verifier(self, submission: Submission) -> Verifier:
        settings = replace(self.settings, kernel_release=submission.kernel or self.settings.kernel_release)
        verifier = open_local_verifier(settings, all_kernels=not submission.kernel)
        return replace(verifier, include_dirs=(submission.include_dir,))


def serve_verifier(settings: Settings, listener: socket.socket, admission: Admission) -> None:
    """Be the verifier service until SIGTERM or SIGINT."""
    open_signer(settings)  # a key that cannot be used is better known now than after the first policy's gates
    default_kernel(settings)
    limits = ServiceLimits(parallel=len(os.sched_getaffinity(0)))
    asyncio.run(VerifierService(VerifierHandler(settings), admission, limits).run(listener, preload=[__name__]))
