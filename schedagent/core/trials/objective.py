"""What is read from a run's output: the objective, what is watched beside it, and the guards it must not break."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Direction(StrEnum):
    """Which way is better."""

    LOWER = "lower"
    HIGHER = "higher"


@dataclass(frozen=True)
class Metric:
    """One number in the output of a run.

    Args:
        name: for people, and the key of `Sample.values`.
        expression: regular expression whose first group is the number.
        direction: which way is better.
    """

    name: str
    expression: str
    direction: Direction


@dataclass(frozen=True)
class Guard:
    """A number that must not get worse by more than a margin.

    Args:
        metric: the number.
        margin: as a fraction: 0.05 for 5 %.
    """

    metric: Metric
    margin: float
