"""What the user typed, checked before anything starts: every refusal says what was wrong and what to do."""

from __future__ import annotations

import difflib
import re
import shlex
import shutil
from pathlib import Path

from schedagent.core.errors import UsageError
from schedagent.core.workload import Goal, WorkloadCommand

_SHELL_WORDS = "if for while until case { ( ! . : [ [[ cd exec export set eval source time test true false"
_SHELL_SYNTAX = re.compile(r"[|&;<>()$`{}*?\[\]]|^\w+=")


def read_workload(
    command: str, directory: Path, goal: str, prepare: str, metric: str, timeout_s: float
) -> WorkloadCommand:
    """Return the workload, or raise UsageError."""
    if not command.strip():
        raise UsageError("--workload is empty", 'give the command to optimise, for example --workload "make -j"')
    if "\0" in command + prepare:
        raise UsageError("--workload and --prepare cannot contain NUL bytes")
    place = _directory(directory)
    for text, option in ((command, "--workload"), (prepare, "--prepare")):
        _require_program(text, option, place)
    return WorkloadCommand(
        command=command,
        directory=str(place),
        goal=_goal(goal, metric),
        prepare=prepare,
        metric=_metric(metric),
        timeout_s=timeout_s,
    )


def _directory(directory: Path) -> Path:
    place = directory.expanduser().absolute()
    if not place.exists():
        raise UsageError(f"directory {place} does not exist", "check --dir")
    if not place.is_dir():
        raise UsageError(f"{place} is not a directory", "check --dir")
    return place.resolve()


def _require_program(command: str, option: str, place: Path) -> None:
    """Refuse a command whose program does not exist, as far as can be told without running a shell."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"{option} {command!r} is not a shell command: {error}", "check the quotes") from None
    if not words or words[0] in _SHELL_WORDS.split() or _SHELL_SYNTAX.search(words[0]):
        return
    program = words[0]
    found = (place / program).exists() if "/" in program else shutil.which(program)
    if not found:
        raise UsageError(
            f"{option}: there is no program {program!r}",
            f"install it, or check the spelling; looked in {place} and PATH",
        )


def _goal(goal: str, metric: str) -> Goal:
    try:
        chosen = Goal(goal)
    except ValueError:
        close = difflib.get_close_matches(goal, [value.value for value in Goal], n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(f"--goal {goal!r} is not known", hint + "accepted: makespan, latency, throughput") from None
    if chosen is not Goal.MAKESPAN and not metric:
        raise UsageError(
            f"--goal {chosen.value} needs --metric",
            "give a regular expression that finds the number in the output, for example --metric 'p99: ([0-9.]+)'",
        )
    return chosen


def _metric(expression: str) -> str:
    try:
        groups = re.compile(expression).groups
    except re.error as error:
        raise UsageError(
            f"--metric {expression!r} is not a regular expression: {error}", "quote it for the shell"
        ) from None
    if groups > 1:
        raise UsageError(
            f"--metric {expression!r} has {groups} groups", "put ( ) around the one number; use (?: ) elsewhere"
        )
    return expression
