"""What an experiment is asked for: what runs, the number that is compared, its guards, the windows. Checked here."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from schedagent.core.errors import UsageError
from schedagent.core.readings.metric import problem_of
from schedagent.core.trials.judge import MINIMUM_PAIRS
from schedagent.core.trials.objective import Direction, Guard, Metric
from schedagent.core.trials.workload import Goal, WorkloadCommand
from schedagent.experiment.prometheus import look_back_s, server_of
from schedagent.observing.scope import Target, check, of_container, of_unit

SHORTEST_WINDOW_S, LONGEST_WINDOW_S = 1.0, 590.0
"""A trial of schedagentd is at most 600 s long, unless it is configured otherwise."""
LONGEST_S = 7 * 24 * 3600.0
SWITCHES_S = 2.4
"""What a pair takes besides its windows: the default scheduler is in charge for a second before each trial."""

WAITING = "waiting for a CPU"
"""What is compared without a metric: time in run queues for each second on a CPU."""
GUARD_MARGIN = 0.05
MOST_GUARDS = 16
_WASHED, _LONGEST_WASH_OUT_S = 0.2, 5.0
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_ -]{0,39})=(?![=~])")
_SUFFIX = re.compile(r":(lower|higher)(?::([0-9]{1,3}(?:\.[0-9]{1,3})?)%)?$")
_UNITS = {"": 1.0, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_TIME = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(s|min|m|h)?")


class Kind(StrEnum):
    """Where a number comes from."""

    QUERY = "query"
    COMMAND = "command"
    LOG = "log"
    COUNTERS = "counters"


@dataclass(frozen=True)
class NumberSource:
    """One number of a window.

    Args:
        kind: where it comes from.
        text: the query, the command as a shell splits it, or the regular expression; empty for counters.
        place: the server's address, the log's path, or the folder in which the command runs; else empty.
    """

    kind: Kind
    text: str = ""
    place: str = ""

    @property
    def words(self) -> str:
        """What it is, for people."""
        where_from = "" if self.kind is Kind.COMMAND else self.place
        return " ".join(filter(None, [self.kind.value, where_from, self.text]))


@dataclass(frozen=True)
class GuardSource:
    """A number that must not get worse by more than a margin, which is a fraction."""

    name: str
    source: NumberSource
    direction: Direction
    margin: float


@dataclass(frozen=True)
class Experiment:
    """What is asked for.

    Args:
        scope: what runs: "unit", "cgroup", "container" or "pid", and its name.
        metric: the number that is compared.
        direction: which way it is better.
        guards: the user's; those on waiting and pressure are there anyway.
        window_s: how long the policy, or the default scheduler, is in charge in each window.
        wash_out_s: how much is left out of a window, from its beginning.
        for_s: for how long pairs of windows begin.
    """

    scope: tuple[str, str]
    metric: NumberSource = field(default_factory=lambda: NumberSource(Kind.COUNTERS))
    direction: Direction = Direction.LOWER
    guards: tuple[GuardSource, ...] = ()
    window_s: float = 20.0
    wash_out_s: float = 4.0
    for_s: float = 1800.0

    @property
    def words(self) -> str:
        """What runs, for people."""
        return " ".join(self.scope)

    @property
    def pair_s(self) -> float:
        """How long a pair of windows takes, in seconds."""
        return 2 * self.window_s + SWITCHES_S

    @property
    def measured_s(self) -> float:
        """How much of a window counts, in seconds."""
        return self.window_s - self.wash_out_s

    @property
    def workload(self) -> WorkloadCommand:
        """The same as runs are stored: no command, but what runs and what is compared."""
        counters = self.metric.kind is Kind.COUNTERS
        return WorkloadCommand(
            command=self.words,
            directory="/",
            goal=Goal.LATENCY if self.direction is Direction.LOWER else Goal.THROUGHPUT,
            metric=WAITING if counters else self.metric.words,
            objective=WAITING if counters else "",
            guards=tuple(
                Guard(Metric(guard.name, guard.source.words, guard.direction), guard.margin) for guard in self.guards
            ),
            running=True,
        )

    def target(self) -> Target:
        """Return the scope as it is now; raise UsageError if there is none."""
        kind, name = self.scope
        if kind == "unit":
            return of_unit(name)
        if kind == "container":
            return of_container(name)
        target = Target(pid=int(name)) if kind == "pid" else Target(cgroup=name)
        check(target)
        return target

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Experiment:
        """Read what `to_json` wrote."""
        guards = tuple(
            GuardSource(each["name"], _stored_source(each["source"]), Direction(each["direction"]), each["margin"])
            for each in stored["guards"]
        )
        kind, name = stored["scope"]
        read = {
            "scope": (kind, name),
            "metric": _stored_source(stored["metric"]),
            "direction": Direction(stored["direction"]),
            "guards": guards,
        }
        return cls(**{**stored, **read})


def _stored_source(stored: Mapping[str, Any]) -> NumberSource:
    return NumberSource(Kind(stored["kind"]), stored["text"], stored["place"])


def default_wash_out_s(window_s: float) -> float:
    """Return how much of a window is left out unless that is said."""
    return min(_WASHED * window_s, _LONGEST_WASH_OUT_S)


def seconds(text: str, option: str) -> float:
    """Return a time such as 20s, 5min or 1h; raise UsageError if it is none."""
    match = _TIME.fullmatch(text)
    if match is None or not float(match[1]):
        raise UsageError(f"{option} {text!r} is no time", "accepted: such as 20s, 5min, 1h")
    return float(match[1]) * _UNITS[match[2] or ""]


def read_guard(kind: Kind, text: str, number: int, place: str = "") -> GuardSource:
    """Return a guard as --guard-query or --guard-command give it: [NAME=]TEXT[:lower|:higher[:5%]].

    Raises:
        UsageError: nothing would be left to ask for, or the margin is none.
    """
    suffix = _SUFFIX.search(text)
    name = _NAME.match(text)
    body = text[name.end() if name else 0 : suffix.start() if suffix else None].strip()
    margin = float(suffix[2]) / 100 if suffix and suffix[2] else GUARD_MARGIN
    if not body or not 0 < margin <= 1:
        raise UsageError(f"the guard {text!r} cannot be read", "accepted: [NAME=]QUERY[:lower|:higher[:5%]]")
    direction = Direction(suffix[1]) if suffix else Direction.LOWER
    return GuardSource(name[1] if name else f"guard {number}", NumberSource(kind, body, place), direction, margin)


def checked(experiment: Experiment) -> Experiment:
    """Return an experiment that makes sense.

    Raises:
        UsageError: with what does not, and what is accepted.
    """
    _check_times(experiment)
    for source in (experiment.metric, *(guard.source for guard in experiment.guards)):
        _check_source(source, experiment.measured_s)
    names = [guard.name for guard in experiment.guards]
    if len(names) > MOST_GUARDS:
        raise UsageError(f"{len(names)} guards are named", f"accepted: at most {MOST_GUARDS}")
    if len(set(names)) < len(names):
        raise UsageError("two guards have the same name", "name each: NAME=QUERY")
    return experiment


def _check_times(experiment: Experiment) -> None:
    window_s, wash_out_s = experiment.window_s, experiment.wash_out_s
    if not SHORTEST_WINDOW_S <= window_s <= LONGEST_WINDOW_S:
        raise UsageError(
            f"a window of {window_s:g} s is not possible", f"accepted: {SHORTEST_WINDOW_S:g}s to {LONGEST_WINDOW_S:g}s"
        )
    if wash_out_s >= window_s:
        raise UsageError(
            f"a window of {window_s:g} s is no longer than its wash-out of {wash_out_s:g} s: nothing would be measured",
            "make --window longer, or --wash-out shorter",
        )
    pairs, least_s = experiment.for_s / experiment.pair_s, MINIMUM_PAIRS * experiment.pair_s
    if pairs < MINIMUM_PAIRS or experiment.for_s > LONGEST_S:
        raise UsageError(
            f"in {experiment.for_s:g} s there are {int(pairs)} pairs of windows of {window_s:g} s, and no claim is made"
            f" from fewer than {MINIMUM_PAIRS}",
            f"accepted: --for {math.ceil(least_s)}s to {LONGEST_S / 3600:g}h, or a shorter --window",
        )


def _check_source(source: NumberSource, measured_s: float) -> None:
    if source.kind is Kind.QUERY:
        server_of(source.place)
        if (longest_s := look_back_s(source.text)) > measured_s:
            raise UsageError(
                f"the query looks back {longest_s:g} s, and only {measured_s:g} s of a window are measured",
                "write [$window] for what is measured, or make --window longer",
            )
    elif source.kind is Kind.COMMAND:
        _check_words(source.text)
    elif source.kind is Kind.LOG:
        problem, hint = problem_of(source.text)
        if problem:
            raise UsageError(f"the expression {source.text!r} {problem}", hint)
        if not Path(source.place).is_file():
            raise UsageError(f"there is no log {source.place}", "name a file that lines are added to")


def _check_words(command: str) -> None:
    try:
        words = shlex.split(command)
    except ValueError as error:
        hint = "no shell runs it; check its quotes"
        raise UsageError(f"the command {command!r} cannot be read: {error}", hint) from None
    if not words:
        raise UsageError("the metric's command is empty", "name a program that prints a number on its last line")
