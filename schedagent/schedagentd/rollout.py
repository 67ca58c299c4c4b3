"""The roll-out: answers requests and reacts to time. It looks, `decisions` decides, the driver carries that out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from kernel_bpf.load.sched_ext import KernelState
from kernel_bpf.observe.schedulers import named, stop_hint
from schedagent.core.deployment import Deployment, End, Order, Stage
from schedagent.core.errors import RecordError, Refused
from schedagent.core.welch import Better
from schedagent.schedagentd import decisions
from schedagent.schedagentd.admission import (
    Accepted,
    cgroup_of,
    check_cgroup_limits,
    check_machine,
    check_scope,
    is_gone,
    tree_of,
)
from schedagent.schedagentd.config import Config
from schedagent.schedagentd.decisions import Decision, EndWith
from schedagent.schedagentd.driver import Active, Clock, Driver
from schedagent.schedagentd.kernel import Kernel
from schedagent.schedagentd.record import KEPT_TRIPS_DAYS, Record

log = logging.getLogger(__name__)


class Rollout:
    """Takes deployments through their stages; one thread calls it.

    Args:
        public_keys: returns the keys, in PEM, whose tokens count now.
    """

    def __init__(
        self,
        kernel: Kernel,
        record: Record,
        config: Config,
        public_keys: Callable[[], Sequence[bytes]],
        clock: Clock | None = None,
    ) -> None:
        self.kernel, self.record, self.config, self.clock = kernel, record, config, clock or Clock()
        accepted = Accepted(frozenset(config.accept_declared), frozenset(config.accept_reads))
        self.driver = Driver(
            kernel, record, public_keys, self.clock, config.sample_s, config.bounds.starvation_s, accepted
        )

    @property
    def busy(self) -> bool:
        """Whether `tick` has to be called every second."""
        return bool(self.driver.active or self.driver.pending or self.driver.unsaved)

    @property
    def in_charge(self) -> str:
        """What schedules tasks now, in words, by sysfs."""
        return self.driver.in_charge

    # What may be asked for

    def deploy(
        self,
        uid: int,
        order: Order,
        content: bytes,
        stage: Stage,
        cgroup: str,
        lease_s: float,
        again: bool = False,
        pid: int = 0,
        better: Better | None = None,
        accept_limits: bool = False,
    ) -> Deployment:
        """Accept a policy; it is loaded as soon as enough is known of the machine without it.

        Args:
            content: the object; `order.digest` is its digest.
            again: although the circuit breaker ended it before.
            pid: of the process whose tree the canary is, instead of a cgroup; 0 for none.
            better: which way the metric is better that renewals will report.
            accept_limits: although limits of cgroups end with it.

        Raises:
            Refused, TokenError, RecordError: nothing was changed.
        """
        self._require_nothing_waits()
        check_machine(self.kernel, ours=self.driver.active is not None)
        if (trip := self.record.trip_of(order.digest, self.clock.unix())) and not again:
            raise Refused(
                f"this object was ended by the circuit breaker before: {trip}",
                f"deploy another; this one in {KEPT_TRIPS_DAYS} days, or now if the cause is known: "
                "schedagent deploy --again",
            )
        tree = tree_of(self.kernel, stage, cgroup, pid) if pid else None
        if tree is None:
            check_scope(self.kernel, stage, cgroup, self.config.direct_full)
        token = self.driver.check_token(order, order.token, stage, cgroup, self.record.used_nonces)
        self._note_limits(uid, check_cgroup_limits(self.kernel, token, stage, accept_limits))
        accept = decisions.accept(
            order,
            content,
            token,
            uid=uid,
            stage=stage,
            cgroup=cgroup,
            tree=tree,
            lease_s=lease_s,
            better=better,
            now=self.driver.now,
            config=self.config,
        )
        self.driver.carry_out(accept)
        accepted = self.driver.waiting
        assert accepted is not None
        self._advance()
        return self.record.get(accepted.number) or accepted

    def renew(
        self, number: int, lease_s: float, token: str = "", report_digest: str = "", metric: Sequence[float] = ()
    ) -> Deployment:
        """Prolong a lease from now on; a newer token for the very same prolongs it beyond the first one's end.

        Args:
            metric: what the workload's own metric was since the last renewal. It can make the circuit breaker trip, and
                nothing else.

        Raises:
            Refused, TokenError, RecordError: the lease is as it was.
        """
        deployment = decisions.find(number, self.driver.running, self.driver.waiting)
        order, newer = deployment.order, None
        if token:
            order = replace(order, token=token, report_digest=report_digest)
            stage, cgroup = decisions.token_scope(deployment)
            newer = self.driver.check_token(order, token, stage, cgroup, self.record.used_nonces)
        else:
            self.driver.check_renewal(order)
        renew = decisions.renew(deployment, order, newer, metric, lease_s, self.driver.now, self.config)
        self.driver.carry_out(renew)
        return renew.renewed

    def _note_limits(self, uid: int, ended: str, number: int = 0) -> None:
        """Record who accepted that limits of cgroups end, before it is done."""
        if ended:
            self.record.note("accepted", f"user {uid} accepted it: {ended}", number)

    def promote(
        self, number: int, stage: Stage, cgroup: str, *, uid: int = 0, accept_limits: bool = False
    ) -> Deployment:
        """Give what proved itself more of the machine, once the machine was measured at that scope.

        Args:
            uid: of the user who asks for it.
            accept_limits: although limits of cgroups end with it.

        Raises:
            Refused, TokenError, RecordError: nothing was changed.
        """
        self._require_nothing_waits()
        deployment = decisions.find(number, self.driver.running, self.driver.waiting)
        decisions.check_promotion(deployment, stage, self.driver.now, self.config)
        inner = cgroup_of(self.kernel, deployment)
        check_scope(self.kernel, stage, cgroup, self.config.direct_full, inner)
        check_machine(self.kernel, ours=True)
        token = self.driver.check_token(deployment.order, deployment.order.token, stage, cgroup)
        self._note_limits(uid, check_cgroup_limits(self.kernel, token, stage, accept_limits), number)
        promote = decisions.promote(deployment, stage, cgroup)
        self.driver.carry_out(promote)
        self._advance()
        return self.record.get(number) or promote.promoted

    def rollback(self, number: int = 0, to_default: bool = False) -> str:
        """End what waits and what runs, or only the one named; then the last known good, or the default scheduler.

        Returns:
            What is in charge now, in words.

        Raises:
            Refused: nothing is deployed, or nothing of that number.
        """
        self._carry_out(decisions.roll_back(self.driver.running, self.driver.waiting, number, to_default))
        return self.in_charge

    # What time brings

    def tick(self) -> None:
        """Look at everything: called every second while `busy`."""
        driver = self.driver
        due = driver.is_sample_due()
        if driver.active:
            self._watch(driver.active, due)
        if driver.pending:
            if drop := decisions.wait_on(driver.pending.deployment, self.clock.boot()):
                driver.carry_out(drop)
            elif due:
                driver.pending.before.take()
        if driver.active and driver.active.step and due:
            driver.active.step.take()
        self._advance()
        driver.save_unsaved()  # last: a disk may take its time

    def _watch(self, active: Active, due: bool) -> None:
        """End what runs if there is a cause; else note that its probation is over, if it is."""
        running, before = active.deployment, active.before
        now = self.driver.read(active)
        trip = decisions.at_once(running, active.first, before, now, self.config.bounds)
        if trip is None and due:
            trip = decisions.core_scheduling(self.kernel.core_scheduled_in_turn())
        if trip is None and due:
            sample = self.driver.sample(active)
            compared = decisions.compare(running, sample, active.now.summary(), active.worse, self.config.bounds)
            active.worse, trip = compared.worse, compared.decision
        if trip is not None:
            self._trip(running, trip)
        elif due and is_gone(self.kernel, running):
            self._carry_out(decisions.gone(running))
        else:
            self._settle(active, now.boot)

    def _settle(self, active: Active, boot: float) -> None:
        """Note that what runs is proven, and pin it, each once it is time."""
        if prove := decisions.prove(active.deployment, boot, self.config):
            self.driver.carry_out(prove)
        if pin := decisions.pin(active.deployment, active.pinnable, boot, self.config):
            self.driver.carry_out(pin)

    def _trip(self, running: Deployment, trip: EndWith) -> None:
        """The circuit breaker: take it away, then back to the last known good or to the default scheduler.

        What waits goes on waiting, unless it is the very object that has just been taken away.
        """
        if trip.end is End.FOREIGN:
            others = self.kernel.schedulers()
            trip = replace(trip, detail=f"{trip.detail}{named(others)}; to deploy again: {stop_hint(others)}")
        self.driver.carry_out(trip)
        log.warning("circuit breaker: %s: %s: %s", running.label, trip.end, trip.detail)
        known = running.previous and trip.end.blames_policy
        previous = self.record.get(running.previous) if known else None
        self._carry_out(decisions.after_trip(running, trip.end, previous, self.driver.waiting))

    def _advance(self) -> None:
        """Load what waits, or widen what runs, once enough was measured."""
        pending, active, boot = self.driver.pending, self.driver.active, self.clock.boot()
        if pending:
            metric = (pending.before.metric or ()) if pending.deployment.better is not None else None
            if decisions.is_enough(len(pending.before.samples), metric, self.config):
                measured, running = pending.before.summary(), self.driver.running
                self.driver.carry_out(decisions.load(pending.deployment, running, measured, boot, self.config))
                return
        if active and active.step and decisions.is_enough(len(active.step.samples), None, self.config):
            self.driver.carry_out(decisions.widen(active.deployment, active.step.summary(), boot, self.config))

    # This process begins and ends

    def reconcile(self) -> None:
        """Bring record and kernel together, once, when this process begins."""
        self.driver.reconcile()

    def stop(self) -> None:
        """End what runs, because this process ends; what is pinned stays in charge, if that is still wanted."""
        self._carry_out(decisions.stop(self.driver.running, self.driver.waiting, self.config))
        self.driver.keep_time(at_once=True)
        self.driver.save_unsaved()

    # What is shown

    def status(self) -> dict[str, Any]:
        """What is deployed, what waits, and what the kernel shows."""
        boot, state = self.clock.boot(), self.kernel.state()
        identity = self.kernel.identity()
        running, waiting = self.driver.running, self.driver.waiting
        measured = self.driver.active.now.summary() if self.driver.active else {}
        return {
            "in_charge": self.in_charge,
            "active": running.summary(boot) if running else None,
            "measured": {name: asdict(spread) for name, spread in measured.items()},
            "waiting": waiting.summary(boot) if waiting else None,
            "restorable": self._restorable(running),
            "rollback": self.config.rollback,
            "unsaved": sorted(self.driver.unsaved),
            "foreign": self._foreign(state),
            "totals": self._totals(),
            "kernel": {
                "release": identity.release,
                "build_id": identity.build_id,
                "live_patches": list(identity.live_patches),
                "sched_ext": state.available,
                "state": state.state,
                "ops": state.ops,
                "switch_all": state.switch_all,
                "nr_rejected": state.nr_rejected,
                "enable_seq": state.enable_seq,
                "events": state.events,
            },
        }

    def policies(self) -> dict[str, Any]:
        """What is loaded, by sysfs, and which objects the circuit breaker keeps away."""
        state, ours = self.kernel.state(), self.driver.active is not None
        trips = [
            {"digest": trip.digest, "cause": trip.cause, "at": trip.at, "until": trip.until}
            for trip in self.record.trips(self.clock.unix())
        ]
        return {
            "loaded": [{"ops": state.ops, "ours": ours, "switch_all": state.switch_all}] if state.ops else [],
            "tripped": trips,
        }

    def _foreign(self, state: KernelState) -> dict[str, Any] | None:
        """Who may have loaded what runs, if it is not ours, and how to unload it."""
        if self.driver.active is not None or not state.available or state.state == "disabled":
            return None
        others = self.kernel.schedulers()
        return {"schedulers": [str(scheduler) for scheduler in others], "hint": stop_hint(others)}

    def _restorable(self, running: Deployment | None) -> list[int]:
        """Numbers of those that may be restored after what runs, newest first: their keepers stay for that."""
        try:
            behind = self.record.known_good(running) if running else ()
        except RecordError as error:
            log.error("%s", error)
            return []
        return [number for deployment in behind for number in dict.fromkeys(deployment.names)]

    def _totals(self) -> dict[str, Any] | None:
        """What was ever counted; None while the record cannot be read, which must not hide the rest."""
        try:
            return self.record.totals()
        except RecordError as error:
            log.error("%s", error)
            return None

    # Small things

    def _carry_out(self, decided: Iterable[Decision]) -> None:
        for decision in decided:
            self.driver.carry_out(decision)

    def _require_nothing_waits(self) -> None:
        active = self.driver.active
        waiting = self.driver.waiting or (active.deployment if active and active.step else None)
        if waiting:
            raise Refused(f"{waiting.label} waits to be loaded", "wait, or: schedagent rollback")
