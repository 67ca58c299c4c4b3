"""The roll-out by pulses: its windows, its rule, its bounds; and trials."""

from __future__ import annotations

import math
import random
import sqlite3

import pytest

from schedagent.core.deployment import End, Phase, Stage, Tree
from schedagent.core.errors import RecordError, Refused, TokenError
from schedagent.core.token import Scope
from schedagent.core.welch import DELAY, PRESSURE, SHARE, Better
from schedagent.schedagentd.breaker import Bounds
from schedagent.schedagentd.config import Config
from schedagent.schedagentd.decisions import REST_S
from schedagent.schedagentd.driver import GRACE_S
from schedagent.schedagentd.pulses import (
    EVERYBODY,
    MOST_TRIED,
    RULES,
    Going,
    Pair,
    Pulses,
    Window,
    judge_pulses,
    wash_out_s,
)
from tests.support.deploy_orders import CANARY, MEMBER, content_of, order_of
from tests.support.scripted_host import PROBATION, UID, Host

SHORT = (1.0, 5.0)
BOUNDS = Bounds()
NOISE = (0.97, 1.04, 1.0, 0.95, 1.02, 1.01, 0.98)


@pytest.fixture
def host(tmp_path):
    made = Host(tmp_path / "state", pulses_s=SHORT)
    yield made
    made.record.close()


class Kernel:
    """Notes when a policy was in charge, as the scripted kernel saw it."""

    def __init__(self, host):
        self.host, self.windows, self.since = host, [], None
        self._hook()

    def _hook(self):
        self.host.world.hooks |= {"load": self._begins, "detach": self._ends}

    def _begins(self):
        self.since = self.host.clock.now
        self._hook()

    def _ends(self):
        self.windows.append((self.since, self.host.clock.now))
        self._hook()

    @property
    def lengths(self):
        return [end - begin for begin, end in self.windows]


def window(delay=0.001, pressure=0.1, share=0.9, metric=math.nan, **more):
    return Window({DELAY: delay, PRESSURE: pressure, SHARE: share} | more, metric)


def pulses(pairs, lengths_s=(1.0,), length=0):
    return Pulses(lengths_s, policy_first=False, length=length, pairs=tuple(Pair(*pair) for pair in pairs))


def noisy(count, policy=1.0, default=1.0, **fixed):
    """So many pairs in which a metric wavers, better lower."""
    return [
        (window(metric=default * NOISE[turn % 7], **fixed), window(metric=policy * NOISE[(turn + 3) % 7], **fixed))
        for turn in range(count)
    ]


