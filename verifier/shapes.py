"""What a policy showed in a guest of another shape, as the proving ground's gate reports it: always with the shape."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from schedagent.core.errors import KernelRejected
from schedagent.core.rules import FindingClass
from schedagent.core.verification import Finding, OracleResult
from verifier import classes, ejection
from verifier.microvm import jobs
from verifier.microvm.topology import Topology


@dataclass(frozen=True)
class ShapeFailure:
    """Why a policy is not let through on a shape.

    Args:
        message: for people, with the shape.
        findings: none if no rule is known for it.
    """

    message: str
    findings: tuple[Finding, ...] = ()

    @property
    def tolerable(self) -> bool:
        """Whether it is only unfair."""
        return bool(self.findings) and all(each.finding_class is FindingClass.UNFAIR for each in self.findings)


def failure_of(topology: Topology, answer: jobs.ProveAnswer, declares: Collection[str]) -> ShapeFailure | None:
    """Return why the policy failed on this shape; None if it did not.

    Args:
        declares: oracles that it need not satisfy.
    """
    bad = [oracle for oracle in results_of(answer) if not oracle.ok and oracle.name not in declares]
    findings = [classes.measured(oracle) for oracle in bad]
    messages = [f"{oracle.title}: {oracle.detail}" for oracle in bad]
    if answer.exit_text:
        message = f"on {topology} the kernel ejected it: {answer.exit_text}"
        findings = [*ejection.finding(ejection.rule_of_exit(answer.exit_text), message), *findings]
        messages = [message, *messages]
    return ShapeFailure("; ".join(messages), tuple(findings)) if messages else None


def refusal_of(topology: Topology, error: KernelRejected) -> ShapeFailure:
    """Return why the policy cannot be proved on this shape: it does not load or attach there."""
    message = f"on {topology}: {error.message}"
    return ShapeFailure(message, ejection.finding(ejection.rule_of_exit(str(error)), message))


def results_of(answer: jobs.ProveAnswer) -> tuple[OracleResult, ...]:
    """The oracles of an answer."""
    return tuple(OracleResult(**result) for result in answer.results)


def together(detail: str, failures: Sequence[ShapeFailure]) -> str:
    """What a gate says that failed on shapes, and before them if `detail` is not empty."""
    return "; ".join([*([detail] if detail else []), *(failure.message for failure in failures)])
