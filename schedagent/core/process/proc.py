"""The only door to subprocesses. Every command is logged in a form that can be pasted into a shell."""

from __future__ import annotations

import logging
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from schedagent.core.errors import SetupError
from schedagent.core.installation import this_installation

log = logging.getLogger(__name__)

Argument = str | Path


def run(
    argv: Sequence[Argument],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    output: tuple[int, int] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end and return what it printed; the exit status is the caller's to judge.

    Args:
        output: file descriptors for its stdout and stderr, instead of our memory: nothing is returned then.

    Raises:
        SetupError: the program does not exist, or it ran longer than `timeout_s`.
    """
    words = [str(word) for word in argv]
    log.debug("run: %s", shlex.join(words))
    stdout, stderr = output or (subprocess.PIPE, subprocess.PIPE)
    try:
        return subprocess.run(
            words,
            input=stdin,
            stdout=stdout,
            stderr=stderr,
            timeout=timeout_s,
            cwd=cwd,
            env=env,
            pass_fds=tuple(pass_fds),
            check=False,
        )
    except FileNotFoundError:
        raise SetupError(f"{words[0]} is not installed", this_installation().how_to_install_program(words[0])) from None
    except subprocess.TimeoutExpired:
        raise SetupError(f"{words[0]} did not end within {timeout_s:g} s: {shlex.join(words)}") from None


def start(
    argv: Sequence[Argument],
    *,
    output: int | None = None,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a long-running command in a session of its own, so that Ctrl-C reaches only us; the caller ends it.

    Args:
        output: file descriptor for its stdout and stderr; None discards both.

    Raises:
        SetupError: the program does not exist.
    """
    words = [str(word) for word in argv]
    log.debug("start: %s", shlex.join(words))
    target = subprocess.DEVNULL if output is None else output
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=target,
            stderr=target,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
            cwd=cwd,
            env=env,
        )
    except FileNotFoundError:
        raise SetupError(f"{words[0]} is not installed", this_installation().how_to_install_program(words[0])) from None
