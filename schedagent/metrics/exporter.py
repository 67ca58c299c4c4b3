"""All parts together, as prometheus_client collects them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from agents.llm.budget import Budget
from repo_store.totals import RepositoryReader
from schedagent import __version__
from schedagent.client.daemon import SOCKET, DaemonClient
from schedagent.core.errors import SchedagentError
from schedagent.core.settings import Settings
from schedagent.metrics import catalog
from schedagent.metrics.catalog import FAMILIES
from schedagent.metrics.family import Labels
from schedagent.metrics.models import ModelPart
from schedagent.metrics.parts import DaemonPart, HostPart, KernelPart, Part, Readings, RepositoryPart

log = logging.getLogger(__name__)

PATIENCE_S = 3.0
"""How long schedagentd may take to answer: Prometheus waits for ten seconds in all."""
FRESH_S = 1.0
"""A second scrape within this time gets the same values, so that scraping often costs little."""


class Exporter(Collector):
    """Reads every part when it is scraped; a part that cannot be read is down, the others are not.

    Args:
        parts: what to read.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._lock = threading.Lock()
        self._errors: Counter[Labels] = Counter({(part.name,): 0 for part in parts})
        self._up: dict[Labels, float] = {}
        self._collected: list[Metric] = []
        self._collected_at = float("-inf")

    def describe(self) -> Iterable[Metric]:
        """Every family, without its values."""
        return [family.empty() for families in FAMILIES.values() for family in families]

    def collect(self) -> list[Metric]:
        """Read all parts, unless that was done a moment ago."""
        with self._lock:
            if time.monotonic() - self._collected_at >= FRESH_S:
                self._collected = list(self._read_all())
                self._collected_at = time.monotonic()
            return self._collected

    def _read_all(self) -> Iterable[Metric]:
        seconds: dict[Labels, float] = {}
        for part in self._parts:
            begun = time.monotonic()
            yield from self._read(part)
            seconds[(part.name,)] = time.monotonic() - begun
        yield catalog.UP.metric(self._up)
        yield catalog.SCRAPE_DURATION.metric(seconds)
        yield catalog.SCRAPE_ERRORS.metric(self._errors)
        yield catalog.BUILD_INFO.metric({(__version__,): 1.0})

    def _read(self, part: Part) -> list[Metric]:
        """The part's families; none if it fails, which is logged when it begins to."""
        label, before = (part.name,), self._up.get((part.name,), 1.0)
        try:
            metrics = _metrics(part.name, part.read())
        except Exception as error:
            self._up[label] = 0.0
            self._errors[label] += 1
            if before:
                expected = isinstance(error, SchedagentError)
                log.warning("%s cannot be read: %s", part.name, error, exc_info=not expected)
            return []
        self._up[label] = 1.0
        return metrics


def _metrics(part: str, readings: Readings) -> list[Metric]:
    return [family.metric(readings[family]) if family in readings else family.empty() for family in FAMILIES[part]]


def build_registry(parts: Sequence[Part]) -> CollectorRegistry:
    """Return what is scraped."""
    registry = CollectorRegistry()
    registry.register(Exporter(parts))
    return registry


def to_json(registry: CollectorRegistry) -> dict[str, Any]:
    """Return what a scrape gets as JSON values; a number that JSON lacks (NaN, an infinity) is null."""
    return {
        "metrics": [
            {
                "name": family.name,
                "type": family.type,
                "help": family.documentation,
                "samples": [
                    {
                        "name": sample.name,
                        "labels": sample.labels,
                        "value": sample.value if math.isfinite(sample.value) else None,
                    }
                    for sample in family.samples
                ],
            }
            for family in registry.collect()
        ]
    }


def machine_parts(settings: Settings, daemon: Path = SOCKET) -> list[Part]:
    """The parts of this machine and of the state folder.

    Args:
        daemon: socket of schedagentd.
    """
    repository = RepositoryReader(settings.repository_path)
    return [
        DaemonPart(DaemonClient(daemon, PATIENCE_S)),
        KernelPart(),
        HostPart(),
        RepositoryPart(repository),
        ModelPart(settings.state_dir, repository, Budget.of(settings).limits),
    ]
