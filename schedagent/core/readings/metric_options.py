"""What is compared, as the user says it in words: --metric, --guard, --objective, --goal and --preset. Pure.

    --metric 'p99: ([0-9.]+)' --goal latency                       the short form: one number, without a name
    --metric 'p99=p99: ([0-9.]+):lower'                            NAME=REGEX:DIRECTION, as often as needed
    --guard 'rps=rps: ([0-9.]+):higher:5%'                         NAME=REGEX:DIRECTION:MARGIN
    --guard 'requests/s:20%'                                       another margin for a guard of the preset

`as_options` is the way back.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from schedagent.core.errors import UsageError
from schedagent.core.process.shell_text import quoted
from schedagent.core.readings.metric import problem_of
from schedagent.core.readings.presets import NO_PRESET, Preset, comparing, find_preset, with_preset
from schedagent.core.readings.readings import WALL_TIME
from schedagent.core.trials.objective import Direction, Guard, Metric
from schedagent.core.trials.workload import DEFAULT_SHELL, Goal, WorkloadCommand

_DIRECTIONS = ", ".join(Direction)
_NAMED = re.compile(r"(?P<name>[^=()\[\]\\^]*)=(?P<expression>.*):(?P<direction>\w+)", re.DOTALL)
_GUARD = re.compile(r"(?P<name>[^=()\[\]\\^]*)=(?P<expression>.*):(?P<direction>\w+):(?P<margin>[^:]*)", re.DOTALL)
_MARGIN = re.compile(r"(?P<percent>\d+(?:\.\d+)?) ?%", re.ASCII)
_NAME = re.compile(r"\w[\w /.%+-]{0,39}")
_METRIC_FORM = "write NAME=REGEX:lower or NAME=REGEX:higher, for example 'p99=p99: ([0-9.]+):lower'"
_GUARD_FORM = "write NAME=REGEX:DIRECTION:MARGIN, for example 'rps=rps: ([0-9.]+):higher:5%'"


@dataclass(frozen=True)
class Comparison:
    """What the user said of what is compared; each empty if nothing was said.

    Args:
        metrics: of --metric, in either form.
        guards: of --guard.
        objectives: of --objective; more than one is refused.
        goal: of --goal.
        preset: of --preset.
    """

    metrics: Sequence[str] = ()
    guards: Sequence[str] = ()
    objectives: Sequence[str] = ()
    goal: str = ""
    preset: str = ""

    @property
    def leaves_open(self) -> bool:
        """Whether the output may decide what is compared."""
        return not (self.metrics or self.objectives or self.goal or self.preset)


def measured(workload: WorkloadCommand, comparison: Comparison) -> WorkloadCommand:
    """Return the workload with what is compared, watched and guarded.

    Raises:
        UsageError: what was asked for cannot be used, or contradicts itself.
    """
    goal = _goal(comparison.goal)
    preset = find_preset(comparison.preset) if comparison.preset not in ("", NO_PRESET) else None
    plain = [text for text in comparison.metrics if not _is_named(text)]
    named = [_metric(text) for text in comparison.metrics if _is_named(text)]
    guards = tuple(_guard(text, preset) for text in comparison.guards)
    _refuse_same_names([*named, *(guard.metric for guard in guards)])
    _refuse_two(plain, named, comparison.objectives, preset)
    workload = replace(workload, metrics=tuple(named), guards=guards)
    if preset:
        return _with_goal(_of_preset(workload, preset, comparison.objectives), goal)
    if plain:
        return replace(workload, goal=goal or Goal.MAKESPAN, metric=_plain(plain[0]))
    objective = _chosen(named, comparison.objectives)
    if objective:
        return _with_goal(_promoted(workload, objective), goal)
    if goal not in (None, Goal.MAKESPAN):
        raise UsageError(
            f"--goal {goal} needs --metric",
            "give a regular expression that finds the number in the output, for example --metric 'p99: ([0-9.]+)'",
        )
    return workload


def as_options(workload: WorkloadCommand) -> list[str]:
    """Return the words of a command line that `measured` turns into what this workload compares and guards."""
    words: list[str] = []
    if workload.preset:
        words += ["--preset", workload.preset]
    elif workload.objective:
        direction = Direction.LOWER if workload.goal.lower_is_better else Direction.HIGHER
        words += ["--metric", _written(Metric(workload.objective, workload.metric, direction))]
        words += ["--objective", workload.objective] if workload.metrics else []
    elif workload.metric:
        words += ["--metric", workload.metric]
        words += ["--goal", workload.goal.value] if workload.goal is not Goal.MAKESPAN else []
    elif workload.metrics:
        words += ["--objective", WALL_TIME]
    words += [word for metric in workload.metrics for word in ("--metric", _written(metric))]
    preset = find_preset(workload.preset) if workload.preset else None
    own = [guard for guard in workload.guards if preset is None or guard not in preset.guards]
    for guard in own:
        words += ["--guard", f"{_written(guard.metric)}:{100 * guard.margin:g}%"]
    options = {"--shell": workload.shell, "--setup": workload.setup, "--cleanup": workload.cleanup}
    words += [word for name, text in options.items() if text not in ("", DEFAULT_SHELL) for word in (name, text)]
    return [*words, "--ignore-failure"] if workload.ignore_failure else words


def _written(metric: Metric) -> str:
    return f"{metric.name}={metric.expression}:{metric.direction}"


# --- reading one option -----------------------------------------------------------------------------------------------


def _is_named(text: str) -> bool:
    """Whether --metric has its long form; a misspelt direction is refused rather than taken for an expression."""
    named = _NAMED.fullmatch(text)
    if named is None:
        if re.search(r":(?:lower|higher)$", text):
            raise UsageError(f"--metric {quoted(text)} has a direction, but no name", _METRIC_FORM)
        return False
    if named["direction"] in list(Direction):
        return True
    if difflib.get_close_matches(named["direction"].lower(), [*Direction, "high", "low"], n=1, cutoff=0.75):
        raise UsageError(
            f"--metric {quoted(text)}: the direction {named['direction']!r} is not known", f"accepted: {_DIRECTIONS}"
        )
    return False


def _metric(text: str) -> Metric:
    parts = _NAMED.fullmatch(text)
    assert parts is not None, "see _is_named"
    return _checked(parts, f"--metric {quoted(text)}")


def _guard(text: str, preset: Preset | None) -> Guard:
    parts = _GUARD.fullmatch(text)
    if parts is None:
        return _known_guard(text, preset)
    where = f"--guard {quoted(text)}"
    if parts["direction"] not in list(Direction):
        raise UsageError(f"{where}: the direction {parts['direction']!r} is not known", f"accepted: {_DIRECTIONS}")
    return Guard(_checked(parts, where), _margin(parts["margin"], where))


def _known_guard(text: str, preset: Preset | None) -> Guard:
    """Return a guard of the preset with another margin."""
    where = f"--guard {quoted(text)}"
    name, colon, margin = text.rpartition(":")
    if "=" in text and re.search(r":(?:lower|higher)$", text):
        raise UsageError(f"{where} has no margin", _GUARD_FORM)
    if "=" in name or not colon or not margin.strip().endswith("%"):
        raise UsageError(f"{where} is not a guard", _GUARD_FORM)
    known = {guard.metric.name: guard.metric for guard in preset.guards} if preset else {}
    if name not in known:
        of = f"preset {preset.name} has no guard {name!r}" if preset else "NAME:MARGIN is for a guard of a --preset"
        raise UsageError(f"{where}: {of}", f"it has: {', '.join(known)}" if known else _GUARD_FORM)
    return Guard(known[name], _margin(margin, where))


def _margin(text: str, where: str) -> float:
    number = _MARGIN.fullmatch(text.strip())
    if number is None:
        raise UsageError(f"{where}: the margin {text!r} is not a percentage", "accepted: above 0 %, at most 100 %: 5%")
    margin = float(number["percent"]) / 100
    if not 0 < margin <= 1:
        raise UsageError(f"{where}: a margin of {text.strip()} cannot be used", "accepted: above 0 %, at most 100 %")
    return margin


def _checked(parts: re.Match[str], where: str) -> Metric:
    """Return the number that an option names, if it can be used."""
    name = parts["name"].strip()
    if not _NAME.fullmatch(name) or name == WALL_TIME:
        raise UsageError(
            f"{where}: {name!r} cannot be a name",
            "begin with a letter or digit; at most 40 of those, spaces, / . % + -",
        )
    problem, hint = problem_of(parts["expression"], group_needed=True)
    if problem:
        raise UsageError(f"{where}: {quoted(parts['expression'])} {problem}", hint)
    return Metric(name, parts["expression"], Direction(parts["direction"]))


def _plain(expression: str) -> str:
    problem, hint = problem_of(expression)
    if problem:
        raise UsageError(f"--metric {quoted(expression)} {problem}", hint)
    return expression


def _goal(text: str) -> Goal | None:
    if not text:
        return None
    try:
        return Goal(text)
    except ValueError:
        close = difflib.get_close_matches(text, [value.value for value in Goal], n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(f"--goal {text!r} is not known", hint + "accepted: makespan, latency, throughput") from None


# --- what belongs together --------------------------------------------------------------------------------------------


def _refuse_same_names(metrics: Sequence[Metric]) -> None:
    seen: dict[str, Metric] = {}
    for metric in metrics:
        earlier = seen.setdefault(metric.name, metric)
        if earlier is metric:
            continue
        if earlier.direction is not metric.direction:
            raise UsageError(
                f"{metric.name} is better lower in one option and higher in another", "give each number one direction"
            )
        raise UsageError(f"the name {metric.name} is given twice", "give each number a name of its own")


def _refuse_two(
    plain: Sequence[str], named: Sequence[Metric], objectives: Sequence[str], preset: Preset | None
) -> None:
    """Refuse two objectives."""
    advice = "one is compared; the others need a name, NAME=REGEX:lower or :higher, and --objective NAME chooses"
    if len(objectives) > 1:
        raise UsageError(
            f"two objectives: {' and '.join(objectives)}", "give --objective once; guard the other: --guard"
        )
    if len(plain) > 1:
        raise UsageError(f"two objectives: {' and '.join(map(quoted, plain))}", advice)
    if plain and (named or objectives):
        other = objectives[0] if objectives else named[0].name
        raise UsageError(f"two objectives: {quoted(plain[0])} and {other}", advice)
    if plain and preset:
        raise UsageError(f"two objectives: {quoted(plain[0])} and that of --preset {preset.name}", advice)


def _chosen(named: Sequence[Metric], objectives: Sequence[str]) -> Metric | None:
    """Return the named number that is compared; None for the wall time."""
    if not objectives:
        if len(named) > 1:
            names = " and ".join(metric.name for metric in named)
            raise UsageError(f"two objectives: {names}", f"choose one: --objective {quoted(named[0].name)}")
        return named[0] if named else None
    [name] = objectives
    if name == WALL_TIME:
        return None
    by_name = {metric.name: metric for metric in named}
    if name not in by_name:
        raise _unknown_objective(name, [*by_name, WALL_TIME])
    return by_name[name]


def _unknown_objective(name: str, known: Sequence[str]) -> UsageError:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"accepted: {', '.join(known)}"
    return UsageError(f"--objective {name!r} is not the name of a --metric", hint)


def _promoted(workload: WorkloadCommand, objective: Metric) -> WorkloadCommand:
    """Return the workload with one of its named numbers as the objective."""
    others = tuple(metric for metric in workload.metrics if metric is not objective)
    return comparing(replace(workload, metrics=others), objective)


def _of_preset(workload: WorkloadCommand, preset: Preset, objectives: Sequence[str]) -> WorkloadCommand:
    """Return the workload with a preset, whose objective is compared: it is what its guards go with."""
    name = preset.objective.name if preset.objective else WALL_TIME
    if any(metric.name == name for metric in (*workload.metrics, *(guard.metric for guard in workload.guards))):
        raise UsageError(f"the name {name} is that of the objective of --preset {preset.name}", "choose another name")
    if objectives and objectives[0] != name:
        raise UsageError(
            f"two objectives: {objectives[0]}, and {name} of --preset {preset.name}",
            "leave out --preset, and give what it guards with --guard",
        )
    return with_preset(workload, preset)


def _with_goal(workload: WorkloadCommand, goal: Goal | None) -> WorkloadCommand:
    """Return the workload; refuse a goal that says the opposite of the objective's direction."""
    if goal is None or goal is workload.goal:
        return workload
    if workload.preset and Goal.MAKESPAN in (goal, workload.goal):
        compared = workload.objective or f"the {WALL_TIME}"
        raise UsageError(f"--goal {goal} contradicts --preset {workload.preset}, which compares {compared}")
    if goal.lower_is_better is not workload.goal.lower_is_better:
        better = "lower" if workload.goal.lower_is_better else "higher"
        raise UsageError(
            f"--goal {goal} contradicts {workload.objective}, which is better {better}", "leave out --goal"
        )
    return workload
