"""Two runs side by side: what both say of a policy, their default scheduler's values, and what cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Console

from schedagent.core.trials.trial import DEFAULT_ARM
from schedagent.report.faces.remarks import ratio_text, where_text
from schedagent.report.report import CandidateReport, Report
from schedagent.report.tables import say, say_wrapped, show_table
from schedagent.report.values import figure, runs_of


@dataclass(frozen=True)
class Claim:
    """What one run says of one candidate.

    Args:
        outcome: empty if it was not judged.
        ratio, low, high: of what is claimed; None if unknown.
        on_hardware: whether that is expected on hardware, out of an emulated machine.
        pairs: compared.
    """

    outcome: str
    ratio: float | None
    low: float | None
    high: float | None
    on_hardware: bool
    pairs: int


@dataclass(frozen=True)
class PolicyComparison:
    """One policy, with its tunables, in both runs.

    Args:
        label: policy and tunables.
        first, second: what the runs say; None if a run did not try it.
        agree: whether the intervals overlap; None if there are not two.
    """

    label: str
    first: Claim | None
    second: Claim | None
    agree: bool | None


@dataclass(frozen=True)
class DefaultComparison:
    """A value under the default scheduler: medians of both runs."""

    name: str
    unit: str | None
    first: float
    second: float


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Args:
        first, second: their ids.
        same_workload, same_hardware: whether their keys are the same.
        differences: what differs, and what follows; a sentence each.
        policies: by label, those that both tried first.
        defaults: values of the default scheduler; none unless workload and hardware are the same.
    """

    first: str
    second: str
    same_workload: bool
    same_hardware: bool
    differences: tuple[str, ...]
    policies: tuple[PolicyComparison, ...]
    defaults: tuple[DefaultComparison, ...]


def compare(first: Report, second: Report) -> Comparison:
    """Set two reports side by side."""
    same_workload = first.workload.key == second.workload.key
    same_hardware = first.hardware.key == second.hardware.key
    return Comparison(
        first.run,
        second.run,
        same_workload,
        same_hardware,
        tuple(_differences(first, second)),
        tuple(_policies(first, second, comparable=same_workload)),
        tuple(_defaults(first, second)) if same_workload and same_hardware else (),
    )


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return it as JSON values."""
    return asdict(comparison)


def render(comparison: Comparison, first: Report, second: Report, console: Console) -> None:
    """Print two runs side by side."""
    for letter, report in (("A", first), ("B", second)):
        say(console, f"{letter}  {report.title}: {where_text(report.workload)}")
        hardware = report.hardware
        say(console, f"   {hardware.lab}, {hardware.cpus} CPUs, kernel {hardware.kernel_release}; {report.outcome}")
    for line in comparison.differences:
        say_wrapped(console, line, "   ")
    if comparison.policies:
        console.print()
        say(console, "Ratios to the default of their own run:")
        for entry in comparison.policies:
            both = {True: ": they agree", False: ": they differ", None: ""}[entry.agree]
            say(console, f"  {entry.label}{both}")
            say(console, f"    A  {_said(entry.first)}")
            say(console, f"    B  {_said(entry.second)}")
    if comparison.defaults:
        console.print()
        say(console, "The default scheduler, medians:")
        values = [
            (figure(entry.first, entry.unit), figure(entry.second, entry.unit), _change(entry), entry.name)
            for entry in comparison.defaults
        ]
        show_table(console, ("A", "B", "B / A", "value"), values)


def _differences(first: Report, second: Report) -> Iterator[str]:
    if first.run == second.run:
        yield "This is the same run twice."
    if first.workload.key != second.workload.key:
        yield (
            f"The workloads differ ({', '.join(_differing(first.workload, second.workload)) or 'in their options'}): "
            "ratios may be set side by side, but neither agree nor differ; absolute values cannot be compared."
        )
    if first.hardware.key != second.hardware.key:
        yield (
            f"The machines differ ({', '.join(_differing(first.hardware, second.hardware))}): absolute values cannot "
            "be compared, and ratios only so far as they carry over."
        )
    if (first.hardware.lab == "vm-tcg") != (second.hardware.lab == "vm-tcg"):
        yield "One was emulated: only what is expected on hardware compares with what was measured there."


def _differing(first: object, second: object) -> list[str]:
    return [
        name.replace("_", " ")
        for name, value in vars(first).items()
        if value != getattr(second, name) and name not in _NO_PART_OF_THE_WORK
    ]


def _policies(first: Report, second: Report, *, comparable: bool) -> Iterator[PolicyComparison]:
    ours = {entry.candidate.label: entry for entry in first.candidates}
    theirs = {entry.candidate.label: entry for entry in second.candidates}
    for label in sorted({**ours, **theirs}, key=lambda label: label not in ours or label not in theirs):
        claims = _claim(ours.get(label)), _claim(theirs.get(label))
        yield PolicyComparison(label, *claims, _agree(*claims) if comparable else None)


def _claim(entry: CandidateReport | None) -> Claim | None:
    if entry is None:
        return None
    if entry.verdict is None:
        return Claim("", None, None, None, False, 0)
    ratio, low, high = (value if math.isfinite(value) else None for value in entry.verdict.claim)
    verdict = entry.verdict
    return Claim(verdict.outcome.value, ratio, low, high, verdict.expected is not None, verdict.pairs)


def _agree(first: Claim | None, second: Claim | None) -> bool | None:
    if first is None or second is None:
        return None
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return None
    return first.low <= second.high and second.low <= first.high


def _defaults(first: Report, second: Report) -> Iterator[DefaultComparison]:
    ours, theirs = _medians(first), _medians(second)
    for name, (unit, value) in ours.items():
        if name in theirs:
            yield DefaultComparison(name, unit, value, theirs[name][1])


def _medians(report: Report) -> dict[str, tuple[str | None, float]]:
    blocks = [block for iteration in report.iterations for block in iteration.blocks]
    return {
        value.name: (value.unit, median(value.runs[DEFAULT_ARM]))
        for value in runs_of(blocks, report.workload, report.hardware.cpus)
        if DEFAULT_ARM in value.runs
    }


def _said(claim: Claim | None) -> str:
    if claim is None:
        return "not tried"
    if claim.ratio is None:
        return claim.outcome or "not reached"
    low, high = (math.nan if value is None else value for value in (claim.low, claim.high))
    where = "expected on hardware" if claim.on_hardware else "as measured"
    return f"{claim.outcome}: {ratio_text(claim.ratio, low, high)} {where}, {claim.pairs} pairs"


def _change(entry: DefaultComparison) -> str:
    return f"{entry.second / entry.first:.3f}" if entry.first else "-"


_NO_PART_OF_THE_WORK = frozenset(("timeout_s", "objective", "metrics", "guards", "preset", "units"))
