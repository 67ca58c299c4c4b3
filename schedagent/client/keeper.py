"""Keeping what was deployed: its lease is renewed, the workload's own metric reported, and what happens told.

schedagentd takes a policy away that nobody keeps. So a keeper that dies needs no clean-up: its lease lapses.
"""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from schedagent.client.daemon import DaemonClient
from schedagent.core.errors import MetricError, SchedagentError, SetupError
from schedagent.core.process import proc

POLL_S = 1.0
LONGEST_MEASURE_S = 30.0
FAILURES = 3
"""So many failed measurements in a row end the deployment: whoever asked for the metric wants nothing to run unseen."""
_LONGEST_ANSWER = 1 << 20

Metric = Callable[[], float]


@dataclass(frozen=True)
class CommandMetric:
    """A number that a command prints.

    Args:
        command: words as a shell splits them; no shell runs them.
    """

    command: str
    timeout_s: float

    def __call__(self) -> float:
        try:
            ended = proc.run(shlex.split(self.command), timeout_s=self.timeout_s)
        except ValueError as error:
            raise MetricError(f"the command of the metric cannot be read: {error}") from None
        except SetupError as error:
            raise MetricError(f"the metric's command failed: {error.message}") from None
        printed = ended.stdout.decode(errors="replace").strip()
        if ended.returncode != 0:
            raise MetricError(f"the metric's command ended with status {ended.returncode}: {self.command}")
        return _number(printed, f"what the metric's command printed, {printed[:80]!r},")


@dataclass(frozen=True)
class QueryMetric:
    """A number that a Prometheus server computes.

    Args:
        url: of the server, such as http://localhost:9090.
        query: an expression of PromQL with one value.
    """

    url: str
    query: str
    timeout_s: float

    def __call__(self) -> float:
        """Ask for the value now (Prometheus HTTP API, instant queries)."""
        import urllib.error
        import urllib.parse
        import urllib.request

        if urllib.parse.urlsplit(self.url).scheme not in ("http", "https"):
            raise MetricError(f"{self.url} is no address of a Prometheus server", "such as http://localhost:9090")
        address = f"{self.url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': self.query})}"
        try:
            with urllib.request.urlopen(address, timeout=self.timeout_s) as answer:
                told = json.loads(answer.read(_LONGEST_ANSWER))
        except (OSError, ValueError) as error:
            raise MetricError(f"the metric's query {self.query!r} was not answered: {error}") from None
        return self._value(told)

    def _value(self, told: Any) -> float:
        try:
            found = told["data"]["result"]
            [_at, value] = found if told["data"]["resultType"] == "scalar" else found[0]["value"]
            alone = told["data"]["resultType"] == "scalar" or len(found) == 1
        except (KeyError, IndexError, TypeError, ValueError):
            raise MetricError(f"the metric's query {self.query!r} has no value now", "try it in Prometheus") from None
        if not alone:
            raise MetricError(f"the metric's query {self.query!r} has {len(found)} values", "aggregate them: sum(...)")
        return _number(value, f"the value of {self.query!r}, {value!r},")


class Keeper:
    """Keeps one deployment until it ends.

    Args:
        number: of the deployment.
        lease_s: how long each renewal is for; it is renewed three times as often.
        tell: gets a line for whatever happens.
        metric, every_s: the workload's own metric, and how often it is measured.
    """

    def __init__(
        self,
        client: DaemonClient,
        number: int,
        lease_s: float,
        tell: Callable[[str], None],
        metric: Metric | None = None,
        every_s: float = 5.0,
    ) -> None:
        self._client, self._number, self._lease_s, self._tell = client, number, lease_s, tell
        self._metric, self._every_s = metric, every_s
        self._failures = 0
        self._seen: tuple[Any, ...] = ()
        self._said = ""
        self._renewed_at = time.monotonic()
        self._measured_at = 0.0

    def run(self) -> dict[str, Any]:
        """Keep it; return its summary when it has ended.

        Raises:
            SchedagentError: schedagentd was not to be reached, or refused to renew, for longer than a lease lasts.
            MetricError: the metric could not be measured any more; it was rolled back.
        """
        while True:
            try:
                if ended := self._look():
                    return ended
                self._renew_if_due()
            except MetricError:
                raise
            except SchedagentError as error:  # it is being started again, is busy, or refuses: the lease decides
                if time.monotonic() - self._renewed_at > self._lease_s + 2 * POLL_S:
                    raise
                self._say(error.message)
            time.sleep(min(POLL_S, self._lease_s / 10, max(0.05, self._every_s)))

    def roll_back(self) -> dict[str, Any] | None:
        """End it; return its summary."""
        self._client.ask("rollback", deployment=self._number)
        return self._end()

    def _look(self) -> dict[str, Any] | None:
        """Tell what is new of it; return its summary if it has ended."""
        status = self._client.ask("status")
        for told in (status["active"], status["waiting"]):
            if told and told["deployment"] == self._number:
                self._show(told)
                return None
        return self._end()

    def _end(self) -> dict[str, Any] | None:
        found = self._client.ask("history", limit=100)["history"]
        return next((one for one in found if one["deployment"] == self._number and one["phase"] == "ended"), None)

    def _show(self, told: dict[str, Any]) -> None:
        seen = (told["phase"], told["stage"], told["proven"], told["pinned"], told["next_stage"])
        if seen == self._seen:
            return
        self._seen = seen
        state = " and ".join([told["phase"], *(name for name in ("proven", "pinned") if told[name])])
        following = f"; next: stage {told['next_stage']}" if told["next_stage"] else ""
        self._tell(f"deployment {self._number}: {state}, stage {told['stage']}{following}")

    def _renew_if_due(self) -> None:
        now = time.monotonic()
        if self._metric is not None and now - self._measured_at >= self._every_s:
            self._measured_at = now
            self._renew(self._measured(self._metric))
        elif now - self._renewed_at >= self._lease_s / 3:
            self._renew([])

    def _measured(self, metric: Metric) -> list[float]:
        """Measure; what fails a few times in a row rolls the deployment back."""
        try:
            value = metric()
        except MetricError as error:
            self._failures += 1
            self._say(error.message)
            if self._failures >= FAILURES:
                self.roll_back()
                raise MetricError(
                    f"deployment {self._number} was rolled back, because it could not be watched: {error.message}",
                    error.hint,
                ) from None
            return []
        self._failures = 0
        return [value]

    def _renew(self, metric: list[float]) -> None:
        asked: dict[str, Any] = {"metric": metric} if metric else {}
        self._client.ask("renew", deployment=self._number, lease_s=self._lease_s, **asked)
        self._renewed_at = time.monotonic()

    def _say(self, message: str) -> None:
        """Tell something once, not at each turn, until something else is to be told."""
        if message != self._said:
            self._tell(message)
        self._said = message


def _number(text: Any, what: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or abs(value) > 1e18:  # as much as schedagentd takes
        raise MetricError(f"{what} is no number that can be compared")
    return value
