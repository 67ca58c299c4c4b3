"""Carries decisions out: one policy is given to the kernel, confirmed, taken away, restored or taken over.

Always in this order, so that whatever ends this process between two steps can be put right by the next one:

    write the intent to the record ─► do it ─► read from sysfs that it is so ─► write that to the record

What was not pinned ends with this process, and only what proved itself is ever pinned. A policy is taken away before
the record is written: neither a full disk nor a slow one, whose kernel threads it schedules, may keep it in charge.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kernel_bpf.observe.schedulers import named, stop_hint
from kernel_bpf.observe.tasks import TaskSample
from schedagent.core.deployment import Deployment, End, Order, Phase, Stage, Where
from schedagent.core.errors import BpfError, RecordError, Refused, SchedagentError, TokenError
from schedagent.core.terminal.foreign import quote
from schedagent.core.token import CLOCK_SKEW_S, DeploymentToken, read_signed
from schedagent.core.welch import LEAST_SAMPLES, Spread
from schedagent.schedagentd import decisions
from schedagent.schedagentd.admission import NOTHING, Accepted, check_accepted, check_machine, check_token, is_gone
from schedagent.schedagentd.breaker import KernelReading, summarise
from schedagent.schedagentd.decisions import (
    Accept,
    Decision,
    Drop,
    EndWith,
    Leave,
    Load,
    Moment,
    Pin,
    Promote,
    Prove,
    Renew,
    Restore,
    Widen,
)
from schedagent.schedagentd.kernel import Kernel, Loaded, Watching, further_lines, one_line
from schedagent.schedagentd.record import Record

log = logging.getLogger(__name__)

_MOST_SAMPLES = 5 * LEAST_SAMPLES
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MOST_DEATHS = 3
"""So often may this process have died under a pinned policy that is taken over again: it may be the policy's doing."""
KEEP_TIME_S = 120.0
"""How often it is stored how late it is."""


class Clock:
    """The clocks of this machine, in seconds."""

    def unix(self) -> float:
        """The time of day, which people and daemons may set."""
        return time.time()

    def boot(self) -> float:
        """Since boot, suspended or not; nobody can set it."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def monotonic(self) -> float:
        """Since boot, without the time suspended."""
        return time.monotonic()

    def boot_id(self) -> str:
        """Which boot that was."""
        return _BOOT_ID.read_text().strip()


@dataclass
class Measuring:
    """Samples of one scope, and of the workload's own metric as its keeper reports it.

    Args:
        metric: None until the first report, which is left out: some of it was measured before.
    """

    watch: Watching
    samples: list[TaskSample] = field(default_factory=list)
    metric: list[float] | None = None

    def take(self) -> TaskSample:
        """Sample now; old ones are forgotten."""
        sample = self.watch.sample()
        self.samples = [*self.samples[-_MOST_SAMPLES:], sample]
        return sample

    def report(self, values: Sequence[float]) -> None:
        """Take what was measured of the workload's own metric; old values are forgotten."""
        if values:
            self.metric = [] if self.metric is None else [*self.metric, *values][-_MOST_SAMPLES:]

    def summary(self) -> dict[str, Spread]:
        """All of it in short."""
        return summarise(self.samples, self.metric or ())


@dataclass
class Active:
    """What is in charge now.

    Args:
        first, before: the reading when its stage began, and the last one.
        now: of its tasks, since its stage began.
        step: of the scope that it is about to get; None while it is not being promoted.
        worse: how many times in a row it was worse than the baseline.
        pinnable: False once pinning it failed.
    """

    deployment: Deployment
    loaded: Loaded
    first: KernelReading
    before: KernelReading
    now: Measuring
    step: Measuring | None = None
    worse: int = 0
    pinnable: bool = True


