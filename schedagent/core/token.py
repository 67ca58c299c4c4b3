"""The deployment token: a verifier's signed word that these exact bytes passed every gate for this kernel.

Text form: ``sat3.KEYID.PAYLOAD.SIGNATURE``. KEYID names the signing key, so that a checker which trusts several takes
the right one. PAYLOAD is canonical JSON (sorted keys, no spaces, ASCII) in base64url without padding. The Ed25519
signature (RFC 8032) covers a fixed context string and the text up to the last dot, so a signature made for anything
else cannot be passed off as a token, and nothing in the text can be changed. The payload is parsed only after that.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Container, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from schedagent.core.accept import C_NAME, SHA256, is_cgroup, is_whole
from schedagent.core.errors import TokenError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

TOKEN_PREFIX = "sat3"
OLDER_PREFIXES = ("sat1", "sat2")
"""They do not show what a policy declares away. None is valid any more: no token lives longer than a week."""

CLOCK_SKEW_S = 60
"""How far two clocks may be apart: verifier and daemon may run on two machines."""

LONGEST_LIFETIME_S = 7 * 24 * 3600
"""No token is valid for longer, so a replaced key can be forgotten a week after its last use."""

_CONTEXT = b"schedagent deployment token 3\0"
_LONGEST_TOKEN = 65536
_LAST_MOMENT = 253402300799  # the end of the year 9999, the last that datetime knows
_VERIFY_AGAIN = "verify the policy again: schedagent verify"
_BOOT_PATCHED = "policies are proved on kernels without live patches: boot a kernel that has the fixes built in"

_KEY_ID = re.compile("[0-9a-f]{16}")
_PATTERNS = {
    "artifact_digest": SHA256,
    "inputs_digest": SHA256,
    "report_digest": SHA256,
    "kernel_release": re.compile("[0-9A-Za-z.+~_-]{1,64}"),
    "btf_build_id": re.compile("[0-9a-f]{8,128}"),
    "nonce": re.compile("[0-9a-f]{32}"),
    "key_id": _KEY_ID,
}
"""What the text fields may contain."""
_LIVE_PATCH = re.compile("[0-9A-Za-z._-]{1,64}:(?:[0-9a-f]{8,128}|unknown)")

_WORD = re.compile("[a-z][a-z -]{0,39}")
_MOST_WORDS = 32

Pairs = tuple[tuple[str, int], ...]
Words = tuple[str, ...]


class Scope(StrEnum):
    """How much of the machine a policy may schedule."""

    PARTIAL = "partial"
    """Only tasks that were moved to it: SCX_OPS_SWITCH_PARTIAL."""
    FULL = "full"
    """Every task of the default class."""


@dataclass(frozen=True)
class DeploymentToken:
    """What was verified, for which kernel and how much of it, and when the word holds.

    Args:
        artifact_digest: hex SHA-256 of the ELF object.
        tunables: every tunable and its value, sorted by name.
        inputs_digest: of the maps the loader fills, see `digest_inputs`.
        report_digest: of the report that the gates gave, see core.verification.report_digest.
        kernel_release: uname -r of the kernel it was verified on.
        btf_build_id: hex GNU build id of that kernel.
        live_patches: what was at work in it besides, each as NAME:BUILDID, in order: nothing in the lab's.
        scope: how much of the machine it may schedule.
        cgroup: for a partial scope, the cgroup whose tasks it may schedule, as a path below the cgroup root
            ("/build.slice"); empty for any tasks.
        not_before, expires_at: Unix time in seconds; valid from the one until before the other.
        nonce: random hex text; the daemon accepts each only once.
        key_id: of the key that signs, see `key_id`.
        declares: the oracles that the policy need not satisfy, because whoever submitted it says so; sorted.
        reads: the inputs that it goes by, because whoever submitted it says so; sorted. None of a bundled policy.

    Raises:
        TokenError: a field is not of the form that its meaning asks for.
    """

    artifact_digest: str
    tunables: Pairs
    inputs_digest: str
    report_digest: str
    kernel_release: str
    btf_build_id: str
    scope: Scope
    cgroup: str
    not_before: int
    expires_at: int
    nonce: str
    key_id: str
    live_patches: tuple[str, ...] = ()
    declares: Words = ()
    reads: Words = ()

    def __post_init__(self) -> None:
        for name, pattern in _PATTERNS.items():
            value = getattr(self, name)
            if not isinstance(value, str) or not pattern.fullmatch(value):
                raise _malformed(f"{name} is {_shown(value)}")
        if not isinstance(self.cgroup, str) or (self.cgroup and not is_cgroup(self.cgroup)):
            raise _malformed(f"cgroup is {_shown(self.cgroup)}")
        if not isinstance(self.scope, Scope) or (self.cgroup and self.scope is not Scope.PARTIAL):
            raise _malformed(f"scope is {_shown(self.scope)} with cgroup {self.cgroup!r}")
        if not (is_whole(self.not_before, 0, _LAST_MOMENT) and is_whole(self.expires_at, 0, _LAST_MOMENT)):
            raise _malformed(f"valid from {_shown(self.not_before)} to {_shown(self.expires_at)}")
        if not 0 < self.expires_at - self.not_before <= LONGEST_LIFETIME_S:
            raise _malformed(
                f"valid for {self.expires_at - self.not_before} s; at most {LONGEST_LIFETIME_S} are accepted"
            )
        _check_tunables(self.tunables)
        if not all(isinstance(name, str) and _LIVE_PATCH.fullmatch(name) for name in self.live_patches):
            raise _malformed(f"live_patches is {_shown(self.live_patches)}")
        for name in ("declares", "reads"):
            _check_words(name, getattr(self, name))


def digest_inputs(history: Iterable[tuple[int, int]], classes: Iterable[tuple[int, int]]) -> str:
    """Return the hex SHA-256 of the contents of a policy's input maps; the order of entries does not matter."""
    return hashlib.sha256(json.dumps([sorted(history), sorted(classes)]).encode()).hexdigest()


