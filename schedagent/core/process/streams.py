"""The standard streams of a program as others may hand them over: closed, or unable to take what is printed."""

from __future__ import annotations

import codecs
import os
import sys

_HANDLER = "schedagent.byte_or_escape"


def repair_streams() -> None:
    """Open what is closed on /dev/null, and have stdout take every text.

    Without the first a file that is opened later gets the number of stdout, and what is printed ends up in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure:
        codecs.register_error(_HANDLER, _byte_or_escape)
        reconfigure(errors=_HANDLER)


def _byte_or_escape(error: UnicodeError) -> tuple[bytes, int]:
    """Print a byte of a path that is no text as that byte, and a letter that the locale lacks as its escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return b"".join(map(_encoded, letters)), error.end


def _encoded(letter: str) -> bytes:
    try:
        return letter.encode("ascii", "surrogateescape")
    except UnicodeEncodeError:
        return letter.encode("ascii", "backslashreplace")


def drop_output() -> None:
    """Send what is still to be written on stdout to /dev/null: nobody can take it."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
