"""One mutant through the gates: the only file here that knows how the verifier is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.settings import Settings
from schedagent.core.verification import VerificationReport
from schedagent.run.opening import open_local_verifier
from tests.mutation.mutants import Mutant


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    Args:
        gate: the gate that closed; empty if the mutant survived.
        rules: numbers of the rules that its findings name.
        detail: what the gate said.
        seconds: how long the gates took.
    """

    gate: str
    rules: tuple[int, ...] = ()
    detail: str = ""
    seconds: float = 0.0

    @property
    def killed(self) -> bool:
        return bool(self.gate)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Judge = Callable[[Mutant], Verdict]


def open_judge(settings: Settings, folder: Path, *, static_only: bool) -> Judge:
    """Return the judge: all gates, or only those before the VM. Sources and objects are kept in `folder`."""
    verifier = dataclasses.replace(open_local_verifier(settings, sign=False), cache_dir=folder, static_only=static_only)

    def judge(mutant: Mutant) -> Verdict:
        info = mutant.write(folder)
        return _verdict(verifier.verify(CandidatePolicy(info.name, info.configured({})), info).report)

    return judge


def _verdict(report: VerificationReport) -> Verdict:
    seconds = sum(gate.seconds for gate in report.gates)
    closed = report.failure
    if closed is None:
        return Verdict("", seconds=seconds, detail="; ".join(gate.detail for gate in report.gates if gate.findings))
    rules = tuple(dict.fromkeys(finding.rule for finding in closed.findings))
    return Verdict(closed.gate, rules, closed.detail, seconds)
