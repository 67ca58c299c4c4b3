"""What follows from what is so: each decision from values alone, without a kernel, a record or a clock."""

from __future__ import annotations

import ast
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kernel_bpf.load.exit_info import ExitInfo
from kernel_bpf.load.sched_ext import KernelState
from kernel_bpf.observe.tasks import TaskSample
from schedagent.core.deployment import Deployment, End, Order, Phase, Stage, Tree
from schedagent.core.errors import Refused
from schedagent.core.welch import DELAY, Better, Spread
from schedagent.schedagentd import decisions
from schedagent.schedagentd.breaker import Bounds, KernelReading
from schedagent.schedagentd.config import NOT_ON_EXIT, Config
from schedagent.schedagentd.decisions import Drop, EndWith, Leave, Load, Moment, Pin, Prove, Restore

NOW = Moment("boot-1", 1000.0, 5_000_000.0)
CONFIG = Config(probation_s={Stage.CANARY: 60.0, Stage.FULL: 300.0}, longest_lease_s=3600.0)
STAYING = replace(CONFIG, rollback=NOT_ON_EXIT)
TRIP_BOUNDS = Bounds()
IDLE = TaskSample(1.0, 0.0, 0.0, 0)
GOOD, BAD = Spread(20, 0.001, 0.0001), Spread(20, 0.1, 0.001)


def order(digest="ab" * 32):
    return Order("good", digest, (), (), (), "ef" * 32, "token")


def deployment(**changes):
    """One that runs since 100 s, whose lease and token last."""
    plain = Deployment(
        number=7,
        order=order(),
        stage=Stage.CANARY,
        cgroup="/a",
        phase=Phase.RUNNING,
        uid=1000,
        boot_id="boot-1",
        lease_s=600.0,
        lease_until=1500.0,
        token_until=9000.0,
        created_at=1.0,
        since=900.0,
    )
    return replace(plain, **changes)


def token(lasts_s):
    """All that a decision reads of one: when it expires."""
    return SimpleNamespace(expires_at=NOW.unix + lasts_s)


def reading(boot=1000.0, exit_info=None, enabled=True, enable_seq=1, available=True):
    state = KernelState(available, "enabled" if enabled else "disabled", "good", False, 0, enable_seq, 0, {})
    return KernelReading(boot, boot, state, enabled, exit_info)


