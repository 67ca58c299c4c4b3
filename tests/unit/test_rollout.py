"""The roll-out over a scripted kernel: stages, leases, refusals, the circuit breaker and what is left when it ends."""

from __future__ import annotations

import sqlite3
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from deploying import CANARY, KEY, WIDER, content_of, order_of
from hosting import PROBATION, UID, Host
from scripted_kernel import ScriptedKernel

from schedagent.core.errors import KernelRejected, RecordError, Refused, SetupError, TokenError
from schedagent.core.token import Scope, key_id
from schedagent.schedagentd.breaker import Bounds
from schedagent.schedagentd.config import Config
from schedagent.schedagentd.deployment import Better, End, Phase, Stage, Tree
from schedagent.schedagentd.record import FILE, Record

OTHER = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
OTHER_PUBLIC = OTHER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def host(tmp_path):
    made = Host(tmp_path / "state")
    yield made
    made.record.close()


@pytest.fixture
def staying(tmp_path):
    """A host whose proven policies survive the daemon."""
    made = Host(tmp_path / "state", rollback="not_on_exit")
    yield made
    made.record.close()


class TestStages:
    def test_from_canary_to_full(self, host):
        number = host.deploy().number
        assert host.world.truth() | {"pin": None} == {
            "enabled": True,
            "pin": None,
            "number": number,
            "partial": True,
            "moved": [CANARY],
        }
        host.wait(61)
        host.rollout.promote(number, Stage.WIDER, WIDER)
        assert (host.get(number).stage, host.get(number).proven) == (Stage.WIDER, False)
        assert host.world.truth()["moved"] == sorted([CANARY, WIDER])
        host.wait(121)
        host.rollout.promote(number, Stage.FULL, "")
        truth = host.world.truth()
        assert (truth["number"], truth["partial"], truth["moved"]) == (number, False, [])
        first, then = "started accepted loading running proven", "promoting promoted"
        assert " ".join(host.kinds) == f"{first} {then} proven {then} running"

    def test_newcomers_of_the_cgroup_are_moved_in(self, host):
        host.deploy()
        host.world.moved = []
        host.wait(6)
        assert host.world.moved

    def test_each_stage_is_a_probation(self, host):
        number = host.deploy().number
        host.wait(30)
        with pytest.raises(Refused, match="on probation for 30 s more"):
            host.rollout.promote(number, Stage.FULL, "")
        assert host.get(number).stage is Stage.CANARY

    @pytest.mark.parametrize(
        ("stage", "cgroup", "why"),
        [
            (Stage.FULL, "", "begins with stage canary"),
            (Stage.FULL, CANARY, "for the whole machine"),
            (Stage.WIDER, WIDER, "begins with stage canary"),
            (Stage.CANARY, "", "needs a cgroup"),
            (Stage.CANARY, "/nothing", "there is no cgroup"),
        ],
    )
    def test_first_stages_that_are_refused(self, host, stage, cgroup, why):
        with pytest.raises(Refused, match=why):
            host.deploy(stage=stage, cgroup=cgroup)
        assert host.running is None

    def test_promotions_that_are_refused(self, host):
        number = host.proven(scope=Scope.PARTIAL, within=WIDER)
        for stage, cgroup, why in (
            (Stage.CANARY, CANARY, "is at stage canary already"),
            (Stage.WIDER, "/other", "does not hold"),
            (Stage.FULL, "/other", "for the whole machine"),
        ):
            with pytest.raises(Refused, match=why):
                host.rollout.promote(number, stage, cgroup)
        with pytest.raises(TokenError, match="not for scope full"):
            host.rollout.promote(number, Stage.FULL, "")
        with pytest.raises(Refused, match="neither running nor waiting"):
            host.rollout.promote(number + 1, Stage.FULL, "")
        assert host.running == number

    def test_a_second_one_replaces_the_first(self, host):
        first, second = host.proven("first"), host.deploy("second").number
        assert host.running == second
        assert (host.get(first).end, host.get(second).previous) == (End.REPLACED, first)

    def test_full_at_once_if_that_is_allowed(self, tmp_path):
        host = Host(tmp_path / "state", direct_full=True)
        number = host.deploy(stage=Stage.FULL, cgroup="").number
        assert host.world.truth()["partial"] is False
        assert host.running == number

    def test_a_baseline_is_measured_first(self, tmp_path):
        host = Host(tmp_path / "state", sample_s=5.0)
        host.rollout.config = Config(probation_s=PROBATION, baseline_samples=12)
        number = host.deploy().number
        assert (host.running, host.get(number).phase) == (None, Phase.WAITING)
        with pytest.raises(Refused, match="waits to be loaded"):
            host.deploy("second")
        host.wait(59)
        assert host.running is None
        host.wait(2)
        assert host.running == number
        baseline = host.get(number).baseline
        assert (baseline["pressure"].count, round(baseline["pressure"].mean, 3)) == (12, 0.1)
        assert round(baseline["run_queue_delay_s"].mean, 4) == 0.001


