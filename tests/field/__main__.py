"""The kernel's own schedulers and tests through the static gates, as policies that a person brings.

    python -m tests.field [NAME ...]      (make test-field)

prints one line per source: whether it compiles, and what the gates say of it, by class. It ends with status 1 if one of
them is not judged as expected.toml says; it needs the network once, and nothing of it is kept in the repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kernel_bpf.policies.library import policy_from_file
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.policies.rodata import read_rodata
from schedagent.core.rules import COMPILE, FindingClass
from schedagent.core.settings import load_settings
from schedagent.core.verification import Finding, GateStatus, Severity, VerificationReport
from schedagent.run.opening import open_local_verifier
from tests.field.kernel_source import SELFTESTS, TOOLS, kernel_source
from verifier.pipeline import Verifier

EXPECTED = Path(__file__).with_name("expected.toml")


@dataclass(frozen=True)
class Judged:
    """One source, and what the gates said.

    Args:
        expected: rules of which it must have an unsafe finding; it may have none of others.
        refusal: what the compiler must say, if it must refuse it.
    """

    name: str
    report: VerificationReport
    expected: tuple[int, ...] = ()
    refusal: str = ""

    @property
    def findings(self) -> list[Finding]:
        return [finding for gate in self.report.gates for finding in gate.findings]

    @property
    def unsafe(self) -> list[Finding]:
        return [
            each
            for each in self.findings
            if each.finding_class is FindingClass.UNSAFE and each.severity is Severity.ERROR
        ]

    @property
    def compiles(self) -> bool:
        return all(gate.status is not GateStatus.FAILED for gate in self.report.gates if gate.gate == COMPILE)

    @property
    def complaint(self) -> str:
        """What is not as it must be; empty if all is."""
        broken = {each.rule for each in self.unsafe}
        if self.refusal or not self.compiles:
            said = self.report.failure.detail if self.report.failure else "nothing"
            return "" if self.refusal and self.refusal in said else f"compiler: {said.splitlines()[-1]}"
        missing, beside = sorted(set(self.expected) - broken), sorted(broken - set(self.expected))
        wrong = [f"nothing of rules {missing}"] * bool(missing) + [f"unsafe: rules {beside}"] * bool(beside)
        return "; ".join(wrong)

    @property
    def row(self) -> tuple[str, ...]:
        unfair = Counter(each.rule for each in self.findings if each.finding_class is FindingClass.UNFAIR)
        house = sum(each.finding_class is FindingClass.HOUSE for each in self.findings)
        seconds = sum(gate.seconds for gate in self.report.gates)
        return (
            self.name,
            "yes" if self.compiles else "no",
            _counted(Counter(each.rule for each in self.unsafe)),
            _counted(unfair),
            str(house),
            f"{seconds:.1f}",
            f"NO: {self.complaint}" if self.complaint else "yes",
        )


def _counted(rules: Counter[int]) -> str:
    return ", ".join(f"{rule} x{count}" if count > 1 else str(rule) for rule, count in sorted(rules.items())) or "-"


def judge(verifier: Verifier, source: Path, expected: Mapping[str, Any]) -> Judged:
    """Take one source through the static gates, with what its loader sets."""
    info = policy_from_file(source)
    loader = read_rodata(expected["loader"].get(info.name, {}), info.name)
    report = verifier.verify(CandidatePolicy(info.name, ()), dataclasses.replace(info, rodata=loader)).report
    rules, refusal = expected["unsafe"].get(info.name, ()), expected["refused"].get(info.name, "")
    return Judged(f"{source.parent.name}/{info.name}", report, tuple(rules), refusal)


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.field", description=__doc__)
    parser.add_argument("--findings", action="store_true", help="print the unsafe findings, too")
    parser.add_argument("names", nargs="*", help="only these sources")
    chosen = parser.parse_args(words)
    settings = load_settings()
    root = kernel_source(settings)
    expected = tomllib.loads(EXPECTED.read_text())
    table = Table("source", "compiles", "unsafe", "unfair", "house", "s", "as it must")
    bad = 0
    for folder in (TOOLS, SELFTESTS):
        includes = (root / TOOLS / "include", root / SELFTESTS / "include", root / folder)
        verifier = dataclasses.replace(
            open_local_verifier(settings, sign=False),
            static_only=True,
            include_dirs=tuple(path for path in includes if path.is_dir()),
        )
        for source in sorted((root / folder).glob("*.bpf.c")):
            name = source.name.removesuffix(".bpf.c")
            if chosen.names and name not in chosen.names:
                continue
            judged = judge(verifier, source, expected)
            print(*judged.row, sep=" | ", file=sys.stderr, flush=True)
            if chosen.findings or not judged.compiles:
                _show(judged)
            table.add_row(*judged.row)
            bad += bool(judged.complaint)
    Console(width=140).print(table, markup=False)
    return 1 if bad else 0


def _show(judged: Judged) -> None:
    for finding in judged.unsafe:
        print(
            f"  rule {finding.rule} {finding.file}:{finding.line} {finding.where}: {finding.message}", file=sys.stderr
        )
    if not judged.compiles:
        print(judged.report.failure.detail if judged.report.failure else "", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
