"""What the verifier reports of a candidate: one result per gate, in order, and a token if all of them passed.

Standard library and core only: the proving ground's results are made inside the micro-VM.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import DECLARABLE, is_acceptable
from schedagent.core.rules import ATTACH, COMPILE, KERNEL, LOGIC, PROVING, RULES, SOURCE, FindingClass, Rule

NEVER_SHOWN = 12
"""Most lines that never ran which a summary names."""

_IN_A_MACHINE = (KERNEL, ATTACH, PROVING)
_SHOW_SAFETY = (SOURCE, COMPILE, LOGIC, *_IN_A_MACHINE)
"""The gates that together show a policy safe; the overhead is a matter of cost."""


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
        word: by which it can be declared or accepted, if its rule and oracle do not say that: "reads:comm",
            "saturated machine".
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
    word: str = ""

    @property
    def finding_class(self) -> FindingClass:
        """Whether it makes the policy unsafe, unfair, or only unlike ours."""
        return self.classed or self.text.finding_class

    @property
    def accepted_as(self) -> str:
        """The word by which a policy may declare it, or somebody accept it; empty if nobody can."""
        if self.word or self.finding_class is not FindingClass.UNFAIR:
            return self.word
        names = (self.where, self.cleared_by, *self.text.checks)
        return next((name for name in names if name in DECLARABLE), "")

    @property
    def text(self) -> Rule:
        """The rule in words: what must hold, why, and how policies are fixed."""
        return RULES[self.rule]

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else ""
        inside = f" (in {self.where})" if self.where else ""
        return f"{place}rule {self.rule}{inside}: {self.message}"


def rank(finding: Finding) -> tuple[int, int]:
    """How bad it is, the worst first: by class (unsafe, unfair, house), then errors before warnings before notes."""
    return list(FindingClass).index(finding.finding_class), list(Severity).index(finding.severity)


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings by how bad they are, then by rule and place."""
    return tuple(sorted(findings, key=lambda each: (*rank(each), each.rule, each.file, each.line)))


@dataclass(frozen=True)
class GateResult:
    """One gate.

    Args:
        gate: its name.
        status: how it ended.
        detail: the figures, or why it failed or was skipped.
        seconds: how long it took.
        findings: on single rules, the worst first.
        tolerable: it failed only for what is unfair, or unlike our own policies: the gates behind it run all the same.
    """

    gate: str
    status: GateStatus
    detail: str
    seconds: float = 0.0
    findings: tuple[Finding, ...] = ()
    tolerable: bool = False


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
        topology: of the guest that it was measured in, such as "2x2x1x2"; empty for the flat one.
    """

    name: str
    rule: int
    ok: bool
    measured: float
    bound: float
    unit: str
    detail: str
    topology: str = ""

    @property
    def title(self) -> str:
        """Its name, and the guest's topology if that is not flat."""
        return f"{self.name} on {self.topology}" if self.topology else self.name

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
class Place:
    """A line of the source."""

    file: str
    line: int


@dataclass(frozen=True)
class Coverage:
    """What of the policy ran while it was proved.

    Args:
        branches: sides of branches that the kernel's verifier holds to be reachable.
        ran: those that were taken.
        never: lines of the others, some hundred at most.
        queues: DSQs that the policy created.
        entered: those that a task ever entered.
        why: why all this is not known; empty if it is.
    """

    branches: int = 0
    ran: int = 0
    never: tuple[Place, ...] = ()
    queues: int = 0
    entered: int = 0
    why: str = ""

    @property
    def summary(self) -> str:
        """One line for people."""
        if self.why:
            return f"what of it runs was not measured: {self.why}"
        lines = ", ".join(f"{place.file}:{place.line}" for place in self.never[:NEVER_SHOWN])
        more = f" and {len(self.never) - NEVER_SHOWN} more" if len(self.never) > NEVER_SHOWN else ""
        never = f"; never: {lines}{more}" if lines else ""
        return f"{self.ran} of {self.branches} branches ran, {self.entered} of {self.queues} queues were used{never}"


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
        depth: how long it was proved: "quick", "standard", "thorough" or "deep"; empty if it never was.
        verified_at: ISO 8601 UTC time at which its gates ended; that of the proof if the report was cached.
        coverage: what of it ran while it was proved; None if it was not proved.
        lacks: one sentence: what the object lacks without a loader of its own, and what was assumed; empty if it has
            none or was never read.
        topologies: guests of other shapes that it was proved on besides the flat one, such as "2x2x1x2".
        needs: words that have to be declared or accepted before a token is issued, see Finding.accepted_as, and
            "rule N" for what nobody can accept.
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
    depth: str = ""
    coverage: Coverage | None = None
    lacks: str = ""
    needs: tuple[str, ...] = ()
    topologies: tuple[str, ...] = ()

    @property
    def safe(self) -> bool | None:
        """Whether it may run in a machine of its own, such as the lab's: all that can hang, lose or misplace a task was
        looked for and not met; False if it was met, None if that is not decided.
        """
        unsafe = FindingClass.UNSAFE
        if any(each.severity is Severity.ERROR and each.finding_class is unsafe for each in self.findings):
            return False
        failed = [gate for gate in self.gates if gate.status is GateStatus.FAILED and not gate.tolerable]
        if any(gate.gate in _IN_A_MACHINE and not gate.findings for gate in failed):
            return False
        by_gate = {gate.gate: gate for gate in self.gates}
        shown = [by_gate[name] for name in _SHOW_SAFETY if name in by_gate]
        decided = len(shown) == len(_SHOW_SAFETY) and all(
            gate.tolerable or gate.status in (GateStatus.PASSED, GateStatus.NOT_APPLICABLE) for gate in shown
        )
        return True if decided else None

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
        failed = self.outcome is VerificationOutcome.FAILED
        tried = "; it is safe to be tried in the lab" if self.safe and failed else ""
        return f"{self.outcome}: {why[self.outcome]}{tried}{self._needed}"

    @property
    def _needed(self) -> str:
        """What keeps a token from being issued, if that is all that does; empty otherwise."""
        if not self.safe or not self.needs:
            return ""
        accepted = " ".join(f"--accept {shlex.quote(word)}" for word in self.needs if is_acceptable(word))
        never = ", ".join(word for word in self.needs if not is_acceptable(word))
        parts = [f"a token takes {accepted}"] * bool(accepted) + [f"nobody can accept {never}"] * bool(never)
        return f"; {' and '.join(parts)}"

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
        """The findings of all gates, the worst first."""
        return worst_first(finding for gate in self.gates for finding in gate.findings)

    def clears(self, finding: Finding) -> bool:
        """Whether the proving ground showed that what a warning fears does not happen."""
        shown = [oracle.ok for oracle in self.oracles if oracle.name == finding.cleared_by]
        return bool(shown) and all(shown)

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
        _forget_empty(content, "tunables declares reads verified_at depth coverage lacks needs topologies")
        for oracle in content["oracles"]:
            _forget_empty(oracle, "topology")
        for gate in content["gates"]:
            del gate["seconds"]
            _forget_empty(gate, "tolerable")
            for finding in gate["findings"]:
                _forget_empty(finding, "classed word")
        text = json.dumps(_by_value(content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()


def _forget_empty(fields: dict[str, Any], names: str) -> None:
    """Remove those of the named fields that say nothing."""
    for name in names.split():
        if not fields[name]:
            del fields[name]


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