class TestTrees:
    def test_a_canary_of_a_process_tree(self, host):
        number = host.deploy(cgroup="", pid=42).number
        assert host.world.truth()["moved"] == ["process 42"]
        assert (host.get(number).tree, host.get(number).summary(0)["pid"]) == (Tree(42, 7000), 42)
        host.wait(61)
        for cgroup, why in (("/other", "does not hold /build/canary"), ("", "needs a cgroup")):
            with pytest.raises(Refused, match=why):
                host.rollout.promote(number, Stage.WIDER, cgroup)
        host.rollout.promote(number, Stage.WIDER, WIDER)
        assert (host.get(number).tree, host.get(number).where) == (None, WIDER)
        assert host.world.truth()["moved"] == [WIDER, "process 42"]

    @pytest.mark.parametrize(
        ("asked", "why"),
        [
            ({"pid": 43}, "there is no process 43"),
            ({"pid": 1}, "every process of its kind"),
            ({"pid": 2}, "every process of its kind"),
            ({"pid": 42, "cgroup": CANARY}, "without a cgroup"),
            ({"pid": 42, "stage": Stage.WIDER}, "for stage canary"),
            ({"pid": 42, "stage": Stage.FULL}, "for stage canary"),
        ],
    )
    def test_what_is_refused(self, host, asked, why):
        with pytest.raises(Refused, match=why):
            host.deploy(**{"cgroup": ""} | asked)
        assert host.running is None

    @pytest.mark.parametrize(("within", "scope"), [("", Scope.PARTIAL), ("", Scope.FULL), (CANARY, Scope.PARTIAL)])
    def test_only_a_token_for_any_tasks_allows_one(self, host, within, scope):
        """A process may leave the cgroup that a token names, though it is in it now."""
        if within:
            with pytest.raises(TokenError, match="not for scope partial"):
                host.deploy(cgroup="", pid=42, scope=scope, within=within)
            assert host.running is None
        else:
            host.deploy(cgroup="", pid=42, scope=scope)
            assert host.running

    @pytest.mark.parametrize("after", [{}, {"42": [7001, CANARY]}], ids=["ended", "its id is another's now"])
    def test_it_ends_with_its_process(self, host, after):
        first = host.proven("first")
        number = host.deploy(cgroup="", pid=42).number
        host.world.processes = after
        with pytest.raises(Refused, match="on probation"):
            host.rollout.promote(number, Stage.WIDER, WIDER)
        host.wait(6)
        assert (host.get(number).end, host.get(number).end.is_trip) == (End.GONE, False)
        assert host.rollout.active.deployment.order.policy == "first"
        assert host.rollout.active.deployment.number != first

    def test_it_is_not_loaded_for_a_process_that_ended_meanwhile(self, host):
        host.rollout.config = Config(probation_s=PROBATION, baseline_samples=12)
        number = host.deploy(cgroup="", pid=42).number
        host.world.processes = {"42": [7001, CANARY]}
        host.wait(61)
        assert (host.running, host.get(number).end) == (None, End.NOT_LOADED)


