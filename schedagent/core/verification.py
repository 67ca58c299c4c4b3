"""What the verifier says of a candidate: one result per gate, in order, and a token if all of them passed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schedagent.core.artifact import PolicyArtifact


class GateStatus(StrEnum):
    """Every gate ends as one of these; a gate that did not run says why."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class GateResult:
    """One gate.

    Args:
        gate: its name.
        status: how it ended.
        detail: the figures, or why it failed or was skipped.
        seconds: how long it took.
    """

    gate: str
    status: GateStatus
    detail: str
    seconds: float = 0.0


@dataclass(frozen=True)
class VerificationReport:
    """All gates of one candidate on one kernel.

    Args:
        policy: name.
        candidate_key: core.policy.CandidatePolicy.key.
        artifact_digest: hex SHA-256 of the object; empty if it did not compile.
        kernel_release: kernel of the micro-VM.
        gates: in the order they ran.
        token: deployment token; empty unless every gate passed and a signer was at hand.
    """

    policy: str
    candidate_key: str
    artifact_digest: str
    kernel_release: str
    gates: tuple[GateResult, ...]
    token: str = ""

    @property
    def passed(self) -> bool:
        """Whether every gate passed; a skipped gate is not a passed one."""
        return bool(self.gates) and all(gate.status is GateStatus.PASSED for gate in self.gates)

    @property
    def failure(self) -> GateResult | None:
        """The gate that closed, if one did."""
        return next((gate for gate in self.gates if gate.status is GateStatus.FAILED), None)


@dataclass(frozen=True)
class Verified:
    """A report and, if it compiled, the object it is about."""

    report: VerificationReport
    artifact: PolicyArtifact | None
