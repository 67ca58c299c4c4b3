"""Keeping what was deployed: renews its lease, reports the workload's own metric, and shows what happens.

schedagentd takes a policy away that nobody keeps. So a keeper that dies needs no clean-up: its lease lapses. A keeper
whose policy was replaced stands by for as long as schedagentd may restore it, because nobody else would renew it then.
"""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from schedagent.client.daemon import DaemonClient
from schedagent.core.errors import MetricUnavailable, SchedagentError, SetupError, UsageError
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

    Raises:
        UsageError: the command cannot be split into words.
    """

    command: str
    timeout_s: float

    def __post_init__(self) -> None:
        self._words()

    def __call__(self) -> float:
        """Run the command; raise MetricUnavailable if that gives no number."""
        try:
            ended = proc.run(self._words(), timeout_s=self.timeout_s)
        except SetupError as error:
            raise MetricUnavailable(f"the metric's command failed: {error.message}") from None
        printed = ended.stdout.decode(errors="replace").strip()
        if ended.returncode != 0:
            raise MetricUnavailable(f"the metric's command ended with status {ended.returncode}: {self.command}")
        return _number(printed, f"what the metric's command printed, {printed[:80]!r},")

    def _words(self) -> list[str]:
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise UsageError(f"the metric's command cannot be read: {error}") from None
        if not words:
            raise UsageError("the metric's command is empty")
        return words


@dataclass(frozen=True)
class QueryMetric:
    """A number that a Prometheus server computes.

    Args:
        url: of the server, such as http://localhost:9090.
        query: an expression of PromQL with one value.

    Raises:
        UsageError: the address is no address of a web server.
    """

    url: str
    query: str
    timeout_s: float

    def __post_init__(self) -> None:
        if not self.url.lower().startswith(("http://", "https://")):
            raise UsageError(f"{self.url} is not the address of a Prometheus server", "such as http://localhost:9090")

    def __call__(self) -> float:
        """Ask for the value now (Prometheus HTTP API, instant queries); raise MetricUnavailable if there is none."""
        import http.client
        import urllib.parse
        import urllib.request

        address = f"{self.url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': self.query})}"
        try:
            with urllib.request.urlopen(address, timeout=self.timeout_s) as answer:
                content = json.loads(answer.read(_LONGEST_ANSWER))
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise MetricUnavailable(f"the metric's query {self.query!r} was not answered: {error}") from None
        return self._value(content)

    def _value(self, answer: Any) -> float:
        query = f"the metric's query {self.query!r}"
        try:
            is_scalar, result = answer["data"]["resultType"] == "scalar", answer["data"]["result"]
            [_at, value] = result if is_scalar else result[0]["value"]
        except (KeyError, IndexError, TypeError, ValueError):
            raise MetricUnavailable(f"{query} has no value now", "try it in Prometheus") from None
        if not is_scalar and len(result) != 1:
            raise MetricUnavailable(f"{query} has {len(result)} values", "aggregate them: sum(...)")
        return _number(value, f"the value of {self.query!r}, {value!r},")


class Keeper:
    """Keeps one deployment until it ends for good: it may be restored, under another number, after it was replaced.

    Args:
        number: of the deployment; schedagentd takes it for what is restored, too.
        lease_s: how long each renewal is for; it is renewed three times as often.
        report: gets a line for whatever happens.
        metric, every_s: the workload's own metric, and how often it is measured.
    """

    def __init__(
        self,
        client: DaemonClient,
        number: int,
        lease_s: float,
        report: Callable[[str], None],
        metric: Metric | None = None,
        every_s: float = 5.0,
    ) -> None:
        self._client, self._number, self._lease_s, self._report = client, number, lease_s, report
        self._metric, self._every_s = metric, every_s
        self._failures = 0
        self._standing_by = False
        self._shown_state: tuple[Any, ...] = ()
        self._last_trouble = ""
        self._renewed_at = time.monotonic()
        self._measured_at = 0.0

    def run(self) -> dict[str, Any]:
        """Keep it; return its summary when it has ended.

        Raises:
            SchedagentError: schedagentd could not be reached, or refused to renew, for longer than a lease lasts.
            MetricUnavailable: the metric could not be measured any more; it was rolled back.
        """
        while True:
            try:
                if ended := self._check():
                    return ended
                self._renew_if_due()
            except MetricUnavailable:
                raise
            except SchedagentError as error:  # it is being started again, is busy, or refuses: the lease decides
                if time.monotonic() - self._renewed_at > self._lease_s + 2 * POLL_S:
                    raise
                self._report_once(error.message)
            time.sleep(min(POLL_S, self._lease_s / 10, max(0.05, self._every_s)))

    def roll_back(self) -> dict[str, Any] | None:
        """End it, unless it was replaced: what others deployed is theirs. Return its summary."""
        if not self._standing_by:
            self._client.ask("rollback", deployment=self._number)
        return self._end()

    def _check(self) -> dict[str, Any] | None:
        """Report what changed; return its summary if it has ended."""
        status = self._client.ask("status")
        for summary in (status["active"], status["waiting"]):
            if summary and is_of(summary, self._number):
                if self._standing_by:  # its lease began when it was restored, and may be a short one
                    self._standing_by = False
                    self._renew([])
                self._show(summary)
                return None
        if may_return(status, self._number):
            self._stand_by((status["active"] or status["waiting"])["deployment"])
            return None
        return self._end()

    def _end(self) -> dict[str, Any] | None:
        for summary in self._client.ask("history", limit=100)["history"]:
            if is_of(summary, self._number) and summary["phase"] == "ended":
                ended: dict[str, Any] = summary
                return ended
        return None

    def _stand_by(self, instead: int) -> None:
        """Nothing is to be renewed now."""
        if not self._standing_by:
            self._report(f"deployment {self._number}: replaced by deployment {instead}; kept on if it is restored")
        self._standing_by = True
        self._renewed_at, self._shown_state = time.monotonic(), ()

    def _show(self, summary: dict[str, Any]) -> None:
        if summary["stage"] == "pulse":  # it runs and rests, once a second at first
            words, length = "rolling out", f" of {summary['pulse_s']:g} s"
        else:
            words = " and ".join([summary["phase"], *(name for name in ("proven", "pinned") if summary[name])])
            length = ""
        state = (words, summary["stage"], length)
        if state != self._shown_state:
            self._shown_state = state
            self._report(f"deployment {summary['deployment']}: {words}, stage {summary['stage']}{length}")

    def _renew_if_due(self) -> None:
        if self._standing_by:
            return
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
        except MetricUnavailable as error:
            self._failures += 1
            self._report_once(error.message)
            if self._failures >= FAILURES:
                self.roll_back()
                raise MetricUnavailable(
                    f"deployment {self._number} was rolled back, because it could not be watched: {error.message}",
                    error.hint,
                ) from None
            return []
        self._failures = 0
        return [value]

    def _renew(self, metric: list[float]) -> None:
        fields: dict[str, Any] = {"metric": metric} if metric else {}
        self._client.ask("renew", deployment=self._number, lease_s=self._lease_s, **fields)
        self._renewed_at = time.monotonic()

    def _report_once(self, trouble: str) -> None:
        """Report a trouble once, not each time it is met, until there is another."""
        if trouble != self._last_trouble:
            self._report(trouble)
        self._last_trouble = trouble


def is_of(summary: Mapping[str, Any], number: int) -> bool:
    """Whether this is the deployment of that number, or that one restored."""
    return number in (summary["deployment"], summary.get("restores"))


def may_return(status: Mapping[str, Any], number: int) -> bool:
    """Whether schedagentd would restore the deployment of that number if it had to take away what runs or rests."""
    return bool(status["active"] or status["waiting"]) and number in status.get("restorable", ())


def _number(text: Any, what: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or abs(value) > 1e18:  # as much as schedagentd takes
        raise MetricUnavailable(f"{what} is not a number that can be compared")
    return value
