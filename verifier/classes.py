"""What the class of a finding means for a policy: what it fails, what it only notes, and what a token takes besides.

Unsafe findings count for everybody. Unfair ones fail their gate until they are declared by the policy or accepted by
name, and stop nothing: a policy that is safe may be tried in the lab. How our own policies are written (house) is
asked of ours and of what was derived from them; of what a person brings it is noted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from schedagent.core.policies.policy import READS_PREFIX, PolicyInfo, Standing
from schedagent.core.rules import RULES, FindingClass
from schedagent.core.verification import Finding, OracleResult, Severity, worst_first


def settled(findings: Sequence[Finding], standing: Standing, declares: Collection[str]) -> tuple[Finding, ...]:
    """Return what static gates found as it counts for this policy, the worst first.

    Args:
        declares: oracles that it need not satisfy, by its own word or because somebody accepts that.
    """
    return worst_first(_noted(each) if _only_noted(each, standing, declares) else each for each in findings)


def tolerable(errors: Sequence[Finding], standing: Standing) -> bool:
    """Whether the gates behind a static one run although it failed: what a person brings is judged as a whole."""
    return standing is Standing.FOREIGN and all(each.finding_class is not FindingClass.UNSAFE for each in errors)


def measured(oracle: OracleResult) -> Finding:
    """Return the error for an oracle that does not hold: what a machine shows is never a matter of house style."""
    house = RULES[oracle.rule].finding_class is FindingClass.HOUSE
    classed = FindingClass.UNSAFE if house else None
    detail = f"on {oracle.topology}: {oracle.detail}" if oracle.topology else oracle.detail
    return Finding(oracle.rule, Severity.ERROR, oracle.name, "", 0, detail, classed=classed)


def needed(findings: Sequence[Finding], held: Collection[str], info: PolicyInfo) -> tuple[str, ...]:
    """Return the words that are still to be declared or accepted, sorted; "rule N" where nobody can.

    Args:
        held: oracles that hold: they clear the warnings that name them.
    """
    given = {*info.declares, *(f"{READS_PREFIX}{name}" for name in info.reads)}
    words = {
        each.accepted_as or f"rule {each.rule}"
        for each in findings
        if each.word or (each.finding_class is FindingClass.UNFAIR and each.severity is not Severity.NOTE)
        if not (each.severity is Severity.WARNING and each.cleared_by in held)
    }
    return tuple(sorted(words - given))


def _only_noted(finding: Finding, standing: Standing, declares: Collection[str]) -> bool:
    if finding.finding_class is FindingClass.UNFAIR:
        return finding.accepted_as in declares
    return finding.finding_class is FindingClass.HOUSE and standing is Standing.FOREIGN


def _noted(finding: Finding) -> Finding:
    return replace(finding, severity=Severity.NOTE, cleared_by="")
