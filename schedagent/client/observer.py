"""The observer as others use it: one JSON line over its socket, one back when the time is over."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from kernel_bpf.observe.sched_probe import Switch
from schedagent.client.daemon import raised
from schedagent.core.errors import SetupError
from schedagent.core.host_profile import HostProfile, read_profile
from schedagent.core.terminal.answers import plain

SOCKET = Path("/run/schedagent/observer.sock")
VERSION = 1
PATIENCE_S = 60.0
"""How much longer than the observation itself an answer may take."""

_LONGEST_ANSWER = 64 << 20


def ask(
    pid: int, cgroup: str, seconds: float, tracing: bool, path: Path = SOCKET
) -> tuple[HostProfile, tuple[Switch, ...], int]:
    """Have something watched with tier 2; return the profile, single switches, and how many more there were.

    Args:
        pid, cgroup, seconds, tracing: as schedagent/observer/messages.py has them.

    Raises:
        SetupError: it is not there, does not answer, or answers nonsense.
        SchedagentError: what it refused, by its own type; the message begins with "observer: ".
    """
    request = {"version": VERSION, "verb": "observe", "pid": pid, "cgroup": cgroup, "seconds": seconds}
    answer = _exchange(json.dumps({**request, "tracing": tracing}).encode() + b"\n", seconds, path)
    if "error" in answer:
        raise raised(answer["error"], "observer: ")
    try:
        content = answer["ok"]
        switches = tuple(map(_switch, content["switches"]))
        return read_profile(json.dumps(content["profile"])), switches, int(content["more_switches"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SetupError(f"the observer gave an answer that cannot be read: {error}") from None


def _switch(row: list[Any]) -> Switch:
    fields = dict(zip(Switch.__dataclass_fields__, row, strict=True))
    return Switch(**{**fields, "comm": fields["comm"].encode()})


def _exchange(request: bytes, seconds: float, path: Path) -> dict[str, Any]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds + PATIENCE_S)
            connection.connect(str(path))
            with suppress(BrokenPipeError, ConnectionResetError):  # it refused half-way; its answer says why
                connection.sendall(request)
            with connection.makefile("rb") as stream:
                line = stream.readline(_LONGEST_ANSWER)
    except TimeoutError:
        raise SetupError(f"the observer at {path} did not answer", _LOG) from None
    except PermissionError:
        raise SetupError(f"this user may not ask the observer at {path}", "be of group schedagent") from None
    except OSError as error:
        raise SetupError(f"the observer at {path} cannot be asked: {error.strerror or error}", _START) from None
    if not line.endswith(b"\n"):
        raise SetupError("the observer ended before it answered", _LOG)
    try:
        answer: dict[str, Any] = plain(json.loads(line))
    except ValueError as error:
        raise SetupError(f"the observer gave an answer that cannot be read: {error}") from None
    return answer


_START = "start it: systemctl start schedagent-observer.socket"
_LOG = "see its log: journalctl -u schedagent-observer"
