"""schedagentd as everybody else sees it: JSON lines over its socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
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
        request = json.dumps({"version": VERSION, "verb": verb, **fields}).encode() + b"\n"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self.timeout_s)
                connection.connect(str(self.path))
                with suppress(BrokenPipeError, ConnectionResetError):  # it refused half-way; its answer says why
                    connection.sendall(request)
                if patient:
                    connection.settimeout(None)
                with connection.makefile("rb") as stream:
                    yield stream
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
