"""Numbers from a Prometheus server, over its HTTP API. What it answers is anybody's: bounded in time and size, strict.

https://prometheus.io/docs/prometheus/latest/querying/api/: /api/v1/query, /api/v1/query_range.
"""

from __future__ import annotations

import http.client
import json
import math
import re
import socket
import threading
import urllib.parse
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from schedagent.core.errors import MetricUnavailable, UsageError
from schedagent.core.terminal.foreign import quote

WINDOW = "$window"
"""Stands in a query for what is measured of a window."""
LIMIT_S = 10.0
LONGEST_ANSWER_BYTES = 4 << 20
MOST_POINTS = 240
_PIECE = 1 << 16
_LOOK_BACK = re.compile(r"\[\s*((?:[0-9]+(?:ms|[smhdwy]))+)\s*(?::[^\]]*)?\]")
_PART = re.compile(r"([0-9]+)(ms|[smhdwy])")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
_QUOTED = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|`[^`]*`")


@dataclass(frozen=True)
class Server:
    """Where a Prometheus server is.

    Args:
        secure: whether it speaks TLS.
        path: of its API's root, without a slash at its end.
    """

    secure: bool
    host: str
    port: int
    path: str

    def value(self, query: str, begin: float, end: float) -> float:
        """Return the number that a query has for a part of time.

        A query with `$window` looks back over all of it from its end; another one is asked for all along, and its mean
        counts.

        Args:
            begin, end: Unix time in seconds.

        Raises:
            MetricUnavailable: there is no such number, or no answer that can be read in time.
        """
        if WINDOW in query:
            ranged = query.replace(WINDOW, f"{max(1, round(1000 * (end - begin)))}ms")
            return self._number(query, "query", {"query": ranged, "time": f"{end:.3f}"}, "value")
        step = max(1.0, (end - begin) / MOST_POINTS)
        asked_for = {"query": query, "start": f"{begin:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        return self._number(query, "query_range", asked_for, "values")

    def _number(self, query: str, verb: str, parameters: Mapping[str, str], key: str) -> float:
        content = self._exchange(f"{self.path}/api/v1/{verb}?{urllib.parse.urlencode(parameters)}", query)
        values = [value for value in _values(content, query, key) if math.isfinite(value)]
        if not values:
            hint = "try it in Prometheus"
            raise MetricUnavailable(f"the query {quote(query, 80)} has no number in this window", hint)
        return math.fsum(values) / len(values)

    def _exchange(self, address: str, query: str) -> Any:
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=LIMIT_S)
        watchdog = threading.Timer(LIMIT_S, lambda: _cut(connected))  # who sends a byte now and then never times out
        connected: socket.socket | None = None
        try:
            connection.connect()
            connected = connection.sock
            watchdog.start()
            connection.request("GET", address, headers={"Accept": "application/json"})
            answer = connection.getresponse()
            content = answer.read(LONGEST_ANSWER_BYTES + 1)
            if len(content) > LONGEST_ANSWER_BYTES:
                raise ValueError(f"it is longer than {LONGEST_ANSWER_BYTES >> 20} MiB")
            if answer.status not in (200, 400, 422, 503):
                raise ValueError(f"status {answer.status}")
            return json.loads(content)
        except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
            why = quote(str(error) or type(error).__name__, 120)
            where = f"{self.host}:{self.port}"
            raise MetricUnavailable(f"the query {quote(query, 80)} was not answered by {where}: {why}") from None
        finally:
            watchdog.cancel()
            connection.close()


def _cut(connected: socket.socket | None) -> None:
    with suppress(OSError):
        if connected is not None:
            connected.shutdown(socket.SHUT_RDWR)


def _values(content: Any, query: str, key: str) -> list[float]:
    """Return the numbers of the one series of an answer."""
    shown = quote(query, 80)
    if isinstance(content, dict) and content.get("status") == "error":
        raise MetricUnavailable(f"the query {shown} is refused: {quote(str(content.get('error')), 200)}")
    try:
        result = content["data"]["result"]
        if content["data"]["resultType"] == "scalar":
            return [_number(result)]
        if len(result) > 1:
            raise MetricUnavailable(f"the query {shown} has {len(result)} values", "aggregate them: sum(...)")
        points = [point for series in result for point in ([series[key]] if key == "value" else series[key])]
        return [_number(point) for point in points[: 2 * MOST_POINTS]]
    except (KeyError, IndexError, TypeError, ValueError):
        raise MetricUnavailable(f"the answer to the query {shown} cannot be read") from None


def _number(point: Any) -> float:
    _at, value = point
    if not isinstance(value, str) or len(value) > 40:
        raise ValueError("no number of Prometheus")
    return float(value)


def server_of(address: str) -> Server:
    """Return the server at an address such as http://127.0.0.1:9090.

    Raises:
        UsageError: it is none, or it holds a password.
    """
    hint = "such as http://127.0.0.1:9090"
    try:
        parts = urllib.parse.urlsplit(address)
        port = parts.port
    except ValueError:
        raise UsageError(f"{address!r} is not the address of a Prometheus server", hint) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not address.isprintable() or " " in address:
        raise UsageError(f"{address!r} is not the address of a Prometheus server", hint)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError("the address of a Prometheus server is scheme, host, port and path, without a password", hint)
    secure = parts.scheme == "https"
    return Server(secure, parts.hostname, port or (443 if secure else 80), parts.path.rstrip("/"))


def look_back_s(query: str) -> float:
    """Return how far a query looks back at most, in seconds, by its range selectors."""
    bare = _QUOTED.sub("", query)
    ranges = [match[1] for match in _LOOK_BACK.finditer(bare)]
    return max((sum(int(n) * _SECONDS[unit] for n, unit in _PART.findall(text)) for text in ranges), default=0.0)
