"""How to repeat a run: the command that started it, as a shell takes it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from schedagent.core.process.shell_text import quoted
from schedagent.core.readings.metric_options import as_options
from schedagent.core.trials.judge import TrialRules
from schedagent.core.trials.trial import ON_HOST
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.report.report import Report

_NUMBERS = {"iterations": ("--iterations", 2), "candidates": ("--candidates", 3), "warmup": ("--warmup", 1)}
"""Options of a run that are whole numbers, with what they are by default."""
_BUDGET_S, _MINUTE_S = 1800.0, 60


def repeat_command(report: Report) -> str:
    """Return the command that does a run again; options that the run left as they are by default are not in it."""
    workload = report.workload
    if report.options.get("experiment"):
        return " ".join(["schedagent", "experiment", *map(_word, _experiment(report))])
    words = ["--dir", workload.directory, *(["--prepare", workload.prepare] if workload.prepare else [])]
    words += [*as_options(workload), *_bounds(report), *_schedulers(report), workload.command]
    verb = "compare" if report.options.get("compare") else "optimize"
    return " ".join(["schedagent", verb, *map(_word, words)])


def _experiment(report: Report) -> Iterator[str]:
    """Yield the words of an experiment, all of them: what it left as it is by default may have another default then."""
    wanted: dict[str, Any] = report.options["experiment"]
    kind, name = wanted["scope"]
    yield from (f"--{kind}", name)
    metric = wanted["metric"]
    if metric["kind"] != "counters":
        place = () if metric["kind"] == "command" else (metric["place"],)
        yield from (f"--metric-{metric['kind']}", *place, metric["text"])
        yield from ("--better", wanted["direction"])
    for guard in wanted["guards"]:
        source = guard["source"]
        bound = f"{guard['direction']}:{100 * guard['margin']:g}%"
        yield from (f"--guard-{source['kind']}", f"{guard['name']}={source['text']}:{bound}")
    servers = {guard["source"]["place"] for guard in wanted["guards"] if guard["source"]["kind"] == "query"}
    for server in sorted(servers - {metric["place"]}):
        yield from ("--prometheus", server)
    for named in report.options.get("schedulers", ()):
        yield from ("--policy", named.get("path") or named["policy"])
    for option, field in (("--window", "window_s"), ("--wash-out", "wash_out_s"), ("--for", "for_s")):
        yield from (option, f"{wanted[field]:g}s")


def _schedulers(report: Report) -> Iterator[str]:
    """Yield what was named, so that it is what is named again wherever it is typed."""
    for named in report.options.get("schedulers", ()):
        program = named.get("program")
        argv = [program["path"], *program["arguments"]] if program else [named.get("path") or named["policy"]]
        yield from ("--scheduler", shlex.join(argv))
    for folder in report.options.get("include", ()):
        yield from ("--include", folder)


def _word(text: str) -> str:
    """Return a word for a shell, in one printable line."""
    return shlex.quote(text) if text.isprintable() else quoted(text)


def _bounds(report: Report) -> Iterator[str]:
    options = report.options
    if report.workload.timeout_s != WorkloadCommand.timeout_s:
        yield from ("--timeout", f"{report.workload.timeout_s:g}")
    planned = ("iterations", "candidates") if options.get("compare") else ()
    for name, (option, default) in _NUMBERS.items():
        if name not in planned and options.get(name, default) != default:
            yield from (option, str(options[name]))
    rules: dict[str, Any] = options.get("rules", {})
    if rules.get("minimum_pairs", TrialRules.minimum_pairs) != TrialRules.minimum_pairs:
        yield from ("--min-pairs", str(rules["minimum_pairs"]))
    if options.get("budget_s", _BUDGET_S) != _BUDGET_S:
        yield from ("--budget-minutes", f"{options['budget_s'] / _MINUTE_S:g}")
    if report.hardware.lab == ON_HOST:
        yield from ("--on", ON_HOST)
        return
    yield from ("--cpus", str(report.hardware.cpus))
    yield from ("--memory", f"{report.hardware.memory_mib}M")
