"""What all verbs share: the settings, exit statuses, JSON on stdout, and errors turned into messages."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from schedagent.core.errors import SchedagentError, UsageError
from schedagent.core.process.streams import drop_output
from schedagent.core.terminal.foreign import marked

if TYPE_CHECKING:
    from schedagent.core.settings import Settings

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO = 3
EXIT_WAITING = 4
EXIT_INTERRUPTED = 130

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def settings() -> Settings:
    """Read the settings; lazily, as everything the commands need."""
    from schedagent.core.settings import load_settings

    return load_settings()


def print_json(value: Any) -> None:
    """Print JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def say(text: str, *, err: bool = False) -> None:
    """Print a line, on stderr if `err`: names, paths and output in it are anybody's, so they do not steer the terminal.

    What it has of further lines is somebody else's, and marked.
    """
    typer.echo(marked(text), err=err)


def say_lines(text: str, *, err: bool = False) -> None:
    """Print lines of ours; what is anybody's in them has no line break any more."""
    for line in text.split("\n"):
        say(line, err=err)


def guarded(command: Callable[[], int]) -> NoReturn:
    """Run a command, turn what goes wrong into a message on stderr, and exit with the status of EPILOG."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        status = command()
        sys.stdout.flush()
    except UsageError as error:
        status = complain(error, EXIT_USAGE)
    except SchedagentError as error:
        status = complain(error, EXIT_FAILED)
    except KeyboardInterrupt as stop:
        typer.echo(err=True)
        say_lines(f"stopped. {stop}", err=True)
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        drop_output()
        status = EXIT_FAILED
    except OSError as error:
        drop_output()  # it may be the full disk that stdout goes to
        logging.debug("this is where it failed", exc_info=True)
        status = complain(SchedagentError(str(error), "see more with: schedagent --verbose ..."), EXIT_FAILED)
    raise SystemExit(status)


def complain(error: SchedagentError, status: int) -> int:
    """Print an error with its hint; the status holds even if stderr takes nothing.

    Their further lines may be a program's output, so they are marked.
    """
    with suppress(OSError):
        for heading, text in (("error", error.message), ("hint", error.hint)):
            if text:
                say(f"{heading}: {text}", err=True)
    return status
