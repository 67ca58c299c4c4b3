"""Presets: what the field's own benchmarks print, which number of it is compared, and which must not get worse.

Each is a file of the folder `presets`, TOML:

    title        what is measured, for people
    output       regular expression that knows the tool by what it prints
    command      one that must match the command line as well; absent: what it prints is enough
    over         names of presets that also match its output, and are less exact
    hint         what to do if the tool is there and its objective is not
    [objective]  name, expression, direction (lower or higher); absent: the wall time
    [[guards]]   the same, and margin: how much worse it may get, in per cent

A tool is known by its output, not by the command line, which may name a script. So it is recognised at observation, and
a number that the observed run did not print is left out.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from schedagent.core.errors import MetricError, UsageError
from schedagent.core.readings.metric import clean, search, unmatched
from schedagent.core.readings.readings import WALL_TIME, first_readings, objective_label, reading_of
from schedagent.core.trials.objective import Direction, Guard, Metric
from schedagent.core.trials.workload import Goal, WorkloadCommand

PRESETS = Path(__file__).with_name("presets")
NO_PRESET = "none"
"""What --preset takes to turn them off."""


@dataclass(frozen=True)
class Preset:
    """One preset; see the module's docstring."""

    name: str
    title: str
    output: str
    objective: Metric | None = None
    guards: tuple[Guard, ...] = ()
    command: str = ""
    over: tuple[str, ...] = ()
    hint: str = ""


class Settled(NamedTuple):
    """A workload once its output is known.

    Args:
        workload: with the objective and the guards that its runs are read for.
        notes: what the user should know of it, one sentence each.
    """

    workload: WorkloadCommand
    notes: tuple[str, ...]


@functools.cache
def load_presets() -> Mapping[str, Preset]:
    """Return all presets by name."""
    import tomllib

    files = sorted(PRESETS.glob("*.toml"))
    return {file.stem: _read(file.stem, tomllib.loads(file.read_text(encoding="utf-8"))) for file in files}


def preset_names() -> list[str]:
    """Return their names."""
    return [file.stem for file in sorted(PRESETS.glob("*.toml"))]


def find_preset(name: str) -> Preset:
    """Return a preset; raise UsageError, with those that are close, if there is none of this name."""
    presets = load_presets()
    if name in presets:
        return presets[name]
    close = difflib.get_close_matches(name, [*presets, NO_PRESET], n=2)
    known = f"accepted: {', '.join(presets)}, or {NO_PRESET}"
    raise UsageError(f"--preset {name!r} is not known", f"did you mean {' or '.join(close)}?" if close else known)


def with_preset(workload: WorkloadCommand, preset: Preset) -> WorkloadCommand:
    """Return a workload that is compared and guarded as a preset says; the user's guards come first.

    A guard of the user's takes the place of the preset's that has its name.
    """
    own = {guard.metric.name for guard in workload.guards} | {metric.name for metric in workload.metrics}
    guards = (*workload.guards, *(guard for guard in preset.guards if guard.metric.name not in own))
    return replace(comparing(workload, preset.objective), preset=preset.name, guards=guards)


def settle(workload: WorkloadCommand, output: str, *, recognise: bool) -> Settled:
    """Return the workload as its trials read it, from the output of its first run.

    Args:
        output: the whole of it.
        recognise: whether a preset may choose what is compared.

    Raises:
        MetricError: a number that the user asked for is not there, or cannot be compared.
    """
    text = clean(output)
    notes: list[str] = []
    recognised = None
    if recognise and not workload.preset:
        recognised, note = _recognised(workload.command, text)
        notes += [note] if note else []
    if recognised:
        workload = with_preset(workload, recognised)
    workload, missing = _without_missing(workload, text)
    if recognised:
        notes.append(f"looks like {recognised.name}: {in_words(workload)} (to compare the wall time: --preset none)")
    if missing:
        notes.append(f"not printed, so not guarded: {joined(missing)}")
    readings = first_readings(workload, text)
    units = tuple((name, reading.kind) for name, reading in readings)
    return Settled(
        replace(workload, units=units), (*notes, *(f"{name}: {reading.shown}" for name, reading in readings))
    )


def in_words(workload: WorkloadCommand) -> str:
    """Return what of a workload is compared, and what must not get worse."""
    objective = workload.objective or ("the metric" if workload.metric else WALL_TIME)
    guards = [guard.metric.name for guard in workload.guards]
    return f"objective {objective}" + (f", guard{'s' * (len(guards) > 1)} {joined(guards)}" if guards else "")


def _recognised(command: str, text: str) -> tuple[Preset | None, str]:
    """Return the preset that command line and output fit, or a sentence on why none is taken although some do."""
    fitting = [preset for preset in load_presets().values() if _fits(preset, command, text)]
    less_exact = {name for preset in fitting for name in preset.over}
    chosen = [preset for preset in fitting if preset.name not in less_exact]
    if not chosen:
        return None, ""
    if len(chosen) > 1:
        names = [preset.name for preset in chosen]
        choice = " or --preset ".join(names)
        return None, f"looks like {joined(names)}: the wall time is compared, unless you choose --preset {choice}"
    [preset] = chosen
    if preset.objective and reading_of(preset.objective, text) is None:
        why = f"looks like {preset.name}, but did not print {preset.objective.name}: the wall time is compared"
        return None, f"{why} ({preset.hint})" if preset.hint else why
    return preset, ""


def _fits(preset: Preset, command: str, text: str) -> bool:
    try:
        return search(preset.output, text) and (not preset.command or search(preset.command, command))
    except MetricError:  # an output on which our expression takes too long is not this tool's
        return False


def _without_missing(workload: WorkloadCommand, text: str) -> tuple[WorkloadCommand, list[str]]:
    """Return the workload without the preset's guards that its output lacks, and their names.

    Raises:
        MetricError: something that the user asked for is missing.
    """
    preset = load_presets().get(workload.preset)
    optional = preset.guards if preset else ()
    missing = [guard for guard in workload.guards if reading_of(guard.metric, text) is None]
    if workload.metric and preset and not search(workload.metric, text):
        error = unmatched(objective_label(workload), workload.metric, text)
        raise MetricError(error.message, preset.hint or f"choose another preset, or --preset {NO_PRESET}")
    if any(guard not in optional for guard in missing):
        first_readings(workload, text)  # raises, with the end of the output
    kept = tuple(guard for guard in workload.guards if guard not in missing)
    return replace(workload, guards=kept), [guard.metric.name for guard in missing]


def comparing(workload: WorkloadCommand, objective: Metric | None) -> WorkloadCommand:
    """Return the workload with another objective; None for the wall time."""
    if objective is None:
        return replace(workload, goal=Goal.MAKESPAN, metric="", objective="")
    goal = Goal.LATENCY if objective.direction is Direction.LOWER else Goal.THROUGHPUT
    return replace(workload, goal=goal, metric=objective.expression, objective=objective.name)


def _read(name: str, table: Mapping[str, Any]) -> Preset:
    """Return a preset from its file; raises KeyError, ValueError or TypeError if that is not one (a test reads all)."""
    guards = tuple(Guard(_metric(guard), guard["margin"] / 100) for guard in table.get("guards", ()))
    objective = _metric(table["objective"]) if "objective" in table else None
    texts = {key: table[key] for key in ("title", "output", "command", "hint") if key in table}
    return Preset(name, objective=objective, guards=guards, over=tuple(table.get("over", ())), **texts)


def _metric(table: Mapping[str, Any]) -> Metric:
    return Metric(table["name"], table["expression"], Direction(table["direction"]))


def joined(names: list[str]) -> str:
    """Return names as a sentence lists them."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
