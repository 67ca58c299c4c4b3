"""What the user typed, checked before anything starts: every refusal names what was wrong and what to do."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from schedagent.core.errors import UsageError
from schedagent.core.process import proc
from schedagent.core.process.shell_text import quoted
from schedagent.core.readings.metric_options import Comparison, measured
from schedagent.core.trials.workload import DEFAULT_SHELL, WorkloadCommand
from schedagent.run.options import RunOptions

_SHELL_SYNTAX = re.compile(r"[|&;<>()$`{}*?\[\]#\"'\\]|^\w+=")
_SHELL_LIMIT_S = 10.0
_SHELLS = ("ash", "bash", "dash", "ksh", "mksh", "sh", "zsh")
"""Those that take -n, which only checks a command, and `command -v`."""


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


@dataclass(frozen=True)
class Around:
    """What is done around the runs of a workload, and how; see WorkloadCommand.

    Args:
        prepare, setup, cleanup: shell commands; empty for none.
        shell: a program of PATH, or its path.
        ignore_failure: whether runs that end with another status than 0 count.
    """

    prepare: str = ""
    setup: str = ""
    cleanup: str = ""
    shell: str = DEFAULT_SHELL
    ignore_failure: bool = False


@dataclass(frozen=True)
class Description:
    """A workload in the user's words.

    Args:
        command: the shell command.
        directory: where it runs.
        asked: what is compared and guarded.
        around: what is done around its runs.
        timeout_s: longest time of one run.
    """

    command: str
    directory: Path
    comparison: Comparison = field(default_factory=Comparison)
    around: Around = field(default_factory=Around)
    timeout_s: float = 900.0


def planned_run(described: Description, options: RunOptions) -> tuple[WorkloadCommand, RunOptions]:
    """Return the workload, and the options of its run: whether its output may choose what is compared is one of them.

    Raises:
        UsageError: something in the description cannot be used.
    """
    return read_workload(described), replace(options, recognise=described.comparison.leaves_open)


def read_workload(described: Description) -> WorkloadCommand:
    """Return the workload, or raise UsageError."""
    command, directory, around = described.command, described.directory, described.around
    comparison, timeout_s = described.comparison, described.timeout_s
    if not command.strip():
        raise UsageError("--workload is empty", 'give the command to optimise, for example --workload "make -j"')
    if not math.isfinite(timeout_s):
        raise UsageError(f"--timeout {timeout_s} is not a number of seconds")
    commands = {
        "--workload": command,
        "--prepare": around.prepare,
        "--setup": around.setup,
        "--cleanup": around.cleanup,
    }
    for option, text in (*commands.items(), ("--dir", str(directory)), ("--shell", around.shell)):
        _require_text(text, option)
    for option, texts in (
        ("--metric", comparison.metrics),
        ("--guard", comparison.guards),
        ("--objective", comparison.objectives),
    ):
        for text in texts:
            _require_text(text, option)
    place = _directory(directory)
    shell = _shell(around.shell, place)
    for option, text in commands.items():
        _require_program(text, option, place, shell)
    workload = WorkloadCommand(
        command=command,
        directory=str(place),
        prepare=around.prepare,
        timeout_s=timeout_s,
        shell=shell,
        ignore_failure=around.ignore_failure,
        setup=around.setup,
        cleanup=around.cleanup,
    )
    return measured(workload, comparison)


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


def _shell(program: str, place: Path) -> str:
    """Return the path of --shell, by which the machine finds it whatever PATH is there."""
    if program == DEFAULT_SHELL:
        return program
    search = proc.run(["/bin/sh", "-c", 'command -v -- "$1"', "sh", program], timeout_s=_SHELL_LIMIT_S, cwd=place)
    path = search.stdout.decode(errors="replace").strip()
    if search.returncode != 0 or not path.startswith("/"):
        raise UsageError(f"--shell: there is no program {program!r}", "give one that takes a command after -c: bash")
    return path


def _require_program(command: str, option: str, place: Path, shell: str) -> None:
    """Refuse what the shell would refuse before it runs anything: bad syntax, a first word that it does not know."""
    if Path(shell).name not in _SHELLS:
        return
    parsed = proc.run([shell, "-n", "-c", command], timeout_s=_SHELL_LIMIT_S)
    if parsed.returncode != 0:
        complaint = parsed.stderr.decode(errors="replace").strip()
        raise UsageError(f"{option} {quoted(command)} is not a shell command: {complaint}", "check the quotes")
    program = next(iter(command.split()), "")
    if not program or _SHELL_SYNTAX.search(program):
        return
    known = proc.run([shell, "-c", 'command -v -- "$1"', "sh", program], timeout_s=_SHELL_LIMIT_S, cwd=place)
    if known.returncode != 0:
        raise UsageError(
            f"{option}: there is no program {program!r}",
            f"install it, or check the spelling; looked in {place} and PATH",
        )


# --- parameters -------------------------------------------------------------------------------------------------------

MOST_VALUES = 32


def planned_runs(
    described: Description, options: RunOptions, parameters: Sequence[str]
) -> list[tuple[WorkloadCommand, RunOptions]]:
    """Return workload and options of each run of a scan; one run if there are no parameters.

    Args:
        parameters: NAME=VALUE,VALUE as --parameter has them; {NAME} in a command stands for the value.

    Raises:
        UsageError: one is no parameter, is used nowhere, or there are too many values; a run would have to wait; or
            as `planned_run`, for whichever value.
    """
    if parameters and options.approve:
        raise UsageError("--parameter makes several runs, which cannot wait", "leave out --approve")
    around = described.around
    texts = (described.command, around.prepare, around.setup, around.cleanup)
    runs = []
    for values in read_parameters(parameters, texts):
        command, prepare, setup, cleanup = (filled(text, values) for text in texts)
        changed = replace(around, prepare=prepare, setup=setup, cleanup=cleanup)
        name = " ".join(filter(None, [options.name, *(f"{name}={value}" for name, value in values.items())]))
        runs.append(planned_run(replace(described, command=command, around=changed), replace(options, name=name)))
    return runs


def read_parameters(options: Sequence[str], texts: Sequence[str]) -> list[dict[str, str]]:
    """Return the values of each run of a scan, the last parameter changing first; one empty run without --parameter.

    Args:
        options: NAME=VALUE,VALUE as --parameter has them.
        texts: the commands, in which {NAME} stands for a value.

    Raises:
        UsageError: one is no parameter, is used nowhere, or there are too many values.
    """
    values: dict[str, list[str]] = {}
    for option in options:
        name, values_of = _parameter(option)
        if name in values:
            raise UsageError(f"--parameter {name} is given twice", "give all its values at once: n=1,2,4")
        if not any(f"{{{name}}}" in text for text in texts):
            raise UsageError(f"--parameter {name} is used nowhere", f"write {{{name}}} in the command")
        values[name] = values_of
    count = math.prod(map(len, values.values()))
    if count > MOST_VALUES:
        raise UsageError(f"--parameter asks for {count} runs", f"accepted: at most {MOST_VALUES}")
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def _parameter(option: str) -> tuple[str, list[str]]:
    name, equals, listed = option.partition("=")
    values = [value.strip() for value in listed.split(",")]
    if not (equals and _PARAMETER.fullmatch(name) and all(values)):
        raise UsageError(
            f"--parameter {option!r} is not NAME=VALUE,VALUE", "for example n=1,2,4, and {n} in the command"
        )
    if len(set(values)) < len(values):
        raise UsageError(f"--parameter {option!r} has a value twice")
    return name, values


_PARAMETER = re.compile(r"[A-Za-z]\w*", re.ASCII)


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return a command with its parameters' values."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text