class TestMetric:
    @pytest.fixture
    def measured(self, host):
        """A canary with a baseline of 100 of a metric that is better higher."""
        host.rollout.config = Config(probation_s=PROBATION, baseline_samples=12)
        number = host.deploy(lease_s=3000.0, better=Better.HIGHER).number
        self.report(host, number, [100.0] * 4, 61)
        assert host.running is None, "twelve of its own samples, but too few of the metric"
        self.report(host, number, [100.0] * 12, 6)
        assert host.running == number
        return host

    def report(self, host, number, values, seconds=5.0):
        host.rollout.renew(number, 3000.0, metric=values)
        host.wait(seconds)

    @pytest.mark.parametrize(("value", "end"), [(100.0, None), (93.0, None), (80.0, End.METRIC), (500.0, None)])
    def test_worse_than_before(self, measured, value, end):
        number = measured.running
        for _turn in range(20):
            if measured.running:
                self.report(measured, number, [value])
        assert measured.get(number).end is end
        if end:
            assert measured.get(number).detail == "80 on average, 100 before it"
        else:
            assert measured.rollout.status()["measured"]["metric"]["count"] >= 12

    def test_what_was_measured_before_does_not_count(self, measured):
        """The first report of a stage tells of the time before it, too."""
        number = measured.running
        self.report(measured, number, [1.0] * 60, 30)
        assert measured.running == number
        assert "metric" not in measured.rollout.status()["measured"]

    def test_each_stage_is_compared_with_the_time_before_the_first(self, measured):
        number = measured.running
        measured.wait(61)
        measured.rollout.promote(number, Stage.WIDER, WIDER)
        self.report(measured, number, [95.0] * 10, 61)
        assert (measured.get(number).stage, measured.get(number).baseline["metric"].mean) == (Stage.WIDER, 100.0)

    def test_without_one_nothing_is_taken(self, host):
        number = host.deploy().number
        with pytest.raises(Refused, match="has no metric"):
            host.rollout.renew(number, 600.0, metric=[1.0])

    def test_it_loads_nothing_and_promotes_nothing(self, measured):
        """Whatever it says."""
        number = measured.running
        before = measured.world.enable_seq
        self.report(measured, number, [1e18] * 60, 300)
        assert (measured.world.enable_seq, measured.get(number).stage) == (before, Stage.CANARY)


class TestLeases:
    def test_one_that_is_not_renewed_reverts(self, host):
        number = host.deploy(lease_s=30.0).number
        host.wait(29)
        assert host.running == number
        host.wait(1)
        assert (host.running, host.get(number).end) == (None, End.LEASE_LAPSED)
        assert host.world.moved == []

    def test_renewing_counts_from_now(self, host):
        number = host.deploy(lease_s=30.0).number
        host.wait(20)
        host.rollout.renew(number, 30.0)
        host.wait(29)
        assert host.running == number
        host.wait(1)
        assert host.running is None

    def test_no_lease_outlives_the_token(self, host):
        number = host.deploy(life_s=100, lease_s=600.0).number
        host.wait(99)
        host.rollout.renew(number, 600.0)
        assert host.running == number
        host.wait(2)
        assert (host.running, host.get(number).detail) == (None, "its token expired")

    def test_a_newer_token_prolongs_it(self, host):
        number = host.deploy(life_s=100).number
        newer = order_of(now=host.clock.unix(), life_s=1000)
        host.rollout.renew(number, 600.0, newer.token, newer.report_digest)
        with pytest.raises(TokenError, match="was used before"):
            host.rollout.renew(number, 600.0, newer.token, newer.report_digest)
        host.wait(101)
        assert host.running == number

    def test_a_newer_token_of_another_policy_does_not(self, host):
        number = host.deploy().number
        other = order_of("other", now=host.clock.unix())
        with pytest.raises(TokenError, match="artifact_digest"):
            host.rollout.renew(number, 600.0, other.token, other.report_digest)

    def test_the_time_of_day_may_jump(self, host):
        number = host.deploy(lease_s=300.0).number
        for jump in (-5e6, 1e7):
            host.clock.day += jump
            host.wait(100)
            assert host.running == number
        host.wait(100)
        assert host.running is None

    def test_what_waits_has_a_lease_too(self, host):
        host.rollout.config = Config(probation_s=PROBATION, baseline_samples=12)
        number = host.deploy(lease_s=20.0).number
        host.wait(21)
        assert (host.rollout.pending, host.get(number).end) == (None, End.NOT_LOADED)


