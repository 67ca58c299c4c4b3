"""Who may talk to the MCP server over HTTP: whoever holds its token. The token's file is for the user only."""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from schedagent.core.errors import SetupError
from schedagent.core.settings import Settings, writable

TOKEN_BYTES = 32
LEAST_TOKEN = 32
"""Characters; a token that can be guessed is none."""
_MOST_TOKEN = 512


def bearer_token(settings: Settings) -> tuple[str, str]:
    """Return the token that clients must send, and where it comes from; one is made if there is none.

    Raises:
        SetupError: its file can be read by others, is not the user's own, is a link, or holds no token.
    """
    if settings.mcp_token:
        return settings.mcp_token, "SCHEDAGENT_MCP_TOKEN or the configuration file"
    path = writable(settings.state_dir, "SCHEDAGENT_STATE") / "mcp.token"
    _make(path)
    return _read(path), str(path)


def _make(path: Path) -> None:
    """Write a new token, unless there is one: the file has its mode before it has its content, and all of it."""
    if path.is_symlink() or path.exists():
        return
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
        try:
            os.link(partial, path)  # unlike a rename, it leaves alone what another server made meanwhile
        except FileExistsError:
            return
        finally:
            partial.unlink()
    except OSError as error:
        raise SetupError(f"the token file {path} cannot be written: {error.strerror}") from None


def _read(path: Path) -> str:
    remedy = f"remove it, and a new one is made: rm {path}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        why = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise SetupError(f"the token file {path} cannot be used: {why}", remedy) from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise SetupError(
                f"the token file {path} is not yours alone (mode {stat.S_IMODE(status.st_mode):o})", remedy
            )
        token = file.read(_MOST_TOKEN).strip().decode("ascii", errors="replace")
    if len(token) < LEAST_TOKEN or not all("!" <= character <= "~" for character in token):
        raise SetupError(f"the token file {path} holds no token of at least {LEAST_TOKEN} characters", remedy)
    return token


def admits(token: str, authorizations: Sequence[bytes]) -> bool:
    """Whether the Authorization headers of a request are one, with this bearer token; takes the same time for any.

    Args:
        authorizations: the values of all Authorization headers.
    """
    if len(authorizations) != 1:
        return False
    scheme, _space, given = authorizations[0].partition(b" ")
    same = hmac.compare_digest(hashlib.sha256(given.strip()).digest(), hashlib.sha256(token.encode()).digest())
    return same and scheme.lower() == b"bearer"