def key_id(public_key: bytes) -> str:
    """Return the short name of a public key: the first 16 hex digits of the SHA-256 of its 32 bytes.

    Args:
        public_key: an Ed25519 public key in PEM.

    Raises:
        TokenError: it is not one.
    """
    return hashlib.sha256(_load_public(public_key).public_bytes_raw()).hexdigest()[:16]


def encode(token: DeploymentToken, sign: Callable[[bytes], bytes]) -> str:
    """Return the text form of `token`; `sign` gets the bytes to sign and returns the 64-byte signature."""
    signed = f"{TOKEN_PREFIX}.{token.key_id}.{_to_base64(_payload(token))}"
    return f"{signed}.{_to_base64(sign(_CONTEXT + signed.encode('ascii')))}"


def decode(token_text: str) -> DeploymentToken:
    """Return what a token contains, to show it to people. The signature is NOT checked: trust only `check`.

    Raises:
        TokenError: it is not a token.
    """
    parts = _split(token_text)
    return _token(parts.payload, parts.key_id)


def read_signed(token_text: str, public_keys: Iterable[bytes]) -> DeploymentToken:
    """Return what a token contains if a trusted key signed it. It may be for another use or out of date: see `check`.

    Raises:
        TokenError: it is not a token, or none of these keys signed it.
    """
    parts = _split(token_text)
    _check_signature(parts, public_keys)
    return _token(parts.payload, parts.key_id)


