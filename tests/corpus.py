"""The corpus: policies that are broken on purpose, and correct ones, through the gates of the verifier.

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
from typing import Any

from rich.console import Console
from rich.table import Table

from kernel_bpf.policies.library import load_library, policy_from_file
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo
from schedagent.core.policies.proposal import Origin
from schedagent.core.rules import COMPILE, GATES, LOGIC, RULES, SOURCE
from schedagent.core.settings import load_settings
from schedagent.core.verification import GateStatus, Severity, VerificationOutcome, VerificationReport
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
        kind: "broken", "correct" or "bundled".
        info: the policy.
        rule, gate: what a broken one must be rejected for, and where at the latest.
        oracle: which oracle must show it, if a run must; else empty.
        about: one sentence.
    """

    kind: str
    info: PolicyInfo
    rule: int = 0
    gate: str = ""
    oracle: str = ""
    about: str = ""

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def static(self) -> bool:
        """Whether the gates that need no machine must reject it."""
        return self.kind == "broken" and self.gate in STATIC


def load_corpus() -> list[Entry]:
    """Return every policy: broken, correct, bundled."""
    return [*_entries("broken"), *_entries("correct"), *(Entry("bundled", info) for info in load_library().values())]


def _entries(kind: str) -> Iterator[Entry]:
    folder = POLICIES / kind
    for fields in tomllib.loads((folder / "corpus.toml").read_text())["policy"]:
        info = _made(policy_from_file(folder / fields["file"]), fields, correct=kind == "correct")
        about = fields.get("mistake") or fields["sentence"]
        yield Entry(kind, info, fields.get("rule", 0), fields.get("gate", ""), fields.get("oracle", ""), about)


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
    if entry.kind != "broken":
        bad = report.failure or next((gate for gate in report.gates if gate.status is GateStatus.SKIPPED), None)
        return f"{bad.gate}: {bad.detail}" if bad else ""
    if report.failure is None:
        return "no gate closed" if report.passed or entry.static else ""
    errors = [finding for finding in report.failure.findings if finding.severity is Severity.ERROR]
    broken = {finding.rule for finding in errors}
    # a run shows that a task starves, not which of several rules is why: core.rules says which oracle stands for which
    if any(finding.where in RULES[entry.rule].checks for finding in errors):
        broken.add(entry.rule)
    if GATES.index(report.failure.gate) > GATES.index(entry.gate):
        return f"only {report.failure.gate!r} closed: {report.failure.detail}"
    return "" if entry.rule in broken else f"{report.failure.gate!r} closed for rule {sorted(broken) or 'none'}"


def row(entry: Entry, report: VerificationReport) -> tuple[str, ...]:
    """One line of the table."""
    failure = report.failure
    rules = sorted({finding.rule for finding in failure.findings}) if failure else []
    seconds = sum(gate.seconds for gate in report.gates)
    ended = f"{failure.gate}, rule {', '.join(map(str, rules)) or '-'}" if failure else "passed"
    wanted = f"{entry.gate}, rule {entry.rule}" if entry.kind == "broken" else "passed"
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
    for entry in load_corpus():
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
