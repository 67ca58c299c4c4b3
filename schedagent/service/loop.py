"""The agent service: measures, recommends, and carries out requests and what it may do by itself, until it is stopped.

One thread. What takes long, a run or a compiler, is a process of its own that ends with this one; it is asked to end
first, so that its run is noted as interrupted and continues when the service is back.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from repo_store.store import PolicyRepository
from schedagent.core.errors import RepositoryError, SchedagentError, SetupError, UsageError
from schedagent.core.process.child import Child
from schedagent.core.process.systemd import Notifier
from schedagent.core.recommendation import ApplyRequest, Progress, Reading, Recommendation, RecommendationKind, Standing
from schedagent.core.service_settings import Mode
from schedagent.core.settings import Settings, private_file, service_watch, writable
from schedagent.run.lifecycle import only_one
from schedagent.service.acting import work
from schedagent.service.drift import RECENT, InARow, busy, drifts, make_baseline, mix_of, waits_much
from schedagent.service.findings import Findings
from schedagent.service.keeping import Keeper
from schedagent.service.limits import DAY_S, may_begin
from schedagent.service.pruning import prune_old

log = logging.getLogger(__name__)

TICK_S = 1.0
RUNS_EVERY_S = 600.0
"""How often finished runs are searched for something to deploy: runs begun elsewhere end, too."""
BEGIN_EVERY_S = 2.0
PRUNE_EVERY_S = 86400.0
JUST_ASKED_S = 10.0
"""A request that runs, but was not begun, is left to the process that has just made it for itself."""
AGAIN_S, TOKEN_AGAIN_S = 60.0, 1800.0
"""How soon a request that did not end (a full disk, say) is carried out again, and a newer token is tried again."""
GRACE_S = 5.0
"""How long a process that carries something out may take to end by itself; ending a machine takes under a second."""

Work = Callable[[Callable[[bytes], None], Settings, int], None]


class Meter(Protocol):
    """See schedagent.service.reading.HostMeter."""

    def read(self) -> list[Reading]: ...


class Service:
    """The agent service.

    Args:
        settings: of this program.
        repository: where all is kept.
        meter: what measures.
        keeper: what renews leases.
        notifier: the way to systemd.
        now: Unix time.
        work: what carries a request out, in another process.
        prune: what removes what is old.
    """

    def __init__(
        self,
        settings: Settings,
        repository: PolicyRepository,
        meter: Meter,
        keeper: Keeper,
        notifier: Notifier,
        now: Callable[[], float] = time.time,
        work: Work = work,
        prune: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._service = settings.daemon
        self._records = repository.service
        self._findings = Findings(repository, settings.daemon)
        self._meter = meter
        self._keeper = keeper
        self._notifier = notifier
        self._now = now
        self._work = work
        self._prune = prune
        self._due: dict[str, float] = {}
        self._drifting = InARow()
        self._nameless: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None
        self._disturbed = False
        self._not_before: dict[int, float] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; what is being carried out is stopped then."""
        self._notifier.tell("READY=1")
        try:
            while not stop.is_set():
                self.tick()
                self._notifier.tell("WATCHDOG=1")
                try:
                    await asyncio.wait_for(stop.wait(), TICK_S)
                except TimeoutError:
                    continue
        finally:
            self._notifier.tell("STOPPING=1")
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)

    def tick(self) -> None:
        """Do what is due."""
        for what, every_s, do in (
            ("measure", self._service.reading_every_s, self.measure),
            ("keep", self._keeper.poll_s, self._keeper.tick),
            ("runs", RUNS_EVERY_S, self.examine_runs),
            ("begin", BEGIN_EVERY_S, self.begin_next),
            ("prune", PRUNE_EVERY_S, self.prune),
        ):
            if self._is_due(what, every_s):
                try:
                    do()
                except RepositoryError as error:  # a full disk: what is deployed is still kept
                    log.error("%s", error)

    # Measuring

    def measure(self) -> None:
        """Measure the interval since the last reading, judge it, and recommend what follows."""
        readings, now = self._meter.read(), self._now()
        if self._disturbed:  # it would measure its own work
            self._disturbed = self._works
            return
        self._records.add_readings(readings, keep_since=now - self._service.keep_days * DAY_S)
        for reading in readings:
            self._judge(reading, now)
        self._recommend(self._findings.of_schedule(self._local()))

    def _judge(self, reading: Reading, now: float) -> None:
        """Compare what a subject shows with what is usual, once it is known."""
        baseline = self._records.baseline(reading.subject)
        if baseline is None or now - baseline.until > self._service.baseline_days * DAY_S:
            count = self._service.baseline_readings
            readings = busy(self._records.readings(reading.subject, limit=4 * count, busy=True))[-count:]
            if len(readings) == count:
                usual = make_baseline(readings)
                self._records.save_baseline(usual)
                log.info("the baseline of %s is complete", reading.subject)
                if waits_much(usual, self._service.much_delay_s):
                    self._recommend(self._findings.of_waiting(usual, now))
            return
        if not busy([reading]):
            return
        later = self._records.readings(reading.subject, since=baseline.until, limit=4 * RECENT, busy=True)
        latest = busy(later)[-RECENT:]
        drifted = drifts(baseline, latest)
        if not self._drifting.enough(reading.subject, bool(drifted)):
            return
        recommendations = list(self._findings.of_drift(baseline, drifted, mix_of(latest), now))
        if not recommendations and self._nameless.get(reading.subject) != baseline.since:
            self._nameless[reading.subject] = baseline.since
            log.info(
                "%s is not as usual, but its workload is unknown: name it in [[daemon.workloads]]",
                reading.subject,
            )
        self._recommend(recommendations)

    def examine_runs(self) -> None:
        """Recommend what finished runs found better."""
        now = self._now()
        current = list(self._findings.of_runs(now))
        self._recommend(current)
        for outdated in self._findings.outdated(current, now):
            self._records.set_standing(outdated, Standing.WITHDRAWN, "a newer run of this workload has ended")

    def _recommend(self, recommendations: Sequence[Recommendation] | Iterator[Recommendation]) -> None:
        for recommendation in recommendations:
            stored = self._records.recommend(recommendation)
            if stored == recommendation:
                log.info("recommendation %s (%s): %s", recommendation.id, recommendation.kind, recommendation.why)

    # Doing

    @property
    def _works(self) -> bool:
        """Whether something is being carried out."""
        return self._task is not None and not self._task.done()

    def begin_next(self) -> None:
        """Begin what was cut short, else what was requested, else what the service may do by itself; one at a time."""
        if self._works:
            return
        requests = self._records.requests(Progress.RUNNING, Progress.QUEUED, Progress.KEEPING)
        for request in requests:
            if self._is_due_to(request) and self._is_free(request):
                again_s = TOKEN_AGAIN_S if request.progress is Progress.KEEPING else AGAIN_S
                self._not_before[request.number] = self._now() + again_s
                self._disturbed = True
                self._task = asyncio.create_task(self._carry_out(request))
                return
        if self._service.mode is not Mode.MONITOR:
            self._request_by_itself(requests)

    def _request_by_itself(self, requests: Sequence[ApplyRequest]) -> None:
        """Queue one recommendation that may be carried out without a request of the user's.

        Args:
            requests: those not yet done. Nothing is deployed in the place of what is being kept.
        """
        now, requested = self._now(), {request.recommendation_id for request in requests}
        keeping = any(request.progress is Progress.KEEPING for request in requests)
        for recommendation in reversed(self._records.recommendations()):
            if (
                recommendation.at(now) is not Standing.OPEN
                or recommendation.id in requested
                or (keeping and recommendation.kind is RecommendationKind.DEPLOY)
            ):
                continue
            begun = self._records.begun_by_service(recommendation.kind, now - DAY_S)
            if may_begin(self._service, recommendation, self._local(), begun=begun, kernel_release=platform.release()):
                self._records.ask(ApplyRequest(0, recommendation.id, "", "", now))
                return

    def _is_due_to(self, request: ApplyRequest) -> bool:
        """Whether there is something to do for a request, and it was not attempted just now."""
        wanted = request.progress is not Progress.KEEPING or request.number in self._keeper.wants_token
        left_s = self._not_before.get(request.number, 0.0) - self._now()
        return wanted and not 0 < left_s <= TOKEN_AGAIN_S  # longer only if the clock was set back

    def _is_free(self, request: ApplyRequest) -> bool:
        """Whether no other process carries this request out, is about to, or works on its run."""
        if request.progress is Progress.RUNNING and not request.started_at:
            return not 0 <= self._now() - request.asked_at < JUST_ASKED_S
        try:
            with only_one(self._settings, f"request-{request.number}"):
                pass
            if request.run_id:
                with only_one(self._settings, request.run_id):
                    pass
        except UsageError:
            return False
        return True

    async def _carry_out(self, request: ApplyRequest) -> None:
        """Have another process carry a request out; cancelling this stops it."""
        log.info("request %d: carrying out recommendation %s", request.number, request.recommendation_id)
        with tempfile.TemporaryDirectory(prefix="schedagent-request-") as folder:
            task = f"carries out request {request.number}"
            child = Child(
                self._work, (self._settings, request.number), Path(folder), _is_last, task=task, grace_s=GRACE_S
            )
            try:
                async with aclosing(child.answers()) as lines:
                    async for line in lines:
                        log.info("request %d: %s", request.number, next(iter(json.loads(line).values())))
            except SetupError as error:
                self._failed(request, error)
            finally:
                await child.end()
                self._due.pop("runs", None)

    def _failed(self, request: ApplyRequest, error: SchedagentError) -> None:
        """Note that the process died: it is not tried again, it would die again."""
        log.error("request %d: %s", request.number, error.message)
        now = self._records.request(request.number)
        if now.progress in (Progress.RUNNING, Progress.QUEUED):
            died = replace(now, progress=Progress.FAILED, ended_at=self._now(), note=error.message)
            self._records.save_request(died, Standing.FAILED)

    def prune(self) -> None:
        """Remove what is old, unless something is being carried out: then it is due again with the next tick."""
        if self._works:
            self._due.pop("prune", None)
        elif self._service.prune_days:
            self._prune()

    # Time

    def _is_due(self, what: str, every_s: float) -> bool:
        """Whether something is due; notes that it is done then. A clock that was set back makes it due, too."""
        now, next_at = self._now(), self._due.get(what, 0.0)
        if now < next_at <= now + every_s:
            return False
        self._due[what] = now + every_s
        return True

    def _local(self) -> datetime:
        return datetime.fromtimestamp(self._now()).astimezone()


