"""The folder of trusted verifiers' public keys, one PEM file each: whose tokens are accepted here.

A file whose first line reads ``Trusted-Until: 2026-11-29T10:00:00+00:00`` is trusted until then only: its key was
replaced, and by then its last token has expired. Files are replaced whole, so a reader never sees half a key.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from schedagent.core.errors import SetupError, TokenError, UsageError
from schedagent.core.token import key_id

_UNTIL = b"Trusted-Until: "
_DRAFT = ".{name}.{number}"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_LONGEST_KEY_FILE = 16384


@dataclass(frozen=True)
class TrustedKey:
    """One trusted verifier.

    Args:
        key_id: core.token.key_id of the key.
        pem: the public key.
        until: Unix time in seconds from which on it is not trusted any more; None for no end.
        path: its file.
    """

    key_id: str
    pem: bytes
    until: int | None
    path: Path


def load_trusted(folder: Path, now: float | None = None) -> tuple[bytes, ...]:
    """Return the public keys, in PEM, that are trusted at `now` (Unix time in seconds; None for this moment).

    Raises:
        SetupError: somebody else may write to the folder or to a key, or a file is damaged. No key is left out
            silently.
    """
    moment = time.time() if now is None else now
    return tuple(key.pem for key in trusted_keys(folder) if key.until is None or moment < key.until)


def trusted_keys(folder: Path) -> tuple[TrustedKey, ...]:
    """Return every key of the folder, sorted by file name; none if there is no folder. Raises as load_trusted."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return ()
    _require_ours(folder, status, stat.S_ISDIR, "folder")
    return tuple(_read(path) for path in sorted(folder.glob("*.pem")))


def trust(folder: Path, pem: bytes, until: int | None = None) -> TrustedKey:
    """Put a public key into the folder, or give the one that is there another end.

    Raises:
        TokenError: it is not an Ed25519 public key in PEM.
        SetupError: the folder cannot be used.
    """
    block = _only_block(pem)
    named = key_id(block)
    end = b"" if until is None else _UNTIL + moment_text(until).encode() + b"\n"
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        with locked(folder):
            paths = [key.path for key in trusted_keys(folder) if key.key_id == named] or [folder / f"{named}.pem"]
            replace_file(paths[0], end + block, 0o644)
            for copy in paths[1:]:
                copy.unlink()
    except OSError as error:
        raise SetupError(f"the folder of trusted keys {folder} cannot be written: {error.strerror}") from None
    return TrustedKey(named, block, until, paths[0])


def distrust(folder: Path, named: str) -> None:
    """Remove a key; raise UsageError if it is not there."""
    known = trusted_keys(folder)
    removed = [key for key in known if key.key_id == named]
    if not removed:
        raise UsageError(
            f"no key {named!r} is trusted in {folder}", f"there are: {', '.join(key.key_id for key in known) or 'none'}"
        )
    with locked(folder):
        for key in removed:
            key.path.unlink(missing_ok=True)
        _sync(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Change a folder of keys one at a time; half-written files of one that was killed are removed first."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for draft in folder.glob(_DRAFT.format(name="*", number="?" * 16)):
            draft.unlink()
        yield
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, mode: int) -> None:
    """Write a file such that, wherever this is cut short, the old or the new content is there, whole.

    The caller holds the lock of its folder.
    """
    draft = path.with_name(_DRAFT.format(name=path.name, number=secrets.token_hex(8)))
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask is
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    _sync(path.parent)


def moment_text(unix_s: int) -> str:
    """A moment in UTC as people and `Trusted-Until` write it."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")


def _unix_s(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} does not name a time zone")
    return int(moment.timestamp())


def _sync(folder: Path) -> None:
    """Make a rename last: it is an entry of the folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> TrustedKey:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            _require_ours(path, os.fstat(file.fileno()), stat.S_ISREG, "file")
            content = file.read(_LONGEST_KEY_FILE)
    except OSError as error:
        raise SetupError(f"the trusted key {path} cannot be read: {error.strerror}", f"rm {path}") from None
    first, _newline, rest = content.partition(b"\n")
    try:
        until = None
        if first.startswith(_UNTIL):
            until, content = _unix_s(first.removeprefix(_UNTIL).decode()), rest
        pem = _only_block(content)
        return TrustedKey(key_id(pem), pem, until, path)
    except (TokenError, ValueError) as error:
        reason = error.message if isinstance(error, TokenError) else str(error)
        raise SetupError(
            f"the trusted key {path} is damaged: {reason}", f"put the key there again, or rm {path}"
        ) from None


def _only_block(pem: bytes) -> bytes:
    """Return the one PEM block: of two keys in a file, a person might look at one and a reader take the other."""
    text = pem.strip() + b"\n"
    whole = text.startswith(b"-----BEGIN PUBLIC KEY-----\n") and text.endswith(b"\n-----END PUBLIC KEY-----\n")
    if not whole or text.count(b"-----") != 4:
        raise TokenError("not one public key in PEM", "export it with: schedagent keys export")
    return text


def _require_ours(path: Path, status: os.stat_result, is_kind: Callable[[int], bool], kind: str) -> None:
    """Only we or root may decide whom we trust."""
    if not is_kind(status.st_mode):
        raise SetupError(f"{path}, which decides whose tokens are accepted, is not a {kind}", "move it away")
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & _OTHERS_WRITE:
        raise SetupError(
            f"others than its user can write to {path}, which decides whose tokens are accepted "
            f"(mode {status.st_mode & 0o777:04o}, user id {status.st_uid})",
            f"check what is in it, then: chmod go-w {path}",
        )
