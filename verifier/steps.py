"""One gate as a step: what it gives back if it lets a policy through, and what it raises if not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schedagent.core.errors import BpfError, HostBusy, PolicyError, UsageError, VmLost
from schedagent.core.verification import Finding, GateResult, GateStatus, KernelResult


class GateFailed(PolicyError):
    """A gate failed; the message is its detail, and `tolerable` as in core.verification.GateResult."""

    def __init__(self, message: str, findings: Sequence[Finding] = (), *, tolerable: bool = False) -> None:
        super().__init__(message)
        self.findings = tuple(findings)
        self.tolerable = tolerable


@dataclass(frozen=True)
class Passed:
    """What a gate that lets a policy through reports; `seconds` if the time was spent in an earlier gate."""

    detail: str
    findings: tuple[Finding, ...] = ()
    status: GateStatus = GateStatus.PASSED
    seconds: float | None = None
    tolerable: bool = False


def attempt(gate: str, step: Callable[[], Passed]) -> GateResult:
    """Run one gate: what is wrong with the policy fails it, a lost VM or a busy host leaves it undecided, anything else
    is raised.
    """
    started = time.monotonic()
    try:
        passed = step()
    except GateFailed as error:
        passed = Passed(str(error), error.findings, GateStatus.FAILED, tolerable=error.tolerable)
    except (PolicyError, UsageError, BpfError) as error:
        passed = Passed(str(error), (), GateStatus.FAILED)
    except HostBusy as error:
        passed = Passed(f"no verdict: {error.message}; {error.hint}", status=GateStatus.SKIPPED)
    except VmLost as error:
        lost = f"no verdict, the VM was lost twice: {error.message}"
        passed = Passed(lost, status=GateStatus.SKIPPED)
    seconds = time.monotonic() - started if passed.seconds is None else passed.seconds
    return GateResult(gate, passed.status, passed.detail, round(seconds, 3), passed.findings, passed.tolerable)


def kernel_words(result: KernelResult) -> str:
    """One kernel's answer in a few words."""
    if result.status is not GateStatus.PASSED:
        return f"{result.status.value}: {result.detail.splitlines()[0] if result.detail else ''}"
    walked = sum(stats.get("verified_instructions", 0) for stats in result.programs.values())
    return f"{len(result.programs)} programs accepted, {walked} instructions walked"
