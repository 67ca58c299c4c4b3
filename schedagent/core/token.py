"""The deployment token: a verifier's signed word that these exact bytes passed every gate for this kernel.

Text form: ``sat1.PAYLOAD.SIGNATURE``, both parts base64url without padding. The payload is canonical JSON (sorted
keys, no spaces, ASCII), and the Ed25519 signature (RFC 8032) covers a fixed context string and the payload, so a
signature made for anything else cannot be passed off as a token.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Container, Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime

from schedagent.core.errors import TokenError

TOKEN_PREFIX = "sat1"
CLOCK_SKEW_S = 60
"""How far in the future a token may have been issued: verifier and daemon may run on two machines."""

_CONTEXT = b"schedagent deployment token 1\0"
_LONGEST_TOKEN = 65536
_VERIFY_AGAIN = "verify the policy again: schedagent verify"

Pairs = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class DeploymentToken:
    """What was verified, for which kernel, and until when.

    Args:
        artifact_digest: hex SHA-256 of the ELF object.
        tunables: every tunable and its value, sorted by name.
        inputs_digest: of the maps the loader fills, see `digest_inputs`.
        kernel_release: uname -r of the kernel it was verified on.
        btf_build_id: hex GNU build id of that kernel.
        issued_at, expires_at: Unix time in seconds; valid before expires_at.
        nonce: random hex text; the daemon accepts each only once.
    """

    artifact_digest: str
    tunables: Pairs
    inputs_digest: str
    kernel_release: str
    btf_build_id: str
    issued_at: int
    expires_at: int
    nonce: str


def digest_inputs(history: Iterable[tuple[int, int]], classes: Iterable[tuple[int, int]]) -> str:
    """Return the hex SHA-256 of the contents of a policy's input maps; the order of entries does not matter."""
    return hashlib.sha256(json.dumps([sorted(history), sorted(classes)]).encode()).hexdigest()


def encode(token: DeploymentToken, sign: Callable[[bytes], bytes]) -> str:
    """Return the text form of `token`; `sign` gets the bytes to sign and returns the 64-byte signature."""
    payload = _payload(token)
    return ".".join((TOKEN_PREFIX, _to_base64(payload), _to_base64(sign(_CONTEXT + payload))))


def decode(token_text: str) -> DeploymentToken:
    """Return what a token says, to show it to people. The signature is NOT looked at: trust only `check`.

    Raises:
        TokenError: it is not a token.
    """
    return _token(_split(token_text)[0])


def check(
    token_text: str,
    public_keys: Iterable[bytes],
    *,
    artifact_digest: str,
    tunables: Pairs,
    inputs_digest: str,
    kernel_release: str,
    btf_build_id: str,
    now: float,
    used_nonces: Container[str] = (),
) -> DeploymentToken:
    """Return the token if a trusted key signed it for exactly this use and it is valid now.

    Args:
        token_text: as the verifier issued it.
        public_keys: trusted verifiers, each an Ed25519 public key in PEM.
        artifact_digest, tunables, inputs_digest, kernel_release, btf_build_id: what is about to be loaded, and where.
        now: Unix time in seconds.
        used_nonces: of tokens that were already used.

    Raises:
        TokenError: with the first reason found.
    """
    payload, signature = _split(token_text)
    if not any(_signed_by(key, payload, signature) for key in public_keys):
        raise TokenError(
            "the token is signed by none of the trusted verifiers",
            "it was altered, or its verifier is not trusted here",
        )
    token = _token(payload)
    wanted: dict[str, object] = {
        "artifact_digest": artifact_digest,
        "tunables": tuple(sorted(tunables)),
        "inputs_digest": inputs_digest,
        "kernel_release": kernel_release,
        "btf_build_id": btf_build_id,
    }
    for name, value in wanted.items():
        if getattr(token, name) != value:
            raise TokenError(f"the token is for {name}={getattr(token, name)!r}, not for {value!r}", _VERIFY_AGAIN)
    _check_time(token, now)
    if token.nonce in used_nonces:
        raise TokenError(f"the token with nonce {token.nonce} was used before", _VERIFY_AGAIN)
    return token


def _check_time(token: DeploymentToken, now: float) -> None:
    if token.issued_at > now + CLOCK_SKEW_S:
        raise TokenError(
            f"the token was issued in the future: {_moment(token.issued_at)}, now it is {_moment(now)}",
            "set the clocks of the verifier and of this machine",
        )
    if now >= token.expires_at:
        raise TokenError(f"the token expired at {_moment(token.expires_at)}, now it is {_moment(now)}", _VERIFY_AGAIN)


def _moment(unix_s: float) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"Unix time {unix_s}"


def _payload(token: DeploymentToken) -> bytes:
    return json.dumps(asdict(token), sort_keys=True, separators=(",", ":")).encode("ascii")


def _split(token_text: str) -> tuple[bytes, bytes]:
    """Return payload and signature of a token's text."""
    parts = token_text.strip().split(".") if len(token_text) <= _LONGEST_TOKEN else []
    if len(parts) != 3 or parts[0] != TOKEN_PREFIX:
        raise TokenError(f"not a deployment token: it must read {TOKEN_PREFIX}.PAYLOAD.SIGNATURE")
    return _from_base64(parts[1]), _from_base64(parts[2])


def _token(payload: bytes) -> DeploymentToken:
    """Parse a payload; only the canonical bytes are accepted, so one token has one text."""
    try:
        content = json.loads(payload)
        content["tunables"] = tuple((name, value) for name, value in content["tunables"])
        token = DeploymentToken(**content)
        for field in fields(token):
            if field.name != "tunables":
                _require(getattr(token, field.name), int if field.name.endswith("_at") else str)
        for name, value in token.tunables:
            _require(name, str)
            _require(value, int)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise TokenError(f"not a deployment token: {error}") from None
    if _payload(token) != payload or not re.fullmatch("[0-9a-f]{16,128}", token.nonce):
        raise TokenError("not a deployment token: its payload is not in canonical form")
    return token


def _require(value: object, kind: type) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not of type {kind.__name__}")


def _signed_by(public_key: bytes, payload: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TokenError(f"a trusted verifier's public key cannot be read: {error}", "it must be PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise TokenError("a trusted verifier's public key is not an Ed25519 key")
    try:
        key.verify(signature, _CONTEXT + payload)
    except InvalidSignature:
        return False
    return True


def _to_base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode("ascii")


def _from_base64(text: str) -> bytes:
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise TokenError(f"not a deployment token: {error}") from None
    if _to_base64(content) != text:
        raise TokenError("not a deployment token: not canonical base64url")
    return content
