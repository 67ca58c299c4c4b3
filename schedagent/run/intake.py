"""What the user typed, checked before anything starts: every refusal names what was wrong and what to do."""

from __future__ import annotations

import difflib
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from schedagent.core.errors import UsageError
from schedagent.core.process import proc
from schedagent.core.process.shell_text import quoted
from schedagent.core.trials.workload import Goal, WorkloadCommand

_SHELL_SYNTAX = re.compile(r"[|&;<>()$`{}*?\[\]#\"'\\]|^\w+=")
_SHELL_LIMIT_S = 10.0


def command_of(words: Sequence[str], workload: str | None) -> str:
    """Return the shell command that somebody wants optimised.

    Args:
        words: as they stood on the command line; a single word is shell text, several are quoted for the shell.
        workload: the same as --workload gives it; None without it.

    Raises:
        UsageError: it is given in both ways, or in none.
    """
    if words and workload is not None:
        raise UsageError(f"the workload is given twice: {shlex.join(words)}, and --workload {workload!r}", _ONE_WAY)
    if workload is not None:
        return workload
    if not words:
        raise UsageError("no workload is given", _ONE_WAY)
    return words[0] if len(words) == 1 else shlex.join(words)


_ONE_WAY = 'give the command once: schedagent optimize "make -j", or with --workload "make -j"'


def read_workload(
    command: str, directory: Path, goal: str, prepare: str, metric: str, timeout_s: float
) -> WorkloadCommand:
    """Return the workload, or raise UsageError."""
    if not command.strip():
        raise UsageError("--workload is empty", 'give the command to optimise, for example --workload "make -j"')
    if not math.isfinite(timeout_s):
        raise UsageError(f"--timeout {timeout_s} is not a number of seconds")
    for text, option in (
        (command, "--workload"),
        (str(directory), "--dir"),
        (prepare, "--prepare"),
        (metric, "--metric"),
    ):
        _require_text(text, option)
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


def _require_text(text: str, option: str) -> None:
    """Refuse what could not be stored or run: NUL, and bytes that are not UTF-8 (surrogates stand for them)."""
    if "\0" in text:
        raise UsageError(f"{option} contains a NUL byte")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{option} {text!a} is not UTF-8 text") from None


def _directory(directory: Path) -> Path:
    try:
        place = directory.expanduser().absolute()
        if not place.exists():
            raise UsageError(f"directory {place} does not exist", "check --dir")
        if not place.is_dir():
            raise UsageError(f"{place} is not a directory", "check --dir")
        return place.resolve()
    except OSError as error:
        raise UsageError(f"directory {directory} cannot be used: {error.strerror}", "check --dir") from None
    except RuntimeError:  # a ~name that is no user's
        raise UsageError(f"directory {directory} does not exist", "check --dir") from None


def _require_program(command: str, option: str, place: Path) -> None:
    """Refuse what the shell would refuse before it runs anything: bad syntax, a first word that it does not know."""
    parsed = proc.run(["/bin/sh", "-n", "-c", command], timeout_s=_SHELL_LIMIT_S)
    if parsed.returncode != 0:
        complaint = parsed.stderr.decode(errors="replace").strip()
        raise UsageError(f"{option} {quoted(command)} is not a shell command: {complaint}", "check the quotes")
    program = next(iter(command.split()), "")
    if not program or _SHELL_SYNTAX.search(program):
        return
    known = proc.run(["/bin/sh", "-c", 'command -v -- "$1"', "sh", program], timeout_s=_SHELL_LIMIT_S, cwd=place)
    if known.returncode != 0:
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
            f"--metric {quoted(expression)} is not a regular expression: {error}", "quote it for the shell"
        ) from None
    if groups > 1:
        raise UsageError(
            f"--metric {quoted(expression)} has {groups} groups", "put ( ) around the one number; use (?: ) elsewhere"
        )
    return expression
