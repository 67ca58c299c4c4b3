"""What may be asked for over the socket: one JSON object on one line, of exactly these fields and types.

An untrusted edge: nothing unknown is taken, nothing is converted. By hand, because pydantic would cost more memory than
all the rest of schedagentd.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from schedagent.core import accept
from schedagent.core.accept import C_NAME, SHA256, is_whole
from schedagent.core.deployment import LARGEST_OBJECT_BYTES, MOST_ENTRIES, Order, Stage
from schedagent.core.errors import UsageError
from schedagent.core.retention.limits import RETENTION
from schedagent.core.welch import Better

VERSION = 1
LONGEST_QUESTION = 4096
"""Bytes of a request that changes nothing, and of one from somebody who may change nothing."""
LONGEST_REQUEST = 5 << 20
"""Bytes of any request: one to deploy fits with everything in it at its largest (4.4 MB)."""
LONGEST_HISTORY = RETENTION["deployments"].count
"""All that have ended, as far as they are kept."""
MOST_MEASURED = 64
LIMITS_ACCEPTED = "cgroup-limits"
ACCEPTABLE = (LIMITS_ACCEPTED,)
"""What a user may accept: that limits of cgroups end."""
LARGEST_MEASURED = 1e18

_TOKEN = re.compile(r"[A-Za-z0-9_.-]{1,65536}")
_U64 = (1 << 64) - 1


@dataclass(frozen=True)
class Status:
    """What is in charge."""


@dataclass(frozen=True)
class Policies:
    """What is loaded, by sysfs, and which objects the circuit breaker keeps away."""


@dataclass(frozen=True)
class History:
    """The newest deployments.

    Args:
        limit: how many.
    """

    limit: int = 20


@dataclass(frozen=True)
class Events:
    """What happened after event number `after` (-1: from now on) and, if `follow`, what will."""

    after: int = -1
    follow: bool = True


@dataclass(frozen=True)
class Deploy:
    """Load a policy.

    Args:
        order, content: what, with its token; the object.
        stage: how much of the machine, to begin with.
        cgroup, pid: whose tasks a canary has, or are measured; one of them at most.
        lease_s: how long without a renewal.
        again: although the circuit breaker ended it before.
        better: which way the metric is better that renewals will report; None if they report none.
        accept: what the user accepts, of ACCEPTABLE.
    """

    order: Order
    content: bytes
    stage: Stage
    cgroup: str
    lease_s: float
    again: bool
    pid: int
    better: Better | None
    accept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Renew:
    """Prolong a lease.

    Args:
        token, report_digest: if there is a newer token for the same.
        metric: what the workload's own metric was since the last renewal.
    """

    deployment: int
    lease_s: float
    token: str
    report_digest: str
    metric: tuple[float, ...] = ()


@dataclass(frozen=True)
class Promote:
    """Take a proven canary on to the whole machine, by pulses; `accept` as for Deploy."""

    deployment: int
    accept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """Put a policy in charge for a bounded time, which ends before if the connection does.

    Args:
        order, content: what, with its token; the object.
        lease_s: how long, from the moment on when it is in charge.
        again: although the circuit breaker ended it before.
        accept: as for Deploy.
    """

    order: Order
    content: bytes
    lease_s: float
    again: bool
    accept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rollback:
    """End what runs and what waits, or the one that is named."""

    deployment: int
    to_default: bool


Request = Status | Policies | History | Events | Deploy | Trial | Renew | Promote | Rollback
CHANGES = (Deploy, Trial, Renew, Promote, Rollback)
"""Requests that only configured users may make."""

_Fields = Mapping[str, tuple[Callable[[Any], Any], Any]]


def read_request(line: bytes) -> Request:
    """Read a request; raise UsageError with what is wrong, without repeating its content."""
    message = _json(line)
    verb = message.pop("verb", None)
    version = message.pop("version", None)
    if type(version) is not int or version != VERSION:
        raise UsageError(f"version must be {VERSION}", "client and schedagentd must be of one version")
    if not isinstance(verb, str) or verb not in _VERBS:
        raise UsageError("verb is unknown", f"accepted: {', '.join(_VERBS)}")
    fields, build = _VERBS[verb]
    return build(**_take(message, fields))


def _json(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line, parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not a JSON object: {str(error)[:200]}") from None
    if not isinstance(message, dict):
        raise UsageError("not a JSON object")
    return message


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    message = dict(pairs)
    if len(message) != len(pairs):
        raise ValueError("a key is there twice")
    return message


_REQUIRED = object()


def _take(message: dict[str, Any], fields: _Fields) -> dict[str, Any]:
    """Check each field by its rule; what is missing has its default, what is left over is refused."""
    chosen = {}
    for name, (check, default) in fields.items():
        value = message.pop(name, default)
        if value is _REQUIRED:
            raise UsageError(f"{name} is missing")
        if value is default and value is not _REQUIRED:
            chosen[name] = default
            continue
        try:
            chosen[name] = check(value)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{name} is not accepted", f"accepted: {error}") from None
    if message:
        raise UsageError(f"{len(message)} fields are unknown", f"accepted: {', '.join(fields) or 'none'}")
    return chosen


def _measured(value: Any) -> tuple[float, ...]:
    """A mean and a deviation of these are finite whatever they are."""
    accepted = ValueError(f"at most {MOST_MEASURED} numbers from -{LARGEST_MEASURED:g} to {LARGEST_MEASURED:g}")
    if type(value) is not list or len(value) > MOST_MEASURED:
        raise accepted
    if not all(type(number) in (int, float) and abs(number) <= LARGEST_MEASURED for number in value):  # no NaN is
        raise accepted
    return tuple(map(float, value))


def _content(value: Any) -> bytes:
    accepted = ValueError(f"base64 of at most {LARGEST_OBJECT_BYTES} bytes")
    if type(value) is not str or len(value) > LARGEST_OBJECT_BYTES * 4 // 3 + 4:
        raise accepted
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise accepted from None
    if len(content) > LARGEST_OBJECT_BYTES:
        raise accepted
    return content


def _tunables(value: Any) -> tuple[tuple[str, int], ...]:
    accepted = ValueError("at most 256 names of C with whole numbers of 64 bits")
    if type(value) is not dict or len(value) > 256:
        raise accepted
    for name, number in value.items():
        if not C_NAME.fullmatch(name) or not is_whole(number, -(1 << 63), _U64):
            raise accepted
    return tuple(sorted(value.items()))


def _entries(value: Any) -> tuple[tuple[int, int], ...]:
    accepted = ValueError(f"at most {MOST_ENTRIES} pairs of unsigned 64-bit numbers")
    if type(value) is not list or len(value) > MOST_ENTRIES:
        raise accepted
    pairs = [tuple(pair) if type(pair) is list and len(pair) == 2 else () for pair in value]
    if not all(pair and all(is_whole(number, 0, _U64) for number in pair) for pair in pairs):
        raise accepted
    return tuple(pairs)


def _deploy(**fields: Any) -> Deploy:
    return Deploy(*_ordered(fields), **fields)


def _trial(**fields: Any) -> Trial:
    return Trial(*_ordered(fields), **fields)


def _ordered(fields: dict[str, Any]) -> tuple[Order, bytes]:
    """Take what is to be loaded out of the fields of a request."""
    content = fields.pop("object_base64")
    names = ("policy", "tunables", "history", "classes", "report_digest", "token")
    order = Order(digest=hashlib.sha256(content).hexdigest(), **{name: fields.pop(name) for name in names})
    return order, content


_cgroup = accept.or_empty(accept.cgroup)
_digest = accept.matching(SHA256, "a SHA-256 in lower-case hex")
_token = accept.matching(_TOKEN, "a deployment token")
_number = accept.whole(1, 1 << 53)
_seconds = accept.number(1, 7 * 86400, "seconds")
_stage = accept.one_of(Stage)
_accepted = accept.list_of(accept.one_of(ACCEPTABLE), ", ".join(ACCEPTABLE))
_pid = accept.whole(1, 1 << 22)
"""PID_MAX_LIMIT (include/linux/threads.h)."""

_ORDER: _Fields = {
    "policy": (accept.matching(C_NAME, "a name of C"), _REQUIRED),
    "object_base64": (_content, _REQUIRED),
    "tunables": (_tunables, _REQUIRED),
    "history": (_entries, ()),
    "classes": (_entries, ()),
    "report_digest": (_digest, _REQUIRED),
    "token": (_token, _REQUIRED),
}

_VERBS: dict[str, tuple[_Fields, Callable[..., Request]]] = {
    "status": ({}, Status),
    "policies": ({}, Policies),
    "history": ({"limit": (accept.whole(1, LONGEST_HISTORY), 20)}, History),
    "events": ({"after": (accept.whole(-1, 1 << 53), -1), "follow": (accept.flag, True)}, Events),
    "deploy": (
        {
            **_ORDER,
            "stage": (_stage, Stage.PULSE),
            "cgroup": (_cgroup, ""),
            "lease_s": (_seconds, 600.0),
            "again": (accept.flag, False),
            "pid": (_pid, 0),
            "better": (accept.one_of(Better), None),
            "accept": (_accepted, ()),
        },
        _deploy,
    ),
    "trial": (
        {**_ORDER, "lease_s": (_seconds, _REQUIRED), "again": (accept.flag, False), "accept": (_accepted, ())},
        _trial,
    ),
    "renew": (
        {
            "deployment": (_number, _REQUIRED),
            "lease_s": (_seconds, 600.0),
            "token": (_token, ""),
            "report_digest": (_digest, ""),
            "metric": (_measured, ()),
        },
        Renew,
    ),
    "promote": ({"deployment": (_number, _REQUIRED), "accept": (_accepted, ())}, Promote),
    "rollback": ({"deployment": (_number, 0), "to_default": (accept.flag, False)}, Rollback),
}