class TestRefusals:
    def test_a_token_is_good_once(self, host):
        order = order_of()
        host.rollout.deploy(UID, order, content_of(), Stage.CANARY, CANARY, 60.0)
        host.rollout.rollback()
        with pytest.raises(TokenError, match="was used before"):
            host.rollout.deploy(UID, order, content_of(), Stage.CANARY, CANARY, 60.0)
        host.kill()
        host.start()
        with pytest.raises(TokenError, match="was used before"):
            host.rollout.deploy(UID, order, content_of(), Stage.CANARY, CANARY, 60.0)
        assert host.running is None

    @pytest.mark.parametrize(
        ("order", "why"),
        [
            ({"life_s": 10, "begin": -20.0}, "expired"),
            ({"begin": 3600.0}, "in the future"),
            ({"kernel_release": "6.1.0"}, "kernel_release"),
            ({"btf_build_id": "ab" * 20}, "btf_build_id"),
            ({"artifact_digest": "ab" * 32}, "artifact_digest"),
            ({"tunables": (("slice_us", 1),)}, "tunables"),
            ({"inputs_digest": "ab" * 32}, "inputs_digest"),
            ({"scope": Scope.PARTIAL, "within": "/other"}, "not for scope partial"),
            ({"key": ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))}, "signature"),
        ],
    )
    def test_tokens_for_something_else(self, host, order, why):
        with pytest.raises(TokenError, match=why):
            host.deploy(**order)
        assert (host.running, host.record.history(1), host.kinds) == (None, (), ["started"])

    def test_a_key_that_is_not_trusted_any_more_gets_no_further_lease(self, host):
        number = host.deploy(lease_s=30.0).number
        host.rollout._public_keys = lambda: []
        with pytest.raises(TokenError, match="none of the trusted ones"):
            host.rollout.renew(number, 600.0)
        host.wait(30)
        assert host.running is None

    def test_but_with_a_newer_token_of_a_trusted_one(self, host):
        number = host.deploy(lease_s=30.0).number
        newer = order_of(now=host.clock.unix(), key=OTHER, key_id=key_id(OTHER_PUBLIC))
        host.rollout._public_keys = lambda: [OTHER_PUBLIC]
        host.rollout.renew(number, 600.0, newer.token, newer.report_digest)
        host.rollout.renew(number, 600.0)
        host.wait(31)
        assert host.running == number

    def test_nor_is_what_waits_loaded(self, host):
        host.rollout.config = Config(probation_s=PROBATION, baseline_samples=12)
        number = host.deploy().number
        host.rollout._public_keys = lambda: []
        host.wait(61)
        assert (host.running, host.get(number).end) == (None, End.NOT_LOADED)
        assert "none of the trusted ones" in host.get(number).detail

    def test_nor_is_it_promoted(self, host):
        number = host.proven()
        host.rollout.config = Config(probation_s=PROBATION, baseline_samples=12)
        host.rollout.promote(number, Stage.WIDER, WIDER)
        host.rollout._public_keys = lambda: []
        host.wait(61)
        assert (host.running, host.get(number).stage, host.get(number).next_stage) == (number, Stage.CANARY, None)
        assert "not promoted" in host.kinds

    def test_a_used_token_is_remembered_for_as_long_as_clocks_may_differ(self, host, monkeypatch):
        """It expires, another is used, the clock goes back by less than what is noticed: it is still known."""
        order = order_of("first", life_s=100, now=host.clock.unix())
        host.rollout.deploy(UID, order, content_of("first"), Stage.CANARY, CANARY, 60.0)
        host.wait(110)
        monkeypatch.setattr(time, "time", host.clock.unix)
        host.deploy("second")
        host.rollout.rollback(to_default=True)
        host.clock.day -= 30
        with pytest.raises(TokenError, match="was used before"):
            host.rollout.deploy(UID, order, content_of("first"), Stage.CANARY, CANARY, 60.0, again=True)

    def test_a_clock_set_back_revives_no_token(self, host):
        host.deploy("first", life_s=1000)
        host.clock.day -= 5000
        with pytest.raises(TokenError, match="clock was set back"):
            host.deploy("second", life_s=1000)

    def test_machines_that_must_not_be_touched(self, host):
        host.world.set(core=42)
        with pytest.raises(Refused, match=r"core scheduling is in use \(process 42\)"):
            host.deploy()
        host.world.set(core=None, others=[("scx_lavd", 7, "scx.service")])
        host.world.take_over("lavd_1.0")
        with pytest.raises(Refused, match=r"lavd_1.0 \(scx_lavd, process 7 of scx.service\)") as refused:
            host.deploy()
        assert refused.value.hint == "systemctl disable --now scx.service"
        assert "not ours" in host.rollout.in_charge
        assert host.rollout.status()["foreign"] == {
            "schedulers": ["scx_lavd, process 7 of scx.service"],
            "hint": "systemctl disable --now scx.service",
        }
        host.kill()
        host.start()
        told = [event.detail for event in host.record.events(0, 100) if event.kind == "another scheduler"]
        assert told == [
            "lavd_1.0 (scx_lavd, process 7 of scx.service) is in charge; to deploy: systemctl disable --now scx.service"
        ]
        host.world.set(available=False)
        with pytest.raises(Refused, match="has no sched_ext"):
            host.deploy()
        assert host.record.history(1) == ()

    def test_nothing_to_roll_back(self, host):
        with pytest.raises(Refused, match="nothing is deployed"):
            host.rollout.rollback()

    def test_a_policy_that_the_kernel_rejects(self, host):
        first = host.proven("first")
        host.world.set(refused=["second"])
        number = host.deploy("second").number
        assert (host.get(number).end, host.get(number).detail) == (End.NOT_LOADED, "the kernel refused second")
        assert (host.running, host.get(first).end) == (number + 1, End.REPLACED)
        assert host.get(number + 1).order.policy == "first"
        host.world.set(refused=["first", "second"])
        host.deploy("second")
        assert host.running is None


