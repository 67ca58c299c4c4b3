"""The roll-out: answers requests and reacts to time. It looks, `decisions` decides, the driver carries that out."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from kernel_bpf.load.sched_ext import KernelState
from kernel_bpf.observe.schedulers import named, stop_hint
from schedagent.core.deployment import Deployment, End, Order, Phase, Stage
from schedagent.core.errors import RecordError, Refused
from schedagent.core.welch import Better
from schedagent.schedagentd import decisions
from schedagent.schedagentd.admission import (
    Accepted,
    check_cgroup_limits,
    check_machine,
    check_scope,
    is_gone,
    tree_of,
)
from schedagent.schedagentd.config import Config
from schedagent.schedagentd.decisions import Decision, EndWith
from schedagent.schedagentd.driver import Driver
from schedagent.schedagentd.kernel import Kernel
from schedagent.schedagentd.pulses import Coin
from schedagent.schedagentd.record import KEPT_TRIPS_DAYS, Record
from schedagent.schedagentd.state import Active, Clock, Pending, Windowed

log = logging.getLogger(__name__)


class Rollout:
    """Takes deployments through their stages; one thread calls it.

    Args:
        public_keys: returns the keys, in PEM, whose tokens count now.
        coin: decides the order of the windows of each pair.
    """

    def __init__(
        self,
        kernel: Kernel,
        record: Record,
        config: Config,
        public_keys: Callable[[], Sequence[bytes]],
        clock: Clock | None = None,
        coin: Coin = lambda: bool(secrets.randbits(1)),
    ) -> None:
        self._coin = coin
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
    def next_in_s(self) -> float:
        """In how many seconds `tick` has to be called at the latest, besides; infinite for nothing."""
        window, running = self.driver.window, self.driver.running
        moments = [window.next_at] if window else []
        if running and running.stage is Stage.TRIAL:
            moments.append(running.lease_until)
        return min(moments, default=math.inf) - self.clock.boot()

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
            cgroup: whose tasks a canary has, or are measured.
            again: although the circuit breaker ended it before.
            pid: of the process whose tree is measured, instead of a cgroup; 0 for none.
            better: which way the metric is better that renewals will report.
            accept_limits: although limits of cgroups end with it.

        Raises:
            Refused, TokenError, RecordError: nothing was changed.
        """
        self._require_nothing_waits()
        check_machine(self.kernel, ours=self.driver.active is not None)
        self._check_trips(order, again)
        check_scope(self.kernel, stage, cgroup, self.config.direct_full)
        tree = tree_of(self.kernel, stage, cgroup, pid) if pid else None
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

    def trial(
        self,
        uid: int,
        order: Order,
        content: bytes,
        lease_s: float,
        again: bool = False,
        accept_limits: bool = False,
    ) -> Deployment:
        """Put a policy in charge of the whole machine at once, for a time that begins when it is; it ends by itself.

        One token allows any number of trials, as long as it is valid and not used for a deployment.

        Raises:
            Refused, TokenError, RecordError: nothing was changed.
        """
        if busy := self.driver.running or self.driver.waiting:
            raise Refused(f"{busy.label} is at stage {busy.stage}: there is one at a time", "wait until it has ended")
        if not 0 < lease_s <= self.config.longest_trial_s:
            raise Refused(
                f"a trial of {lease_s:g} s", f"at most {self.config.longest_trial_s:g} s, see longest_trial_s"
            )
        driver = self.driver
        decisions.check_trial(driver.taken_away_at, driver.trials_within_an_hour, self.clock.boot(), self.config)
        check_machine(self.kernel, ours=False)
        self._check_trips(order, again)
        token = driver.check_token(order, order.token, Stage.TRIAL, "", self.record.used_nonces)
        self._note_limits(uid, check_cgroup_limits(self.kernel, token, Stage.TRIAL, accept_limits))
        accepted = decisions.accept(
            order,
            content,
            token,
            uid=uid,
            stage=Stage.TRIAL,
            cgroup="",
            tree=None,
            lease_s=lease_s,
            better=None,
            now=driver.now,
            config=self.config,
        )
        driver.carry_out(decisions.trial(accepted))
        begun = driver.running or next(iter(self.record.history(1)))
        if begun.phase is Phase.ENDED:
            raise Refused(f"{begun.label} {begun.end}: {begun.detail}")
        return begun

    def end_trial(self, number: int) -> None:
        """End the trial of that number, if it has not ended: its client is done, or gone."""
        running = self.driver.running
        if running and running.number == number and running.stage is Stage.TRIAL:
            self.driver.carry_out(EndWith(End.OVER, "its client is done"))

    def ended(self, number: int) -> Deployment | None:
        """Return a deployment that has ended, though the record may not know yet; None if it is not kept."""
        return self.driver.unsaved.get(number) or self.record.get(number)

    def _check_trips(self, order: Order, again: bool) -> None:
        if (trip := self.record.trip_of(order.digest, self.clock.unix())) and not again:
            raise Refused(
                f"this object was ended by the circuit breaker before: {trip}",
                f"deploy another; this one in {KEPT_TRIPS_DAYS} days, or now if the cause is known: "
                "schedagent deploy --again",
            )

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
            newer = self.driver.check_token(order, token, deployment.stage, deployment.cgroup, self.record.used_nonces)
        else:
            self.driver.check_renewal(order)
        renew = decisions.renew(deployment, order, newer, metric, lease_s, self.driver.now, self.config)
        self.driver.carry_out(renew)
        return renew.renewed

    def _note_limits(self, uid: int, ended: str, number: int = 0) -> None:
        """Record who accepted that limits of cgroups end, before it is done."""
        if ended:
            self.record.note("accepted", f"user {uid} accepted it: {ended}", number)

    def promote(self, number: int, *, uid: int = 0, accept_limits: bool = False) -> Deployment:
        """Take a proven canary on to the whole machine, by pulses.

        Args:
            uid: of the user who asks for it.
            accept_limits: although limits of cgroups end with it.

        Raises:
            Refused, TokenError: nothing was changed.
        """
        self._require_nothing_waits()
        deployment = decisions.find(number, self.driver.running, self.driver.waiting)
        rest, *pulse = decisions.promote(deployment, self._coin, self.driver.now, self.config)
        check_machine(self.kernel, ours=True)
        token = self.driver.check_token(deployment.order, deployment.order.token, rest.resting.stage, "")
        self._note_limits(uid, check_cgroup_limits(self.kernel, token, rest.resting.stage, accept_limits), number)
        self._carry_out((rest, *pulse))
        return self.driver.waiting or self.driver.running or self.ended(number) or deployment

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
        if driver.window and self._run_window(driver.window):
            return  # what a moment is for comes first; the rest has its turn a second later at most
        due = driver.is_sample_due()
        if driver.active:
            self._watch(driver.active, due)
        if driver.pending:
            self._wait(driver.pending, due)
        self._advance()
        if not driver.is_timed:
            driver.save_unsaved()  # last: a disk may take its time

    def _wait(self, pending: Pending, due: bool) -> None:
        """Drop what waits if there is a cause; else sample the machine without it."""
        waiting = pending.deployment
        if drop := decisions.wait_on(waiting, self.clock.boot()):
            self.driver.carry_out(drop)
        elif due:
            pending.before.take()

    def _run_window(self, window: Windowed) -> bool:
        """Do what the open window of a roll-out by pulses wants now; return whether there was something."""
        boot = self.clock.boot()
        if boot < window.next_at:
            return False
        if boot >= window.ends_at:
            self._end_window(window)
        elif window.is_measured:
            self.driver.end_measuring(window)
        else:
            self.driver.begin_measuring(window)
        return True

    def _end_window(self, window: Windowed) -> None:
        running = self.driver.running
        shown, rested = self.driver.end_window(window), self.driver.waiting
        if shown is None or rested is None:
            ended = self.ended(running.number) if running else None
            if ended and ended.end:
                self._follow_trip(ended, ended.end)
        elif drop := decisions.wait_on(rested, self.clock.boot()):
            self.driver.carry_out(drop)
        elif is_gone(self.kernel, rested):
            self._carry_out(decisions.gone_resting(rested))
        else:
            boot = self.clock.boot()
            self._carry_out(decisions.after_window(rested, window.pulses, shown, self._coin, boot, self.config))

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
        if trip is not None and trip.end is End.OVER:
            self.driver.carry_out(trip)
        elif trip is not None:
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
        elif trip.end is End.STALL and (held := self.kernel.real_time_holders()):
            trip = replace(trip, end=End.HELD, detail=f"{trip.detail}; {', '.join(held)}")
        self.driver.carry_out(trip)
        log.warning("circuit breaker: %s: %s: %s", running.label, trip.end, trip.detail)
        self._follow_trip(running, trip.end)

    def _follow_trip(self, tripped: Deployment, end: End) -> None:
        """Do what follows when the circuit breaker has ended something."""
        known = tripped.previous and end.blames_policy
        previous = self.record.get(tripped.previous) if known else None
        self._carry_out(decisions.after_trip(tripped, end, previous, self.driver.waiting))

    def _advance(self) -> None:
        """Load what waits once enough was measured; a roll-out by pulses measures for itself."""
        pending, boot = self.driver.pending, self.clock.boot()
        if pending is None or pending.window is not None:
            return
        by_pulses = pending.deployment.stage is Stage.PULSE
        metric = (pending.before.metric or ()) if pending.deployment.better is not None else None
        if by_pulses or decisions.is_enough(len(pending.before.samples), metric, self.config):
            measured = {} if by_pulses else pending.before.summary()
            self.driver.carry_out(decisions.load(pending.deployment, self.driver.running, measured, boot, self.config))
        waiting = self.driver.waiting
        if waiting is not None and waiting.stage is Stage.PULSE:
            self._carry_out(decisions.begin_pulses(waiting, self._coin, self.clock.boot(), self.config))

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
            "restorable": self._restorable(running or waiting),
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
        if waiting := self.driver.waiting or (self.driver.running if self.driver.is_timed else None):
            busy = f"is at stage {waiting.stage}" if waiting.stage.is_timed else "waits to be loaded"
            raise Refused(f"{waiting.label} {busy}", "wait, or: schedagent rollback")
