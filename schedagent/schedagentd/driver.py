"""Carries decisions out: one policy is given to the kernel, confirmed, taken away, restored or taken over.

Always in this order, so that whatever ends this process between two steps can be put right by the next one:

    write the intent to the record ─► do it ─► read from sysfs that it is so ─► write that to the record

What was not pinned ends with this process, and only what proved itself is ever pinned. A policy is taken away before
the record is written: neither a full disk nor a slow one, whose kernel threads it schedules, may keep it in charge.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from kernel_bpf.observe.schedulers import named, stop_hint
from kernel_bpf.observe.tasks import TaskSample
from schedagent.core.deployment import Deployment, End, Order, Phase, Stage, Where
from schedagent.core.errors import BpfError, RecordError, Refused, SchedagentError, TokenError
from schedagent.core.terminal.foreign import quote
from schedagent.core.token import CLOCK_SKEW_S, DeploymentToken, read_signed
from schedagent.schedagentd import decisions
from schedagent.schedagentd.admission import (
    NOTHING,
    Accepted,
    check_accepted,
    check_canary,
    check_machine,
    check_token,
    is_gone,
)
from schedagent.schedagentd.breaker import KernelReading, judge_exit
from schedagent.schedagentd.decisions import (
    Accept,
    Decision,
    Drop,
    EndWith,
    Leave,
    Load,
    Moment,
    Pin,
    Prove,
    Pulse,
    Renew,
    Rest,
    Restore,
    Try,
)
from schedagent.schedagentd.kernel import Kernel, Loaded, further_lines, one_line
from schedagent.schedagentd.pulses import Pulses, Window, wash_out_s
from schedagent.schedagentd.record import Record
from schedagent.schedagentd.state import Active, Clock, Measuring, Pending, Windowed, shown_in

log = logging.getLogger(__name__)

BRIEF_S = 10.0
"""In a shorter window no thread of the whole machine is looked at by itself: the kernel's watchdog sees who starves."""
WAKING_S = 0.02
"""Before the end of a window: the last samples come at least so much earlier, for a policy is taken away on time."""
GRACE_S = 2.0
"""So much longer than its time a policy can be in charge if this process hangs: the kernel ends it then."""
MOST_DEATHS = 3
"""So often may this process have died under a pinned policy that is taken over again: it may be the policy's doing."""
KEEP_TIME_S = 120.0
"""How often it is stored how late it is."""


