"""The corpus: policies that are broken on purpose, correct ones, and pairs before and after a fix, through the gates.

    python -m tests.corpus [--static] [NAME ...]      (make test-verifier)

prints one line per policy and ends with status 1 if one of them did not end as corpus.toml says.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kernel_bpf.policies.library import load_library, policy_from_file
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo
from schedagent.core.policies.proposal import Origin
from schedagent.core.rules import COMPILE, GATES, LOGIC, PROVING, RULES, SOURCE
from schedagent.core.settings import load_settings
from schedagent.core.verification import Finding, GateStatus, Severity, VerificationOutcome, VerificationReport
from schedagent.run.opening import open_local_verifier
from tests.support.paths import FIXTURES
from verifier.pipeline import Verifier
from verifier.proving.prove import PHASES, Depth

POLICIES = FIXTURES / "policies"
STATIC = (SOURCE, COMPILE, LOGIC)
ATTEMPTS = 3


@dataclass(frozen=True)
class Entry:
    """One policy of the corpus.

    Args:
        kind: "broken", "correct", "bundled", or "fixed": what its rule no longer closes a gate for, others may.
        info: the policy.
        rule, gate: what a broken one must be rejected for, and where at the latest.
        oracle: which oracle must show it, if a run must; else empty.
        about: one sentence.
        topology: of the guest that alone shows it; empty if the flat one does.
    """

    kind: str
    info: PolicyInfo
    rule: int = 0
    gate: str = ""
    oracle: str = ""
    about: str = ""
    topology: str = ""

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def static(self) -> bool:
        """Whether the gates that need no machine must reject it."""
        return self.kind == "broken" and self.gate in STATIC


@dataclass(frozen=True)
class Pair:
    """A policy before and after the fix of a bug: in our code, after a kind of bug that is on public record.

    Args:
        bug: what was wrong, and how such bugs are fixed.
        rule: the rule that tells the two apart.
        severity: of the finding that only the first one has; None if a run must show it.
        oracle: which oracle shows it then.
        keeps: rules that both break, where the field does otherwise than our own policies.
    """

    name: str
    bug: str
    rule: int
    severity: Severity | None
    oracle: str
    keeps: tuple[int, ...]
    before: PolicyInfo
    after: PolicyInfo

    def entries(self) -> tuple[Entry, Entry]:
        """Both of them, as `make test-verifier` judges what only a run tells apart."""
        rest = self.rule, PROVING, self.oracle, self.bug
        return Entry("broken", self.before, *rest), Entry("fixed", self.after, *rest)

    def wrong(self, before: Sequence[Finding], after: Sequence[Finding]) -> str:
        """Say what is wrong with the static findings of both; empty if they are told apart in the right direction."""
        if not any((finding.rule, finding.severity) == (self.rule, self.severity) for finding in before):
            return f"no {self.severity} of rule {self.rule} before the fix"
        left = {finding.rule for finding in after} - set(self.keeps)
        return f"rules {sorted(left)} behind the fix" if left else ""


def load_pairs() -> list[Pair]:
    """Return every pair of tests/fixtures/policies/pairs."""
    folder = POLICIES / "pairs"
    return [_pair(path, tomllib.loads(path.read_text())) for path in sorted(folder.glob("*.toml"))]


def _pair(path: Path, fields: Mapping[str, Any]) -> Pair:
    before, after = (policy_from_file(path.with_name(f"{path.stem}_{which}.bpf.c")) for which in ("before", "after"))
    severity = Severity(fields["severity"]) if "severity" in fields else None
    keeps = tuple(fields.get("keeps", ()))
    return Pair(
        path.stem, fields["bug"].strip(), fields["rule"], severity, fields.get("oracle", ""), keeps, before, after
    )


def load_corpus() -> list[Entry]:
    """Return every policy: broken, correct, bundled."""
    return [*_entries("broken"), *_entries("correct"), *(Entry("bundled", info) for info in load_library().values())]


def _entries(kind: str) -> Iterator[Entry]:
    folder = POLICIES / kind
    for fields in tomllib.loads((folder / "corpus.toml").read_text())["policy"]:
        info = _made(policy_from_file(folder / fields["file"]), fields, correct=kind == "correct")
        about = fields.get("mistake") or fields["sentence"]
        rest = (fields.get(name, "") for name in ("gate", "oracle"))
        yield Entry(kind, info, fields.get("rule", 0), *rest, about, fields.get("topology", ""))


def _made(info: PolicyInfo, fields: Mapping[str, Any], *, correct: bool) -> PolicyInfo:
    """The policy as its entry has it judged.

    `derived = true`: as what a model wrote, where more has to be shown than of what a person brings; `reads`: as one
    that declares to go by these inputs.
    """
    info = dataclasses.replace(info, reads=tuple(fields.get("reads", info.reads)))
    return dataclasses.replace(info, origin=Origin.GENERATE) if fields.get("derived") else info


def corpus_verifier(*, static_only: bool = False) -> Verifier:
    """The verifier of the cache's kernels, which believes no report of an earlier run and signs nothing."""
    verifier = open_local_verifier(load_settings(), all_kernels=not static_only, sign=False)
    return dataclasses.replace(verifier, static_only=static_only)


