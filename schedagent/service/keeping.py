"""Keeping what was deployed: its lease is renewed while this service lives and its workload waits no longer than usual.

Nothing is ended here by force: what is not renewed lapses, and schedagentd reverts it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from repo_store.service_records import ServiceRecords
from schedagent.client.daemon import DaemonClient
from schedagent.client.keeper import is_of, may_return
from schedagent.core.errors import RepositoryError, SchedagentError
from schedagent.core.recommendation import MACHINE, ApplyRequest, Progress, Standing
from schedagent.core.service_settings import ServiceSettings
from schedagent.service.drift import RECENT, InARow, busy, worse

log = logging.getLogger(__name__)

POLL_S = 20.0
"""How often schedagentd is asked at the latest, while something is kept."""

TOKEN_LEFT_S = 6 * 3600.0
"""A token lives for a day: with a quarter of that left, a newer one is asked for."""

Answer = Mapping[str, Any]
"""What schedagentd answers, or one deployment in it."""


class Keeper:
    """Renews the leases of the requests that were deployed, and notes their ends.

    Args:
        records: with the requests and what was measured.
        client: the way to schedagentd.
        now: Unix time.
    """

    def __init__(
        self, records: ServiceRecords, client: DaemonClient, settings: ServiceSettings, now: Callable[[], float]
    ) -> None:
        self._records = records
        self._client = client
        self._settings = settings
        self._now = now
        self._worse = InARow()
        self._judged: dict[int, float] = {}
        self.wants_token: set[int] = set()
        """Numbers of requests whose deployment would end soon with its token."""

    @property
    def poll_s(self) -> float:
        """How often `tick` is to be called: three times in each lease at least."""
        return min(POLL_S, self._settings.lease_s / 3)

    def tick(self) -> None:
        """Renew what is kept, and note what ended. An unreachable schedagentd is asked again the next time."""
        self.wants_token.clear()
        kept = self._records.requests(Progress.KEEPING)
        if not kept:
            return
        try:
            status = self._client.ask("status")
            for request in kept:
                self._keep(request, status)
        except RepositoryError:
            raise
        except SchedagentError as error:
            log.warning("a lease could not be renewed: %s", error.message)

    def _keep(self, request: ApplyRequest, status: Answer) -> None:
        alive = (status[name] for name in ("active", "waiting") if status[name])
        deployment = next((candidate for candidate in alive if is_of(candidate, request.deployment)), None)
        if deployment is None:
            if not may_return(status, request.deployment):  # else it was replaced, and is kept on if it is restored
                self._note_end(request)
        elif reason := self._why_not(request):
            self._let_go(request, f"deployment {request.deployment} is not renewed any more: {reason}", Standing.FAILED)
        else:
            self._client.ask("renew", deployment=request.deployment, lease_s=self._settings.lease_s)
            if deployment["token_left_s"] < TOKEN_LEFT_S:
                self.wants_token.add(request.number)

    def _note_end(self, request: ApplyRequest) -> None:
        """Store why a deployment ended."""
        history = self._client.ask("history", limit=100)["history"]
        ended = next((entry for entry in history if is_of(entry, request.deployment)), None)
        why = f"{ended['end']}: {ended['detail']}".removesuffix(": ") if ended else "schedagentd does not know it"
        standing = Standing.FAILED if ended is None or ended["tripped"] else Standing.APPLIED
        self._let_go(request, f"deployment {request.deployment} ended: {why}", standing)

    def _let_go(self, request: ApplyRequest, note: str, standing: Standing) -> None:
        log.warning("%s", note)
        ended = replace(request, progress=Progress.DONE, ended_at=self._now(), note=note)
        self._records.save_request(ended, standing)

    def _why_not(self, request: ApplyRequest) -> str:
        """Return what is worse than it usually was before this was deployed, in the cgroup or on the whole machine;
        empty while nothing is."""
        subject = request.cgroup or MACHINE
        baseline = self._records.baseline(subject)
        if baseline is None or baseline.until > request.started_at:
            return ""
        later = self._records.readings(subject, since=request.started_at, limit=4 * RECENT, busy=True)
        latest = busy(later)[-RECENT:]
        if not latest or latest[-1].at == self._judged.get(request.number):
            return ""
        self._judged[request.number] = latest[-1].at
        worsened = worse(baseline, latest)
        surely = self._worse.enough(str(request.number), bool(worsened))
        return "; ".join(map(str, worsened)) if surely else ""
