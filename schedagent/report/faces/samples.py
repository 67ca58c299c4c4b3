"""Every run of every arm as CSV: one row a run, one column for each number that any run has."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping

from schedagent.core.terminal.printable import printable
from schedagent.core.trials.trial import Block, Sample
from schedagent.report.faces.remarks import arm_names
from schedagent.report.report import Report

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a cell that begins so for a formula, and an arm or a failure may be anybody's text."""


def samples_csv(report: Report) -> str:
    """Return all samples; times in seconds, other numbers as they were read, empty where a run has none."""
    names = arm_names(report)
    values = {
        name: None
        for iteration in report.iterations
        for block in iteration.blocks
        for sample in block.samples
        for name in sample.values
    }
    rows = [
        _row(report, plan, block, sample, names)
        for plan, iteration in enumerate(report.iterations, start=1)
        for block in iteration.blocks
        for sample in block.samples
    ]
    content = io.StringIO()
    columns = [*_FIXED, *(f"value {_cell(name)}" for name in values)]
    writer = csv.DictWriter(content, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return content.getvalue()


_FIXED = (
    *("run", "plan", "block", "warm_up", "arm", "key", "objective", "wall_s", "cpu_s", "calibration_ms", "started_at"),
    *("exit_status", "failure", "voluntary_switches", "involuntary_switches", "run_delay_s", "psi_cpu_s"),
    *("left_behind", "output_bytes", "full"),
)


def _row(report: Report, plan: int, block: Block, sample: Sample, names: Mapping[str, str]) -> dict[str, object]:
    row = {
        "run": report.run,
        "plan": plan,
        "block": block.number,
        "warm_up": int(block.number == 0),
        "arm": _cell(names.get(sample.arm, sample.arm)),
        "key": sample.arm,
        "objective": _number(sample.value),
        "wall_s": sample.wall_ns / 1e9,
        "cpu_s": sample.cpu_ns / 1e9,
        "calibration_ms": sample.calibration_ns / 1e6,
        "started_at": sample.started_at,
        "exit_status": "" if sample.exit_status is None else sample.exit_status,
        "failure": _cell(sample.failure),
        **{f"value {_cell(name)}": _number(value) for name, value in sample.values.items()},
    }
    return row | _usage(sample)


def _usage(sample: Sample) -> dict[str, object]:
    usage = sample.usage
    if usage is None:
        return {}
    return {
        "voluntary_switches": usage.voluntary_switches,
        "involuntary_switches": usage.involuntary_switches,
        "run_delay_s": sum(command.run_delay_ns for command in usage.commands) / 1e9,
        "psi_cpu_s": usage.psi_cpu_us / 1e6 if usage.psi_cpu_us >= 0 else "",
        "left_behind": _cell(" ".join(usage.left_behind)),
        "output_bytes": usage.output_bytes,
        "full": _cell(usage.full),
    }


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else ""


def _cell(text: str) -> str:
    shown = printable(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown
