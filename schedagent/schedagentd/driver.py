"""What is in charge: one policy is given to the kernel, confirmed, taken away, restored or taken over.

Always in this order, so that whatever ends this process between two steps can be put right by the next one:

    write what is meant to the record ─► do it ─► read from sysfs that it is so ─► write that to the record

What was not pinned ends with this process, and only what proved itself is ever pinned. Taking a policy away never waits
for the record: a full disk must not keep a bad one in charge.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kernel_bpf.observe.tasks import TaskSample
from schedagent.core.deployment import Deployment, End, Order, Phase, Stage, Where
from schedagent.core.errors import BpfError, RecordError, Refused, SchedagentError
from schedagent.core.token import DeploymentToken
from schedagent.core.welch import LEAST_SAMPLES, Spread
from schedagent.schedagentd.admission import check_machine, check_token
from schedagent.schedagentd.breaker import KernelReading, summarise
from schedagent.schedagentd.config import Config
from schedagent.schedagentd.kernel import Kernel, Loaded, Watching, named, stop_hint, told
from schedagent.schedagentd.record import Record

log = logging.getLogger(__name__)

_MOST_SAMPLES = 5 * LEAST_SAMPLES
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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
        metric: None until the first report, which is left out: some of what it tells of was before.
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
        first, before: the look at it when its stage began, and the last one.
        now: of its tasks, since its stage began.
        step: of the scope that it is about to get; None while it is not to be promoted.
        worse: how often in a row it looked worse than the baseline.
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
    """Does one thing to the kernel at a time, and writes it down; `rollout` decides what.

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
        self.kernel, self.record, self.config = kernel, record, config
        self.clock = clock or Clock()
        self.active: Active | None = None
        self._public_keys = public_keys
        self._boot_id = self.clock.boot_id()
        self._unsaved: dict[int, Deployment] = {}
        self._next_sample = 0.0

    @property
    def in_charge(self) -> str:
        """What schedules tasks now, in words, by sysfs."""
        state = self.kernel.state()
        if not state.available:
            return "the default scheduler (this kernel has no sched_ext, or does not tell)"
        if state.state == "disabled":
            return "the default scheduler"
        if self.active is None:
            return f"{state.ops or state.state}, which is not ours"
        return f"{self.active.deployment.label} at stage {self.active.deployment.stage}"

    def reconcile(self) -> None:
        """Bring record and kernel together, once, when this process begins.

        What an earlier process pinned goes on if all of it is there and its lease holds; everything else ends.
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
        """Tell of a scheduler that somebody else loaded: what it is, whose, and how to be rid of it."""
        state = self.kernel.state()
        if self.active is None and state.available and state.state != "disabled":
            found = self.kernel.schedulers()
            told = f"{state.ops or state.state}{named(found)} is in charge; to deploy: {stop_hint(found)}"
            log.warning("another scheduler: %s", told)
            self.record.note("another scheduler", told)

    # Giving and taking

    def _attach(self, loading: Deployment, content: bytes) -> bool:
        """Give a policy to the kernel; say whether it is in charge and the record knows it."""
        partial = loading.stage is not Stage.FULL
        try:
            loaded = self.kernel.load(loading.number, loading.order, content, partial)
        except SchedagentError as error:
            log.warning("%s: %s", loading.label, error)
            self._confirm_end(loading, End.NOT_LOADED, told(error))
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
        """Detach what runs, so that it can be loaded anew; if that fails it has ended."""
        self.active = None
        try:
            active.loaded.detach()
        except BpfError as error:
            self._confirm_end(then, failed, told(error))
            return False
        self.kernel.move_out()
        return True

    def _end(self, end: End, detail: str) -> None:
        """Take away what runs, confirmed by sysfs."""
        assert self.active is not None
        active, self.active = self.active, None
        ending = replace(active.deployment, phase=Phase.ENDING, end=end, detail=detail)
        self._try_save(ending, "ending", f"{end}: {detail}")
        dump = active.before.exit.dump if active.before.exit else ""
        try:
            info = active.loaded.detach()
            dump = info.dump if info and info.dump else dump
        except BpfError as error:
            log.error("%s", error)
            detail = f"{detail}; {told(error)}"
        if ending.stage is not Stage.FULL:
            self.kernel.move_out()
        self._confirm_end(ending, end, detail, dump)

    def _confirm_end(self, deployment: Deployment, end: End, detail: str, dump: str = "") -> None:
        ended = replace(
            deployment,
            phase=Phase.ENDED,
            end=end,
            detail=detail,
            dump=dump,
            pinned=False,
            next_stage=None,
            next_cgroup="",
            ended_at=self.clock.unix(),
        )
        self._try_save(ended, "tripped" if end.is_trip else "ended", f"{end}: {detail}".removesuffix(": "))

    def _restore(self, number: int) -> None:
        """Load the last known good again, if its token still allows that; else the default scheduler stays."""
        try:
            before = self.record.get(number)
            content = self.record.content(before.order.digest) if before else None
            if before is None or content is None:
                raise Refused(f"deployment {number} is not kept any more")
            check_machine(self.kernel, ours=False)
            token = self._check_token(before.order, before.order.token, before.stage, before.cgroup)
            boot, unix = self.clock.boot(), self.clock.unix()
            until = boot + token.expires_at - unix
            restored = replace(
                before,
                phase=Phase.LOADING,
                boot_id=self._boot_id,
                lease_until=min(boot + before.lease_s, until),
                token_until=until,
                created_at=unix,
                since=boot,
                enable_seq=-1,
                pinned=False,
                end=None,
                detail="",
                dump="",
                ended_at=0.0,
            )
            restored = self.record.begin(restored, content, None, "restoring", f"the last known good, {before.label}")
        except SchedagentError as error:
            log.warning("the last known good is not restored: %s", error)
            self._try_note("not restored", told(error), number)
            return
        self._attach(restored, content)

    # What an earlier process left

    def _adopt(self, deployment: Deployment) -> bool:
        """Take over a pinned deployment; False if anything about it is not as it should be."""
        content = self.record.content(deployment.order.digest)
        lapsed = self.clock.boot() >= deployment.lease_until
        kept = deployment.phase is Phase.RUNNING and deployment.pinned and deployment.boot_id == self._boot_id
        if not kept or lapsed or content is None:
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
        self._try_save(deployment, "adopted", f"stage {deployment.stage}", owed=False)
        return True

    def _remove_pins(self, number: int) -> None:
        try:
            self.kernel.remove_pins(number)
        except BpfError as error:
            log.error("%s", error)
            self._try_note("not removed", told(error), number)

    def _account_for(self, deployment: Deployment) -> None:
        """Store the end of what ended with an earlier process."""
        here = deployment.boot_id == self._boot_id
        lapsed = here and deployment.pinned and self.clock.boot() >= deployment.lease_until
        end = deployment.end or (End.LEASE_LAPSED if lapsed else End.DIED)
        detail = deployment.detail or ("while nobody watched" if lapsed else f"in phase {deployment.phase}")
        self._confirm_end(deployment, end, detail if here else "the machine was restarted")

    # Small things

    def _reading(self, loaded: Loaded) -> KernelReading:
        """Look at what is in charge; its last words last, or an end between two looks would have none."""
        state, enabled = self.kernel.state(), loaded.enabled()
        return KernelReading(self.clock.boot(), self.clock.monotonic(), state, enabled, loaded.exit_info())

    def _measure(self, where: Where) -> Measuring:
        """Begin to look at a scope, if anything is to be compared; the first sample is only a beginning."""
        self._next_sample = self.clock.monotonic() + self.config.sample_s
        measuring = Measuring(self.kernel.watch(where, self.config.bounds.starvation_s))
        measuring.take()
        return measuring

    def _check_token(
        self, order: Order, token: str, stage: Stage, cgroup: str, used: frozenset[str] = frozenset()
    ) -> DeploymentToken:
        return check_token(
            order,
            token,
            self._public_keys(),
            self.kernel.identity(),
            stage.scope,
            cgroup,
            self.clock.unix(),
            self.record.last_seen,
            self.record.tokens_from,
            used,
        )

    def _try_save(self, deployment: Deployment, kind: str, detail: str, owed: bool = True) -> bool:
        """Write to the record; if that fails go on without, and (if owed) write the end of it later."""
        try:
            self.record.save(deployment, kind, detail)
            self._unsaved.pop(deployment.number, None)
            return True
        except RecordError as error:
            said = deployment.number in self._unsaved  # a full disk must not be filled further, by the log
            log.log(logging.DEBUG if said else logging.ERROR, "%s %s, but: %s", deployment.label, kind, error)
            if owed and deployment.phase is Phase.ENDED:
                self._unsaved[deployment.number] = deployment
            return False

    def _save_unsaved(self) -> None:
        for deployment in list(self._unsaved.values()):
            self._try_save(deployment, "ended", f"{deployment.end}: {deployment.detail}; stored late")

    def _try_note(self, kind: str, detail: str, number: int) -> None:
        try:
            self.record.note(kind, detail, number)
        except RecordError as error:
            log.error("%s: %s", kind, error)
