"""schedagentd as everybody else sees it: JSON lines over its socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from schedagent.core import errors
from schedagent.core.errors import DaemonAbsent, SchedagentError, SetupError
from schedagent.core.terminal.answers import plain

SOCKET = Path("/run/schedagent/schedagentd.sock")
VERSION = 1
TIMEOUT_S = 60.0
"""Loading a large policy takes seconds, and others may be ahead."""

_LONGEST_ANSWER = 64 << 20
_SIDE = "schedagentd: "


@dataclass
class Trial:
    """A trial that schedagentd runs.

    Args:
        deployment: what it answered when the policy was in charge.
        ended: the same when the default scheduler was again, with `end` and `detail`; None before.
    """

    deployment: dict[str, Any]
    ended: dict[str, Any] | None = None


@dataclass(frozen=True)
class DaemonClient:
    """Asks schedagentd.

    Args:
        path: its socket.
        timeout_s: how long to wait for an answer.
    """

    path: Path = SOCKET
    timeout_s: float = TIMEOUT_S

    def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        """Send one request and return the answer; fields are those of schedagentd/messages.py.

        Raises:
            DaemonAbsent: it is not running.
            SetupError: it gives no answer that can be read.
            SchedagentError: what it refused, by its own type; the message begins with "schedagentd: ".
        """
        with self._request(verb, fields) as stream:
            return _answer(stream)

    @contextmanager
    def trial(self, order: Mapping[str, Any], lease_s: float, again: bool = False) -> Iterator[Trial]:
        """Have a policy in charge of this machine while the block runs, for `lease_s` at most.

        Before it and afterwards the default scheduler is. It is as well when this process ends, however that comes.

        Args:
            order: what is loaded and its token, as verification.deployable.deployment_fields returns it.
            again: although the circuit breaker ended it before.

        Raises:
            SchedagentError: it was refused, and nothing was changed.
        """
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
            connection.makefile("rb") as stream,
        ):
            with self._errors():
                self._send(connection, "trial", {**order, "lease_s": lease_s, "again": again})
                trial = Trial(_answer(stream))
            try:
                yield trial
            finally:
                with self._errors():
                    connection.shutdown(socket.SHUT_WR)
                    trial.ended = _answer(stream)["trial"]

    def events(self, after: int = -1, follow: bool = True) -> Iterator[dict[str, Any]]:
        """Yield events: those after number `after` (-1: none) and, if `follow`, whatever happens until it ends."""
        with self._request("events", {"after": after, "follow": follow}, patient=follow) as stream:
            if follow:
                _answer(stream)
            for line in stream:
                message = plain(json.loads(line))
                if "event" in message:
                    yield message["event"]
                else:
                    _checked(message)

    @contextmanager
    def _request(self, verb: str, fields: dict[str, Any], patient: bool = False) -> Iterator[BinaryIO]:
        with self._errors(), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            self._send(connection, verb, fields)
            if patient:
                connection.settimeout(None)
            with connection.makefile("rb") as stream:
                yield stream

    def _send(self, connection: socket.socket, verb: str, fields: Mapping[str, Any]) -> None:
        request = json.dumps({"version": VERSION, "verb": verb, **fields}).encode() + b"\n"
        connection.settimeout(self.timeout_s)
        connection.connect(str(self.path))
        with suppress(BrokenPipeError, ConnectionResetError):  # it refused half-way; its answer says why
            connection.sendall(request)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Say of errors of the socket what they mean."""
        try:
            yield
        except TimeoutError:
            raise SetupError(f"schedagentd at {self.path} did not answer within {self.timeout_s:g} s") from None
        except PermissionError:
            raise SetupError(f"this user may not ask schedagentd at {self.path}", "be of group schedagent") from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise DaemonAbsent(f"schedagentd is not running: nobody listens on {self.path}", _START) from None
        except OSError as error:
            raise SetupError(f"schedagentd at {self.path} cannot be asked: {error.strerror or error}", _START) from None


_START = "start it: systemctl start schedagentd.socket"


def _answer(stream: BinaryIO) -> dict[str, Any]:
    line = stream.readline(_LONGEST_ANSWER)
    if not line.endswith(b"\n"):
        raise SetupError("schedagentd ended before it answered", "see its log: journalctl -u schedagentd")
    try:
        return _checked(plain(json.loads(line)))
    except ValueError as error:
        raise SetupError(f"schedagentd gave an answer that cannot be read: {error}") from None


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what an answer contains; raise the error that it reports."""
    if "error" not in answer:
        content: dict[str, Any] = answer["ok"]
        return content
    raise raised(answer["error"], _SIDE)


def raised(fault: dict[str, Any], side: str) -> SchedagentError:
    """Return the error that a service reports, by its own type.

    Args:
        side: what the message begins with.
    """
    kind = getattr(errors, fault["kind"], None)
    chosen = kind if isinstance(kind, type) and issubclass(kind, SchedagentError) else SchedagentError
    return chosen(f"{side}{fault['message']}", hint=fault["hint"])
