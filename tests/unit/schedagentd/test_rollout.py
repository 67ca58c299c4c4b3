"""The roll-out over a scripted kernel: stages, process trees, the metric, leases and refusals."""

from __future__ import annotations

import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from schedagent.core.deployment import End, Phase, Stage, Tree
from schedagent.core.errors import Refused, TokenError
from schedagent.core.policies.policy import DECLARABLE, READABLE
from schedagent.core.token import Scope, key_id
from schedagent.core.welch import Better
from schedagent.schedagentd.admission import Accepted
from schedagent.schedagentd.config import DECLARED, READ, Config
from tests.support.deploy_orders import CANARY, MEMBER, content_of, order_of
from tests.support.scripted_host import PROBATION, UID, Host

OTHER = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
OTHER_PUBLIC = OTHER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class TestStages:
    def test_a_canary_has_the_tasks_of_its_cgroup(self, host):
        number = host.deploy().number
        assert host.world.truth() | {"pin": None} == {
            "enabled": True,
            "pin": None,
            "number": number,
            "partial": True,
            "moved": [CANARY],
        }
        host.wait(61)
        assert host.get(number).proven
        assert host.kinds == ["started", "accepted", "loading", "running", "proven"]

    def test_a_full_switch_that_ends_limits_of_cgroups_has_to_be_accepted(self, host):
        host.world.cgroup_limits_set = [["/a", "cpu.max", "20000 100000"]]
        number = host.proven(declares=("cgroup limits",))
        with pytest.raises(Refused, match=r'"/a" would lose cpu.max "20000 100000"'):
            host.rollout.promote(number)
        assert host.get(number).stage is Stage.CANARY
        host.rollout.promote(number, uid=7, accept_limits=True)
        assert host.get(number).stage is Stage.PULSE
        noted = [event.detail for event in host.record.events(-1, 100) if event.kind == "accepted"]
        assert any("user 7 accepted it" in detail and '"/a" would lose' in detail for detail in noted)

    def test_a_policy_that_keeps_limits_is_promoted_beside_them(self, host):
        host.world.cgroup_limits_set = [["/a", "cpu.max", "20000 100000"]]
        number = host.proven(declares=("cgroup weights",))
        host.rollout.promote(number)
        assert host.get(number).stage is Stage.PULSE

    @pytest.mark.parametrize("stage", [Stage.PULSE, Stage.FULL])
    def test_a_pulse_ends_limits_of_cgroups_as_well(self, tmp_path, stage):
        host = Host(tmp_path, direct_full=True)
        host.world.cgroup_limits_set = [["/a", "cpu.max", "20000 100000"]]
        with pytest.raises(Refused, match='"/a" would lose'):
            host.deploy(stage=stage, cgroup="", declares=("cgroup limits",))

    def test_newcomers_of_the_cgroup_are_moved_in(self, host):
        host.deploy()
        host.world.moved = []
        host.wait(6)
        assert host.world.moved

    def test_each_stage_is_a_probation(self, host):
        number = host.deploy().number
        host.wait(30)
        with pytest.raises(Refused, match="on probation for 30 s more"):
            host.rollout.promote(number)
        assert host.get(number).stage is Stage.CANARY

    @pytest.mark.parametrize(
        ("stage", "cgroup", "why"),
        [
            (Stage.FULL, "", "begins with stage pulse"),
            (Stage.TRIAL, "", "a trial is no stage"),
            (Stage.CANARY, "", "needs a cgroup"),
            (Stage.CANARY, "/nothing", "there is no cgroup"),
            (Stage.PULSE, "/nothing", "there is no cgroup"),
        ],
    )
    def test_first_stages_that_are_refused(self, host, stage, cgroup, why):
        with pytest.raises(Refused, match=why):
            host.deploy(stage=stage, cgroup=cgroup)
        assert host.running is None

    def test_promotions_that_are_refused(self, host):
        number = host.proven(scope=Scope.PARTIAL, within=MEMBER)
        with pytest.raises(TokenError, match="not for scope full"):
            host.rollout.promote(number)
        with pytest.raises(Refused, match="neither running nor waiting"):
            host.rollout.promote(number + 1)
        assert (host.running, host.get(number).stage) == (number, Stage.CANARY)

    def test_only_a_canary_is_promoted(self, tmp_path):
        host = Host(tmp_path / "state", direct_full=True)
        number = host.deploy(stage=Stage.FULL, cgroup="").number
        with pytest.raises(Refused, match="is at stage full"):
            host.rollout.promote(number)

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


