"""One kind of figure: its name, what it means, and every value that its labels may have. Pure.

The values of a label are listed beforehand, so the number of series cannot grow with what happens on a machine:
a value that is not on the list is counted as "other", or is a mistake where there is no such entry.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import accumulate, product

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

OTHER = "other"


class MetricKind(StrEnum):
    """Prometheus' types of metrics."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Histogram:
    """How often values were seen, by size.

    Args:
        bounds: upper bounds of the buckets, rising; one without a bound is added.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds as text, and how many values are not above them."""
        names = [str(bound) for bound in self.bounds] + ["+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


Labels = tuple[str, ...]
Values = Mapping[Labels, float] | Histogram
"""Of one family: by the values of its labels in their order, () if it has none."""


@dataclass(frozen=True, eq=False)
class Family:
    """One metric of the exporter.

    Args:
        name: as it is scraped, with unit and `_total`.
        text: what it means, in one sentence.
        labels: the accepted values of each label.
        sparse: only series that have a value are shown; else all of them are, and start at 0, so that the first event
            of a kind is an increase.
    """

    name: str
    kind: MetricKind
    text: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sparse: bool = False

    def metric(self, values: Values) -> Metric:
        """Return what prometheus_client writes down."""
        if isinstance(values, Histogram):
            metric = HistogramMetricFamily(self.name, self.text)
            metric.add_metric([], buckets=values.buckets(), sum_value=values.sum)
            return metric
        family = CounterMetricFamily if self.kind is MetricKind.COUNTER else GaugeMetricFamily
        collected = family(self.name, self.text, labels=list(self.labels))
        for labels, value in self._series(values):
            collected.add_metric(labels, value)
        return collected

    def empty(self) -> Metric:
        """Without any series: what describes it."""
        if self.kind is MetricKind.HISTOGRAM:
            return HistogramMetricFamily(self.name, self.text)
        return replace(self, sparse=True).metric({})

    def _series(self, values: Mapping[Labels, float]) -> Iterable[tuple[Labels, float]]:
        accepted: Counter[Labels] = Counter()
        for labels, value in values.items():
            accepted[tuple(map(self._accept, self.labels, labels))] += value  # type: ignore[assignment]
        shown = accepted if self.sparse else product(*self.labels.values())
        return [(labels, accepted[labels]) for labels in shown]

    def _accept(self, label: str, value: str) -> str:
        if value in self.labels[label]:
            return value
        if OTHER in self.labels[label]:
            return OTHER
        raise ValueError(f"{self.name} has no {label} {value!r}")