class TestRule:
    @pytest.mark.parametrize(
        ("lengths", "going"), [((1.0, 5.0), Going.LONGER), ((1.0,), Going.STAY)], ids=["longer", "the last one"]
    )
    def test_six_pairs_without_harm(self, lengths, going):
        harmless = [(window(), window())] * 6
        assert judge_pulses(pulses(harmless[:5], lengths), BOUNDS, None) is Going.ON
        assert judge_pulses(pulses(harmless, lengths), BOUNDS, None) is going

    @pytest.mark.parametrize(
        ("worse", "end"),
        [
            ({"delay": 0.02}, End.RUN_QUEUE_DELAY),
            ({"pressure": 0.6}, End.PRESSURE),
            ({"share": 0.3}, End.CPU_SHARE),
            ({DELAY + EVERYBODY: 0.02}, End.RUN_QUEUE_DELAY),
        ],
        ids=str,
    )
    def test_what_became_worse_ends_it_after_six(self, worse, end):
        pairs = [(window(**{DELAY + EVERYBODY: 0.001}), window(**{DELAY + EVERYBODY: 0.001} | worse))] * 6
        cause, detail = judge_pulses(pulses(pairs), BOUNDS, None)
        assert cause is end
        assert "under the default scheduler, in 6 pairs" in detail
        assert ("of everybody" in detail) == any(name.endswith(EVERYBODY) for name in worse)

    @pytest.mark.parametrize(
        "small", [{"delay": 0.0018}, {"pressure": 0.14}, {"share": 0.85}, {"delay": 0.0}, {"pressure": 0.0}], ids=str
    )
    def test_below_the_floors_nobody_feels_it(self, small):
        assert judge_pulses(pulses([(window(), window(**small))] * 6), BOUNDS, None) is Going.STAY
        assert judge_pulses(pulses([(window(**small), window(**small))] * 6), BOUNDS, None) is Going.STAY

    def test_what_stays_open_ends_it_after_the_last_look(self):
        open_pairs = [(window(), window(delay=(0.0, 0.02)[turn % 2])) for turn in range(RULES.maximum_pairs)]
        assert judge_pulses(pulses(open_pairs[:-1]), BOUNDS, None) is Going.ON
        end, detail = judge_pulses(pulses(open_pairs), BOUNDS, None)
        assert (end, DELAY in detail) == (End.NOT_SHOWN, True)

    def test_idle_pairs_do_not_count_and_have_an_end(self):
        idle = [(Window({}), Window({}))]
        assert judge_pulses(pulses(idle * (MOST_TRIED - 1)), BOUNDS, None) is Going.ON
        end, detail = judge_pulses(pulses(idle * MOST_TRIED), BOUNDS, None)
        assert (end, detail) == (End.NOT_SHOWN, "too little ran to compare: 0 pairs of pulses of 1 s of 40")

    @pytest.mark.parametrize(
        ("policy", "fixed", "going"),
        [
            (0.8, {}, Going.STAY),
            (1.25, {}, End.METRIC),
            (1.0, {}, End.NO_GAIN),
        ],
    )
    def test_with_a_metric_it_has_to_be_better_to_stay(self, policy, fixed, going):
        judged = judge_pulses(pulses(noisy(20, policy, **fixed)), BOUNDS, Better.LOWER)
        assert (judged if isinstance(judged, Going) else judged[0]) is going

    def test_a_gain_that_others_pay_for_is_none(self):
        pairs = [(default, Window({**policy.values, DELAY: 0.05}, policy.metric)) for default, policy in noisy(8, 0.5)]
        assert judge_pulses(pulses(pairs), BOUNDS, Better.LOWER)[0] is End.RUN_QUEUE_DELAY

    def test_before_the_last_length_the_metric_is_a_guard(self):
        lengths = (1.0, 5.0)
        assert judge_pulses(pulses(noisy(6), lengths), BOUNDS, Better.LOWER) is Going.LONGER
        assert judge_pulses(pulses(noisy(8, 2.0), lengths), BOUNDS, Better.LOWER)[0] is End.METRIC
        assert judge_pulses(pulses(noisy(8, 0.5), lengths), BOUNDS, Better.HIGHER)[0] is End.METRIC
        unseen = [(window(), window())] * 6
        assert judge_pulses(pulses(unseen, lengths), BOUNDS, Better.LOWER) is Going.LONGER, "too short for a report"

    def test_a_process_tree_has_no_pressure(self):
        tree = Window({DELAY: 0.001, SHARE: 0.9})
        assert judge_pulses(pulses([(tree, tree)] * 6), BOUNDS, None) is Going.STAY

    def test_the_order_of_a_pair_is_the_coin_s(self):
        first = Pulses((1.0,), policy_first=True)
        assert first.is_policy_next
        second = first.ended(window(delay=7.0), lambda: False)
        assert (second.is_policy_next, second.pairs) == (False, ())
        third = second.ended(window(delay=1.0), lambda: False)
        assert [pair.policy.values[DELAY] for pair in third.pairs] == [7.0]
        assert not third.is_policy_next

    def test_a_fifth_is_washed_out_but_no_more_than_seconds(self):
        assert [wash_out_s(length) for length in (1.0, 5.0, 30.0, 300.0)] == [0.2, 1.0, 5.0, 5.0]


