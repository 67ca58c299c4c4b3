"""What the gates made of the drawn policies: figures for the note, and the policies that they got wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from schedagent.core.rules import COMPILE, SOURCE
from schedagent.core.verification import Severity, VerificationOutcome, VerificationReport
from tests.policy_fuzz.drawing import Drawn


class Ending(StrEnum):
    """How a policy came out of the gates, beside what it is."""

    REFUSED = "refused"
    """A fault was seen."""
    PASSED = "passed"
    """A fault was not seen, by gates that had to."""
    LEFT = "left to a run"
    """A fault was not seen by the static gates, which could not see it."""
    INNOCENT = "let through"
    """There was nothing to see."""
    FALSE_ALARM = "false alarm"
    """A correct policy was refused."""
    NO_C = "does not compile"
    """The grammar's own fault."""
    NO_VERDICT = "no verdict"
    """A machine was lost, or the host too busy."""


@dataclass(frozen=True)
class Trial:
    """One drawn policy and what the gates said."""

    drawn: Drawn
    report: VerificationReport

    @property
    def ending(self) -> Ending:
        """What that means."""
        failure, fault = self.report.failure, self.drawn.fault
        if failure and failure.gate in (SOURCE, COMPILE) and "does not compile" in failure.detail:
            return Ending.NO_C
        if self.report.outcome is VerificationOutcome.INCOMPLETE:
            return Ending.NO_VERDICT
        if fault is None:
            return Ending.FALSE_ALARM if failure else Ending.INNOCENT
        if failure:
            return Ending.REFUSED
        static_only = self.report.outcome is VerificationOutcome.STATIC_ONLY
        return Ending.LEFT if static_only and not fault.static else Ending.PASSED

    @property
    def is_wrong(self) -> bool:
        """Whether somebody should look at it."""
        return self.ending in (Ending.PASSED, Ending.FALSE_ALARM, Ending.NO_C)

    @property
    def rules(self) -> tuple[int, ...]:
        """The rules that it was refused for."""
        findings = self.report.failure.findings if self.report.failure else ()
        return tuple(sorted({finding.rule for finding in findings if finding.severity is Severity.ERROR}))

    def __str__(self) -> str:
        fault = str(self.drawn.fault) if self.drawn.fault else "no fault"
        rules = f" (rule {', '.join(map(str, self.rules))})" if self.rules else ""
        detail = f": {self.report.failure.detail}" if self.ending is Ending.FALSE_ALARM and self.report.failure else ""
        return f"{self.drawn.draft.name}: {fault}: {self.ending}{rules}{detail}"


def write_wrong(trial: Trial, folder: Path) -> None:
    """Keep a policy that the gates got wrong, headed by what is wrong with it."""
    folder.mkdir(parents=True, exist_ok=True)
    findings = trial.report.failure.findings if trial.report.failure else ()
    words = "\n".join((f"/* {trial}", *(f" * {str(finding).replace('*/', '* /')}" for finding in findings), " */\n"))
    (folder / f"{trial.drawn.draft.name}.bpf.c").write_text(words + trial.drawn.draft.text())


def table(trials: Sequence[Trial]) -> str:
    """Faults by their kind, what they depend on and how that gets there; then the figures."""
    return "\n".join((*_rows(trials), "", *_figures(trials)))


def failed(trials: Iterable[Trial]) -> bool:
    """Whether an unsafe fault passed, a correct policy did not, or the grammar wrote what is no C."""
    return any(trial.is_wrong and (trial.drawn.fault is None or trial.drawn.fault.unsafe) for trial in trials)


def _rows(trials: Sequence[Trial]) -> Iterator[str]:
    piles: defaultdict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        if trial.drawn.fault:
            fault = trial.drawn.fault
            for label in (
                fault.kind,
                *((f"  if {fault.condition}", f"  through {fault.channel}") * bool(fault.channel)),
            ):
                piles[label].append(trial)
    yield f"{'fault':<34} planted refused   left passed  for rules"
    for label, pile in sorted(piles.items(), key=lambda item: (item[0].startswith(" "), item[0])):
        endings = Counter(trial.ending for trial in pile)
        rules = Counter(rule for trial in pile for rule in trial.rules)
        named = ", ".join(f"{rule}" for rule, _count in rules.most_common(6))
        counts = (len(pile), endings[Ending.REFUSED], endings[Ending.LEFT], endings[Ending.PASSED])
        yield f"{label:<34} {counts[0]:7} {counts[1]:7} {counts[2]:6} {counts[3]:6}  {named}"


def _figures(trials: Sequence[Trial]) -> Iterator[str]:
    planted = [trial for trial in trials if trial.drawn.fault]
    unsafe = [trial for trial in planted if trial.drawn.fault and trial.drawn.fault.unsafe]
    endings = Counter(trial.ending for trial in unsafe)
    judged = ", ".join(f"{endings[each]} {each}" for each in (Ending.REFUSED, Ending.LEFT, Ending.PASSED))
    yield f"planted faults: {len(planted)}, {len(unsafe)} of them unsafe: {judged}"
    innocent = [trial for trial in trials if not trial.drawn.fault]
    refused = sum(trial.ending is Ending.FALSE_ALARM for trial in innocent)
    yield f"correct policies: {len(innocent)}, {refused} refused"
    others = Counter(trial.ending for trial in trials)
    yield f"not judged: {others[Ending.NO_C]} no C, {others[Ending.NO_VERDICT]} without a verdict"
