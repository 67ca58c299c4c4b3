"""The verifier's signing key, and the public keys that are trusted. Never shows a private half."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from schedagent.core import trusted
from schedagent.core.errors import UsageError
from schedagent.core.settings import Settings, writable
from schedagent.run.opening import open_signer


def every_key(settings: Settings) -> list[dict[str, Any]]:
    """Return every key: id, state (signs, trusted, replaced, ended), end of trust and file of the public half."""
    active, now = active_id(settings), time.time()
    return [
        {
            "key": key.key_id,
            "state": "signs" if key.key_id == active else _state(key, now),
            "until": None if key.until is None else trusted.moment_text(key.until),
            "path": str(key.path),
        }
        for key in trusted.trusted_keys(_folder(settings))
    ]


def create_key(settings: Settings) -> None:
    """Make the signing key; raise UsageError if there is one."""
    path = _signing_key(settings)
    if path.exists() or path.is_symlink():
        raise UsageError(f"there is a signing key {path} already", "replace it: schedagent keys rotate")
    open_signer(settings)


def rotate_key(settings: Settings) -> None:
    """Replace the signing key; the old one stays trusted until its last token has expired."""
    open_signer(settings, create=False).rotate()


def trust_key(settings: Settings, file: Path) -> None:
    """Trust a public key: a file in PEM, or - for stdin; raise UsageError if the file cannot be read."""
    pem = sys.stdin.buffer.read(1 << 16) if str(file) == "-" else _read_key_file(file)
    writable(settings.state_dir, "SCHEDAGENT_STATE")
    settings.keys_dir.mkdir(mode=0o700, exist_ok=True)
    trusted.trust(_folder(settings), pem)


def distrust_key(settings: Settings, key_id: str) -> None:
    """Trust a key no longer; raise UsageError if it signs here, or is not there."""
    if key_id == active_id(settings):
        hint = f"replace it first: schedagent keys rotate; schedagent keys distrust {key_id}"
        raise UsageError(f"key {key_id} signs here", hint)
    trusted.distrust(_folder(settings), key_id)


def public_key(settings: Settings, key_id: str) -> bytes:
    """Return the public key of this id, or of the signing key if it is empty; raise UsageError if it is not there."""
    if not key_id:
        return open_signer(settings, create=False).public_key
    known = {key.key_id: key.pem for key in trusted.trusted_keys(_folder(settings))}
    if key_id not in known:
        raise UsageError(f"there is no key {key_id!r}", f"there are: {', '.join(known) or 'none'}")
    return known[key_id]


def active_id(settings: Settings) -> str:
    """Return the id of the signing key; empty if there is none here."""
    return open_signer(settings, create=False).key_id if _signing_key(settings).exists() else ""


def _state(key: trusted.TrustedKey, now: float) -> str:
    if key.until is None:
        return "trusted"
    return "replaced" if now < key.until else "ended"


def _folder(settings: Settings) -> Path:
    return settings.keys_dir / "trusted"


def _signing_key(settings: Settings) -> Path:
    return settings.keys_dir / "signing.key"


def _read_key_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", "give the file that keys export wrote") from None
