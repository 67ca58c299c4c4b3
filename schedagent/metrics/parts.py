"""The sources of the exporter: each part reads one of them when it is scraped, and returns values by family."""

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
        """Read the source now.

        Raises:
            SchedagentError: it cannot be read.
        """
        ...


@dataclass
class DaemonPart:
    """What schedagentd answers."""

    client: DaemonClient
    name: str = "schedagentd"

    def read(self) -> Readings:
        status = self.client.ask("status")
        if status["totals"] is None:
            raise SetupError("schedagentd cannot read its record", "its log shows why: journalctl -u schedagentd")
        return _totals(status["totals"]) | _deployment(status)


def _totals(totals: Mapping[str, Any]) -> Readings:
    ended: Counter[Labels] = Counter()
    trips: Counter[Labels] = Counter()
    for row in totals["ended"]:
        end = End(row["end"])
        ended[row["stage"], member(end)] += row["count"]
        if end.is_trip:
            trips[(member(end),)] += row["count"]
    events = Counter[Labels]()
    for kind, count in totals["events"].items():
        events[(word(kind),)] += count
    return {catalog.ENDED: ended, catalog.TRIPS: trips, catalog.EVENTS: events}


def _deployment(status: Mapping[str, Any]) -> Readings:
    """What is in charge now; families of what is absent have no series."""
    active = status["active"]
    pulsing = next((each for each in (active, status["waiting"]) if each and each["pulse_s"]), None)
    readings: Readings = {
        catalog.IN_CHARGE: {_ONE: float(active is not None)},
        catalog.WAITING: {_ONE: float(status["waiting"] is not None)},
        catalog.UNSAVED: {_ONE: len(status["unsaved"])},
        catalog.FOREIGN: {_ONE: float(status["foreign"] is not None)},
        catalog.PULSE: {_ONE: pulsing["pulse_s"]} if pulsing else {},
        catalog.PAIRS: {_ONE: pulsing["pairs"]} if pulsing else {},
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
        catalog.SCOPE_DELAY: _means(DELAY, active["baseline"], status["measured"]),
        catalog.SCOPE_PRESSURE: _means(PRESSURE, active["baseline"], status["measured"]),
        catalog.SCOPE_SHARE: _means(SHARE, active["baseline"], status["measured"]),
        catalog.SCOPE_METRIC: _means(METRIC, active["baseline"], status["measured"]),
    }


def _means(name: str, *spreads: Mapping[str, Any]) -> dict[Labels, float]:
    measured = zip(catalog.WHEN, (spread.get(name) for spread in spreads), strict=True)
    return {(when,): spread["mean"] for when, spread in measured if spread and spread["count"]}


@dataclass
class KernelPart:
    """What the kernel itself shows of sched_ext, whether schedagentd runs or not."""

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
        self.run_queue.read()
        return {
            catalog.PSI: self._pressure(),
            catalog.DELAY: self.run_queue.histogram,
            catalog.THREADS: {_ONE: self.run_queue.threads},
            catalog.SAMPLED: {_ONE: self.run_queue.sampled},
        }

    def _pressure(self) -> dict[Labels, float]:
        """Lines such as "some avg10=0.00 avg60=0.00 avg300=0.00 total=12345" (Documentation/accounting/psi.rst).

        A kernel that was booted without psi=1 may have none; then there are no series.
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
        totals = self.reader.read()
        return {
            catalog.RUNS: _named(totals.runs),
            catalog.DERIVED_POLICIES: _named(totals.derived),
            catalog.SAMPLES: {_ONE: totals.samples},
            **_verified(totals),
            **_judged(totals),
            **_recommended(totals),
        }


def _verified(totals: RepositoryTotals) -> Readings:
    gates: dict[Labels, float] = {}
    for (gate, status), count in totals.verified.gates.items():
        gates[word(gate), word(status)] = count
    return {
        catalog.VERIFICATIONS: _named(totals.verified.results),
        catalog.GATE_RESULTS: gates,
        catalog.GATE_SECONDS: {(word(gate),): seconds for gate, seconds in totals.verified.seconds.items()},
    }


def _recommended(totals: RepositoryTotals) -> Readings:
    """What the agent service recommends; moments that have not come have no series."""
    recommendations: dict[Labels, float] = dict(totals.recommendations.items())
    return {
        catalog.RECOMMENDATIONS: recommendations,
        catalog.REQUESTS: _named(totals.requests),
        catalog.QUEUED_SINCE: {_ONE: totals.queued_since} if totals.queued_since else {},
        catalog.LAST_READING: {_ONE: totals.last_reading_at} if totals.last_reading_at else {},
    }


def _judged(totals: RepositoryTotals) -> Readings:
    ratios = Histogram(RATIO_BOUNDS)
    for ratio in totals.ratios:
        ratios.add(ratio)
    best: dict[Labels, float] = {}
    for policy, ratio in totals.best.items():
        labels = (policy if policy in catalog.POLICIES else OTHER,)
        best[labels] = min(ratio, best.get(labels, ratio))
    return {
        catalog.VERDICTS: {(policy, word(outcome)): count for (policy, outcome), count in totals.verdicts.items()},
        catalog.RATIO: ratios,
        catalog.BEST: best,
    }
