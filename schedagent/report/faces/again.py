"""How to repeat a run: the command that started it, as a shell takes it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from schedagent.core.trials.objective import Metric
from schedagent.core.trials.workload import DEFAULT_SHELL, Goal, WorkloadCommand
from schedagent.report.report import Report

_DEFAULTS = {"iterations": 2, "candidates": 3, "budget_s": 1800.0}
_MINUTE_S = 60


def repeat_command(report: Report) -> str:
    """Return the command that does a run again; options that the run left as they are by default are not in it."""
    words = [*_workload(report.workload), *_bounds(report), report.workload.command]
    return " ".join(["schedagent", "optimize", *map(shlex.quote, words)])


def _workload(workload: WorkloadCommand) -> Iterator[str]:
    yield from ("--dir", workload.directory)
    if workload.goal is not Goal.MAKESPAN:
        yield from ("--goal", workload.goal.value)
    for option, value in (
        ("--prepare", workload.prepare),
        ("--setup", workload.setup),
        ("--cleanup", workload.cleanup),
        ("--metric", workload.metric),
    ):
        if value:
            yield from (option, value)
    for metric in workload.metrics:
        yield from ("--metric", _named(metric))
    for guard in workload.guards:
        yield from ("--guard", f"{_named(guard.metric)}:{100 * guard.margin:g}%")
    if workload.shell != DEFAULT_SHELL:
        yield from ("--shell", workload.shell)
    if workload.ignore_failure:
        yield "--ignore-failure"
    if workload.timeout_s != WorkloadCommand.timeout_s:
        yield from ("--timeout", f"{workload.timeout_s:g}")


def _named(metric: Metric) -> str:
    return f"{metric.name}={metric.expression}:{metric.direction.value}"


def _bounds(report: Report) -> Iterator[str]:
    options = {**_DEFAULTS, **report.options}
    for name, option in (("iterations", "--iterations"), ("candidates", "--candidates")):
        if options[name] != _DEFAULTS[name]:
            yield from (option, str(options[name]))
    if options["budget_s"] != _DEFAULTS["budget_s"]:
        yield from ("--budget-minutes", f"{options['budget_s'] / _MINUTE_S:g}")
    yield from ("--cpus", str(report.hardware.cpus))
    yield from ("--memory", f"{report.hardware.memory_mib}M")