def check(
    token_text: str,
    public_keys: Iterable[bytes],
    *,
    artifact_digest: str,
    tunables: Pairs,
    inputs_digest: str,
    report_digest: str,
    kernel_release: str,
    btf_build_id: str,
    live_patches: tuple[str, ...],
    scope: Scope,
    cgroup: str = "",
    now: float,
    last_seen: float = 0.0,
    used_nonces: Container[str] = (),
) -> DeploymentToken:
    """Return the token if a trusted key signed it for this use and it is valid now.

    Everything must be exactly as signed but for the scope, which may be narrower: a token for the full scope also
    allows a partial one, one for any tasks also one cgroup, one for a cgroup also those below it. Never the reverse.

    Args:
        token_text: as the verifier issued it, without anything around it.
        public_keys: trusted verifiers, each an Ed25519 public key in PEM.
        artifact_digest, tunables, inputs_digest, report_digest: what is about to be loaded, and the report with it.
        kernel_release, btf_build_id, live_patches: where.
        scope, cgroup: on which tasks.
        now: Unix time in seconds.
        last_seen: the latest `now` of earlier checks here; a clock that went back behind it would revive old tokens.
        used_nonces: of tokens that were already used.

    Raises:
        TokenError: with the first reason found.
    """
    token = read_signed(token_text, public_keys)
    wanted: dict[str, object] = {
        "artifact_digest": artifact_digest,
        "tunables": tuple(sorted(tunables)),
        "inputs_digest": inputs_digest,
        "report_digest": report_digest,
        "kernel_release": kernel_release,
        "btf_build_id": btf_build_id,
        "live_patches": live_patches,
    }
    for name, value in wanted.items():
        if not _same(getattr(token, name), value):
            hint = _BOOT_PATCHED if name == "live_patches" else _VERIFY_AGAIN
            raise TokenError(f"the token is for {name}={getattr(token, name)!r}, not for {value!r}", hint)
    _check_scope(token, scope, cgroup)
    _check_time(token, now, last_seen)
    if token.nonce in used_nonces:
        raise TokenError(f"the token with nonce {token.nonce} was used before", _VERIFY_AGAIN)
    return token


def _check_scope(token: DeploymentToken, scope: Scope, cgroup: str) -> None:
    """A wanted scope must be the token's or lie within it."""
    sane = isinstance(scope, Scope) and (not cgroup or is_cgroup(cgroup))
    meaningful = sane and (scope is Scope.PARTIAL or not cgroup)
    below = not token.cgroup or f"{cgroup}/".startswith(f"{token.cgroup}/")
    within = token.scope is Scope.FULL or (scope is Scope.PARTIAL and below)
    if not (within and meaningful):
        raise TokenError(
            f"the token is for {_scope_text(token.scope, token.cgroup)}, not for {_scope_text(scope, cgroup)}",
            _VERIFY_AGAIN,
        )


def _scope_text(scope: Scope, cgroup: str) -> str:
    return f"scope {scope}" + (f" of cgroup {cgroup!r}" if cgroup else "")


def _check_time(token: DeploymentToken, now: float, last_seen: float) -> None:
    if now < last_seen - CLOCK_SKEW_S:
        raise TokenError(
            f"the clock was set back: it is {_moment(now)}, but it was {_moment(last_seen)} before",
            "set this machine's clock: an expired token would be valid again",
        )
    if token.not_before > now + CLOCK_SKEW_S:
        raise TokenError(
            f"the token is valid from {_moment(token.not_before)} on, in the future: now it is {_moment(now)}",
            "wait, or set the clocks of the verifier and of this machine",
        )
    if not now < token.expires_at:
        raise TokenError(f"the token expired at {_moment(token.expires_at)}, now it is {_moment(now)}", _VERIFY_AGAIN)


def _check_signature(parts: _Parts, public_keys: Iterable[bytes]) -> None:
    """Check the signature with the trusted key that the token names."""
    from cryptography.exceptions import InvalidSignature

    trusted = {key_id(pem): pem for pem in public_keys}
    if parts.key_id not in trusted:
        raise TokenError(
            f"the token is signed with key {parts.key_id}, which is none of the trusted ones: "
            f"{', '.join(sorted(trusted)) or 'there are none'}",
            "if its verifier is to be trusted, export its key there and run here: schedagent keys trust FILE; "
            "for schedagentd copy it to its keys_dir, /etc/schedagent/trusted",
        )
    try:
        _load_public(trusted[parts.key_id]).verify(parts.signature, parts.signed)
    except InvalidSignature:
        raise TokenError(
            f"the token's signature is not one of the trusted key {parts.key_id}", "it was altered or forged"
        ) from None