def test_it_imports_nothing_that_acts():
    """Nor does it call the clock: `now` comes from outside."""
    tree = ast.parse(Path(decisions.__file__).read_text(encoding="utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    acting = ("time", "os", "logging", "schedagent.schedagentd.kernel", "schedagent.schedagentd.record")
    assert not names & {*acting, "schedagent.schedagentd.driver", "schedagent.schedagentd.admission"}


def test_a_decision_is_a_value():
    assert EndWith(End.STALL, "x") == EndWith(End.STALL, "x")
    with pytest.raises(FrozenInstanceError):
        EndWith(End.STALL, "x").end = End.GONE


class TestAccept:
    def accept(self, lease_s=600.0, lasts_s=8000.0, **changes):
        chosen = {"stage": Stage.CANARY, "cgroup": "/a", "tree": None, "better": None} | changes
        return decisions.accept(
            order(), b"object", token(lasts_s), uid=1000, lease_s=lease_s, now=NOW, config=CONFIG, **chosen
        )

    def test_it_waits_and_is_not_numbered(self):
        accepted = self.accept(tree=Tree(42, 7), cgroup="", better=Better.LOWER).deployment
        assert (accepted.number, accepted.phase, accepted.where) == (0, Phase.WAITING, Tree(42, 7))
        assert (accepted.created_at, accepted.since, accepted.boot_id) == (NOW.unix, NOW.boot, "boot-1")
        assert not accepted.proven

    @pytest.mark.parametrize(("lease_s", "lasts_s", "until"), [(600, 8000, 1600), (9000, 8000, 4600), (600, 100, 1100)])
    def test_no_lease_is_longer_than_configured_or_than_the_token(self, lease_s, lasts_s, until):
        accepted = self.accept(lease_s, lasts_s).deployment
        assert (accepted.lease_until, accepted.token_until) == (until, 1000 + lasts_s)


class TestRenew:
    def renew(self, running, newer=None, metric=(), lease_s=600.0):
        return decisions.renew(running, running.order, newer, metric, lease_s, NOW, CONFIG)

    def test_from_now_on_and_not_beyond_the_token(self):
        assert self.renew(deployment()).renewed.lease_until == 1600
        assert self.renew(deployment(token_until=1200.0)).renewed.lease_until == 1200
        assert self.renew(deployment(), lease_s=9e9).renewed.lease_until == 1000 + CONFIG.longest_lease_s

    def test_a_newer_token_moves_the_end(self):
        renew = self.renew(deployment(token_until=1200.0), token(5000))
        assert (renew.renewed.token_until, renew.renewed.lease_until) == (6000, 1600)

    def test_a_metric_has_a_direction(self):
        with pytest.raises(Refused, match="has no metric"):
            self.renew(deployment(), metric=[1.0])
        assert self.renew(deployment(better=Better.LOWER), metric=[1.0]).metric == (1.0,)


class TestPromote:
    def promote(self, running):
        return decisions.promote(running, lambda: True, NOW, CONFIG)

    def test_a_proven_canary_rests_before_its_first_pulse(self):
        rest, pulse = self.promote(deployment(proven=True, pinned=True, previous=3, baseline={DELAY: GOOD}))
        assert (rest.resting.stage, rest.resting.phase, rest.resting.pulse_s) == (Stage.PULSE, Phase.RESTING, 1.0)
        assert (rest.resting.proven, rest.resting.pinned, rest.resting.previous) == (False, False, 3)
        assert (rest.pulses.lengths_s, rest.pulses.policy_first, rest.kind) == (CONFIG.pulses_s, True, "pulses")
        assert (pulse.pulses, pulse.loading.phase) == (rest.pulses, Phase.LOADING)
        [alone] = decisions.promote(deployment(proven=True), lambda: False, NOW, CONFIG)
        assert alone.resting.phase is Phase.RESTING

    @pytest.mark.parametrize(
        ("running", "why"),
        [
            (deployment(proven=True, stage=Stage.FULL), "is at stage full"),
            (deployment(stage=Stage.PULSE), "is at stage pulse"),
            (deployment(proven=True, phase=Phase.WAITING), "is at stage canary"),
            (deployment(since=970.0), "on probation for 30 s more"),
            (deployment(), "on probation for 0 s more"),
        ],
    )
    def test_what_is_refused(self, running, why):
        with pytest.raises(Refused, match=why):
            self.promote(running)


class TestRollBack:
    RUNNING, WAITING = deployment(previous=3), deployment(number=8, phase=Phase.WAITING)
    END, DROP = EndWith(End.ROLLED_BACK, "asked for"), Drop(End.ROLLED_BACK, "asked for")

    @pytest.mark.parametrize(
        ("running", "waiting", "number", "to_default", "expected"),
        [
            (RUNNING, None, 0, False, (END, Restore(3))),
            (RUNNING, None, 0, True, (END,)),
            (replace(RUNNING, previous=0), None, 7, False, (END,)),
            (RUNNING, WAITING, 0, False, (DROP, END, Restore(3))),
            (RUNNING, WAITING, 8, False, (DROP,)),
            (RUNNING, WAITING, 7, True, (END,)),
            (None, WAITING, 0, False, (DROP,)),
            (None, replace(WAITING, phase=Phase.RESTING, previous=3), 0, False, (DROP, Restore(3))),
            (None, replace(WAITING, phase=Phase.RESTING, previous=3), 0, True, (DROP,)),
        ],
    )
    def test_what_is_ended(self, running, waiting, number, to_default, expected):
        assert decisions.roll_back(running, waiting, number, to_default) == expected

    def test_what_is_refused(self):
        with pytest.raises(Refused, match="nothing is deployed"):
            decisions.roll_back(None, None, 0, False)
        with pytest.raises(Refused, match="deployment 9 is neither running nor waiting") as refused:
            decisions.roll_back(self.RUNNING, self.WAITING, 9, False)
        assert refused.value.hint == "there are: 7, 8"


class TestAtOnce:
    def at_once(self, running, now):
        return decisions.at_once(running, reading(), reading(999.0), now, TRIP_BOUNDS)

    def test_all_is_well(self):
        assert self.at_once(deployment(), reading()) is None

    def test_the_kernel_ended_it(self):
        stall = ExitInfo(1026, "stall", 0, "", "")
        assert self.at_once(deployment(lease_until=0.0), reading(exit_info=stall)).end is End.STALL, "before its lease"

    @pytest.mark.parametrize(
        ("lease_until", "token_until", "expected"),
        [
            (1001.0, 1001.0, None),
            (1000.0, 9000.0, EndWith(End.LEASE_LAPSED, "nobody renewed it")),
            (1000.0, 1000.0, EndWith(End.LEASE_LAPSED, "its token expired")),
        ],
    )
    def test_its_lease(self, lease_until, token_until, expected):
        running = deployment(lease_until=lease_until, token_until=token_until)
        assert self.at_once(running, reading(1000.0)) == expected


class TestCompare:
    def compare(self, sample=IDLE, now=GOOD, worse=0):
        return decisions.compare(deployment(baseline={DELAY: GOOD}), sample, {DELAY: now}, worse, TRIP_BOUNDS)

    def test_three_times_in_a_row(self):
        worse = 0
        for expected in (1, 2):
            compared = self.compare(now=BAD, worse=worse)
            worse = compared.worse
            assert (worse, compared.decision) == (expected, None)
        assert self.compare(now=BAD, worse=worse).decision.end is End.RUN_QUEUE_DELAY

    def test_one_good_sample_begins_the_count_again(self):
        assert self.compare(worse=2) == decisions.Comparison(0, None)

    def test_starvation_ends_it_at_once(self):
        compared = self.compare(replace(IDLE, starved=("1 (a)", "2 (b)")))
        assert compared.decision == EndWith(End.STARVATION, "runnable for 3 s without running: 1 (a), 2 (b)")

    def test_nothing_is_worse_than_no_baseline(self):
        compared = decisions.compare(deployment(), IDLE, {DELAY: BAD}, 2, TRIP_BOUNDS)
        assert compared == decisions.Comparison(0, None)


class TestGoingBack:
    KNOWN = deployment(number=3, order=order("cd" * 32))

    @pytest.mark.parametrize("end", End, ids=lambda end: end.name)
    def test_only_if_the_policy_is_to_blame(self, end):
        expected = (Restore(3),) if end.blames_policy else ()
        assert decisions.after_trip(deployment(previous=3), end, self.KNOWN) == expected

    def test_never_to_the_same_object_or_to_what_is_forgotten(self):
        assert decisions.after_trip(deployment(previous=3), End.STALL, replace(self.KNOWN, order=order())) == ()
        assert decisions.after_trip(deployment(previous=3), End.STALL, None) == ()

    @pytest.mark.parametrize(
        ("end", "same", "dropped"),
        [
            (End.EJECTED, True, True),
            (End.EJECTED, False, False),
            (End.PRESSURE, True, False),
            (End.FOREIGN, True, False),
        ],
    )
    def test_what_waits_goes_too_if_it_is_the_object_that_was_found_bad(self, end, same, dropped):
        waiting = deployment(number=8, phase=Phase.WAITING, order=order() if same else order("ef" * 32))
        after = decisions.after_trip(deployment(), end, None, waiting)
        why = "the circuit breaker ended the same object: deployment 7"
        assert after == ((Drop(End.NOT_LOADED, why),) if dropped else ())

    def test_after_a_canary_whose_process_ended(self):
        canary = deployment(tree=Tree(42, 7), cgroup="", previous=3)
        assert decisions.gone(canary) == (EndWith(End.GONE, "process 42"), Restore(3))
        assert decisions.gone(replace(canary, previous=0)) == (EndWith(End.GONE, "process 42"),)

    def test_what_is_restored_begins_again_and_keeps_its_proof(self):
        before = deployment(phase=Phase.ENDED, proven=True, pinned=True, end=End.REPLACED, detail="x", ended_at=5.0)
        again = decisions.restored(before, token(300), NOW)
        assert (again.phase, again.proven, again.pinned, again.end, again.detail) == (
            Phase.LOADING,
            True,
            False,
            None,
            "",
        )
        assert (again.lease_until, again.token_until, again.since) == (1300, 1300, 1000)

    def test_what_is_restored_is_still_known_by_its_first_number(self):
        again = replace(decisions.restored(deployment(number=3), token(300), NOW), number=9)
        assert (decisions.find(3, again, None), decisions.find(9, again, None)) == (again, again)
        assert decisions.restored(again, token(300), NOW).restores == 3
        assert decisions.roll_back(again, None, 3, False)[0] == EndWith(End.ROLLED_BACK, "asked for")


class TestProbation:
    def test_it_is_proven_when_its_time_is_over(self):
        assert decisions.prove(deployment(), 959.0, CONFIG) is None
        assert decisions.prove(deployment(), 960.0, CONFIG) == Prove(deployment(proven=True))
        assert decisions.prove(deployment(proven=True), 960.0, CONFIG) is None

    def test_each_stage_has_its_own_but_what_has_a_time(self):
        assert decisions.prove(deployment(stage=Stage.FULL), 960.0, CONFIG) is None
        assert decisions.prove(deployment(stage=Stage.PULSE), 9e9, CONFIG) is None
        assert decisions.prove(deployment(stage=Stage.TRIAL), 9e9, CONFIG) is None

    @pytest.mark.parametrize(
        ("running", "pinnable", "config", "pins"),
        [
            (deployment(proven=True), True, STAYING, True),
            (deployment(proven=True), True, CONFIG, False),
            (deployment(proven=True), False, STAYING, False),
            (deployment(proven=True, pinned=True), True, STAYING, False),
            (deployment(), True, STAYING, False),
            (deployment(proven=True, since=999.0), True, STAYING, False),
        ],
        ids=["wanted", "not wanted", "failed before", "pinned", "not proven", "restored a moment ago"],
    )
    def test_only_what_is_proven_is_pinned_if_that_is_wanted(self, running, pinnable, config, pins):
        expected = Pin(replace(running, pinned=True)) if pins else None
        assert decisions.pin(running, pinnable, 1000.0, config) == expected


class TestLoading:
    WAITING = deployment(number=8, phase=Phase.WAITING)

    @pytest.mark.parametrize(
        ("samples", "metric", "enough"),
        [(12, None, False), (13, None, True), (13, (), False), (13, (1.0,) * 11, False), (13, (1.0,) * 12, True)],
    )
    def test_enough_is_measured(self, samples, metric, enough):
        assert decisions.is_enough(samples, metric, CONFIG) is enough

    def test_without_a_baseline_one_sample_is(self):
        assert decisions.is_enough(1, (), replace(CONFIG, baseline_samples=0))

    @pytest.mark.parametrize(
        ("running", "previous"),
        [(None, 0), (deployment(proven=True, previous=3), 7), (deployment(previous=3), 3), (deployment(), 0)],
        ids=["nothing ran", "the proven one", "the one before an unproven one", "an unproven one is none"],
    )
    def test_the_last_known_good(self, running, previous):
        loading = decisions.load(self.WAITING, running, {DELAY: GOOD}, 1000.0, CONFIG).loading
        assert (loading.previous, loading.phase, loading.since) == (previous, Phase.LOADING, 1000)
        assert loading.baseline == {DELAY: GOOD}

    def test_no_baseline_where_none_is_wanted(self):
        config = replace(CONFIG, baseline_samples=0)
        assert decisions.load(self.WAITING, None, {DELAY: GOOD}, 1000.0, config) == Load(
            replace(self.WAITING, phase=Phase.LOADING, since=1000.0)
        )

    def test_what_waits_has_a_lease(self):
        assert decisions.wait_on(self.WAITING, 1499.0) is None
        assert decisions.wait_on(self.WAITING, 1500.0) == Drop(End.NOT_LOADED, "its lease lapsed first")
        resting = replace(self.WAITING, stage=Stage.PULSE, phase=Phase.RESTING)
        assert decisions.wait_on(resting, 1500.0) == Drop(End.LEASE_LAPSED, "between two pulses")


class TestThisProcess:
    WAITING = deployment(number=8, phase=Phase.WAITING)

    @pytest.mark.parametrize(
        ("running", "waiting", "config", "expected"),
        [
            (None, None, CONFIG, ()),
            (deployment(), WAITING, CONFIG, (Drop(End.STOPPED, ""), EndWith(End.STOPPED, ""))),
            (deployment(pinned=True), None, CONFIG, (EndWith(End.STOPPED, ""),)),
            (deployment(pinned=True), None, STAYING, (Leave(),)),
            (deployment(), None, STAYING, (EndWith(End.STOPPED, ""),)),
        ],
    )
    def test_what_survives_it(self, running, waiting, config, expected):
        assert decisions.stop(running, waiting, config) == expected

    @pytest.mark.parametrize(
        ("changes", "adopts"),
        [
            ({}, True),
            ({"pinned": False}, False),
            ({"phase": Phase.ENDING}, False),
            ({"boot_id": "boot-0"}, False),
            ({"lease_until": 1000.0}, False),
        ],
    )
    def test_what_is_taken_over(self, changes, adopts):
        assert decisions.may_adopt(deployment(**{"pinned": True} | changes), NOW) is adopts

    @pytest.mark.parametrize(
        ("left", "expected"),
        [
            (deployment(), (End.DIED_ON_PROBATION, "in phase running")),
            (deployment(phase=Phase.LOADING), (End.DIED_ON_PROBATION, "in phase loading")),
            (deployment(phase=Phase.WAITING), (End.DIED, "in phase waiting")),
            (deployment(phase=Phase.RESTING), (End.DIED, "in phase resting")),
            (deployment(proven=True), (End.DIED, "in phase running")),
            (deployment(boot_id="boot-0"), (End.DIED_ON_PROBATION, "the machine was restarted")),
            (deployment(boot_id="boot-0", proven=True), (End.DIED, "the machine was restarted")),
            (deployment(proven=True, pinned=True, lease_until=1000.0), (End.LEASE_LAPSED, "while nobody watched")),
            (deployment(lease_until=1000.0), (End.DIED_ON_PROBATION, "in phase running")),
            (deployment(phase=Phase.ENDING, end=End.STALL, detail="5 s"), (End.STALL, "5 s")),
        ],
    )
    def test_how_what_was_left_unfinished_ended(self, left, expected):
        assert decisions.account_for(left, NOW) == expected

    def test_what_ended_goes_nowhere(self):
        left = deployment(pinned=True)
        over = decisions.ended(left, End.STALL, "5 s", 9.0)
        assert (over.phase, over.end, over.detail, over.ended_at) == (Phase.ENDED, End.STALL, "5 s", 9)
        assert not over.pinned