class TestCircuitBreaker:
    @pytest.mark.parametrize(
        ("trouble", "end"),
        [
            (lambda world: world.end_policy(1026), End.STALL),
            (lambda world: world.end_policy(1024), End.EJECTED),
            (lambda world: world.end_policy(66), End.EXITED),
            (lambda world: world.end_policy(65, code=1 << 48 | 1 << 32), End.HOTPLUG),
            (lambda world: world.set(policy=None), End.EXITED),
            (lambda world: world.set(nr_rejected=3), End.REJECTED_TASKS),
            (lambda world: world.set(events={"SCX_EV_SELECT_CPU_FALLBACK": 1000}), End.ERROR_EVENTS),
            (lambda world: world.set(starved=["7 (cc1)"]), End.STARVATION),
            (lambda world: world.set(available=False), End.BLIND),
        ],
    )
    def test_every_cause_trips_it(self, host, trouble, end):
        number = host.deploy().number
        host.wait(3)
        trouble(host.world)
        host.wait(6)
        ended = host.get(number)
        assert (ended.phase, ended.end, host.running) == (Phase.ENDED, end, None)
        assert "tripped" in host.kinds
        assert (host.world.moved, host.rollout.active) == ([], None)
        if end is End.STALL:
            assert ended.dump == "CPU states"

    def test_another_scheduler_is_left_alone(self, host):
        number = host.deploy().number
        host.world.set(others=[("scx_rusty", 9, "scx_loader.service")])
        host.world.take_over()
        host.wait(1)
        assert host.get(number).end is End.FOREIGN
        assert host.get(number).detail == (
            "'scx_other' is in charge instead (scx_rusty, process 9 of scx_loader.service); "
            "to deploy again: systemctl disable --now scx_loader.service"
        )
        assert host.world.policy["ops"] == "scx_other"

    def test_suspend(self, host):
        number = host.deploy().number
        host.wait(3)
        host.clock.asleep_s += 30
        host.wait(1)
        assert (host.running, host.get(number).end) == (None, End.SUSPENDED)

    @pytest.mark.parametrize(
        ("values", "end"),
        [({"pressure": 0.5}, End.PRESSURE), ({"delay_s": 0.02}, End.RUN_QUEUE_DELAY), ({"ran": 0.3}, End.CPU_SHARE)],
    )
    def test_worse_than_before(self, host, values, end):
        host.rollout.config = Config(probation_s=PROBATION, baseline_samples=12)
        number = host.deploy(lease_s=3000.0).number
        host.wait(61)
        assert host.running == number
        host.world.set(**values)
        host.wait(200)
        assert (host.running, host.get(number).end) == (None, end)
        assert "before it" in host.get(number).detail

    def test_as_good_as_before_stays(self, host):
        host.rollout.config = Config(probation_s=PROBATION, baseline_samples=12)
        number = host.deploy(lease_s=3000.0).number
        host.world.set(pressure=0.15)
        host.wait(500)
        assert host.running == number

    def test_back_to_the_last_known_good(self, host):
        host.proven("first")
        host.deploy("second")
        host.world.end_policy()
        host.wait(1)
        restored = host.rollout.active.deployment
        assert (host.running, restored.order.policy, restored.proven) == (restored.number, "first", True)
        assert host.world.truth()["moved"] == [CANARY]

    def test_not_back_to_one_that_never_proved_itself(self, host):
        host.deploy("first")
        host.deploy("second")
        host.world.end_policy()
        host.wait(1)
        assert host.running is None

    def test_not_back_with_an_expired_token(self, host):
        host.proven("first", life_s=100)
        host.deploy("second")
        host.wait(50)
        host.world.end_policy()
        host.wait(1)
        assert host.running is None
        assert "not restored" in host.kinds

    @pytest.mark.parametrize("cause", ["lease", "foreign"])
    def test_default_when_the_policy_is_not_to_blame(self, host, cause):
        host.proven("first")
        number = host.deploy("second", lease_s=10.0).number
        if cause == "foreign":
            host.world.take_over()
        host.wait(11)
        assert host.rollout.active is None
        assert host.get(number).end.is_trip

    def test_no_second_try_unless_asked_for(self, host):
        host.deploy()
        host.world.end_policy()
        host.wait(1)
        with pytest.raises(Refused, match="ended by the circuit breaker before: stall"):
            host.deploy()
        host.kill()
        host.start()
        with pytest.raises(Refused, match="ended by the circuit breaker"):
            host.deploy()
        assert host.running is None
        number = host.deploy(again=True).number
        assert host.running == number

    def test_a_policy_that_does_not_go_is_told(self, host):
        number = host.deploy().number
        host.world.set(refuses_detach="good did not detach within 2 s")
        host.world.end_policy()
        host.wait(1)
        assert "did not detach" in host.get(number).detail


