"""Where the exporter looks: each part reads one source when it is scraped, and says what it found by family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kernel_bpf.load.sched_ext import SYSFS, kernel_state
from repo_store.totals import RepositoryReader, RepositoryTotals
from schedagent.client.daemon import DaemonClient
from schedagent.core.deployment import End
from schedagent.core.errors import SetupError
from schedagent.core.welch import DELAY, METRIC, PRESSURE, SHARE
from schedagent.metrics import catalog
from schedagent.metrics.catalog import member, word
from schedagent.metrics.family import OTHER, Family, Histogram, Labels, Values
from schedagent.metrics.run_queue import RunQueue

Readings = dict[Family, Values]

RATIO_BOUNDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 1.0, 1.025, 1.05, 1.1, 1.2, 1.5, 2.0)
_NS = 1e-9
_US = 1e-6
_ONE: Labels = ()


class Part(Protocol):
    """One source.

    Attributes:
        name: one of catalog.PARTS.
    """

    name: str

    def read(self) -> Readings:
        """Look now.

        Raises:
            SchedagentError: it cannot be looked at.
        """
        ...


@dataclass
class DaemonPart:
    """What schedagentd answers."""

    client: DaemonClient
    name: str = "schedagentd"

    def read(self) -> Readings:
        told = self.client.ask("status")
        if told["totals"] is None:
            raise SetupError("schedagentd cannot read its record", "its log says why: journalctl -u schedagentd")
        return _totals(told["totals"]) | _deployment(told)


def _totals(totals: Mapping[str, Any]) -> Readings:
    ended: Counter[Labels] = Counter()
    trips: Counter[Labels] = Counter()
    for one in totals["ended"]:
        end = End(one["end"])
        ended[one["stage"], member(end)] += one["count"]
        if end.is_trip:
            trips[(member(end),)] += one["count"]
    events = Counter[Labels]()
    for kind, count in totals["events"].items():
        events[(word(kind),)] += count
    return {catalog.ENDED: ended, catalog.TRIPS: trips, catalog.EVENTS: events}


def _deployment(told: Mapping[str, Any]) -> Readings:
    """What is in charge now; families of something that is not there have no series."""
    active = told["active"]
    readings: Readings = {
        catalog.IN_CHARGE: {_ONE: float(active is not None)},
        catalog.WAITING: {_ONE: float(told["waiting"] is not None)},
        catalog.UNSAVED: {_ONE: len(told["unsaved"])},
        catalog.FOREIGN: {_ONE: float(told["foreign"] is not None)},
    }
    if active is None:
        return readings
    return readings | {
        catalog.INFO: {(active["policy"], active["stage"]): 1.0},
        catalog.PROVEN: {_ONE: float(active["proven"])},
        catalog.PINNED: {_ONE: float(active["pinned"])},
        catalog.STAGE_AGE: {_ONE: active["since_s"]},
        catalog.LEASE_LEFT: {_ONE: active["lease_left_s"]},
        catalog.TOKEN_LEFT: {_ONE: active["token_left_s"]},
        catalog.SCOPE_DELAY: _means(DELAY, active["baseline"], told["measured"]),
        catalog.SCOPE_PRESSURE: _means(PRESSURE, active["baseline"], told["measured"]),
        catalog.SCOPE_SHARE: _means(SHARE, active["baseline"], told["measured"]),
        catalog.SCOPE_METRIC: _means(METRIC, active["baseline"], told["measured"]),
    }


def _means(name: str, *spreads: Mapping[str, Any]) -> dict[Labels, float]:
    found = zip(catalog.WHEN, (spread.get(name) for spread in spreads), strict=True)
    return {(when,): spread["mean"] for when, spread in found if spread and spread["count"]}


@dataclass
class KernelPart:
    """What the kernel says of sched_ext itself, whether schedagentd runs or not."""

    sysfs: Path = SYSFS
    name: str = "kernel"

    def read(self) -> Readings:
        state = kernel_state(self.sysfs)
        events = {name.removeprefix("SCX_EV_").lower(): count for name, count in state.events.items()}
        bypassed_ns = events.pop("bypass_duration", 0)
        return {
            catalog.SCX_AVAILABLE: {_ONE: float(state.available)},
            catalog.SCX_STATE: {(state.state,): 1.0} if state.available else {},
            catalog.SCX_SWITCH_ALL: {_ONE: float(state.switch_all)},
            catalog.SCX_ENABLES: {_ONE: state.enable_seq},
            catalog.SCX_REJECTED: {_ONE: state.nr_rejected},
            catalog.SCX_HOTPLUGS: {_ONE: state.hotplug_seq},
            catalog.SCX_EVENT: _named(events),
            catalog.SCX_BYPASS: {_ONE: bypassed_ns * _NS},
        }


def _named(counts: Mapping[str, float]) -> dict[Labels, float]:
    return {(name,): count for name, count in counts.items()}


@dataclass
class HostPart:
    """Pressure and run queues of the whole machine."""

    proc: Path = Path("/proc")
    name: str = "host"
    run_queue: RunQueue = field(init=False)

    def __post_init__(self) -> None:
        self.run_queue = RunQueue(self.proc)

    def read(self) -> Readings:
        self.run_queue.look()
        return {
            catalog.PSI: self._pressure(),
            catalog.DELAY: self.run_queue.histogram,
            catalog.THREADS: {_ONE: self.run_queue.threads},
            catalog.SAMPLED: {_ONE: self.run_queue.sampled},
        }

    def _pressure(self) -> dict[Labels, float]:
        """Lines such as "some avg10=0.00 avg60=0.00 avg300=0.00 total=12345" (Documentation/accounting/psi.rst).

        A kernel that was not told psi=1 may have none; then there are no series.
        """
        try:
            lines = (self.proc / "pressure/cpu").read_text().splitlines()
        except OSError:
            return {}
        return {(line.split()[0],): int(line.rpartition("total=")[2]) * _US for line in lines}


@dataclass
class RepositoryPart:
    """Runs, verifications, trials, and what the agent service recommends."""

    reader: RepositoryReader
    name: str = "repository"

    def read(self) -> Readings:
        found = self.reader.read()
        return {
            catalog.RUNS: _named(found.runs),
            catalog.MADE: _named(found.derived),
            catalog.SAMPLES: {_ONE: found.samples},
            **_verified(found),
            **_judged(found),
            **_recommended(found),
        }


def _verified(found: RepositoryTotals) -> Readings:
    gates: dict[Labels, float] = {}
    for (gate, status), count in found.verified.gates.items():
        gates[word(gate), word(status)] = count
    return {
        catalog.VERIFICATIONS: _named(found.verified.results),
        catalog.GATE_RESULTS: gates,
        catalog.GATE_SECONDS: {(word(gate),): seconds for gate, seconds in found.verified.seconds.items()},
    }


def _recommended(found: RepositoryTotals) -> Readings:
    """What the agent service found; moments that have not been have no series."""
    recommendations: dict[Labels, float] = dict(found.recommendations.items())
    return {
        catalog.RECOMMENDATIONS: recommendations,
        catalog.REQUESTS: _named(found.requests),
        catalog.QUEUED_SINCE: {_ONE: found.queued_since} if found.queued_since else {},
        catalog.LOOKED_AT: {_ONE: found.last_reading_at} if found.last_reading_at else {},
    }


def _judged(found: RepositoryTotals) -> Readings:
    ratios = Histogram(RATIO_BOUNDS)
    for ratio in found.ratios:
        ratios.add(ratio)
    best: dict[Labels, float] = {}
    for policy, ratio in found.best.items():
        labels = (policy if policy in catalog.POLICIES else OTHER,)
        best[labels] = min(ratio, best.get(labels, ratio))
    return {
        catalog.VERDICTS: {(policy, word(outcome)): count for (policy, outcome), count in found.verdicts.items()},
        catalog.RATIO: ratios,
        catalog.BEST: best,
    }
