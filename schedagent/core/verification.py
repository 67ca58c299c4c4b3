"""What the verifier reports of a candidate: one result per gate, in order, and a token if all of them passed.

Standard library and core only: the proving ground's results are made inside the micro-VM.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.rules import RULES, FindingClass, Rule


class GateStatus(StrEnum):
    """Every gate ends as one of these; the detail of a gate that did not run is the reason."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    NOT_APPLICABLE = "not applicable"
    """Only for the gates of a source, when a compiled object was brought instead."""
    NOT_REQUESTED = "not requested"
    """Only for the gates that need a VM, when the static ones alone were asked for."""


class VerificationOutcome(StrEnum):
    """How a verification ended: the same word in every face of its report."""

    PASSED = "passed"
    """Every gate passed."""
    FAILED = "failed"
    """A gate failed."""
    STATIC_ONLY = "static only"
    """The static gates passed, and no other was asked for."""
    INCOMPLETE = "incomplete"
    """No gate failed, but one has no verdict: its VM was lost twice, or the host was too busy to measure."""


class Severity(StrEnum):
    """An error fails its gate; a warning must be cleared by an oracle of the proving ground; a note is only shown."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Step:
    """One step of the path that breaks a rule: where, and what happens there."""

    file: str
    line: int
    text: str


@dataclass(frozen=True)
class Finding:
    """A rule that does not hold, or may not.

    Args:
        rule: number in core.rules.RULES.
        severity: error, warning or note.
        where: the callback or program, such as "enqueue"; empty for the whole policy.
        file, line: where in the source; line 0 if the object does not say.
        message: what is wrong, with values.
        path: the steps of one path that breaks the rule; empty if it is not about a path.
        cleared_by: for a warning, the oracle of the proving ground whose passing clears it.
        classed: its class, if it is not that of its rule.
    """

    rule: int
    severity: Severity
    where: str
    file: str
    line: int
    message: str
    path: tuple[Step, ...] = ()
    cleared_by: str = ""
    classed: FindingClass | None = None

    @property
    def finding_class(self) -> FindingClass:
        """Whether it makes the policy unsafe, unfair, or only unlike ours."""
        return self.classed or self.text.finding_class

    @property
    def text(self) -> Rule:
        """The rule in words: what must hold, why, and how policies are fixed."""
        return RULES[self.rule]

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else ""
        inside = f" (in {self.where})" if self.where else ""
        return f"{place}rule {self.rule}{inside}: {self.message}"


@dataclass(frozen=True)
class GateResult:
    """One gate.

    Args:
        gate: its name.
        status: how it ended.
        detail: the figures, or why it failed or was skipped.
        seconds: how long it took.
        findings: on single rules, errors first.
    """

    gate: str
    status: GateStatus
    detail: str
    seconds: float = 0.0
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class OracleResult:
    """One oracle of the proving ground.

    Args:
        name: as in the `checks` of core.rules.RULES, for example "work conservation".
        rule: number of the rule that is broken if it does not hold.
        ok: whether it holds.
        measured, bound: the figure and what it is compared with.
        unit: of both: "s", "ratio", "tasks".
        detail: one sentence with the other figures, for people.
    """

    name: str
    rule: int
    ok: bool
    measured: float
    bound: float
    unit: str
    detail: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def figure(self, value: float) -> str:
        """Return a figure of it with its unit: the same wherever it is shown, and as its detail gives it."""
        return {"s": f"{value:.2f} s", "ratio": f"{value:.2f}"}.get(self.unit, f"{value:g} {self.unit}")


@dataclass(frozen=True)
class KernelResult:
    """The result of one kernel's own verifier.

    Args:
        release: of that kernel.
        status: passed, failed or skipped (its VM was lost twice).
        detail: why it failed.
        programs: per program, the figures of kernel_bpf.load.bpf_object.BpfObject.verifier_stats.
    """

    release: str
    status: GateStatus
    detail: str = ""
    programs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class VerificationReport:
    """All gates of one candidate.

    Args:
        policy: name.
        candidate_key: core.policy.CandidatePolicy.key.
        artifact_digest: hex SHA-256 of the object; empty if it did not compile.
        kernel_release: kernel that the policy was proved on, and that the token is for.
        gates: in the order they ran.
        kernels: every kernel the object was given to, the one of kernel_release first.
        oracles: what the proving ground measured.
        verifier_version: digest of the verifier's own code and rules.
        subject: digest of all that the report depends on: object, tunables and inputs, kernels, depth, verifier.
        token: deployment token; empty unless every gate passed and a key to sign with was there.
        verified_by: where the verifier ran: "the service at PATH"; empty if in the process that asked.
        tunables: every tunable and its value, sorted by name.
        declares: oracles that the policy declares not to satisfy, see core.policies.policy.PolicyInfo.
        reads: inputs that the policy declares to go by, see core.policies.policy.PolicyInfo.
        verified_at: ISO 8601 UTC time at which its gates ended; that of the proof if the report was cached.
    """

    policy: str
    candidate_key: str
    artifact_digest: str
    kernel_release: str
    gates: tuple[GateResult, ...]
    kernels: tuple[KernelResult, ...] = ()
    oracles: tuple[OracleResult, ...] = ()
    verifier_version: str = ""
    subject: str = ""
    token: str = ""
    verified_by: str = ""
    tunables: tuple[tuple[str, int], ...] = ()
    declares: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    verified_at: str = ""

    @property
    def outcome(self) -> VerificationOutcome:
        """How it ended."""
        statuses = {gate.status for gate in self.gates}
        if GateStatus.FAILED in statuses:
            return VerificationOutcome.FAILED
        if GateStatus.SKIPPED in statuses or not statuses:
            return VerificationOutcome.INCOMPLETE
        return VerificationOutcome.STATIC_ONLY if GateStatus.NOT_REQUESTED in statuses else VerificationOutcome.PASSED

    @property
    def passed(self) -> bool:
        """Whether every gate passed; a skipped gate is not a passed one."""
        return self.outcome is VerificationOutcome.PASSED

    @property
    def conclusion(self) -> str:
        """The outcome in a line: its word first, then what it means."""
        undecided = f"gate {self.undecided.gate!r} has no verdict" if self.undecided else "no gate ran"
        why = {
            VerificationOutcome.PASSED: f"every gate let it through, on kernel {self.kernel_release}",
            VerificationOutcome.FAILED: f"gate {self.failure.gate!r} did not let it through" if self.failure else "",
            VerificationOutcome.STATIC_ONLY: "the gates that need no VM passed; the others were not asked for",
            VerificationOutcome.INCOMPLETE: undecided,
        }
        return f"{self.outcome}: {why[self.outcome]}"

    @property
    def failure(self) -> GateResult | None:
        """The gate that failed, if one did."""
        return next((gate for gate in self.gates if gate.status is GateStatus.FAILED), None)

    @property
    def undecided(self) -> GateResult | None:
        """The gate without a verdict that ended the verification; None if no gate lacks one, or another failed."""
        incomplete = self.outcome is VerificationOutcome.INCOMPLETE
        return next((gate for gate in self.gates if incomplete and gate.status is GateStatus.SKIPPED), None)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings of all gates."""
        return tuple(finding for gate in self.gates for finding in gate.findings)

    def clears(self, finding: Finding) -> bool:
        """Whether the proving ground showed that what a warning fears does not happen."""
        return any(oracle.ok for oracle in self.oracles if oracle.name == finding.cleared_by)

    def excuses(self, oracle: OracleResult) -> bool:
        """Whether an oracle does not hold and need not: the policy declares that it does not seek what it checks."""
        return not oracle.ok and oracle.name in self.declares

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the results of all gates: what a token vouches for.

        Over the canonical JSON of everything but the token, the seconds and where the verifier ran. A figure
        counts by its value: 1 and 1.0 are one, since JSON writers differ in that. What reports of older versions lack
        counts only if it is there, so they keep their digests.
        """
        content = asdict(self)
        del content["token"], content["verified_by"]
        for name in ("tunables", "declares", "reads", "verified_at"):
            if not content[name]:
                del content[name]
        for gate in content["gates"]:
            del gate["seconds"]
            for finding in gate["findings"]:
                if not finding["classed"]:
                    del finding["classed"]
        text = json.dumps(_by_value(content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()


def _by_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _by_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_by_value(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True)
class Verified:
    """A report and, if it compiled, the object it is about."""

    report: VerificationReport
    artifact: PolicyArtifact | None
