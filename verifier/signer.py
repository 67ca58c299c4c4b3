"""The signer: the only code that reads the verifier's private key. May import schedagent.core and cryptography.

A key folder holds `signing.key` (the active private key) and `trusted/` (the public keys whose tokens are accepted:
this verifier's active and replaced ones, and those of others). What must hold after a kill at any point:
`signing.key` is a whole key, and before it signs anything its public half is trusted without an end.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from schedagent.core import token as tokens
from schedagent.core.errors import SetupError, TokenError, UsageError
from schedagent.core.token import CLOCK_SKEW_S, LONGEST_LIFETIME_S, DeploymentToken, Scope
from schedagent.core.trusted import TrustedKey, locked, replace_file, trust, trusted_keys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

DEFAULT_LIFETIME_S = 24 * 3600
"""A token is spent soon after it is issued; a day also covers a run that waits over night for approval."""

_PRIVATE = stat.S_IRWXG | stat.S_IRWXO
_LONGEST_KEY_FILE = 16384


class Signer:
    """Signs deployment tokens with an Ed25519 key.

    The key is read again for each token, so a rotation takes effect at once, in every process, and the key is in
    memory no longer than needed.

    Args:
        key_path: the private key (PKCS#8 PEM, mode 0600, in a folder that only its owner can enter).
        create: make the key if there is none.

    Raises:
        SetupError: the key is not there or cannot be created or read, or others can read it.
    """

    def __init__(self, key_path: Path, *, create: bool = True) -> None:
        self.key_path = key_path
        self.trusted_folder = key_path.parent / "trusted"
        try:
            if create:
                key_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _require_private_folder(key_path.parent)
            if create and not os.path.lexists(key_path):
                self._create()
            self._active()
        except FileNotFoundError:
            raise _no_key(key_path) from None
        except OSError as error:
            raise SetupError(
                f"the signing key's folder {key_path.parent} cannot be used: {error.strerror}",
                "set another state folder (SCHEDAGENT_STATE), or its permissions",
            ) from error

    def __repr__(self) -> str:
        return f"Signer({str(self.key_path)!r})"

    @property
    def public_key(self) -> bytes:
        """The public half in PEM, for everyone who has to check tokens."""
        return _public(self._active())

    @property
    def key_id(self) -> str:
        """Short name of the active key."""
        return tokens.key_id(self.public_key)

    def issue(
        self,
        *,
        artifact_digest: str,
        tunables: tokens.Pairs,
        inputs_digest: str,
        report_digest: str,
        kernel_release: str,
        btf_build_id: str,
        declares: Iterable[str] = (),
        reads: Iterable[str] = (),
        scope: Scope = Scope.FULL,
        cgroup: str = "",
        not_before: int | None = None,
        lifetime_s: int = DEFAULT_LIFETIME_S,
    ) -> str:
        """Return a signed token over what was verified; see DeploymentToken for the fields.

        Args:
            not_before: Unix time in seconds from which on it is valid; None for now.
            lifetime_s: how long it is valid from then on.

        Raises:
            UsageError: it would be valid for too long, counted from now: a key that is replaced now is trusted no
                longer than that.
            TokenError: a field is not of the form that its meaning asks for.
        """
        now = int(time.time())
        begin = now if not_before is None else not_before
        if lifetime_s <= 0 or begin + lifetime_s > now + LONGEST_LIFETIME_S:
            raise UsageError(
                f"a token cannot be valid for {lifetime_s} s from {begin - now} s after now on",
                f"it must have expired {LONGEST_LIFETIME_S} s from now",
            )
        key = self._active()
        token = DeploymentToken(
            artifact_digest=artifact_digest,
            tunables=tuple(sorted(tunables)),
            inputs_digest=inputs_digest,
            report_digest=report_digest,
            declares=tuple(sorted(set(declares))),
            reads=tuple(sorted(set(reads))),
            kernel_release=kernel_release,
            btf_build_id=btf_build_id,
            scope=scope,
            cgroup=cgroup,
            not_before=begin,
            expires_at=begin + lifetime_s,
            nonce=secrets.token_hex(16),
            key_id=tokens.key_id(_public(key)),
        )
        return tokens.encode(token, key.sign)

    def vouches(self, token_text: str, report_digest: str) -> bool:
        """Whether the active key signed this token over a report of this digest, at whatever time."""
        try:
            token = tokens.read_signed(token_text, [self.public_key])
        except TokenError:
            return False
        return hmac.compare_digest(token.report_digest, report_digest)

    def rotate(self) -> TrustedKey:
        """Replace the key and return the old one, which stays trusted until its last token has expired.

        A kill leaves the old key or the new one at work; what is missing then is made up by the next use.
        """
        with locked(self.key_path.parent):
            old = _public(_load_key(self.key_path))
            retired = trust(self.trusted_folder, old, until=int(time.time()) + LONGEST_LIFETIME_S + 2 * CLOCK_SKEW_S)
            replace_file(self.key_path, _new_key(), 0o600)
            self._trust_active()
        return retired

    def _create(self) -> None:
        with locked(self.key_path.parent):
            if not os.path.lexists(self.key_path):
                replace_file(self.key_path, _new_key(), 0o600)

    def _active(self) -> Ed25519PrivateKey:
        """Read the key; its public half is trusted without an end when this returns."""
        key = _load_key(self.key_path)
        named = tokens.key_id(_public(key))
        if any(known.key_id == named and known.until is None for known in trusted_keys(self.trusted_folder)):
            return key
        with locked(self.key_path.parent):
            return self._trust_active()

    def _trust_active(self) -> Ed25519PrivateKey:
        """Trust the key that is active now, under the lock: it may be another one than a moment ago."""
        key = _load_key(self.key_path)
        trust(self.trusted_folder, _public(key))
        return key


def _require_private_folder(folder: Path) -> None:
    """Refuse a folder in which others could put a key of their own."""
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise SetupError(
            f"the signing key's folder {folder} is not of user id {os.geteuid()}", "run this as the verifier's user"
        )
    if status.st_mode & _PRIVATE:
        raise SetupError(
            f"others can enter the signing key's folder {folder} (mode {status.st_mode & 0o777:04o})",
            f"chmod 700 {folder}",
        )


def _new_key() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public(key: Ed25519PrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _load_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read_private(path), password=None)
    except (ValueError, TypeError) as error:
        raise SetupError(f"the signing key {path} is damaged: {error}", f"mv {path} {path}.broken") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupError(f"the signing key {path} is not an Ed25519 key", f"mv {path} {path}.broken")
    return key


def _read_private(path: Path) -> bytes:
    """Read a regular file that only we can read; a symbolic link is not followed."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            _require_private(path, os.fstat(file.fileno()))
            return file.read(_LONGEST_KEY_FILE)
    except FileNotFoundError:
        raise _no_key(path) from None
    except OSError as error:
        raise SetupError(
            f"the signing key {path} cannot be used: {error.strerror}", "it must be a plain file of the verifier's user"
        ) from None


def _no_key(path: Path) -> SetupError:
    return SetupError(f"there is no signing key {path}", "make one: schedagent keys create")


def _require_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        raise SetupError(f"the signing key {path} is not a file of user id {os.geteuid()}", "chown it, or move it away")
    if status.st_mode & _PRIVATE:
        raise SetupError(
            f"others can read the signing key {path} (mode {status.st_mode & 0o777:04o})",
            f"it may be known to others: chmod 600 {path}, then schedagent keys rotate, "
            "then schedagent keys distrust the old one",
        )
