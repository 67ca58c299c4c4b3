"""Acting as another user of this machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from schedagent.core.errors import SchedagentError


def let_others_in(folder):
    """Let other users come to what is in a folder of pytest's; each worker of xdist has one more above it.

    The folder for temporary files itself, which is not pytest's, stays as it is.
    """
    for place in (folder, *folder.parents):
        if place == Path(tempfile.gettempdir()).resolve():
            break
        place.chmod(place.stat().st_mode | 0o055)


def as_user(user, act):
    """Do something as another user, in a process of its own; return what it returned or raised, as text."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            try:
                told = repr(act())
            except SchedagentError as error:
                told = f"{type(error).__name__}: {error.message}"
            os.write(writer, told.encode()[:60000])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        told = stream.read().decode()
    os.waitpid(child, 0)
    return told