class TestDeclared:
    """What a policy leaves out, or goes by, on its submitter's word: the configuration takes it by name."""

    def test_nothing_is_taken_unless_the_configuration_says_so(self, host):
        with pytest.raises(Refused, match='it does not seek "weights", which this machine does not accept') as refused:
            host.deploy(declares=("weights",))
        assert 'accept_declared = ["weights"]' in refused.value.hint
        assert "/etc/schedagent/schedagentd.toml" in refused.value.hint
        with pytest.raises(Refused, match='does not seek "weights" and goes by "comm", "uid"') as refused:
            host.deploy(declares=("weights",), reads=("comm", "uid"))
        assert 'accept_declared = ["weights"]; accept_reads = ["comm", "uid"]' in refused.value.hint
        assert host.running is None
        assert host.record.used_nonces == frozenset(), "a token that was refused can be used once that is settled"

    def test_what_is_accepted_by_name_is_deployed_and_no_more(self, tmp_path):
        host = Host(tmp_path / "state", accept_declared=("weights",), accept_reads=("comm",))
        with pytest.raises(Refused, match='does not seek "idle machine", which') as refused:
            host.deploy(declares=("idle machine", "weights"), reads=("comm",))
        assert 'accept_declared = ["idle machine", "weights"]' in refused.value.hint, "it keeps what was accepted"
        with pytest.raises(Refused, match='it goes by "uid", which'):
            host.deploy(declares=("weights",), reads=("uid",))
        number = host.deploy(declares=("weights",), reads=("comm",)).number
        assert host.running == number

    def test_what_is_accepted_no_longer_ends_with_its_lease(self, tmp_path):
        host = Host(tmp_path / "state", accept_declared=("weights",))
        number = host.proven(declares=("weights",))
        host.driver.accepted = Accepted()
        for refused in (
            lambda: host.rollout.renew(number, 600.0),
            lambda: host.rollout.promote(number),
        ):
            with pytest.raises(Refused, match="does not accept"):
                refused()
        host.wait(600)
        assert host.running is None

    def test_a_newer_token_may_not_declare_more(self, host):
        number = host.deploy().number
        newer = order_of(now=host.clock.unix(), declares=("weights",))
        with pytest.raises(Refused, match="does not accept"):
            host.rollout.renew(number, 600.0, newer.token, newer.report_digest)

    def test_the_words_are_those_that_policies_can_declare(self):
        assert (DECLARED, READ) == (DECLARABLE, READABLE)


class TestTrees:
    """A process tree is what is measured; no stage is for its tasks only."""

    @pytest.mark.parametrize(
        ("asked", "why"),
        [
            ({"pid": 43}, "there is no process 43"),
            ({"pid": 1}, "every process of its kind"),
            ({"pid": 2}, "every process of its kind"),
            ({"pid": 42, "cgroup": CANARY}, "without a cgroup"),
            ({"pid": 42, "cgroup": CANARY, "stage": Stage.CANARY}, "a canary is a cgroup"),
        ],
    )
    def test_what_is_refused(self, host, asked, why):
        with pytest.raises(Refused, match=why):
            host.deploy(**{"cgroup": "", "stage": Stage.PULSE} | asked)
        assert host.running is None

    def test_another_process_may_get_its_id(self, tmp_path):
        host = Host(tmp_path / "state", direct_full=True)
        number = host.deploy(cgroup="", pid=42, stage=Stage.FULL).number
        assert (host.get(number).tree, host.get(number).summary(0)["pid"]) == (Tree(42, 7000), 42)
        host.world.processes = {"42": 7001}
        host.wait(6)
        assert (host.running, host.get(number).end, host.get(number).end.is_trip) == (None, End.GONE, False)

    def test_it_is_not_loaded_for_a_process_that_ended_meanwhile(self, tmp_path):
        host = Host(tmp_path / "state", direct_full=True)
        host.rollout.config = Config(probation_s=PROBATION, baseline_samples=12, direct_full=True)
        number = host.deploy(cgroup="", pid=42, stage=Stage.FULL).number
        host.world.processes = {"42": 7001}
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
        assert (host.driver.pending, host.get(number).end) == (None, End.NOT_LOADED)


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
        host.driver.public_keys = lambda: []
        with pytest.raises(TokenError, match="none of the trusted ones"):
            host.rollout.renew(number, 600.0)
        host.wait(30)
        assert host.running is None

    def test_but_with_a_newer_token_of_a_trusted_one(self, host):
        number = host.deploy(lease_s=30.0).number
        newer = order_of(now=host.clock.unix(), key=OTHER, key_id=key_id(OTHER_PUBLIC))
        host.driver.public_keys = lambda: [OTHER_PUBLIC]
        host.rollout.renew(number, 600.0, newer.token, newer.report_digest)
        host.rollout.renew(number, 600.0)
        host.wait(31)
        assert host.running == number

    def test_nor_is_what_waits_loaded(self, host):
        host.rollout.config = Config(probation_s=PROBATION, baseline_samples=12)
        number = host.deploy().number
        host.driver.public_keys = lambda: []
        host.wait(61)
        assert (host.running, host.get(number).end) == (None, End.NOT_LOADED)
        assert "none of the trusted ones" in host.get(number).detail

    def test_nor_is_it_promoted(self, host):
        number = host.proven()
        host.driver.public_keys = lambda: []
        with pytest.raises(TokenError, match="none of the trusted ones"):
            host.rollout.promote(number)
        assert (host.running, host.get(number).stage) == (number, Stage.CANARY)

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
        with pytest.raises(Refused, match=r"core scheduling is in use \(thread 42\)"):
            host.deploy()
        host.world.set(core=None, others=[("scx_lavd", 7, "scx.service")])
        host.world.take_over("lavd_1.0")
        with pytest.raises(Refused, match=r'"lavd_1.0" \("scx_lavd", process 7 of scx.service\)') as refused:
            host.deploy()
        assert refused.value.hint == "systemctl disable --now scx.service"
        assert "not ours" in host.rollout.in_charge
        assert host.rollout.status()["foreign"] == {
            "schedulers": ['"scx_lavd", process 7 of scx.service'],
            "hint": "systemctl disable --now scx.service",
        }
        host.kill()
        host.start()
        told = [event.detail for event in host.record.events(0, 100) if event.kind == "another scheduler"]
        assert told == [
            '"lavd_1.0" ("scx_lavd", process 7 of scx.service) is in charge; '
            "to deploy: systemctl disable --now scx.service"
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