def depth_for(entry: Entry) -> Depth:
    """Standard, or the least depth at which the oracle that has to see the fault is asked at all."""
    phase = next((phase for phase in PHASES if entry.oracle in {oracle.name for oracle in phase.oracles}), None)
    return Depth.STANDARD if phase is None or phase.strangers else max(Depth.STANDARD, phase.depth, key=_seconds)


def _seconds(depth: Depth) -> float:
    return depth.value


def judge(entry: Entry, verifier: Verifier) -> VerificationReport:
    """Take one policy through the gates; again if they came to no verdict, which is the host's doing."""
    candidate = CandidatePolicy(entry.name, entry.info.configured({}))
    verifier = dataclasses.replace(verifier, depth=depth_for(entry))
    for _ in range(ATTEMPTS):
        report = verifier.verify(candidate, entry.info).report
        if report.outcome is not VerificationOutcome.INCOMPLETE:
            break
    return report


def complaint(entry: Entry, report: VerificationReport) -> str:
    """Say what did not end as it must; empty if all did.

    A policy that the static gates let through by right is not complained about if only those were asked for.
    """
    if entry.kind in ("correct", "bundled"):
        bad = report.failure or next((gate for gate in report.gates if gate.status is GateStatus.SKIPPED), None)
        return f"{bad.gate}: {bad.detail}" if bad else ""
    if report.failure is None:
        return "no gate closed" if entry.kind == "broken" and (report.passed or entry.static) else ""
    errors = [finding for finding in report.failure.findings if finding.severity is Severity.ERROR]
    broken = {finding.rule for finding in errors}
    # a run shows that a task starves, not which of several rules is why: core.rules says which oracle stands for which
    if any(finding.where in RULES[entry.rule].checks for finding in errors):
        broken.add(entry.rule)
    if entry.kind == "fixed":
        early = GATES.index(report.failure.gate) < GATES.index(entry.gate)
        return f"{report.failure.gate!r} closed: {report.failure.detail}" if early or entry.rule in broken else ""
    if GATES.index(report.failure.gate) > GATES.index(entry.gate):
        return f"only {report.failure.gate!r} closed: {report.failure.detail}"
    return "" if entry.rule in broken else f"{report.failure.gate!r} closed for rule {sorted(broken) or 'none'}"


def row(entry: Entry, report: VerificationReport) -> tuple[str, ...]:
    """One line of the table."""
    failure = report.failure
    rules = sorted({finding.rule for finding in failure.findings}) if failure else []
    seconds = sum(gate.seconds for gate in report.gates)
    ended = f"{failure.gate}, rule {', '.join(map(str, rules)) or '-'}" if failure else "passed"
    wanted = {"broken": f"{entry.gate}, rule {entry.rule}", "fixed": f"not for rule {entry.rule}"}.get(
        entry.kind, "passed"
    )
    said = complaint(entry, report)
    return (entry.kind, entry.name, wanted, ended, f"{seconds:.1f}", f"NO: {said}" if said else "yes")


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    parser.add_argument("--static", action="store_true", help="only the gates that need no VM")
    parser.add_argument("names", nargs="*", help="only these policies")
    chosen = parser.parse_args(words)
    verifier = corpus_verifier(static_only=chosen.static)
    table = Table("kind", "policy", "must end at", "ended at", "s", "as it must")
    bad, total = 0, 0
    shown_by_a_run = [entry for pair in load_pairs() if pair.oracle for entry in pair.entries()]
    for entry in [*load_corpus(), *shown_by_a_run]:
        if chosen.names and entry.name not in chosen.names:
            continue
        line = row(entry, judge(entry, verifier))
        print(*line, sep=" | ", file=sys.stderr, flush=True)
        table.add_row(*line)
        total, bad = total + 1, bad + (line[-1] != "yes")
    Console(width=200).print(table, markup=False)
    print(f"{total - bad} of {total} policies ended as they must")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