class Driver:
    """Does one thing to the kernel at a time, and writes it down.

    Args:
        public_keys: returns the keys, in PEM, whose tokens count now.
        sample_s: how often tasks are sampled.
        starvation_s: how long a runnable task may not run.
        accepted: what is taken on a submitter's word.
    """

    def __init__(
        self,
        kernel: Kernel,
        record: Record,
        public_keys: Callable[[], Sequence[bytes]],
        clock: Clock,
        sample_s: float,
        starvation_s: float,
        accepted: Accepted = NOTHING,
    ) -> None:
        self.accepted = accepted
        self.kernel, self.record, self.public_keys, self.clock = kernel, record, public_keys, clock
        self.active: Active | None = None
        self.pending: Pending | None = None
        self.trials: list[float] = []
        """When (boot clock) the latest trials began."""
        self.taken_away_at = -math.inf
        """When (boot clock) a policy was taken away for the last time."""
        self.unsaved: dict[int, Deployment] = {}
        """What ended while the record could not be written, by number."""
        self._sample_s, self._starvation_s = sample_s, starvation_s
        self._boot_id = clock.boot_id()
        self._next_sample = 0.0
        self._clocks = clock.unix(), clock.boot()

    # What is so

    @property
    def running(self) -> Deployment | None:
        """The deployment in charge."""
        return self.active.deployment if self.active else None

    @property
    def waiting(self) -> Deployment | None:
        """The deployment that waits to be loaded, or rests between two pulses."""
        return self.pending.deployment if self.pending else None

    @property
    def window(self) -> Windowed | None:
        """The open window of a roll-out by pulses."""
        holder = self.active or self.pending
        return holder.window if holder else None

    @property
    def trials_within_an_hour(self) -> list[float]:
        """When (boot clock) the trials of the last hour began."""
        return [began for began in self.trials if began > self.clock.boot() - decisions.HOUR_S]

    @property
    def now(self) -> Moment:
        """What time it is."""
        return Moment(self._boot_id, self.clock.boot(), self.clock.unix())

    @property
    def is_timed(self) -> bool:
        """Whether what runs is to be taken away at a moment that is known: nothing may wait for a disk."""
        return self.active is not None and self.active.deployment.stage.is_timed

    @property
    def in_charge(self) -> str:
        """What schedules tasks now, in words, by sysfs."""
        state = self.kernel.state()
        if not state.available:
            return "the default scheduler (this kernel has no sched_ext, or does not show it)"
        if state.state == "disabled":
            return "the default scheduler"
        if self.active is None:
            return f"{quote(state.ops or state.state)}, which is not ours"
        return f"{self.active.deployment.label} at stage {self.active.deployment.stage}"

    def read(self, active: Active) -> KernelReading:
        """Read what the kernel shows of what runs, and keep it as the last reading."""
        active.before = self._reading(active.loaded)
        return active.before

    def sample(self, active: Active) -> TaskSample:
        """Sample the tasks of what runs; newcomers of its scope are moved in first."""
        if active.deployment.stage is Stage.CANARY:
            self.kernel.move_in(active.deployment.where)
        return active.now.take()

    def is_sample_due(self) -> bool:
        """Whether tasks are to be sampled now; the next time is set then."""
        due = self.clock.monotonic() >= self._next_sample
        if due:
            self._next_sample = self.clock.monotonic() + self._sample_s
        return due

    def check_token(
        self, order: Order, token: str, stage: Stage, cgroup: str, used: frozenset[str] = frozenset()
    ) -> DeploymentToken:
        """Return the token if it allows this order here and now; raise TokenError, Refused or RecordError otherwise.

        Args:
            cgroup: whose tasks a canary has; at other stages they are everybody's.
        """
        return check_token(
            order,
            token,
            self.public_keys(),
            self.kernel.identity(),
            stage.scope,
            cgroup if stage is Stage.CANARY else "",
            self.clock.unix(),
            self.record.last_seen,
            self.record.tokens_from,
            used,
            self.accepted,
        )

    def check_renewal(self, order: Order) -> None:
        """Raise TokenError if the order's token would not allow any more what it allowed: its key is no longer trusted,
        or another kernel runs by now, a live-patched one; raise Refused if what it declares is accepted no longer."""
        token, identity = read_signed(order.token, self.public_keys()), self.kernel.identity()
        check_accepted(token, self.accepted)
        if token.live_patches != identity.live_patches:
            raise TokenError(
                f"live patches were applied since: {', '.join(identity.live_patches) or 'none is at work'}",
                "policies are proved on kernels without",
            )

    def keep_time(self, at_once: bool = False) -> None:
        """Store from time to time how late it is: a clock that is set back later revives no token.

        A clock that was set ahead counts the next time, if it still is: one that was wrong for a moment, as before the
        network is there, must not keep tokens away until that day has come.

        Args:
            at_once: although it is not time yet.
        """
        unix, boot = self.clock.unix(), self.clock.boot()
        unix_before, boot_before = self._clocks
        if not at_once and boot < boot_before + KEEP_TIME_S:
            return
        self._clocks = unix, boot
        try:
            self.record.saw(min(unix, unix_before + (boot - boot_before) + CLOCK_SKEW_S))
        except RecordError as error:
            log.debug("how late it is cannot be stored: %s", error)

    # What is done

    def carry_out(self, decision: Decision) -> None:
        """Carry out a decision.

        Raises:
            RecordError: an Accept, Renew or Try could not be stored, and nothing was changed.
        """
        match decision:
            case Accept():
                self._accept(decision)
            case Renew():
                self._renew(decision)
            case Try(deployment, content):
                self._try(deployment, content)
            case Load(loading):
                self._load(loading)
            case Rest():
                self._rest(decision)
            case Pulse(loading, pulses):
                self._pulse(loading, pulses)
            case Prove(proven):
                self._prove(proven)
            case Pin(pinned):
                self._pin(pinned)
            case Drop(end, detail):
                self._drop(end, detail)
            case EndWith(end, detail):
                self._end(end, detail)
            case Restore(number):
                self._restore(number)
            case Leave():
                self._leave()

    def _accept(self, decision: Accept) -> None:
        deployment = decision.deployment
        scope = f"{deployment.stage} {deployment.where} by user {deployment.uid}"
        deployment = self.record.begin(deployment, decision.content, decision.token, "accepted", scope)
        self.pending = Pending(deployment, decision.content, self._measure(deployment.where))

    def _renew(self, decision: Renew) -> None:
        renewed = decision.renewed
        kind = "renewed" if decision.token else ""  # an event each minute would drown the others
        if decision.token or not self.is_timed:  # a slow disk must not make a pulse longer; its end is stored with it
            self.record.save(renewed, kind, "with a newer token", decision.token)
        self._became(renewed)
        self._prolong(renewed)
        if self.pending and self.pending.deployment.number == renewed.number:
            self.pending.before.report(decision.metric)
        elif self.active and self.active.deployment.number == renewed.number:
            self.active.now.report(decision.metric)

    def _try(self, deployment: Deployment, content: bytes) -> None:
        self.trials = [*self.trials_within_an_hour, self.clock.boot()]
        what = f"for {deployment.lease_s:g} s by user {deployment.uid}"
        self._attach(self.record.begin(deployment, content, None, "trial", what), content)

    def _load(self, loading: Deployment) -> None:
        assert self.pending is not None
        content = self.pending.content
        try:
            check_machine(self.kernel, ours=self.active is not None)
            if is_gone(self.kernel, loading):
                raise Refused(f"{loading.tree} ended")
            self.check_token(loading.order, loading.order.token, loading.stage, loading.cgroup)
            self.record.save(loading, "" if loading.phase is Phase.RESTING else "loading")
        except SchedagentError as error:  # what runs stays
            self._drop(End.NOT_LOADED, one_line(error))
            return
        self.pending = None
        if self.active:
            self._end(End.REPLACED, f"by deployment {loading.number}")
        if loading.phase is Phase.RESTING:
            self.pending = Pending(loading, content, self._measure(loading.where))
        elif not self._attach(loading, content) and loading.previous:
            self._restore(loading.previous)

    def _prove(self, proven: Deployment) -> None:
        assert self.active is not None
        if self._try_save(proven, "proven", f"at stage {proven.stage}", owed=False):
            self.active.deployment = proven

    def _pin(self, pinned: Deployment) -> None:
        active = self.active
        assert active is not None
        if not self._try_save(pinned, "pinned", "it survives this process", owed=False):
            return
        try:
            active.loaded.pin(pinned.lease_until)
            active.deployment = pinned
        except BpfError as error:  # it stays, and ends with this process
            active.pinnable = False
            self._try_save(active.deployment, "not pinned", one_line(error), owed=False)

    def _drop(self, end: End, detail: str) -> None:
        assert self.pending is not None
        waiting, self.pending = self.pending.deployment, None
        self._confirm_end(waiting, end, detail)

    def _leave(self) -> None:
        assert self.active is not None
        self._try_save(self.active.deployment, "left", "pinned; the next schedagentd takes it over")
        self.active.loaded.leave()
        self.active = None

    # A roll-out by pulses

    def _rest(self, decision: Rest) -> None:
        """Open a window of the default scheduler."""
        resting = decision.resting
        content = self.pending.content if self.pending else self.record.content(resting.order.digest)
        if self.active and not self._take_away(self.active, resting):  # a canary that is promoted
            return
        if content is None:
            self._confirm_end(resting, End.NOT_LOADED, "its object is not kept any more")
            return
        if decision.kind:
            self._try_save(resting, decision.kind, decision.detail, owed=False)
        before = self._measure(resting.where, decision.pulses.length_s)
        self.pending = Pending(resting, content, before, self._open(decision.pulses, content))

    def _pulse(self, loading: Deployment, pulses: Pulses | None) -> None:
        """Load what rests: for a window, or without pulses to stay."""
        if self.pending is None:  # it ended before
            return
        content = self.pending.content
        try:
            check_machine(self.kernel, ours=False)
            self.check_token(loading.order, loading.order.token, loading.stage, loading.cgroup)
            self.record.save(loading, "" if pulses else "loading")
        except SchedagentError as error:
            self._drop(End.NOT_LOADED, one_line(error))
        else:
            self.pending = None
            if self._attach(loading, content, pulses):
                return
        if loading.previous:
            self._restore(loading.previous)

    def _open(self, pulses: Pulses, content: bytes) -> Windowed:
        """A window that begins now."""
        boot, length_s = self.clock.boot(), pulses.length_s
        return Windowed(pulses, content, boot + wash_out_s(length_s), boot + length_s)

    def begin_measuring(self, window: Windowed) -> None:
        """Measure from now on: the wash-out of the open window is over."""
        begun = self.clock.monotonic()
        holder = self.active or self.pending
        assert holder is not None
        length_s = window.pulses.length_s
        measuring = self._measure(holder.deployment.where, length_s)
        if holder.deployment.where != "":
            window.everybody = self._measure("", length_s)
        if self.active:
            self.active.now = measuring
        elif self.pending:
            self.pending.before = measuring
        window.is_measured = True
        took_s = self.clock.monotonic() - begun
        window.sample_s = min(max(2 * took_s, WAKING_S), (window.ends_at - window.measured_from) / 4)

    def end_measuring(self, window: Windowed) -> None:
        """Take the last samples of the open window, which ends in a moment."""
        measuring = self.active.now if self.active else self.pending.before if self.pending else None
        assert measuring is not None
        window.shown = shown_in(measuring, window)

    def end_window(self, window: Windowed) -> Window | None:
        """End the open window: the default scheduler is in charge. Return what it showed; None if that ended it all."""
        shown = window.shown or Window({})
        if active := self.active:
            resting = replace(active.deployment, phase=Phase.RESTING, enable_seq=-1)
            if not self._take_away(active, resting):
                return None
            self._try_save(resting, "", "", owed=False)
            self.pending = Pending(resting, window.content, active.now)
        return shown

    # Giving to the kernel, taking away, restoring

    def _attach(self, loading: Deployment, content: bytes, pulses: Pulses | None = None) -> bool:
        """Give a policy to the kernel; return whether it is in charge, and the record knows it.

        What has a time is not written to the record once it is in charge: a disk may make it longer. That it was about
        to be loaded is written.
        """
        partial, timed = loading.stage is Stage.CANARY, loading.stage.is_timed
        try:
            loaded = self.kernel.load(loading.number, loading.order, content, partial)
        except SchedagentError as error:
            log.warning("%s: %s", loading.label, error)
            self._confirm_end(loading, End.NOT_LOADED, one_line(error), further_lines(error))
            return False
        running = decisions.in_charge(loading, loaded.enable_seq, self.clock.boot())
        window = self._open(pulses, content) if pulses else None
        if timed:
            loaded.end_within((pulses.length_s if pulses else running.lease_s) + GRACE_S)
        first = self._reading(loaded)
        now = self._measure(loading.where, pulses.length_s if pulses else math.inf)
        self.active = Active(running, loaded, first, first, now, window)
        if not timed and not self._try_save(running, "running", f"{running.stage} {running.where}".rstrip()):
            self._end(End.NOT_LOADED, "the record could not be written")
            return False
        if partial:
            self.kernel.move_in(running.where)
        return True

    def _take_away(self, active: Active, then: Deployment) -> bool:
        """Detach what runs, which rests from now on; if it did not end as it was to, all of it has ended."""
        self.active = None
        try:
            exit_info = active.loaded.detach()
        except BpfError as error:
            self._confirm_end(then, End.BLIND, one_line(error))
            return False
        finally:
            self.taken_away_at = self.clock.boot()
        if active.deployment.stage is Stage.CANARY:
            self.kernel.move_out()
        state = self.kernel.state()
        if state.state == "enabled":
            self._confirm_end(then, End.FOREIGN, f"{quote(state.ops)} is in charge instead")
            return False
        if exit_info and not exit_info.is_orderly:
            hotplugged = state.hotplug_seq != active.first.state.hotplug_seq
            end, what = judge_exit(exit_info, hotplugged)
            self._confirm_end(then, end, what, exit_info.words)
            return False
        return True

    def _end(self, end: End, detail: str) -> None:
        """Take away what runs, confirmed by sysfs, and write that to the record afterwards."""
        assert self.active is not None
        active, self.active = self.active, None
        own_words = active.before.exit.words if active.before.exit else ""
        try:
            active.loaded.detach()
        except BpfError as error:
            log.error("%s", error)
            detail = f"{detail}; {one_line(error)}"
        self.taken_away_at = self.clock.boot()
        if active.deployment.stage is Stage.CANARY:
            self.kernel.move_out()
        if own_words:
            log.info("%s says of its end: %s", active.deployment.label, own_words)
        self._confirm_end(active.deployment, end, detail, own_words)

    def _confirm_end(self, deployment: Deployment, end: End, detail: str, own_words: str = "") -> None:
        ended = decisions.ended(deployment, end, detail, self.clock.unix(), own_words)
        self._try_save(ended, "tripped" if end.is_trip else "ended", f"{end}: {detail}".removesuffix(": "))

    def _restore(self, number: int) -> None:
        """Load the last known good again, if its token still allows that; else the default scheduler stays."""
        try:
            before = self.record.get(number)
            content = self.record.content(before.order.digest) if before else None
            if before is None or content is None:
                raise Refused(f"deployment {number} is not kept any more")
            if trip := self.record.trip_of(before.order.digest, self.clock.unix()):
                raise Refused(f"the circuit breaker ended the same object meanwhile: {trip}")
            if is_gone(self.kernel, before):
                raise Refused(f"{before.tree} ended")
            if before.stage is Stage.CANARY:
                check_canary(self.kernel, before.cgroup)
            check_machine(self.kernel, ours=False)
            token = self.check_token(before.order, before.order.token, before.stage, before.cgroup)
            restored = decisions.restored(before, token, self.now)
            restored = self.record.begin(restored, content, None, "restoring", f"the last known good, {before.label}")
        except SchedagentError as error:
            log.warning("the last known good is not restored: %s", error)
            self._try_note("not restored", one_line(error), number)
            return
        self._attach(restored, content)

    # What an earlier process left

    def reconcile(self) -> None:
        """Bring record and kernel together, once, when this process begins.

        What an earlier process pinned stays if all of it is there and its lease holds; everything else ends.
        """
        if self.record.moved_aside:
            self.record.note("record lost", f"it was damaged and is kept as {self.record.moved_aside.name}")
        pins, unfinished = set(self.kernel.pinned()), self.record.unfinished()
        for deployment in unfinished:
            if self.active is None and deployment.number in pins and self._adopt(deployment):
                pins.discard(deployment.number)
        for number in sorted(pins):
            self._remove_pins(number)
        if self.active is None and (pins or unfinished or self.record.moved_aside):
            self.kernel.move_out()
        self._note_foreign()
        for deployment in unfinished:
            if self.active is None or deployment.number != self.active.deployment.number:
                self._account_for(deployment)
        self.record.note("started", f"in charge: {self.in_charge}")

    def _note_foreign(self) -> None:
        """Note a scheduler that somebody else loaded: what it is, whose, and how to unload it."""
        state = self.kernel.state()
        if self.active is None and state.available and state.state != "disabled":
            others = self.kernel.schedulers()
            detail = f"{quote(state.ops or state.state)}{named(others)} is in charge; to deploy: {stop_hint(others)}"
            log.warning("another scheduler: %s", detail)
            self.record.note("another scheduler", detail)

    def _adopt(self, deployment: Deployment) -> bool:
        """Take over a pinned deployment; return False if anything about it is not as it should be."""
        content = self.record.content(deployment.order.digest)
        if content is None or not decisions.may_adopt(deployment, self.now):
            return False
        if (deaths := self.record.deaths_under(deployment.number)) > MOST_DEATHS:
            log.warning("%s is not taken over: schedagentd died under it %d times", deployment.label, deaths)
            return False
        try:
            loaded = self.kernel.adopt(deployment.number, deployment.order, content, deployment.enable_seq)
        except SchedagentError as error:
            log.warning("%s cannot be taken over: %s", deployment.label, error)
            return False
        first = self._reading(loaded)
        if not first.enabled:
            loaded.leave()
            return False
        self.active = Active(deployment, loaded, first, first, self._measure(deployment.where))
        self._prolong(deployment)
        self._try_save(deployment, "adopted", f"stage {deployment.stage}", owed=False)
        return True

    def _remove_pins(self, number: int) -> None:
        try:
            self.kernel.remove_pins(number)
        except BpfError as error:
            log.error("%s", error)
            self._try_note("not removed", one_line(error), number)

    def _account_for(self, deployment: Deployment) -> None:
        """Store the end of what ended with an earlier process."""
        end, detail = decisions.account_for(deployment, self.now)
        self._confirm_end(deployment, end, detail)

    # Small things

    def _prolong(self, deployment: Deployment) -> None:
        """Let the pins of what runs know of its lease; if that fails they go earlier, once nobody holds them."""
        if self.active and deployment.pinned and self.active.deployment.number == deployment.number:
            try:
                self.active.loaded.prolong(deployment.lease_until)
            except BpfError as error:
                log.error("%s", error)

    def _reading(self, loaded: Loaded) -> KernelReading:
        """Read what the kernel shows; exit_info comes last, or an end between two of these would have no cause."""
        state, enabled = self.kernel.state(), loaded.enabled()
        exit_info = loaded.exit_info()
        if exit_info and exit_info.asks_for_restart:
            state = self.kernel.state()  # the hotplug may have come after it was read
        return KernelReading(self.clock.boot(), self.clock.monotonic(), state, enabled, exit_info)

    def _measure(self, where: Where, window_s: float = math.inf) -> Measuring:
        """Begin to sample a scope; the first sample only begins the first interval.

        Args:
            window_s: for how long, if that is known.
        """
        self._next_sample = self.clock.monotonic() + self._sample_s
        measuring = Measuring(self.kernel.watch(where, self._starvation_s, window_s < BRIEF_S))
        measuring.take()
        return measuring

    def _became(self, deployment: Deployment) -> None:
        """Remember what the record now contains of what runs or waits."""
        for holder in (self.active, self.pending):
            if holder and holder.deployment.number == deployment.number:
                holder.deployment = deployment

    def _try_save(self, deployment: Deployment, kind: str, detail: str, owed: bool = True) -> bool:
        """Write to the record; if that fails continue without, and (if owed) write the end of it later."""
        try:
            self.record.save(deployment, kind, detail)
            self.unsaved.pop(deployment.number, None)
            return True
        except RecordError as error:
            known = deployment.number in self.unsaved  # a full disk must not be filled further, by the log
            log.log(logging.DEBUG if known else logging.ERROR, "%s %s, but: %s", deployment.label, kind, error)
            if owed and deployment.phase is Phase.ENDED:
                self.unsaved[deployment.number] = deployment
            return False

    def save_unsaved(self) -> None:
        """Write to the record what it could not take before, if it can now."""
        for deployment in list(self.unsaved.values()):
            self._try_save(deployment, "ended", f"{deployment.end}: {deployment.detail}; stored late")

    def _try_note(self, kind: str, detail: str, number: int) -> None:
        try:
            self.record.note(kind, detail, number)
        except RecordError as error:
            log.error("%s: %s", kind, error)
