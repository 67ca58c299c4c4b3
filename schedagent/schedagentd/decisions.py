"""What follows from what is so: decisions as values, for the driver to carry out. Pure.

Every function takes what is deployed, what was seen and what time it is, and returns a decision, or None for nothing to
do. None of them asks the kernel, the record or a clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kernel_bpf.observe.tasks import TaskSample
from schedagent.core.deployment import Deployment, End, Order, Phase, Stage, Tree
from schedagent.core.errors import Refused
from schedagent.core.terminal.foreign import one_line
from schedagent.core.token import DeploymentToken
from schedagent.core.welch import TIMES_IN_A_ROW, Better, Spread
from schedagent.schedagentd.breaker import Bounds, KernelReading, judge_reading, judge_spreads, measures
from schedagent.schedagentd.config import NOT_ON_EXIT, Config
from schedagent.schedagentd.pulses import Coin, Going, Pulses, Window, judge_pulses

LONGEST_DETAIL = 3500
"""Characters of why a deployment ended, and of what the policy said of that: each is one printable line."""

REST_S, HOUR_S = 1.0, 3600.0
"""How long the default scheduler is in charge before a trial; what trials are counted in."""

# What may be decided


@dataclass(frozen=True)
class Accept:
    """Store a new deployment, mark its token as used, and begin to measure the machine without it.

    Args:
        deployment: not numbered yet.
    """

    deployment: Deployment
    content: bytes
    token: DeploymentToken


@dataclass(frozen=True)
class Renew:
    """Store a longer lease.

    Args:
        token: a newer one that is used with it; None for none.
        metric: what its keeper measured since the last renewal.
    """

    renewed: Deployment
    token: DeploymentToken | None
    metric: tuple[float, ...]


@dataclass(frozen=True)
class Try:
    """Load a policy for one trial, which ends by itself.

    Args:
        deployment: not numbered yet.
    """

    deployment: Deployment
    content: bytes


@dataclass(frozen=True)
class Load:
    """Replace what runs by what waits; if that fails, restore the last known good."""

    loading: Deployment


@dataclass(frozen=True)
class Rest:
    """Let the default scheduler be in charge for a window of a roll-out by pulses.

    Args:
        kind, detail: of the event; empty for none.
    """

    resting: Deployment
    pulses: Pulses
    kind: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Pulse:
    """Load what rests: for a window of its roll-out, or without pulses to stay."""

    loading: Deployment
    pulses: Pulses | None


@dataclass(frozen=True)
class Prove:
    """Store that what runs survived its probation."""

    proven: Deployment


@dataclass(frozen=True)
class Pin:
    """Let what runs survive this process."""

    pinned: Deployment


@dataclass(frozen=True)
class Drop:
    """End what waits; nothing of it is loaded."""

    end: End
    detail: str


@dataclass(frozen=True)
class EndWith:
    """Take what runs away from the kernel."""

    end: End
    detail: str


@dataclass(frozen=True)
class Restore:
    """Load an earlier deployment again, as one of its own; otherwise the default scheduler stays."""

    number: int


@dataclass(frozen=True)
class Leave:
    """Let go of what is pinned, for the next process to take over."""


Decision = Accept | Renew | Try | Load | Rest | Pulse | Prove | Pin | Drop | EndWith | Restore | Leave


@dataclass(frozen=True)
class Moment:
    """Now.

    Args:
        boot_id: of this boot.
        boot: seconds since then, suspended or not.
        unix: the time of day.
    """

    boot_id: str
    boot: float
    unix: float


# What may be asked for


def accept(
    order: Order,
    content: bytes,
    token: DeploymentToken,
    *,
    uid: int,
    stage: Stage,
    cgroup: str,
    tree: Tree | None,
    lease_s: float,
    better: Better | None,
    now: Moment,
    config: Config,
) -> Accept:
    """Accept a policy whose token and scope were checked."""
    lease_s = min(lease_s, config.longest_lease_s)
    token_until = _expiry(token, now)
    deployment = Deployment(
        number=0,
        order=order,
        stage=stage,
        cgroup=cgroup,
        phase=Phase.WAITING,
        uid=uid,
        boot_id=now.boot_id,
        lease_s=lease_s,
        lease_until=min(now.boot + lease_s, token_until),
        token_until=token_until,
        created_at=now.unix,
        since=now.boot,
        tree=tree,
        better=better,
    )
    return Accept(deployment, content, token)


def check_trial(ended: float, begun: Sequence[float], boot: float, config: Config) -> None:
    """Refuse a trial that comes too soon.

    Args:
        ended: when (boot clock) the last policy was taken away.
        begun: when the trials of the last hour began.

    Raises:
        Refused: with what to do.
    """
    if boot < ended + REST_S:
        raise Refused(f"a policy was in charge {boot - ended:.1f} s ago", f"try again {REST_S:g} s after it")
    if len(begun) >= config.trials_per_hour:
        raise Refused(
            f"there were {len(begun)} trials within an hour, as many as are allowed",
            f"the next one is allowed in {max(begun[0] + HOUR_S - boot, 0) / 60:.0f} min; or set trials_per_hour",
        )


def trial(accepted: Accept) -> Try:
    """Return what an accepted policy is to be for a trial: it is loaded at once."""
    return Try(replace(accepted.deployment, phase=Phase.LOADING), accepted.content)


def in_charge(loading: Deployment, enable_seq: int, boot: float) -> Deployment:
    """Return a deployment as it is when the kernel has confirmed it; a trial's time begins only now."""
    since = loading.since if loading.stage is Stage.PULSE else boot
    running = replace(loading, phase=Phase.RUNNING, enable_seq=enable_seq, since=since)
    if loading.stage is not Stage.TRIAL:
        return running
    return replace(running, lease_until=min(boot + loading.lease_s, loading.token_until))


def renew(
    deployment: Deployment,
    order: Order,
    token: DeploymentToken | None,
    metric: Sequence[float],
    lease_s: float,
    now: Moment,
    config: Config,
) -> Renew:
    """Prolong a lease from now on, never beyond the end of the token.

    Args:
        order, token: the same with a newer token, which was checked; the deployment's own and None without one.

    Raises:
        Refused: there is no metric to report.
    """
    if metric and deployment.better is None:
        raise Refused(f"{deployment.label} has no metric", "say which way it is better when it is deployed")
    lease_s = min(lease_s, config.longest_lease_s)
    token_until = deployment.token_until if token is None else _expiry(token, now)
    lease_until = min(now.boot + lease_s, token_until)
    renewed = replace(deployment, order=order, lease_s=lease_s, lease_until=lease_until, token_until=token_until)
    return Renew(renewed, token, tuple(metric))


def promote(deployment: Deployment, coin: Coin, now: Moment, config: Config) -> tuple[Rest, *tuple[Pulse, ...]]:
    """Take a proven canary on to the whole machine, by pulses.

    Raises:
        Refused: it is none, or on probation.
    """
    if deployment.stage is not Stage.CANARY or deployment.phase is not Phase.RUNNING:
        raise Refused(f"{deployment.label} is at stage {deployment.stage}", "a canary that runs is promoted")
    if not deployment.proven:
        left_s = config.probation_s[deployment.stage] - (now.boot - deployment.since)
        raise Refused(
            f"{deployment.label} is on probation for {max(0.0, left_s):.0f} s more", "promote it when it is proven"
        )
    return begin_pulses(deployment, coin, now.boot, config)


def begin_pulses(deployment: Deployment, coin: Coin, boot: float, config: Config) -> tuple[Rest, *tuple[Pulse, ...]]:
    """Begin the roll-out by pulses; the default scheduler is in charge before the first one."""
    pulses = Pulses(config.pulses_s, policy_first=coin())
    resting = replace(
        deployment,
        stage=Stage.PULSE,
        phase=Phase.RESTING,
        since=boot,
        proven=False,
        pinned=False,
        baseline={},
        pulse_s=pulses.length_s,
    )
    return _begin_length(Rest(resting, pulses, "pulses", f"of {', '.join(f'{each:g}' for each in config.pulses_s)} s"))