class TestRollback:
    def test_to_the_last_known_good_or_the_default(self, host):
        host.proven("first")
        host.deploy("second")
        assert "(first" in host.rollout.rollback()
        assert "(first" in host.rollout.in_charge
        assert host.rollout.rollback() == "the default scheduler"
        host.proven("third")
        host.deploy("fourth")
        assert host.rollout.rollback(to_default=True) == "the default scheduler"
        assert host.running is None

    def test_what_waits_is_dropped_alone_if_it_is_named(self, host):
        first = host.proven("first")
        host.rollout.config = Config(probation_s=PROBATION, baseline_samples=12)
        second = host.deploy("second").number
        host.rollout.rollback(second)
        assert (host.running, host.rollout.pending, host.get(second).end) == (first, None, End.ROLLED_BACK)


class TestRestart:
    def test_stopping_ends_it(self, host):
        number = host.deploy().number
        host.stop()
        assert host.running is None
        host.start()
        assert host.get(number).end is End.STOPPED

    @pytest.mark.parametrize("proven", [True, False])
    def test_being_killed_ends_it(self, host, proven):
        number = host.proven() if proven else host.deploy().number
        host.kill()
        assert host.running is None
        host.start()
        assert (host.get(number).end, host.world.moved) == (End.DIED, [])

    @pytest.mark.parametrize("way", ["stop", "kill"])
    def test_what_is_proven_may_survive(self, staying, way):
        number = staying.proven()
        assert staying.world.truth()["pin"] == number
        getattr(staying, way)()
        assert staying.running == number
        staying.start()
        assert staying.rollout.active.deployment.number == number
        staying.rollout.rollback()
        assert staying.running is None
        assert staying.world.truth()["pin"] is None

    def test_unless_that_is_not_wanted_any_more(self, staying):
        staying.proven()
        staying.kill()
        staying.config = Config(probation_s=PROBATION, baseline_samples=0)
        staying.start()
        staying.stop()
        assert (staying.running, staying.world.truth()["pin"]) == (None, None)

    def test_what_is_on_probation_does_not(self, staying):
        staying.deploy()
        staying.kill()
        assert staying.running is None

    def test_a_wider_stage_is_on_probation_again(self, staying):
        number = staying.proven()
        staying.rollout.promote(number, Stage.WIDER, WIDER)
        assert staying.world.truth()["pin"] is None
        staying.kill()
        assert staying.running is None

    def test_a_lease_that_lapsed_while_nobody_watched(self, staying):
        number = staying.proven(lease_s=200.0)
        staying.kill()
        staying.clock.now += 200
        staying.start()
        assert (staying.running, staying.get(number).end) == (None, End.LEASE_LAPSED)

    @pytest.mark.parametrize("way", ["another boot", "no object", "never stored", "damaged", "ejected"])
    def test_what_cannot_be_accounted_for_ends(self, staying, way):
        number = staying.proven()
        staying.kill()
        if way == "another boot":
            staying.clock.id = "boot-2"
        elif way == "ejected":
            staying.world.end_policy()
        elif way == "damaged":
            (staying.folder / FILE).write_bytes(b"not a database" * 1000)
        else:
            table = "objects" if way == "no object" else "deployments"
            database = sqlite3.connect(staying.folder / FILE)
            database.execute(f"DELETE FROM {table}")
            database.commit()
            database.close()
        staying.start()
        assert (staying.running, staying.world.policy, staying.rollout.active) == (None, None, None)
        assert staying.record.unfinished() == ()
        assert way in ("never stored", "damaged") or staying.get(number).end is End.DIED

    def test_a_policy_that_cannot_be_pinned_goes_on(self, staying):
        staying.world.set(refuses_pin="no BPF file system")
        number = staying.proven()
        staying.wait(5)
        assert (staying.running, staying.get(number).pinned) == (number, False)
        assert staying.kinds.count("not pinned") == 1

    def test_a_long_story_is_cut(self, host, monkeypatch):
        """The log of the kernel's verifier, for one."""
        log = KernelRejected("x" * 100_000 + " the end")
        monkeypatch.setattr(ScriptedKernel, "load", lambda *_: (_ for _ in ()).throw(log))
        number = host.deploy().number
        assert len(host.get(number).detail) <= 4000
        assert host.get(number).detail.endswith(" the end")

    def test_the_folder_is_nobody_else_s(self, host, tmp_path):
        open_folder = tmp_path / "open"
        open_folder.mkdir()
        open_folder.chmod(0o770)
        with pytest.raises(RecordError, match="may write to the folder"):
            Record.open(open_folder)

    def test_one_daemon_only(self, host):
        with pytest.raises(SetupError, match="another schedagentd"):
            Record.open(host.folder)