class TestWindows:
    def test_from_the_first_pulse_to_a_lease(self, host):
        seen = Kernel(host)
        number = host.pulse().number
        assert (host.get(number).stage, host.get(number).phase, host.running) == (Stage.PULSE, Phase.RESTING, None)
        host.wait(11.5)
        assert seen.lengths == pytest.approx([1.0] * 5)
        assert host.running == number
        assert host.world.truth()["partial"] is False
        host.wait(62)
        assert host.get(number).stage is Stage.FULL
        assert (host.get(number).proven, host.get(number).phase, host.running) == (False, Phase.RUNNING, number)
        assert seen.lengths == pytest.approx([1.0] * 6 + [5.0] * 6)
        gaps = [begin - end for (_, end), (begin, _) in zip(seen.windows, seen.windows[1:], strict=False)]
        assert gaps == pytest.approx([1.0] * 5 + [5.0] * 6)
        kinds = "started accepted pulses longer_pulses loading running"
        assert [kind.replace(" ", "_") for kind in host.kinds] == kinds.split()
        host.wait(301, renewing=True)
        assert host.get(number).proven

    def test_two_pulses_in_a_row_have_the_default_between_them(self, host):
        seen = Kernel(host)
        orders = iter([False, True, True])
        host.rollout._coin = lambda: next(orders, True)
        host.pulse()
        host.wait(3.9)
        assert seen.lengths == pytest.approx([1.0, 1.0])
        assert host.world.enable_seq == 2

    @pytest.mark.parametrize("seed", range(4))
    def test_each_window_is_counted_for_whoever_was_in_charge(self, host, seed):
        tosses = random.Random(seed)
        host.rollout._coin = lambda: tosses.random() < 0.5
        host.pulse(cgroup=MEMBER)
        pairs, stages = [], set()
        for _tenth in range(1100):
            host.world.delay_s = 0.0015 if host.running else 0.001
            if host.driver.window is None:
                break
            host.wait(0.1)
            if host.driver.window:
                pairs += [pair for pair in host.driver.window.pulses.pairs if pair not in pairs]
                stages.add(host.driver.window.pulses.length)
        assert (host.get(1).stage, stages) == (Stage.FULL, {0, 1})
        assert len(pairs) >= 6
        assert all(pair.policy.values[DELAY] > pair.default.values[DELAY] + 0.0003 for pair in pairs)

    def test_no_window_is_longer_than_its_length_though_ticks_are_late(self, host):
        seen = Kernel(host)
        host.pulse()
        for _tick in range(60):
            host.clock.now += 0.3
            host.rollout.tick()
        assert len(seen.lengths) > 3
        assert max(seen.lengths) <= 1.0 + 0.3 + 1e-9

    def test_the_kernel_ends_this_process_if_it_does_not_end_the_pulse(self, host):
        host.pulse()
        host.wait(1.0)
        assert host.kernel.limits_s[-1] == 1.0 + GRACE_S
        host.wait(1.0)
        assert host.kernel.limits_s[-1] == 0
        host.wait(80)
        assert host.get(1).stage is Stage.FULL
        assert host.kernel.limits_s[-1] == 0, "a lease is renewed"

    def test_nothing_is_written_while_a_pulse_is_in_charge(self, host):
        number = host.pulse().number
        host.wait(1.5)
        assert host.running == number
        host.record._database.execute("PRAGMA query_only = ON")
        host.rollout.renew(number, 500.0)
        host.wait(0.1)
        host.record._database.execute("PRAGMA query_only = OFF")
        host.wait(1)
        assert (host.running, host.get(number).lease_s) == (None, 500.0), "it is stored when the window is over"

    def test_a_full_disk_ends_it(self, host):
        host.pulse()
        host.record._database.execute("PRAGMA query_only = ON")
        host.wait(3)
        assert (host.running, host.driver.waiting) == (None, None)
        host.record._database.execute("PRAGMA query_only = OFF")
        host.wait(1)
        assert host.get(1).end is End.NOT_LOADED

    def test_what_is_worse_restores_what_was_in_charge_before(self, host):
        first = host.proven("first")
        number = host.pulse("second").number
        assert (host.running, host.get(first).end, host.rollout.status()["restorable"]) == (None, End.REPLACED, [first])

        def slow():
            host.world.delay_s = 0.05 if host.running == number else 0.001

        for _ in range(150):
            slow()
            host.wait(0.1)
        ended = host.get(number)
        assert (ended.end, ended.end.is_trip, ended.detail[-20:]) == (End.RUN_QUEUE_DELAY, True, "in 6 pairs of pulses")
        assert host.driver.active.deployment.restores == first

    @pytest.mark.parametrize("fault", ["ejected", "lease", "rolled back", "another", "replaced"])
    @pytest.mark.parametrize("in_charge", [True, False])
    def test_it_ends_in_either_window(self, host, fault, in_charge):
        number = host.pulse(lease_s=600.0).number
        host.wait(1.5 if in_charge else 0.5)
        assert host.running == (number if in_charge else None)
        match fault:
            case "ejected" if in_charge:
                host.world.end_policy(1024)
            case "lease":
                host.clock.now += 600
            case "rolled back":
                host.rollout.rollback()
            case "another":
                host.world.take_over()
            case _:
                with pytest.raises(Refused, match="is at stage pulse"):
                    host.deploy("third")
                return
        host.wait(2)
        assert host.running is None or fault == "another"
        expected = {"lease": End.LEASE_LAPSED, "rolled back": End.ROLLED_BACK}
        in_pulse = {"ejected": End.EJECTED, "another": End.FOREIGN}
        otherwise = {"another": End.NOT_LOADED, "ejected": None}
        assert host.get(number).end is (expected | (in_pulse if in_charge else otherwise))[fault]

    @pytest.mark.parametrize(("kind", "end"), [(1024, End.EJECTED), (65, End.EXITED), (1026, End.STALL)])
    def test_an_end_of_its_own_at_the_very_end_of_a_pulse_counts(self, host, kind, end):
        number = host.pulse().number
        host.wait(1.5)
        host.world.hooks["before detach"] = lambda: host.world.end_policy(kind)
        host.wait(1)
        assert (host.get(number).end, host.running, host.driver.waiting) == (end, None, None)
        with pytest.raises(Refused, match="ended by the circuit breaker"):
            host.pulse()

    def test_who_starves_in_a_pulse_ends_it(self, host):
        number = host.pulse().number
        host.wait(0.5)
        host.world.starved = ['9 "x"']
        host.wait(0.5)
        assert host.running == number, "nobody blames it for the default scheduler's window"
        host.wait(1)
        assert (host.get(number).end, host.driver.waiting) == (End.STARVATION, None)

    @pytest.mark.parametrize("in_charge", [True, False])
    def test_death_leaves_the_default_and_blames_only_what_was_in_charge(self, host, in_charge):
        number = host.pulse().number
        host.wait(1.5 if in_charge else 0.5)
        host.kill()
        assert host.running is None
        host.start()
        assert host.get(number).end is (End.DIED_ON_PROBATION if in_charge else End.DIED)

    def test_the_scope_is_measured_and_everybody_too(self, host):
        host.pulse(cgroup=MEMBER)
        host.wait(3.5)
        [pair] = host.driver.window.pulses.pairs
        assert set(pair.policy.values) >= {DELAY, SHARE, PRESSURE, DELAY + EVERYBODY, PRESSURE + EVERYBODY}
        assert host.world.truth()["partial"] is False

    def test_a_process_that_ends_ends_it(self, host):
        number = host.pulse(pid=42, lease_s=3000.0).number
        assert host.get(number).tree == Tree(42, 7000)
        host.wait(20)
        host.world.processes = {}
        host.wait(20)
        assert host.get(number).end is End.GONE
        assert host.running is None

    def test_the_metric_of_whole_windows_counts(self, host):
        """Reports of a moment in the wash-out, and the first one after it, are of the time before, too."""
        host.rollout.config = Config(probation_s=PROBATION, baseline_samples=0, pulses_s=(20.0,))
        number = host.pulse(better=Better.LOWER).number
        for _ in range(300):
            if host.driver.waiting is None and host.driver.window is None:
                break
            host.wait(1)
            host.rollout.renew(number, 3000.0, metric=[0.5 if host.running else 1.0])
        staying = host.get(number)
        assert (staying.stage, host.running) == (Stage.FULL, number)

    def test_what_stays_is_watched_against_the_last_windows_of_the_default(self, host):
        host.rollout.config = Config(probation_s=PROBATION, baseline_samples=12, sample_s=1.0, pulses_s=(10.0,))
        host.driver._sample_s = 1.0
        number = host.pulse().number
        host.wait(122)
        assert host.get(number).stage is Stage.FULL
        assert host.get(number).baseline[DELAY].count > 30
        host.world.delay_s = 0.05
        host.wait(30)
        assert host.get(number).end is End.RUN_QUEUE_DELAY

    def test_the_token_has_to_be_for_the_whole_machine(self, host):
        with pytest.raises(TokenError, match="not for scope full"):
            host.pulse(scope=Scope.PARTIAL)


