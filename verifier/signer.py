"""The signer: the only code that reads the verifier's private key. May import schedagent.core and cryptography."""

from __future__ import annotations

import os
import secrets
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from schedagent.core import token as tokens
from schedagent.core.errors import SetupError
from schedagent.core.token import DeploymentToken

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

DEFAULT_LIFETIME_S = 24 * 3600
"""A token is spent soon after it is issued; a day also covers a run that waits over night for approval."""

_PRIVATE = stat.S_IRWXG | stat.S_IRWXO
_LONGEST_KEY_FILE = 16384


class Signer:
    """Signs deployment tokens with an Ed25519 key, which is created at the first use.

    Args:
        key_path: the private key (PKCS#8 PEM, mode 0600, in a folder that only its owner can enter).

    Raises:
        SetupError: the key cannot be created or read, or others can read it.
    """

    def __init__(self, key_path: Path) -> None:
        self.key_path = key_path
        try:
            _make_folder(key_path.parent)
            if not os.path.lexists(key_path):
                _create_key(key_path)
            self._key = _load_key(key_path)
        except OSError as error:
            raise SetupError(
                f"the signing key {key_path} cannot be used: {error.strerror}",
                "set another key folder, or its permissions",
            ) from error

    def __repr__(self) -> str:
        return f"Signer({str(self.key_path)!r})"

    @property
    def public_key(self) -> bytes:
        """The public half in PEM, for everyone who has to check tokens."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, token: DeploymentToken) -> str:
        """Return the signed text form of `token`."""
        return tokens.encode(token, self._key.sign)

    def issue(
        self,
        *,
        artifact_digest: str,
        tunables: tokens.Pairs,
        inputs_digest: str,
        kernel_release: str,
        btf_build_id: str,
        lifetime_s: int = DEFAULT_LIFETIME_S,
    ) -> str:
        """Return a signed token over what was verified, valid from now for `lifetime_s` seconds."""
        now = int(time.time())
        token = DeploymentToken(
            artifact_digest=artifact_digest,
            tunables=tuple(sorted(tunables)),
            inputs_digest=inputs_digest,
            kernel_release=kernel_release,
            btf_build_id=btf_build_id,
            issued_at=now,
            expires_at=now + lifetime_s,
            nonce=secrets.token_hex(16),
        )
        return self.sign(token)


def _make_folder(folder: Path) -> None:
    """Create the key's folder (0700), or refuse one in which others could put a key of their own."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    mode = folder.stat().st_mode
    if mode & _PRIVATE:
        raise SetupError(
            f"others can enter the signing key's folder {folder} (mode {mode & 0o777:04o})", f"chmod 700 {folder}"
        )


def _create_key(path: Path) -> None:
    """Write a new key under a temporary name and link it, so that of two creators at once one key is left, complete."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    content = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink(missing_ok=True)


def _load_key(path: Path) -> Ed25519PrivateKey:
    """Read the key from a regular file that only we can read; a symbolic link is not followed."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise SetupError(
                f"the signing key {path} is not a file of user id {os.geteuid()}", "chown it, or move it away"
            )
        if status.st_mode & _PRIVATE:
            raise SetupError(
                f"others can read the signing key {path} (mode {status.st_mode & 0o777:04o})",
                f"it may be known to others: remove it and verify again (a new one is made), or: chmod 600 {path}",
            )
        content = file.read(_LONGEST_KEY_FILE)
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise SetupError(f"the signing key {path} is damaged: {error}", f"mv {path} {path}.broken") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupError(f"the signing key {path} is not an Ed25519 key", f"mv {path} {path}.broken")
    return key