def _is_last(line: bytes) -> bool:
    return line.startswith(b'{"ended":')


@contextmanager
def only_service(settings: Settings) -> Iterator[None]:
    """Be the only agent service on this state folder.

    Raises:
        UsageError: another one is, with its process id.
    """
    path = private_file(writable(settings.state_dir, "SCHEDAGENT_STATE") / "daemon.lock")
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            raise UsageError(f"the agent service runs already: {holder}", f"it holds {path}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} since {datetime.now().astimezone().isoformat(timespec='seconds')}\n")
        file.flush()
        yield


def service_lives(settings: Settings) -> bool:
    """Whether an agent service runs on this state folder."""
    path = settings.state_dir / "daemon.lock"
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def serve(settings: Settings, stop_on: Callable[[asyncio.Event], Any]) -> None:
    """Be the agent service until it is stopped.

    Args:
        stop_on: has the event set when the service is to end.

    Raises:
        UsageError: another one runs.
        RepositoryError: the repository cannot be used.
    """
    from schedagent.client.daemon import DaemonClient
    from schedagent.run.opening import open_repository
    from schedagent.service.reading import HostMeter

    async def live() -> None:
        stop = asyncio.Event()
        stop_on(stop)
        with open_repository(settings) as repository:
            client = DaemonClient(settings.daemon.socket)
            keeper = Keeper(repository.service, client, settings.daemon, time.time)
            notifier = Notifier(*service_watch())
            try:
                meter = HostMeter(settings.daemon.watched)
                prune = partial(prune_old, settings)
                await Service(settings, repository, meter, keeper, notifier, prune=prune).run(stop)
            finally:
                notifier.close()

    with only_service(settings):
        asyncio.run(live())
