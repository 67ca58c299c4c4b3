"""The roll-out: what may be asked for, and what time brings: stages, leases, probation and the circuit breaker."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from kernel_bpf.load.sched_ext import KernelState
from schedagent.core.deployment import Deployment, End, Order, Phase, Stage, Tree
from schedagent.core.errors import BpfError, RecordError, Refused, SchedagentError
from schedagent.core.token import read_signed
from schedagent.core.welch import METRIC, TIMES_IN_A_ROW, Better, Spread
from schedagent.schedagentd.admission import check_machine
from schedagent.schedagentd.breaker import judge_reading, judge_spreads, measures
from schedagent.schedagentd.config import NOT_ON_EXIT
from schedagent.schedagentd.driver import Active, Driver, Measuring, Pending
from schedagent.schedagentd.kernel import named, stop_hint, told

log = logging.getLogger(__name__)

_KTHREADD = 2
"""Process 1 has all of user space below it, process 2 all threads of the kernel."""


class Rollout(Driver):
    """Takes deployments through their stages; one thread calls it."""

    pending: Pending | None = None

    @property
    def busy(self) -> bool:
        """Whether `tick` has to be called every second."""
        return bool(self.active or self.pending or self._unsaved)

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
    ) -> Deployment:
        """Accept a policy; it is loaded as soon as enough is known of the machine without it.

        Args:
            content: the object; `order.digest` is its digest.
            again: although the circuit breaker ended it before.
            pid: of the process whose tree the canary is, instead of a cgroup; 0 for none.
            better: which way the metric is better that renewals will report.

        Raises:
            Refused, TokenError, RecordError: nothing was changed.
        """
        self._require_nothing_waits()
        check_machine(self.kernel, ours=self.active is not None)
        trip = self.record.trip_of(order.digest)
        if trip and not again:
            raise Refused(
                f"this object was ended by the circuit breaker before: {trip[0]}",
                "deploy another; or this one again if the cause is known: schedagent deploy --again",
            )
        tree = self._tree(stage, cgroup, pid) if pid else None
        if tree is None:
            self._check_scope(stage, cgroup)
        token = self._check_token(order, order.token, stage, cgroup, self.record.used_nonces)
        boot, unix = self.clock.boot(), self.clock.unix()
        token_until = boot + token.expires_at - unix
        lease_s = min(lease_s, self.config.longest_lease_s)
        deployment = Deployment(
            number=0,
            order=order,
            stage=stage,
            cgroup=cgroup,
            phase=Phase.WAITING,
            uid=uid,
            boot_id=self._boot_id,
            lease_s=lease_s,
            lease_until=min(boot + lease_s, token_until),
            token_until=token_until,
            created_at=unix,
            since=boot,
            tree=tree,
            better=better,
        )
        scope = f"{stage} {deployment.where} by user {uid}"
        deployment = self.record.begin(deployment, content, token, "accepted", scope)
        self.pending = Pending(deployment, content, self._measure(deployment.where))
        self._advance()
        return self.record.get(deployment.number) or deployment

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
        deployment = self._find(number)
        boot, used = self.clock.boot(), None
        until, order = deployment.token_until, deployment.order
        if metric and deployment.better is None:
            raise Refused(f"{deployment.label} has no metric", "say which way it is better when it is deployed")
        if token:
            order = replace(order, token=token, report_digest=report_digest)
            stage = deployment.next_stage or deployment.stage
            cgroup = deployment.next_cgroup if deployment.next_stage else deployment.cgroup
            used = self._check_token(order, token, stage, cgroup, self.record.used_nonces)
            until = boot + used.expires_at - self.clock.unix()
        else:
            read_signed(order.token, self._public_keys())  # whose key is not trusted any more gets no further lease
        lease_s = min(lease_s, self.config.longest_lease_s)
        renewed = replace(
            deployment, order=order, lease_s=lease_s, lease_until=min(boot + lease_s, until), token_until=until
        )
        kind = "renewed" if token else ""  # an event each minute would drown the others
        self.record.save(renewed, kind, "with a newer token", used)
        self._became(renewed)
        for measuring in self._measurings(number):
            measuring.report(metric)
        return renewed

    def promote(self, number: int, stage: Stage, cgroup: str) -> Deployment:
        """Give what proved itself more of the machine, once the machine was measured at that scope.

        Raises:
            Refused, TokenError, RecordError: nothing was changed.
        """
        self._require_nothing_waits()
        deployment = self._find(number)
        if self.active is None:
            raise Refused(f"{deployment.label} is not running", "see: schedagent status")
        if not stage.is_beyond(deployment.stage):
            raise Refused(f"{deployment.label} is at stage {deployment.stage} already, not before {stage}")
        if not deployment.proven:
            left_s = self.config.probation_s[deployment.stage] - (self.clock.boot() - deployment.since)
            raise Refused(
                f"{deployment.label} is on probation for {max(0.0, left_s):.0f} s more", "promote it when it is proven"
            )
        self._check_scope(stage, cgroup, inner=self._cgroup_of(deployment))
        check_machine(self.kernel, ours=True)
        self._check_token(deployment.order, deployment.order.token, stage, cgroup)
        promoted = replace(deployment, next_stage=stage, next_cgroup=cgroup)
        self.record.save(promoted, "promoting", f"to {stage} {cgroup}".rstrip())
        self._became(promoted)
        self.active.step = self._measure(cgroup)
        self._advance()
        return self.record.get(number) or promoted

    def rollback(self, number: int = 0, to_default: bool = False) -> str:
        """End what waits and what runs, or only the one named; then the last known good, or the default scheduler.

        Returns:
            What is in charge now, in words.

        Raises:
            Refused: nothing is deployed, or nothing of that number.
        """
        if not (self.active or self.pending):
            raise Refused("nothing is deployed", "the default scheduler is in charge already")
        if number:
            self._find(number)
        if self.pending and number in (0, self.pending.deployment.number):
            self._drop_pending(End.ROLLED_BACK, "asked for")
        if self.active and number in (0, self.active.deployment.number):
            self._end_and_go_back(End.ROLLED_BACK, "asked for", to_default)
        return self.in_charge

    # What time brings

    def tick(self) -> None:
        """Look at everything: called every second while `busy`."""
        self._save_unsaved()
        due = self.clock.monotonic() >= self._next_sample
        if due:
            self._next_sample = self.clock.monotonic() + self.config.sample_s
        if self.active:
            self._watch(self.active, due)
        if self.pending:
            if self.clock.boot() >= self.pending.deployment.lease_until:
                self._drop_pending(End.NOT_LOADED, "its lease lapsed first")
            elif due:
                self.pending.before.take()
        if self.active and self.active.step and due:
            self.active.step.take()
        self._advance()

    def stop(self) -> None:
        """End what runs, because this process ends; what is pinned stays in charge, if that is still wanted."""
        if self.pending:
            self._drop_pending(End.STOPPED, "")
        if self.active and self.active.deployment.pinned and self.config.rollback == NOT_ON_EXIT:
            self._try_save(self.active.deployment, "left", "pinned; the next schedagentd takes it over")
            self.active.loaded.leave()
            self.active = None
        elif self.active:
            self._end(End.STOPPED, "")
        self._save_unsaved()

    def status(self) -> dict[str, Any]:
        """What is deployed, what waits, and what the kernel says."""
        boot, state = self.clock.boot(), self.kernel.state()
        release, build_id = self.kernel.identity()
        measured = self.active.now.summary() if self.active else {}
        return {
            "in_charge": self.in_charge,
            "active": self.active.deployment.summary(boot) if self.active else None,
            "measured": {name: asdict(one) for name, one in measured.items()},
            "waiting": self.pending.deployment.summary(boot) if self.pending else None,
            "rollback": self.config.rollback,
            "unsaved": sorted(self._unsaved),
            "foreign": self._foreign(state),
            "totals": self._totals(),
            "kernel": {
                "release": release,
                "build_id": build_id,
                "sched_ext": state.available,
                "state": state.state,
                "ops": state.ops,
                "switch_all": state.switch_all,
                "nr_rejected": state.nr_rejected,
                "enable_seq": state.enable_seq,
                "events": state.events,
            },
        }

    def _foreign(self, state: KernelState) -> dict[str, Any] | None:
        """Who may have loaded what runs, if it is not ours, and how to be rid of it."""
        if self.active is not None or not state.available or state.state == "disabled":
            return None
        found = self.kernel.schedulers()
        return {"schedulers": [str(one) for one in found], "hint": stop_hint(found)}

    def _totals(self) -> dict[str, Any] | None:
        """What was ever counted; None while the record cannot be read, which must not hide the rest."""
        try:
            return self.record.totals()
        except RecordError as error:
            log.error("%s", error)
            return None

    # Looking

    def _watch(self, active: Active, due: bool) -> None:
        """Trip the circuit breaker if there is a cause; else see whether it is over, or probation is."""
        now = self._reading(active.loaded)
        trip = judge_reading(active.first, active.before, now, self.config.bounds)
        active.before = now
        if trip is None and now.boot >= active.deployment.lease_until:
            expired = active.deployment.token_until <= active.deployment.lease_until
            trip = End.LEASE_LAPSED, "its token expired" if expired else "nobody renewed it"
        if trip is None and due:
            if active.deployment.stage is not Stage.FULL:
                self.kernel.move_in(active.deployment.where)
            trip = self._compare(active)
        if trip is not None:
            self._trip(active.deployment, *trip)
        elif due and self._is_gone(active.deployment):
            self._end_and_go_back(End.GONE, str(active.deployment.tree))
        elif now.boot - active.deployment.since >= self.config.probation_s[active.deployment.stage]:
            self._prove(active)

    def _compare(self, active: Active) -> tuple[End, str] | None:
        sample = active.now.take()
        if sample.starved:
            shown = ", ".join(sample.starved[:5])
            return End.STARVATION, f"runnable for {self.config.bounds.starvation_s:g} s without running: {shown}"
        judged = measures(self.config.bounds, active.deployment.better)
        trip = judge_spreads(active.deployment.baseline, active.now.summary(), judged)
        active.worse = active.worse + 1 if trip else 0
        return trip if active.worse >= TIMES_IN_A_ROW else None

    def _is_enough(self, measuring: Measuring, metric: bool) -> bool:
        wanted = self.config.baseline_samples
        return len(measuring.samples) > wanted and (not metric or len(measuring.metric or ()) >= wanted)

    def _baseline(self, measuring: Measuring) -> dict[str, Spread]:
        return measuring.summary() if self.config.baseline_samples else {}

    def _measurings(self, number: int) -> list[Measuring]:
        """What is being measured of a deployment."""
        if self.pending and self.pending.deployment.number == number:
            return [self.pending.before]
        return [self.active.now] if self.active and self.active.deployment.number == number else []

    def _is_gone(self, deployment: Deployment) -> bool:
        """Whether the process is gone that a tree begins with: what is left of it is no canary of anything."""
        tree = deployment.tree
        return tree is not None and self.kernel.tree_of(tree.pid) != tree

    # Doing

    def _advance(self) -> None:
        """Load what waits, or widen what runs, once enough was measured."""
        if self.pending and self._is_enough(self.pending.before, self.pending.deployment.better is not None):
            self._load(self.pending)
        elif self.active and self.active.step and self._is_enough(self.active.step, metric=False):
            self._widen(self.active, self.active.step)

    def _load(self, pending: Pending) -> None:
        """Replace what runs by what waits."""
        running = self.active.deployment if self.active else None
        previous = (running.number if running.proven else running.previous) if running else 0
        loading = replace(
            pending.deployment,
            phase=Phase.LOADING,
            previous=previous,
            baseline=self._baseline(pending.before),
            since=self.clock.boot(),
        )
        try:
            check_machine(self.kernel, ours=self.active is not None)
            if self._is_gone(loading):
                raise Refused(f"{loading.tree} ended")
            self._check_token(loading.order, loading.order.token, loading.stage, loading.cgroup)
            self.record.save(loading, "loading")
        except SchedagentError as error:  # what runs goes on
            self._drop_pending(End.NOT_LOADED, told(error))
            return
        self.pending = None
        if running:
            self._end(End.REPLACED, f"by deployment {loading.number}")
        if not self._attach(loading, pending.content) and previous:
            self._restore(previous)

    def _widen(self, active: Active, step: Measuring) -> None:
        """Take what runs to its next stage; the full one needs it loaded anew."""
        before = active.deployment
        assert before.next_stage is not None, "promote set it together with the step"
        loads = before.next_stage is Stage.FULL
        kept = {name: one for name, one in before.baseline.items() if name == METRIC}  # of before the first stage
        wider = replace(
            before,
            stage=before.next_stage,
            cgroup=before.next_cgroup,
            tree=None,
            next_stage=None,
            next_cgroup="",
            phase=Phase.LOADING if loads else Phase.RUNNING,
            proven=False,
            pinned=False,
            baseline=self._baseline(step) | kept,
            since=self.clock.boot(),
        )
        try:
            check_machine(self.kernel, ours=True)
            self._check_token(wider.order, wider.order.token, wider.stage, wider.cgroup)
            content = self.record.content(before.order.digest) if loads else b""
            if content is None:
                raise Refused("its object is not kept any more")
            self.record.save(wider, "promoted", f"to {wider.stage} {wider.cgroup}".rstrip())
        except SchedagentError as error:
            active.step = None
            active.deployment = replace(before, next_stage=None, next_cgroup="")
            self._try_save(active.deployment, "not promoted", told(error))
            return
        if loads:
            if self._take_away(active, wider, End.NOT_LOADED):
                self._attach(wider, content)
            return
        active.loaded.unpin()
        self.kernel.move_in(wider.cgroup)
        first = self._reading(active.loaded)
        self.active = Active(wider, active.loaded, first, first, self._measure(wider.cgroup))

    def _prove(self, active: Active) -> None:
        """Note that what runs survived its probation, and pin it if it is to survive this process."""
        if not active.deployment.proven:
            proven = replace(active.deployment, proven=True)
            if not self._try_save(proven, "proven", f"at stage {proven.stage}", owed=False):
                return
            active.deployment = proven
        if self.config.rollback == NOT_ON_EXIT and active.pinnable and not active.deployment.pinned:
            self._pin(active)

    def _pin(self, active: Active) -> None:
        pinned = replace(active.deployment, pinned=True)
        if not self._try_save(pinned, "pinned", "it survives this process", owed=False):
            return
        try:
            active.loaded.pin()
            active.deployment = pinned
        except BpfError as error:  # it goes on, and ends with this process
            active.pinnable = False
            self._try_save(active.deployment, "not pinned", told(error), owed=False)

    # Ending

    def _trip(self, deployment: Deployment, end: End, detail: str) -> None:
        """The circuit breaker: away with it, back to the last known good or to the default scheduler."""
        if end is End.FOREIGN:
            found = self.kernel.schedulers()
            detail = f"{detail}{named(found)}; to deploy again: {stop_hint(found)}"
        log.warning("circuit breaker: %s: %s: %s", deployment.label, end, detail)
        self._end(end, detail)
        previous = self.record.get(deployment.previous) if deployment.previous and end.blames_policy else None
        if previous is not None and previous.order.digest != deployment.order.digest:
            self._restore(previous.number)

    def _end_and_go_back(self, end: End, detail: str, to_default: bool = False) -> None:
        assert self.active is not None
        previous = self.active.deployment.previous
        self._end(end, detail)
        if previous and not to_default:
            self._restore(previous)

    def _drop_pending(self, end: End, detail: str) -> None:
        assert self.pending is not None
        waiting, self.pending = self.pending.deployment, None
        self._confirm_end(waiting, end, detail)

    # What is refused

    def _require_nothing_waits(self) -> None:
        if self.pending or (self.active and self.active.step):
            waiting = self.pending.deployment if self.pending else self.active and self.active.deployment
            raise Refused(f"{waiting.label if waiting else ''} waits to be loaded", "wait, or: schedagent rollback")

    def _find(self, number: int) -> Deployment:
        """Return what runs or waits by its number; raise Refused otherwise."""
        alive = [one.deployment for one in (self.active, self.pending) if one]
        for deployment in alive:
            if deployment.number == number:
                return deployment
        names = ", ".join(str(deployment.number) for deployment in alive) or "none"
        raise Refused(f"deployment {number} is neither running nor waiting", f"there are: {names}")

    def _tree(self, stage: Stage, cgroup: str, pid: int) -> Tree:
        """Return the process tree that is to be a canary; raise Refused if it cannot be one."""
        if stage is not Stage.CANARY or cgroup:
            raise Refused("a process tree is for stage canary, and without a cgroup")
        if pid <= _KTHREADD:
            raise Refused(f"process {pid} has every process of its kind below it", "name one, or a cgroup")
        tree = self.kernel.tree_of(pid)
        if tree is None:
            raise Refused(f"there is no process {pid}", "see: pstree -p")
        return tree

    def _cgroup_of(self, deployment: Deployment) -> str:
        """The cgroup that a wider one has to hold."""
        if deployment.tree is None:
            return deployment.cgroup
        found = self.kernel.cgroup_of(deployment.tree)
        if not found:
            raise Refused(f"{deployment.tree} ended", "see: schedagent status")
        return found

    def _check_scope(self, stage: Stage, cgroup: str, inner: str = "") -> None:
        """Refuse a stage that comes too early, or a cgroup that does not fit it."""
        if stage is Stage.FULL:
            if cgroup:
                raise Refused("the full stage is for the whole machine, not for a cgroup")
            if not inner and not self.config.direct_full:
                raise Refused("a deployment begins with stage canary", "or allow it: direct_full in the configuration")
            return
        if stage is Stage.WIDER and not inner:
            raise Refused("a deployment begins with stage canary", "promote it when it is proven")
        if not cgroup:
            raise Refused(f"stage {stage} needs a cgroup or a process", "name one: --cgroup /build.slice, --pid 42")
        if inner and not f"{inner}/".startswith(f"{cgroup}/"):
            raise Refused(f"cgroup {cgroup} does not hold {inner}, where the policy is proven")
        if not self.kernel.has_cgroup(cgroup):
            raise Refused(f"there is no cgroup {cgroup}", "see: systemd-cgls")

    def _became(self, deployment: Deployment) -> None:
        """Remember what the record now says of what runs or waits."""
        for one in (self.active, self.pending):
            if one and one.deployment.number == deployment.number:
                one.deployment = deployment