class TestRecord:
    def test_a_full_disk_refuses_and_never_keeps_a_bad_policy(self, host, caplog):
        number = host.deploy().number
        host.record._database.execute("PRAGMA query_only = ON")
        with pytest.raises(RecordError):
            host.deploy("second")
        assert host.running == number
        host.world.end_policy()
        host.wait(1)
        assert (host.running, host.get(number).phase) == (None, Phase.RUNNING)
        said = len(caplog.messages)
        host.wait(20)
        assert len(caplog.messages) == said, "the log does not fill the disk further"
        host.record._database.execute("PRAGMA query_only = OFF")
        host.wait(1)
        assert (host.get(number).end, host.rollout.busy) == (End.STALL, False)
        with pytest.raises(Refused, match="circuit breaker"):
            host.deploy()

    def test_a_full_disk_while_loading(self, host):
        first = host.proven("first")
        real, saves = host.record.save, []

        def save(deployment, *told):
            if deployment.phase is Phase.RUNNING:
                saves.append(told)
                raise RecordError("full")
            return real(deployment, *told)

        host.record.save = save
        number = host.deploy("second").number
        assert host.running is None
        assert (host.get(number).end, host.get(first).end, len(saves)) == (End.NOT_LOADED, End.REPLACED, 2)

    def test_a_damaged_record_is_kept_and_revives_no_token(self, host):
        order = order_of()
        host.stop()
        (host.folder / FILE).write_bytes(b"x" * 8192)
        host.start()
        assert [path.read_bytes() for path in host.folder.glob("*.damaged-*")] == [b"x" * 8192]
        with pytest.raises(TokenError, match="older than the record"):
            host.rollout.deploy(UID, order, content_of(), Stage.CANARY, CANARY, 60.0)
        assert "record lost" in host.kinds

    def test_nor_one_that_was_used_before_it_began_to_be_valid(self, host):
        """Clocks may differ by a minute, so a token may be used that early."""
        order = order_of(begin=50.0)
        host.rollout.deploy(UID, order, content_of(), Stage.CANARY, CANARY, 60.0)
        host.stop()
        (host.folder / FILE).write_bytes(b"x" * 8192)
        host.start()
        with pytest.raises(TokenError, match="older than the record"):
            host.rollout.deploy(UID, order, content_of(), Stage.CANARY, CANARY, 60.0)

    def test_it_stays_small(self, host):
        for turn in range(5):
            host.deploy(f"policy{turn}")
        host.rollout.rollback(to_default=True)
        [(count,)] = host.record._database.execute("SELECT count(*) FROM objects").fetchall()
        assert count <= 2
        assert len(host.record.history(100)) == 5


def test_bounds_are_what_the_configuration_says():
    assert Config().bounds == Bounds()
    assert KEY