def roll_back(
    running: Deployment | None, waiting: Deployment | None, number: int, to_default: bool
) -> tuple[Decision, ...]:
    """End what waits and what runs, or only the one of that number (0 for both); then restore the last known good.

    Raises:
        Refused: nothing is deployed, or nothing of that number.
    """
    if not (running or waiting):
        raise Refused("nothing is deployed", "the default scheduler is in charge already")
    named = find(number, running, waiting) if number else None
    decisions: list[Decision] = []
    if waiting and named in (None, waiting):
        decisions.append(Drop(End.ROLLED_BACK, "asked for"))
        decisions += [] if to_default or waiting.phase is not Phase.RESTING else _back_from(waiting)
    if running and named in (None, running):
        decisions.append(EndWith(End.ROLLED_BACK, "asked for"))
        decisions += [] if to_default else _back_from(running)
    return tuple(decisions)


def find(number: int, running: Deployment | None, waiting: Deployment | None) -> Deployment:
    """Return what runs or waits by its number, or by that of the one it is again; raise Refused if it is neither."""
    alive = [deployment for deployment in (running, waiting) if deployment]
    for deployment in alive:
        if number in deployment.names:
            return deployment
    names = ", ".join(str(deployment.number) for deployment in alive) or "none"
    raise Refused(f"deployment {number} is neither running nor waiting", f"there are: {names}")


# What time brings


def at_once(
    running: Deployment, first: KernelReading, before: KernelReading, now: KernelReading, bounds: Bounds
) -> EndWith | None:
    """End what runs if the kernel ended it, harm shows in its counters, or its lease lapsed."""
    if trip := judge_reading(first, before, now, bounds):
        return EndWith(*trip)
    if now.boot < running.lease_until:
        return None
    if running.stage is Stage.TRIAL:
        return EndWith(End.OVER, f"{running.lease_s:g} s")
    expired = running.token_until <= running.lease_until
    return EndWith(End.LEASE_LAPSED, "its token expired" if expired else "nobody renewed it")


def core_scheduling(thread: int | None) -> EndWith | None:
    """End what runs if a thread became core-scheduled (None: none did): together with sched_ext, tasks can hang."""
    return EndWith(End.CORE_SCHEDULING, f"thread {thread} is core-scheduled") if thread is not None else None


@dataclass(frozen=True)
class Comparison:
    """What a new sample of the tasks means.

    Args:
        worse: how many times in a row it was worse than the baseline by now.
        decision: what follows.
    """

    worse: int
    decision: EndWith | None


def compare(
    running: Deployment, sample: TaskSample, now: Mapping[str, Spread], worse: int, bounds: Bounds
) -> Comparison:
    """End what runs if it starves tasks, or was surely worse than its baseline a few times in a row.

    Args:
        sample, now: the newest, and all since the stage began in short.
        worse: how many times in a row it was worse before this sample.
    """
    if sample.starved:
        return Comparison(worse, _starved(sample.starved, bounds))
    trip = judge_spreads(running.baseline, now, measures(bounds, running.better))
    worse = worse + 1 if trip else 0
    return Comparison(worse, EndWith(*trip) if trip and worse >= TIMES_IN_A_ROW else None)


def _starved(tasks: Sequence[str], bounds: Bounds) -> EndWith:
    shown = ", ".join(tasks[:5])
    return EndWith(End.STARVATION, f"runnable for {bounds.starvation_s:g} s without running: {shown}")


