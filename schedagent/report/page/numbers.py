"""Numbers in a page that a program can check: each names its place in the JSON of the report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from schedagent.page.markup import text
from schedagent.report.report import CandidateReport, Report
from schedagent.report.values import figure


@dataclass(frozen=True)
class Place:
    """Where a candidate stands.

    Args:
        entry: the candidate.
        at: path of it in the JSON of the report, a JSON pointer without its first slash.
        number: among all candidates, from 1.
    """

    entry: CandidateReport
    at: str
    number: int

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return f"{self.number} {self.entry.candidate.policy}"


def places(report: Report) -> Iterator[Place]:
    """Yield every candidate with its place."""
    number = 0
    for trial, iteration in enumerate(report.iterations):
        for place, entry in enumerate(iteration.candidates):
            number += 1
            yield Place(entry, f"iterations/{trial}/candidates/{place}", number)


def pointer(name: str) -> str:
    """Return a name as a step of a path (RFC 6901): names out of an output may hold any character."""
    return name.replace("~", "~0").replace("/", "~1")


def measured(value: float, at: str, unit: str | None = None) -> str:
    """Return a value with its unit, as `figure` shows it."""
    return _data(value, at, figure(value, unit))


def count(value: int, at: str) -> str:
    """Return a whole number."""
    return _data(value, at, f"{value:,}")


def ratio(value: float, at: str) -> str:
    """Return a ratio."""
    return _data(value, at, f"{value:.3f}")


def percent(value: float, at: str) -> str:
    """Return a fraction in per cent."""
    return _data(value, at, f"{100 * value:g} %")


def interval(low: float, high: float, at: str) -> str:
    """Return an interval; `at` is the path of what has `low` and `high`."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):  # one pair and a worst run have none
        return "-"
    return f"{ratio(low, f'{at}/low')} to {ratio(high, f'{at}/high')}"


def _data(value: float, at: str, shown: str) -> str:
    if not math.isfinite(value):
        return "-"
    return f'<data value="{value!r}" data-at="{text(at)}">{text(shown)}</data>'