@dataclass
class Pending:
    """What was accepted and waits until enough is known of the machine without it."""

    deployment: Deployment
    content: bytes
    before: Measuring


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
        """The deployment that waits to be loaded."""
        return self.pending.deployment if self.pending else None

    @property
    def now(self) -> Moment:
        """What time it is."""
        return Moment(self._boot_id, self.clock.boot(), self.clock.unix())

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
        if active.deployment.stage is not Stage.FULL:
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
        """Return the token if it allows this order here and now; raise TokenError, Refused or RecordError otherwise."""
        return check_token(
            order,
            token,
            self.public_keys(),
            self.kernel.identity(),
            stage.scope,
            cgroup,
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
            RecordError: an Accept, Renew or Promote could not be stored, and nothing was changed.
        """
        match decision:
            case Accept():
                self._accept(decision)
            case Renew():
                self._renew(decision)
            case Promote(promoted):
                self._promote(promoted)
            case Load(loading):
                self._load(loading)
            case Widen(wider):
                self._widen(wider)
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
        self.record.save(renewed, kind, "with a newer token", decision.token)
        self._became(renewed)
        self._prolong(renewed)
        if self.pending and self.pending.deployment.number == renewed.number:
            self.pending.before.report(decision.metric)
        elif self.active and self.active.deployment.number == renewed.number:
            self.active.now.report(decision.metric)

    def _promote(self, promoted: Deployment) -> None:
        assert self.active is not None
        self.record.save(promoted, "promoting", f"to {promoted.next_stage} {promoted.next_cgroup}".rstrip())
        self._became(promoted)
        self.active.step = self._measure(promoted.next_cgroup)

    def _load(self, loading: Deployment) -> None:
        assert self.pending is not None
        content = self.pending.content
        try:
            check_machine(self.kernel, ours=self.active is not None)
            if is_gone(self.kernel, loading):
                raise Refused(f"{loading.tree} ended")
            self.check_token(loading.order, loading.order.token, loading.stage, loading.cgroup)
            self.record.save(loading, "loading")
        except SchedagentError as error:  # what runs stays
            self._drop(End.NOT_LOADED, one_line(error))
            return
        self.pending = None
        if self.active:
            self._end(End.REPLACED, f"by deployment {loading.number}")
        if not self._attach(loading, content) and loading.previous:
            self._restore(loading.previous)

    def _widen(self, wider: Deployment) -> None:
        active = self.active
        assert active is not None
        loads = wider.stage is Stage.FULL
        try:
            check_machine(self.kernel, ours=True)
            self.check_token(wider.order, wider.order.token, wider.stage, wider.cgroup)
            content = self.record.content(wider.order.digest) if loads else b""
            if content is None:
                raise Refused("its object is not kept any more")
            self.record.save(wider, "promoted", f"to {wider.stage} {wider.cgroup}".rstrip())
        except SchedagentError as error:  # it stays as it is
            active.step = None
            active.deployment = replace(active.deployment, next_stage=None, next_cgroup="")
            self._try_save(active.deployment, "not promoted", one_line(error))
            return
        if loads:
            if self._take_away(active, wider, End.NOT_LOADED):
                self._attach(wider, content)
            return
        active.loaded.unpin()
        self.kernel.move_in(wider.cgroup)
        first = self._reading(active.loaded)
        self.active = Active(wider, active.loaded, first, first, self._measure(wider.cgroup))

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

    # Giving to the kernel, taking away, restoring

    def _attach(self, loading: Deployment, content: bytes) -> bool:
        """Give a policy to the kernel; return whether it is in charge and the record knows it."""
        partial = loading.stage is not Stage.FULL
        try:
            loaded = self.kernel.load(loading.number, loading.order, content, partial)
        except SchedagentError as error:
            log.warning("%s: %s", loading.label, error)
            self._confirm_end(loading, End.NOT_LOADED, one_line(error), further_lines(error))
            return False
        running = replace(loading, phase=Phase.RUNNING, enable_seq=loaded.enable_seq, since=self.clock.boot())
        first = self._reading(loaded)
        self.active = Active(running, loaded, first, first, self._measure(loading.where))
        if not self._try_save(running, "running", f"{running.stage} {running.where}".rstrip()):
            self._end(End.NOT_LOADED, "the record could not be written")
            return False
        if partial:
            self.kernel.move_in(running.where)
        return True

    def _take_away(self, active: Active, then: Deployment, failed: End) -> bool:
        """Detach what runs, so that it can be loaded again; if that fails it has ended."""
        self.active = None
        try:
            active.loaded.detach()
        except BpfError as error:
            self._confirm_end(then, failed, one_line(error))
            return False
        self.kernel.move_out()
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
        if active.deployment.stage is not Stage.FULL:
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

    def _measure(self, where: Where) -> Measuring:
        """Begin to sample a scope; the first sample only begins the first interval."""
        self._next_sample = self.clock.monotonic() + self._sample_s
        measuring = Measuring(self.kernel.watch(where, self._starvation_s))
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