def after_trip(
    ended: Deployment, end: End, previous: Deployment | None, waiting: Deployment | None = None
) -> tuple[Decision, ...]:
    """Restore the last known good if the policy is to blame, and is another one; drop what waits if it is the same one.

    In this order: whatever ends makes the record forget what is behind nobody any more.

    Args:
        previous: the one that `ended` names; None if it is not known any more.
    """
    decisions: list[Decision] = []
    if previous and end.blames_policy and previous.order.digest != ended.order.digest:
        decisions.append(Restore(previous.number))
    if waiting and end.counts and waiting.order.digest == ended.order.digest:
        decisions.append(Drop(End.NOT_LOADED, f"the circuit breaker ended the same object: deployment {ended.number}"))
    return tuple(decisions)


def gone(running: Deployment) -> tuple[Decision, ...]:
    """End what runs if the process ended whose tasks are measured."""
    return EndWith(End.GONE, str(running.tree)), *_back_from(running)


def gone_resting(resting: Deployment) -> tuple[Decision, ...]:
    """The same of what rests between two pulses."""
    return Drop(End.GONE, str(resting.tree)), *_back_from(resting)


def prove(running: Deployment, boot: float, config: Config) -> Prove | None:
    """Note that what runs survived the probation of its stage."""
    if running.stage.is_timed or running.proven or not _is_over(running, boot, config):
        return None
    return Prove(replace(running, proven=True))


def pin(running: Deployment, pinnable: bool, boot: float, config: Config) -> Pin | None:
    """Pin what is proven, if it is to survive this process.

    Args:
        pinnable: False once pinning it failed.
    """
    wanted = config.rollback == NOT_ON_EXIT and pinnable and not running.pinned
    if not (wanted and running.proven and _is_over(running, boot, config)):
        return None
    return Pin(replace(running, pinned=True))


def wait_on(waiting: Deployment, boot: float) -> Drop | None:
    """Give up what waits, or rests between pulses, if its lease lapsed."""
    if boot < waiting.lease_until:
        return None
    if waiting.phase is Phase.RESTING:
        return Drop(End.LEASE_LAPSED, "between two pulses")
    return Drop(End.NOT_LOADED, "its lease lapsed first")


def is_enough(samples: int, metric: Sequence[float] | None, config: Config) -> bool:
    """Whether enough was measured for a baseline: as many intervals as are wanted, and values of its metric.

    Args:
        samples: their number; the first one only begins the first interval.
        metric: what was measured of it; None if it has none.
    """
    wanted = config.baseline_samples
    return samples > wanted and (metric is None or len(metric) >= wanted)


def load(
    waiting: Deployment, running: Deployment | None, measured: Mapping[str, Spread], boot: float, config: Config
) -> Load:
    """Load what waits, or let it rest before its first pulse.

    The last known good is what runs if it is proven, else the one before that.
    """
    previous = (running.number if running.proven else running.previous) if running else 0
    baseline = measured if config.baseline_samples else {}
    phase = Phase.RESTING if waiting.stage is Stage.PULSE else Phase.LOADING
    return Load(replace(waiting, phase=phase, previous=previous, baseline=baseline, since=boot))


def after_window(
    resting: Deployment, before: Pulses, shown: Window, coin: Coin, boot: float, config: Config
) -> tuple[Decision, ...]:
    """Return what follows after a window of a roll-out, while the default scheduler is in charge.

    Args:
        resting: the deployment.
        before: what was so before that window.
        shown: what was measured in it.
    """
    if shown.starved and before.is_policy_next:
        starved = _starved(shown.starved, config.bounds)
        return Drop(starved.end, starved.detail), *_back_from(resting)
    pulses = before.ended(shown, coin)
    if pulses.first is not None:
        return (_next_window(resting, pulses),)
    going = judge_pulses(pulses, config.bounds, resting.better)
    match going:
        case Going.ON:
            return (_next_window(resting, pulses),)
        case Going.LONGER:
            passed = f"{len(pulses.compared)} pairs of pulses of {pulses.length_s:g} s show no harm"
            longer = pulses.longer()
            resting = replace(resting, pulse_s=longer.length_s, pairs=0)
            return _begin_length(Rest(resting, longer, "longer pulses", f"{longer.length_s:g} s; {passed}"))
        case Going.STAY:
            baseline = pulses.baseline() if config.baseline_samples else {}
            full = replace(resting, stage=Stage.FULL, phase=Phase.LOADING, pulse_s=0.0, since=boot, baseline=baseline)
            return (Pulse(full, None),)
        case end, detail:
            return Drop(end, detail), *_back_from(resting)
    raise AssertionError("every outcome has its decision")


