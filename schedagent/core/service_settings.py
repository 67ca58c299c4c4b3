"""The table [daemon] of the settings: what the agent service watches, and what it may do by itself. See settings.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from schedagent.core import accept
from schedagent.core.retention.limits import PRUNE_DAYS
from schedagent.core.trials.workload import Goal, WorkloadCommand

Accept = Callable[[Any], Any]

_TIME = r"([01][0-9]|2[0-3]):([0-5][0-9])"
_QUIET = re.compile(f"{_TIME}-{_TIME}")
_EVERY = re.compile(r"([1-9][0-9]{0,4})([mhd])")
_UNITS_S = {"m": 60, "h": 3600, "d": 86400}
LONGEST_EVERY_S = 7 * 86400
"""Of schedagentd, from the least of the machine to all of it."""


class Mode(StrEnum):
    """How much the service does by itself."""

    MONITOR = "monitor"
    """It measures and recommends."""
    OPTIMISE = "optimise"
    """It also carries out recommendations to optimise, in the lab."""
    ACT = "act"
    """It also carries out recommendations to deploy."""


@dataclass(frozen=True)
class WatchedWorkload:
    """One [[daemon.workloads]].

    Args:
        workload: command, dir, and optionally prepare, goal, metric, timeout_s.
        cgroup: where its tasks run on this machine; empty: it is not watched there.
    """

    workload: WorkloadCommand
    cgroup: str = ""


@dataclass(frozen=True)
class ServiceSettings:
    """[daemon]; everything has a default.

    Args:
        mode: monitor, optimise or act.
        reading_every_s: how often the machine is read; each reading covers the interval since the one before.
        cgroups: watched besides the machine and the workloads' own.
        workloads: what may be optimised without a request.
        baseline_readings: how many busy readings make a baseline.
        baseline_days: a baseline that is older is measured again.
        keep_days: how long readings are kept.
        prune_days: what is older, and needed by nothing, is removed once a day (`schedagent prune`); 0 for never.
        much_delay_s: a mean wait for a CPU above this is worth searching for a better policy.
        recommend_days: a recommendation to optimise holds this long after it was last made.
        every, at: schedule of optimising each workload, such as "24h" or "02:00" (local time); empty for none.
        quiet: hours in which the service begins nothing by itself, such as "22:00-06:00" (local time); empty for none.
        runs_per_day, deployments_per_day: the most that it begins by itself in 24 hours.
        lease_s: for how long each renewal holds: a policy outlives the service by this.
        iterations, candidates, budget_minutes: of the service's runs, as for `schedagent optimize`.
        socket: of schedagentd.
    """

    mode: Mode = Mode.MONITOR
    reading_every_s: float = 60.0
    cgroups: tuple[str, ...] = ()
    workloads: tuple[WatchedWorkload, ...] = ()
    baseline_readings: int = 60
    baseline_days: float = 7.0
    keep_days: float = 14.0
    prune_days: int = PRUNE_DAYS
    much_delay_s: float = 0.01
    recommend_days: float = 7.0
    every: str = ""
    at: str = ""
    quiet: str = ""
    runs_per_day: int = 2
    deployments_per_day: int = 1
    lease_s: float = 600.0
    iterations: int = 2
    candidates: int = 3
    budget_minutes: float = 30.0
    socket: Path = Path("/run/schedagent/schedagentd.sock")

    @property
    def watched(self) -> tuple[str, ...]:
        """The cgroups that are watched, each once."""
        return tuple(dict.fromkeys((*self.cgroups, *(watched.cgroup for watched in self.workloads if watched.cgroup))))


def read_service(value: object) -> ServiceSettings:
    """Read the table; raise ValueError or TypeError that names the wrong key, and what is accepted there."""
    if not isinstance(value, Mapping):
        raise TypeError("a table: [daemon]")
    chosen = _take(value, _ACCEPTED, "")
    if chosen.get("every") and chosen.get("at"):
        raise ValueError("either every or at, not both")
    return ServiceSettings(**chosen)


def every_s(text: str) -> float:
    """Return the seconds of a text such as "24h"."""
    match = _EVERY.fullmatch(text)
    if not match or not 60 <= int(match[1]) * _UNITS_S[match[2]] <= LONGEST_EVERY_S:
        raise ValueError('a time such as "90m", "24h" or "7d", from 1m to 7d')
    return float(int(match[1]) * _UNITS_S[match[2]])


def minute_of_day(text: str) -> int:
    """Return the minutes after midnight of a text such as "02:00"."""
    match = re.fullmatch(_TIME, text)
    if not match:
        raise ValueError('a time of day such as "02:00"')
    return 60 * int(match[1]) + int(match[2])


def quiet_minutes(text: str) -> tuple[int, int]:
    """Return begin and end of a text such as "22:00-06:00", in minutes after midnight."""
    if not isinstance(text, str) or not _QUIET.fullmatch(text):
        raise ValueError('hours such as "22:00-06:00"')
    begin, end = map(minute_of_day, text.split("-"))
    if begin == end:
        raise ValueError("hours that end at another time than they begin")
    return begin, end


def _take(value: Mapping[str, Any], accepted: Mapping[str, Accept], where: str) -> dict[str, Any]:
    chosen = {}
    for key, written in value.items():
        if key not in accepted:
            raise ValueError(f"{where}{key} is unknown; known are {', '.join(accepted)}")
        try:
            chosen[key] = accepted[key](written)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}{key}: {error}") from None
    return chosen


def _workloads(value: object) -> tuple[WatchedWorkload, ...]:
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise TypeError("tables: [[daemon.workloads]]")
    return tuple(_workload(number, table) for number, table in enumerate(value, 1))


def _workload(number: int, value: Mapping[str, Any]) -> WatchedWorkload:
    chosen = _take(value, _OF_A_WORKLOAD, f"number {number}, ")
    if not {"command", "dir"} <= set(chosen):
        raise ValueError(f"number {number} needs command and dir")
    cgroup, directory = chosen.pop("cgroup", ""), chosen.pop("dir")
    if chosen.get("goal", Goal.MAKESPAN) is not Goal.MAKESPAN and not chosen.get("metric"):
        raise ValueError(f"number {number}, goal: makespan, or a metric that finds the number that is compared")
    return WatchedWorkload(WorkloadCommand(directory=directory, **chosen), cgroup)


def _directory(value: object) -> str:
    if not Path(accept.line(value)).is_absolute():
        raise ValueError("an absolute path")
    return str(Path(accept.line(value)).resolve())


def _metric(value: object) -> str:
    try:
        groups = re.compile(accept.line(value)).groups
    except re.error as error:
        raise ValueError(f"a regular expression ({error})") from None
    if groups > 1:
        raise ValueError("a regular expression with one group")
    return accept.line(value)


def _checked(check: Callable[[str], object]) -> Accept:
    """Accept an empty text, or one that `check` accepts."""

    def read(value: object) -> str:
        if value == "":
            return ""
        if not isinstance(value, str):
            raise TypeError("a text")
        check(value)
        return value

    return read


_OF_A_WORKLOAD: dict[str, Accept] = {
    "command": accept.line,
    "dir": _directory,
    "prepare": accept.line,
    "goal": accept.one_of(Goal),
    "metric": _metric,
    "timeout_s": accept.number(1, 7 * 86400, "seconds"),
    "cgroup": accept.cgroup,
}

_ACCEPTED: dict[str, Accept] = {
    "mode": accept.one_of(Mode),
    "reading_every_s": accept.number(1, 3600, "seconds"),
    "cgroups": accept.list_of(accept.cgroup, "cgroups"),
    "workloads": _workloads,
    "baseline_readings": accept.whole(12, 10_000),
    "baseline_days": accept.number(1, 90, "days"),
    "keep_days": accept.number(8, 90, "days"),
    "prune_days": accept.whole(0, 3650),
    "much_delay_s": accept.number(0.0001, 60, "seconds"),
    "recommend_days": accept.number(1, 90, "days"),
    "every": _checked(every_s),
    "at": _checked(minute_of_day),
    "quiet": _checked(quiet_minutes),
    "runs_per_day": accept.whole(0, 1000),
    "deployments_per_day": accept.whole(0, 1000),
    "lease_s": accept.number(30, 3600, "seconds"),
    "iterations": accept.whole(1, 100),
    "candidates": accept.whole(1, 8),
    "budget_minutes": accept.number(0.1, 7 * 24 * 60, "minutes"),
    "socket": accept.socket_path,
}
assert set(_ACCEPTED) == {setting.name for setting in fields(ServiceSettings)}
