"""A policy's source as it is read from the disk, before anything interprets it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from schedagent.core.errors import CompileError, UsageError

SOURCE_LIMIT_BYTES = 256 * 1024
"""Some eight times the longest policy of the scx project."""


def read_source(path: Path) -> bytes:
    """Return a policy's source.

    Raises:
        UsageError: it cannot be read, or is no plain file: nothing is ever read from a link, device or pipe.
        CompileError: it is too long, or no UTF-8 text.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"policy source {path} is a symbolic link", "give the file it points to") from None
        raise UsageError(f"policy source {path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"policy source {path} is not a plain file")
    with os.fdopen(descriptor, "rb") as file:
        text = file.read(SOURCE_LIMIT_BYTES + 1)
    check_source_text(text)
    return text


def check_source_text(text: bytes) -> None:
    """Raise CompileError if these bytes cannot be the source of a policy."""
    if len(text) > SOURCE_LIMIT_BYTES:
        raise CompileError(f"the source is too long: at most {SOURCE_LIMIT_BYTES} bytes are accepted")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise CompileError(f"the source is not UTF-8 text: byte {error.start}") from None
    if b"\0" in text:
        raise CompileError(f"the source is not text: byte {text.index(0)} is zero")