def _same(mine: object, theirs: object) -> bool:
    """Compare two values by their exact bytes, in a time that does not depend on where they differ."""
    return hmac.compare_digest(json.dumps(mine).encode("ascii"), json.dumps(theirs).encode("ascii"))


def _moment(unix_s: float) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"Unix time {unix_s}"


def _payload(token: DeploymentToken) -> bytes:
    content = asdict(token)
    del content["key_id"]  # it stands before the payload, where it is found without parsing
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


@dataclass(frozen=True)
class _Parts:
    """A token's text taken apart: `signed` is what the signature covers."""

    key_id: str
    payload: bytes
    signature: bytes
    signed: bytes


def _split(token_text: str) -> _Parts:
    parts = token_text.split(".") if len(token_text) <= _LONGEST_TOKEN else []
    if parts and parts[0] in OLDER_PREFIXES:
        raise TokenError(
            f"not a deployment token of this version: {parts[0]} does not show what the policy declares away",
            _VERIFY_AGAIN,
        )
    if len(parts) != 4 or parts[0] != TOKEN_PREFIX or not _KEY_ID.fullmatch(parts[1]):
        raise _malformed(f"it must read {TOKEN_PREFIX}.KEYID.PAYLOAD.SIGNATURE")
    payload, signature = _from_base64(parts[2]), _from_base64(parts[3])
    return _Parts(parts[1], payload, signature, _CONTEXT + ".".join(parts[:3]).encode("ascii"))


def _token(payload: bytes, named_key: str) -> DeploymentToken:
    """Parse a payload; only the canonical bytes are accepted, so one token has one text."""
    try:
        content = json.loads(payload)
        content["tunables"] = tuple((name, value) for name, value in content["tunables"])
        content |= {name: _words(name, content[name]) for name in ("declares", "reads")}
        content["scope"] = Scope(content["scope"])
        content["live_patches"] = tuple(content["live_patches"])
        token = DeploymentToken(**content, key_id=named_key)
        canonical = _payload(token)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _malformed(str(error)) from None
    if canonical != payload:
        raise _malformed("its payload is not in canonical form")
    return token


def _check_tunables(tunables: Pairs) -> None:
    """Names are C identifiers in order, none twice; values fit into 64 bits."""
    for pair in tunables:
        name, value = pair
        if not isinstance(name, str) or not C_NAME.fullmatch(name):
            raise _malformed(f"a tunable is called {_shown(name)}")
        if not is_whole(value, -(1 << 63), (1 << 64) - 1):
            raise _malformed(f"tunable {name} is {_shown(value)}")
    names = [name for name, _value in tunables]
    if names != sorted(set(names)):
        raise _malformed("its tunables are not in order")


def _words(name: str, value: object) -> Words:
    if not isinstance(value, list):
        raise _malformed(f"{name} is {_shown(value)}")
    return tuple(value)


def _check_words(name: str, words: Words) -> None:
    """Words in order, none twice."""
    if not all(isinstance(word, str) and _WORD.fullmatch(word) for word in words) or len(words) > _MOST_WORDS:
        raise _malformed(f"{name} is {_shown(words)}")
    if list(words) != sorted(set(words)):
        raise _malformed(f"its {name} are not in order")


def _shown(value: object) -> str:
    """A value from outside, short enough for a message (an integer may be too long to be printed at all)."""
    try:
        return repr(value)[:80]
    except ValueError:
        return "a huge number"


def _malformed(why: str) -> TokenError:
    return TokenError(f"not a deployment token: {why}")


def _load_public(public_key: bytes) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TokenError(f"a trusted verifier's public key cannot be read: {error}", "it must be PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise TokenError("a trusted verifier's public key is not an Ed25519 key")
    return key


def _to_base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode("ascii")


def _from_base64(text: str) -> bytes:
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed(str(error)) from None
    if _to_base64(content) != text:
        raise _malformed("not canonical base64url")
    return content
