"""All numbers that a workload wants read from one run's output, and what is shown of them once it was observed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from schedagent.core.readings.metric import Reading, Units, clean, find, unmatched
from schedagent.core.trials.objective import Metric
from schedagent.core.trials.workload import WorkloadCommand

WALL_TIME = "wall time"
"""Name of the objective where no number of the output is."""

UNNAMED = "the metric"
"""Name of an objective that is a number of the output without a name."""


class RunValues(NamedTuple):
    """What one run printed.

    Args:
        objective: what is compared; None if that is the wall time.
        named: every named number, in base units; nan for one that the run did not print.
    """

    objective: float | None
    named: Mapping[str, float]


class OutputReader:
    """Reads the runs of one workload, and holds them to the units of the first."""

    def __init__(self, workload: WorkloadCommand) -> None:
        self._workload = workload
        self._units = Units()

    def read(self, output: str, *, strict: bool) -> RunValues:
        """Return the numbers of one run.

        Args:
            strict: whether all of them must be there, as under the default scheduler; else only the objective.

        Raises:
            MetricError: one is missing, is no number that can be compared, came in another unit than before, or its
                expression took too long.
        """
        workload, text = self._workload, clean(output)
        objective = self._value(text, objective_label(workload), workload.metric) if workload.metric else None
        named = {workload.objective: objective} if objective is not None and workload.objective else {}
        for label, metric in further(workload):
            named[metric.name] = self._value(text, label, metric.expression, needed=strict)
        return RunValues(objective, named)

    def _value(self, text: str, label: str, expression: str, *, needed: bool = True) -> float:
        reading = find(expression, text, label)
        if reading:
            return self._units.check(label, reading).value
        if needed:
            raise unmatched(label, expression, text)
        return math.nan


def further(workload: WorkloadCommand) -> Iterator[tuple[str, Metric]]:
    """Yield the numbers besides the objective, each with what it is called in a message."""
    yield from ((f"--metric {metric.name}", metric) for metric in workload.metrics)
    yield from ((f"--guard {guard.metric.name}", guard.metric) for guard in workload.guards)


def objective_label(workload: WorkloadCommand) -> str:
    """Return what the objective's expression is called in a message."""
    if workload.preset:
        return f"--preset {workload.preset} ({workload.objective})"
    return f"--metric {workload.objective}".rstrip()


def first_readings(workload: WorkloadCommand, output: str) -> list[tuple[str, Reading]]:
    """Return what was read from the first run, each number by its name.

    Raises:
        MetricError: as OutputReader.read, strict.
    """
    OutputReader(workload).read(output, strict=True)
    text = clean(output)
    wanted = [(workload.objective or UNNAMED, workload.metric)] if workload.metric else []
    wanted += [(metric.name, metric.expression) for _label, metric in further(workload)]
    return [(name, reading) for name, expression in wanted if (reading := find(expression, text, name))]


def reading_of(metric: Metric, text: str) -> Reading | None:
    """Return what a metric finds in a cleaned output, None if it does not match; raises as `find`."""
    return find(metric.expression, text, metric.name)
