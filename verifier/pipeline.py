"""The ordered gates a candidate must pass before anything else may run it.

A gate that fails closes the way: the gates behind it are skipped and say so. A gate whose VM was lost twice has neither
passed nor failed: it is skipped too, and so is the rest.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kernel_bpf.compile import compile_policy
from kernel_bpf.source import read_source
from kernel_bpf.target import KernelTarget
from schedagent.core.artifact import PolicyArtifact
from schedagent.core.errors import BpfError, PolicyError, UsageError, VmLost
from schedagent.core.policy import CandidatePolicy, PolicyInfo
from schedagent.core.token import digest_inputs
from schedagent.core.verification import GateResult, GateStatus, VerificationReport, Verified
from verifier.lab import LabPolicy
from verifier.microvm import jobs
from verifier.signer import Signer

log = logging.getLogger(__name__)

STRESS_SECONDS = 6.0
"""Longer than the 5 s watchdog of a candidate (timeout_ms), so that a task left behind at the start is found."""

GATES = ("source", "compile", "kernel verifier", "attach", "stress", "starvation")


class ProvingGround(Protocol):
    """The part of the lab that the gates need; VmLab is the real one."""

    def check_load(self, policy: LabPolicy) -> jobs.LoadAnswer: ...

    def stress(self, policy: LabPolicy, seconds: float) -> jobs.StressAnswer: ...


class GateFailed(PolicyError):
    """A gate closed; the message is its detail."""


@dataclass
class Verifier:
    """Takes candidates through all gates.

    Args:
        lab: the proving ground.
        target: the kernel to compile for.
        cache_dir: where compiled objects are kept.
        signer: signs tokens; None issues none.
        include_dirs: extra header folders for sources from elsewhere.
        on_gate: called with each result as it comes.
    """

    lab: ProvingGround
    target: KernelTarget
    cache_dir: Path
    signer: Signer | None = None
    include_dirs: tuple[Path, ...] = ()
    on_gate: Callable[[GateResult], None] = field(default=lambda _result: None)

    def verify(self, candidate: CandidatePolicy, info: PolicyInfo) -> Verified:
        """Run the gates in order and return the report.

        Raises:
            SetupError: a tool is missing.
        """
        return _Passage(self, candidate, info).run()

    def compile(self, info: PolicyInfo) -> PolicyArtifact:
        """Compile a policy for the target kernel; raise CompileError with clang's own lines."""
        return compile_policy(
            info.source, info.name, self.target, include_dirs=self.include_dirs, cache_dir=self.cache_dir
        )


class _Passage:
    """One candidate on its way through the gates."""

    def __init__(self, verifier: Verifier, candidate: CandidatePolicy, info: PolicyInfo) -> None:
        self._verifier = verifier
        self._candidate = candidate
        self._info = info
        self._artifact: PolicyArtifact | None = None
        self._stressed: jobs.StressAnswer | None = None

    def run(self) -> Verified:
        steps = (self._source, self._compile, self._kernel_verifier, self._attach, self._stress, self._starvation)
        results: list[GateResult] = []
        closed = ""
        for gate, step in zip(GATES, steps, strict=True):
            result = _skipped(gate, closed) if closed else _attempt(gate, step)
            results.append(result)
            self._verifier.on_gate(result)
            if result.status is not GateStatus.PASSED and not closed:
                closed = gate
        report = VerificationReport(
            policy=self._info.name,
            candidate_key=self._candidate.key,
            artifact_digest=self._artifact.digest if self._artifact else "",
            kernel_release=self._verifier.target.release,
            gates=tuple(results),
            token="" if closed else self._sign(),
        )
        return Verified(report, self._artifact)

    def _source(self) -> str:
        """The source can be read, is of a sane size, and every tunable is accepted."""
        content = read_source(self._info.source)
        if not re.fullmatch(r"[A-Za-z0-9_]{1,100}", self._info.name):
            raise GateFailed(f"{self._info.name!r} cannot be the name of a policy: letters, digits and _ only")
        configured = self._info.configured(dict(self._candidate.tunables))
        return f"{len(content)} bytes; {len(configured)} tunables accepted"

    def _compile(self) -> str:
        self._artifact = self._verifier.compile(self._info)
        return f"{len(self._artifact.object_bytes)} bytes for {self._verifier.target.release}"

    def _lab_policy(self) -> LabPolicy:
        if self._artifact is None:
            raise GateFailed("there is no compiled object")
        return LabPolicy(self._candidate, self._artifact)

    def _kernel_verifier(self) -> str:
        answer = self._verifier.lab.check_load(self._lab_policy())
        figures = [_figure(name, stats) for name, stats in sorted(answer.programs.items())]
        return f"{len(figures)} programs accepted: " + ", ".join(figures)

    def _attach(self) -> str:
        """Attach and run the mix; the gates behind this one judge what it showed."""
        self._stressed = self._verifier.lab.stress(self._lab_policy(), STRESS_SECONDS)
        return "root/ops and state confirmed it"

    def _stress(self) -> str:
        answer = self._answer()
        if answer.exit_text:
            raise GateFailed(f"the kernel ejected it: {answer.exit_text}")
        growth = {name: count for name, count in answer.events.items() if count}
        events = ", ".join(f"{name} {count}" for name, count in growth.items()) or "none"
        return f"stayed enabled for {STRESS_SECONDS:g} s of {len(answer.findings)} kinds of load; events: {events}"

    def _starvation(self) -> str:
        findings = self._answer().findings
        bad = [f"{found['name']}: {found['detail']}" for found in findings if not found["ok"]]
        if bad:
            raise GateFailed("; ".join(bad))
        return "; ".join(f"{found['name']}: {found['detail']}" for found in findings)

    def _answer(self) -> jobs.StressAnswer:
        if self._stressed is None:
            raise GateFailed("the stress mix did not run")
        return self._stressed

    def _sign(self) -> str:
        signer, artifact = self._verifier.signer, self._artifact
        if signer is None or artifact is None:
            return ""
        return signer.issue(
            artifact_digest=artifact.digest,
            tunables=self._candidate.tunables,
            inputs_digest=digest_inputs(self._candidate.history, self._candidate.classes),
            kernel_release=self._verifier.target.release,
            btf_build_id=self._verifier.target.btf_build_id,
        )


def _attempt(gate: str, step: Callable[[], str]) -> GateResult:
    """Run one gate; what is wrong with the policy closes it, a lost VM leaves it open what is, the rest is raised."""
    started = time.monotonic()
    try:
        detail, status = step(), GateStatus.PASSED
    except (PolicyError, UsageError, BpfError) as error:
        detail, status = str(error), GateStatus.FAILED
    except VmLost as error:
        detail, status = f"nothing can be said, the VM was lost twice: {error.message}", GateStatus.SKIPPED
    return GateResult(gate, status, detail, round(time.monotonic() - started, 3))


def _skipped(gate: str, closed: str) -> GateResult:
    return GateResult(gate, GateStatus.SKIPPED, f"not run, because gate {closed!r} did not pass")


def _figure(name: str, stats: dict[str, Any]) -> str:
    processed = stats.get("verified_instructions", 0)
    return f"{name} {processed}" if processed else name