def _begin_length(rest: Rest) -> tuple[Rest, *tuple[Pulse, ...]]:
    """Rest, and end that at once if the policy's window is the first one."""
    following = _next_window(rest.resting, rest.pulses)
    return (rest, following) if isinstance(following, Pulse) else (rest,)


def _next_window(resting: Deployment, pulses: Pulses) -> Rest | Pulse:
    resting = replace(resting, pairs=len(pulses.pairs))
    if pulses.is_policy_next:
        return Pulse(replace(resting, phase=Phase.LOADING), pulses)
    return Rest(resting, pulses)


# This process begins and ends


def stop(running: Deployment | None, waiting: Deployment | None, config: Config) -> tuple[Decision, ...]:
    """End everything but what is pinned, if that is still wanted."""
    decisions: list[Decision] = [Drop(End.STOPPED, "")] if waiting else []
    if running:
        stays = running.pinned and config.rollback == NOT_ON_EXIT
        decisions.append(Leave() if stays else EndWith(End.STOPPED, ""))
    return tuple(decisions)


def may_adopt(deployment: Deployment, now: Moment) -> bool:
    """Whether what an earlier process pinned may be taken over: it ran, in this boot, and its lease holds."""
    ran = deployment.phase is Phase.RUNNING and deployment.pinned and deployment.boot_id == now.boot_id
    return ran and now.boot < deployment.lease_until


def account_for(deployment: Deployment, now: Moment) -> tuple[End, str]:
    """Return how and why a deployment ended that an earlier process left unfinished."""
    here = deployment.boot_id == now.boot_id
    lapsed = here and deployment.pinned and now.boot >= deployment.lease_until
    loaded = deployment.phase in (Phase.LOADING, Phase.RUNNING)
    died = End.DIED_ON_PROBATION if loaded and not deployment.proven else End.DIED
    end = deployment.end or (End.LEASE_LAPSED if lapsed else died)
    detail = deployment.detail or ("while nobody watched" if lapsed else f"in phase {deployment.phase}")
    return end, detail if here else "the machine was restarted"


def restored(before: Deployment, token: DeploymentToken, now: Moment) -> Deployment:
    """Return the deployment that loads an earlier one again: not numbered yet, and renewed by the number of that."""
    token_until = _expiry(token, now)
    return replace(
        before,
        phase=Phase.LOADING,
        boot_id=now.boot_id,
        lease_until=min(now.boot + before.lease_s, token_until),
        token_until=token_until,
        created_at=now.unix,
        since=now.boot,
        enable_seq=-1,
        pinned=False,
        restores=before.names[1],
        end=None,
        detail="",
        own_words="",
        ended_at=0.0,
    )


def ended(deployment: Deployment, end: End, detail: str, unix: float, own_words: str = "") -> Deployment:
    """Return a deployment as it is when it has ended.

    Args:
        own_words: words of the policy, or of the kernel about it.
    """
    return replace(
        deployment,
        phase=Phase.ENDED,
        end=end,
        detail=one_line(detail, LONGEST_DETAIL),
        own_words=one_line(own_words, LONGEST_DETAIL),
        pinned=False,
        ended_at=unix,
    )


def _back_from(running: Deployment) -> tuple[Restore, ...]:
    return (Restore(running.previous),) if running.previous else ()


def _is_over(running: Deployment, boot: float, config: Config) -> bool:
    """Whether the probation of its stage is over."""
    return boot - running.since >= config.probation_s[running.stage]


def _expiry(token: DeploymentToken, now: Moment) -> float:
    """When (boot clock) a token expires."""
    return now.boot + token.expires_at - now.unix
