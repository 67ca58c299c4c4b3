"""What the administrator may choose: /etc/schedagent/schedagentd.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from schedagent.core import accept
from schedagent.core.deployment import Stage
from schedagent.core.errors import UsageError
from schedagent.core.welch import LEAST_SAMPLES
from schedagent.schedagentd.breaker import Bounds

CONFIG = Path("/etc/schedagent/schedagentd.toml")
AUTO, NOT_ON_EXIT = "auto", "not_on_exit"
MOST_LENGTHS, LONGEST_PULSE_S = 8, 3600.0

DECLARED = (
    "weights", "idle machine", "saturated machine", "work conservation", "sleeper's return", "pinned crowd",
    "cgroup weights", "cgroup limits",
)  # fmt: skip
"""core.policies.policy.DECLARABLE, which is not imported here; a test holds the two equal."""
READ = (
    "comm", "uid", "gid", "pid", "parent", "cgroup", "namespace", "nice", "arguments", "cpus", "nodes", "kernel",
    "time since load", "time since boot", "wall clock", "runtime", "counters", "flags", "random numbers", "map values",
)  # fmt: skip
"""core.policies.policy.READABLE, likewise."""


@dataclass(frozen=True)
class Config:
    """The choices; everything has a default.

    Args:
        state_dir: folder of the record.
        socket: where to listen, unless systemd hands a socket over.
        keys_dir: public keys of the verifiers whose tokens count.
        group: whose members may ask for what changes nothing.
        users: names of those who, besides root, may deploy and roll back.
        rollback: auto ends what runs with this process; not_on_exit lets what proved itself survive it.
        direct_full: allow a deployment that begins with the full stage.
        pulses_s: how long the pulses are, one length after the other.
        longest_trial_s, trials_per_hour: how long a trial may be, and how many there may be.
        accept_declared: oracles that a policy may declare away; see core.policies.policy.DECLARABLE.
        accept_reads: inputs that a policy may declare to go by; see core.policies.policy.READABLE.
        probation_s: how long a canary, or the full stage, lasts before what runs counts as proven.
        longest_lease_s: no lease is longer.
        sample_s: how often tasks are looked at while something is deployed.
        baseline_samples: how many intervals are measured before a stage begins; 0 for none, nothing is compared then.
        watchdog_ms: no policy may let a task wait longer: the kernel ejects it.
        bounds: when the circuit breaker trips.
    """

    state_dir: Path = Path("/var/lib/schedagentd")
    socket: Path = Path("/run/schedagent/schedagentd.sock")
    keys_dir: Path = Path("/etc/schedagent/trusted")
    group: str = "schedagent"
    users: tuple[str, ...] = ()
    rollback: str = AUTO
    direct_full: bool = False
    pulses_s: tuple[float, ...] = (1.0, 5.0, 30.0, 300.0)
    longest_trial_s: float = 600.0
    trials_per_hour: int = 240
    accept_declared: tuple[str, ...] = ()
    accept_reads: tuple[str, ...] = ()
    probation_s: Mapping[Stage, float] = field(default_factory=lambda: {Stage.CANARY: 300.0, Stage.FULL: 1800.0})
    longest_lease_s: float = 3600.0
    sample_s: float = 5.0
    baseline_samples: int = LEAST_SAMPLES
    watchdog_ms: int = 10_000
    bounds: Bounds = field(default_factory=Bounds)


def load_config(path: Path = CONFIG) -> Config:
    """Read the file, which need not be there.

    Raises:
        UsageError: an unknown key, a value that is not accepted, or a file that cannot be read.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Config()
    except (OSError, ValueError) as error:
        raise UsageError(f"the configuration {path} cannot be read: {error}") from None
    return Config(**_checked(table, _ACCEPTED, str(path)))


def _checked(table: object, accepted: Mapping[str, Callable[[Any], Any]], where: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise UsageError(f"{where} is not a table")
    chosen = {}
    for key, value in table.items():
        if key not in accepted:
            raise UsageError(f"unknown key {key!r} in {where}", f"accepted: {', '.join(sorted(accepted))}")
        try:
            chosen[key] = accepted[key](value)
        except ValueError as error:
            raise UsageError(f"{key} = {value!r} in {where} is not accepted", f"accepted: {error}") from None
    return chosen


def _probation(value: object) -> dict[Stage, float]:
    stages = {str(stage): accept.number(0, 30 * 86400) for stage in Config().probation_s}
    chosen = _checked(value, stages, "probation_s")
    return {**Config().probation_s, **{Stage(name): seconds for name, seconds in chosen.items()}}


def _pulses(value: object) -> tuple[float, ...]:
    accepted = ValueError(f"1 to {MOST_LENGTHS} lengths from 1 to {LONGEST_PULSE_S:g}, each longer than the one before")
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_LENGTHS:
        raise accepted
    try:
        lengths = tuple(accept.number(1, LONGEST_PULSE_S)(length) for length in value)
    except ValueError:
        raise accepted from None
    if list(lengths) != sorted(set(lengths)):
        raise accepted
    return lengths


def _bounds(value: object) -> Bounds:
    return Bounds(**_checked(value, {bound.name: accept.number(0, 1e6) for bound in fields(Bounds)}, "bounds"))


_ACCEPTED: dict[str, Callable[[Any], Any]] = {
    "state_dir": accept.absolute_path,
    "socket": accept.socket_path,
    "keys_dir": accept.absolute_path,
    "group": accept.line,
    "users": accept.list_of(accept.line, "user names"),
    "rollback": accept.one_of((AUTO, NOT_ON_EXIT)),
    "direct_full": accept.flag,
    "pulses_s": _pulses,
    "longest_trial_s": accept.number(1, LONGEST_PULSE_S),
    "trials_per_hour": accept.whole(0, 3600),
    "accept_declared": accept.list_of(accept.one_of(DECLARED), ", ".join(DECLARED)),
    "accept_reads": accept.list_of(accept.one_of(READ), ", ".join(READ)),
    "probation_s": _probation,
    "longest_lease_s": accept.number(10, 7 * 86400),
    "sample_s": accept.number(0.1, 60),
    "baseline_samples": accept.whole(0, 50),
    "watchdog_ms": accept.whole(1000, 30_000),
    "bounds": _bounds,
}
