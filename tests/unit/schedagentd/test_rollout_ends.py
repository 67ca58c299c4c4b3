"""How what runs over a scripted kernel ends, and what is left then: circuit breaker, roll-back, restart, record."""

from __future__ import annotations

import sqlite3

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from schedagent.core.deployment import End, Phase, Stage
from schedagent.core.errors import KernelRejected, RecordError, Refused, SetupError, TokenError
from schedagent.core.terminal.printable import OneLineFormatter
from schedagent.schedagentd.breaker import Bounds
from schedagent.schedagentd.config import Config
from schedagent.schedagentd.driver import MOST_DEATHS
from schedagent.schedagentd.record import FILE, Record
from tests.support.deploy_orders import CANARY, KEY, content_of, order_of
from tests.support.scripted_host import PROBATION, UID, Host
from tests.support.scripted_kernel import ScriptedKernel

RESTART = 1 << 48 | 1 << 32
"""SCX_ECODE_ACT_RESTART | SCX_ECODE_RSN_HOTPLUG."""
OTHER = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
OTHER_PUBLIC = OTHER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class Died(BaseException):
    """This process, in the middle of something."""


def die():
    raise Died


class TestCircuitBreaker:
    @pytest.mark.parametrize(
        ("trouble", "end"),
        [
            (lambda world: world.end_policy(1026), End.STALL),
            (lambda world: (world.set(holders=['7 "hog" on CPU 0']), world.end_policy(1026)), End.HELD),
            (lambda world: world.end_policy(1024), End.EJECTED),
            (lambda world: world.end_policy(66), End.EXITED),
            (lambda world: (world.set(hotplug_seq=1), world.end_policy(66, code=RESTART)), End.HOTPLUG),
            (lambda world: world.end_policy(66, code=RESTART), End.EXITED),
            (lambda world: world.end_policy(65, code=RESTART), End.EXITED),
            (lambda world: world.set(policy=None), End.EXITED),
            (lambda world: world.set(nr_rejected=3), End.REJECTED_TASKS),
            (lambda world: world.set(events={"SCX_EV_SELECT_CPU_FALLBACK": 1000}), End.ERROR_EVENTS),
            (lambda world: world.set(starved=["7 (cc1)"]), End.STARVATION),
            (lambda world: world.set(available=False), End.BLIND),
            (lambda world: world.set(core=42), End.CORE_SCHEDULING),
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
        assert (host.world.moved, host.driver.active) == ([], None)

    def test_another_scheduler_is_left_alone(self, host):
        number = host.deploy().number
        host.world.set(others=[("scx_rusty", 9, "scx_loader.service")])
        host.world.take_over()
        host.wait(1)
        assert host.get(number).end is End.FOREIGN
        assert host.get(number).detail == (
            '"scx_other" is in charge instead ("scx_rusty", process 9 of scx_loader.service); '
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
        restored = host.driver.active.deployment
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
        assert host.driver.active is None
        assert host.get(number).end.is_trip

    def test_no_second_try_unless_asked_for(self, host):
        host.deploy()
        host.world.end_policy(1024)
        host.wait(1)
        with pytest.raises(Refused, match="ended by the circuit breaker before: ejected by the kernel, on 20"):
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


class TestWhatCounts:
    """Against an object: what the policy did, for a week; not what others did, or what others may have done."""

    @pytest.mark.parametrize("end", End, ids=lambda end: end.name)
    def test_only_what_the_policy_did(self, end):
        own = {End.EJECTED, End.EXITED, End.ERROR_EVENTS, End.REJECTED_TASKS, End.DIED_ON_PROBATION}
        assert end.counts == (end in own or end in (End.STALL, End.STARVATION))

    @pytest.mark.parametrize(
        "innocent",
        [
            lambda host: host.wait(601),
            lambda host: setattr(host.clock, "asleep_s", 30.0),
            lambda host: (host.world.set(hotplug_seq=1), host.world.end_policy(66, code=RESTART)),
            lambda host: host.world.take_over(),
            lambda host: host.world.set(available=False),
            lambda host: host.world.set(core=42),
            lambda host: (host.world.set(holders=['7 "hog" on CPU 0']), host.world.end_policy(1026)),
        ],
        ids=[
            "lease",
            "suspend",
            "hotplug",
            "another scheduler",
            "sysfs",
            "core scheduling",
            "real-time tasks",
        ],
    )
    def test_an_innocent_end_keeps_nothing_away(self, host, innocent):
        number = host.deploy().number
        host.wait(3)
        innocent(host)
        host.wait(6)
        assert host.get(number).end.is_trip
        host.world.set(available=True, starved=[], policy=None, core=None)
        assert host.deploy().number == host.running == number + 1
        assert host.rollout.policies()["tripped"] == []

    def test_a_morning_peak_keeps_nothing_away(self, host):
        host.rollout.config = Config(probation_s=PROBATION, baseline_samples=12)
        number = host.deploy(lease_s=3000.0).number
        host.wait(61)
        host.world.set(pressure=0.9, delay_s=0.05)
        host.wait(200)
        assert host.get(number).end is End.RUN_QUEUE_DELAY
        host.deploy()

    @pytest.mark.parametrize("stage", [Stage.CANARY, Stage.FULL])
    def test_starving_counts_wherever_nobody_goes_first(self, tmp_path, stage):
        host = Host(tmp_path / "state", direct_full=True)
        asked = {"stage": stage, "cgroup": CANARY if stage is Stage.CANARY else ""}
        host.deploy(**asked)
        host.world.set(starved=["7 (cc1)"])
        host.wait(6)
        with pytest.raises(Refused, match="circuit breaker before: starvation"):
            host.deploy(**asked)

    def test_it_is_forgotten_after_a_week(self, host):
        host.deploy()
        host.world.end_policy(1024)
        host.wait(1)
        host.clock.day += 7 * 86400 - 60
        with pytest.raises(Refused) as refused:
            host.deploy()
        assert "in 7 days, or now if the cause is known" in refused.value.hint
        host.clock.day += 60
        assert host.deploy().number == host.running
        assert host.rollout.policies()["tripped"] == []

    def test_nor_does_a_clock_that_was_wrong_make_it_last(self, host):
        host.deploy()
        host.clock.day += 3e8
        host.world.end_policy(1024)
        host.wait(1)
        host.clock.day -= 3e8
        assert host.deploy().number == host.running


FORGED = 'fine"\nINFO: deployment 9 pinned\r\x1b[2J\x9b31m\u202e\u2028' + "A" * 9000


class TestWordsOfOthers:
    """Of kernel, policies and processes: each is quoted in one printable line of bounded length."""

    def details(self, host):
        return [event.detail for event in host.record.events(0, 1000)] + [
            ended.detail for ended in host.record.history(100)
        ]

    @pytest.mark.parametrize(
        "hostile",
        [
            lambda host: host.world.end_policy(1024, message=FORGED),
            lambda host: host.world.take_over(ops=FORGED),
            lambda host: host.world.set(others=[(FORGED, 9, "x.service")]) or host.world.take_over(),
            lambda host: host.world.set(refuses_detach=FORGED) or host.world.end_policy(),
            lambda host: host.world.set(starved=[f"7 {FORGED}"]),
        ],
        ids=["exit record", "name of the policy", "name of a process", "error of the kernel", "starved task"],
    )
    def test_an_end(self, host, caplog, hostile):
        caplog.handler.setFormatter(OneLineFormatter("%(levelname)s: %(message)s"))
        number = host.deploy().number
        host.wait(3)
        hostile(host)
        host.wait(6)
        assert host.get(number).phase is Phase.ENDED
        assert all(detail.isprintable() and len(detail) <= 4100 for detail in self.details(host))
        assert "pinned" not in [line[:28] for line in caplog.text.splitlines() if not line.startswith("WARNING")]
        assert len(caplog.text.splitlines()) == len(caplog.records) > 0
        assert all(line.isprintable() for line in caplog.text.splitlines())

    def test_what_the_kernel_s_verifier_said(self, host, monkeypatch):
        log = KernelRejected(f"the kernel refused good\n{FORGED}\n; int secret = 1; /* {FORGED} */ the end")
        monkeypatch.setattr(ScriptedKernel, "load", lambda *_: (_ for _ in ()).throw(log))
        ended = host.get(host.deploy().number)
        assert ended.detail == "the kernel refused good"
        assert ended.own_words.startswith('"AAA')
        assert ended.own_words.endswith('the end"')
        assert (ended.own_words.isprintable(), ended.own_words.count('"'), len(ended.own_words) < 3600) == (
            True,
            2,
            True,
        )

    def test_what_a_policy_collected_is_in_no_event(self, host):
        number = host.deploy().number
        host.world.end_policy(1024, message="the password is hunter2")
        host.wait(1)
        assert host.get(number).own_words == '"reason: the password is hunter2"'
        assert "hunter2" not in "".join(self.details(host))


class TestLastKnownGood:
    """It is there whatever else was accepted, dropped or restored meanwhile."""

    def waiting(self, host, name="third"):
        """Let another one wait behind what runs."""
        host.rollout.config = Config(probation_s=PROBATION, baseline_samples=12)
        return host.deploy(name).number

    def in_charge(self, host):
        return host.driver.active and host.driver.active.deployment.order.policy

    def test_a_trip_while_another_waits(self, host):
        host.proven("first")
        host.deploy("second")
        third = self.waiting(host)
        host.world.end_policy()
        host.wait(1)
        assert (self.in_charge(host), host.driver.waiting.number) == ("first", third)
        host.wait(61)
        assert (self.in_charge(host), host.get(third).previous) == ("third", third + 1)
        host.world.end_policy()
        host.wait(1)
        assert self.in_charge(host) == "first", "though it has the highest number of all"

    def test_a_trip_after_a_later_one_was_dropped(self, host):
        host.proven("first")
        host.deploy("second")
        host.rollout.rollback(self.waiting(host))
        host.world.end_policy()
        host.wait(1)
        assert self.in_charge(host) == "first"

    def test_a_rollback_while_another_waits(self, host):
        host.proven("first")
        host.deploy("second")
        self.waiting(host)
        host.rollout.rollback()
        assert (self.in_charge(host), host.driver.waiting) == ("first", None)

    def test_one_behind_the_other(self, host):
        host.proven("first")
        host.proven("second")
        host.deploy("third")
        for expected in ("second", "first", None):
            host.world.end_policy()
            host.wait(1)
            assert self.in_charge(host) == expected

    def test_however_many_were_dropped_since(self, host, monkeypatch):
        monkeypatch.setattr("schedagent.schedagentd.record.KEPT_DEPLOYMENTS", 2)
        host.proven("first")
        host.deploy("second")
        for turn in range(4):
            host.rollout.rollback(self.waiting(host, f"policy{turn}"))
        host.world.end_policy()
        host.wait(1)
        assert self.in_charge(host) == "first"

    def test_not_the_object_that_the_circuit_breaker_ended(self, host):
        """Neither what waits, nor what was proven before, under whatever number."""
        host.proven("first")
        host.proven("second")
        host.deploy("first")
        waiting = self.waiting(host, "first")
        host.world.end_policy(1024)
        host.wait(1)
        assert (self.in_charge(host), host.get(waiting).end) == ("second", End.NOT_LOADED)
        host.world.end_policy(1024)
        host.wait(1)
        assert self.in_charge(host) is None
        assert host.kinds[-1] == "not restored"

    def test_nor_a_process_tree_that_is_gone(self, host):
        host.rollout.config = Config(probation_s=PROBATION, baseline_samples=0, direct_full=True)
        host.deploy("first", cgroup="", pid=42, stage=Stage.FULL)
        host.wait(301)
        host.deploy("second")
        host.world.processes = {}
        host.world.end_policy()
        host.wait(1)
        assert (self.in_charge(host), host.kinds[-1]) == (None, "not restored")

    def test_it_is_renewed_by_the_number_that_it_had_first(self, host):
        first = host.proven("first", lease_s=100.0)
        for name in ("second", "third"):
            host.deploy(name)
            assert host.rollout.status()["restorable"][-1] == first
            host.world.end_policy()
            host.wait(1)
            assert host.rollout.status()["active"]["restores"] == first
            for _turn in range(3):
                host.rollout.renew(first, 100.0)
                host.wait(90)
            assert self.in_charge(host) == "first"
        host.rollout.rollback(first)
        assert host.running is None


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
        assert (host.running, host.driver.pending, host.get(second).end) == (first, None, End.ROLLED_BACK)


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
        assert (host.get(number).end, host.world.moved) == (End.DIED if proven else End.DIED_ON_PROBATION, [])

    @pytest.mark.parametrize("step", ["loading", "running"])
    def test_what_was_on_probation_when_this_process_died_is_to_blame(self, host, step):
        """Whether the policy did it (an OOM kill, a crash of ours over what it wrote) cannot be known afterwards."""
        if step == "loading":
            host.world.hooks["load"] = die
            with pytest.raises(Died):
                host.deploy()
        else:
            host.deploy()
        host.kill()
        host.start()
        with pytest.raises(Refused, match="ended by the circuit breaker before: schedagentd or the machine died"):
            host.deploy()
        assert host.deploy(again=True)

    @pytest.mark.parametrize("way", ["stop", "kill"])
    def test_what_is_proven_may_survive(self, staying, way):
        number = staying.proven()
        assert staying.world.truth()["pin"] == number
        getattr(staying, way)()
        assert staying.running == number
        staying.start()
        assert staying.driver.active.deployment.number == number
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

    @pytest.mark.parametrize("way", ["stop", "kill"])
    def test_what_it_died_under_again_and_again_does_not(self, staying, way):
        """Or killing its supervisor would be a policy's way to be left alone."""
        number = staying.proven()
        for _restart in range(MOST_DEATHS):
            getattr(staying, way)()
            staying.start()
            assert staying.running == number
        getattr(staying, way)()
        staying.start()
        assert staying.running == (number if way == "stop" else None)

    def test_what_is_on_probation_does_not(self, staying):
        staying.deploy()
        staying.kill()
        assert staying.running is None

    def test_what_is_promoted_is_on_probation_again(self, staying):
        number = staying.proven()
        staying.rollout.promote(number)
        staying.wait(1.5)
        assert (staying.running, staying.world.truth()["pin"]) == (number, None)
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
        assert (staying.running, staying.world.policy, staying.driver.active) == (None, None, None)
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
        host.world.end_policy(1024)
        host.wait(1)
        assert (host.running, host.get(number).phase) == (None, Phase.RUNNING)
        said = len(caplog.messages)
        host.wait(20)
        assert len(caplog.messages) == said, "the log does not fill the disk further"
        host.record._database.execute("PRAGMA query_only = OFF")
        host.wait(1)
        assert (host.get(number).end, host.rollout.busy) == (End.EJECTED, False)
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