class TestCanary:
    @pytest.mark.parametrize("cgroup", [MEMBER, "/other"])
    def test_only_where_it_owns_its_cpus(self, host, cgroup):
        with pytest.raises(Refused, match=f"cgroup {cgroup} does not own its CPUs: tasks of the default") as refused:
            host.deploy(cgroup=cgroup)
        assert "stage pulse" in refused.value.hint

    def test_a_proven_one_goes_on_by_pulses(self, host):
        number = host.proven(lease_s=3000.0)
        assert host.world.truth()["moved"] == [CANARY]
        host.rollout.promote(number)
        assert (host.running, host.get(number).stage, host.get(number).phase) == (None, Stage.PULSE, Phase.RESTING)
        assert host.world.truth()["moved"] == []
        host.wait(75)
        assert (host.running, host.get(number).stage) == (number, Stage.FULL)
        assert host.world.truth()["partial"] is False

    def test_one_that_lost_its_cpus_is_not_restored(self, host):
        host.proven("first")
        host.world.owning = []
        number = host.pulse("second").number
        host.wait(1.5)
        host.world.end_policy(1024)
        host.wait(1)
        assert (host.get(number).end, host.running) == (End.EJECTED, None)
        assert host.kinds[-1] == "not restored"


class TestTrials:
    def test_it_is_in_charge_for_its_time(self, host):
        begun = host.trial(lease_s=30.0)
        assert (host.running, begun.stage, host.world.truth()["partial"]) == (begun.number, Stage.TRIAL, False)
        assert host.kernel.limits_s[-1] == 30.0 + GRACE_S
        host.wait(29.9)
        assert host.running == begun.number
        assert host.rollout.next_in_s == pytest.approx(0.1)
        host.wait(0.1)
        ended = host.get(begun.number)
        assert (host.running, ended.end, ended.end.is_trip) == (None, End.OVER, False)
        assert host.kernel.limits_s[-1] == 0
        assert host.kinds == ["started", "trial", "ended"]

    def test_its_client_ends_it(self, host):
        number = host.trial().number
        host.rollout.end_trial(number + 1)
        assert host.running == number
        host.rollout.end_trial(number)
        assert (host.running, host.get(number).detail) == (None, "its client is done")

    @pytest.mark.parametrize("busy", ["trial", "pulse", "canary"])
    def test_one_at_a_time(self, host, busy):
        number = {"trial": host.trial, "pulse": host.pulse, "canary": host.deploy}[busy]("first").number
        before = host.world.truth(), host.kinds
        with pytest.raises(Refused, match=f"deployment {number} .* is at stage {busy}: there is one at a time"):
            host.trial("second")
        assert (host.world.truth(), host.kinds) == before
        if busy == "trial":
            with pytest.raises(Refused, match="is at stage trial"):
                host.deploy("third")

    def test_the_default_is_in_charge_between_two(self, host):
        host.trial(lease_s=5.0)
        host.wait(5.5)
        with pytest.raises(Refused, match=r"a policy was in charge 0.5 s ago") as refused:
            host.trial()
        assert refused.value.hint == "try again 1 s after it"
        host.wait(REST_S)
        assert host.trial()

    def test_only_so_many_within_an_hour(self, tmp_path):
        host = Host(tmp_path / "state", trials_per_hour=3)
        for _ in range(3):
            host.trial(lease_s=1.0)
            host.wait(3)
        with pytest.raises(Refused, match="there were 3 trials within an hour") as refused:
            host.trial()
        assert refused.value.hint.startswith("the next one is allowed in 60 min")
        host.clock.now += 3600
        assert host.trial()

    def test_a_token_allows_many_trials_but_none_after_a_deployment(self, host):
        order = order_of(now=host.clock.unix())
        for _ in range(2):
            host.rollout.trial(UID, order, content_of(), 1.0)
            host.wait(3)
        host.rollout.deploy(UID, order, content_of(), Stage.CANARY, CANARY, 60.0)
        host.rollout.rollback()
        host.wait(3)
        with pytest.raises(TokenError, match="was used before"):
            host.rollout.trial(UID, order, content_of(), 1.0)

    def test_what_is_refused(self, host):
        with pytest.raises(Refused, match="a trial of 601 s"):
            host.trial(lease_s=601.0)
        with pytest.raises(TokenError, match="not for scope full"):
            host.trial(scope=Scope.PARTIAL)
        host.world.refused = ["good"]
        with pytest.raises(Refused, match="could not be loaded: the kernel refused good"):
            host.trial()
        assert host.running is None

    def test_what_misbehaves_is_ended_at_once_and_not_tried_again(self, host):
        number = host.trial().number
        host.world.end_policy(1024)
        host.wait(1)
        assert (host.get(number).end, host.running) == (End.EJECTED, None)
        host.wait(3)
        with pytest.raises(Refused, match="ended by the circuit breaker before"):
            host.trial()
        assert host.trial(again=True)

    def test_it_ends_with_the_daemon_and_with_its_token(self, host):
        number = host.trial().number
        host.kill()
        assert host.running is None
        host.start()
        assert host.get(number).end is End.DIED_ON_PROBATION
        number = host.trial("other", lease_s=30.0, life_s=10).number
        host.wait(11)
        assert host.running is None

    def test_hundreds_of_them_drive_no_deployment_out(self, host, monkeypatch):
        monkeypatch.setattr("schedagent.schedagentd.record.KEPT_TRIALS", 3)
        monkeypatch.setattr("schedagent.schedagentd.record.KEPT_DEPLOYMENTS", 2)
        deployed = host.deploy("first").number
        host.rollout.rollback()
        for _ in range(6):
            host.wait(2)
            host.trial(lease_s=1.0)
        host.wait(2)
        stages = [(each.number, each.stage) for each in host.record.history(100)]
        assert stages == [*((number, Stage.TRIAL) for number in (7, 6, 5)), (deployed, Stage.CANARY)]
        assert host.record.totals()["events"]["trial"] == 6

    def test_it_is_not_begun_if_that_cannot_be_stored(self, host):
        host.record._database.execute("PRAGMA query_only = ON")
        with pytest.raises((RecordError, sqlite3.Error)):
            host.trial()
        assert (host.running, host.world.enable_seq) == (None, 0)
