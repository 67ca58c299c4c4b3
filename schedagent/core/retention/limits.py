"""The limits of everything that grows: one table, from which code, help and RETENTION.md take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

PRUNE_DAYS = 30
"""What `schedagent prune` leaves alone: what was used or ended in the last so many days."""
IN_USE_S = 3600.0
"""An entry of a cache that was used so lately may be in use."""


class Keeper(StrEnum):
    """Who enforces a limit."""

    WRITER = "whoever writes it"
    PRUNE = "prune"
    BOTH = "whoever writes it, and prune"
    SYSTEM = "the system"


@dataclass(frozen=True)
class Limit:
    """The limit of one kind of thing.

    Args:
        what: what it is, for people.
        place: where it is.
        keeper: who enforces the limit.
        count: the most there are; 0 for any number.
        mib: the most that they take together, in MiB; 0 for any size.
        days: how long they are kept unused; 0 for any time.
        words: the limit, if it is none of these.
        stays: what stays whatever its age, or what else there is to know.
    """

    what: str
    place: str
    keeper: Keeper
    count: int = 0
    mib: int = 0
    days: int = 0
    words: str = ""
    stays: str = ""

    @property
    def text(self) -> str:
        """The limit in a few words."""
        bounds = (
            f"{self.count:,}" if self.count else "",
            f"{self.mib} MiB" if self.mib else "",
            f"{self.days} days" if self.days else "",
        )
        return ", ".join(filter(None, bounds)) or self.words


_STATE, _CACHE, _RECORD = "state folder", "cache folder", "schedagentd's record"
_IN_USE = "what was used in the last hour"

RETENTION: Mapping[str, Limit] = {
    "runs": Limit(
        "runs, with plans, samples, verdicts and approvals",
        f"{_STATE}: repository.sqlite",
        Keeper.PRUNE,
        days=PRUNE_DAYS,
        stays="what is not finished, waits for an approval, is deployed or recommended, has a valid token, is the "
        "newest proof of a policy, or holds a verdict that planning learns from",
    ),
    "outputs": Limit(
        "what the workload printed in trials",
        f"{_STATE}: repository.sqlite",
        Keeper.PRUNE,
        days=PRUNE_DAYS,
        stays="as for runs; those that only planning learns from keep their figures, not their outputs",
    ),
    "transcripts": Limit(
        "exchanges with models", f"{_STATE}: runs/*.transcript.jsonl", Keeper.PRUNE, days=PRUNE_DAYS, stays="as outputs"
    ),
    "locks": Limit(
        "locks of runs and requests", f"{_STATE}: runs/*.lock", Keeper.PRUNE, days=PRUNE_DAYS, stays="those held"
    ),
    "checkpoints": Limit(
        "where runs stand in the graph",
        f"{_STATE}: checkpoints.sqlite",
        Keeper.BOTH,
        words="one a run",
        stays="those of runs that are not finished; the last step of a run deletes its own",
    ),
    "policies": Limit(
        "derived policies",
        f"{_STATE}: repository.sqlite, policies/",
        Keeper.PRUNE,
        days=PRUNE_DAYS,
        stays="those of a run, or deployed, and what they were derived from",
    ),
    "antipatterns": Limit(
        "failures not to be repeated",
        f"{_STATE}: repository.sqlite",
        Keeper.PRUNE,
        days=PRUNE_DAYS,
        stays="those of the present source of a policy",
    ),
    "recommendations": Limit(
        "recommendations and requests",
        f"{_STATE}: repository.sqlite",
        Keeper.PRUNE,
        days=PRUNE_DAYS,
        stays="what is open, or is being carried out",
    ),
    "readings": Limit(
        "intervals that the agent service measured, of each cgroup",
        f"{_STATE}: repository.sqlite",
        Keeper.WRITER,
        count=50_000,
        stays="for keep_days in [daemon]",
    ),
    "baselines": Limit(
        "what is usual", f"{_STATE}: repository.sqlite", Keeper.WRITER, words="one a cgroup that is watched"
    ),
    "snapshots": Limit("booted machines", f"{_CACHE}: snapshots/", Keeper.BOTH, count=8, days=14, stays=_IN_USE),
    "objects": Limit("compiled policies", f"{_CACHE}: objects/", Keeper.BOTH, mib=256, days=PRUNE_DAYS, stays=_IN_USE),
    "reports": Limit(
        "cached verification reports", f"{_CACHE}: reports/", Keeper.BOTH, mib=64, days=PRUNE_DAYS, stays=_IN_USE
    ),
    "headers": Limit("precompiled headers", f"{_CACHE}: pch/", Keeper.BOTH, count=12, days=PRUNE_DAYS, stays=_IN_USE),
    "types": Limit("types of kernels (BTF)", f"{_CACHE}: btf/", Keeper.BOTH, count=6, days=PRUNE_DAYS, stays=_IN_USE),
    "kernels": Limit(
        "downloaded kernels",
        f"{_CACHE}: kernels/",
        Keeper.PRUNE,
        days=PRUNE_DAYS,
        stays="the newest, the newest of the major version before, the one in the settings, the host's own, and those "
        "of runs that stay whole",
    ),
    "apt": Limit("package lists", f"{_CACHE}: apt-*/", Keeper.PRUNE, days=PRUNE_DAYS),
    "leftovers": Limit(
        "half-written entries of processes that were killed",
        f"{_CACHE}: .partial-*",
        Keeper.PRUNE,
        words="24 hours",
    ),
    "scratch": Limit(
        "scratch folders of processes that were killed", "/tmp/schedagent-*", Keeper.SYSTEM, words="systemd-tmpfiles"
    ),
    "host test": Limit("disk of `make test-host`", f"{_CACHE}: host-test/", Keeper.WRITER, count=1),
    "trips": Limit(
        "objects that the circuit breaker ended for what they did", _RECORD, Keeper.WRITER, count=1000, days=7
    ),
    "deployments": Limit(
        "ended deployments",
        _RECORD,
        Keeper.WRITER,
        count=200,
        stays="the last three known good ones, with their objects",
    ),
    "trials": Limit("ended trials", _RECORD, Keeper.WRITER, count=50),
    "events": Limit("events", _RECORD, Keeper.WRITER, count=10_000),
    "nonces": Limit("used tokens", _RECORD, Keeper.WRITER, days=7, stays="until they expire"),
    "damaged": Limit("damaged records, kept aside", "schedagentd's folder", Keeper.WRITER, count=3),
    "metrics": Limit("metrics and logs", "Prometheus, the journal", Keeper.SYSTEM, words="schedagent stores neither"),
}
"""By the name under which `prune` reports it."""
